//! Which folders may lie in which: the one rule for the configuration, for folders that are added over the bus, for
//! `animd-watch`, and for every folder that is opened while pictures come in.
//!
//! A watched folder holds pictures and nothing else, with everything below it, but for its own `done` and `failed`. So it
//! may not lie in another watched folder, in a folder where videos appear, or in a folder of the service or the model, and
//! none of these may lie in it. Nor may videos appear in the service's own folder, or around it. Several watched folders
//! may share an outbox, and outboxes may lie in each other.
//!
//! Folders are compared by what their paths lead to: links are followed, and one folder is the same under every name and
//! every mount point. A folder that does not exist yet is compared by the path that it is going to have.

mod find;

use std::path::{Component, PathBuf};
use std::sync::{Arc, RwLock};

use crate::files::show;

pub use find::{Found, Id, Mounts, id_of, mount_of, path_of};

/// What a folder is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Pictures are taken from it.
    Inbox,
    /// Videos appear in it.
    Outbox,
    /// The service's own.
    State,
    /// The model's files.
    Model,
    /// A file that animd reads or writes for itself.
    File,
}

/// A folder, or a file, with what it is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// The key that names it, or whatever else does: `folders.inbox`.
    pub key: String,
    /// Where that key stands, if it stands anywhere.
    pub origin: Option<String>,
    /// The path as it is written there.
    pub path: PathBuf,
    /// What it is for.
    pub role: Role,
}

/// All places that a service has to keep apart; every holder sees changes.
pub type Shared = Arc<RwLock<Vec<Place>>>;

/// Two places that may not lie as they do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Overlap {
    /// The index of the later place among the new ones.
    pub new: usize,
    /// The index of the other place in the list of the known ones followed by the new ones.
    pub other: usize,
    /// What is wrong and what to do, with both paths and keys.
    pub sentence: String,
    /// Whether another user has brought it about, by a link: that must not keep a service from starting. The folder is
    /// not used then, for as long as it is so.
    pub by_others: bool,
}

impl Place {
    /// Returns a place without an origin.
    pub fn new(key: impl Into<String>, path: impl Into<PathBuf>, role: Role) -> Self {
        Self { key: key.into(), origin: None, path: path.into(), role }
    }

    /// Returns the place in words: its path, its key, and where it leads if that is elsewhere.
    fn says(&self, found: &Found, with_origin: bool) -> String {
        let path: PathBuf = self.path.components().filter(|part| *part != Component::CurDir).collect();
        let mut inside = self.key.clone();
        if let Some(origin) = self.origin.as_ref().filter(|_| with_origin) {
            inside = format!("{inside}, {origin}");
        }
        let real = found.real();
        if real != path {
            inside = format!("{inside}; it leads to `{}`", show(&real));
        }
        format!("`{}` ({inside})", show(&path))
    }
}

/// Returns the new places that overlap a known one, or a new one before them. Looks at the disk.
pub fn overlaps(known: &[Place], new: &[Place]) -> Vec<Overlap> {
    let mounts = Mounts::read();
    let all: Vec<(&Place, Found)> =
        known.iter().chain(new).map(|place| (place, Found::of(&place.path, &mounts))).collect();
    let mut overlaps = Vec::new();
    for (at, (place, found)) in all.iter().enumerate().skip(known.len()) {
        for (other, (old, old_found)) in all[..at].iter().enumerate() {
            if let Some(sentence) = clash(place, found, old, old_found) {
                let by_others = found.is_by_others() || old_found.is_by_others();
                overlaps.push(Overlap { new: at - known.len(), other, sentence, by_others });
            }
        }
    }
    overlaps
}

/// Returns the first of [`overlaps`].
pub fn overlap(known: &[Place], new: &[Place]) -> Option<Overlap> {
    overlaps(known, new).into_iter().next()
}

/// Returns why a folder that has been opened may not be used beside the known ones, of which it is one itself. Another
/// user's link that leads to it does not count: that user's folder is the one that is not used then.
pub fn refusal(place: &Place, found: &Found, known: &[Place], mounts: &Mounts) -> Option<String> {
    let mut others = known.iter().filter(|other| (other.role, &other.path) != (place.role, &place.path));
    others.find_map(|other| {
        let other_found = Found::of(&other.path, mounts);
        let theirs = other_found.is_by_others() && !found.is_by_others();
        if theirs { None } else { clash(place, found, other, &other_found) }
    })
}

/// Returns what is wrong between a new place and an old one.
fn clash(new: &Place, found: &Found, old: &Place, old_found: &Found) -> Option<String> {
    let roles = [new.role, old.role];
    // All other overlaps are harmless.
    let apart =
        roles.contains(&Role::Inbox) || (roles.contains(&Role::Outbox) && roles.contains(&Role::State));
    if !apart {
        return None;
    }
    let (new_in_old, old_in_new) = (found.lies_in(old_found), old_found.lies_in(found));
    if !new_in_old && !old_in_new {
        return None;
    }
    let same = new_in_old && old_in_new;
    let (new_says, old_says) = (new.says(found, false), old.says(old_found, true));
    match (new.role, old.role) {
        (Role::Inbox, Role::Inbox) if same => {
            Some(format!("{new_says} is watched already, as {old_says}; remove one of them"))
        }
        (Role::Inbox, Role::Inbox) => {
            let (inner, outer) = if new_in_old { (new_says, old_says) } else { (old_says, new_says) };
            Some(format!(
                "{inner} lies in the watched folder {outer}, whose subfolders are watched with it; remove one of them"
            ))
        }
        (Role::Inbox, Role::Outbox) => Some(videos(&new_says, &old_says, old_in_new, same)),
        (Role::Outbox, Role::Inbox) => Some(videos(&old_says, &new_says, new_in_old, same)),
        (Role::File, Role::Inbox) if new_in_old => Some(taken(&old_says, &new_says)),
        (Role::Inbox, Role::File) if old_in_new => Some(taken(&new_says, &old_says)),
        (Role::File, _) | (_, Role::File) => None,
        _ => Some(format!("{new_says} and {old_says} overlap; give each a folder outside the other")),
    }
}

/// Returns a sentence about a watched folder and a folder for videos that overlap.
fn videos(inbox: &str, outbox: &str, outbox_in_inbox: bool, same: bool) -> String {
    match (same, outbox_in_inbox) {
        (true, _) => format!(
            "the watched folder {inbox} is where videos appear, by {outbox}: they would be taken for pictures; choose another \
             outbox"
        ),
        (false, true) => format!(
            "the folder for videos {outbox} lies in the watched folder {inbox}, where they would be taken for pictures; \
             choose another outbox"
        ),
        (false, false) => format!(
            "the watched folder {inbox} lies in the folder for videos {outbox}, where the video of a picture's subfolder could \
             come into it; choose another outbox"
        ),
    }
}

fn taken(inbox: &str, file: &str) -> String {
    format!("{file} lies in the watched folder {inbox}, where it would be taken for a picture; move it out")
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io;
    use std::os::unix::fs::symlink;

    use std::path::Path;

    use super::*;
    use Role::{File, Inbox, Model, Outbox, State};

    /// Returns what is said of a new folder beside an old one, below a folder with some others in it.
    fn said(dir: &Path, old: (&str, Role), new: (&str, Role)) -> Option<String> {
        let place = |key: &str, (path, role): (&str, Role)| Place::new(key, dir.join(path), role);
        overlap(&[place("old.key", old)], &[place("new.key", new)]).map(|overlap| overlap.sentence)
    }

    #[test]
    fn what_may_lie_where() -> io::Result<()> {
        let dir = tempfile::tempdir()?;
        // With folders that exist, and with none that does.
        for exist in [true, false] {
            let dir = dir.path().join(if exist { "there" } else { "nowhere" });
            if exist {
                fs::create_dir_all(dir.join("a/b/c"))?;
                fs::create_dir(dir.join("beside"))?;
            }
            // The rules: the old folder's role, the new one's, and whether the new one may be the same, lie in it, and
            // lie around it.
            for (old, new, same, inside, around) in [
                (Inbox, Inbox, false, false, false),
                (Inbox, Outbox, false, false, false),
                (Inbox, State, false, false, false),
                (Inbox, Model, false, false, false),
                (Inbox, File, false, false, true),
                (Outbox, Inbox, false, false, false),
                (Outbox, Outbox, true, true, true),
                (Outbox, State, false, false, false),
                (Outbox, Model, true, true, true),
                (State, Inbox, false, false, false),
                (State, Outbox, false, false, false),
                (Model, Inbox, false, false, false),
                (File, Inbox, false, true, false),
            ] {
                for (path, may) in
                    [("a/b", same), ("a/b/c", inside), ("a", around), ("beside", true), ("a/bc", true)]
                {
                    let said = said(&dir, ("a/b", old), (path, new));
                    assert_eq!(said.is_none(), may, "{new:?} at {path} beside {old:?} at a/b: {said:?}");
                    for part in ["old.key", "new.key", "a/b`"] {
                        assert!(said.as_ref().is_none_or(|said| said.contains(part)), "{part}: {said:?}");
                    }
                }
            }
        }
        Ok(())
    }

    #[test]
    fn folders_are_compared_by_what_they_are() -> io::Result<()> {
        let dir = tempfile::tempdir()?;
        let dir = dir.path();
        fs::create_dir_all(dir.join("in/sub"))?;
        fs::create_dir(dir.join("other"))?;
        symlink("in/sub", dir.join("link"))?;
        symlink(dir.join("in"), dir.join("other/up"))?;
        symlink("in/later", dir.join("dangling"))?;
        for path in [
            "in",
            "in/",
            "in/.",
            "./in//",
            "in/sub/..",
            "other/../in/x",
            "link",
            "link/",
            "link/..",
            "link/new/deep",
            "other/up",
            "other/up/none/../sub",
            "dangling",
            "nowhere/../in",
        ] {
            let said = said(dir, ("in", Inbox), (path, Outbox));
            assert!(said.is_some_and(|said| said.contains("taken for pictures")), "{path}");
        }
        for path in ["other", "inn", "in/../other/x", "link/../../out", "other/up/../out"] {
            let said = said(dir, ("in", Inbox), (path, Outbox));
            assert_eq!(said, None, "{path}");
        }
        Ok(())
    }

    #[test]
    fn both_are_named_with_their_keys() {
        let mut old = Place::new("folders.inbox", "/nowhere/in", Inbox);
        old.origin = Some("animd.toml:2:8".into());
        let sentence = |path: &str, role| {
            let new = Place::new("watch.path", path, role);
            overlap(std::slice::from_ref(&old), &[new]).map(|overlap| overlap.sentence).unwrap_or_default()
        };
        assert_eq!(
            sentence("/nowhere/in/sub/", Inbox),
            "`/nowhere/in/sub` (watch.path) lies in the watched folder `/nowhere/in` (folders.inbox, animd.toml:2:8), whose \
             subfolders are watched with it; remove one of them"
        );
        assert_eq!(
            sentence("/nowhere", State),
            "`/nowhere` (watch.path) and `/nowhere/in` (folders.inbox, animd.toml:2:8) overlap; give each a folder outside the \
             other"
        );
        let two = [old.clone(), Place::new("a", "/nowhere/out", Outbox)];
        let overlapping = overlap(&[], &two);
        assert_eq!(overlapping, None);
        let three = [&two[..], &[Place::new("b", "/nowhere/out/x", Inbox)]].concat();
        assert!(overlap(&[], &three).is_some_and(|overlap| (overlap.new, overlap.other) == (2, 1)));
    }
}
