//! Dropping copies: those that were not used for the longest time where there is too little room, or those that somebody
//! names. A copy that is in use stays.

use std::fs::{self, File};
use std::os::unix::fs::{MetadataExt, lchown};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};

use super::{Cache, CachedCopy, GIB, SOURCES};
use crate::{Error, Result};

/// The end of the names of folders that are being written, and of those that are being removed.
pub(super) const UNFINISHED: &str = ".part";
const DROPPED: &str = ".dropped";

/// The lock of the whole folder. While it is held, nobody else writes or drops a copy.
pub(super) struct Writing {
    _lock: File,
}

impl Cache {
    /// Makes the folder if it is missing, and takes its lock.
    ///
    /// # Errors
    /// [`Error::File`] if the folder cannot be made or read, or if somebody else holds the lock.
    pub(super) fn lock(&self) -> Result<Writing> {
        let folder = self.folder();
        if !folder.is_dir() {
            fs::create_dir_all(folder).map_err(Error::file("create", folder))?;
            // What root makes in the service's cache is the service's, which has to drop copies from it.
            if rustix::process::geteuid().is_root() {
                let parent = folder.parent().unwrap_or(folder);
                let of = fs::metadata(parent).map_err(Error::file("read", parent))?;
                lchown(folder, Some(of.uid()), Some(of.gid()))
                    .map_err(Error::file("set the owner of", folder))?;
            }
        }
        let lock = File::open(folder).map_err(Error::file("open", folder))?;
        match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Writing { _lock: lock }),
            Err(rustix::io::Errno::WOULDBLOCK) => Err(Error::Model(format!(
                "a copy is being written or removed in `{}`; try again when that has ended",
                folder.display()
            ))),
            Err(e) => Err(Error::file("lock", folder)(e.into())),
        }
    }

    /// Drops the copies that were not used for the longest time, until all together keep the limit. Returns those that
    /// were dropped. Copies in use stay, even if the limit is not kept then.
    ///
    /// # Errors
    /// [`Error::File`] if a copy cannot be removed; [`Error::Model`] while somebody writes one.
    pub fn keep_limit(&self) -> Result<Vec<CachedCopy>> {
        // A cache that nobody has used is not made for this.
        if !self.folder().is_dir() {
            return Ok(Vec::new());
        }
        let writing = self.lock()?;
        self.make_room(&writing, 0)
    }

    /// Drops copies until one more of so many bytes keeps the limit.
    pub(super) fn make_room(&self, _writing: &Writing, bytes: u64) -> Result<Vec<CachedCopy>> {
        self.remove_leftovers()?;
        let Some(limit) = self.limit() else { return Ok(Vec::new()) };
        if bytes > limit {
            return Err(Error::Setting(format!(
                "a copy of {:.1} GiB does not fit into a cache of {} GiB; raise `cache_gib`",
                bytes as f64 / GIB as f64,
                limit / GIB
            )));
        }
        let mut copies = self.list()?;
        let mut all: u64 = copies.iter().map(|copy| copy.bytes).sum();
        let mut dropped = Vec::new();
        while all.saturating_add(bytes) > limit {
            let Some(copy) = copies.pop() else { break };
            if self.drop_copy(&copy.name)? {
                all -= copy.bytes;
                dropped.push(copy);
            }
        }
        if bytes > 0 && all.saturating_add(bytes) > limit {
            return Err(Error::Setting(format!(
                "the copies that engines use now take {:.1} GiB, and one more of {:.1} GiB does not fit into a cache of {} GiB; \
                 raise `cache_gib`, or end the engines",
                all as f64 / GIB as f64,
                bytes as f64 / GIB as f64,
                limit / GIB
            )));
        }
        Ok(dropped)
    }

    /// Drops the copy of this name, or all if there is none. Returns those that were dropped and those that are in use,
    /// which stay.
    ///
    /// # Errors
    /// [`Error::Setting`] if no copy has the name; [`Error::File`] if a copy cannot be removed; [`Error::Model`] while
    /// somebody writes one.
    pub fn clear(&self, name: Option<&str>) -> Result<(Vec<CachedCopy>, Vec<CachedCopy>)> {
        let mut copies = self.list()?;
        if let Some(name) = name {
            copies.retain(|copy| copy.name == name);
            if copies.is_empty() {
                return Err(Error::Setting(format!(
                    "no prepared copy is called `{name}`; `animd-engine cache` lists them"
                )));
            }
        }
        if !self.folder().is_dir() {
            return Ok((Vec::new(), Vec::new()));
        }
        let _writing = self.lock()?;
        self.remove_leftovers()?;
        let (mut dropped, mut kept) = (Vec::new(), Vec::new());
        for copy in copies {
            let to = if self.drop_copy(&copy.name)? { &mut dropped } else { &mut kept };
            to.push(copy);
        }
        Ok((dropped, kept))
    }

    /// Removes a copy, unless it is in use. Returns whether it is gone.
    fn drop_copy(&self, name: &str) -> Result<bool> {
        let folder = self.folder().join(name);
        let Ok(list) = File::open(folder.join(SOURCES)) else {
            return remove(&folder).map(|()| true);
        };
        if flock(&list, FlockOperation::NonBlockingLockExclusive).is_err() {
            return Ok(false);
        }
        let away = self.set_aside(&folder)?;
        // Who waits for the lock finds no copy any more.
        drop(list);
        remove(&away)?;
        Ok(true)
    }

    /// Puts a finished folder in the place of a copy. Engines that use an older copy keep its open files.
    pub(super) fn put(&self, _writing: &Writing, finished: &Path, folder: &Path) -> Result<()> {
        let away = if folder.exists() { Some(self.set_aside(folder)?) } else { None };
        fs::rename(finished, folder).map_err(Error::file("rename", finished))?;
        away.map_or(Ok(()), |away| remove(&away))
    }

    /// Gives a folder a name under which no copy is looked for.
    fn set_aside(&self, folder: &Path) -> Result<PathBuf> {
        let name = folder.file_name().unwrap_or_default().to_string_lossy();
        let away = self.folder().join(format!(".{name}{DROPPED}"));
        remove(&away)?;
        fs::rename(folder, &away).map_err(Error::file("rename", folder))?;
        Ok(away)
    }

    /// Removes what an interrupted process has left.
    fn remove_leftovers(&self) -> Result<()> {
        for folder in self.folders()? {
            let name = folder.file_name().unwrap_or_default().to_string_lossy();
            if name.starts_with('.') && [UNFINISHED, DROPPED].iter().any(|end| name.ends_with(end)) {
                remove(&folder)?;
            }
        }
        Ok(())
    }
}

/// Removes a folder with everything in it, if it exists.
pub(super) fn remove(folder: &Path) -> Result<()> {
    match fs::remove_dir_all(folder) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(Error::file("remove", folder)(e)),
        _ => Ok(()),
    }
}
