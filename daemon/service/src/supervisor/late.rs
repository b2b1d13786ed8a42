//! Words that come while their job runs, or has just been made: the job begins again with them.
//!
//! A picture is taken as soon as it is complete, and what comes beside it within the time that it should lie unchanged
//! still counts. A job that is quicker than that is held until the time is over, so that one picture gives one video.

use std::sync::Arc;
use std::time::Duration;

use animd_common::clock::now_us;
use animd_common::tasks::blocking;
use tokio::time::Instant;

use super::Supervisor;
use super::state::{Finished, Stop, Then};
use super::unsettled::Unsettled;
use crate::error::Error;
use crate::events::Live;
use crate::store::ledger::{Ended, Job, Renewal, State};

/// How long a job is held whose newer words are there, besides the time that a picture should lie unchanged: the watcher of
/// its folder is about to bring them.
const BRINGING: Duration = Duration::from_secs(3);
/// The pause before a held job with newer words is looked at again.
const AGAIN: Duration = Duration::from_millis(100);

/// A job that the engine has done with, and for which newer words may come.
pub(super) struct Held {
    job: Job,
    finished: Finished,
    /// When to look at the job: words no longer count from then on.
    due: Instant,
    /// When the job ends although newer words are there.
    end: Instant,
}

impl Supervisor {
    /// Ends a job that the engine has done with, or holds it while newer words for it may come. `last` is what the engine
    /// reported last: it is what is told of a job that is held.
    pub(super) async fn finish(&mut self, job: Job, finished: Finished, last: Option<Live>) {
        let until_us = self.tools.delivery.renewable_until_us(&job).unwrap_or_default();
        let micros = |us: i64| Duration::from_micros(u64::try_from(us).unwrap_or_default());
        let whole = micros(until_us.saturating_sub(job.created_us as i64));
        // The clock may have been set back meanwhile.
        let left = micros(until_us.saturating_sub(now_us())).min(whole);
        if left.is_zero() && !self.is_awaited(&job).await {
            return self.end_finished(job, finished).await;
        }
        let due = Instant::now() + left;
        let live = last.map(|live| Live { expected_end_us: Some(until_us.max(now_us()) as u64), ..live });
        self.tools.events.set_live(job.id, live);
        self.held.push(Held { job, finished, due, end: due + whole + BRINGING });
    }

    /// Returns whether newer words for a job are there.
    async fn is_awaited(&mut self, job: &Job) -> bool {
        let (delivery, job) = (self.tools.delivery.clone(), job.clone());
        let awaited = blocking(move || Ok::<_, Error>(delivery.is_awaited(&job)));
        self.patiently(awaited).await.unwrap_or(false)
    }

    async fn end_finished(&mut self, job: Job, finished: Finished) {
        self.tools.events.set_live(job.id, None);
        match finished {
            Finished::Done(report) => self.deliver(job, report).await,
            Finished::Failed { code, text } => self.conclude(job.id, Ended::Failed { code, text }).await,
        }
    }

    /// Returns a sentence about the job that is held, if there is one.
    pub(super) fn held_text(&self) -> Option<String> {
        let Held { job, finished, .. } = self.held.iter().min_by_key(|held| held.due)?;
        let id = job.id;
        Some(match finished {
            Finished::Done(_) => {
                format!(
                    "the video of job {id} is made; it is saved when nothing more can come beside its picture"
                )
            }
            Finished::Failed { .. } => {
                format!("job {id} has failed; it begins again if something new comes beside its picture now")
            }
        })
    }

    /// Returns when the first of the held jobs is due.
    pub(super) fn held_until(&self) -> Option<Instant> {
        self.held.iter().map(|held| held.due).min()
    }

    /// Ends the held jobs for which no more words count.
    pub(super) async fn release_due(&mut self) {
        while let Some(at) = self.held.iter().position(|held| held.due <= Instant::now()) {
            let mut held = self.held.remove(at);
            if Instant::now() < held.end && self.is_awaited(&held.job).await {
                held.due = Instant::now() + AGAIN;
                self.held.push(held);
            } else {
                self.end_finished(held.job, held.finished).await;
            }
        }
    }

    /// Ends all held jobs.
    pub(super) async fn release_all(&mut self) {
        for held in std::mem::take(&mut self.held) {
            self.end_finished(held.job, held.finished).await;
        }
    }

    /// Ends the job `id` if it is held. Returns false if it is not.
    pub(super) async fn release(&mut self, id: u64) -> bool {
        let Some(at) = self.held.iter().position(|held| held.job.id == id) else { return false };
        let held = self.held.remove(at);
        self.end_finished(held.job, held.finished).await;
        true
    }

    /// Lets one of the engine's jobs begin again with other settings. Returns false if job `id` does not run, or is being cancelled.
    pub(super) async fn renew(&mut self, id: u64, renewal: Arc<Renewal>) -> bool {
        if let Some(at) = self.held.iter().position(|held| held.job.id == id) {
            let held = self.held.remove(at);
            self.begin_again(held.job, renewal).await;
            return true;
        }
        let grace = Duration::from_secs(self.tools.config.get().engine.cancel_seconds);
        let Some(running) = self.engine.job_mut(id) else {
            return false;
        };
        match &mut running.stop {
            Some(Stop { then: Then::Cancel(_), .. }) => return false,
            Some(stop) => stop.then = Then::Renew(renewal),
            stop => {
                *stop = Some(Stop { then: Then::Renew(renewal), deadline: Instant::now() + grace });
                self.tell_to_stop(id).await;
            }
        }
        true
    }

    /// Puts a job that was running back into the queue with other settings, as if it had not been started.
    pub(super) async fn begin_again(&mut self, job: Job, renewal: Arc<Renewal>) {
        self.tools.events.set_live(job.id, None);
        self.remove_part(&job).await;
        self.tools.pictures.remove_all(&job);
        let (delivery, told, kept) = (self.tools.delivery.clone(), job.clone(), renewal.clone());
        let renewed = async move { delivery.renew(told, State::Running, kept).await };
        if let Err(e) = self.patiently(renewed).await {
            self.keep(job.id, Unsettled::Renewed(Box::new(job), renewal), &e);
        }
    }
}
