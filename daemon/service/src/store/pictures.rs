//! The pictures that show a job's video without playing it: `STATE/pictures/UUID-KIND.jpg`.

use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use animd_protocol::messages::Pictures;

use crate::error::{Error, Result};
use crate::store::ledger::Job;

/// The folder of the pictures in the state folder.
const PICTURES: &str = "pictures";

/// What a picture shows, and for how long there is one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Picture {
    /// One frame, as large as the video; lives for `retention.pictures_days`.
    Poster,
    /// The same frame, at most 512 pixels on its longer side; lives as long as its job's row.
    Thumbnail,
    /// What the video is going to be; there is one only while its job runs, and not from its beginning.
    Preview,
}

impl Picture {
    /// All kinds.
    pub const ALL: [Self; 3] = [Self::Poster, Self::Thumbnail, Self::Preview];

    /// Returns `poster`, `thumbnail` or `preview`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Poster => "poster",
            Self::Thumbnail => "thumbnail",
            Self::Preview => "preview",
        }
    }
}

/// The files of the pictures of videos; cheap to clone.
#[derive(Clone)]
pub struct PictureFiles {
    dir: PathBuf,
}

impl PictureFiles {
    /// Returns the files of the service that has this state folder.
    pub fn new(state: &Path) -> Self {
        Self { dir: state.join(PICTURES) }
    }

    /// Returns the folder of the pictures.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Returns where a job's picture lies, once there is one.
    pub fn path(&self, job: &Job, picture: Picture) -> PathBuf {
        self.dir.join(format!("{}-{}.jpg", job.uuid, picture.name()))
    }

    /// Returns the files that the engine should write for a job, and makes their folder.
    pub fn prepare(&self, job: &Job) -> Result<Pictures> {
        let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(&self.dir);
        made.map_err(Error::file("create", &self.dir))?;
        let [poster, thumbnail, preview] = Picture::ALL.map(|picture| Some(self.path(job, picture)));
        Ok(Pictures { poster, thumbnail, preview })
    }

    /// Removes one picture of a job, if there is one.
    pub fn remove(&self, job: &Job, picture: Picture) {
        _ = fs::remove_file(self.path(job, picture));
    }

    /// Removes all pictures of a job that is forgotten, or has no video.
    pub fn remove_all(&self, job: &Job) {
        for picture in Picture::ALL {
            self.remove(job, picture);
        }
    }

    /// Removes the previews and half-written pictures that an interrupted run left. No job may run meanwhile.
    pub fn sweep(&self) {
        let Ok(entries) = fs::read_dir(&self.dir) else { return };
        for entry in entries.flatten() {
            let name = entry.file_name();
            if name.as_bytes().ends_with(b"-preview.jpg") || name.as_bytes().ends_with(b".part") {
                _ = fs::remove_file(entry.path());
            }
        }
    }
}
