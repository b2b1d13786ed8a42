//! Ends each job exactly once, whenever the machine stops.
//!
//! The order is: the engine wrote and synced the unfinished file; the ledger commits `finishing` with the video's name
//! and hash, or the reason; the video is renamed, replacing nothing; the source is moved; the ledger commits the end.
//! [`Delivery::recover`] finishes what was cut short, before any folder is looked at.

mod outbox;
mod recover;
mod source;
#[cfg(test)]
mod tests;
mod video;
mod waiting;

use animd_common::Error as Common;
use animd_common::files::show;
use animd_common::tasks::blocking;
use animd_protocol::ErrorCode;
use animd_protocol::messages::Report;

use crate::config::{CurrentConfig, Defaults};
use crate::error::{Error, Result};
use crate::events::{Change, Events};
use crate::store::ledger::{Ended, Job, Ledger, Outcome, State};
use crate::store::{Picture, PictureFiles, Results, Spool, Watches, release_picture};

pub use waiting::{AWAY, Waiting, deliver_waiting};

const LOOK: &str = "look into the service's log (`journalctl -u animd`, or its standard error)";

/// Ends jobs: puts videos and pictures in their places, and says so in the ledger. Cheap to clone.
#[derive(Clone)]
pub struct Delivery {
    /// Where videos go, and how often a job is tried.
    pub config: CurrentConfig,
    /// The default settings, for reading a sidecar that came late.
    pub defaults: Defaults,
    /// The ledger that records how jobs end.
    pub ledger: Ledger,
    /// The spool, whose copies of pictures are released.
    pub spool: Spool,
    /// The pictures of videos, which go with jobs that have none.
    pub pictures: PictureFiles,
    /// Where a video goes that its outbox refuses.
    pub results: Results,
    /// Where changes are announced.
    pub events: Events,
    /// Which folders are watched, for the place of `done` and `failed`.
    pub watches: Watches,
    /// Finished jobs whose outbox is missing.
    pub waiting: Waiting,
}

impl Delivery {
    /// Ends a job that is in state `from`. False if somebody else has ended it meanwhile.
    pub async fn end(&self, id: u64, from: State, ended: Ended) -> Result<bool> {
        let delivery = self.clone();
        blocking(move || delivery.end_blocking(id, from, &ended)).await
    }

    /// Finishes a job that is `finishing` already.
    pub async fn settle(&self, id: u64) -> Result<()> {
        let delivery = self.clone();
        blocking(move || delivery.settle_blocking(id)).await
    }

    /// Looks at the finished file of a running job and says where its video goes.
    pub async fn examine(&self, job: Job, report: Report) -> Result<Ended> {
        let delivery = self.clone();
        blocking(move || Ok(delivery.examine_blocking(&job, report))).await
    }

    fn end_blocking(&self, id: u64, from: State, ended: &Ended) -> Result<bool> {
        let Some(job) = self.ledger.call_blocking(move |db| db.job(id))? else { return Ok(false) };
        let target = self.source_target(&job, ended.outcome());
        let ended = ended.clone();
        if !self.ledger.call_blocking(move |db| db.finishing(id, from, &ended, target.as_deref()))? {
            return Ok(false);
        }
        self.events.tell(Change::State(id));
        self.settle_blocking(id)?;
        Ok(true)
    }

    /// Puts the files of a finishing job in place. Calling it again after an interruption at any point does the rest.
    pub(crate) fn settle_blocking(&self, id: u64) -> Result<()> {
        let find = move || self.ledger.call_blocking(move |db| db.job(id));
        let Some(mut job) = find()?.filter(|job| job.state == State::Finishing) else { return Ok(()) };
        if job.outcome == Some(Outcome::Done) {
            match self.put_video(&job) {
                Ok(true) => {}
                Ok(false) => {
                    tracing::warn!(job = id, "the finished file of job {id} is gone; it runs again");
                    self.ledger.call_blocking(move |db| db.vanished(id))?;
                    self.waiting.remove(id);
                    self.events.tell(Change::State(id));
                    return Ok(());
                }
                Err(e @ (Error::Ledger(_) | Error::Common(Common::Stopping))) => return Err(e),
                // A disk that is not mounted yet: making the folder, or the video again, would be worse than to wait.
                Err(e) if !self.outbox_is_there(&job) => {
                    if self.waiting.insert(id) {
                        tracing::error!(
                            job = id,
                            "the video of job {id} waits until its outbox is there again ({e})"
                        );
                    }
                    return Ok(());
                }
                Err(e) if self.save_video(&job, &e)? => {}
                Err(e) => {
                    let text = format!("the video could not be put into the outbox: {e}");
                    let target = self.source_target(&job, Outcome::Failed);
                    let told = text.clone();
                    self.ledger.call_blocking(move |db| {
                        db.fail_delivery(id, ErrorCode::Output, &told, target.as_deref())
                    })?;
                    let Some(changed) = find()? else { return Ok(()) };
                    job = changed;
                }
            }
        }
        self.pictures.remove(&job, Picture::Preview);
        if job.outcome != Some(Outcome::Done) {
            self.remove_part(&job);
            self.pictures.remove_all(&job);
        }
        let left = match self.put_source(&job) {
            Ok(()) => None,
            Err(e @ (Error::Ledger(_) | Error::Common(Common::Stopping))) => return Err(e),
            Err(e) => Some(e.to_string()),
        };
        if let Some(text) = &left {
            tracing::warn!(job = id, "the picture of job {id} stays in the inbox and is not taken again");
            tracing::debug!(job = id, "the picture of job {id} stays: {text}");
        }
        self.ledger.call_blocking(move |db| db.close(id, left.as_deref()))?;
        self.waiting.remove(id);
        if let Some(sha) = job.image_sha256 {
            release_picture(&self.ledger, &self.spool, sha)?;
        }
        if let (Some(Outcome::Done), Some(path)) = (&job.outcome, &job.output) {
            tracing::info!(job = id, "job {id} is done");
            tracing::debug!(job = id, "the video of job {id} is `{}`", show(path));
        } else {
            let how = job.outcome.map_or("ended", Outcome::name);
            let why = job.error_text.as_deref().unwrap_or("no reason known");
            // The reason may name files.
            let code = job.error_code.as_deref().unwrap_or("unknown");
            tracing::warn!(job = id, "job {id} {how} ({code}); details: `animctl show {id}`");
            tracing::debug!(job = id, "job {id} ({}) {how}: {why}", show(&job.name));
        }
        self.events.tell(Change::State(id));
        Ok(())
    }
}
