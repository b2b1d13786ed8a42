//! How a picture leaves the place where it waited: into `done/` or `failed/`, with its sidecars, and with a note that
//! says what went wrong.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use super::names::{DONE, FAILED};
use super::sidecar;
use crate::files::{self, Identity, NAME_MAX, numbered, rename_new, show, split_name, sync_dir};
use crate::{Error, Result};

/// A picture that is to leave.
pub struct Leaving<'a> {
    /// Where it lies.
    pub source: &'a Path,
    /// Which state of it: another one stays, because it is another wish.
    pub identity: Identity,
    /// Where it goes; a number is added if that is taken.
    pub target: PathBuf,
    /// What went wrong, for a note beside it.
    pub note: Option<&'a str>,
    /// Sidecars that changed after this time stay: they belong to whatever comes next. Microseconds since the epoch.
    pub sidecars_until_us: i64,
}

/// Where a picture goes whose watched folder is `root`: a name that is free, and whose note is free.
pub fn target(root: &Path, source: &Path, done: bool) -> Option<PathBuf> {
    let below = source.parent()?.strip_prefix(root).unwrap_or(Path::new(""));
    let dir = root.join(if done { DONE } else { FAILED }).join(below);
    Some(free_name(&dir, source.file_name()?))
}

impl Leaving<'_> {
    /// Moves the picture and its sidecars. `renamed` is asked to write another target down before it is used.
    pub fn put_away(mut self, mut renamed: impl FnMut(&Path) -> Result<()>) -> Result<()> {
        let from = self.source.parent().unwrap_or(Path::new("/"));
        let dir = self.target.parent().unwrap_or(from).to_owned();
        match fs::symlink_metadata(self.source) {
            Ok(meta) if meta.is_file() && Identity::of(&meta) == self.identity => {}
            // It was replaced or removed meanwhile: what lies there now is another wish.
            Ok(_) => return Ok(()),
            Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
                // It was moved, and then the power went: the rest is still to follow.
                if fs::symlink_metadata(&self.target).is_ok_and(|meta| Identity::of(&meta) == self.identity) {
                    self.follow(&dir, from);
                }
                return Ok(());
            }
            Err(e) => return Err(Error::file("look at", self.source)(e)),
        }
        if let Err(e) = self.rename(&dir, &mut renamed) {
            if !matches!(e, Error::Ledger(_) | Error::Stopping) {
                self.note_beside();
            }
            return Err(e);
        }
        self.follow(&dir, from);
        Ok(())
    }

    /// What comes after the picture.
    fn follow(&self, dir: &Path, from: &Path) {
        if let Some(text) = self.note {
            let beside = error_note(self.source);
            if fs::read(&beside).is_ok_and(|old| old == line(text)) {
                _ = fs::remove_file(beside);
            }
        }
        self.move_sidecars(dir);
        for dir in [dir, from] {
            sync_or_warn(dir);
        }
    }

    fn rename(&mut self, dir: &Path, renamed: &mut impl FnMut(&Path) -> Result<()>) -> Result<()> {
        fs::create_dir_all(dir).map_err(Error::file("create", dir))?;
        loop {
            let note = error_note(&self.target);
            if let Some(text) = self.note {
                files::write_atomic(&note, &line(text), 0o644).map_err(Error::file("write", &note))?;
            }
            match rename_new(self.source, &self.target) {
                Ok(()) => return Ok(()),
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {
                    self.remove_note(&note);
                    self.target = free_name(dir, self.source.file_name().unwrap_or_default());
                    renamed(&self.target)?;
                }
                Err(e) => {
                    self.remove_note(&note);
                    // Whoever took it away wants it elsewhere.
                    if e.kind() == io::ErrorKind::NotFound {
                        return Ok(());
                    }
                    return Err(Error::file("move", self.source)(e));
                }
            }
        }
    }

    fn remove_note(&self, note: &Path) {
        if self.note.is_some() {
            _ = fs::remove_file(note);
        }
    }

    /// A picture that may not be moved still gets its note, where one may be written.
    fn note_beside(&self) {
        let Some(text) = self.note else { return };
        let note = error_note(self.source);
        if fs::symlink_metadata(&note).is_err()
            && let Err(e) = files::write_atomic(&note, &line(text), 0o644)
        {
            tracing::debug!("the note `{}` cannot be written: {e}", show(&note));
        }
    }

    fn move_sidecars(&self, dir: &Path) {
        for sidecar in sidecar::paths(self.source).into_iter().flatten() {
            let used = fs::symlink_metadata(&sidecar)
                .is_ok_and(|meta| meta.is_file() && files::changed_us(&meta) <= self.sidecars_until_us);
            if used && let Some(name) = sidecar.file_name() {
                let to = free_name(dir, name);
                if let Err(e) = rename_new(&sidecar, &to) {
                    tracing::warn!("a picture's sidecar cannot be moved and stays: {e}");
                    tracing::debug!("the sidecar is `{}`", show(&sidecar));
                }
            }
        }
    }
}

fn line(text: &str) -> Vec<u8> {
    format!("{text}\n").into_bytes()
}

/// A name in `dir` that neither a file nor a note has: `photo.png`, `photo-2.png`.
fn free_name(dir: &Path, name: &OsStr) -> PathBuf {
    let (stem, tail) = split_name(name);
    let exists = |path: &Path| fs::symlink_metadata(path).is_ok();
    (1..u32::MAX)
        .map(|n| dir.join(if n < 2 { name.to_owned() } else { with_number(stem, n, tail) }))
        .find(|path| !exists(path) && !exists(&error_note(path)))
        .unwrap_or_else(|| dir.join(name))
}

/// As [`numbered`], for a tail of any bytes.
fn with_number(stem: &OsStr, n: u32, tail: &OsStr) -> OsString {
    let number = format!("-{n}");
    let room = NAME_MAX.saturating_sub(number.len() + tail.len());
    let mut name = numbered(OsStr::from_bytes(&stem.as_bytes()[..stem.len().min(room)]), 1, &number);
    name.push(tail);
    name
}

/// `photo.png.error.txt` for `photo.png`.
fn error_note(picture: &Path) -> PathBuf {
    picture.with_file_name(numbered(picture.file_name().unwrap_or_default(), 1, ".error.txt"))
}

/// The file is in its place already: a folder that cannot be synced makes that less durable, not untrue.
pub fn sync_or_warn(dir: &Path) {
    if let Err(e) = sync_dir(dir) {
        tracing::warn!("the folder `{}` cannot be synced; a power cut may undo a rename: {e}", show(dir));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn subfolders_stay_below_done_and_failed() -> io::Result<()> {
        let dir = tempfile::tempdir()?;
        let source = dir.path().join("a/b/photo.png");
        assert_eq!(target(dir.path(), &source, true), Some(dir.path().join("done/a/b/photo.png")));
        assert_eq!(target(dir.path(), &source, false), Some(dir.path().join("failed/a/b/photo.png")));
        fs::create_dir_all(dir.path().join("done/a/b"))?;
        fs::write(dir.path().join("done/a/b/photo.png"), "")?;
        assert_eq!(target(dir.path(), &source, true), Some(dir.path().join("done/a/b/photo-2.png")));
        Ok(())
    }

    #[test]
    fn the_longest_names_get_numbers_too() -> io::Result<()> {
        let dir = tempfile::tempdir()?;
        let long = format!("{}.png", "x".repeat(251));
        fs::write(dir.path().join(&long), "")?;
        let free = free_name(dir.path(), OsStr::new(&long));
        let name = free.file_name().unwrap_or_default();
        assert!(name.len() <= NAME_MAX && name.as_bytes().ends_with(b"x-2.png"), "{name:?}");
        assert!(error_note(&free).file_name().is_some_and(|note| note.len() <= NAME_MAX));
        Ok(())
    }
}
