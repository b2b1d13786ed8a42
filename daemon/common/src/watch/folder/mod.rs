//! One watched folder with everything below it: finds pictures, waits until they are complete, and hands them over.

mod pending;
mod scan;
#[cfg(test)]
mod tests;

use std::collections::{BTreeSet, HashMap, HashSet};
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
    /// How long they must lie unchanged where the folder is polled.
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
    /// It cannot be taken yet, for this reason, which is for the log and has no names in it.
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
                    self.close_all();
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

    /// Says something of a name, once; the name itself only where it is debugged.
    fn once(&mut self, name: &Path, text: &str, detail: &str) {
        if self.told.insert(name.into()) {
            tracing::warn!("{text}");
            tracing::debug!("`{}`: {detail}", show(self.options.root.path().join(name)));
        }
    }
}

async fn next(events: &mut Option<Events>) -> io::Result<Vec<Seen>> {
    match events {
        Some(events) => events.next().await,
        None => std::future::pending().await,
    }
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
