//! How a picture leaves the place where it waited: into `done/`, `failed/` or `cancelled/`, with its sidecars, and with a note that
//! says what went wrong. From there it may go on to another of the three, when a retry ends.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use super::names::{CANCELED, DONE, FAILED};
use super::root::{self, Dir, Root};
use super::sidecar::{self, find};
use crate::files::{self, Identity, NAME_MAX, numbered, rename_new, show, split_name, sync_dir};
use crate::{Error, Result};

/// A picture to move away.
pub struct Leaving<'a> {
    /// The watched folder that both its places lie in.
    pub root: &'a Root,
    /// Where it lies.
    pub source: &'a Path,
    /// The state of the file to move: another state stays, because it is a new request.
    pub identity: Identity,
    /// The path to move it to; a number is added if that is taken.
    pub target: PathBuf,
    /// What went wrong, for a note beside it.
    pub note: Option<&'a str>,
    /// Sidecars that changed after this time, in microseconds since the epoch, stay: they belong to the next picture.
    pub sidecars_until_us: i64,
}

/// Returns where a picture goes whose watched folder is `root`: a name in its folder `into` (such as `done`) that is free,
/// and whose note is free. A picture that is in `into` already stays where it is.
pub fn target(root: &Root, source: &Path, into: &str) -> Option<PathBuf> {
    let below = source.parent()?.strip_prefix(root.path()).unwrap_or(Path::new(""));
    let left = outcome_folder(root, source).and_then(|folder| below.strip_prefix(folder).ok());
    let below = Path::new(into).join(left.unwrap_or(below));
    let target = root.path().join(&below).join(source.file_name()?);
    // Where there is no such folder yet, every name is free.
    Some(match Dir::open(root, &below) {
        Ok(to) => {
            let own = root::metadata(root, source).ok().map(|meta| Identity::of(&meta));
            renamed_as(&target, &free_name(&to.path(), source.file_name()?, own))
        }
        Err(_) => target,
    })
}

/// Returns which of `done`, `failed` and `cancelled` a picture lies in whose watched folder is `root`.
pub fn outcome_folder(root: &Root, picture: &Path) -> Option<&'static str> {
    let below = picture.parent()?.strip_prefix(root.path()).ok()?;
    [DONE, FAILED, CANCELED].into_iter().find(|folder| below.starts_with(folder))
}

/// Returns the folder that holds both a picture and its `target`: the one that was watched when the target was chosen.
pub fn common<'a>(source: &'a Path, target: &Path) -> &'a Path {
    source.ancestors().skip(1).find(|dir| target.starts_with(dir)).unwrap_or(Path::new("/"))
}

impl Leaving<'_> {
    /// Moves the picture and its sidecars. `renamed` must record a different target before it is used. Returns whether
    /// the picture is at its target now: one that was replaced or taken away meanwhile stays where it is.
    pub fn put_away<E: From<Error>>(
        mut self,
        mut renamed: impl FnMut(&Path) -> Result<(), E>,
    ) -> Result<bool, E> {
        let from = match self.root.check().and_then(|_| Dir::of(self.root, self.source)) {
            Ok(from) => from,
            // The picture's folder is gone, or a link that leads elsewhere has taken its name.
            Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
                return Ok(false);
            }
            Err(e) => return Err(Error::file("look at", self.source)(e).into()),
        };
        match fs::symlink_metadata(from.at(self.source)) {
            Ok(meta) if meta.is_file() && Identity::of(&meta) == self.identity => {}
            // The picture was replaced or removed meanwhile: what lies there now is a new request.
            Ok(_) => return Ok(false),
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                // The picture was moved before a power cut: the note and the sidecars still have to follow.
                let to = Dir::of(self.root, &self.target).ok();
                let moved = to.filter(|to| is(&to.at(&self.target), self.identity));
                if let Some(to) = &moved {
                    self.follow(to, &from);
                }
                return Ok(moved.is_some());
            }
            Err(e) => return Err(Error::file("look at", self.source)(e).into()),
        }
        if self.target == self.source {
            return Ok(self.renew_note(&from).map(|()| true)?);
        }
        match self.rename(&from, &mut renamed)? {
            Ok((to, moved)) => {
                self.follow(&to, &from);
                Ok(moved)
            }
            Err(e) => {
                self.note_beside(&from);
                Err(e.into())
            }
        }
    }

    /// Writes the note of a picture that stays in the folder of its outcome, in place of the note of an earlier job.
    fn renew_note(&self, from: &Dir) -> Result<()> {
        let Some(text) = self.note else { return Ok(()) };
        let note = error_note(self.source);
        files::write_atomic(&from.at(&note), &line(text), 0o644).map_err(Error::file("write", note))
    }

    /// Moves the sidecars and removes notes that no longer hold, after the picture has been moved.
    fn follow(&self, to: &Dir, from: &Dir) {
        if outcome_folder(self.root, self.source) == Some(FAILED) {
            _ = fs::remove_file(from.at(&error_note(self.source)));
        } else if let Some(text) = self.note {
            let beside = from.at(&error_note(self.source));
            if files::read_small(&beside, sidecar::MAX_BYTES).is_ok_and(|old| old == line(text)) {
                _ = fs::remove_file(beside);
            }
        }
        self.move_sidecars(to, from);
        for (dir, path) in [(to, &*self.target), (from, self.source)] {
            warn_unsynced(path.parent().unwrap_or(path), sync_dir(&dir.path()));
        }
    }

    /// Moves the picture and returns the folder of its target, and whether it is there: somebody may have moved it
    /// elsewhere. The inner error is why it could not be moved, the outer one that of `renamed`, which leaves everything
    /// as it was.
    fn rename<E>(
        &mut self,
        from: &Dir,
        renamed: &mut impl FnMut(&Path) -> Result<(), E>,
    ) -> Result<Result<(Dir, bool)>, E> {
        let root = self.root.path();
        let dir = self.target.parent().unwrap_or(root).to_owned();
        let below = dir.strip_prefix(root).unwrap_or(Path::new(""));
        let to = match Dir::make(self.root, below) {
            Ok(to) => to,
            Err(e) => return Ok(Err(Error::file("create", &dir)(e))),
        };
        loop {
            let note = to.at(&error_note(&self.target));
            if let Some(text) = self.note
                && let Err(e) = files::write_atomic(&note, &line(text), 0o644)
            {
                return Ok(Err(Error::file("write", error_note(&self.target))(e)));
            }
            match move_new(&from.at(self.source), &to.at(&self.target), self.identity) {
                Ok(()) => return Ok(Ok((to, true))),
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {
                    self.remove_note(&note);
                    let name = self.source.file_name().unwrap_or_default();
                    let free = free_name(&to.path(), name, Some(self.identity));
                    self.target = renamed_as(&self.target, &free);
                    renamed(&self.target)?;
                }
                Err(e) => {
                    self.remove_note(&note);
                    // Somebody has moved the picture elsewhere.
                    if e.kind() == io::ErrorKind::NotFound {
                        return Ok(Ok((to, false)));
                    }
                    return Ok(Err(Error::file("move", self.source)(e)));
                }
            }
        }
    }

    fn remove_note(&self, note: &Path) {
        if self.note.is_some() {
            _ = fs::remove_file(note);
        }
    }

    /// Writes the note beside a picture that cannot be moved, if the folder allows it.
    fn note_beside(&self, from: &Dir) {
        let Some(text) = self.note else { return };
        let note = error_note(self.source);
        let held = from.at(&note);
        if fs::symlink_metadata(&held).is_err()
            && let Err(e) = files::write_atomic(&held, &line(text), 0o644)
        {
            tracing::debug!("the note `{}` cannot be written: {e}", show(&note));
        }
    }

    fn move_sidecars(&self, to: &Dir, from: &Dir) {
        let owner = find::owner(to, self.target.file_name().unwrap_or_default());
        for sidecar in find::found(from, self.source.file_name().unwrap_or_default(), owner) {
            let held = from.at(Path::new(&sidecar.name));
            let Ok(meta) = fs::symlink_metadata(&held) else { continue };
            let own = Identity::of(&meta);
            if meta.is_file()
                && files::changed_us(&meta) <= self.sidecars_until_us
                && let Some(name) = held.file_name()
                && let Err(e) = move_new(&held, &free_name(&to.path(), name, Some(own)), own)
            {
                tracing::warn!("a picture's sidecar cannot be moved and stays: {e}");
                tracing::debug!("the sidecar is `{}`", show(renamed_as(self.source, &held)));
            }
        }
    }
}

/// Returns whether the file at `path` is in this state.
fn is(path: &Path, identity: Identity) -> bool {
    fs::symlink_metadata(path).is_ok_and(|meta| Identity::of(&meta) == identity)
}

/// Returns `path` with the name of another path.
fn renamed_as(path: &Path, other: &Path) -> PathBuf {
    path.with_file_name(other.file_name().unwrap_or_default())
}

fn line(text: &str) -> Vec<u8> {
    format!("{text}\n").into_bytes()
}

/// Does what [`rename_new`] does, and completes a move that a crash cut short between link and unlink, on a file system
/// that cannot rename without replacing.
fn move_new(from: &Path, to: &Path, identity: Identity) -> io::Result<()> {
    match rename_new(from, to) {
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists && is(to, identity) => fs::remove_file(from),
        moved => moved,
    }
}

/// Returns a name in `dir` that neither a file nor a note has, such as `photo.png` or `photo-2.png`, or that only the
/// file itself, `own`, has.
fn free_name(dir: &Path, name: &OsStr, own: Option<Identity>) -> PathBuf {
    let (stem, tail) = split_name(name);
    let exists = |path: &Path| fs::symlink_metadata(path).is_ok();
    let is_own = |path: &Path| own.is_some_and(|own| is(path, own));
    (1..u32::MAX)
        .map(|n| dir.join(if n < 2 { name.to_owned() } else { with_number(stem, n, tail) }))
        .find(|path| is_own(path) || (!exists(path) && !exists(&error_note(path))))
        .unwrap_or_else(|| dir.join(name))
}

/// Does what [`numbered`] does, for a tail of any bytes.
fn with_number(stem: &OsStr, n: u32, tail: &OsStr) -> OsString {
    let number = format!("-{n}");
    let room = NAME_MAX.saturating_sub(number.len() + tail.len());
    let mut name = numbered(OsStr::from_bytes(&stem.as_bytes()[..stem.len().min(room)]), 1, &number);
    name.push(tail);
    name
}

/// Returns the path of a picture's note: `photo.png.error.txt` for `photo.png`.
fn error_note(picture: &Path) -> PathBuf {
    picture.with_file_name(numbered(picture.file_name().unwrap_or_default(), 1, ".error.txt"))
}

/// Syncs a folder and logs a warning if that fails. This is not an error, because the file is already in its place.
pub fn sync_or_warn(dir: &Path) {
    warn_unsynced(dir, sync_dir(dir));
}

/// Logs the warning of [`sync_or_warn`] for a folder that was synced by its descriptor.
pub fn warn_unsynced(dir: &Path, synced: io::Result<()>) {
    if let Err(e) = synced {
        tracing::warn!("the folder `{}` cannot be synced; a power cut may undo a rename: {e}", show(dir));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn subfolders_stay_below_done_and_failed() -> io::Result<()> {
        let dir = tempfile::tempdir()?;
        let root = Root::alone(dir.path());
        let source = dir.path().join("a/b/photo.png");
        assert_eq!(target(&root, &source, DONE), Some(dir.path().join("done/a/b/photo.png")));
        assert_eq!(target(&root, &source, FAILED), Some(dir.path().join("failed/a/b/photo.png")));
        fs::create_dir_all(dir.path().join("done/a/b"))?;
        fs::write(dir.path().join("done/a/b/photo.png"), "")?;
        assert_eq!(target(&root, &source, DONE), Some(dir.path().join("done/a/b/photo-2.png")));
        Ok(())
    }

    #[test]
    fn nothing_is_moved_through_a_link() -> io::Result<()> {
        let dir = tempfile::tempdir()?;
        let (root, elsewhere) = (dir.path().join("root"), dir.path().join("elsewhere"));
        fs::create_dir(&root)?;
        fs::create_dir(&elsewhere)?;
        fs::write(root.join("ours.png"), "ours")?;
        fs::write(elsewhere.join("theirs.png"), "theirs")?;
        for link in ["done", "sub"] {
            std::os::unix::fs::symlink(&elsewhere, root.join(link))?;
        }
        let put_away = |source: &Path, target: &str| {
            let identity = Identity::of(&fs::symlink_metadata(source)?);
            let target = root.join(target);
            let root = &Root::alone(&root);
            let leaving = Leaving { root, source, identity, target, note: None, sidecars_until_us: i64::MAX };
            leaving.put_away(|_| Ok(())).map_err(|e: Error| io::Error::other(e.to_string()))
        };
        let error = put_away(&root.join("ours.png"), "done/ours.png").map_err(|e| e.to_string());
        assert!(error.is_err_and(|text| text.contains("a symbolic link or a file is in the place")));
        assert!(!put_away(&root.join("sub/theirs.png"), "failed/sub/theirs.png")?);
        assert!(root.join("ours.png").exists() && !root.join("failed").exists());
        assert!(elsewhere.join("theirs.png").exists() && !elsewhere.join("ours.png").exists());
        Ok(())
    }

    #[test]
    fn a_move_cut_short_between_link_and_unlink_is_finished() -> io::Result<()> {
        for known in [true, false] {
            let dir = tempfile::tempdir()?;
            let (source, sidecar) = (dir.path().join("photo.png"), dir.path().join("photo.txt"));
            fs::create_dir(dir.path().join("done"))?;
            for path in [&source, &sidecar] {
                fs::write(path, "ours")?;
                fs::hard_link(path, dir.path().join("done").join(path.file_name().unwrap_or_default()))?;
            }
            let written_down = dir.path().join("done/photo.png");
            let root = &Root::alone(dir.path());
            // A caller that wrote no target down asks for one again.
            let target = if known { written_down } else { target(root, &source, DONE).unwrap_or_default() };
            let identity = Identity::of(&fs::symlink_metadata(&source)?);
            let leaving =
                Leaving { root, source: &source, identity, target, note: None, sidecars_until_us: i64::MAX };
            let moved = leaving.put_away(|_| Ok(())).map_err(|e: Error| io::Error::other(e.to_string()))?;
            assert!(moved && !source.exists() && !sidecar.exists());
            let mut names: Vec<OsString> =
                fs::read_dir(dir.path().join("done"))?.flatten().map(|entry| entry.file_name()).collect();
            names.sort();
            assert_eq!(names, ["photo.png", "photo.txt"]);
        }
        Ok(())
    }

    #[test]
    fn the_longest_names_get_numbers_too() -> io::Result<()> {
        let dir = tempfile::tempdir()?;
        let long = format!("{}.png", "x".repeat(251));
        fs::write(dir.path().join(&long), "")?;
        let free = free_name(dir.path(), OsStr::new(&long), None);
        let name = free.file_name().unwrap_or_default();
        assert!(name.len() <= NAME_MAX && name.as_bytes().ends_with(b"x-2.png"), "{name:?}");
        assert!(error_note(&free).file_name().is_some_and(|note| note.len() <= NAME_MAX));
        Ok(())
    }
}
