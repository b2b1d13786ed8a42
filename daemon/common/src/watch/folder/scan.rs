//! Scans the folder as a whole: whether it exists, how changes are reported, and what lies in it.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirEntryExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{FlockOperation, Mode, OFlags};
use rustix::io::Errno;
use tokio::time::Instant;

use super::{AWAY, Folder, Name, NoEvents, ORPHAN, Report, Take};
use crate::clock::now_us;
use crate::files::{changed_us, show, split_name};
use crate::watch::events::Events;
use crate::watch::names::{DONE, FAILED, is_ignored, is_ignored_folder, of_sidecar};
use crate::watch::root::{self, Dir};
use crate::watch::{access, mounts};

impl<T: Take> Folder<T> {
    /// Scans everything and starts to watch, by events where possible. Returns false if the folder is not there.
    pub(super) fn begin(&mut self) -> bool {
        if let Err(report) = self.open() {
            self.events = None;
            self.lock = None;
            // What lies there is found again when the folder is back.
            self.pending.clear();
            self.due.clear();
            self.tell(report);
            return false;
        }
        let before = self.events.is_some();
        if self.events.is_none() && !matches!(self.no_events, Some(NoEvents::Asked | NoEvents::Unseen)) {
            self.choose();
        }
        let start = Instant::now();
        let there = self.scan(true);
        if there {
            let polled = self.events.is_none().then(|| self.poll());
            let new = self.report.as_ref().is_none_or(|r| r.polled != polled || r.trouble.is_some());
            if new && let Some(pause) = polled {
                let why = match self.no_events {
                    Some(NoEvents::Asked) => "as configured",
                    Some(NoEvents::Limit) => {
                        "because the kernel has no more watches to give: raise fs.inotify.max_user_watches and max_user_instances"
                    }
                    _ => "because its file system does not report changes made elsewhere",
                };
                tracing::warn!(
                    "`{}` is scanned every {pause:?}, {why}; a scan takes {:?}, and wakes the machine each time",
                    show(self.options.root.path()),
                    start.elapsed()
                );
            } else if new && !before {
                tracing::info!("`{}` is watched", show(self.options.root.path()));
            }
            self.tell(Report { polled, ..Report::default() });
        }
        there
    }

    pub(super) fn tell(&mut self, report: Report) {
        if self.report.as_ref() != Some(&report) {
            if let Some(trouble) = &report.trouble {
                tracing::warn!("{trouble}");
            }
            self.taker.report(&report);
            self.report = Some(report);
        }
    }

    /// Makes or opens the folder, and locks it against other watchers of animd's.
    pub(super) fn open(&mut self) -> Result<(), Report> {
        let root = self.options.root.clone();
        let path = root.path();
        let shown = show(path);
        let poll = self.poll();
        let waits = |text: String| waits(poll, &text);
        let cannot = |what: &str, e: &io::Error| {
            let why = match root::is_swapped(e) {
                true => format!("the watched folder `{shown}` is not used: {e}"),
                false => access::refusal(path).unwrap_or_else(|| format!("`{shown}` cannot be {what}: {e}")),
            };
            Report { swapped: root::is_swapped(e), ..waits(why) }
        };
        if self.options.create
            && let Err(e) = root.make()
        {
            return Err(match root::is_swapped(&e) {
                true => cannot("made", &e),
                false => waits(format!("the watched folder `{shown}` cannot be made: {e}")),
            });
        }
        let held = match root.check() {
            Ok(held) => held,
            Err(e) if e.raw_os_error() == Some(Errno::NOTDIR.raw_os_error()) => {
                return Err(waits(format!("`{shown}` is no folder and cannot be watched")));
            }
            Err(e) => return Err(cannot("read", &e)),
        };
        let readable = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let dir = match rustix::fs::openat(&*held, ".", readable, Mode::empty()) {
            Ok(dir) => File::from(dir),
            Err(e) => return Err(cannot("read", &e.into())),
        };
        let same = |lock: &File| {
            let id = |file: &File| file.metadata().map(|m| (m.dev(), m.ino())).ok();
            id(lock) == id(&dir)
        };
        if !self.lock.as_ref().is_some_and(same) {
            // It is another folder than before, so the old watches are of no use.
            self.events = None;
            if rustix::fs::flock(&dir, FlockOperation::NonBlockingLockExclusive) == Err(Errno::WOULDBLOCK) {
                return Err(waits(format!(
                    "`{shown}` is being watched by another program of animd; let only one of them watch it"
                )));
            }
            self.lock = Some(dir);
        }
        for name in [DONE, FAILED] {
            if let Err(e) = Dir::make(&root, Path::new(name)) {
                return Err(waits(
                    access::refusal(path)
                        .unwrap_or_else(|| format!("`{}` cannot be used: {e}", show(path.join(name)))),
                ));
            }
        }
        Ok(())
    }

    /// Decides between events and polling.
    pub(super) fn choose(&mut self) {
        let dir = Dir::open(&self.options.root, Path::new(""));
        self.no_events = if self.options.poll.is_some() {
            Some(NoEvents::Asked)
        } else if dir.as_ref().is_ok_and(is_unseen) {
            Some(NoEvents::Unseen)
        } else {
            match dir.and_then(Events::new) {
                Ok(events) => {
                    self.events = Some(events);
                    None
                }
                Err(_) => Some(NoEvents::Limit),
            }
        };
    }

    /// Scans the whole folder; `whole` includes what was taken before. Returns false if the folder is not there.
    pub(super) fn scan(&mut self, whole: bool) -> bool {
        let mut found = HashSet::new();
        let there = self.scan_below(PathBuf::new(), whole, &mut found);
        if there {
            // Forgets the names that are gone.
            self.taken.retain(|name, _| found.contains(name));
            if whole {
                self.told.retain(|name| found.contains(name));
            }
        }
        there
    }

    /// Notes every file below a folder and watches every folder. Returns false if the folder cannot be read.
    pub(super) fn scan_below(&mut self, below: PathBuf, whole: bool, found: &mut HashSet<Name>) -> bool {
        let mut there = true;
        let mut folders = vec![below];
        while let Some(below) = folders.pop() {
            // First the watch, then the look: nothing falls between them.
            self.watch(&below);
            let read = Dir::open(&self.options.root, &below).and_then(|dir| fs::read_dir(dir.path()));
            let entries = match read {
                Ok(entries) => entries,
                Err(e) if below.as_os_str().is_empty() => {
                    let root = show(self.options.root.path());
                    let text = format!("the watched folder `{root}` cannot be read: {e}");
                    self.tell(Report { swapped: root::is_swapped(&e), ..waits(self.poll(), &text) });
                    there = false;
                    continue;
                }
                Err(e) => {
                    self.once(
                        &below,
                        "a folder below a watched one cannot be read and is left out",
                        &e.to_string(),
                    );
                    found.insert(below.into());
                    continue;
                }
            };
            let (mut pictures, mut sidecars) = (HashSet::new(), Vec::new());
            for entry in entries.flatten() {
                let path = below.join(entry.file_name());
                if entry.file_type().is_ok_and(|t| t.is_dir()) {
                    if !is_ignored_folder(&path) {
                        folders.push(path);
                    }
                } else if !is_ignored(&entry.file_name()) {
                    if whole {
                        pictures.insert(entry.file_name());
                        pictures.insert(split_name(&entry.file_name()).0.to_owned());
                    }
                    let name: Name = path.into();
                    self.find(&name, entry.ino(), whole);
                    found.insert(name);
                } else if whole && of_sidecar(&entry.file_name()).is_some() {
                    sidecars.push(entry.file_name());
                }
            }
            for name in sidecars {
                if of_sidecar(&name).is_some_and(|of| !pictures.contains(of)) {
                    let path: Name = below.join(name).into();
                    self.tell_of_orphan(&path);
                    found.insert(path);
                }
            }
        }
        there
    }

    /// Says that a sidecar which has lain there for a while belongs to no picture.
    fn tell_of_orphan(&mut self, name: &Name) {
        let is_note = name.as_os_str().as_bytes().ends_with(b".error.txt");
        let age_us = self.metadata(name).map_or(0, |meta| now_us().saturating_sub(changed_us(&meta)));
        if !is_note && u128::from(age_us.unsigned_abs()) > ORPHAN.as_micros() {
            let text = "a file in a watched folder looks like the text or the settings of a picture and belongs to none; \
                        give it the picture's name, as in `photo.png.txt` or `photo.txt`";
            self.once(name, text, "no picture here has this name");
        }
    }

    pub(super) fn watch(&mut self, below: &Path) {
        let Some(events) = &mut self.events else { return };
        let trouble = match events.add(below) {
            // Another file system may be mounted below the root.
            Ok(()) => {
                let dir = Dir::open(&self.options.root, below);
                if dir.as_ref().is_ok_and(is_unseen) { NoEvents::Unseen } else { return }
            }
            // It has gone again, or may not be read: reading it says more.
            Err(e)
                if matches!(
                    e.kind(),
                    io::ErrorKind::NotFound | io::ErrorKind::NotADirectory | io::ErrorKind::PermissionDenied
                ) =>
            {
                return;
            }
            Err(_) => NoEvents::Limit,
        };
        self.no_events = Some(trouble);
        self.events = None;
    }
}

/// Returns the report on a folder that cannot be watched for now and is tried again.
fn waits(poll: Duration, text: &str) -> Report {
    Report {
        polled: Some(AWAY.min(poll)),
        trouble: Some(format!("{text}; it is tried again")),
        swapped: false,
    }
}

/// Returns whether changes in a folder may be made elsewhere, and cause no events here.
fn is_unseen(dir: &Dir) -> bool {
    mounts::unseen(&dir.path()).is_ok_and(|unseen| unseen.is_some())
}
