//! Holds, which keep the model warm or pause the queue while a descriptor is open, and the pause that lasts until
//! `resume`.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::watch;

/// What a hold asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum What {
    /// The engine keeps its weights, however long it is idle.
    Warm,
    /// No job is started.
    Pause,
}

impl What {
    /// `warm` or `pause`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Warm => "warm",
            Self::Pause => "pause",
        }
    }

    /// Returns the kind with this name.
    pub fn from_name(name: &str) -> Option<Self> {
        [Self::Warm, Self::Pause].into_iter().find(|what| what.name() == name)
    }
}

/// One hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hold {
    /// What the hold asks for.
    pub what: What,
    /// The uid of the user who holds it.
    pub uid: u32,
    /// The program, as it names itself.
    pub who: String,
    /// Its reason.
    pub why: String,
}

/// All holds; cheap to clone.
#[derive(Clone)]
pub struct Holds {
    all: Arc<Mutex<(u64, BTreeMap<u64, Hold>)>>,
    paused: Arc<Mutex<Option<String>>>,
    changed: watch::Sender<()>,
}

impl Default for Holds {
    fn default() -> Self {
        Self { all: Arc::default(), paused: Arc::default(), changed: watch::Sender::new(()) }
    }
}

impl Holds {
    /// Adds a hold and returns its number, for [`Self::release`].
    pub fn take(&self, hold: Hold) -> u64 {
        let mut all = self.all.lock().unwrap_or_else(PoisonError::into_inner);
        all.0 += 1;
        let number = all.0;
        all.1.insert(number, hold);
        drop(all);
        self.changed.send_replace(());
        number
    }

    /// Ends a hold.
    pub fn release(&self, number: u64) {
        let removed = self.all.lock().unwrap_or_else(PoisonError::into_inner).1.remove(&number);
        if removed.is_some() {
            self.changed.send_replace(());
        }
    }

    /// Ends all holds of a kind, and returns them.
    pub fn end(&self, what: What) -> Vec<Hold> {
        let mut all = self.all.lock().unwrap_or_else(PoisonError::into_inner);
        let (ended, left) = std::mem::take(&mut all.1).into_iter().partition(|(_, hold)| hold.what == what);
        all.1 = left;
        drop(all);
        let ended: BTreeMap<u64, Hold> = ended;
        if !ended.is_empty() {
            self.changed.send_replace(());
        }
        ended.into_values().collect()
    }

    /// Returns whether anybody holds this.
    pub fn any(&self, what: What) -> bool {
        self.all.lock().unwrap_or_else(PoisonError::into_inner).1.values().any(|hold| hold.what == what)
    }

    /// Returns all holds, the oldest first.
    pub fn list(&self) -> Vec<Hold> {
        self.all.lock().unwrap_or_else(PoisonError::into_inner).1.values().cloned().collect()
    }

    /// Sets who paused the queue until somebody resumes it, as the end of the sentence "the queue is paused ...".
    pub fn set_paused(&self, who: Option<String>) {
        *self.paused.lock().unwrap_or_else(PoisonError::into_inner) = who;
    }

    /// Returns who paused the queue until somebody resumes it.
    pub fn paused_until_resumed(&self) -> Option<String> {
        self.paused.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Returns who paused the queue in any way, as the end of the sentence "the queue is paused ..."; `None` if nobody
    /// did.
    pub fn paused(&self) -> Option<String> {
        self.paused_until_resumed().or_else(|| {
            let hold = self.list().into_iter().find(|hold| hold.what == What::Pause)?;
            Some(format!("by `{}` of user {}: {}", hold.who, hold.uid, hold.why))
        })
    }

    /// Returns a receiver that is told of every hold that comes or goes.
    pub fn changes(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }
}
