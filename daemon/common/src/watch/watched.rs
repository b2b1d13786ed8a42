//! A folder that somebody wants watched.

use std::path::PathBuf;

use crate::places::{Place, Role};

/// Who wants a folder watched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// The folder is the inbox.
    Inbox,
    /// A `[[watch]]` in the configuration names the folder.
    Configured,
    /// This user added the folder over the bus.
    Added(u32),
}

impl Origin {
    /// Returns `inbox`, `configuration` or `bus`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Inbox => "inbox",
            Self::Configured => "configuration",
            Self::Added(_) => "bus",
        }
    }
}

/// A watched folder.
#[derive(Clone, Debug, PartialEq)]
pub struct Watched {
    /// The folder.
    pub path: PathBuf,
    /// Where its videos go; `None` is `folders.outbox`.
    pub outbox: Option<PathBuf>,
    /// Seconds that a picture must lie unchanged; `None` is `inbox.stable_seconds`.
    pub stable_seconds: Option<f64>,
    /// The interval to poll it at, in seconds, without events; `None` uses events where there are any.
    pub poll_seconds: Option<f64>,
    /// Who wants it.
    pub origin: Origin,
}

impl Watched {
    /// Returns the folder itself, and its outbox if it has one.
    pub fn places(&self) -> Vec<Place> {
        let [path, outbox] = match self.origin {
            Origin::Inbox => ["folders.inbox", "folders.outbox"],
            Origin::Configured => ["watch.path", "watch.outbox"],
            Origin::Added(_) => ["animctl folder add", "animctl folder add --outbox"],
        };
        let outbox = self.outbox.as_ref().map(|path| Place::new(outbox, path, Role::Outbox));
        [Place::new(path, &self.path, Role::Inbox)].into_iter().chain(outbox).collect()
    }
}
