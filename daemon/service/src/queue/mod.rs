//! What people do to jobs and to the queue. The callers check whether a person may do it; the functions here check
//! whether it can be done. The bus, watched folders and another try at a job all submit their jobs here.

mod forget;
mod retry;
mod submit;

use animd_protocol::ErrorCode;

use crate::config::{CurrentConfig, Defaults};
use crate::error::{Error, Result};
use crate::events::{Change, Events};
use crate::holds::Holds;
use crate::loras::Loras;
use crate::store::ledger::{Job, Ledger, PAUSED};
use crate::store::{PartFolders, PictureFiles, Results, Spool};
use crate::supervisor::commands::Commands;
use crate::supervisor::profile::Profiles;

pub use retry::Retry;
pub use submit::{Origin, Submission, draw_seed};

/// The queue as everybody uses it; cheap to clone.
#[derive(Clone)]
pub struct Queue {
    /// The configuration, which says how many jobs a user may have.
    pub config: CurrentConfig,
    /// The settings of jobs that say nothing else.
    pub defaults: Defaults,
    /// The ledger, where jobs are written down.
    pub ledger: Ledger,
    /// The spool, which has the copies of the jobs' pictures.
    pub spool: Spool,
    /// The videos that callers of the bus fetch.
    pub results: Results,
    /// The pictures of videos, which are forgotten with their jobs.
    pub pictures: PictureFiles,
    /// The finished parts of long videos, which need room on the disk.
    pub parts: PartFolders,
    /// Where changes are announced.
    pub events: Events,
    /// The holds, among them who paused the queue.
    pub holds: Holds,
    /// Commands to the supervisor, which has the running job.
    pub commands: Commands,
    /// The chosen profile and the model, which say what this machine can make.
    pub profiles: Profiles,
    /// The files of jobs' `LoRAs`.
    pub loras: Loras,
}

impl Queue {
    /// Returns the job with this number.
    async fn known(&self, id: u64) -> Result<Job> {
        let job = self.ledger.call(move |db| db.job(id)).await?;
        job.ok_or_else(|| {
            Error::refused(
                ErrorCode::NotFound,
                format!("there is no job {id}; `animctl list` shows the jobs"),
            )
        })
    }

    /// Returns the job with this number, which has ended and so can be `verb`.
    async fn ended(&self, id: u64, verb: &str) -> Result<Job> {
        let job = self.known(id).await?;
        if job.state.is_open() {
            return Err(Error::refused(
                ErrorCode::NotReady,
                format!(
                    "job {id} is {}; only a job that has ended can be {verb}: wait for it, or cancel it first",
                    job.state.name()
                ),
            ));
        }
        Ok(job)
    }

    /// Gives a queued job another place in the queue: the larger number runs first, and among equals the older job.
    ///
    /// # Errors
    /// [`Error::Refused`] with `not-found`, or `not-ready` for a job that does not wait.
    pub async fn set_priority(&self, id: u64, priority: i32) -> Result<()> {
        if self.ledger.call(move |db| db.set_priority(id, priority)).await? {
            self.events.tell(Change::State(id));
            return Ok(());
        }
        let state = self.known(id).await?.state.name();
        Err(Error::refused(
            ErrorCode::NotReady,
            format!("job {id} is {state}; only a job that waits has a priority"),
        ))
    }

    /// Cancels a job, without waiting for its end: a running job ends later, and as done if it is done first. Returns
    /// false if it has ended already. `who` is written down with it.
    ///
    /// # Errors
    /// [`Error::STOPPING`], or the error of the ledger.
    pub async fn cancel(&self, id: u64, who: String) -> Result<bool> {
        self.commands.cancel(id, who).await
    }

    /// Pauses the queue, also beyond a restart of the service. `who` ends the sentence "the queue is paused ...".
    pub async fn pause(&self, who: &str) -> Result<()> {
        let text = who.to_owned();
        self.ledger.call(move |db| db.set_setting(PAUSED, Some(&text))).await?;
        tracing::info!("the queue is paused {who}");
        self.holds.set_paused(Some(who.to_owned()));
        self.events.queued.notify_one();
        Ok(())
    }

    /// Continues the queue, unless somebody holds a pause.
    pub async fn resume(&self) -> Result<()> {
        self.ledger.call(|db| db.set_setting(PAUSED, None)).await?;
        tracing::info!("the queue goes on");
        self.holds.set_paused(None);
        self.events.queued.notify_one();
        Ok(())
    }
}
