//! What is going on right now: the running job's progress and the service's state, for everyone who shows it.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use animd_protocol::progress::Progress;
use tokio::sync::{Notify, mpsc, watch};

use crate::text::Text;

/// Something that the bus tells.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Change {
    /// A job is new.
    Added(u64),
    /// A job's state in the ledger changed.
    State(u64),
    /// A running job came further: see [`Board::live`].
    Progress(u64),
}

/// The service as a whole.
#[derive(Clone, Debug, PartialEq)]
pub struct Status {
    /// `starting`, `loading`, `idle`, `busy`, `paused`, `no-weights`, `no-gpu`, `no-engine`, `stopping`.
    pub state: &'static str,
    /// The same as a sentence, with the remedy if there is something to do.
    pub text: Text,
}

/// What the engine said last of a job.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Live {
    /// Where it stands.
    pub progress: Progress,
    /// When the end is expected, in microseconds since the epoch.
    pub expected_end_us: Option<u64>,
}

/// A shared board; cheap to clone.
#[derive(Clone)]
pub struct Board {
    live: Arc<Mutex<HashMap<u64, Live>>>,
    changes: Arc<Mutex<Vec<mpsc::UnboundedSender<Change>>>>,
    restarts: Arc<AtomicU64>,
    status: watch::Sender<Status>,
    notice: Arc<Mutex<Option<String>>>,
    /// The same of watched folders.
    folders: Arc<Mutex<Option<String>>>,
    paused: Arc<Mutex<Option<String>>>,
    /// Signalled when the queue has something new.
    pub queued: Arc<Notify>,
}

impl Default for Board {
    fn default() -> Self {
        let starting = Status { state: "starting", text: "the service is starting".into() };
        Self {
            live: Arc::default(),
            changes: Arc::default(),
            restarts: Arc::default(),
            status: watch::Sender::new(starting),
            notice: Arc::default(),
            folders: Arc::default(),
            paused: Arc::default(),
            queued: Arc::default(),
        }
    }
}

impl Board {
    /// From here on changes are told to the returned receiver, too.
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

    /// The engine died or hung, and is replaced.
    pub fn engine_lost(&self) {
        self.restarts.fetch_add(1, Ordering::Relaxed);
    }

    /// How often the engine was replaced because it died or hung, since the service was started.
    pub fn restarts(&self) -> u64 {
        self.restarts.load(Ordering::Relaxed)
    }

    /// The running job's progress; `None` once it no longer runs.
    pub fn set_live(&self, id: u64, live: Option<Live>) {
        let mut map = self.live.lock().unwrap_or_else(PoisonError::into_inner);
        match live {
            Some(live) => _ = map.insert(id, live),
            None => _ = map.remove(&id),
        }
    }

    /// A job's progress, if it runs.
    pub fn live(&self, id: u64) -> Option<Live> {
        self.live.lock().unwrap_or_else(PoisonError::into_inner).get(&id).copied()
    }

    /// Who paused the queue until somebody resumes it; see [`Desk::pause`](crate::delivery::Desk::pause).
    pub fn set_paused(&self, who: Option<String>) {
        *self.paused.lock().unwrap_or_else(PoisonError::into_inner) = who;
        self.queued.notify_one();
    }

    /// The same. Holds pause the queue as well: see [`Desk::paused`](crate::delivery::Desk::paused).
    pub fn paused(&self) -> Option<String> {
        self.paused.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Sets the service's state.
    pub fn set_status(&self, state: &'static str, text: impl Into<String>) {
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

    /// A sentence that is added to the state's from the next [`Self::set_status`] on, until it is taken back.
    pub fn set_notice(&self, notice: Option<String>) {
        *self.notice.lock().unwrap_or_else(PoisonError::into_inner) = notice;
        // The supervisor shows the state anew.
        self.queued.notify_one();
    }

    /// As [`Self::set_notice`], of watched folders that are not used.
    pub fn set_folders(&self, notice: Option<String>) {
        let mut folders = self.folders.lock().unwrap_or_else(PoisonError::into_inner);
        if *folders != notice {
            *folders = notice;
            self.queued.notify_one();
        }
    }

    /// The service's state, and its changes.
    pub fn status(&self) -> watch::Receiver<Status> {
        self.status.subscribe()
    }
}

/// Waits until the service is to stop, or its owner is gone.
pub async fn stopped(stop: &mut watch::Receiver<bool>) {
    _ = stop.wait_for(|stop| *stop).await;
}
