//! The folder of prepared copies of transformers: which copies there are, what each was made of, which are in use, and how
//! much room they may take.
//!
//! A copy lies in a folder of its own whose name has a hash of the content that it was made of. It is used only for the
//! very files that its list names, so that a copy is never stale. Who uses a copy holds a shared lock on that list for as
//! long as the copy is needed, and who drops one takes the list's exclusive lock first. The lock of the whole folder is held
//! while a copy is written or dropped.

mod draft;
mod prepare;
mod room;

use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};

use super::identity::{FNV_BASIS, Identity, fnv1a};
use super::{Component, find};
use crate::Result;
use animd_protocol::profile::Precision;

pub use prepare::{Prepared, prepare};

/// The file of a copy that says what it was made of. It is written last, and its time is when the copy was last used.
const SOURCES: &str = "sources.json";
/// The folder of copies in a folder for caches, beside what a GPU's driver keeps there.
const FOLDER: &str = "prepared";
/// The most characters of a transformer's own name in the name of its copy.
const MAX_STEM: usize = 60;
/// The bytes of a GiB.
const GIB: u64 = 1 << 30;

/// The folder of prepared copies, and the bytes that they may take together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cache {
    folder: PathBuf,
    limit: Option<u64>,
}

/// What a copy was made of.
#[derive(Debug, Serialize, Deserialize)]
struct Origin {
    /// The transformer's folder or file.
    dit: PathBuf,
    precision: Precision,
    /// The bytes of the transformer's tensors in its own files.
    bytes: u64,
    files: Vec<Identity>,
}

/// Whether a copy is of the files that are there now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    /// It is of these files.
    Current,
    /// The files have changed since, and the copy is not used.
    Changed,
    /// The files are not there, or not seen from here.
    Gone,
}

/// A prepared copy.
#[derive(Clone, Debug, Serialize)]
pub struct CachedCopy {
    /// The name of its folder.
    pub name: String,
    /// The folder or file of the transformer that it was made of.
    pub of: PathBuf,
    /// The precision that it is in.
    pub precision: Precision,
    /// The bytes that it takes.
    pub bytes: u64,
    /// When it was last used, in seconds since 1970.
    pub last_used: u64,
    /// Whether an engine uses it now.
    pub in_use: bool,
    /// Whether it is of the files that are there now.
    pub state: State,
}

/// A prepared copy that is in use: it is not dropped as long as this lives.
#[derive(Debug)]
pub struct Lease {
    folder: PathBuf,
    _lock: File,
}

impl Lease {
    /// Returns the folder of the copy, which is opened as a transformer's own folder is.
    pub fn folder(&self) -> &Path {
        &self.folder
    }
}

impl Cache {
    /// The GiB that all copies may take together where nobody has said otherwise: those of a Wan2.1 and of a Wan2.2 have
    /// 43.
    pub const DEFAULT_GIB: u64 = 64;

    /// Returns the copies in this folder, which need not exist. They may take so many GiB; 0 is without limit.
    pub fn new(folder: PathBuf, gib: u64) -> Self {
        Self { folder, limit: (gib > 0).then(|| gib.saturating_mul(GIB)) }
    }

    /// Returns the folder in which this process keeps copies: below `$CACHE_DIRECTORY`, which systemd sets for a service,
    /// else `$XDG_CACHE_HOME/animd`, else `~/.cache/animd`. `None` where there is none of them.
    pub fn default_folder() -> Option<PathBuf> {
        let absolute =
            |name| std::env::var_os(name).map(PathBuf::from).filter(|folder: &PathBuf| folder.is_absolute());
        let service = absolute("CACHE_DIRECTORY");
        let user = || {
            Some(absolute("XDG_CACHE_HOME").or_else(|| Some(absolute("HOME")?.join(".cache")))?.join("animd"))
        };
        Some(service.or_else(user)?.join(FOLDER))
    }

    /// Returns the folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Returns the bytes that all copies may take together; `None` is without limit.
    pub fn limit(&self) -> Option<u64> {
        self.limit
    }

    /// Returns the copy in this precision of a transformer, which is given by its folder or file, if there is one of its
    /// files as they are now. The copy counts as used now.
    pub fn find(&self, dit: &Path, precision: Precision) -> Option<Lease> {
        // Nothing is read of the transformer where there is no copy at all.
        name_of(precision).filter(|_| self.folder.is_dir())?;
        let now = sources(&find::files(dit, Component::Dit).ok()?).ok()?;
        let mut others = Vec::new();
        for folder in self.with_key(&key(&now, precision)?) {
            match open(&folder) {
                Ok(Some((origin, lock))) if origin.files == now => {
                    // Where this may not be noted, the copy keeps the time of an earlier use.
                    let _ = lock.set_modified(SystemTime::now());
                    return Some(Lease { folder, _lock: lock });
                }
                Ok(_) => others.push(folder),
                Err(e) => tracing::warn!(
                    "the prepared copy in `{}` is not used: it cannot be read: {e}",
                    folder.display()
                ),
            }
        }
        for folder in others {
            tracing::warn!(
                "`{}` is not known to be of these files and is not used; run `animd-engine prepare` again, or remove it",
                folder.display()
            );
        }
        None
    }

    /// Returns all copies, the one first that was used last.
    ///
    /// # Errors
    /// [`Error::File`](crate::Error::File) if the folder cannot be read.
    pub fn list(&self) -> Result<Vec<CachedCopy>> {
        let mut copies: Vec<CachedCopy> =
            self.folders()?.iter().filter_map(|folder| CachedCopy::read(folder)).collect();
        copies.sort_by(|a, b| b.last_used.cmp(&a.last_used).then_with(|| a.name.cmp(&b.name)));
        Ok(copies)
    }

    /// Returns the folder for a copy of these files: that of an older copy of the same transformer, if there is one.
    fn place(&self, dit: &Path, files: &[Identity], precision: Precision) -> Option<PathBuf> {
        let key = key(files, precision)?;
        let is_older = |folder: &PathBuf| {
            let origin = open(folder).ok().flatten().map(|(origin, _)| origin);
            origin.is_some_and(|origin| origin.files == files || origin.dit == dit)
        };
        Some(
            self.with_key(&key)
                .into_iter()
                .find(is_older)
                .unwrap_or_else(|| self.folder.join(stem(dit) + &key)),
        )
    }

    /// Returns the folders of copies with this key. Files whose samples are equal may still be others.
    fn with_key(&self, key: &str) -> Vec<PathBuf> {
        let is_it = |folder: &PathBuf| {
            let name = folder.file_name().unwrap_or_default().to_string_lossy();
            name.ends_with(key) && !name.starts_with('.')
        };
        self.folders().unwrap_or_default().into_iter().filter(is_it).collect()
    }

    /// Returns all folders in the cache; a cache that does not exist has none.
    fn folders(&self) -> Result<Vec<PathBuf>> {
        let failed = || crate::Error::file("read", &self.folder);
        let entries = match fs::read_dir(&self.folder) {
            Ok(entries) => entries,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(e) => return Err(failed()(e)),
        };
        let mut folders = Vec::new();
        for entry in entries {
            let entry = entry.map_err(failed())?;
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                folders.push(entry.path());
            }
        }
        Ok(folders)
    }
}

impl CachedCopy {
    /// Describes the copy in a folder; `None` if none is there.
    fn read(folder: &Path) -> Option<Self> {
        let (origin, lock) = open(folder).ok()??;
        let used = lock.metadata().ok()?.modified().ok()?.duration_since(UNIX_EPOCH).ok()?;
        let files = fs::read_dir(folder).ok()?.flatten();
        Some(Self {
            name: folder.file_name()?.to_string_lossy().into_owned(),
            precision: origin.precision,
            bytes: files.filter_map(|file| Some(file.metadata().ok()?.len())).sum(),
            last_used: used.as_secs(),
            in_use: flock(&lock, FlockOperation::NonBlockingLockExclusive).is_err(),
            state: origin.state(),
            of: origin.dit,
        })
    }
}

impl Origin {
    fn state(&self) -> State {
        if !self.dit.exists() {
            return State::Gone;
        }
        let now = find::files(&self.dit, Component::Dit).and_then(|files| sources(&files));
        if now.is_ok_and(|now| now == self.files) { State::Current } else { State::Changed }
    }
}

/// Opens the list of a copy and takes its shared lock; `None` if there is no copy, or none that this version has made.
fn open(folder: &Path) -> std::io::Result<Option<(Origin, File)>> {
    let path = folder.join(SOURCES);
    let file = match File::open(&path) {
        Ok(file) => file,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(e),
    };
    // Nobody holds the exclusive lock for longer than it takes to rename a folder.
    flock(&file, FlockOperation::LockShared)?;
    // The copy may have been dropped, or replaced, before the lock was there.
    let same = fs::metadata(&path)
        .ok()
        .zip(file.metadata().ok())
        .is_some_and(|(a, b)| (a.dev(), a.ino()) == (b.dev(), b.ino()));
    if !same {
        return Ok(None);
    }
    let text = std::io::read_to_string(&file)?;
    Ok(serde_json::from_str(&text).ok().map(|origin| (origin, file)))
}

/// Returns the word for a precision in the names of copies; `None` for one that none are made in.
fn name_of(precision: Precision) -> Option<&'static str> {
    match precision {
        Precision::Fp8 => Some("fp8"),
        Precision::Int8 => Some("int8"),
        Precision::Bf16 | Precision::Fp32 => None,
    }
}

/// Returns the end of the name of a copy, by which it is found: a hash of what the transformer's files hold, and the
/// precision. Where the files lie does not matter, because a sandbox shows them elsewhere. `None` for a precision that no
/// copies are made in.
fn key(files: &[Identity], precision: Precision) -> Option<String> {
    let hash = files.iter().fold(FNV_BASIS, |hash, file| fnv1a(hash, file.content().as_bytes()));
    Some(format!("-{hash:016x}-{}", name_of(precision)?))
}

/// Returns what people call a transformer, in characters that every file system has: the beginning of its copy's name.
fn stem(dit: &Path) -> String {
    let real = fs::canonicalize(dit).unwrap_or_else(|_| dit.to_owned());
    // A link has the name that people know; the blob that it leads to has none.
    let named = if dit.is_dir() { real.file_name() } else { dit.file_stem() };
    let plain = |c: char| if c.is_ascii_alphanumeric() || "._-".contains(c) { c } else { '-' };
    let stem: String =
        named.unwrap_or_default().to_string_lossy().chars().map(plain).take(MAX_STEM).collect();
    stem.trim_start_matches('.').to_owned()
}

fn sources(files: &[PathBuf]) -> Result<Vec<Identity>> {
    files.iter().map(|path| Identity::of(path)).collect()
}

#[cfg(test)]
mod tests;
