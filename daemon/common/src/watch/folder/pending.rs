//! Names that wait: found by a scan or an event, examined when their time comes, handed over when complete.

use std::collections::HashSet;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::time::Instant;

use super::{BATCH, Fate, Folder, LONGEST, Name, Pending, Prints, RESTLESS, RETRY, Ready, Take};
use crate::files::{self, Identity};
use crate::watch::events::Seen;
use crate::watch::names::{DONE, FAILED, is_ignored_folder, is_watched, pictures_of};
use crate::watch::root::{self, Dir};
use crate::watch::sidecar;

impl<T: Take> Folder<T> {
    /// Notes a file that a scan found.
    pub(super) fn find(&mut self, name: &Name, ino: u64, whole: bool) {
        let interval = if self.events.is_some() { self.options.rescan } else { self.poll() };
        if let Some(pending) = self.pending.get_mut(name) {
            // The file was found twice, unchanged, a whole interval apart: the event of its writer's close was lost.
            if !pending.closed && pending.since.elapsed() + Duration::from_secs(1) >= interval {
                pending.closed = true;
                self.set_due(name, Instant::now());
            }
            return;
        }
        if !whole && self.taken.get(name) == Some(&ino) {
            return;
        }
        self.taken.remove(name);
        self.note(name.clone(), true);
    }

    /// Handles an event. Returns true if everything must be scanned.
    pub(super) fn see(&mut self, seen: Seen) -> bool {
        match seen {
            Seen::Lost => return true,
            Seen::Folder(below) => {
                if !is_ignored_folder(&below) {
                    self.scan_below(below, true, &mut HashSet::new());
                }
            }
            Seen::FolderGone(below) => {
                self.shaken |= below == Path::new(DONE) || below == Path::new(FAILED);
                if let Some(events) = &mut self.events {
                    events.remove(&below);
                }
                let gone: Vec<Name> =
                    self.pending.keys().filter(|name| name.starts_with(&below)).cloned().collect();
                for name in gone {
                    self.forget(&name);
                }
            }
            Seen::Whole(path) if is_watched(&path) => self.note(path.into(), true),
            Seen::Whole(path) => self.see_sidecar(&path),
            Seen::Begun(path) if is_watched(&path) => {
                // No close will follow for a hard link of a finished file, or for something that is not a file.
                let whole = self.metadata(&path).is_ok_and(|meta| !meta.is_file() || meta.nlink() > 1);
                self.note(path.into(), whole);
            }
            Seen::Begun(_) => {}
        }
        false
    }

    /// Treats all files as closed after events were lost, because a close may be among them: from now on it is enough
    /// that a file lies unchanged.
    pub(super) fn close_all(&mut self) {
        let open = self.pending.iter().filter(|(_, pending)| !pending.closed);
        for name in open.map(|(name, _)| name.clone()).collect::<Vec<_>>() {
            self.note(name, true);
        }
    }

    /// Looks again at the pictures of a sidecar, which may already wait in the queue.
    pub(super) fn see_sidecar(&mut self, path: &Path) {
        for picture in pictures_of(path) {
            if !self.pending.contains_key(&*picture)
                && is_watched(&picture)
                && self.metadata(&picture).is_ok_and(|meta| meta.is_file())
            {
                self.note(picture.into(), true);
            }
        }
    }

    pub(super) fn metadata(&self, below: &Path) -> io::Result<fs::Metadata> {
        root::metadata(&self.options.root, &self.options.root.path().join(below))
    }

    #[expect(clippy::needless_pass_by_value, reason = "callers have made it for this")]
    pub(super) fn note(&mut self, name: Name, closed: bool) {
        let now = Instant::now();
        let pending = self.pending.entry(name.clone()).or_insert(Pending {
            prints: [None; 3],
            since: now,
            first: now,
            closed,
            changes: 0,
            due: now,
        });
        pending.closed = closed;
        self.set_due(&name, now);
    }

    pub(super) fn set_due(&mut self, name: &Name, due: Instant) {
        if let Some(pending) = self.pending.get_mut(name) {
            self.due.remove(&(pending.due, name.clone()));
            pending.due = due;
            self.due.insert((due, name.clone()));
        }
    }

    pub(super) fn forget(&mut self, name: &Name) {
        if let Some(pending) = self.pending.remove(name) {
            self.due.remove(&(pending.due, name.clone()));
        }
    }

    /// Looks at the names whose time has come, and hands over those that are complete. Returns false if the folder is
    /// no longer the one to use.
    pub(super) async fn look(&mut self) -> bool {
        let now = Instant::now();
        if self.due.first().is_none_or(|(due, _)| *due > now) {
            return true;
        }
        if self.options.root.check().is_err() {
            return false;
        }
        let mut names = Vec::new();
        let mut ready = Vec::new();
        while let Some((due, name)) = self.due.first().cloned() {
            if due > now || ready.len() == BATCH {
                break;
            }
            // A name that is not handed over gets another time or is forgotten.
            if let Some(picture) = self.examine(&name) {
                self.due.remove(&(due, name.clone()));
                names.push(name);
                ready.push(picture);
            }
        }
        if ready.is_empty() {
            return true;
        }
        let fates = self.taker.take(&ready).await;
        for ((name, picture), fate) in names.iter().zip(&ready).zip(fates) {
            match fate {
                Fate::Taken => {
                    self.forget(name);
                    if self.events.is_none() {
                        self.taken.insert(name.clone(), picture.identity.ino as u64);
                    }
                }
                Fate::Changed => {
                    if let Some(pending) = self.pending.get_mut(name) {
                        pending.prints = [None; 3];
                    }
                    // It is not looked at again at once, even where nothing has to lie still, because it may go on changing.
                    self.set_due(name, Instant::now() + Duration::from_millis(200));
                }
                Fate::Waits => self.set_due(name, Instant::now() + RETRY),
                Fate::Later(why) => {
                    self.once(
                        name,
                        &format!("a picture waits in a watched folder and is tried again: {why}"),
                        &why,
                    );
                    self.set_due(name, Instant::now() + RETRY);
                }
            }
        }
        true
    }

    /// Looks at one name: it is complete, must wait, or is not a picture.
    pub(super) fn examine(&mut self, name: &Name) -> Option<Ready> {
        let path = self.options.root.path().join(name);
        let found = Dir::of(&self.options.root, &path).and_then(|dir| {
            let path = dir.at(&path);
            let meta = fs::symlink_metadata(&path)?;
            Ok((prints(&path, &meta), meta))
        });
        let (prints, meta) = match found {
            Ok((prints, meta)) if meta.is_file() => (prints, meta),
            Ok((_, meta)) => {
                if !meta.is_dir() {
                    let kind = files::kind(&meta);
                    let text = format!(
                        "something in a watched folder is {kind} and stays there: drop the picture itself"
                    );
                    self.once(name, &text, kind);
                }
                self.forget(name);
                return None;
            }
            Err(e) => {
                if e.kind() == io::ErrorKind::NotFound {
                    // Another file of this name is another matter.
                    self.told.remove(name);
                }
                self.forget(name);
                return None;
            }
        };
        let (stable, rescan) = (self.stable(), self.options.rescan);
        let now = Instant::now();
        let pending = self.pending.get_mut(name)?;
        if pending.prints != prints {
            if pending.prints[0].is_some() {
                pending.changes += 1;
            }
            pending.prints = prints;
            pending.since = now;
        }
        let wait = stable.max((stable * 2u32.saturating_pow(pending.changes.min(16))).min(LONGEST));
        let due = if pending.closed { pending.since + wait } else { now + rescan };
        let restless = pending.closed && pending.changes > 3 && pending.first.elapsed() > RESTLESS;
        if restless {
            let text = "a file in a watched folder keeps changing and is waited for; if nobody writes it, move it out";
            self.once(name, text, "it keeps changing");
        }
        if due > now || !self.pending[name].closed {
            self.set_due(name, due);
            return None;
        }
        Some(Ready {
            below: name.parent().unwrap_or(Path::new("")).to_owned(),
            root: self.options.root.clone(),
            path,
            identity: Identity::of(&meta),
            owner: meta.uid(),
        })
    }
}

fn prints(picture: &Path, meta: &fs::Metadata) -> Prints {
    let print = |meta: &fs::Metadata| {
        let ns = |s: i64, ns: i64| s.saturating_mul(1_000_000_000).saturating_add(ns);
        (
            meta.ino(),
            meta.len(),
            ns(meta.mtime(), meta.mtime_nsec()),
            ns(meta.ctime(), meta.ctime_nsec()),
            i64::from(meta.mode()),
        )
    };
    let beside = |path: Option<PathBuf>| fs::symlink_metadata(path?).ok().map(|meta| print(&meta));
    let [toml, txt] = sidecar::paths(picture);
    [Some(print(meta)), beside(toml), beside(txt)]
}
