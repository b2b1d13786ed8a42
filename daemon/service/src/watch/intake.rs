//! What the service does with complete pictures: a copy in the spool, a row in the ledger, many at a time.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use animd_common::Error as Common;
use animd_common::files::{Identity, changed_us, show};
use animd_common::watch::names::FAILED;
use animd_common::watch::{Fate, Ready, Report, Take, Watched, away, root, sidecar};
use animd_protocol::ErrorCode;
use animd_protocol::request::Request;

use super::tell_of_swapped;
use crate::config::CurrentConfig;
use crate::delivery::{Delivery, is_same_wish};
use crate::error::{Error, Result};
use crate::queue::{Origin, Queue, Submission, draw_seed};
use crate::store::ledger::{Added, Ended, Job, Refusal, Renewal, Source, State};
use crate::store::{Spooled, Watches};

/// Queues the pictures of one watched folder.
pub struct Intake {
    /// The configured outbox.
    pub config: CurrentConfig,
    /// All watched folders.
    pub watches: Watches,
    /// Where jobs go.
    pub queue: Queue,
    /// What becomes of pictures whose job has ended.
    pub delivery: Delivery,
    /// The folder.
    pub watched: Arc<Watched>,
    /// The jobs of pictures that were taken early.
    pub recent: Recent,
}

/// The jobs of pictures whose time to lie unchanged is not over: a picture that is written once more within it replaces the
/// first. After a restart of the service it is another one.
#[derive(Default)]
pub struct Recent {
    jobs: HashMap<PathBuf, (u64, Instant)>,
}

impl Recent {
    fn insert(&mut self, path: PathBuf, job: u64, stable: Duration) {
        self.jobs.insert(path, (job, Instant::now() + stable));
    }

    /// Returns the job of the picture that was taken early from this place.
    fn at(&self, path: &Path) -> Option<u64> {
        self.jobs.get(path).map(|(job, _)| *job)
    }

    /// Forgets the pictures whose time is over.
    fn prune(&mut self) {
        let now = Instant::now();
        self.jobs.retain(|_, (_, end)| *end > now);
    }
}

/// A picture on its way into the queue.
struct Coming<'a> {
    /// The picture's index among those that were handed over.
    at: usize,
    ready: &'a Ready,
    submission: Submission,
}

impl Take for Intake {
    async fn take(&mut self, pictures: &[Ready]) -> Vec<Fate> {
        let mut fates = vec![Fate::Waits; pictures.len()];
        self.recent.prune();
        if let Err(e) = self.admit(pictures, &mut fates).await {
            let why = e.without_path();
            for fate in fates.iter_mut().filter(|fate| **fate == Fate::Waits) {
                *fate = Fate::Later(why.clone());
            }
        }
        fates
    }

    fn report(&mut self, report: &Report) {
        self.watches.report(&self.watched.path, Some(report));
        tell_of_swapped(&self.watches, &self.queue.events);
    }
}

impl Intake {
    async fn admit(&mut self, pictures: &[Ready], fates: &mut [Fate]) -> Result<()> {
        let identities: Vec<Identity> = pictures.iter().map(|ready| ready.identity).collect();
        let taken = self.queue.ledger.call(move |db| db.taken_all(&identities)).await?;
        let mut new = Vec::new();
        for (at, (ready, job)) in pictures.iter().zip(taken).enumerate() {
            match job {
                Some(job) => fates[at] = self.known(job, ready).await?,
                None => new.push((at, ready)),
            }
        }
        let new = self.fitting(new).await?;
        let coming = self.spool(&new, fates)?;
        let coming = self.renewed(coming, fates).await?;
        if coming.is_empty() {
            return Ok(());
        }

        let (places, mut submissions): (Vec<_>, Vec<_>) =
            coming.into_iter().map(|coming| ((coming.at, coming.ready), coming.submission)).unzip();
        let added = self.queue.submit_all(&mut submissions).await?;
        for (((at, ready), submission), added) in places.into_iter().zip(&submissions).zip(added) {
            fates[at] = match added {
                Added::New(id) => {
                    if submission.work.is_err() {
                        self.delivery.settle(id).await?;
                    } else if ready.early {
                        let own = self.watched.stable_seconds.map(Duration::from_secs_f64);
                        let stable = own.unwrap_or_else(|| self.config.get().inbox.stable());
                        self.recent.insert(ready.path.clone(), id, stable);
                    }
                    Fate::Taken
                }
                Added::Known(id) => match self.queue.ledger.call(move |db| db.job(id)).await? {
                    Some(job) => self.known(job, ready).await?,
                    None => Fate::Changed,
                },
                Added::Unspooled => Fate::Changed,
                Added::Full | Added::Over(_) => Fate::Waits,
            };
        }
        Ok(())
    }

    /// Returns the pictures whose owners have room for them. The others wait where they are.
    async fn fitting<'a>(&self, new: Vec<(usize, &'a Ready)>) -> Result<Vec<(usize, &'a Ready)>> {
        let bytes = |ready: &Ready| root::metadata(&ready.root, &ready.path).map_or(0, |meta| meta.len());
        let pictures: Vec<_> = new.iter().map(|(_, ready)| (ready.owner, bytes(ready))).collect();
        let room = self.queue.ledger.call(move |db| db.room_for(&pictures)).await?;
        if let Some((quota, (_, ready))) = room.iter().zip(&new).find_map(|(over, new)| Some(((*over)?, new)))
        {
            tracing::warn!("pictures stay in a watched folder: {}", self.queue.over(quota, ready.owner));
        }
        Ok(new.into_iter().zip(room).filter(|(_, over)| over.is_none()).map(|(new, _)| new).collect())
    }

    /// Reads settings and copies pictures. A picture whose error may pass is left out, and its fate is set.
    #[expect(clippy::unnecessary_wraps, reason = "as its neighbours")]
    fn spool<'a>(&self, new: &[(usize, &'a Ready)], fates: &mut [Fate]) -> Result<Vec<Coming<'a>>> {
        let mut coming = Vec::new();
        let mut copies: Vec<(usize, &Ready, i64, Request)> = Vec::new();
        let mut open: Vec<(File, String)> = Vec::new();
        // For each of them its last picture's place in `open`, if it has one; those come after all first ones.
        let mut lasts: Vec<Option<(File, String)>> = Vec::new();
        for &(at, ready) in new {
            // The time is read first, so that a change in between counts as late.
            let read_us = sidecar::read_us(&ready.root, &ready.path);
            match self.read(ready) {
                Ok((request, file, last)) => {
                    let name = request.last.clone();
                    copies.push((at, ready, read_us, request));
                    open.push((file, what(&ready.path)));
                    lasts.push(last.map(|last| (last, what_last(&name))));
                }
                // More words may make it right.
                Err(Error::Common(Common::Refused { .. })) if ready.early => fates[at] = Fate::TooEarly,
                Err(Error::Common(Common::Refused { code, text })) => {
                    coming.push(self.refused(at, ready, read_us, code, text));
                }
                Err(e) => fates[at] = later(&e),
            }
        }
        let with_last: Vec<bool> = lasts.iter().map(Option::is_some).collect();
        let count = open.len();
        open.extend(lasts.into_iter().flatten());
        let mut copied = self.queue.spool.put_all(&open);
        let mut lasts = copied.split_off(count).into_iter();
        let copied = copied.into_iter().zip(with_last).map(|(copied, with_last)| {
            let last = if with_last { lasts.next().transpose() } else { Ok(None) };
            Ok((copied?, last?))
        });
        let copied: Vec<Result<(Spooled, Option<Spooled>)>> = copied.collect();
        for (((at, ready, read_us, request), (file, _)), copied) in copies.into_iter().zip(&open).zip(copied)
        {
            match copied {
                Ok((spooled, last)) => {
                    coming.push(self.coming(at, ready, read_us, Ok((spooled, request)), last));
                }
                Err(Error::Common(Common::Refused { .. })) if changed(file, ready) => {
                    fates[at] = Fate::Changed;
                }
                Err(Error::Common(Common::Refused { .. })) if ready.early => fates[at] = Fate::TooEarly,
                Err(Error::Common(Common::Refused { code, text })) => {
                    coming.push(self.refused(at, ready, read_us, code, text));
                }
                Err(e) => fates[at] = later(&e),
            }
        }
        Ok(coming)
    }

    fn refused<'a>(
        &self,
        at: usize,
        ready: &'a Ready,
        read_us: i64,
        code: ErrorCode,
        text: String,
    ) -> Coming<'a> {
        let target = away::target(&ready.root, &ready.path, FAILED);
        self.coming(at, ready, read_us, Err(Refusal { code, text, target }), None)
    }

    /// Returns the picture's settings, and the picture itself and the one that its video ends at, open. [`Error::Refused`] is
    /// final, anything else may pass.
    fn read(&self, ready: &Ready) -> Result<(Request, File, Option<File>)> {
        let request = self.request(ready)?;
        let what = what(&ready.path);
        let (file, meta) = root::open_regular(&ready.root, &ready.path).map_err(|e| match e.kind() {
            io::ErrorKind::PermissionDenied => Error::refused(ErrorCode::File,
                format!(
                    "{what} may not be read by the service; copy it with `install -m 644`, or use `animctl submit`"
                ),
            ),
            io::ErrorKind::InvalidInput => {
                Error::refused(ErrorCode::InvalidImage, format!("{what} cannot be taken: {e}"))
            }
            _ => Error::file("open", &ready.path)(e),
        })?;
        if Identity::of(&meta) != ready.identity {
            return Err(Error::file("read", &ready.path)(io::ErrorKind::NotFound.into()));
        }
        let last = sidecar::open_last(&ready.root, &ready.path, &request.last)?;
        Ok((request, file, last))
    }

    fn request(&self, ready: &Ready) -> Result<Request> {
        let defaults = &self.delivery.defaults;
        let request = sidecar::request(&ready.root, &ready.path, |own| {
            defaults.resolve(defaults.complete(own), draw_seed)
        })?;
        if let Some(outbox) = self.outbox(ready)
            && self.watches.find(&outbox).is_some()
        {
            return Err(Error::refused(
                ErrorCode::Output,
                format!(
                    "its video would go to `{}`, which lies in a watched folder; rename the picture's folder, or choose \
                     another outbox",
                    show(&outbox)
                ),
            ));
        }
        // The second picture of a pair may be on its way.
        if !request.has_last_frame()
            && self
                .queue
                .profiles
                .recipes()
                .of(request.model.as_deref())
                .is_some_and(|recipe| recipe.needs_last_frame())
        {
            let why = "the model makes videos between two pictures; the second one is called as the first, with `.last` \
                       before its ending";
            return Err(Error::file("find the last picture of", &ready.path)(io::Error::other(why)));
        }
        self.queue.admit(&request)?;
        Ok(request)
    }

    /// Returns the folder for the picture's video: the picture's own subfolder, in the outbox.
    fn outbox(&self, ready: &Ready) -> Option<PathBuf> {
        let own = self.watched.outbox.as_ref();
        if ready.below.as_os_str().is_empty() {
            return own.cloned();
        }
        Some(own.unwrap_or(&self.config.get().folders.outbox).join(&ready.below))
    }

    /// Returns what a picture is queued with. `read_us` is when its sidecars were read.
    fn coming<'a>(
        &self,
        at: usize,
        ready: &'a Ready,
        read_us: i64,
        work: Result<(Spooled, Request), Refusal>,
        last: Option<Spooled>,
    ) -> Coming<'a> {
        let submission = Submission {
            owner: ready.owner,
            name: ready.path.file_name().unwrap_or_default().to_owned(),
            origin: Origin::Folder,
            priority: 0,
            outbox: self.outbox(ready),
            source: Some(Source { path: ready.path.clone(), identity: ready.identity, read_us }),
            work,
            last,
        };
        Coming { at, ready, submission }
    }

    /// Returns the fate of a file that has a job already.
    async fn known(&self, mut job: Job, ready: &Ready) -> Result<Fate> {
        let id = job.id;
        // Refused unread, and the ledger or the disk refused in its turn: nobody else settles such a job.
        if job.state == State::Finishing && job.image_sha256.is_none() {
            self.delivery.settle(id).await?;
            return Ok(Fate::Taken);
        }
        // The job has ended, and its picture could not be moved at the time; perhaps it can be now.
        if !job.state.is_open() {
            if let Err(e) = self.delivery.move_left(job).await {
                tracing::debug!(job = id, "the picture of job {id} still cannot be moved: {e}");
            }
            return Ok(Fate::Taken);
        }
        if let Some(source) = &mut job.source
            && source.path != ready.path
        {
            // A second name of the same file asks for another job, after the first one is done.
            let root = self.watches.root_of(&source.path, None);
            if root::metadata(&root, &source.path).is_ok_and(|meta| Identity::of(&meta) == source.identity) {
                return Ok(Fate::Waits);
            }
            let path = ready.path.clone();
            source.path.clone_from(&path);
            self.queue.ledger.call(move |db| db.source_renamed(id, &path)).await?;
        }
        if !self.delivery.is_late(&job) {
            return Ok(Fate::Taken);
        }
        let changed_us = sidecar::changed_us(&ready.root, &ready.path).unwrap_or_default();
        match job.state {
            State::Queued => self.hear_late(job, ready).await,
            State::Running if self.is_renewable(&job, changed_us) => self.hear_late(job, ready).await,
            // The picture stays when its job has ended, and is found again then.
            _ => Ok(Fate::Waits),
        }
    }

    /// Returns whether what changed at this time beside the picture of a running job makes it begin again.
    fn is_renewable(&self, job: &Job, changed_us: i64) -> bool {
        self.delivery.renewable_until_us(job).is_some_and(|until_us| changed_us <= until_us)
    }

    /// Gives the pictures to their jobs that were written once more while they could still be: the newer one counts.
    /// Returns the others.
    async fn renewed<'a>(&self, coming: Vec<Coming<'a>>, fates: &mut [Fate]) -> Result<Vec<Coming<'a>>> {
        let mut others = Vec::new();
        for mut coming in coming {
            let job = match self.recent.at(&coming.ready.path) {
                Some(id) => self.queue.ledger.call(move |db| db.job(id)).await?,
                None => None,
            };
            let written_us =
                root::metadata(&coming.ready.root, &coming.ready.path).map(|meta| changed_us(&meta));
            let job = job.filter(|job| {
                matches!(job.state, State::Queued | State::Running)
                    && coming.submission.work.as_ref().is_ok_and(|work| is_other(job, work))
                    && written_us.is_ok_and(|written_us| self.is_renewable(job, written_us))
            });
            match (job, coming.submission.work) {
                (Some(job), Ok((spooled, request))) => {
                    let renewal = Renewal {
                        request,
                        read_us: coming.submission.source.as_ref().map_or(0, |source| source.read_us),
                        last: coming.submission.last.take(),
                        picture: Some((spooled, coming.ready.identity)),
                    };
                    fates[coming.at] = self.renew(job, renewal).await?;
                }
                (_, work) => {
                    coming.submission.work = work;
                    others.push(coming);
                }
            }
        }
        Ok(others)
    }

    /// Copies the picture that a request's video ends at, if it names one.
    fn last(&self, ready: &Ready, request: &Request) -> Result<Option<Spooled>> {
        let last = sidecar::open_last(&ready.root, &ready.path, &request.last)?;
        last.map(|last| self.queue.spool.put(&last, &what_last(&request.last))).transpose()
    }

    /// Gives an open job the settings of a sidecar that came late, and returns what becomes of the picture.
    async fn hear_late(&self, job: Job, ready: &Ready) -> Result<Fate> {
        let read_us = sidecar::read_us(&ready.root, &ready.path);
        let read = self.request(ready).and_then(|request| Ok((self.last(ready, &request)?, request)));
        match read {
            Ok((last, request)) => self.renew(job, Renewal { request, read_us, last, picture: None }).await,
            Err(Error::Common(Common::Refused { .. })) if ready.early => Ok(Fate::TooEarly),
            // The picture stays when its job has ended, and is refused then.
            Err(Error::Common(Common::Refused { .. })) if job.state == State::Running => Ok(Fate::Waits),
            Err(Error::Common(Common::Refused { code, text })) => {
                let id = job.id;
                self.queue.ledger.call(move |db| db.settings_read(id, read_us)).await?;
                self.delivery.end(id, State::Queued, Ended::Failed { code, text }).await?;
                Ok(Fate::Taken)
            }
            Err(e) => Ok(later(&e)),
        }
    }

    /// Gives an open job other settings and perhaps another picture.
    async fn renew(&self, job: Job, renewal: Renewal) -> Result<Fate> {
        let renewal = Arc::new(renewal);
        let renewed = match job.state {
            State::Running => self.queue.commands.renew(job.id, renewal).await?,
            _ => self.delivery.renew(job, State::Queued, renewal).await?,
        };
        // The job has been started or has ended meanwhile.
        Ok(if renewed { Fate::Taken } else { Fate::Changed })
    }
}

/// Returns whether a picture and its settings are other ones than a job has, apart from the seed, which may have been drawn.
fn is_other(job: &Job, (spooled, request): &(Spooled, Request)) -> bool {
    let is_same = job
        .request
        .as_ref()
        .is_some_and(|known| is_same_wish(&Request { seed: request.seed, ..known.clone() }, request));
    job.image_sha256 != Some(spooled.sha256) || !is_same
}

fn what(path: &Path) -> String {
    format!("the picture `{}`", show(path.file_name().unwrap_or_default()))
}

fn what_last(name: &str) -> String {
    format!("the last picture `{}`", show(name))
}

fn changed(file: &File, ready: &Ready) -> bool {
    file.metadata().is_ok_and(|now| Identity::of(&now) != ready.identity)
}

/// Returns the fate of a picture after an error that may pass. A picture that has gone or changed is looked at again.
fn later(e: &Error) -> Fate {
    match e {
        Error::Common(Common::File { source, .. })
            if matches!(source.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) =>
        {
            Fate::Changed
        }
        e => Fate::Later(e.without_path()),
    }
}
