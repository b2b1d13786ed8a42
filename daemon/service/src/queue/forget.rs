//! Forgets jobs that have ended, and removes videos that were fetched.

use std::fs;

use animd_common::files::{Identity, show};
use animd_common::tasks::blocking;
use animd_protocol::ErrorCode;

use super::Queue;
use crate::error::{Error, Result};
use crate::events::Change;
use crate::store::ledger::Job;
use crate::store::release_pictures;

impl Queue {
    /// Forgets an ended job: its row and all that hangs on it, the copy of its picture if no other job needs that, and
    /// its video if nobody has fetched it. A video in an outbox stays. Readers of [`crate::events::Events`] are told
    /// [`Change::State`] of a job that is no longer there.
    ///
    /// # Errors
    /// [`Error::Refused`] with `not-found`, or `not-ready` for an open job, or one whose picture would be taken again.
    pub async fn forget(&self, id: u64) -> Result<()> {
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
        self.ledger
            .call(|db| {
                db.drop_copy()?;
                db.checkpoint()
            })
            .await?;
        tracing::info!(job = id, "job {id} is forgotten");
        self.events.tell(Change::State(id));
        Ok(())
    }

    /// Removes an ended job's row and its files.
    pub async fn forget_files(&self, job: Job) -> Result<()> {
        let (results, pictures, ledger, spool) =
            (self.results.clone(), self.pictures.clone(), self.ledger.clone(), self.spool.clone());
        blocking(move || {
            // The files go first: a row without files can be forgotten again, files without a row cannot.
            results.remove(&job)?;
            pictures.remove_all(&job);
            let id = job.id;
            ledger.call_blocking(move |db| db.forget(id))?;
            release_pictures(&ledger, &spool, &job)
        })
        .await
    }

    /// Removes the service's copy of a video that the caller has fetched. Does nothing if it is called again.
    ///
    /// # Errors
    /// [`Error::Refused`] with `not-found`, or `not-ready` for a job whose video is not kept by the service.
    pub async fn collected(&self, id: u64) -> Result<()> {
        let job = self.ended(id, "collected").await?;
        let Some(output) = job.output.clone() else {
            return Err(Error::refused(
                ErrorCode::NotReady,
                format!("job {id} is {}; it has no video", job.state.name()),
            ));
        };
        if self.results.video(&job).is_none() {
            return Err(Error::refused(
                ErrorCode::NotReady,
                format!(
                    "the video of job {id} is not kept by the service; it is yours to move or remove: `{}`",
                    show(&output)
                ),
            ));
        }
        let results = self.results.clone();
        let removed = blocking(move || results.remove(&job)).await?;
        if removed {
            self.ledger
                .call(move |db| {
                    db.result_gone(id)?;
                    db.event(id, "collected", "its video was fetched")
                })
                .await?;
        }
        Ok(())
    }
}
