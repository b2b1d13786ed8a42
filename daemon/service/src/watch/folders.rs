//! The watchers of the service: one thread for each watched folder of the list.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use animd_common::config::Config;
use animd_common::files::show;
use animd_common::tasks::stopped;
use animd_common::watch::folder::{self, EARLY, Options, POLL_STABLE};
use animd_common::watch::{Origin, Watched};
use tokio::sync::{oneshot, watch};
use tokio::time::timeout;

use super::intake::{Intake, Recent};
use super::tell_of_swapped;
use crate::config::CurrentConfig;
use crate::delivery::Delivery;
use crate::error::{Error, Result};
use crate::queue::Queue;
use crate::store::Watches;

/// How long the service waits for a watcher that should stop: its disk may hang.
const PATIENCE: Duration = Duration::from_secs(2);

/// The watchers of all watched folders.
pub struct Folders {
    config: CurrentConfig,
    watches: Watches,
    queue: Queue,
    delivery: Delivery,
    running: HashMap<PathBuf, Running>,
}

struct Running {
    watched: Arc<Watched>,
    options: Options,
    stop: watch::Sender<bool>,
    end: oneshot::Receiver<()>,
}

impl Running {
    async fn end(self) {
        _ = self.stop.send(true);
        _ = timeout(PATIENCE, self.end).await;
    }
}

impl Folders {
    /// Returns the watchers, which watch nothing before [`Self::run`].
    pub fn new(config: CurrentConfig, watches: Watches, queue: Queue, delivery: Delivery) -> Self {
        Self { config, watches, queue, delivery, running: HashMap::new() }
    }

    /// Watches the folders of the list until `stop` turns true.
    pub async fn run(mut self, mut stop: watch::Receiver<bool>) {
        let mut changes = self.watches.changes();
        loop {
            changes.mark_unchanged();
            self.follow().await;
            tokio::select! {
                () = stopped(&mut stop) => break,
                Ok(()) = changes.changed() => {}
            }
        }
        for running in self.running.values() {
            _ = running.stop.send(true);
        }
        for (_, running) in self.running.drain() {
            running.end().await;
        }
    }

    /// Ends and starts watchers to follow the list and the configuration.
    async fn follow(&mut self) {
        let config = self.config.get();
        let wanted: HashMap<PathBuf, Arc<Watched>> =
            self.watches.all().into_iter().map(|watched| (watched.path.clone(), watched)).collect();
        let stale: Vec<PathBuf> = self
            .running
            .iter()
            .filter(|(path, running)| {
                wanted.get(*path).is_none_or(|new| {
                    *new != running.watched || self.options(new, &config) != running.options
                })
            })
            .map(|(path, _)| path.clone())
            .collect();
        for path in stale {
            if let Some(running) = self.running.remove(&path) {
                tracing::info!("`{}` is watched no longer, or otherwise", show(&path));
                running.end().await;
                self.watches.report(&path, None);
                tell_of_swapped(&self.watches, &self.queue.events);
            }
        }
        for (path, watched) in wanted {
            if self.running.contains_key(&path) {
                continue;
            }
            match self.start(watched, &config) {
                Ok(running) => _ = self.running.insert(path, running),
                Err(e) => tracing::error!("`{}` cannot be watched: {e}", show(&path)),
            }
        }
    }

    fn start(&self, watched: Arc<Watched>, config: &Config) -> Result<Running> {
        let (stop, stopped) = watch::channel(false);
        let options = self.options(&watched, config);
        let intake = Intake {
            config: self.config.clone(),
            watches: self.watches.clone(),
            queue: self.queue.clone(),
            delivery: self.delivery.clone(),
            watched: watched.clone(),
            recent: Recent::default(),
        };
        let end = folder::spawn(options.clone(), intake, stopped)
            .map_err(Error::file("start a thread for", &watched.path))?;
        Ok(Running { watched, options, stop, end })
    }

    fn options(&self, watched: &Watched, config: &Config) -> Options {
        let own = watched.stable_seconds.map(Duration::from_secs_f64);
        let stable = config.inbox.stable();
        Options {
            root: self.watches.root(&watched.path),
            create: watched.origin == Origin::Inbox,
            stable: own.unwrap_or(stable),
            early: EARLY,
            poll_stable: own.unwrap_or(stable.max(POLL_STABLE)),
            poll: watched.poll_seconds.map(Duration::from_secs_f64),
            default_poll: config.inbox.poll(),
            rescan: config.inbox.rescan(),
        }
    }
}
