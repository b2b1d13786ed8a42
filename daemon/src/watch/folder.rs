//! One watched folder with everything below it: finds pictures, waits until they are complete, and hands them over.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::fs::{self, File};
use std::io;
use std::mem::take;
use std::os::unix::fs::{DirEntryExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

use rustix::fs::{FlockOperation, Mode, OFlags};
use rustix::io::Errno;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

use super::events::{Events, Seen};
use super::names::{DONE, FAILED, is_ignored_folder, is_watched, pictures_of};
use super::root::{self, Dir, Root};
use super::{access, mounts, sidecar};
use crate::board::stopped;
use crate::files::{self, Identity, show};

/// A picture in a folder that is polled must lie unchanged at least so long, where nothing is said of it.
pub const POLL_STABLE: Duration = Duration::from_secs(5);
/// How many pictures are handed over at once.
const BATCH: usize = 64;
/// After trouble of the taker's own (a full disk, the ledger), a picture is tried again.
const RETRY: Duration = Duration::from_secs(30);
/// How long a file that changes whenever it is looked at is left alone at most.
const LONGEST: Duration = Duration::from_secs(16);
/// After so long a file that does not come to rest is spoken of.
const RESTLESS: Duration = Duration::from_secs(600);
/// After `done/` or `failed/` has gone: perhaps the whole folder goes, and a new `done/` would be in the way.
const AFTERMATH: Duration = Duration::from_secs(1);
/// A folder that is missing is looked for this often.
const AWAY: Duration = Duration::from_secs(30);

/// How a folder is watched.
#[derive(Clone, Debug, PartialEq)]
pub struct Options {
    /// The folder.
    pub root: Root,
    /// Make it when it is missing, also later; others are waited for.
    pub create: bool,
    /// How long a picture and its sidecar must lie unchanged.
    pub stable: Duration,
    /// The same where the folder is polled.
    pub poll_stable: Duration,
    /// Look into it this often and use no events, whatever its file system.
    pub poll: Option<Duration>,
    /// How often it is looked into where there are no events.
    pub default_poll: Duration,
    /// How often everything is looked at again, whatever the events said.
    pub rescan: Duration,
}

/// A picture that is complete.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ready {
    /// Where it lies.
    pub path: PathBuf,
    /// The watched folder.
    pub root: Root,
    /// Its folder, relative to the root; empty at the root itself.
    pub below: PathBuf,
    /// Which state of it.
    pub identity: Identity,
    /// Whose file it is.
    pub owner: u32,
}

/// What became of a picture that was handed over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It is taken care of, and looked at again only when something happens to it.
    Taken,
    /// It changed just now, and is waited for as if it were new.
    Changed,
    /// It cannot be taken yet, for a reason that the log has already, or needs not have.
    Waits,
    /// The same, with a reason for the log. No names: those are for the debug level.
    Later(String),
}

/// What is done with complete pictures.
pub trait Take {
    /// Takes pictures; one answer for each, in their order.
    fn take(&mut self, pictures: &[Ready]) -> impl Future<Output = Vec<Fate>>;

    /// Told when the way in which the folder is watched changes.
    fn report(&mut self, _report: &Report) {}
}

/// How a folder is being watched.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// How often it is looked into; `None`: the kernel tells of changes.
    pub polled: Option<Duration>,
    /// Why it cannot be watched now, as a sentence.
    pub trouble: Option<String>,
    /// Whether that is because its path leads to a folder that may not be used.
    pub swapped: bool,
}

/// A file as it lies there; its sidecars, too.
type Prints = [Option<(u64, u64, i64, i64, i64)>; 3];

struct Pending {
    prints: Prints,
    /// Since when it has lain like this.
    since: Instant,
    /// Since when it is known at all.
    first: Instant,
    /// Whether its writer has let it go.
    closed: bool,
    /// How often it had changed again.
    changes: u32,
    due: Instant,
}

/// A name below the root. One allocation for all the places that it is kept in.
type Name = Rc<Path>;

/// The watcher of one folder. It reads the disk in its own thread's time: run it where nothing else has to go on.
pub struct Folder<T> {
    options: Options,
    taker: T,
    pending: HashMap<Name, Pending>,
    /// The names in `pending` by their time.
    due: BTreeSet<(Instant, Name)>,
    /// Names that were taken, with their inodes, so that a poll need not look at them again. A rescan does.
    taken: HashMap<Name, u64>,
    /// Names that were spoken of already, so that the log says it once.
    told: HashSet<Name>,
    events: Option<Events>,
    /// Why there are none.
    no_events: Option<NoEvents>,
    lock: Option<File>,
    /// A folder of ours has gone, and perhaps the root with it: that of one which is held open nobody tells.
    shaken: bool,
    report: Option<Report>,
}

enum NoEvents {
    /// It is so configured.
    Asked,
    /// The file system does not tell everything.
    Unseen,
    /// The kernel has no more watches to give; perhaps later.
    Limit,
}

impl<T: Take> Folder<T> {
    /// Nothing is looked at before [`Self::run`].
    pub fn new(options: Options, taker: T) -> Self {
        Self {
            options,
            taker,
            pending: HashMap::new(),
            due: BTreeSet::new(),
            taken: HashMap::new(),
            told: HashSet::new(),
            events: None,
            no_events: None,
            lock: None,
            shaken: false,
            report: None,
        }
    }

    /// Hands pictures over until `stop` turns true.
    pub async fn run(mut self, mut stop: watch::Receiver<bool>) {
        let mut there = self.begin();
        let mut rescan = Instant::now() + self.options.rescan;
        let mut scan = self.next_scan(there, rescan);
        loop {
            let due = self.due.first().map_or(scan, |(due, _)| (*due).min(scan));
            let seen = tokio::select! {
                biased;
                () = stopped(&mut stop) => return,
                seen = next(&mut self.events) => Some(seen),
                () = sleep_until(due) => None,
            };
            let mut lost = false;
            match seen {
                Some(Ok(seen)) => {
                    for seen in seen {
                        lost |= self.see(seen);
                    }
                }
                Some(Err(e)) => {
                    tracing::warn!("file events of `{}`: {e}", show(self.options.root.path()));
                    self.events = None;
                    lost = true;
                }
                None => {}
            }
            let now = Instant::now();
            if take(&mut self.shaken) {
                rescan = rescan.min(now + AFTERMATH);
                scan = scan.min(rescan);
            }
            if lost || now >= scan {
                let whole = lost || now >= rescan || !there || self.options.root.check().is_err();
                if lost {
                    tracing::info!(
                        "file events of `{}` were lost; it is looked at as a whole",
                        show(self.options.root.path())
                    );
                }
                there = if whole { self.begin() } else { self.scan(false) };
                if whole {
                    rescan = Instant::now() + self.options.rescan;
                }
                scan = self.next_scan(there, rescan);
            }
            if !self.look().await {
                there = self.begin();
                scan = self.next_scan(there, rescan);
            }
        }
    }

    fn next_scan(&self, there: bool, rescan: Instant) -> Instant {
        let pause = match (there, &self.events) {
            (false, _) => AWAY.min(self.poll()),
            (true, None) => self.poll(),
            (true, Some(_)) => self.options.rescan,
        };
        // What took long is not done all the time.
        (Instant::now() + pause).min(rescan.max(Instant::now()))
    }

    fn poll(&self) -> Duration {
        self.options.poll.unwrap_or(self.options.default_poll)
    }

    fn stable(&self) -> Duration {
        if self.events.is_some() { self.options.stable } else { self.options.poll_stable }
    }

    /// Looks at everything, by events if they can be had. False if the folder is not there.
    fn begin(&mut self) -> bool {
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
                    "`{}` is looked into every {pause:?}, {why}; a look takes {:?}, and wakes the machine each time",
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

    fn tell(&mut self, report: Report) {
        if self.report.as_ref() != Some(&report) {
            if let Some(trouble) = &report.trouble {
                tracing::warn!("{trouble}");
            }
            self.taker.report(&report);
            self.report = Some(report);
        }
    }

    /// Makes or finds the folder, and keeps other programs of ours away from it.
    fn open(&mut self) -> Result<(), Report> {
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
            // It is another folder than before, and its watches with it.
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
    fn choose(&mut self) {
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

    /// Looks into the whole folder; `whole` also at what was taken before. False if it is not there.
    fn scan(&mut self, whole: bool) -> bool {
        let mut found = HashSet::new();
        let there = self.scan_below(PathBuf::new(), whole, &mut found);
        if there {
            // Nothing is remembered of what has gone.
            self.taken.retain(|name, _| found.contains(name));
            if whole {
                self.told.retain(|name| found.contains(name));
            }
        }
        there
    }

    /// Notes every file below a folder and watches every folder. False if it cannot be read.
    fn scan_below(&mut self, below: PathBuf, whole: bool, found: &mut HashSet<Name>) -> bool {
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
            for entry in entries.flatten() {
                let path = below.join(entry.file_name());
                if entry.file_type().is_ok_and(|t| t.is_dir()) {
                    if !is_ignored_folder(&path) {
                        folders.push(path);
                    }
                } else if !super::names::is_ignored(&entry.file_name()) {
                    let name: Name = path.into();
                    self.find(&name, entry.ino(), whole);
                    found.insert(name);
                }
            }
        }
        there
    }

    fn watch(&mut self, below: &Path) {
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

    /// A file that was found by looking.
    fn find(&mut self, name: &Name, ino: u64, whole: bool) {
        let interval = if self.events.is_some() { self.options.rescan } else { self.poll() };
        if let Some(pending) = self.pending.get_mut(name) {
            // Found twice, unchanged, a whole interval apart: its writer's close was missed.
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

    /// Takes an event. True if only looking at everything helps.
    fn see(&mut self, seen: Seen) -> bool {
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
                // No writer whose close could come: a second name of a finished file, or no file at all.
                let whole = self.metadata(&path).is_ok_and(|meta| !meta.is_file() || meta.nlink() > 1);
                self.note(path.into(), whole);
            }
            Seen::Begun(_) => {}
        }
        false
    }

    /// A sidecar may be for a picture that waits in the queue already.
    fn see_sidecar(&mut self, path: &Path) {
        for picture in pictures_of(path) {
            if !self.pending.contains_key(&*picture)
                && is_watched(&picture)
                && self.metadata(&picture).is_ok_and(|meta| meta.is_file())
            {
                self.note(picture.into(), true);
            }
        }
    }

    fn metadata(&self, below: &Path) -> io::Result<fs::Metadata> {
        root::metadata(&self.options.root, &self.options.root.path().join(below))
    }

    #[expect(clippy::needless_pass_by_value, reason = "callers have made it for this")]
    fn note(&mut self, name: Name, closed: bool) {
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

    fn set_due(&mut self, name: &Name, due: Instant) {
        if let Some(pending) = self.pending.get_mut(name) {
            self.due.remove(&(pending.due, name.clone()));
            pending.due = due;
            self.due.insert((due, name.clone()));
        }
    }

    fn forget(&mut self, name: &Name) {
        if let Some(pending) = self.pending.remove(name) {
            self.due.remove(&(pending.due, name.clone()));
        }
    }

    /// Looks at the names whose time has come, and hands over those that are complete. False if the folder is not the
    /// one to use any more.
    async fn look(&mut self) -> bool {
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
            // Whoever is not handed over gets another time or is forgotten.
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
                    // Not at once, even where nothing has to lie still: it may go on changing.
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

    /// Looks at one name: it is waited for, complete, or no business of ours.
    fn examine(&mut self, name: &Name) -> Option<Ready> {
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

    /// Says something of a name, once; the name itself only where it is debugged.
    fn once(&mut self, name: &Path, text: &str, detail: &str) {
        if self.told.insert(name.into()) {
            tracing::warn!("{text}");
            tracing::debug!("`{}`: {detail}", show(self.options.root.path().join(name)));
        }
    }
}

/// How a folder is looked for that is polled so often, and why.
fn waits(poll: Duration, text: &str) -> Report {
    Report {
        polled: Some(AWAY.min(poll)),
        trouble: Some(format!("{text}; it is tried again")),
        swapped: false,
    }
}

/// Whether changes in a folder may be made elsewhere, and cause no events here.
fn is_unseen(dir: &Dir) -> bool {
    mounts::unseen(&dir.path()).is_ok_and(|unseen| unseen.is_some())
}

async fn next(events: &mut Option<Events>) -> io::Result<Vec<Seen>> {
    match events {
        Some(events) => events.next().await,
        None => std::future::pending().await,
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

/// Runs a folder in a thread of its own, so that a slow or hanging disk holds up nothing else. The receiver is told of
/// its end.
pub fn spawn<T: Take + Send + 'static>(
    options: Options,
    taker: T,
    stop: watch::Receiver<bool>,
) -> io::Result<tokio::sync::oneshot::Receiver<()>> {
    let (ended, end) = tokio::sync::oneshot::channel();
    std::thread::Builder::new().name("watch".into()).spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        match runtime {
            Ok(runtime) => runtime.block_on(Folder::new(options, taker).run(stop)),
            Err(e) => tracing::error!("`{}` cannot be watched: {e}", show(options.root.path())),
        }
        _ = ended.send(());
    })?;
    Ok(end)
}
