//! One watched folder with everything below it: finds pictures, waits until they are complete, and hands them over.

mod pending;
mod scan;
#[cfg(test)]
mod tests;

use std::collections::{BTreeSet, HashMap, HashSet};
use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::mem::take;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

use super::events::{Events, Seen};
use super::root::Root;
use crate::files::{Identity, show};
use crate::tasks::stopped;

/// How long a complete picture lies after its writer has closed it, where later words still count: programs that set its
/// times or write its metadata do so at once.
pub const EARLY: Duration = Duration::from_millis(300);
/// How long a picture in a polled folder must lie unchanged by default.
pub const POLL_STABLE: Duration = Duration::from_secs(5);
/// The most pictures that are handed over at once.
const BATCH: usize = 64;
/// The pause before a picture is tried again after a failure of the taker's own (a full disk, the ledger).
const RETRY: Duration = Duration::from_secs(30);
/// The longest pause between two checks of a file that keeps changing.
const LONGEST: Duration = Duration::from_secs(16);
/// How long events are left alone after some were lost.
const FIRST_QUIET: Duration = Duration::from_millis(500);
/// How long no event may be lost until a storm counts as over.
const CALM: Duration = Duration::from_secs(10);
/// The pause after a sidecar has come, in which others may come.
const LATE: Duration = Duration::from_millis(500);
/// The most sidecars that are remembered; when more come, the whole folder is scanned.
const MOST_LATE: usize = 10_000;
/// How long after the last write a picture is waited for that ends too early, or that somebody downloads.
const WRITTEN: Duration = Duration::from_secs(60);
/// How long a sidecar may lie without a picture before the log says so.
const ORPHAN: Duration = Duration::from_secs(60);
/// The pause before such a picture is looked at again.
const UNFINISHED: Duration = Duration::from_secs(2);
/// How long a file may keep changing before the log says so.
const RESTLESS: Duration = Duration::from_secs(600);
/// The pause after `done/` or `failed/` has gone: perhaps the whole folder is being removed, and a new `done/` would be
/// in the way.
const AFTERMATH: Duration = Duration::from_secs(1);
/// The pause between two checks for a folder that is missing.
const AWAY: Duration = Duration::from_secs(30);

/// How a folder is watched.
#[derive(Clone, Debug, PartialEq)]
pub struct Options {
    /// The folder.
    pub root: Root,
    /// Whether to make the folder whenever it is missing, instead of waiting for it.
    pub create: bool,
    /// How long a picture and its sidecar must lie unchanged.
    pub stable: Duration,
    /// How long they must lie unchanged if the picture is complete and its writer was seen to close it. Only a taker for
    /// which later words still count has this shorter than `stable`.
    pub early: Duration,
    /// How long they must lie unchanged where the folder is polled.
    pub poll_stable: Duration,
    /// The interval to poll it at, without events, whatever its file system.
    pub poll: Option<Duration>,
    /// The interval to poll it at where there are no events.
    pub default_poll: Duration,
    /// The interval between two scans of everything, in case events are lost.
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
    /// The state of the file.
    pub identity: Identity,
    /// The user that the file belongs to.
    pub owner: u32,
    /// Whether it has lain there for [`Options::early`] only, so that more words may come.
    pub early: bool,
}

/// What became of a picture that was handed over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fate {
    /// The picture was taken, and is looked at again only when it changes.
    Taken,
    /// The picture changed just now, and is waited for as if it were new.
    Changed,
    /// The picture came early and would be refused as it is; it is to lie for its whole time first.
    TooEarly,
    /// The picture cannot be taken for now, for a reason that the log already has or does not need.
    Waits,
    /// The picture cannot be taken for now, for this reason, which is for the log and holds no names.
    Later(String),
}

/// The receiver of complete pictures.
pub trait Take {
    /// Takes pictures, and returns one answer for each, in their order.
    fn take(&mut self, pictures: &[Ready]) -> impl Future<Output = Vec<Fate>>;

    /// Called when the way in which the folder is watched changes.
    fn report(&mut self, _report: &Report) {}
}

/// How a folder is being watched.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// The polling interval; `None` if the kernel reports changes.
    pub polled: Option<Duration>,
    /// Why it cannot be watched now, as a sentence.
    pub trouble: Option<String>,
    /// Whether that is because its path leads to a folder that may not be used.
    pub swapped: bool,
}

/// The metadata of a file, for comparison.
type Print = (u64, u64, i64, i64, i64);

/// The metadata of a picture and its sidecars.
#[derive(Clone, Debug, Default, PartialEq)]
struct Prints {
    /// The picture's own; `None` before the first look.
    picture: Option<Print>,
    beside: Vec<Print>,
}

struct Pending {
    prints: Prints,
    /// Since when the file is unchanged.
    since: Instant,
    /// Since when the file is known.
    first: Instant,
    writer: Writer,
    /// How often the file has changed.
    changes: u32,
    /// Whether it is to lie for its whole time, however complete it looks.
    whole_time: bool,
    due: Instant,
}

/// What is known of the program that writes a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Writer {
    /// It has the file open.
    Open,
    /// It was seen to close the file or to move it in.
    Closed,
    /// Nothing: the file was found by a scan, or its close may have been lost.
    Unseen,
}

/// A path below the root, shared by all the collections that hold it.
type Name = Rc<Path>;

/// The watcher of one folder. It blocks on the disk, so it needs a thread of its own.
pub struct Folder<T> {
    options: Options,
    taker: T,
    pending: HashMap<Name, Pending>,
    /// The names in `pending`, sorted by when to look at them.
    due: BTreeSet<(Instant, Name)>,
    /// Names that were taken, with their inodes, so that a poll can skip them. A rescan does not skip them.
    taken: HashMap<Name, u64>,
    /// Sidecars that have come, as the folder and the name without its ending: the pictures of these names are looked at
    /// again.
    late: HashSet<(PathBuf, OsString)>,
    /// When to look at them. Many sidecars that come together cost one look.
    late_due: Option<Instant>,
    /// Names that were already logged, so that the log names each problem once.
    told: HashSet<Name>,
    events: Option<Events>,
    /// Why there are no events.
    no_events: Option<NoEvents>,
    lock: Option<File>,
    /// Whether `done/` or `failed/` has gone, and perhaps the root with it: the kernel does not report the removal of a
    /// folder that is held open.
    shaken: bool,
    report: Option<Report>,
}

enum NoEvents {
    /// The configuration asks for polling.
    Asked,
    /// The file system does not report all changes.
    Unseen,
    /// The kernel's limit of watches is reached, which may change later.
    Limit,
}

impl<T: Take> Folder<T> {
    /// Returns a watcher, which reads nothing before [`Self::run`].
    pub fn new(options: Options, taker: T) -> Self {
        Self {
            options,
            taker,
            pending: HashMap::new(),
            due: BTreeSet::new(),
            taken: HashMap::new(),
            late: HashSet::new(),
            late_due: None,
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
        let mut storm = Storm::default();
        loop {
            let due = self.due.first().map_or(scan, |(due, _)| (*due).min(scan));
            let due = self.late_due.map_or(due, |late| late.min(due));
            let seen = tokio::select! {
                biased;
                () = stopped(&mut stop) => return,
                seen = next(&mut self.events, storm.quiet_until()) => Some(seen),
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
                    self.close_all();
                    if storm.begins() {
                        tracing::info!(
                            "file events of `{}` were lost; scanning all of it",
                            show(self.options.root.path())
                        );
                    }
                }
                there = if whole { self.begin() } else { self.scan(false) };
                if whole {
                    rescan = Instant::now() + self.options.rescan;
                }
                scan = self.next_scan(there, rescan);
            }
            self.hear_late();
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
        // A scan that took long is done less often.
        (Instant::now() + pause).min(rescan.max(Instant::now()))
    }

    fn poll(&self) -> Duration {
        self.options.poll.unwrap_or(self.options.default_poll)
    }

    fn stable(&self) -> Duration {
        if self.events.is_some() { self.options.stable } else { self.options.poll_stable }
    }

    /// Logs a problem of a name once; the name itself only at the debug level.
    fn once(&mut self, name: &Path, text: &str, detail: &str) {
        if self.told.insert(name.into()) {
            tracing::warn!("{text}");
            tracing::debug!("`{}`: {detail}", show(self.options.root.path().join(name)));
        }
    }
}

/// Waits for events, which are left alone for a while after a storm of them.
async fn next(events: &mut Option<Events>, quiet_until: Option<Instant>) -> io::Result<Vec<Seen>> {
    match events {
        Some(events) => {
            if let Some(until) = quiet_until {
                sleep_until(until).await;
            }
            events.next().await
        }
        None => std::future::pending().await,
    }
}

/// Storms of events, such as two folders that change names for ever. Each is answered by one scan of the folder, and the
/// pauses between two such scans grow while it lasts.
#[derive(Default)]
struct Storm {
    last: Option<Instant>,
    pause: Duration,
}

impl Storm {
    /// Takes note that events were lost. Returns false if they were lost a moment ago as well.
    fn begins(&mut self) -> bool {
        let now = Instant::now();
        let again = self.last.is_some_and(|last| now - last < CALM + self.pause);
        self.pause = if again { (self.pause * 2).min(LONGEST) } else { FIRST_QUIET };
        self.last = Some(now);
        !again
    }

    /// Returns until when events are left alone.
    fn quiet_until(&self) -> Option<Instant> {
        self.last.map(|last| last + self.pause)
    }
}

/// Runs a folder's watcher in a thread of its own, so that a slow or hanging disk delays nothing else. The receiver is
/// notified when the thread ends.
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
