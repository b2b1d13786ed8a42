//! Copies of the jobs' pictures, named by their SHA-256: the queue has its copy whatever happens to the source.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use animd_common::clock::days_ago_us;
use animd_common::files::{free_space, hex, rename_new, sync_dir};
use animd_common::picture::{self, MAX_BYTES};
use animd_protocol::ErrorCode;
use sha2::{Digest, Sha256};
use tokio::sync::mpsc;

use crate::error::{Error, Result};

/// How many bytes of a copy are written between two syncs of it. Data that is not synced holds up every other
/// sync of the disk, and so every other user's answer.
const SYNC_EVERY: u64 = 8 << 20;

/// How many pictures are copied at a time.
const WRITERS: usize = 8;

type Sha = [u8; 32];

/// The folder of spooled pictures, with those that no row of the ledger refers to so far.
#[derive(Clone)]
pub struct Spool {
    dir: PathBuf,
    /// Marks the copies that this run of the service has not finished.
    run: uuid::Uuid,
    pins: Arc<Mutex<HashMap<Sha, u32>>>,
    keep_days: Arc<AtomicU32>,
    reserve_mib: Arc<AtomicU64>,
    /// Told of each picture that nobody holds any more.
    unheld: Arc<Mutex<Option<mpsc::UnboundedSender<Sha>>>>,
    names: Arc<Names>,
}

/// Syncs of the folder. The threads that ask for a sync while one runs share the next one.
#[derive(Default)]
struct Names {
    asked: AtomicU64,
    synced: Mutex<u64>,
}

impl Names {
    /// Syncs the folder, so that every name that was given before the call is on the disk. Blocks.
    fn sync(&self, dir: &Path) -> std::io::Result<()> {
        let mine = self.asked.fetch_add(1, Ordering::SeqCst) + 1;
        let mut synced = self.synced.lock().unwrap_or_else(PoisonError::into_inner);
        if *synced < mine {
            let all = self.asked.load(Ordering::SeqCst);
            sync_dir(dir)?;
            *synced = all;
        }
        Ok(())
    }
}

/// A spooled picture that stays while this is held.
pub struct Spooled {
    /// The picture's hash.
    pub sha256: Sha,
    /// The size of the picture in bytes.
    pub bytes: u64,
    spool: Spool,
}

impl Drop for Spooled {
    fn drop(&mut self) {
        let mut pins = self.spool.pins.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = pins.get_mut(&self.sha256) {
            *count -= 1;
            if *count == 0 {
                pins.remove(&self.sha256);
                drop(pins);
                let unheld = self.spool.unheld.lock().unwrap_or_else(PoisonError::into_inner);
                if let Some(unheld) = &*unheld {
                    _ = unheld.send(self.sha256);
                }
            }
        }
    }
}

impl Spool {
    /// Opens the spool in this folder, which is made if it is missing.
    pub fn open(dir: PathBuf) -> Result<Self> {
        fs::create_dir_all(&dir).map_err(Error::file("create", &dir))?;
        let (pins, keep_days, reserve_mib, unheld, names) = Default::default();
        Ok(Self { dir, run: uuid::Uuid::new_v4(), pins, keep_days, reserve_mib, unheld, names })
    }

    /// Returns a receiver that is told of each picture that nobody holds any more, whatever has become of its submission:
    /// one that no job needs is to be released.
    pub fn unheld(&self) -> mpsc::UnboundedReceiver<[u8; 32]> {
        let (sender, receiver) = mpsc::unbounded_channel();
        *self.unheld.lock().unwrap_or_else(PoisonError::into_inner) = Some(sender);
        receiver
    }

    /// Returns the path of the picture with this hash.
    pub fn path(&self, sha256: &Sha) -> PathBuf {
        self.dir.join(hex(sha256))
    }

    /// Returns whether the spool has this picture.
    pub fn has(&self, sha256: &Sha) -> bool {
        self.path(sha256).exists()
    }

    /// Holds a picture that the spool has already; `None` if it has not.
    pub fn hold(&self, sha256: Sha) -> Option<Spooled> {
        let mut pins = self.pins.lock().unwrap_or_else(PoisonError::into_inner);
        let bytes = fs::symlink_metadata(self.path(&sha256)).ok()?.len();
        *pins.entry(sha256).or_default() += 1;
        Some(Spooled { sha256, bytes, spool: self.clone() })
    }

    /// Sets for how many days pictures of ended jobs stay; 0 means for ever.
    pub fn set_keep(&self, days: u32) {
        self.keep_days.store(days, Ordering::Relaxed);
    }

    /// Sets how many MiB of the disk are left free.
    pub fn set_reserve(&self, mib: u64) {
        self.reserve_mib.store(mib, Ordering::Relaxed);
    }

    /// Copies a whole regular file, whatever its descriptor's offset, and syncs the copy. Blocks.
    ///
    /// # Errors
    /// [`Error::Refused`] with code `invalid-image` for a file that is empty, too large, no picture that the engine
    /// reads (see [`picture::read`]), or changes while it is read.
    pub fn put(&self, file: &File, what: &str) -> Result<Spooled> {
        // Pictures in watched folders are taken without this check: there a job says what is wrong, in `failed/`.
        self.check_room(file.metadata().map_err(Error::file("look at", what))?.len())?;
        let spooled = self.stage(file, what)?;
        self.names.sync(&self.dir).map_err(Error::file("sync", &self.dir))?;
        Ok(spooled)
    }

    /// Copies many files as [`Self::put`] does, and syncs the folder once for all of them.
    pub fn put_all(&self, files: &[(File, String)]) -> Vec<Result<Spooled>> {
        // Several files are copied at once, because a disk syncs several in the time of one.
        let staged: Vec<Result<Spooled>> = thread::scope(|scope| {
            let share = files.len().div_ceil(WRITERS).max(1);
            let writers: Vec<_> = files
                .chunks(share)
                .map(|files| {
                    scope
                        .spawn(|| files.iter().map(|(file, what)| self.stage(file, what)).collect::<Vec<_>>())
                })
                .collect();
            let joined = |writer: thread::ScopedJoinHandle<'_, Vec<_>>| {
                writer.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
            };
            writers.into_iter().flat_map(joined).collect()
        });
        match sync_dir(&self.dir) {
            Ok(()) => staged,
            Err(e) => {
                let again = || std::io::Error::new(e.kind(), e.to_string());
                staged
                    .into_iter()
                    .map(|s| s.and_then(|_| Err(Error::file("sync", &self.dir)(again()))))
                    .collect()
            }
        }
    }

    /// Copies a file and gives the copy its name. A power cut may undo the name until the folder is synced.
    fn stage(&self, file: &File, what: &str) -> Result<Spooled> {
        let refuse = |text: String| Error::refused(ErrorCode::InvalidImage, text);
        let before = file.metadata().map_err(Error::file("look at", what))?;
        if !before.is_file() {
            return Err(refuse(format!(
                "{what} is {}, not a regular file",
                animd_common::files::kind(&before)
            )));
        }
        if before.len() == 0 {
            return Err(refuse(format!("{what} is empty; give a whole picture")));
        }
        if before.len() > MAX_BYTES {
            return Err(refuse(format!(
                "{what} has {} MiB; a picture file may have at most {} MiB: save it smaller",
                before.len() >> 20,
                MAX_BYTES >> 20
            )));
        }
        picture::read(file, what)?;
        let part = self.dir.join(format!("{}{}.part", self.unfinished(), uuid::Uuid::new_v4()));
        let copied = Self::copy(file, before.len(), &part, what);
        let spooled = copied.and_then(|sha256| {
            let after = file.metadata().map_err(Error::file("look at", what))?;
            if after.len() != before.len() || after.modified().ok() != before.modified().ok() {
                return Err(refuse(format!(
                    "{what} changed while it was read; send it again when it is complete"
                )));
            }
            // From here on nobody removes the picture, although no row refers to it so far.
            *self.pins.lock().unwrap_or_else(PoisonError::into_inner).entry(sha256).or_default() += 1;
            let spooled = Spooled { sha256, bytes: before.len(), spool: self.clone() };
            let path = self.path(&sha256);
            match rename_new(&part, &path) {
                Ok(()) => {}
                // The same picture is there already, whole: names are hashes, and only whole files get one.
                Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => _ = fs::remove_file(&part),
                Err(e) => return Err(Error::file("rename", &path)(e)),
            }
            Ok(spooled)
        });
        if spooled.is_err() {
            _ = fs::remove_file(&part);
        }
        spooled
    }

    /// Refuses a picture that would leave less room on the disk than the queue's own files need.
    fn check_room(&self, length: u64) -> Result<()> {
        let reserve = self.reserve_mib.load(Ordering::Relaxed);
        let free = free_space(&self.dir).map_err(Error::file("ask for the free space of", &self.dir))?;
        if free >= length.saturating_add(reserve << 20) {
            return Ok(());
        }
        let text = format!(
            "it has {} MiB left, of which {reserve} MiB are kept free (queue.free_mib); make room",
            free >> 20
        );
        Err(Error::file("copy a picture into", &self.dir)(std::io::Error::new(
            std::io::ErrorKind::StorageFull,
            text,
        )))
    }

    fn copy(file: &File, length: u64, part: &Path, what: &str) -> Result<Sha> {
        let mut copy = fs::OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(part)
            .map_err(Error::file("create", part))?;
        let mut hash = Sha256::new();
        let mut buffer = vec![0; 1 << 18];
        let (mut at, mut synced) = (0, 0);
        // Reads by position: a descriptor from a caller shares its offset with the caller.
        loop {
            let n = match file.read_at(&mut buffer, at) {
                Ok(n) => n,
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => continue,
                Err(e) => return Err(Error::file("read", what)(e)),
            };
            at += n as u64;
            // A file that grows for ever ends here.
            if at > length || (n == 0 && at < length) {
                return Err(Error::refused(
                    ErrorCode::InvalidImage,
                    format!("{what} changed while it was read; send it again when it is complete"),
                ));
            }
            if n == 0 {
                break;
            }
            hash.update(&buffer[..n]);
            copy.write_all(&buffer[..n]).map_err(Error::file("write", part))?;
            if at - synced >= SYNC_EVERY {
                copy.sync_data().map_err(Error::file("sync", part))?;
                synced = at;
            }
        }
        copy.sync_all().map_err(Error::file("sync", part))?;
        Ok(hash.finalize().into())
    }

    /// Removes a picture, unless somebody holds it or it is `needed` by a job that is open or has ended since the given
    /// time, in microseconds since the epoch. Returns whether it is gone. Blocks.
    pub fn release(&self, sha256: Sha, needed: impl FnOnce(i64) -> Result<bool>) -> Result<bool> {
        let since_us = days_ago_us(self.keep_days.load(Ordering::Relaxed));
        // The lock is held until the file is gone, so that nobody can count on the picture in between.
        let pins = self.pins.lock().unwrap_or_else(PoisonError::into_inner);
        if pins.contains_key(&sha256) || needed(since_us)? {
            return Ok(false);
        }
        match fs::remove_file(self.path(&sha256)) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                Err(Error::file("remove", self.path(&sha256))(e))
            }
            _ => Ok(true),
        }
    }

    /// Returns the prefix of the names of copies that this run is writing.
    fn unfinished(&self) -> String {
        format!(".{}-", self.run)
    }

    /// Removes what an interrupted run left, and returns the hashes of the pictures in the spool. Copies that are being
    /// written stay. Blocks.
    pub fn sweep(&self) -> Result<Vec<Sha>> {
        let (mut pictures, unfinished) = (Vec::new(), self.unfinished());
        for entry in fs::read_dir(&self.dir).map_err(Error::file("read", &self.dir))?.flatten() {
            match entry.file_name().to_str().and_then(unhex) {
                Some(sha256) => pictures.push(sha256),
                None if entry.file_name().to_string_lossy().starts_with(&unfinished) => {}
                None => _ = fs::remove_file(entry.path()),
            }
        }
        Ok(pictures)
    }
}

fn unhex(text: &str) -> Option<Sha> {
    if text.len() != 64 || !text.is_ascii() {
        return None;
    }
    let mut sha = [0; 32];
    for (i, byte) in sha.iter_mut().enumerate() {
        *byte = u8::from_str_radix(&text[2 * i..2 * i + 2], 16).ok()?;
    }
    Some(sha)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_picture_is_kept_while_it_is_held_and_swept_afterwards() -> Result<()> {
        let dir = tempfile::tempdir().map_err(Error::file("make", "a folder"))?;
        let spool = Spool::open(dir.path().join("spool"))?;
        let sweep = || -> Result<()> {
            spool.sweep()?.into_iter().try_for_each(|sha256| spool.release(sha256, |_| Ok(false)).map(|_| ()))
        };
        let mut unheld = spool.unheld();
        let source = dir.path().join("a.png");
        fs::write(&source, picture::TINY).map_err(Error::file("write", &source))?;
        let file = File::open(&source).map_err(Error::file("open", &source))?;
        let held = spool.put(&file, "the picture")?;
        let again = spool.put(&file, "the picture")?;
        assert_eq!(held.sha256, again.sha256);
        let path = spool.path(&held.sha256);
        drop(again);
        sweep()?;
        assert_eq!(fs::read(&path).ok().as_deref(), Some(picture::TINY));
        assert!(unheld.try_recv().is_err(), "somebody holds it");
        let sha256 = held.sha256;
        drop(held);
        assert_eq!(unheld.try_recv(), Ok(sha256));
        let written = dir.path().join("spool").join(format!("{}1.part", spool.unfinished()));
        for part in [&dir.path().join("spool/.x.part"), &written] {
            fs::write(part, "torn").map_err(Error::file("write", part))?;
        }
        sweep()?;
        assert!(written.exists(), "somebody is writing it");
        assert_eq!(fs::read_dir(dir.path().join("spool")).map(Iterator::count).ok(), Some(1));
        Spool::open(dir.path().join("spool"))?.sweep()?;
        assert_eq!(fs::read_dir(dir.path().join("spool")).map(Iterator::count).ok(), Some(0));
        Ok(())
    }

    #[test]
    fn a_full_disk_takes_no_picture() -> Result<()> {
        let dir = tempfile::tempdir().map_err(Error::file("make", "a folder"))?;
        let spool = Spool::open(dir.path().join("spool"))?;
        let source = dir.path().join("a.png");
        fs::write(&source, picture::TINY).map_err(Error::file("write", &source))?;
        let file = File::open(&source).map_err(Error::file("open", &source))?;
        // No disk has so much space.
        spool.set_reserve(u64::MAX >> 21);
        let refused = spool.put(&file, "the picture").map(|_| ()).expect_err("no room").to_string();
        assert!(refused.contains("(queue.free_mib); make room"), "{refused}");
        spool.set_reserve(0);
        spool.put(&file, "the picture").map(|_| ())
    }

    #[test]
    fn what_is_no_whole_picture_file_is_refused() -> Result<()> {
        let dir = tempfile::tempdir().map_err(Error::file("make", "a folder"))?;
        let spool = Spool::open(dir.path().join("spool"))?;
        let refused =
            |file: &File| spool.put(file, "the picture").map(|_| ()).expect_err("refused").to_string();
        let endless = File::open("/dev/zero").map_err(Error::file("open", "/dev/zero"))?;
        assert_eq!(refused(&endless), "the picture is a device, not a regular file");
        let large = File::create(dir.path().join("large")).map_err(Error::file("create", "large"))?;
        assert!(refused(&large).contains("empty"));
        large.set_len(MAX_BYTES + 1).map_err(Error::file("grow", "large"))?;
        assert!(refused(&large).contains("at most 256 MiB"));
        Ok(())
    }
}
