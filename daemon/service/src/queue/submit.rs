//! Submitting: every new job is queued here, whoever wants it.

use std::ffi::OsString;
use std::path::PathBuf;

use animd_common::files::show;
use animd_protocol::ErrorCode;
use animd_protocol::request::Request;

use super::Queue;
use crate::error::{Error, Result};
use crate::events::Change;
use crate::store::ledger::{Added, Job, NewJob, Quota, Refusal, Source};
use crate::store::{Spooled, parts};

/// Who wants a job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// A caller of the bus. Submissions with the same key from the same user give the same job.
    Bus {
        /// The caller's own name for the job.
        idempotency_key: Option<String>,
    },
    /// A watched folder.
    Folder,
    /// Somebody who wants another try at this job.
    Retry(u64),
}

/// A job that somebody wants. Its picture stays in the spool while this is held.
pub struct Submission {
    /// The uid of the user who may see its prompt and fetch its video.
    pub owner: u32,
    /// The picture's name.
    pub name: OsString,
    /// Who wants it.
    pub origin: Origin,
    /// The priority: the waiting job with the largest number runs first.
    pub priority: i32,
    /// The folder for its video; `None` is the configured one.
    pub outbox: Option<PathBuf>,
    /// The file in a watched folder that is moved when the job has ended.
    pub source: Option<Source>,
    /// The spooled picture and the resolved settings, or why there is none.
    pub work: Result<(Spooled, Request), Refusal>,
    /// The spooled picture that the video ends at, if the settings name one.
    pub last: Option<Spooled>,
}

impl Submission {
    /// Returns the row for the ledger. A user's limit of open jobs does not apply to pictures in watched folders.
    fn row(&self, per_user: u32) -> NewJob {
        let (idempotency_key, retry_of) = match &self.origin {
            Origin::Bus { idempotency_key } => (idempotency_key.clone(), None),
            Origin::Folder => (None, None),
            Origin::Retry(id) => (None, Some(*id)),
        };
        NewJob {
            owner: self.owner,
            watched: self.source.is_some(),
            idempotency_key,
            per_user: if self.origin == Origin::Folder { u32::MAX } else { per_user },
            name: self.name.clone(),
            source: self.source.clone(),
            priority: self.priority,
            outbox: self.outbox.clone(),
            retry_of,
            picture_bytes: self.work.as_ref().map_or(0, |(spooled, _)| spooled.bytes),
            last: self.last.as_ref().map(|last| (last.sha256, last.bytes)),
            parts_bytes: self.work.as_ref().map_or(0, |(_, request)| parts::bytes(request)),
            work: match &self.work {
                Ok((spooled, request)) => Ok((spooled.sha256, Box::new(request.clone()))),
                Err(refusal) => Err(refusal.clone()),
            },
        }
    }

    /// Says in the log where job `id` comes from.
    fn log(&self, id: u64) {
        match &self.origin {
            Origin::Bus { .. } => tracing::info!(job = id, "job {id} comes from user {}", self.owner),
            Origin::Folder => tracing::info!(job = id, "job {id} comes from a watched folder"),
            Origin::Retry(of) => tracing::info!(job = id, "job {id} is a retry of job {of}"),
        }
        let file = self.source.as_ref().map_or_else(|| show(&self.name), |source| show(&source.path));
        tracing::debug!(job = id, "job {id} is of `{file}`");
    }
}

impl Queue {
    /// Returns, before a picture of so many bytes is copied, what [`Self::submit`] would return for a submission over the
    /// bus, if that gives no new job.
    ///
    /// # Errors
    /// What the ledger says.
    pub async fn foresee(
        &self,
        owner: u32,
        idempotency_key: Option<String>,
        bytes: u64,
    ) -> Result<Option<Added>> {
        let per_user = self.config.get().queue.per_user;
        self.ledger.call(move |db| db.foresee(owner, idempotency_key.as_deref(), per_user, bytes)).await
    }

    /// Returns a sentence for a user whose jobs take too much, with the limit's name and what to do.
    pub fn over(&self, quota: Quota, owner: u32) -> String {
        let queue = &self.config.get().queue;
        match quota {
            Quota::Disk => format!(
                "the pictures and kept videos of user {owner} would take more than {} MiB, which is the limit \
                 (queue.disk_mib_per_user); wait until jobs are done, fetch finished videos, or remove ended jobs with \
                 `animctl forget`",
                queue.disk_mib_per_user
            ),
            Quota::Ledger => format!(
                "the records of user {owner}'s jobs would take more than {} MiB, which is the limit \
                 (queue.ledger_mib_per_user); remove ended jobs with `animctl forget`",
                queue.ledger_mib_per_user
            ),
        }
    }

    /// Refuses a video that this machine or its model can never make, or whose model or `LoRA` nobody knows, before its picture is
    /// copied.
    ///
    /// # Errors
    /// [`Error::Refused`] with `memory`: what it would need, what there is, and the nearest settings that fit; with
    /// with `output` where the parts of a long video have no room. The errors of [`Self::check`].
    pub fn admit(&self, request: &Request) -> Result<()> {
        self.check(request)?;
        let reserve = self.config.get().queue.free_mib << 20;
        self.parts.check_room(request, reserve).map_err(|text| Error::refused(ErrorCode::Output, text))?;
        match crate::plan::refusal(&self.profiles, request, None) {
            Some(text) => Err(Error::refused(ErrorCode::Memory, text)),
            None => Ok(()),
        }
    }

    /// Refuses a video whose model or `LoRA` nobody knows, or which its model cannot make.
    ///
    /// # Errors
    /// [`Error::Refused`] with `invalid-setting`: the nearest name of a model, or what the model cannot do. The errors of
    /// [`Loras::find`](crate::loras::Loras::find).
    pub fn check(&self, request: &Request) -> Result<()> {
        let found = self.config.get().model_path(request.model.as_deref());
        found.map_err(|why| Error::refused(ErrorCode::InvalidSetting, format!("`model`: {why}")))?;
        self.loras.find(request)?;
        // What no engine has opened so far is refused by the engine, in the same words.
        if let Some(recipe) = self.profiles.recipes().of(request.model.as_deref()) {
            recipe.check(request)?;
        }
        Ok(())
    }

    /// Queues a job, calls `ready` with it, and then announces it. The picture of a submission that gives no new job is
    /// released by [`crate::store::release_unheld`].
    ///
    /// # Errors
    /// The error of the ledger or of `ready`, and that of [`Loras::pin`](crate::loras::Loras::pin).
    pub async fn submit<F>(&self, mut submission: Submission, ready: impl FnOnce(Job) -> F) -> Result<Added>
    where
        F: Future<Output = Result<()>> + Send,
    {
        if let Ok((_, request)) = &mut submission.work {
            *request = self.loras.pin(request.clone()).await?.0;
        }
        let row = submission.row(self.config.get().queue.per_user);
        let (added, job) = self.ledger.add(row, &self.spool).await?;
        if let Added::New(id) = added {
            submission.log(id);
            drop(submission);
            if let Some(job) = job {
                ready(job).await?;
            }
            self.events.tell(Change::Added(id));
        }
        Ok(added)
    }

    /// Queues the pictures of watched folders, many at a time, and announces the new jobs. A `LoRA` that cannot be read fails its job
    /// when that starts.
    ///
    /// # Errors
    /// What the ledger says.
    pub async fn submit_all(&self, submissions: &mut [Submission]) -> Result<Vec<Added>> {
        for submission in &mut *submissions {
            if let Ok((_, request)) = &mut submission.work
                && let Ok((pinned, _)) = self.loras.pin(request.clone()).await
            {
                *request = pinned;
            }
        }
        let per_user = self.config.get().queue.per_user;
        let rows: Vec<NewJob> = submissions.iter().map(|submission| submission.row(per_user)).collect();
        let spool = self.spool.clone();
        let added = self.ledger.call(move |db| db.add_all(&rows, |row| row.has_picture(&spool))).await?;
        for (submission, added) in submissions.iter().zip(&added) {
            if let Added::New(id) = *added {
                submission.log(id);
                self.events.tell(Change::Added(id));
            }
        }
        Ok(added)
    }
}

/// Returns a seed for a job that has none: short enough for a file's name.
pub fn draw_seed() -> u64 {
    uuid::Uuid::new_v4().as_u128() as u64 & 0xffff_ffff
}
