//! All watched folders of the service: each in its thread, following the list.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{oneshot, watch};
use tokio::time::timeout;

use super::folder::{self, Options, POLL_STABLE};
use super::intake::Intake;
use super::watches::{Origin, Watched};
use crate::Result;
use crate::board::stopped;
use crate::config::Config;
use crate::delivery::Desk;
use crate::files::show;

/// How long a watcher that is to stop is waited for: its disk may hang.
const PATIENCE: Duration = Duration::from_secs(2);

/// The watchers.
pub struct Folders {
    desk: Arc<Desk>,
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
    /// Nothing is watched before [`Self::run`].
    pub fn new(desk: Arc<Desk>) -> Self {
        Self { desk, running: HashMap::new() }
    }

    /// Watches until `stop` turns true.
    pub async fn run(mut self, mut stop: watch::Receiver<bool>) {
        let mut changes = self.desk.watches.changes();
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

    /// Ends and starts watchers as the list and the configuration are now.
    async fn follow(&mut self) {
        let config = self.desk.config();
        let wanted: HashMap<PathBuf, Arc<Watched>> =
            self.desk.watches.all().into_iter().map(|watched| (watched.path.clone(), watched)).collect();
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
                self.desk.watches.report(&path, None);
                self.desk.tell_of_swapped();
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
        let intake = Intake::new(self.desk.clone(), watched.clone());
        let end = folder::spawn(options.clone(), intake, stopped)
            .map_err(crate::Error::file("start a thread for", &watched.path))?;
        Ok(Running { watched, options, stop, end })
    }

    fn options(&self, watched: &Watched, config: &Config) -> Options {
        let own = watched.stable_seconds.map(Duration::from_secs_f64);
        let stable = config.inbox.stable();
        Options {
            root: self.desk.watches.root(&watched.path),
            create: watched.origin == Origin::Inbox,
            stable: own.unwrap_or(stable),
            poll_stable: own.unwrap_or(stable.max(POLL_STABLE)),
            poll: watched.poll_seconds.map(Duration::from_secs_f64),
            default_poll: config.inbox.poll(),
            rescan: config.inbox.rescan(),
        }
    }
}
