//! Keeps the bus in step with the ledger and the running job: signals and properties.

use std::borrow::Cow;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep_until};
use zbus::names::InterfaceName;
use zbus::object_server::SignalEmitter;
use zbus::{Connection, Variant, fdo};

use super::{Facts, JobObject, Manager, PATH, object_path, serve};
use crate::Result;
use crate::board::{Change, stopped};
use crate::delivery::Desk;
use crate::wishes::Wishes;

/// Between two signals of one job's progress.
const PACE: Duration = Duration::from_millis(250);
/// How long an ended job's object stays.
const STAY: Duration = Duration::from_secs(600);

struct Mirror {
    connection: Connection,
    desk: Arc<Desk>,
    wishes: Wishes,
    /// What the bus was told last.
    shown: HashMap<u64, Facts>,
    /// Jobs whose progress is to be told.
    dirty: HashSet<u64>,
    /// Objects of ended jobs and when they go.
    leaving: Vec<(Instant, u64)>,
    queued: u32,
}

/// Tells the bus every change until nobody makes changes any more, or `stop` turns true.
pub async fn mirror(
    connection: Connection,
    desk: Arc<Desk>,
    wishes: Wishes,
    mut changes: mpsc::UnboundedReceiver<Change>,
    mut stop: watch::Receiver<bool>,
) {
    let mut status = desk.board.status();
    let mut mirror = Mirror {
        connection,
        desk,
        wishes,
        shown: HashMap::new(),
        dirty: HashSet::new(),
        leaving: Vec::new(),
        queued: u32::MAX,
    };
    if let Err(e) = mirror.begin().await {
        tracing::warn!("the open jobs cannot be read: {e}");
    }
    let mut next_flush = Instant::now();
    loop {
        let leave = mirror.leaving.iter().map(|(at, _)| *at).min();
        let far = Instant::now() + Duration::from_secs(3600);
        let flush = if mirror.dirty.is_empty() { far } else { next_flush };
        let done = tokio::select! {
            biased;
            change = changes.recv() => match change {
                Some(Change::Added(id)) => mirror.added(id).await,
                Some(Change::State(id)) => mirror.state(id).await,
                Some(Change::Progress(id)) => {
                    mirror.dirty.insert(id);
                    Ok(())
                }
                None => return,
            },
            Ok(()) = status.changed() => mirror.status().await,
            () = sleep_until(flush) => {
                next_flush = Instant::now() + PACE;
                mirror.flush().await
            }
            () = sleep_until(leave.unwrap_or(far)) => mirror.leave().await,
            () = stopped(&mut stop) => return,
        };
        if let Err(e) = done {
            tracing::warn!("the bus could not be told of a change: {e}");
        }
    }
}

impl Mirror {
    fn emitter(&self) -> Result<SignalEmitter<'static>> {
        Ok(SignalEmitter::new(&self.connection, PATH)?)
    }

    /// What the bus knows already: the jobs that were open when it was joined.
    async fn begin(&mut self) -> Result<()> {
        let (jobs, queue) = self.desk.ledger.call(|db| Ok((db.open_jobs()?, db.queue()?))).await?;
        self.shown = jobs.iter().map(|job| (job.id, Facts::new(job, None, &queue))).collect();
        Ok(())
    }

    async fn facts(&self, id: u64) -> Result<Option<(Facts, Vec<u64>)>> {
        let found = self.desk.ledger.call(move |db| Ok(db.job(id)?.zip(Some(db.queue()?)))).await?;
        Ok(found.map(|(job, queue)| (Facts::new(&job, self.desk.board.live(id), &queue), queue)))
    }

    async fn added(&mut self, id: u64) -> Result<()> {
        serve(&self.connection, &self.desk, &self.wishes, id).await?;
        Manager::job_new(&self.emitter()?, id, object_path(id).into()).await?;
        let Some((facts, queue)) = self.facts(id).await? else { return Ok(()) };
        // As an open job, so that an end that came meanwhile is told as one.
        self.shown.insert(id, Facts { state: crate::ledger::State::Queued, ..facts });
        self.update(id).await?;
        self.positions(&queue).await
    }

    async fn state(&mut self, id: u64) -> Result<()> {
        self.update(id).await?;
        let queue = self.desk.ledger.call(|db| db.queue()).await?;
        self.positions(&queue).await
    }

    /// Brings one object up to date and tells what changed, the end included.
    async fn update(&mut self, id: u64) -> Result<()> {
        self.dirty.remove(&id);
        let Some((facts, _)) = self.facts(id).await? else { return Ok(()) };
        // It may have left already, or never been there.
        serve(&self.connection, &self.desk, &self.wishes, id).await?;
        let object = self.connection.object_server().interface::<_, JobObject>(object_path(id)).await?;
        let before = std::mem::replace(&mut object.get_mut().await.facts, facts.clone());
        let known = self.shown.insert(id, facts.clone());
        self.tell(object.signal_emitter(), "org.animd.Animd1.Job", facts.changed(&before)).await?;
        if !facts.state.is_open() && known.as_ref().is_none_or(|known| known.state.is_open()) {
            self.leaving.push((Instant::now() + STAY, id));
            // An old job that was only looked up ended long ago.
            if known.is_some() || before.state.is_open() {
                Manager::job_removed(&self.emitter()?, id, object_path(id).into(), facts.state.name())
                    .await?;
            }
        }
        Ok(())
    }

    async fn positions(&mut self, queue: &[u64]) -> Result<()> {
        for (at, id) in queue.iter().enumerate() {
            if self.shown.get(id).is_some_and(|facts| facts.position != at as u32 + 1) {
                self.update(*id).await?;
            }
        }
        let queued = queue.len() as u32;
        if queued != self.queued {
            self.queued = queued;
            let manager = self.connection.object_server().interface::<_, Manager>(PATH).await?;
            manager.get_mut().await.queued = queued;
            let changed = HashMap::from([("Queued", Variant::from(queued))]);
            self.tell(manager.signal_emitter(), "org.animd.Animd1.Manager", changed).await?;
        }
        Ok(())
    }

    async fn status(&self) -> Result<()> {
        let status = self.desk.board.status().borrow().clone();
        let changed = HashMap::from([("State", status.state.into()), ("StateText", status.text.into())]);
        self.tell(&self.emitter()?, "org.animd.Animd1.Manager", changed).await
    }

    async fn flush(&mut self) -> Result<()> {
        for id in std::mem::take(&mut self.dirty) {
            self.update(id).await?;
        }
        Ok(())
    }

    async fn leave(&mut self) -> Result<()> {
        let now = Instant::now();
        let (gone, stay) = self.leaving.iter().partition(|(at, _)| *at <= now);
        self.leaving = stay;
        let gone: Vec<(Instant, u64)> = gone;
        for (_, id) in gone {
            self.shown.remove(&id);
            self.connection.object_server().remove::<JobObject, _>(object_path(id)).await?;
        }
        Ok(())
    }

    async fn tell(
        &self,
        emitter: &SignalEmitter<'_>,
        interface: &'static str,
        changed: HashMap<&'static str, Variant<'_>>,
    ) -> Result<()> {
        if changed.is_empty() {
            return Ok(());
        }
        let interface = InterfaceName::from_static_str_unchecked(interface);
        fdo::Properties::properties_changed(emitter, interface, changed, Cow::Borrowed(&[])).await?;
        Ok(())
    }
}
