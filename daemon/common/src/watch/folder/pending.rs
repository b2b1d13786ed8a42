//! Names that wait: found by a scan or an event, examined when their time comes, handed over when complete.

use std::collections::HashSet;
use std::ffi::OsStr;
use std::fs;
use std::io;
use std::mem::take;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;

use rustix::fs::{AtFlags, Stat, statat};
use tokio::time::Instant;

use super::{
    BATCH, Fate, Folder, LATE, LONGEST, MOST_LATE, Name, Pending, Print, Prints, RESTLESS, RETRY, Ready,
    Take, UNFINISHED, WRITTEN, Writer,
};
use crate::clock::now_us;
use crate::files::{self, Identity, split_name};
use crate::picture::cut::{self, End};
use crate::watch::events::Seen;
use crate::watch::names::{DONE, FAILED, downloads, is_ignored_folder, is_watched, of_sidecar};
use crate::watch::root::{self, Dir};
use crate::watch::sidecar::find;

impl<T: Take> Folder<T> {
    /// Notes a file that a scan found.
    pub(super) fn find(&mut self, name: &Name, ino: u64, whole: bool) {
        let interval = if self.events.is_some() { self.options.rescan } else { self.poll() };
        if let Some(pending) = self.pending.get_mut(name) {
            // The file was found twice, unchanged, a whole interval apart: the event of its writer's close was lost.
            let is_open = pending.writer == Writer::Open;
            if is_open && pending.since.elapsed() + Duration::from_secs(1) >= interval {
                pending.writer = Writer::Unseen;
                self.set_due(name, Instant::now());
            }
            return;
        }
        if !whole && self.taken.get(name) == Some(&ino) {
            return;
        }
        self.taken.remove(name);
        self.note(name.clone(), Writer::Unseen);
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
            Seen::Whole(path) if is_watched(&path) => self.note(path.into(), Writer::Closed),
            Seen::Whole(path) => return self.see_sidecar(&path),
            Seen::Begun(path) if is_watched(&path) => {
                // No close will follow for a hard link of a finished file, or for something that is not a file.
                let whole = self.metadata(&path).is_ok_and(|meta| !meta.is_file() || meta.nlink() > 1);
                self.note(path.into(), if whole { Writer::Unseen } else { Writer::Open });
            }
            Seen::Begun(_) => {}
        }
        false
    }

    /// Treats all files as closed after events were lost, because a close may be among them: from now on it is enough
    /// that a file lies unchanged.
    pub(super) fn close_all(&mut self) {
        let open = self.pending.iter().filter(|(_, pending)| pending.writer == Writer::Open);
        for name in open.map(|(name, _)| name.clone()).collect::<Vec<_>>() {
            self.note(name, Writer::Unseen);
        }
    }

    /// Remembers a sidecar whose picture may already wait in the queue. Returns true if there are too many.
    fn see_sidecar(&mut self, path: &Path) -> bool {
        let Some(name) = path.file_name().and_then(of_sidecar) else { return false };
        if self.late.len() >= MOST_LATE {
            self.late.clear();
            self.late_due = None;
            return true;
        }
        let folder = path.parent().unwrap_or(Path::new(""));
        self.late.insert((folder.to_owned(), name.to_owned()));
        self.late_due.get_or_insert_with(|| Instant::now() + LATE);
        false
    }

    /// Looks again at the pictures of the sidecars that have come, whatever their endings.
    pub(super) fn hear_late(&mut self) {
        if self.late_due.is_none_or(|due| due > Instant::now()) {
            return;
        }
        self.late_due = None;
        let late = take(&mut self.late);
        let folders: HashSet<&Path> = late.iter().map(|(folder, _)| &**folder).collect();
        for folder in folders {
            let dir = Dir::open(&self.options.root, folder);
            let Ok(entries) = dir.and_then(|dir| fs::read_dir(dir.path())) else { continue };
            for entry in entries.flatten() {
                let name = entry.file_name();
                let is_meant = |name: &OsStr| late.contains(&(folder.to_owned(), name.to_owned()));
                let path = folder.join(&name);
                if (is_meant(&name) || is_meant(split_name(&name).0))
                    && is_watched(&path)
                    && entry.file_type().is_ok_and(|kind| kind.is_file())
                {
                    let name: Name = path.into();
                    match self.pending.contains_key(&name) {
                        // It may be this very file that the picture waits for.
                        true => self.set_due(&name, Instant::now()),
                        // The picture has been taken, so somebody has closed it.
                        false => self.note(name, Writer::Closed),
                    }
                }
            }
        }
    }

    pub(super) fn metadata(&self, below: &Path) -> io::Result<fs::Metadata> {
        root::metadata(&self.options.root, &self.options.root.path().join(below))
    }

    #[expect(clippy::needless_pass_by_value, reason = "callers have made it for this")]
    pub(super) fn note(&mut self, name: Name, writer: Writer) {
        let now = Instant::now();
        let pending = self.pending.entry(name.clone()).or_insert(Pending {
            prints: Prints::default(),
            since: now,
            first: now,
            writer,
            changes: 0,
            whole_time: false,
            due: now,
        });
        pending.writer = writer;
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
                        pending.prints = Prints::default();
                    }
                    // It is not looked at again at once, even where nothing has to lie still, because it may go on changing.
                    self.set_due(name, Instant::now() + Duration::from_millis(200));
                }
                Fate::TooEarly => {
                    let stable = self.stable();
                    if let Some(pending) = self.pending.get_mut(name) {
                        pending.whole_time = true;
                        let due = pending.since + stable;
                        self.set_due(name, due);
                    }
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
            let meta = fs::symlink_metadata(dir.at(&path))?;
            Ok((dir, meta))
        });
        let (dir, meta) = match found {
            Ok((dir, meta)) if meta.is_file() => (dir, meta),
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
        // Some programs make the name first and write the picture later. Whatever is written is found again.
        if meta.len() == 0 {
            self.forget(name);
            return None;
        }
        let prints = prints(&dir, &path, &meta);
        let (stable, rescan) = (self.stable(), self.options.rescan);
        let now = Instant::now();
        let pending = self.pending.get_mut(name)?;
        if pending.prints != prints {
            if pending.prints.picture.is_some() {
                pending.changes += 1;
            }
            pending.prints = prints;
            pending.since = now;
            pending.whole_time = false;
        }
        let wait = stable.max((stable * 2u32.saturating_pow(pending.changes.min(16))).min(LONGEST));
        let whole_time = pending.since + wait;
        // A file that was written to once more may be so again.
        let may_be_early = pending.writer == Writer::Closed && pending.changes == 0 && !pending.whole_time;
        let due = match pending.writer {
            Writer::Open => now + rescan,
            _ if may_be_early && self.events.is_some() => {
                (pending.since + self.options.early).min(whole_time)
            }
            _ => whole_time,
        };
        let restless =
            pending.writer != Writer::Open && pending.changes > 3 && pending.first.elapsed() > RESTLESS;
        if restless {
            let text = "a file in a watched folder keeps changing and is waited for; if nobody writes it, move it out";
            self.once(name, text, "it keeps changing");
        }
        if due > now || self.pending[name].writer == Writer::Open {
            self.set_due(name, due);
            return None;
        }
        if let Some(due) = self.unfinished(name, &dir, &meta) {
            self.set_due(name, due);
            return None;
        }
        let early = whole_time > now;
        if early && !are_complete(&dir, name, meta.uid()) {
            self.set_due(name, whole_time);
            return None;
        }
        Some(Ready {
            early,
            below: name.parent().unwrap_or(Path::new("")).to_owned(),
            root: self.options.root.clone(),
            path,
            identity: Identity::of(&meta),
            owner: meta.uid(),
        })
    }

    /// Returns when to look again at a picture that is not complete although nobody has it open: it ends too early and
    /// was just written to, as scanners and slow networks do, or a program that downloads it says so.
    fn unfinished(&mut self, name: &Name, dir: &Dir, meta: &fs::Metadata) -> Option<Instant> {
        let file = name.file_name().unwrap_or_default();
        if downloads(file).any(|beside| statat(dir, beside, AtFlags::SYMLINK_NOFOLLOW).is_ok()) {
            let text = "a picture in a watched folder is being downloaded and is waited for; if nobody does, remove the \
                        unfinished file beside it";
            self.once(name, text, "a file beside it says that it is being downloaded");
            return Some(Instant::now() + self.options.rescan.min(WRITTEN));
        }
        let written_us = now_us().saturating_sub(files::changed_us(meta)).unsigned_abs();
        if u128::from(written_us) > WRITTEN.as_micros() {
            return None;
        }
        (end(dir, file) == End::Early).then(|| Instant::now() + UNFINISHED)
    }
}

/// Returns what a picture says of its own end.
fn end(dir: &Dir, picture: &OsStr) -> End {
    let end = files::open_regular(&dir.at(Path::new(picture))).and_then(|(file, _)| cut::end(&file));
    end.unwrap_or(End::Unknown)
}

/// Returns whether a picture of `owner`'s, and the one beside it that its video ends at, are certainly complete.
fn are_complete(dir: &Dir, name: &Name, owner: u32) -> bool {
    let picture = name.file_name().unwrap_or_default();
    let mut lasts = find::found(dir, picture, Some(owner));
    lasts.retain(|sidecar| sidecar.kind == find::Kind::Last);
    end(dir, picture) == End::Complete && lasts.iter().all(|last| end(dir, &last.name) == End::Complete)
}

fn prints(dir: &Dir, picture: &Path, meta: &fs::Metadata) -> Prints {
    let own = (
        meta.ino(),
        meta.len(),
        nanoseconds(meta.mtime(), meta.mtime_nsec()),
        nanoseconds(meta.ctime(), meta.ctime_nsec()),
        i64::from(meta.mode()),
    );
    let found = find::found(dir, picture.file_name().unwrap_or_default(), Some(meta.uid()));
    Prints { picture: Some(own), beside: found.iter().map(|sidecar| print(&sidecar.stat)).collect() }
}

#[expect(clippy::unnecessary_cast, reason = "the types differ between architectures")]
fn print(stat: &Stat) -> Print {
    (
        stat.st_ino as u64,
        stat.st_size as u64,
        nanoseconds(stat.st_mtime as i64, stat.st_mtime_nsec as i64),
        nanoseconds(stat.st_ctime as i64, stat.st_ctime_nsec as i64),
        i64::from(stat.st_mode),
    )
}

fn nanoseconds(seconds: i64, rest: i64) -> i64 {
    seconds.saturating_mul(1_000_000_000).saturating_add(rest)
}
