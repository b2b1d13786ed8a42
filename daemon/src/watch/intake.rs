//! What the service does with complete pictures: a copy in the spool, a row in the ledger, many at a time.

use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::Arc;

use animd_protocol::ErrorCode;
use animd_protocol::request::Request;

use super::folder::{Fate, Ready, Report, Take};
use super::watches::Watched;
use super::{away, root, sidecar};
use crate::board::Change;
use crate::delivery::Desk;
use crate::files::{Identity, show};
use crate::ledger::{Added, Ended, Job, NewJob, Refusal, Source, State};
use crate::spool::Spooled;
use crate::{Error, Result};

/// Queues the pictures of one watched folder.
pub struct Intake {
    desk: Arc<Desk>,
    watched: Arc<Watched>,
}

/// A picture on its way into the queue.
struct Coming<'a> {
    /// Its place in what was handed over.
    at: usize,
    ready: &'a Ready,
    /// When its sidecars were read.
    read_us: i64,
    work: Result<(Spooled, Request), Refusal>,
}

impl Take for Intake {
    async fn take(&mut self, pictures: &[Ready]) -> Vec<Fate> {
        let mut fates = vec![Fate::Waits; pictures.len()];
        if let Err(e) = self.admit(pictures, &mut fates).await {
            let why = reason(&e);
            for fate in fates.iter_mut().filter(|fate| **fate == Fate::Waits) {
                *fate = Fate::Later(why.clone());
            }
        }
        fates
    }

    fn report(&mut self, report: &Report) {
        self.desk.watches.report(&self.watched.path, Some(report));
        self.desk.tell_of_swapped();
    }
}

impl Intake {
    /// For one watched folder.
    pub fn new(desk: Arc<Desk>, watched: Arc<Watched>) -> Self {
        Self { desk, watched }
    }

    async fn admit(&self, pictures: &[Ready], fates: &mut [Fate]) -> Result<()> {
        let identities: Vec<Identity> = pictures.iter().map(|ready| ready.identity).collect();
        let taken = self.desk.ledger.call(move |db| db.taken_all(&identities)).await?;
        let mut new = Vec::new();
        for (at, (ready, job)) in pictures.iter().zip(taken).enumerate() {
            match job {
                Some(job) => fates[at] = self.known(job, ready).await?,
                None => new.push((at, ready)),
            }
        }
        let coming = self.spool(&new, fates)?;
        if coming.is_empty() {
            return Ok(());
        }
        let jobs: Vec<NewJob> = coming.iter().map(|coming| self.job(coming)).collect();
        let spool = self.desk.spool.clone();
        let added = self.desk.ledger.call(move |db| db.add_all(&jobs, |job| spool.has(job))).await?;
        // All of them at first: what goes wrong with one below must not keep the others from being known.
        for (coming, added) in coming.iter().zip(&added) {
            if let Added::New(id) = *added {
                tracing::info!(job = id, "job {id} comes from a watched folder");
                tracing::debug!(job = id, "job {id} is of `{}`", show(&coming.ready.path));
                self.desk.board.tell(Change::Added(id));
            }
        }
        for (coming, added) in coming.into_iter().zip(added) {
            fates[coming.at] = match added {
                Added::New(id) => {
                    if coming.work.is_err() {
                        self.desk.settle(id).await?;
                    }
                    Fate::Taken
                }
                Added::Known(id) => match self.desk.ledger.call(move |db| db.job(id)).await? {
                    Some(job) => self.known(job, coming.ready).await?,
                    None => Fate::Changed,
                },
                Added::Unspooled => Fate::Changed,
                Added::Full => Fate::Waits,
            };
        }
        Ok(())
    }

    /// Reads settings and copies pictures. What may pass is left out, and has its fate.
    #[expect(clippy::unnecessary_wraps, reason = "as its neighbours")]
    fn spool<'a>(&self, new: &[(usize, &'a Ready)], fates: &mut [Fate]) -> Result<Vec<Coming<'a>>> {
        let mut coming = Vec::new();
        let mut copies: Vec<(usize, &Ready, i64, Request)> = Vec::new();
        let mut open: Vec<(File, String)> = Vec::new();
        for &(at, ready) in new {
            // First the time: what comes in between is then seen as late.
            let read_us = sidecar::read_us(&ready.root, &ready.path);
            match self.read(ready) {
                Ok((request, file)) => {
                    copies.push((at, ready, read_us, request));
                    open.push((file, what(&ready.path)));
                }
                Err(Error::Refused { code, text }) => {
                    coming.push(Self::refused(at, ready, read_us, code, text));
                }
                Err(e) => fates[at] = later(&e),
            }
        }
        let copied = self.desk.spool.put_all(&open);
        for (((at, ready, read_us, request), (file, _)), copied) in copies.into_iter().zip(&open).zip(copied)
        {
            match copied {
                Ok(spooled) => coming.push(Coming { at, ready, read_us, work: Ok((spooled, request)) }),
                Err(Error::Refused { .. }) if changed(file, ready) => fates[at] = Fate::Changed,
                Err(Error::Refused { code, text }) => {
                    coming.push(Self::refused(at, ready, read_us, code, text));
                }
                Err(e) => fates[at] = later(&e),
            }
        }
        Ok(coming)
    }

    fn refused<'a>(at: usize, ready: &'a Ready, read_us: i64, code: ErrorCode, text: String) -> Coming<'a> {
        let target = away::target(&ready.root, &ready.path, false);
        Coming { at, ready, read_us, work: Err(Refusal { code, text, target }) }
    }

    /// The picture's settings, and the picture itself, open. [`Error::Refused`] is final, anything else may pass.
    fn read(&self, ready: &Ready) -> Result<(Request, File)> {
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
        Ok((request, file))
    }

    fn request(&self, ready: &Ready) -> Result<Request> {
        let defaults = self.desk.defaults();
        let request = sidecar::request(&ready.root, &ready.path, defaults, draw_seed)?;
        if let Some(outbox) = self.outbox(ready)
            && self.desk.watches.find(&outbox).is_some()
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
        Ok(request)
    }

    /// The folder for the picture's video: the picture's own subfolder, in the outbox.
    fn outbox(&self, ready: &Ready) -> Option<std::path::PathBuf> {
        let own = self.watched.outbox.as_ref();
        if ready.below.as_os_str().is_empty() {
            return own.cloned();
        }
        Some(own.unwrap_or(&self.desk.config().folders.outbox).join(&ready.below))
    }

    fn job(&self, coming: &Coming<'_>) -> NewJob {
        let ready = coming.ready;
        NewJob {
            owner: ready.owner,
            watched: true,
            idempotency_key: None,
            priority: 0,
            outbox: self.outbox(ready),
            retry_of: None,
            per_user: u32::MAX,
            name: ready.path.file_name().unwrap_or_default().to_owned(),
            source: Some(Source {
                path: ready.path.clone(),
                identity: ready.identity,
                read_us: coming.read_us,
            }),
            work: coming
                .work
                .as_ref()
                .map(|(spooled, request)| (spooled.sha256, Box::new(request.clone())))
                .map_err(Clone::clone),
        }
    }

    /// A file that has its job.
    async fn known(&self, mut job: Job, ready: &Ready) -> Result<Fate> {
        let id = job.id;
        // Refused unread, and the ledger or the disk refused in its turn: nobody else settles such a job.
        if job.state == State::Finishing && job.image_sha256.is_none() {
            self.desk.settle(id).await?;
            return Ok(Fate::Taken);
        }
        // It has ended, and the picture could not be moved then; perhaps now.
        if !job.state.is_open() {
            if let Err(e) = self.desk.move_left(job).await {
                tracing::debug!(job = id, "the picture of job {id} still cannot be moved: {e}");
            }
            return Ok(Fate::Taken);
        }
        if let Some(source) = &mut job.source
            && source.path != ready.path
        {
            // A second name of the same file is another wish, for when the first one is done.
            let root = self.desk.watches.root_of(&source.path, None);
            if root::metadata(&root, &source.path).is_ok_and(|meta| Identity::of(&meta) == source.identity) {
                return Ok(Fate::Waits);
            }
            let path = ready.path.clone();
            source.path.clone_from(&path);
            self.desk.ledger.call(move |db| db.source_renamed(id, &path)).await?;
        }
        if !self.desk.is_late(&job) {
            return Ok(Fate::Taken);
        }
        match job.state {
            State::Queued => self.hear_late(&job, ready).await,
            // The picture stays when its job has ended, and is found again then.
            _ => Ok(Fate::Waits),
        }
    }

    /// A sidecar that came after its picture was queued, but before it is begun, still counts.
    async fn hear_late(&self, job: &Job, ready: &Ready) -> Result<Fate> {
        let id = job.id;
        let read_us = sidecar::read_us(&ready.root, &ready.path);
        match self.request(ready) {
            Ok(request) => {
                if !self.desk.ledger.call(move |db| db.set_request(id, &request, read_us)).await? {
                    return Ok(Fate::Waits);
                }
                tracing::info!(job = id, "job {id} has new settings: its sidecar came late");
            }
            Err(Error::Refused { code, text }) => {
                self.desk.ledger.call(move |db| db.settings_read(id, read_us)).await?;
                self.desk.end(id, State::Queued, Ended::Failed { code, text }).await?;
            }
            Err(e) => return Err(e),
        }
        Ok(Fate::Taken)
    }
}

/// A seed for a job that has none: short enough for a file's name.
pub fn draw_seed() -> u64 {
    uuid::Uuid::new_v4().as_u128() as u64 & 0xffff_ffff
}

fn what(path: &Path) -> String {
    format!("the picture `{}`", show(path.file_name().unwrap_or_default()))
}

fn changed(file: &File, ready: &Ready) -> bool {
    file.metadata().is_ok_and(|now| Identity::of(&now) != ready.identity)
}

/// Trouble that may pass. What has gone or changed is looked at again, and forgotten if it is not there.
fn later(e: &Error) -> Fate {
    match e {
        Error::File { source, .. }
            if matches!(source.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) =>
        {
            Fate::Changed
        }
        e => Fate::Later(reason(e)),
    }
}

/// For the log: without names.
fn reason(e: &Error) -> String {
    match e {
        Error::File { action, source, .. } => format!("cannot {action} a file: {source}"),
        e => e.to_string(),
    }
}
