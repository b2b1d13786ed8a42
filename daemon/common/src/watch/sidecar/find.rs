//! Finds the sidecars of a picture by every name that people and tools give them, and leaves out those that do not count.
//!
//! `photo.png` has the sidecars `photo.png.txt` and `photo.txt`, with any ending of [`SETTINGS`] and [`TEXTS`], in small or
//! capital letters, and `photo.last.png`, the picture that its video ends at, with any ending of [`PICTURES`]. In a folder that several users write in, a sidecar counts only from somebody who may decide: the
//! picture's owner, the owner of the sidecar's folder, root, and the user that this program runs as.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, FileType, Stat, fstat, statat};
use rustix::io::Errno;

use crate::files::{self, NAME_MAX, split_name};
use crate::watch::names::{FOLDER_SETTINGS, LAST, PICTURES, SETTINGS, TEXTS};
use crate::watch::root::{Dir, Root};

/// What a sidecar holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Settings as TOML.
    Toml,
    /// Settings as a JSON object.
    Json,
    /// The prompt.
    Text,
    /// The picture that the video ends at.
    Last,
}

/// A sidecar that is there and counts.
#[derive(Clone, Debug)]
pub struct Sidecar {
    /// Its name.
    pub name: OsString,
    /// What it holds.
    pub kind: Kind,
    /// Whether it has the picture's whole name and so belongs to no other picture.
    pub exact: bool,
    /// Its state when it was found.
    pub stat: Stat,
}

/// The users whose files decide what becomes of a picture.
#[derive(Clone, Copy, Debug)]
pub struct Deciders {
    picture: Option<u32>,
    folder: u32,
}

impl Deciders {
    /// Returns those of a picture, and of what lies in the folder `dir`.
    ///
    /// # Errors
    /// What the folder says.
    pub fn new(picture: Option<u32>, dir: &Dir) -> io::Result<Self> {
        Ok(Self { picture, folder: fstat(dir)?.st_uid })
    }

    /// Opens a picture of the folder `dir` if it belongs to one of these users; `None` if it does not.
    ///
    /// # Errors
    /// The errors of [`files::open_regular`].
    pub fn open(&self, dir: &Dir, name: &OsStr) -> io::Result<Option<File>> {
        let (file, meta) = files::open_regular(&dir.at(Path::new(name)))?;
        Ok(self.have(std::os::unix::fs::MetadataExt::uid(&meta)).then_some(file))
    }

    fn have(&self, uid: u32) -> bool {
        uid == 0
            || uid == self.folder
            || Some(uid) == self.picture
            || uid == rustix::process::geteuid().as_raw()
    }

    /// Reads a small file of the folder `dir` if it belongs to one of these users; `None` if it does not.
    ///
    /// # Errors
    /// The errors of [`files::read_small`].
    pub fn read(&self, dir: &Dir, name: &OsStr, limit: u64) -> io::Result<Option<Vec<u8>>> {
        let path = dir.at(Path::new(name));
        match statat(dir, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) if !self.have(stat.st_uid) => return Ok(None),
            Ok(_) => {}
            Err(e) => return Err(e.into()),
        }
        let (file, meta) = files::open_regular(&path)?;
        // Another file may have taken its name meanwhile.
        if !self.have(std::os::unix::fs::MetadataExt::uid(&meta)) {
            return Ok(None);
        }
        files::read_limited(file, limit).map(Some)
    }
}

/// Returns the owner of a picture; `None` if it is gone.
pub fn owner(dir: &Dir, picture: &OsStr) -> Option<u32> {
    statat(dir, picture, AtFlags::SYMLINK_NOFOLLOW).ok().map(|stat| stat.st_uid)
}

/// Returns the sidecars of a picture of `owner`'s in the folder `dir`, those with its whole name first.
pub fn found(dir: &Dir, picture: &OsStr, owner: Option<u32>) -> Vec<Sidecar> {
    let Ok(deciders) = Deciders::new(owner, dir) else { return Vec::new() };
    let stem = split_name(picture).0;
    let mut found: Vec<Sidecar> = Vec::new();
    for (base, exact) in [(picture, true), (stem, false)] {
        if exact && stem == picture {
            continue;
        }
        let texts = SETTINGS.iter().chain(&TEXTS).map(|ending| (*ending).to_owned());
        for ending in texts.chain(PICTURES.iter().map(|ending| format!("{LAST}.{ending}"))) {
            for ending in spellings(&ending) {
                let Some(name) = with_ending(base, &ending) else { continue };
                // A picture called `folder.png` does not own its folder's settings.
                if name == FOLDER_SETTINGS {
                    continue;
                }
                match statat(dir, &name, AtFlags::SYMLINK_NOFOLLOW) {
                    Ok(stat) if FileType::from_raw_mode(stat.st_mode) == FileType::Directory => {}
                    // On a file system that takes small and capital letters for the same, one file has many names.
                    Ok(stat) if found.iter().any(|other| other.stat.st_ino == stat.st_ino) => {}
                    Ok(stat) if deciders.have(stat.st_uid) => {
                        found.push(Sidecar { kind: kind(&ending), name, exact, stat });
                    }
                    Ok(_) => {
                        tracing::debug!("`{}` is another user's and no sidecar", files::show(&name));
                    }
                    Err(Errno::NOENT) => {}
                    Err(e) => tracing::debug!("`{}` cannot be looked at: {e}", files::show(&name)),
                }
            }
        }
    }
    found
}

/// Returns the paths of the sidecars of a picture below a root.
pub fn beside(root: &Root, picture: &Path) -> Vec<PathBuf> {
    let Ok(dir) = Dir::of(root, picture) else { return Vec::new() };
    let name = picture.file_name().unwrap_or_default();
    let found = found(&dir, name, owner(&dir, name));
    found.into_iter().map(|sidecar| picture.with_file_name(sidecar.name)).collect()
}

/// Returns an ending as people and cameras spell it: `txt`, `TXT` and `Txt`; of two, such as `last.jpg`, the last one.
fn spellings(ending: &str) -> [String; 3] {
    let at = ending.rfind('.').map_or(0, |at| at + 1);
    let (before, ending) = ending.split_at(at);
    let (first, rest) = ending.split_at(1);
    [ending.to_owned(), ending.to_uppercase(), first.to_uppercase() + rest]
        .map(|ending| format!("{before}{ending}"))
}

fn with_ending(base: &OsStr, ending: &str) -> Option<OsString> {
    let mut name = base.to_owned();
    name.push(".");
    name.push(ending);
    (!base.is_empty() && name.as_bytes().len() <= NAME_MAX).then_some(name)
}

fn kind(ending: &str) -> Kind {
    match ending.to_ascii_lowercase().as_str() {
        ending if PICTURES.iter().any(|picture| ending.ends_with(picture)) => Kind::Last,
        "toml" => Kind::Toml,
        "json" => Kind::Json,
        _ => Kind::Text,
    }
}
