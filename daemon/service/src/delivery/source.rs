//! The picture in the watched folder: whether its settings have changed, and where it goes when its job has ended.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use animd_common::Error as Common;
use animd_common::files::hash;
use animd_common::tasks::blocking;
use animd_common::watch::away::{self, Leaving};
use animd_common::watch::folder::EARLY;
use animd_common::watch::names::{CANCELED, DONE, FAILED};
use animd_common::watch::root::Root;
use animd_common::watch::sidecar;
use animd_protocol::request::Request;

use super::Delivery;
use crate::error::{Error, Result};
use crate::events::Change;
use crate::store::ledger::{Job, Outcome, Renewal, State};
use crate::store::release_pictures;

impl Delivery {
    /// Returns where the source of a job goes when it ends like this. A retry moves pictures of watched folders only.
    pub fn source_target(&self, job: &Job, outcome: Outcome) -> Option<PathBuf> {
        let source = &job.source.as_ref()?.path;
        let root = self.watches.root_of(source, None);
        if job.retry_of.is_some() && away::outcome_folder(&root, source).is_none() {
            return None;
        }
        let into = match outcome {
            Outcome::Done => DONE,
            Outcome::Failed => FAILED,
            Outcome::Canceled => CANCELED,
        };
        away::target(&root, source, into)
    }

    /// Returns whether a picture's sidecars say something else than its job has, since they were read, or the picture that its
    /// video ends at has become another one. Nothing is read again beside a picture that has left the place where it waited.
    pub fn is_late(&self, job: &Job) -> bool {
        let Some(source) = &job.source else { return false };
        let root = self.watches.root_of(&source.path, None);
        if away::outcome_folder(&root, &source.path).is_some() {
            return false;
        }
        if sidecar::changed_us(&root, &source.path).is_none_or(|changed_us| changed_us <= source.read_us) {
            return ends_elsewhere(job, &root);
        }
        let seed = || job.request.as_ref().map_or(0, |request| request.seed);
        let resolve = |own| self.defaults.resolve(self.defaults.complete(own), seed);
        match sidecar::request(&root, &source.path, resolve) {
            Ok(request) => {
                let same = job.request.as_ref().is_some_and(|known| is_same_wish(known, &request));
                !same || ends_elsewhere(job, &root)
            }
            Err(Common::Refused { text, .. }) => job.error_text != Some(text.into()),
            Err(_) => false,
        }
    }

    /// Returns until when newer words for a job, or its picture once more, make it begin again, in microseconds since the
    /// epoch: a picture is taken before the time is over that it should lie unchanged. `None` for a job that is not a watched
    /// folder's.
    pub fn renewable_until_us(&self, job: &Job) -> Option<i64> {
        let source = job.source.as_ref().filter(|_| job.retry_of.is_none())?;
        let own = self.watches.find(&source.path)?.stable_seconds.map(Duration::from_secs_f64);
        let left = own.unwrap_or_else(|| self.config.get().inbox.stable()).checked_sub(EARLY)?;
        Some((job.created_us as i64).saturating_add(left.as_micros() as i64))
    }

    /// Returns whether what came beside a job's picture in time says something else than the job has, so that the watcher of
    /// the folder is about to bring it. Blocks.
    pub fn is_awaited(&self, job: &Job) -> bool {
        let Some((source, until_us)) = job.source.as_ref().zip(self.renewable_until_us(job)) else {
            return false;
        };
        let root = self.watches.root_of(&source.path, None);
        sidecar::changed_us(&root, &source.path).is_some_and(|changed_us| changed_us <= until_us)
            && self.is_late(job)
    }

    /// Gives an open job other settings and perhaps another picture, and releases what it had before. Returns false if it is
    /// not in state `from` any more.
    pub async fn renew(&self, job: Job, from: State, renewal: Arc<Renewal>) -> Result<bool> {
        let (delivery, id) = (self.clone(), job.id);
        let renewed = blocking(move || -> Result<bool> {
            let kept = renewal.clone();
            let renewed = delivery.ledger.call_blocking(move |db| db.renew(id, from, &kept))?;
            if renewed {
                delivery.parts.remove(&job);
                release_pictures(&delivery.ledger, &delivery.spool, &job)?;
            }
            Ok(renewed)
        });
        let renewed = renewed.await?;
        if renewed {
            tracing::info!(job = id, "job {id} has new settings, from what arrived late beside its picture");
            self.events.tell(Change::State(id));
        }
        Ok(renewed)
    }

    /// Moves the picture and its sidecars out of the watched folder, if it is still the one that was taken, or from the
    /// folder of an earlier outcome to that of a retry's. A picture with a sidecar that came late stays, and gets a new
    /// job. Returns whether the picture was moved.
    pub(super) fn put_source(&self, job: &Job) -> Result<bool> {
        let (Some(source), Some(target)) = (&job.source, job.source_target.clone()) else {
            return Ok(false);
        };
        let id = job.id;
        if job.outcome != Some(Outcome::Canceled) && self.is_late(job) {
            tracing::info!(
                job = id,
                "the picture of job {id} stays for another job: its sidecar arrived late"
            );
            return Ok(false);
        }
        let root = self.watches.root_of(&source.path, Some(&target));
        let has_left = away::outcome_folder(&root, &source.path).is_some();
        let leaving = Leaving {
            root: &root,
            source: &source.path,
            identity: source.identity,
            target,
            note: job.error_text.as_deref().filter(|_| job.outcome == Some(Outcome::Failed)),
            // A sidecar that changed since, but has the same settings, is moved as well.
            sidecars_until_us: match job.outcome {
                Some(Outcome::Canceled) if !has_left => source.read_us,
                _ => i64::MAX,
            },
        };
        let moved = leaving.put_away(|target| {
            let path = target.to_owned();
            self.ledger.call_blocking(move |db| db.set_source_target(id, &path))
        });
        match moved {
            // Nothing takes the picture again from where it is, so nothing has to be kept from that.
            Err(Error::Common(e)) if has_left && !matches!(e, Common::Stopping) => {
                tracing::warn!(
                    job = id,
                    "the picture of job {id} stays in the folder of an earlier outcome: {}",
                    e.without_path()
                );
                Ok(false)
            }
            moved => moved,
        }
    }

    /// Tries once more to move a picture away whose job has ended.
    pub async fn move_left(&self, job: Job) -> Result<()> {
        let delivery = self.clone();
        blocking(move || {
            let id = job.id;
            let moved = delivery.put_source(&job)?;
            delivery.ledger.call_blocking(move |db| db.source_moved(id, moved))
        })
        .await
    }
}

/// Returns whether the picture that a job's video ends at has another content than the service's copy, since the settings were
/// read.
fn ends_elsewhere(job: &Job, root: &Root) -> bool {
    let (Some(source), Some(request), Some(copied)) = (&job.source, &job.request, job.last_sha256) else {
        return false;
    };
    // A picture that cannot be opened now may come back.
    let Ok(Some(last)) = sidecar::open_last(root, &source.path, &request.last) else { return false };
    let changed = rustix::fs::fstat(&last).is_ok_and(|stat| sidecar::stat_changed_us(&stat) > source.read_us);
    changed && hash(&last, |_| Ok(())).is_ok_and(|now| now != copied)
}

/// Returns whether two requests ask for the same. A `LoRA`'s hash is asked for by nobody: a job has it once its file was read.
pub fn is_same_wish(one: &Request, other: &Request) -> bool {
    let asked = |request: &Request| {
        let mut request = request.clone();
        request.lora.iter_mut().for_each(|choice| choice.sha256 = None);
        request
    };
    asked(one) == asked(other)
}
