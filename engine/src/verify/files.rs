//! The hashes of model files, and the list of those that were seen before.
//!
//! The list is animd's own file and lies with its state, never beside the model. A file is known by its path, size, time
//! and inode; its hash then says whether its content is what it was.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs::File;
use std::io::{ErrorKind, Read};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::weights::Stamp;
use crate::{Error, Result};

/// The bytes that are read and hashed at a time.
const BLOCK: usize = 4 << 20;
/// The longest list that is read: a hundred thousand files.
const MAX_LIST: u64 = 64 << 20;

/// How a file compares with what the list says of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Change {
    /// The file was not in the list.
    New,
    /// Its content is what it was.
    Same,
    /// Somebody has written another content.
    Replaced,
    /// Its content is another, although nobody has written it: its size, time and inode are what they were.
    Decayed,
}

/// A file and its hash.
#[derive(Clone, Debug, Serialize)]
pub struct Hashed {
    /// The file.
    pub path: PathBuf,
    /// Its bytes.
    pub bytes: u64,
    /// The SHA-256 of its content, in hexadecimal digits.
    pub sha256: String,
    /// How it compares with the time before.
    pub change: Change,
    /// The time at which the hash in the list was computed, in seconds since 1970; of a file that was seen before.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seen: Option<u64>,
}

/// A file in the list.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Entry {
    #[serde(flatten)]
    stamp: Stamp,
    sha256: String,
    /// Seconds since 1970.
    seen: u64,
    /// Whether nothing was wrong with the network in it.
    #[serde(default)]
    sound: bool,
}

/// The list of the files that were seen, by their paths.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Known(BTreeMap<PathBuf, Entry>);

impl Known {
    /// Reads the list. There is none before the first time; one that cannot be read counts as none, and says so in the log.
    pub fn read(list: &Path) -> Self {
        let text = match std::fs::metadata(list) {
            Ok(found) if found.len() > MAX_LIST => Err(std::io::Error::other("it is too long")),
            Ok(_) => std::fs::read_to_string(list),
            Err(e) => Err(e),
        };
        let parsed = match text {
            Ok(text) => serde_json::from_str(&text).map_err(std::io::Error::other),
            Err(e) if e.kind() == ErrorKind::NotFound => return Self::default(),
            Err(e) => Err(e),
        };
        parsed.unwrap_or_else(|e| {
            tracing::warn!("`{}` is written anew: {e}", list.display());
            Self::default()
        })
    }

    /// Writes the list, complete or not at all.
    ///
    /// # Errors
    /// Returns [`Error::File`] where it cannot be written.
    pub fn write(&self, list: &Path) -> Result<()> {
        if let Some(folder) = list.parent() {
            std::fs::create_dir_all(folder).map_err(Error::file("create", folder))?;
        }
        let text = serde_json::to_string_pretty(self).map_err(|e| Error::Internal(e.to_string()))?;
        let part = list.with_extension(format!("{}.part", std::process::id()));
        std::fs::write(&part, text + "\n").map_err(Error::file("write", &part))?;
        std::fs::rename(&part, list).map_err(Error::file("rename", &part))
    }

    /// Returns the hash of a file that was seen and has not been written since, without reading it.
    pub fn hash(&self, path: &Path) -> Option<&str> {
        let path = path.canonicalize().ok()?;
        let entry = self.0.get(&path)?;
        (Stamp::of(&std::fs::metadata(&path).ok()?) == entry.stamp).then_some(&*entry.sha256)
    }

    /// Returns whether a file was verified, the network in it was sound, and the file has not been written since. Of the file
    /// itself nothing is read.
    pub fn is_sound(&self, path: &Path) -> bool {
        let now = path.canonicalize().and_then(|path| Ok((Stamp::of(&std::fs::metadata(&path)?), path)));
        now.is_ok_and(|(stamp, path)| {
            self.0.get(&path).is_some_and(|entry| entry.sound && entry.stamp == stamp)
        })
    }

    /// Compares a file with the list, and puts it in with whether the network in it was `sound`.
    ///
    /// The bytes of a content that has decayed are not put in: later times should not compare with them.
    pub fn note(&mut self, hashed: &(PathBuf, Sum), sound: bool) -> Hashed {
        let (path, Sum { stamp, sha256 }) = hashed;
        let key = path.canonicalize().unwrap_or_else(|_| path.clone());
        let before = self.0.get(&key);
        let change = match before {
            None => Change::New,
            Some(entry) if entry.sha256 == *sha256 => Change::Same,
            Some(entry) if entry.stamp == *stamp => Change::Decayed,
            Some(_) => Change::Replaced,
        };
        let seen = before.map(|entry| entry.seen);
        // A content that has decayed is not what later times should compare with.
        if change != Change::Decayed {
            let entry = Entry { stamp: stamp.clone(), sha256: sha256.clone(), seen: now(), sound };
            self.0.insert(key, entry);
        }
        Hashed { path: path.clone(), bytes: stamp.bytes, sha256: sha256.clone(), change, seen }
    }
}

/// The content of a file, summed up.
pub struct Sum {
    stamp: Stamp,
    sha256: String,
}

/// Returns the SHA-256 of a file in hexadecimal.
///
/// # Errors
/// The errors of [`sum`].
pub fn hash_of(path: &Path) -> Result<String> {
    Ok(sum(path, &|_| Ok(()))?.sha256)
}

/// Hashes a file from its beginning to its end.
///
/// # Errors
/// Returns [`Error::File`] where the file cannot be read, [`Error::Model`] if it was written meanwhile, and the errors of
/// `read`, which gets the number of bytes of each block.
pub fn sum(path: &Path, read: &dyn Fn(usize) -> Result<()>) -> Result<Sum> {
    let mut file = File::open(path).map_err(Error::file("open", path))?;
    let stat = |file: &File| file.metadata().map_err(Error::file("read", path));
    let stamp = Stamp::of(&stat(&file)?);
    let (mut hasher, mut block) = (Sha256::new(), vec![0; BLOCK]);
    loop {
        let n = match file.read(&mut block) {
            Ok(n) => n,
            Err(e) if e.kind() == ErrorKind::Interrupted => continue,
            Err(e) => return Err(Error::file("read", path)(e)),
        };
        if n == 0 {
            break;
        }
        hasher.update(&block[..n]);
        read(n)?;
    }
    if Stamp::of(&stat(&file)?) != stamp {
        return Err(Error::Model(format!(
            "`{}` was written while it was read; try again when it is complete",
            path.display()
        )));
    }
    let sha256 = hasher.finalize().iter().fold(String::new(), |mut digits, byte| {
        // Writing to a string cannot fail.
        let _ = write!(digits, "{byte:02x}");
        digits
    });
    Ok(Sum { stamp, sha256 })
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use super::*;

    fn note(known: &mut Known, path: &Path) -> Hashed {
        let sum = sum(path, &|_| Ok(())).expect("it can be read");
        known.note(&(path.to_owned(), sum), true)
    }

    #[test]
    fn changes_are_told_from_decay() -> std::io::Result<()> {
        let folder = tempfile::tempdir()?;
        let (list, path) = (folder.path().join("state/hashes.json"), folder.path().join("a"));
        std::fs::write(&path, "abc")?;
        let mut known = Known::read(&list);
        let first = note(&mut known, &path);
        // The value is the example of FIPS 180-2.
        assert_eq!(first.sha256, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
        assert_eq!((first.change, first.seen, first.bytes), (Change::New, None, 3));
        known.write(&list).expect("it can be written");

        let mut known = Known::read(&list);
        assert_eq!(known.hash(&path), Some(&*first.sha256));
        assert_eq!(note(&mut known, &path).change, Change::Same);
        // Another content with the old time, as a disk that fails gives it.
        let file = File::options().write(true).open(&path)?;
        let time = file.metadata()?.modified()?;
        file.write_all_at(b"x", 1)?;
        file.set_modified(time)?;
        for _ in 0..2 {
            assert_eq!(note(&mut known, &path).change, Change::Decayed, "also when it is asked again");
        }
        file.set_modified(time + std::time::Duration::from_secs(1))?;
        assert_eq!(known.hash(&path), None);
        assert_eq!(note(&mut known, &path).change, Change::Replaced);
        assert_eq!(note(&mut known, &path).change, Change::Same);
        Ok(())
    }

    #[test]
    fn a_list_that_cannot_be_read_is_written_anew() -> std::io::Result<()> {
        let folder = tempfile::tempdir()?;
        let list = folder.path().join("hashes.json");
        std::fs::write(&list, "{ no json")?;
        let known = Known::read(&list);
        assert!(known.0.is_empty());
        known.write(&list).expect("it can be written");
        assert_eq!(std::fs::read_to_string(&list)?, "{}\n");
        let stopped = sum(&list, &|_| Err(Error::Canceled));
        assert!(matches!(stopped, Err(Error::Canceled)));
        Ok(())
    }
}
