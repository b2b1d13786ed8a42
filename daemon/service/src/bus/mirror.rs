//! Keeps the bus in step with the ledger and the running job: signals and properties.

use std::borrow::Cow;
use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use animd_common::tasks::stopped;
use animd_common::text::Text;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep_until};
use zbus::names::InterfaceName;
use zbus::object_server::SignalEmitter;
use zbus::{Connection, Variant, fdo};

use super::{Facts, Hub, Manager, PATH, object_path, plan};
use crate::error::Result;
use crate::events::Change;

/// The least time between two signals of a value that changes steadily: a job's progress, the length of the queue.
const PACE: Duration = Duration::from_millis(250);
/// How long an ended job's object stays.
const STAY: Duration = Duration::from_secs(600);
/// The most objects of ended jobs. When there are more, the oldest of them are removed early.
const MOST_ENDED: usize = 2000;
/// The most changes that one query to the ledger covers.
const BATCH: usize = 256;

const MANAGER: &str = "org.animd.Animd1.Manager";
const JOB: &str = "org.animd.Animd1.Job";

struct Mirror {
    connection: Connection,
    hub: Arc<Hub>,
    /// The jobs whose progress is to be signalled.
    dirty: HashSet<u64>,
    /// The objects of ended jobs by the time of their removal, and below the same objects by their numbers.
    leaving: BTreeSet<(Instant, u64)>,
    leaves: HashMap<u64, Instant>,
    /// The length of the queue that was signalled last.
    queued: u32,
    paused: bool,
    profile: Text,
    gpu: HashMap<String, zbus::OwnedVariant>,
}

/// Signals every change on the bus until no change can come any more, or `stop` turns true.
pub async fn mirror(
    connection: Connection,
    hub: Arc<Hub>,
    mut changes: mpsc::UnboundedReceiver<Change>,
    mut stop: watch::Receiver<bool>,
) {
    let mut status = hub.events.status();
    let mut holds = hub.holds.changes();
    let mut profiles = hub.profiles.changes();
    let mut mirror = Mirror {
        queued: hub.cards.waiting(),
        paused: hub.holds.paused().is_some(),
        profile: plan::profile(&hub.profiles),
        gpu: plan::gpu(&hub.profiles),
        connection,
        hub: hub.clone(),
        dirty: HashSet::new(),
        leaving: BTreeSet::new(),
        leaves: HashMap::new(),
    };
    let mut next_flush = Instant::now();
    let mut batch = Vec::with_capacity(BATCH);
    loop {
        let far = Instant::now() + Duration::from_secs(3600);
        let leave = mirror.leaving.first().map_or(far, |(at, _)| *at);
        let flush = if mirror.is_clean() { far } else { next_flush };
        let done = tokio::select! {
            // Neither progress nor the removal of an object may wait for a flood of new jobs.
            biased;
            () = stopped(&mut stop) => return,
            () = sleep_until(flush) => {
                next_flush = Instant::now() + PACE;
                mirror.flush().await
            }
            () = sleep_until(leave) => mirror.leave().await,
            Ok(()) = status.changed() => mirror.status().await,
            Ok(()) = holds.changed() => mirror.status().await,
            Ok(()) = profiles.changed() => mirror.status().await,
            () = hub.look.notified() => mirror.status().await,
            count = changes.recv_many(&mut batch, BATCH) => {
                if count == 0 {
                    return;
                }
                mirror.take(std::mem::take(&mut batch)).await
            }
        };
        if let Err(e) = done {
            tracing::warn!("cannot announce a change on the bus: {e}");
        }
    }
}

impl Mirror {
    fn emitter(&self) -> Result<SignalEmitter<'static>> {
        Ok(SignalEmitter::new(&self.connection, PATH)?)
    }

    fn is_clean(&self) -> bool {
        self.dirty.is_empty() && self.queued == self.hub.cards.waiting()
    }

    /// Signals a batch of changes, with one query to the ledger for all of them.
    async fn take(&mut self, batch: Vec<Change>) -> Result<()> {
        let mut added = HashSet::new();
        let mut ids = Vec::new();
        let mut seen = HashSet::new();
        for change in batch {
            let id = match change {
                Change::Progress(id) => {
                    self.dirty.insert(id);
                    continue;
                }
                Change::Added(id) => {
                    added.insert(id);
                    id
                }
                Change::State(id) => id,
            };
            if seen.insert(id) {
                ids.push(id);
            }
        }
        // Jobs that came over the bus have their objects already: no caller waits for a ledger that a flood keeps busy.
        let mut told = HashSet::new();
        for id in ids.iter().copied().filter(|id| added.contains(id) && self.hub.cards.has(*id)) {
            Manager::job_new(&self.emitter()?, id, object_path(id).into()).await?;
            told.insert(id);
        }
        for (id, job) in self.jobs(ids).await? {
            let Some(job) = job else {
                self.forgotten(id).await?;
                continue;
            };
            if added.contains(&id) && !told.contains(&id) {
                self.hub.serve(&self.connection, &job).await?;
                Manager::job_new(&self.emitter()?, id, object_path(id).into()).await?;
            }
            self.update(&job, added.contains(&id)).await?;
        }
        Ok(())
    }

    async fn jobs(&self, ids: Vec<u64>) -> Result<Vec<(u64, Option<crate::store::ledger::Job>)>> {
        self.hub.ledger.call(move |db| ids.into_iter().map(|id| Ok((id, db.job(id)?))).collect()).await
    }

    /// Brings one object up to date and signals what changed, its end included. `new` means that the job was not
    /// signalled before.
    async fn update(&mut self, job: &crate::store::ledger::Job, new: bool) -> Result<()> {
        let id = job.id;
        self.dirty.remove(&id);
        let facts = Facts::new(job, self.hub.events.live(id));
        let Some(before) = self.hub.cards.replace(facts.clone()) else {
            // The object has been removed already, or somebody looks at an old job that had none.
            if facts.state.is_open() {
                self.hub.serve(&self.connection, job).await?;
            }
            return Ok(());
        };
        let emitter = SignalEmitter::new(&self.connection, object_path(id))?;
        self.tell(&emitter, JOB, facts.changed(&before)).await?;
        if facts.state.is_open() {
            return Ok(());
        }
        self.leaves_later(id).await?;
        if before.state.is_open() || new {
            let path = object_path(id);
            Manager::job_removed(&self.emitter()?, id, path.into(), facts.state.name()).await?;
        }
        Ok(())
    }

    /// Removes at once the object of a job whose row is gone.
    async fn forgotten(&mut self, id: u64) -> Result<()> {
        self.dirty.remove(&id);
        if let Some(at) = self.leaves.remove(&id) {
            self.leaving.remove(&(at, id));
        }
        Ok(self.hub.withdraw(&self.connection, id).await?)
    }

    /// Plans the removal of an ended job's object.
    async fn leaves_later(&mut self, id: u64) -> Result<()> {
        let at = Instant::now() + STAY;
        if let Some(before) = self.leaves.insert(id, at) {
            self.leaving.remove(&(before, id));
        }
        self.leaving.insert((at, id));
        match self.leaving.first().copied() {
            Some((_, first)) if self.leaving.len() > MOST_ENDED => self.forgotten(first).await,
            _ => Ok(()),
        }
    }

    async fn leave(&mut self) -> Result<()> {
        let now = Instant::now();
        while let Some((_, id)) = self.leaving.first().copied().filter(|(at, _)| *at <= now) {
            self.forgotten(id).await?;
        }
        Ok(())
    }

    async fn status(&mut self) -> Result<()> {
        let hub = &self.hub;
        let status = hub.events.status().borrow().clone();
        let mut changed =
            HashMap::from([("State", status.state.name().into()), ("StateText", status.text.into())]);
        let (paused, profile, gpu) =
            (hub.holds.paused().is_some(), plan::profile(&hub.profiles), plan::gpu(&hub.profiles));
        if self.paused != paused {
            self.paused = paused;
            changed.insert("Paused", paused.into());
        }
        if self.profile != profile {
            changed.insert("Profile", profile.clone().into());
            self.profile = profile;
        }
        if self.gpu != gpu {
            changed.insert("Gpu", Variant::new(gpu.clone()));
            self.gpu = gpu;
        }
        self.tell(&self.emitter()?, MANAGER, changed).await
    }

    async fn flush(&mut self) -> Result<()> {
        let dirty = std::mem::take(&mut self.dirty).into_iter().collect();
        for (_, job) in self.jobs(dirty).await? {
            if let Some(job) = job {
                self.update(&job, false).await?;
            }
        }
        let queued = self.hub.cards.waiting();
        if queued != self.queued {
            self.queued = queued;
            self.tell(&self.emitter()?, MANAGER, HashMap::from([("Queued", queued.into())])).await?;
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
