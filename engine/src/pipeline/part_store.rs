//! The finished parts of a film, in a folder: each with its video, its last frame and its report.
//!
//! A part counts once its report is there, which is written last. A film that is interrupted therefore goes on after its
//! last finished part, in another process as well.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

use animd_protocol::messages::{Pictures, Report};
use animd_protocol::request::Request;
use serde::{Deserialize, Serialize};

use crate::image::{self, Picture};
use crate::{Error, Result};

/// The folder of a film's finished parts.
pub struct PartStore {
    dir: PathBuf,
}

/// What is written down of a finished part.
#[derive(Serialize, Deserialize)]
struct Finished {
    /// What was asked for; a part of another request does not count.
    request: Request,
    report: Report,
}

impl PartStore {
    /// Opens the folder, which is made if it is missing.
    ///
    /// # Errors
    /// [`Error::File`] if it cannot be made.
    pub fn open(dir: &Path) -> Result<Self> {
        fs::create_dir_all(dir).map_err(Error::file("create", dir))?;
        Ok(Self { dir: dir.to_owned() })
    }

    /// Returns the video of the part `index`, counted from 0.
    pub fn video(&self, index: usize) -> PathBuf {
        self.dir.join(format!("part-{}.mp4", index + 1))
    }

    /// Returns the last frame of the part `index`.
    pub fn last_frame(&self, index: usize) -> PathBuf {
        self.dir.join(format!("part-{}.png", index + 1))
    }

    /// Returns where the film's poster and thumbnail wait for its end, as far as `wanted` has them.
    pub fn stills(&self, wanted: &Pictures) -> Pictures {
        let kept = |wanted: &Option<PathBuf>, name| wanted.as_ref().map(|_| self.dir.join(name));
        Pictures {
            poster: kept(&wanted.poster, "poster.jpg"),
            thumbnail: kept(&wanted.thumbnail, "thumbnail.jpg"),
            preview: None,
        }
    }

    /// Puts the poster and the thumbnail in their places. A picture that cannot be written does not fail the film.
    pub fn place_stills(&self, wanted: &Pictures) {
        let kept = self.stills(wanted);
        for (from, to) in [(kept.poster, &wanted.poster), (kept.thumbnail, &wanted.thumbnail)] {
            let Some((from, to)) = from.zip(to.as_ref()) else { continue };
            let place = || fs::copy(&from, to).and_then(|_| File::open(to)?.sync_all());
            if let Err(e) = place() {
                tracing::warn!("the video has no `{}`: {e}", to.display());
            }
        }
    }

    fn record(&self, index: usize) -> PathBuf {
        self.dir.join(format!("part-{}.json", index + 1))
    }

    /// Returns the report of the part `index` if it is finished and is what `request` asks for.
    pub fn finished(&self, index: usize, request: &Request) -> Option<Report> {
        let text = fs::read(self.record(index)).ok()?;
        let Finished { request: made, report } = serde_json::from_slice(&text).ok()?;
        let video = fs::metadata(self.video(index)).ok()?;
        (made == *request && video.len() == report.bytes).then_some(report)
    }

    /// Takes note that the part `index` is finished: its files are on the disk.
    ///
    /// # Errors
    /// [`Error::File`] if that cannot be written.
    pub fn finish(&self, index: usize, request: &Request, report: &Report) -> Result<()> {
        let record = self.record(index);
        let part = record.with_extension("json.part");
        let finished = Finished { request: request.clone(), report: report.clone() };
        let text = serde_json::to_vec(&finished).map_err(|e| Error::Internal(e.to_string()))?;
        let write = || -> std::io::Result<()> {
            let mut file = File::create(&part)?;
            file.write_all(&text)?;
            file.sync_all()?;
            fs::rename(&part, &record)?;
            File::open(&self.dir)?.sync_all()
        };
        write().map_err(Error::file("write", &record))?;
        // Only the newest last frame is needed: the parts before it are finished.
        if let Some(before) = index.checked_sub(1) {
            let _ = fs::remove_file(self.last_frame(before));
        }
        Ok(())
    }

    /// Returns the last frame of the part `index`, from which the next part starts.
    ///
    /// # Errors
    /// The errors of [`image::decode`].
    pub fn picture(&self, index: usize) -> Result<Picture> {
        image::decode(&self.last_frame(index))
    }

    /// Removes the folder with all parts.
    pub fn remove(self) {
        if let Err(e) = fs::remove_dir_all(&self.dir) {
            tracing::warn!("cannot remove `{}`: {e}", self.dir.display());
        }
    }
}
