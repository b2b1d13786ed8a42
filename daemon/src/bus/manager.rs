//! The manager object: submitting, finding and listing jobs, and the service's state.

use std::collections::HashMap;
use std::ffi::OsString;
use std::fs::File;
use std::os::fd::OwnedFd as StdOwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{CWD, Mode, OFlags, ResolveFlags};
use zbus::message::Header;
use zbus::object_server::SignalEmitter;
use zbus::{Connection, ObjectPath, OwnedFd, OwnedObjectPath, OwnedVariant, Variant, interface};

use super::error::BusError;
use super::options::{self, Options, Submission};
use super::{Facts, may, object_path, serve, uid_of};
use crate::board::Change;
use crate::delivery::Desk;
use crate::files::{Identity, show};
use crate::inbox::draw_seed;
use crate::ledger::{Added, Job, NewJob, Source};
use crate::wishes::Wishes;

/// The object `/org/animd/Animd1`.
pub struct Manager {
    pub(super) desk: Arc<Desk>,
    pub(super) wishes: Wishes,
    /// Jobs that wait; the mirror keeps it fresh.
    pub(super) queued: u32,
}

#[interface(name = "org.animd.Animd1.Manager")]
impl Manager {
    /// Submits one picture, a regular file open for reading. Options: every setting of `animctl submit`, by its name with
    /// underscores, `name` s (what the video's name begins with), `idempotency_key` s (the same key from the same user
    /// gives the same job).
    #[zbus(out_args("job"))]
    async fn submit(
        &self,
        image: OwnedFd,
        options: Options,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &Connection,
    ) -> Result<OwnedObjectPath, BusError> {
        let uid = uid_of(connection, &header).await?;
        let submission = options::submission(&options)?;
        let file = File::from(StdOwnedFd::from(image));
        self.add(connection, uid, submission, file, None).await
    }

    /// Submits a picture in a watched folder, for callers that cannot pass descriptors.
    #[zbus(out_args("job"))]
    async fn submit_path(
        &self,
        path: String,
        options: Options,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &Connection,
    ) -> Result<OwnedObjectPath, BusError> {
        let uid = uid_of(connection, &header).await?;
        let mut submission = options::submission(&options)?;
        let inbox = self.desk.config().folders.inbox.clone();
        let path = PathBuf::from(path);
        if submission.name.is_none() {
            submission.name = path.file_name().map(OsString::from);
        }
        let asked = path.clone();
        let file = tokio::task::spawn_blocking(move || open_watched(&inbox, &asked, uid))
            .await
            .map_err(|_| BusError::Internal("the service is stopping".into()))??;
        let meta = file.metadata().map_err(|e| BusError::Internal(e.to_string()))?;
        // What lies in the inbox itself is the watch's: one job for both, and its picture is moved when it ends.
        let source = (path.parent() == Some(&self.desk.config().folders.inbox))
            .then(|| Source { path, identity: Identity::of(&meta) });
        self.add(connection, uid, submission, file, source).await
    }

    /// The object of a job, also of one that has ended long ago.
    #[zbus(out_args("job"))]
    async fn get_job(
        &self,
        id: u64,
        #[zbus(connection)] connection: &Connection,
    ) -> Result<OwnedObjectPath, BusError> {
        let known = i64::try_from(id).is_ok() && self.desk.ledger.call(move |db| db.job(id)).await?.is_some();
        if !known {
            return Err(BusError::NotFound(format!("there is no job {id}; `animctl list` shows the jobs")));
        }
        serve(connection, &self.desk, &self.wishes, id).await?;
        // The mirror removes the object of an ended job after its time.
        self.desk.board.tell(Change::State(id));
        Ok(object_path(id))
    }

    /// Public facts of jobs, the newest first, and `name` s of those that the caller may see. Filter: `state` s, `owner` u, `before` t (a smaller id), `limit` u (100).
    #[zbus(out_args("jobs"))]
    async fn list(
        &self,
        filter: Options,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &Connection,
    ) -> Result<Vec<HashMap<String, OwnedVariant>>, BusError> {
        let uid = uid_of(connection, &header).await?;
        let filter = options::filter(&filter)?;
        let (jobs, queue) = self.desk.ledger.call(move |db| Ok((db.list(&filter)?, db.queue()?))).await?;
        let entry = |job: &Job| {
            let mut dict = Facts::new(job, self.desk.board.live(job.id), &queue).dict();
            if may(uid, job.owner)
                && let Ok(name) = Variant::from(show(&job.name)).try_into_owned()
            {
                dict.insert("name".into(), name);
            }
            dict
        };
        Ok(jobs.iter().map(entry).collect())
    }

    /// A job is new.
    #[zbus(signal)]
    pub async fn job_new(emitter: &SignalEmitter<'_>, id: u64, job: ObjectPath<'_>) -> zbus::Result<()>;

    /// A job has ended: done, failed or canceled. Its object stays ten minutes.
    #[zbus(signal)]
    pub async fn job_removed(
        emitter: &SignalEmitter<'_>,
        id: u64,
        job: ObjectPath<'_>,
        result: &str,
    ) -> zbus::Result<()>;

    #[zbus(property(emits_changed_signal = "const"))]
    #[expect(clippy::unused_self, clippy::unnecessary_literal_bound, reason = "the shape that zbus asks for")]
    fn version(&self) -> &str {
        env!("CARGO_PKG_VERSION")
    }

    /// starting, loading, idle, busy, no-weights, no-gpu, no-engine, stopping
    #[zbus(property)]
    fn state(&self) -> String {
        self.desk.board.status().borrow().state.to_owned()
    }

    /// The state as a sentence, with the remedy.
    #[zbus(property)]
    fn state_text(&self) -> String {
        self.desk.board.status().borrow().text.clone()
    }

    /// Jobs that wait.
    #[zbus(property)]
    fn queued(&self) -> u32 {
        self.queued
    }
}

impl Manager {
    async fn known(&self, connection: &Connection, id: u64) -> Result<OwnedObjectPath, BusError> {
        serve(connection, &self.desk, &self.wishes, id).await?;
        self.desk.board.tell(Change::State(id));
        Ok(object_path(id))
    }

    async fn add(
        &self,
        connection: &Connection,
        uid: u32,
        submission: Submission,
        file: File,
        source: Option<Source>,
    ) -> Result<OwnedObjectPath, BusError> {
        let desk = &self.desk;
        let request = submission
            .settings
            .or(desk.defaults())
            .resolve(draw_seed)
            .map_err(|e| BusError::InvalidOption(e.to_string()))?;
        let limit = desk.config().queue.per_user;
        let full = || {
            BusError::QueueFull(format!(
                "you have {limit} open jobs, which is the limit (queue.per_user); wait for one, or cancel one"
            ))
        };
        // Before the picture is copied; what decides is the same question inside `Store::add`.
        let key = submission.idempotency_key.clone();
        match desk.ledger.call(move |db| db.foresee(uid, key.as_deref(), limit)).await? {
            Some(Added::Known(id)) => return self.known(connection, id).await,
            Some(Added::Full) if source.is_none() => return Err(full()),
            _ => {}
        }
        let file = Arc::new(file);
        let name = submission.name.unwrap_or_else(|| super::DEFAULT_NAME.into());
        for _ in 0..3 {
            let (spool, copied) = (desk.spool.clone(), file.clone());
            let spooled = tokio::task::spawn_blocking(move || spool.put(&copied, "the picture"))
                .await
                .map_err(|_| BusError::Internal("the service is stopping".into()))??;
            let new = NewJob {
                owner: uid,
                watched: source.is_some(),
                idempotency_key: submission.idempotency_key.clone(),
                priority: 0,
                outbox: None,
                retry_of: None,
                per_user: limit,
                name: name.clone(),
                source: source.clone(),
                work: Ok((spooled.sha256, Box::new(request.clone()))),
            };
            let there = desk.spool.path(&spooled.sha256);
            let added = desk.ledger.call(move |db| db.add(&new, || there.exists())).await?;
            let sha256 = spooled.sha256;
            drop(spooled);
            match added {
                Added::New(id) => {
                    tracing::info!(job = id, "job {id} comes from user {uid}");
                    tracing::debug!(job = id, "job {id} is of `{}`", show(&name));
                    serve(connection, desk, &self.wishes, id).await?;
                    desk.board.tell(Change::Added(id));
                    return Ok(object_path(id));
                }
                Added::Known(_) | Added::Full => {
                    let (spool, ledger) = (desk.spool.clone(), desk.ledger.clone());
                    // The picture may be another one than the known job's.
                    tokio::task::spawn_blocking(move || spool.release(&ledger, sha256))
                        .await
                        .map_err(|_| BusError::Internal("the service is stopping".into()))??;
                    let Added::Known(id) = added else { return Err(full()) };
                    return self.known(connection, id).await;
                }
                Added::Unspooled => {}
            }
        }
        Err(BusError::Internal(
            "the picture's copy is removed again and again; is another program cleaning the spool?".into(),
        ))
    }
}

/// Opens a file under the watched folder that the caller could read, too: nobody borrows the service's rights.
fn open_watched(inbox: &Path, path: &Path, uid: u32) -> Result<File, BusError> {
    let outside = || {
        BusError::NotAuthorized(format!(
            "`{}` is not in the watched folder `{}`; pass a descriptor to Submit, as `animctl submit` does",
            show(path),
            show(inbox)
        ))
    };
    let below = path.strip_prefix(inbox).map_err(|_| outside())?;
    let cannot = |e: rustix::io::Errno| match e {
        rustix::io::Errno::NOENT => BusError::NotFound(format!("there is no file `{}`", show(path))),
        rustix::io::Errno::LOOP | rustix::io::Errno::XDEV => outside(),
        e => BusError::InvalidImage(format!("`{}` cannot be opened: {e}", show(path))),
    };
    let flags = OFlags::CLOEXEC | OFlags::RDONLY;
    let dir = rustix::fs::openat(CWD, inbox, flags | OFlags::DIRECTORY, Mode::empty()).map_err(cannot)?;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
    let file =
        rustix::fs::openat2(&dir, below, flags | OFlags::NONBLOCK, Mode::empty(), resolve).map_err(cannot)?;
    let file = File::from(file);
    let meta = file.metadata().map_err(|e| BusError::Internal(e.to_string()))?;
    if !may(uid, meta.uid()) && meta.mode() & 0o004 == 0 {
        return Err(BusError::NotAuthorized(format!(
            "`{}` is another user's, and not readable for all",
            show(path)
        )));
    }
    Ok(file)
}
