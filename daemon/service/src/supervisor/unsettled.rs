//! What the ledger or an outbox has not taken of jobs that have stopped: it is kept, told to everybody who asks for the
//! service's state, and offered again.

use std::sync::Arc;
use std::time::Duration;

use animd_common::Error as Common;
use animd_protocol::messages::Report;
use animd_protocol::progress::{Progress, Stage};
use animd_protocol::request::Request;
use tokio::time::Instant;

use super::{Supervisor, Tools};
use crate::error::{Error, Result};
use crate::events::{Change, Live};
use crate::store::ledger::{Ended, Job, Renewal, State};

/// How long nothing is offered, and no job is started, after the ledger refused something.
pub(super) const LEDGER_PAUSE: Duration = Duration::from_secs(5);

/// What has not been taken of a job that has stopped.
#[derive(Clone)]
pub(super) enum Unsettled {
    /// The job was running, and the outbox with its finished file is away.
    Finished(Box<(Job, Report)>),
    /// The job was running and has ended.
    Ended(Ended),
    /// The ledger has the job's outcome, or the job still waits.
    Finishing,
    /// The job runs again, and its start does not count.
    GivenBack(String),
    /// The job runs again because the engine died while working on it.
    Crashed(String),
    /// The job begins again with other settings.
    Renewed(Box<Job>, Arc<Renewal>),
}

/// What is kept of one job, and why.
pub(super) struct Kept {
    id: u64,
    left: Unsettled,
    /// What refused it said, without any path.
    why: String,
}

impl Supervisor {
    /// Offers once more what was refused, when it is time.
    pub(super) async fn settle(&mut self) -> Result<()> {
        if Instant::now() < self.next_settle {
            return Ok(());
        }
        let mut away = Vec::new();
        while let Some((id, left)) = self.unsettled.first().map(|kept| (kept.id, kept.left.clone())) {
            match self.settle_one(id, left.clone()).await {
                Ok(()) => {
                    self.tools.events.set_live(id, None);
                    self.tools.events.tell(Change::State(id));
                }
                // The others do not wait for this one's disk.
                Err(e) if is_away(&left, &e) => away.push(Kept { id, left, why: e.without_path() }),
                Err(e) => {
                    self.unsettled.extend(away);
                    self.next_settle = Instant::now() + LEDGER_PAUSE;
                    return Err(e);
                }
            }
            self.unsettled.remove(0);
        }
        self.unsettled = away;
        self.next_settle = Instant::now() + LEDGER_PAUSE;
        Ok(())
    }

    async fn settle_one(&mut self, id: u64, left: Unsettled) -> Result<()> {
        let Tools { delivery, ledger, .. } = self.tools.clone();
        let settled = async move {
            let end = async |ended| {
                // False means that the ledger has the outcome, and only the job's files are still to be put in place.
                if delivery.end(id, State::Running, ended).await? {
                    Ok(())
                } else {
                    delivery.settle(id).await
                }
            };
            match left {
                Unsettled::Finished(finished) => {
                    let (job, report) = *finished;
                    end(delivery.examine(job, report).await?).await
                }
                Unsettled::Ended(ended) => end(ended).await,
                Unsettled::Finishing => delivery.settle(id).await,
                Unsettled::GivenBack(why) => ledger.call(move |db| db.give_back(id, &why)).await,
                Unsettled::Renewed(job, renewal) => {
                    delivery.renew(*job, State::Running, renewal).await.map(|_| ())
                }
                Unsettled::Crashed(why) => ledger.call(move |db| db.crashed(id, &why)).await,
            }
        };
        self.patiently(settled).await
    }

    /// Keeps what was refused for [`Self::settle`].
    pub(super) fn keep(&mut self, id: u64, left: Unsettled, e: &Error) {
        self.next_settle = Instant::now() + LEDGER_PAUSE;
        let steps = match &left {
            Unsettled::Finished(finished) => {
                Some(finished.0.request.as_ref().map_or(0, Request::total_steps))
            }
            Unsettled::Ended(Ended::Done(_)) => Some(0),
            _ => None,
        };
        if let Some(steps) = steps {
            let progress =
                Progress { stage: Stage::Write, step: steps, steps, fraction: 1.0, seconds_left: None };
            self.tools.events.set_live(id, Some(Live { progress, expected_end_us: None }));
        }
        if is_away(&left, e) {
            tracing::error!(
                job = id,
                "the finished video of job {id} waits for its folder: {}",
                e.without_path()
            );
        } else {
            tracing::error!(job = id, "cannot write job {id} to the ledger; trying again: {e}");
            self.refuses(e);
        }
        self.unsettled.push(Kept { id, left, why: e.without_path() });
    }

    /// Starts no job for a while after the ledger, or the folder of the service's state, refused something.
    pub(super) fn refuses(&mut self, e: &Error) {
        self.refused = Some(match e {
            Error::Ledger(e) => format!("the ledger takes no entry ({e})"),
            e => format!("the service {}", e.without_path()),
        });
        self.next_claim = Instant::now() + LEDGER_PAUSE;
    }

    /// Takes the job `id` out of those whose finished video waits for its folder. Returns false if it is none of them.
    pub(super) fn leaves_its_video(&mut self, id: u64) -> bool {
        let before = self.unsettled.len();
        self.unsettled.retain(|kept| kept.id != id || !matches!(kept.left, Unsettled::Finished(_)));
        self.unsettled.len() < before
    }

    /// Returns what the service's own disk or that of an outbox keeps from happening, as a sentence for everybody.
    pub(super) fn refusal(&self) -> Option<String> {
        if let Some(why) = &self.refused {
            let remedy =
                "make room on the disk of animd's state (`folders.state`), and let animd write there";
            return Some(format!("jobs wait, because {why}; {remedy}"));
        }
        let Kept { id, why, .. } =
            self.unsettled.iter().find(|kept| matches!(kept.left, Unsettled::Finished(_)))?;
        Some(format!("the finished video of job {id} waits for its folder: {why}"))
    }
}

/// Returns whether what was refused is a finished video whose outbox is away.
fn is_away(left: &Unsettled, e: &Error) -> bool {
    matches!((left, e), (Unsettled::Finished(_), Error::Common(Common::File { .. })))
}
