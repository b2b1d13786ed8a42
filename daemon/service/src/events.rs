//! The running job's progress and the service's state, for everyone who shows them.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use animd_common::bus::ServiceState;
use animd_common::text::Text;
use animd_protocol::progress::Progress;
use tokio::sync::{Notify, mpsc, watch};

/// A change that the bus signals.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Change {
    /// A job was added.
    Added(u64),
    /// A job's state in the ledger changed.
    State(u64),
    /// A running job's progress changed: see [`Events::live`].
    Progress(u64),
}

/// The service as a whole.
#[derive(Clone, Debug, PartialEq)]
pub struct Status {
    /// What it does.
    pub state: ServiceState,
    /// The state as a sentence, with the remedy if there is something to do.
    pub text: Text,
}

/// The engine's last report on a job.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Live {
    /// Where it stands.
    pub progress: Progress,
    /// When the end is expected, in microseconds since the epoch.
    pub expected_end_us: Option<u64>,
}

/// Tells everybody of changes, and keeps the state that is shown; cheap to clone.
#[derive(Clone)]
pub struct Events {
    live: Arc<Mutex<HashMap<u64, Live>>>,
    changes: Arc<Mutex<Vec<mpsc::UnboundedSender<Change>>>>,
    /// The running jobs that somebody has cancelled and that have not ended.
    canceling: Arc<Mutex<HashSet<u64>>>,
    restarts: Arc<AtomicU64>,
    status: watch::Sender<Status>,
    notice: Arc<Mutex<Option<String>>>,
    /// A sentence of watched folders, which is added in the same way.
    folders: Arc<Mutex<Option<String>>>,
    /// Signalled when the queue has something new.
    pub queued: Arc<Notify>,
}

impl Default for Events {
    fn default() -> Self {
        let starting = Status { state: ServiceState::Starting, text: "the service is starting".into() };
        Self {
            live: Arc::default(),
            changes: Arc::default(),
            canceling: Arc::default(),
            restarts: Arc::default(),
            status: watch::Sender::new(starting),
            notice: Arc::default(),
            folders: Arc::default(),
            queued: Arc::default(),
        }
    }
}

impl Events {
    /// Returns a receiver that is told of every change from now on.
    pub fn listen(&self) -> mpsc::UnboundedReceiver<Change> {
        let (sender, receiver) = mpsc::unbounded_channel();
        self.changes.lock().unwrap_or_else(PoisonError::into_inner).push(sender);
        receiver
    }

    /// Tells a change to everyone who listens.
    pub fn tell(&self, change: Change) {
        if matches!(change, Change::Added(_) | Change::State(_)) {
            self.queued.notify_one();
        }
        let mut listeners = self.changes.lock().unwrap_or_else(PoisonError::into_inner);
        listeners.retain(|listener| listener.send(change).is_ok());
    }

    /// Counts an engine that died or hung and is replaced.
    pub fn engine_lost(&self) {
        self.restarts.fetch_add(1, Ordering::Relaxed);
    }

    /// Returns how often the engine was replaced because it died or hung, since the service was started.
    pub fn restarts(&self) -> u64 {
        self.restarts.load(Ordering::Relaxed)
    }

    /// Sets the running job's progress; `None` once the job no longer runs.
    pub fn set_live(&self, id: u64, live: Option<Live>) {
        let mut map = self.live.lock().unwrap_or_else(PoisonError::into_inner);
        match live {
            Some(live) => _ = map.insert(id, live),
            None => {
                map.remove(&id);
                self.canceling.lock().unwrap_or_else(PoisonError::into_inner).remove(&id);
            }
        }
    }

    /// Notes that a running job is being cancelled, until [`Self::set_live`] says that it no longer runs.
    pub fn set_canceling(&self, id: u64) {
        self.canceling.lock().unwrap_or_else(PoisonError::into_inner).insert(id);
        self.tell(Change::Progress(id));
    }

    /// Returns whether a running job is being cancelled.
    pub fn is_canceling(&self, id: u64) -> bool {
        self.canceling.lock().unwrap_or_else(PoisonError::into_inner).contains(&id)
    }

    /// Returns a job's progress, if it runs.
    pub fn live(&self, id: u64) -> Option<Live> {
        self.live.lock().unwrap_or_else(PoisonError::into_inner).get(&id).copied()
    }

    /// Sets the service's state.
    pub fn set_status(&self, state: ServiceState, text: impl Into<String>) {
        let mut text = text.into();
        for notice in [&self.notice, &self.folders] {
            if let Some(notice) = &*notice.lock().unwrap_or_else(PoisonError::into_inner) {
                text = format!("{text}; {notice}");
            }
        }
        let new = Status { state, text: text.into() };
        self.status.send_if_modified(|status| {
            let changed = *status != new;
            *status = new;
            changed
        });
    }

    /// Sets a sentence that is added to the state's from the next [`Self::set_status`] on; `None` removes it.
    pub fn set_notice(&self, notice: Option<String>) {
        *self.notice.lock().unwrap_or_else(PoisonError::into_inner) = notice;
        // The supervisor shows the state anew.
        self.queued.notify_one();
    }

    /// Sets a sentence about watched folders that are not used, in the same way as [`Self::set_notice`].
    pub fn set_folders(&self, notice: Option<String>) {
        let mut folders = self.folders.lock().unwrap_or_else(PoisonError::into_inner);
        if *folders != notice {
            *folders = notice;
            self.queued.notify_one();
        }
    }

    /// Returns the service's state, and its changes.
    pub fn status(&self) -> watch::Receiver<Status> {
        self.status.subscribe()
    }
}
