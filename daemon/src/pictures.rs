//! The pictures that show a job's video without playing it: `STATE/pictures/UUID-KIND.jpg`.

use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::DirBuilderExt;
use std::path::PathBuf;

use animd_protocol::messages::Pictures;

use crate::delivery::Desk;
use crate::ledger::Job;
use crate::{Error, Result};

/// The folder of the pictures in the state folder.
pub(crate) const PICTURES: &str = "pictures";

/// What a picture shows, and for how long there is one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Picture {
    /// One frame, as large as the video; lives for `retention.pictures_days`.
    Poster,
    /// The same frame, at most 512 pixels on its longer side; lives as long as its job's row.
    Thumbnail,
    /// What the video is going to be; only while its job runs, and not from its beginning.
    Preview,
}

impl Picture {
    /// All kinds.
    pub const ALL: [Self; 3] = [Self::Poster, Self::Thumbnail, Self::Preview];

    /// `poster`, `thumbnail` or `preview`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Poster => "poster",
            Self::Thumbnail => "thumbnail",
            Self::Preview => "preview",
        }
    }
}

impl Desk {
    /// Where a job's picture lies, once there is one.
    pub fn picture(&self, job: &Job, picture: Picture) -> PathBuf {
        self.config().folders.state.join(PICTURES).join(format!("{}-{}.jpg", job.uuid, picture.name()))
    }

    /// What the engine is to write for a job; makes the folder.
    pub(crate) fn pictures(&self, job: &Job) -> Result<Pictures> {
        let [poster, thumbnail, preview] = Picture::ALL.map(|picture| self.picture(job, picture));
        if let Some(folder) = poster.parent() {
            let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(folder);
            made.map_err(Error::file("create", folder))?;
        }
        Ok(Pictures { poster: Some(poster), thumbnail: Some(thumbnail), preview: Some(preview) })
    }

    /// Removes one picture of a job, if there is one.
    pub fn remove_picture(&self, job: &Job, picture: Picture) {
        _ = fs::remove_file(self.picture(job, picture));
    }

    /// Removes all pictures of a job: what is left when it is forgotten, or has no video.
    pub fn remove_pictures(&self, job: &Job) {
        for picture in Picture::ALL {
            self.remove_picture(job, picture);
        }
    }

    /// Removes what an interrupted run left: previews, and pictures half written. Nothing runs now.
    pub(crate) fn sweep_pictures(&self) {
        let Ok(entries) = fs::read_dir(self.config().folders.state.join(PICTURES)) else { return };
        for entry in entries.flatten() {
            let name = entry.file_name();
            if name.as_bytes().ends_with(b"-preview.jpg") || name.as_bytes().ends_with(b".part") {
                _ = fs::remove_file(entry.path());
            }
        }
    }
}
