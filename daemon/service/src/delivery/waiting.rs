//! Videos that wait for a missing outbox, such as one on a disk that is not mounted.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use animd_common::tasks::stopped;
use tokio::sync::{Notify, watch};
use tokio::time::sleep;

use super::Delivery;

/// The time between two looks for a missing outbox.
pub const AWAY: Duration = Duration::from_secs(30);

/// Finished jobs that could not be delivered: their numbers, and whoever waits for the first. Cheap to clone.
#[derive(Clone, Default)]
pub struct Waiting {
    jobs: Arc<Mutex<BTreeSet<u64>>>,
    some: Arc<Notify>,
}

impl Waiting {
    /// Adds a job. Returns false if it waits already.
    pub(super) fn insert(&self, id: u64) -> bool {
        let new = self.jobs.lock().unwrap_or_else(PoisonError::into_inner).insert(id);
        self.some.notify_one();
        new
    }

    pub(super) fn remove(&self, id: u64) {
        self.jobs.lock().unwrap_or_else(PoisonError::into_inner).remove(&id);
    }

    fn all(&self) -> Vec<u64> {
        self.jobs.lock().unwrap_or_else(PoisonError::into_inner).iter().copied().collect()
    }
}

/// Delivers videos whose outbox was missing: looks for it again after `pause`, until `stop` turns true.
pub async fn deliver_waiting(delivery: Delivery, pause: Duration, mut stop: watch::Receiver<bool>) {
    loop {
        tokio::select! {
            // The service does not wake up while no video waits.
            () = async { delivery.waiting.some.notified().await; sleep(pause).await } => {}
            () = stopped(&mut stop) => return,
        }
        for id in delivery.waiting.all() {
            if let Err(e) = delivery.settle(id).await {
                tracing::warn!(job = id, "the video of job {id} still waits: {e}");
                delivery.waiting.insert(id);
            }
        }
    }
}
