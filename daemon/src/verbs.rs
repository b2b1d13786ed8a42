//! What a person does to jobs and to the queue, besides submitting and cancelling. Whether they may is the caller's
//! question; whether it can be done is answered here.

use std::fs;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use animd_protocol::ErrorCode;
use animd_protocol::request::{Request, Sampler, Settings, StepCache};

use crate::board::Change;
use crate::delivery::{Desk, blocking};
use crate::files::{Identity, show};
use crate::holds::What;
use crate::ledger::{Added, Job, NewJob, PAUSED, Store};
use crate::watch::draw_seed;
use crate::{Error, Result};

/// What another try at a job does otherwise than the first one.
#[derive(Clone, Debug, Default)]
pub struct Retry {
    /// Settings in place of the job's own.
    pub settings: Settings,
    /// Draw a seed, where `settings` has none; without it the same video is made again.
    pub new_seed: bool,
}

impl Desk {
    /// The folder for videos that a caller of the bus fetches: below the state folder, and not for ever.
    pub fn results(&self) -> PathBuf {
        self.config().folders.state.join("results")
    }

    async fn known(&self, id: u64) -> Result<Job> {
        let job = self.ledger.call(move |db| db.job(id)).await?;
        job.ok_or_else(|| {
            Error::refused(
                ErrorCode::NotFound,
                format!("there is no job {id}; `animctl list` shows the jobs"),
            )
        })
    }

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
            self.board.tell(Change::State(id));
            return Ok(());
        }
        let state = self.known(id).await?.state.name();
        Err(Error::refused(
            ErrorCode::NotReady,
            format!("job {id} is {state}; only a job that waits has a priority"),
        ))
    }

    /// Queues an ended job's picture once more, with its settings but for what `retry` changes, and gives the new job's
    /// number. The new job has the same owner, name, priority and place for its video.
    ///
    /// # Errors
    /// [`Error::Refused`] with `not-found`; `not-ready` for an open job, or one without settings or picture;
    /// `invalid-setting`; `queue-full`.
    pub async fn retry(&self, id: u64, retry: Retry) -> Result<u64> {
        let job = self.ended(id, "retried").await?;
        let gone = |what: &str| {
            let name = show(&job.name);
            Error::refused(
                ErrorCode::NotReady,
                format!("{what}; submit `{name}` again in place of retrying job {id}"),
            )
        };
        let request = job
            .request
            .as_ref()
            .ok_or_else(|| gone("the settings of this job cannot be read, or never could"))?;
        let request = overridden(request, retry)?;
        let spooled = job
            .image_sha256
            .and_then(|sha256| self.spool.hold(sha256))
            .ok_or_else(|| gone("the service's copy of the picture is gone (retention.pictures_days)"))?;
        let limit = self.config().queue.per_user;
        let new = NewJob {
            owner: job.owner,
            watched: false,
            idempotency_key: None,
            per_user: limit,
            name: job.name.clone(),
            source: None,
            priority: job.priority,
            outbox: job.outbox.clone(),
            retry_of: Some(id),
            work: Ok((spooled.sha256, Box::new(request))),
        };
        let (added, _) = self.ledger.add(new, &self.spool).await?;
        drop(spooled);
        match added {
            Added::New(new) => {
                tracing::info!(job = new, "job {new} is another try at job {id}");
                self.board.tell(Change::Added(new));
                Ok(new)
            }
            Added::Full => Err(Error::refused(
                ErrorCode::QueueFull,
                format!(
                    "user {} has {limit} open jobs, which is the limit (queue.per_user); wait for one, or cancel one",
                    job.owner
                ),
            )),
            Added::Known(_) | Added::Unspooled => Err(gone("the service's copy of the picture is gone")),
        }
    }

    /// Forgets an ended job: its row and all that hangs on it, the copy of its picture if no other job needs that, and
    /// its video if nobody has fetched it. A video in an outbox stays. Readers of [`crate::board::Board`] are told
    /// [`Change::State`] of a job that is no longer there.
    ///
    /// # Errors
    /// [`Error::Refused`] with `not-found`, or `not-ready` for an open job, or one whose picture would be taken again.
    pub async fn forget(self: &Arc<Self>, id: u64) -> Result<()> {
        let job = self.ended(id, "forgotten").await?;
        if let Some(source) = &job.source
            && fs::symlink_metadata(&source.path).is_ok_and(|meta| Identity::of(&meta) == source.identity)
        {
            let identity = source.identity;
            if self.ledger.call(move |db| db.taken(identity)).await?.is_some_and(|of| of.id == id) {
                return Err(Error::refused(
                    ErrorCode::NotReady,
                    format!(
                        "the picture of job {id} could not be moved out of the watched folder, and once the job is \
                         forgotten it would be taken again; remove `{}`, then forget the job",
                        show(&source.path)
                    ),
                ));
            }
        }
        self.forget_files(job).await?;
        self.ledger.call(Store::checkpoint).await?;
        tracing::info!(job = id, "job {id} is forgotten");
        self.board.tell(Change::State(id));
        Ok(())
    }

    /// Removes an ended job's row and its files.
    pub(crate) async fn forget_files(self: &Arc<Self>, job: Job) -> Result<()> {
        let desk = self.clone();
        blocking(move || {
            // The files first: a row without files can be forgotten again, files without a row cannot.
            desk.remove_result(&job)?;
            desk.remove_pictures(&job);
            let id = job.id;
            desk.ledger.call_blocking(move |db| db.forget(id))?;
            match job.image_sha256 {
                Some(sha256) => desk.spool.release(&desk.ledger, sha256),
                None => Ok(()),
            }
        })
        .await
    }

    /// The caller has fetched the video of a job that the service keeps for it: the service's copy is removed.
    /// Again, it does nothing.
    ///
    /// # Errors
    /// [`Error::Refused`] with `not-found`, or `not-ready` for a job whose video is not kept by the service.
    pub async fn collected(self: &Arc<Self>, id: u64) -> Result<()> {
        let job = self.ended(id, "collected").await?;
        let Some(output) = job.output.clone() else {
            return Err(Error::refused(
                ErrorCode::NotReady,
                format!("job {id} is {}; it has no video", job.state.name()),
            ));
        };
        if output.parent() != Some(&self.results()) {
            return Err(Error::refused(
                ErrorCode::NotReady,
                format!(
                    "the video of job {id} is not kept by the service; it is yours to move or remove: `{}`",
                    show(&output)
                ),
            ));
        }
        let desk = self.clone();
        let removed = blocking(move || desk.remove_result(&job)).await?;
        if removed {
            self.ledger.call(move |db| db.event(id, "collected", "its video was fetched")).await?;
        }
        Ok(())
    }

    /// Removes the video of a job if it is one that the service keeps. False if there was none.
    fn remove_result(&self, job: &Job) -> Result<bool> {
        let Some(output) = job.output.as_deref().filter(|o| o.parent() == Some(&self.results())) else {
            return Ok(false);
        };
        match fs::remove_file(output) {
            Ok(()) => Ok(true),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(e) => Err(Error::file("remove", output)(e)),
        }
    }

    /// No job is started from here on, also after a restart. `who` ends the sentence "the queue is paused ...".
    pub async fn pause(&self, who: &str) -> Result<()> {
        let text = who.to_owned();
        self.ledger.call(move |db| db.set_setting(PAUSED, Some(&text))).await?;
        tracing::info!("the queue is paused {who}");
        self.board.set_paused(Some(who.to_owned()));
        Ok(())
    }

    /// Jobs are started again, unless somebody holds a pause.
    pub async fn resume(&self) -> Result<()> {
        self.ledger.call(|db| db.set_setting(PAUSED, None)).await?;
        tracing::info!("the queue goes on");
        self.board.set_paused(None);
        Ok(())
    }

    /// Who paused the queue, to end the sentence "the queue is paused ..."; `None` while jobs are started.
    pub fn paused(&self) -> Option<String> {
        self.board.paused().or_else(|| {
            let hold = self.holds.list().into_iter().find(|hold| hold.what == What::Pause)?;
            Some(format!("by `{}` of user {}: {}", hold.who, hold.uid, hold.why))
        })
    }
}

/// A request with some settings changed. What hangs on a changed setting and is not given is resolved anew.
fn overridden(request: &Request, retry: Retry) -> Result<Request> {
    let unreadable =
        |e| Error::refused(ErrorCode::InvalidSetting, format!("its settings cannot be read: {e}"));
    let mut old: Settings =
        serde_json::to_value(request).and_then(serde_json::from_value).map_err(unreadable)?;
    let Retry { settings: new, new_seed } = retry;
    if new.sampler.is_some_and(|sampler| sampler != request.sampler) {
        (old.steps, old.shift, old.guidance) = (None, None, None);
        if new.sampler != Some(Sampler::Unipc) {
            old.step_cache = None;
        }
    }
    if new.size.is_some_and(|size| size.is_480p() != request.size.is_480p()) {
        old.shift = None;
    }
    if new.step_cache.is_some_and(|cache| cache != request.step_cache)
        || request.step_cache == StepCache::None
    {
        old.step_cache_threshold = None;
    }
    if new_seed {
        old.seed = None;
    }
    Ok(new.or(old).resolve(draw_seed)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_try_is_the_same_but_for_what_is_asked() -> Result<()> {
        let with = |settings: Settings| Retry { settings, new_seed: false };
        let first = Settings { prompt: Some("a".into()), seed: Some(7), ..Settings::default() };
        let first = first.resolve(|| 0)?;
        assert_eq!(overridden(&first, Retry::default())?, first);
        let other = overridden(&first, with(Settings { prompt: Some("b".into()), ..Settings::default() }))?;
        assert_eq!((other.prompt.as_str(), other.seed), ("b", 7));
        let distilled = Settings { sampler: Some(Sampler::Distill), ..Settings::default() };
        let other = overridden(&first, with(distilled))?;
        assert_eq!((other.steps, other.guidance, other.shift), (4, 1.0, 5.0));
        let cached = Settings { step_cache: Some(StepCache::Magcache), ..Settings::default() };
        assert_eq!(overridden(&first, with(cached))?.step_cache_threshold, 0.12);
        let large = Settings { size: Some(animd_protocol::request::Size::P720), ..Settings::default() };
        assert_eq!(overridden(&first, with(large))?.shift, 5.0);
        let drawn = overridden(&first, Retry { new_seed: true, ..Retry::default() })?;
        assert!(drawn.seed != 7);
        assert!(overridden(&first, with(Settings { steps: Some(0), ..Settings::default() })).is_err());
        Ok(())
    }
}
