//! The folders that videos are written to, opened so that nobody can put another one in their place.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use animd_common::watch::root::Dir;

use super::Delivery;
use crate::store::ledger::Job;

impl Delivery {
    /// Returns the folder for the video of a job.
    pub fn outbox(&self, job: &Job) -> PathBuf {
        job.outbox.clone().unwrap_or_else(|| self.config.get().folders.outbox.clone())
    }

    /// Returns the unfinished file of a job's current attempt.
    pub fn part(&self, job: &Job) -> PathBuf {
        job.part(&self.outbox(job))
    }

    /// Opens a folder that videos are written to, if it is one to use. Nobody can swap the service's own.
    pub fn outbox_dir(&self, path: &Path) -> io::Result<Dir> {
        if path == self.results.dir() {
            return Dir::own(path);
        }
        Dir::open(&self.watches.outbox(path), Path::new(""))
    }

    /// As [`Self::outbox_dir`], for a folder that may have to be made.
    pub fn make_outbox(&self, path: &Path) -> io::Result<Dir> {
        match path == self.results.dir() {
            true => fs::create_dir_all(path)?,
            false => self.watches.outbox(path).make()?,
        }
        self.outbox_dir(path)
    }

    /// Removes the unfinished file of a job's current attempt, if there is one.
    pub fn remove_part(&self, job: &Job) {
        if let Ok(outbox) = self.outbox_dir(&self.outbox(job)) {
            _ = fs::remove_file(outbox.at(&self.part(job)));
        }
    }

    /// Returns whether another folder is at the place where a finished job's unfinished video was written.
    pub(super) fn is_elsewhere(&self, job: &Job) -> bool {
        let now = self.outbox_dir(&self.outbox(job)).and_then(|outbox| outbox.id());
        job.outbox_id.is_some_and(|id| now.is_ok_and(|now| now != id))
    }

    /// Returns whether the folder that a job's video goes into is there, and is one to use.
    pub(super) fn outbox_is_there(&self, job: &Job) -> bool {
        job.output.as_deref().and_then(Path::parent).is_some_and(|dir| self.outbox_dir(dir).is_ok())
    }
}
