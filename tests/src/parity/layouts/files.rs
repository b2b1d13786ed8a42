//! The files of a directory, plain or in pieces of one pool.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use serde::Deserialize;
use tempfile::TempDir;

/// The files that `layouts.json` lists.
pub enum Files {
    /// They lie in this directory.
    Plain(PathBuf),
    /// They are put together when they are needed.
    Packed {
        /// Which pieces make which file.
        list: List,
        /// All pieces.
        pool: Vec<u8>,
    },
}

/// The files and links, by their paths.
#[derive(Deserialize)]
pub struct List {
    files: BTreeMap<String, Pieces>,
    links: BTreeMap<String, String>,
}

#[derive(Deserialize)]
struct Pieces {
    /// Offset, length, offset, length ... in the pool.
    #[serde(default)]
    segments: Vec<usize>,
}

/// A file or folder that is there as long as this lives.
pub struct Found {
    /// Its path.
    pub path: PathBuf,
    /// The folder that it was put together in.
    _folder: Option<TempDir>,
}

impl Files {
    /// Opens the files of a directory; `list` is its `layouts.json`.
    pub fn open(dir: &Path, list: &[u8]) -> Result<Self> {
        match fs::read(dir.join("pool.bin")) {
            Ok(pool) => {
                Ok(Self::Packed { list: serde_json::from_slice(list).context("layouts.json")?, pool })
            }
            Err(_) => Ok(Self::Plain(dir.to_owned())),
        }
    }

    /// Returns a file or a folder, with the files beside it that belong to it.
    pub fn get(&self, path: &str) -> Result<Found> {
        let (list, pool) = match self {
            Self::Plain(dir) => return Ok(Found { path: dir.join(path), _folder: None }),
            Self::Packed { list, pool } => (list, pool),
        };
        let folder = tempfile::tempdir()?;
        let beside = ["config.json", "adapter_config.json"].map(|name| Path::new(path).with_file_name(name));
        let wanted = |name: &str| name.starts_with(path) || beside.iter().any(|file| Path::new(name) == file);
        for (name, Pieces { segments }) in list.files.iter().filter(|(name, _)| wanted(name)) {
            let pieces = segments.as_chunks::<2>().0.iter();
            let bytes = pieces
                .map(|[from, length]| pool.get(*from..from + length).context("a piece outside of the pool"))
                .collect::<Result<Vec<_>>>()?
                .concat();
            let to = below(folder.path(), name)?;
            fs::write(&to, bytes).with_context(|| format!("cannot write `{}`", to.display()))?;
        }
        for (name, target) in list.links.iter().filter(|(name, _)| wanted(name)) {
            std::os::unix::fs::symlink(target, below(folder.path(), name)?)?;
        }
        Ok(Found { path: folder.path().join(path), _folder: Some(folder) })
    }
}

/// Returns a file's path below a folder, in a folder that exists.
fn below(folder: &Path, name: &str) -> Result<PathBuf> {
    let path = folder.join(name);
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent)?;
    }
    Ok(path)
}
