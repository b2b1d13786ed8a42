//! Videos that wait for an outbox that is missing or takes nothing now, such as one on a disk that is not mounted.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use animd_common::tasks::stopped;
use tokio::sync::{Notify, watch};
use tokio::time::sleep;

use super::Delivery;

/// The first pause before an outbox that took nothing is tried again; it doubles each time.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
/// The longest of these pauses.
pub const AWAY: Duration = Duration::from_secs(30);

/// Finished jobs that could not be delivered, with the reasons, and whoever waits for the first. Cheap to clone.
#[derive(Clone, Default)]
pub struct Waiting {
    jobs: Arc<Mutex<BTreeMap<u64, String>>>,
    some: Arc<Notify>,
}

impl Waiting {
    /// Adds a job, whose delivery failed for a reason without names of files. Returns false if it waits already.
    pub(super) fn insert(&self, id: u64, why: String) -> bool {
        let new = self.lock().insert(id, why).is_none();
        self.some.notify_one();
        new
    }

    /// Removes a job. Returns false if it did not wait.
    pub(super) fn remove(&self, id: u64) -> bool {
        self.lock().remove(&id).is_some()
    }

    /// Returns whether a job waits.
    pub fn has(&self, id: u64) -> bool {
        self.lock().contains_key(&id)
    }

    /// Returns the jobs that wait.
    fn all(&self) -> Vec<u64> {
        self.lock().keys().copied().collect()
    }

    /// Returns a sentence about the videos that wait, if any do.
    pub fn sentence(&self) -> Option<String> {
        let jobs = self.lock();
        let (id, why) = jobs.first_key_value()?;
        Some(match jobs.len() {
            1 => format!("the finished video of job {id} waits for its folder: {why}"),
            n => format!("{n} finished videos wait for their folders; that of job {id}: {why}"),
        })
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<u64, String>> {
        self.jobs.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Delivers videos whose outbox took nothing: tries it again after pauses that grow up to `longest`, until `stop` turns
/// true.
pub async fn deliver_waiting(delivery: Delivery, longest: Duration, mut stop: watch::Receiver<bool>) {
    let first = FIRST_PAUSE.min(longest);
    let mut pause = first;
    loop {
        tokio::select! {
            // The service does not wake up while no video waits.
            () = async { delivery.waiting.some.notified().await; sleep(pause).await } => {}
            () = stopped(&mut stop) => return,
        }
        for id in delivery.waiting.all() {
            if let Err(e) = delivery.settle(id).await {
                tracing::warn!(job = id, "the video of job {id} still waits: {e}");
                delivery.waiting.insert(id, "the ledger takes no entry now".into());
            }
        }
        pause = if delivery.waiting.all().is_empty() { first } else { (pause * 2).min(longest) };
    }
}
