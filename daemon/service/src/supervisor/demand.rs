//! What decides whether there is an engine: work, cancels, unloading, and the machine's sleep.

use std::time::Duration;

use animd_protocol::ErrorCode;
use animd_protocol::messages::ToEngine;
use tokio::time::Instant;

use super::Supervisor;
use super::state::{Absence, Loss, Stop, Then};
use super::unsettled::Unsettled;
use crate::error::{Error, Result};
use crate::holds::What;
use crate::store::ledger::{Ended, State};

impl Supervisor {
    /// Returns whether there should be an engine. There should be none while the machine sleeps, and after unloading
    /// only when there is something to do.
    pub(super) async fn is_wanted(&self) -> Result<bool> {
        match self.engine.absence() {
            Some(Absence::Asleep { .. }) => Ok(false),
            Some(Absence::Unloaded) if !self.tools.holds.any(What::Warm) => self.has_work().await,
            _ => Ok(true),
        }
    }

    /// Returns whether a job waits, and nobody has paused the queue.
    pub(super) async fn has_work(&self) -> Result<bool> {
        Ok(self.tools.holds.paused().is_none() && self.tools.ledger.call(|db| db.waits()).await?)
    }

    pub(super) async fn cancel(&mut self, id: u64, text: String) -> Result<bool> {
        let grace = Duration::from_secs(self.tools.config.get().engine.cancel_seconds);
        if self.release(id).await {
            return Ok(true);
        }
        if self.leaves_its_video(id) {
            self.tools.events.set_live(id, None);
            self.conclude(id, Ended::Canceled { text }).await;
            return Ok(true);
        }
        let Some(running) = self.engine.job_mut(id) else {
            return self.cancel_queued(id, text).await;
        };
        let told = match &mut running.stop {
            Some(Stop { then: Then::Cancel(_), .. }) => return Ok(true),
            Some(stop) => {
                stop.then = Then::Cancel(text);
                true
            }
            stop => {
                *stop = Some(Stop { then: Then::Cancel(text), deadline: Instant::now() + grace });
                false
            }
        };
        tracing::info!(job = id, "job {id} is being cancelled");
        self.tools.events.set_canceling(id);
        if !told {
            self.tell_to_stop(id).await;
        }
        Ok(true)
    }

    /// Tells the engine to stop its job.
    pub(super) async fn tell_to_stop(&mut self, id: u64) {
        if let Some(engine) = self.engine.engine_mut()
            && let Err(e) = engine.send(&ToEngine::Cancel { job: id }).await
        {
            self.lost(Loss::Deaf(e)).await;
        }
    }

    async fn cancel_queued(&mut self, id: u64, text: String) -> Result<bool> {
        let delivery = self.tools.delivery.clone();
        let told = text.clone();
        let ended = async move { delivery.end(id, State::Queued, Ended::Canceled { text: told }).await };
        let ended = self.patiently(ended).await;
        match ended {
            Ok(false) => self.tools.delivery.abandon(id, text).await,
            Ok(true) => Ok(true),
            Err(e) => {
                self.keep(id, Unsettled::Finishing, &e);
                Err(e)
            }
        }
    }

    /// Ends the engine because somebody wants its memory.
    pub(super) async fn unload(&mut self) -> Result<()> {
        let refuse = |text: String| Err(Error::refused(ErrorCode::Busy, text));
        if let Some(running) = self.engine.jobs().next() {
            let id = running.job.id;
            return refuse(format!(
                "job {id} is running; cancel it, or pause the queue and wait for it to finish"
            ));
        }
        if self.has_work().await? {
            return refuse(
                "jobs are queued, and the next one would load the model again; pause the queue first".into(),
            );
        }
        // A user who may ask for the memory outranks one who wants the model warm: otherwise one could keep the GPU for
        // ever.
        for hold in self.tools.holds.end(What::Warm) {
            tracing::info!("the model was kept warm by `{}` of user {}, which has ended", hold.who, hold.uid);
        }
        self.rest("somebody asked for it").await;
        Ok(())
    }

    /// Ends an idle engine, so that all its memory is free.
    pub(super) async fn rest(&mut self, why: &str) {
        if let Some(engine) = self.engine.unload() {
            tracing::info!("the engine is ended: {why}");
            self.patiently(engine.end(Duration::ZERO)).await;
        }
    }

    /// Ends the engine because the machine is about to sleep, which no engine on a GPU survives.
    pub(super) async fn sleep(&mut self) {
        tracing::info!("the machine is going to sleep: stopping the engine");
        let left = self.engine.sleep();
        self.give_back(left, "the machine went to sleep").await;
    }

    pub(super) fn wake(&mut self) {
        tracing::info!("the machine is awake");
        self.engine.wake();
        self.failures = 0;
        self.next_start = Instant::now();
    }
}
