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
use rustix::io::Errno;

use crate::config::{CurrentConfig, Defaults};
use crate::error::{Error, Result};
use crate::events::{Change, Events};
use crate::store::ledger::{Ended, Job, Ledger, Outcome, State};
use crate::store::{PartFolders, Picture, PictureFiles, Results, Spool, Watches, release_pictures};

pub use source::is_same_wish;
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
    /// The finished parts of long videos, which go when their job ends.
    pub parts: PartFolders,
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
    ///
    /// # Errors
    /// [`Common::File`] while the outbox is away, with the finished file in it.
    pub async fn examine(&self, job: Job, report: Report) -> Result<Ended> {
        let delivery = self.clone();
        blocking(move || delivery.examine_blocking(&job, report)).await
    }

    fn end_blocking(&self, id: u64, from: State, ended: &Ended) -> Result<bool> {
        let Some(job) = self.ledger.call_blocking(move |db| db.adopt_source(id))? else { return Ok(false) };
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
                // A disk that is not mounted, whose mount point is a folder as well.
                Ok(false) if self.is_elsewhere(&job) => {
                    self.wait(id, "another folder is in its place; is its disk mounted?");
                    return Ok(());
                }
                Ok(false) => {
                    tracing::warn!(job = id, "the finished file of job {id} is gone; it runs again");
                    self.ledger.call_blocking(move |db| db.vanished(id))?;
                    self.waiting.remove(id);
                    self.events.tell(Change::State(id));
                    return Ok(());
                }
                Err(e @ (Error::Ledger(_) | Error::Common(Common::Stopping))) => return Err(e),
                // Making the folder, or the video again, would be worse than to wait.
                Err(e) if may_pass(&e) || !self.outbox_is_there(&job) => {
                    self.wait(id, &e.without_path());
                    return Ok(());
                }
                Err(e) if self.save_video(&job, &e)? => {
                    let Some(saved) = find()? else { return Ok(()) };
                    job = saved;
                }
                Err(e) => {
                    let text = format!("the video could not be put into the outbox: {e}");
                    let target = self.source_target(&job, Outcome::Failed);
                    let told = text.clone();
                    self.ledger.call_blocking(move |db| {
                        let why = (ErrorCode::Output, &*told);
                        db.give_up_delivery(id, Outcome::Failed, why, target.as_deref())
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
        let moved = match self.put_source(&job) {
            Ok(moved) => Ok(moved),
            Err(e @ (Error::Ledger(_) | Error::Common(Common::Stopping))) => return Err(e),
            Err(e) => Err(e.to_string()),
        };
        if let Err(text) = &moved {
            tracing::warn!(job = id, "the picture of job {id} stays in the inbox and is not taken again");
            tracing::debug!(job = id, "the picture of job {id} stays: {text}");
        }
        let kept = self.results.video(&job).is_some();
        self.ledger
            .call_blocking(move |db| db.close(id, moved.as_ref().map_err(String::as_str).copied(), kept))?;
        self.waiting.remove(id);
        self.parts.remove(&job);
        release_pictures(&self.ledger, &self.spool, &job)?;
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

    /// Takes note that a finished video cannot be delivered now: [`deliver_waiting`] tries again.
    fn wait(&self, id: u64, why: &str) {
        if self.waiting.insert(id, why.to_owned()) {
            tracing::error!(job = id, "the finished video of job {id} waits for its outbox: {why}");
            // The state tells of it.
            self.events.queued.notify_one();
        }
    }

    /// Cancels a finished job whose video waits for its outbox. False if it does not wait.
    pub async fn abandon(&self, id: u64, text: String) -> Result<bool> {
        if !self.waiting.has(id) {
            return Ok(false);
        }
        let delivery = self.clone();
        blocking(move || {
            let Some(job) = delivery.ledger.call_blocking(move |db| db.job(id))? else { return Ok(false) };
            let target = delivery.source_target(&job, Outcome::Canceled);
            let given_up = delivery.ledger.call_blocking(move |db| {
                db.give_up_delivery(id, Outcome::Canceled, (ErrorCode::Canceled, &text), target.as_deref())
            })?;
            delivery.settle_blocking(id)?;
            Ok(given_up)
        })
        .await
    }
}

/// Returns whether an outbox that gives this error may take the video later: somebody makes room, mounts a disk or
/// changes rights.
fn may_pass(e: &Error) -> bool {
    let Error::Common(Common::File { source, .. }) = e else { return false };
    let Some(number) = source.raw_os_error() else { return false };
    [
        Errno::ACCESS,
        Errno::BUSY,
        Errno::DQUOT,
        Errno::HOSTDOWN,
        Errno::HOSTUNREACH,
        Errno::IO,
        Errno::NODEV,
        Errno::NOSPC,
        Errno::NOTCONN,
        Errno::NXIO,
        Errno::PERM,
        Errno::ROFS,
        Errno::STALE,
        Errno::TIMEDOUT,
    ]
    .contains(&Errno::from_raw_os_error(number))
}
