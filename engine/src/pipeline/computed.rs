//! A video of which all frames are computed: what is left takes the processor and the disk, and not the model.

use std::path::PathBuf;
use std::time::Instant;

use animd_protocol::messages::Report;

use crate::Result;
use crate::image::Picture;
use crate::progress::{Observer, Progress, Stage};
use crate::video::VideoWriter;

use super::models::peak_ram;
use super::pictures::Stills;

/// The video. Dropped before [`Computed::save`], it leaves no file.
pub struct Computed {
    /// The report, without what the rest will take.
    report: Report,
    /// The progress when the last frame was computed.
    progress: Progress,
    /// The file that is still being written; `None` if it is complete.
    file: Option<Unfinished>,
}

/// A file whose last frames wait for the encoder.
pub(super) struct Unfinished {
    pub writer: VideoWriter,
    pub stills: Stills,
    /// The last frame with its path, for a video that is a part of one.
    pub last_frame: Option<(PathBuf, Picture)>,
    /// When [`Stage::Write`] began.
    pub began: Instant,
}

impl Computed {
    /// Returns a video whose file is still being written. The seconds of `report` end with the last frame.
    pub(super) fn new(report: Report, progress: Progress, file: Unfinished) -> Self {
        Self { report, progress, file: Some(file) }
    }

    /// Returns a video whose file is complete, as the report says.
    pub(super) fn saved(report: Report) -> Self {
        let progress = Progress { stage: Stage::Write, step: 0, steps: 0, fraction: 1.0, seconds_left: None };
        Self { report, progress, file: None }
    }

    /// Waits until the file is complete and synced, with the pictures beside it. After an error there is no file.
    ///
    /// # Errors
    /// Returns [`crate::Error::Output`] if the encoder has failed, and [`crate::Error::File`] if the disk has.
    pub fn save(self, observer: &dyn Observer) -> Result<Report> {
        let Self { mut report, progress, file } = self;
        let Some(Unfinished { writer, stills, last_frame, began }) = file else { return Ok(report) };
        report.bytes = writer.finish()?;
        if let Some((path, picture)) = last_frame {
            picture.write_png(&path)?;
        }
        stills.finish();
        report.seconds.push((Stage::Write.name().to_owned(), began.elapsed().as_secs_f64()));
        report.peak_ram_bytes = peak_ram();
        observer.progress(&Progress { fraction: 1.0, seconds_left: Some(0.0), ..progress });
        Ok(report)
    }
}
