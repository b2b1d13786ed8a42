//! Model files in memory, and what becomes of them on the disk meanwhile.
//!
//! A mapped file is read as it is touched. Where it was cut, or where its disk fails, there is nothing to touch: the kernel
//! sends SIGBUS, which [`super::fault`] turns into a sentence. What was written or replaced is read as it is now, so that a
//! model is half of one file and half of another: [`unchanged`] is asked before each job.

use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use memmap2::Mmap;
use rustix::fs::OFlags;

use super::identity::Stamp;
use crate::{Error, Result};

/// All files that are mapped, to find the one that an address belongs to.
static MAPPED: Mutex<Vec<Weak<Mapped>>> = Mutex::new(Vec::new());

/// A memory-mapped model file.
pub(crate) struct Mapped {
    /// The file's path.
    pub path: PathBuf,
    /// The file's content; the kernel loads pages as they are touched.
    pub bytes: Mmap,
    /// The open file, to see what becomes of it.
    file: File,
    /// The file as it was opened; `None` where the file system says one thing of the open file and another of its name, so
    /// that nothing can be told by either.
    stamp: Option<Stamp>,
    /// Whether a job has brought the file, so that it says nothing about the model.
    of_job: AtomicBool,
}

impl Mapped {
    /// Maps a file, which must not be empty.
    pub fn open(path: &Path) -> Result<Arc<Self>> {
        let file = open(path).map_err(Error::file("open", path))?;
        let meta = file.metadata().map_err(Error::file("read", path))?;
        if !meta.is_file() {
            return Err(Error::Model(format!("`{}` is not a file", path.display())));
        }
        if meta.len() == 0 {
            return Err(Error::Model(format!("`{}` is empty; copy it again", path.display())));
        }
        // SAFETY: the mapping is private and read-only. Model files should not be written while they are in use. One that is
        // gives other numbers, which are valid in every type that is read from it, or SIGBUS, which ends the process.
        let bytes = unsafe { Mmap::map(&file) }.map_err(Error::file("map", path))?;
        let named = std::fs::metadata(path).map_err(Error::file("read", path))?;
        let stamp = Some(Stamp::of(&meta)).filter(|stamp| *stamp == Stamp::of(&named));
        let mapped =
            Arc::new(Self { path: path.to_owned(), bytes, file, stamp, of_job: AtomicBool::new(false) });
        let mut all = all();
        all.retain(|mapped| mapped.strong_count() > 0);
        all.push(Arc::downgrade(&mapped));
        Ok(mapped)
    }

    /// Returns the open file.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Checks that the file has not been cut since it was opened.
    pub fn check(&self) -> Result<()> {
        let length = self.file.metadata().map_err(|e| self.unreadable(&e))?.len();
        if length < self.bytes.len() as u64 {
            return Err(Error::Model(format!(
                "`{}` had {} bytes when it was opened and now has {length}; copy it again",
                self.path.display(),
                self.bytes.len()
            )));
        }
        Ok(())
    }

    /// Returns what it says of a file that the file system no longer gives, which is the file's fault and not the work's.
    fn unreadable(&self, e: &io::Error) -> Error {
        Error::Model(format!(
            "`{}` cannot be read: {e}; look at the disk or network it comes from",
            self.path.display()
        ))
    }

    /// Checks that the file has not been written since it was opened, and that no other one is in its place. A file whose
    /// name is gone stays what it was.
    fn unchanged(&self) -> Result<()> {
        self.check()?;
        let Some(stamp) = &self.stamp else { return Ok(()) };
        let meta = self.file.metadata().map_err(|e| self.unreadable(&e))?;
        let named = std::fs::metadata(&self.path).ok();
        let what = match () {
            () if Stamp::of(&meta) != *stamp => "was written since the model was opened",
            () if named.is_some_and(|now| Stamp::of(&now) != *stamp) => {
                "is another file than when the model was opened"
            }
            () => return Ok(()),
        };
        Err(Error::Model(format!("`{}` {what}; the model is opened again", self.path.display())))
    }

    /// Returns why the byte at `offset` could not be read from memory.
    fn fault(&self, offset: usize) -> Error {
        if let Err(e) = self.check() {
            return e;
        }
        match self.file.read_exact_at(&mut [0], offset as u64) {
            Err(e) => Error::Model(format!(
                "`{}` cannot be read at byte {offset}: {e}; look at its disk (`dmesg` as root), and copy it again",
                self.path.display()
            )),
            // It was cut at that moment, and is written anew.
            Ok(()) => Error::Model(format!(
                "`{}` was cut while it was read; when it is complete, the model can be opened again",
                self.path.display()
            )),
        }
    }
}

/// Opens a file for reading. Opening a pipe without the flag would wait for somebody who writes to it.
pub(super) fn open(path: &Path) -> io::Result<File> {
    File::options().read(true).custom_flags(OFlags::NONBLOCK.bits().cast_signed()).open(path)
}

fn all() -> MutexGuard<'static, Vec<Weak<Mapped>>> {
    MAPPED.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Says that the file which was opened last at this path came with a job.
pub(super) fn comes_with_a_job(path: &Path) {
    let files: Vec<_> = all().iter().filter_map(Weak::upgrade).collect();
    if let Some(file) = files.iter().rev().find(|file| file.path == path) {
        file.of_job.store(true, Ordering::Relaxed);
    }
}

/// Checks that all files of the model that are in use are as they were opened. It costs two system calls a file.
///
/// # Errors
/// [`Error::Model`] names one that was cut, written or replaced.
pub fn unchanged() -> Result<()> {
    let files: Vec<_> = all().iter().filter_map(Weak::upgrade).collect();
    files.iter().filter(|file| !file.of_job.load(Ordering::Relaxed)).try_for_each(|file| file.unchanged())
}

/// Returns why an address in a mapped file could not be read; `None` for an address in none. It is [`Error::Model`] for a file
/// of the model, and [`Error::Output`] for one that a job has brought, which fails with its jobs.
pub(super) fn fault(address: usize) -> Option<Error> {
    let files: Vec<_> = all().iter().filter_map(Weak::upgrade).collect();
    files.iter().find_map(|file| {
        let offset = address.checked_sub(file.bytes.as_ptr() as usize)?;
        (offset < file.bytes.len()).then(|| match file.fault(offset) {
            e if file.of_job.load(Ordering::Relaxed) => Error::Output(e.to_string()),
            e => e,
        })
    })
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::time::{Duration, SystemTime};

    use super::*;

    /// The other tests of this process map files as well, so that only a file's own answer is asked for.
    fn said(file: &Mapped) -> String {
        file.unchanged().expect_err("it has changed").to_string()
    }

    #[test]
    fn what_becomes_of_a_file_is_noticed() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = |name: &str| dir.path().join(name);
        for name in ["same", "cut", "written", "replaced", "gone", "new"] {
            fs::write(path(name), [7; 5000]).expect("written");
        }
        let [same, cut, written, replaced, gone] = ["same", "cut", "written", "replaced", "gone"]
            .map(|name| Mapped::open(&path(name)).expect("it is a file"));
        let at = |name: &str| File::options().write(true).open(path(name)).expect("it is there");
        at("cut").set_len(100).expect("cut");
        at("written").set_modified(SystemTime::now() + Duration::from_secs(5)).expect("touched");
        fs::rename(path("new"), path("replaced")).expect("renamed");
        fs::remove_file(path("gone")).expect("removed");
        assert!(same.unchanged().is_ok() && gone.unchanged().is_ok());
        assert!(said(&cut).ends_with("had 5000 bytes when it was opened and now has 100; copy it again"));
        assert!(said(&written).contains("written` was written since"), "{}", said(&written));
        assert!(said(&replaced).contains("replaced` is another file than"), "{}", said(&replaced));
        let end = cut.bytes.as_ptr() as usize + 4999;
        assert_eq!(fault(end).map(|e| e.to_string()), Some(said(&cut)));
        assert!(matches!(fault(end), Some(Error::Model(_))));
        comes_with_a_job(&path("cut"));
        assert!(matches!(fault(end), Some(Error::Output(said)) if said.contains("now has 100")));
        assert_eq!(fault(8).map(|e| e.to_string()), None, "it is in no file");
    }
}
