//! Videos that the service keeps for some days for callers of the bus to fetch: `STATE/results/UUID.mp4`.

use std::fs;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use super::ledger::Job;
use crate::error::{Error, Result};

/// The folder of these videos; cheap to clone.
#[derive(Clone)]
pub struct Results {
    dir: PathBuf,
}

impl Results {
    /// Returns the folder of the service that has this state folder.
    pub fn new(state: &Path) -> Self {
        Self { dir: state.join("results") }
    }

    /// Returns the folder of the videos.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Makes the folder. Blocks.
    pub fn make(&self) -> Result<()> {
        let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(&self.dir);
        made.map_err(Error::file("create", &self.dir))
    }

    /// Returns the path of the video of a job, if it lies here.
    pub fn video<'a>(&self, job: &'a Job) -> Option<&'a Path> {
        job.output.as_deref().filter(|output| output.parent() == Some(&self.dir))
    }

    /// Removes the video of a job, if it lies here. Returns false if there was none. Blocks.
    pub fn remove(&self, job: &Job) -> Result<bool> {
        let Some(output) = self.video(job) else { return Ok(false) };
        match fs::remove_file(output) {
            Ok(()) => Ok(true),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(e) => Err(Error::file("remove", output)(e)),
        }
    }
}
