//! The manager object: submitting, finding and listing jobs, and the service's state.

use std::collections::HashMap;
use std::ffi::OsString;
use std::fs::{self, File};
use std::os::fd::OwnedFd as StdOwnedFd;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{Mode, OFlags, ResolveFlags};
use zbus::message::Header;
use zbus::object_server::SignalEmitter;
use zbus::{Connection, ObjectPath, OwnedFd, OwnedObjectPath, OwnedVariant, interface};

use super::copies::Turn;
use super::describe::{self, Whole};
use super::error::BusError;
use super::gate::Leaving;
use super::options::{self, Options, Submission};
use super::rights::Action;
use super::{Facts, Hub, hold, object_path, plan, stats, watches};
use crate::board::Change;
use crate::delivery::blocking;
use crate::files::{Identity, show};
use crate::ledger::{Added, Job, NewJob, Source};
use crate::watch::root::{self, Dir, Root};
use crate::watch::{draw_seed, names, sidecar};

/// The most jobs that `List` gives at a time.
const MOST_LISTED: u32 = 1000;
/// The most jobs that `History` gives at a time.
const MOST_DESCRIBED: u32 = 200;
/// About the most bytes of these: jobs with long prompts come in more answers, which a client asks for in the same way.
const ANSWER_BYTES: usize = 1 << 20;

/// Who submits, and word when they leave.
struct Caller {
    uid: u32,
    leaving: Leaving,
}

/// The object `/org/animd/Animd1`.
pub struct Manager {
    pub(super) hub: Arc<Hub>,
}

#[interface(name = "org.animd.Animd1.Manager", introspection_docs = false)]
impl Manager {
    #[zbus(out_args("job"))]
    async fn submit(
        &self,
        image: OwnedFd,
        options: Options,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &Connection,
    ) -> Result<OwnedObjectPath, BusError> {
        let (caller, submission) = self.submission(connection, &header, &options).await?;
        let file = File::from(StdOwnedFd::from(image));
        self.add(connection, caller, submission, file, None).await
    }

    #[zbus(out_args("job"))]
    async fn submit_path(
        &self,
        path: String,
        options: Options,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &Connection,
    ) -> Result<OwnedObjectPath, BusError> {
        let (mut caller, mut submission) = self.submission(connection, &header, &options).await?;
        let uid = caller.uid;
        let path = PathBuf::from(path);
        let watched = self.hub.desk.watches.find(&path).ok_or_else(|| outside(&path))?;
        if submission.name.is_none() {
            submission.name = path.file_name().map(OsString::from);
        }
        let trusted = self.hub.rights.trusted(uid);
        let root = self.hub.desk.watches.root(&watched.path);
        let open = move |_: &Turn| {
            let file = open_watched(&root, &path, uid, trusted)?;
            let meta = file.metadata().map_err(|e| BusError::Internal(e.to_string()))?;
            // What the watch looks at is the watch's: one job for both, and its picture is moved when it ends.
            let below = path.strip_prefix(&watched.path).is_ok_and(names::is_watched);
            let source = below.then(|| Source {
                read_us: sidecar::read_us(&root, &path),
                identity: Identity::of(&meta),
                path,
            });
            Ok::<_, BusError>((file, source))
        };
        let (file, source) = self.hub.copies.run(uid, caller.leaving.left(), open).await??;
        self.add(connection, caller, submission, file, source).await
    }

    #[zbus(out_args("plan"))]
    async fn plan(&self, options: Options) -> Result<HashMap<String, OwnedVariant>, BusError> {
        plan::plan(&self.hub.desk, options::plan(&options)?).await
    }

    #[zbus(out_args("job"))]
    async fn get_job(
        &self,
        id: u64,
        #[zbus(connection)] connection: &Connection,
    ) -> Result<OwnedObjectPath, BusError> {
        if i64::try_from(id).is_err() || !self.hub.serve_id(connection, id).await? {
            return Err(BusError::NotFound(format!("there is no job {id}; `animctl list` shows the jobs")));
        }
        // The mirror removes the object of an ended job after its time.
        self.hub.desk.board.tell(Change::State(id));
        Ok(object_path(id))
    }

    #[zbus(out_args("jobs"))]
    async fn list(
        &self,
        filter: Options,
        #[zbus(header)] header: Header<'_>,
    ) -> Result<Vec<HashMap<String, OwnedVariant>>, BusError> {
        let uid = self.hub.rights.uid(&header)?;
        let filter = options::filter(&filter, MOST_LISTED)?;
        let jobs = self.hub.desk.ledger.call(move |db| db.list(&filter)).await?;
        let all = self.hub.rights.trusted(uid);
        let entry = |job: &Job| {
            let facts = Facts::new(job, self.hub.desk.board.live(job.id));
            let name = (all || uid == job.owner).then(|| show(&job.name));
            facts.dict(self.hub.cards.position(&facts), name)
        };
        Ok(jobs.iter().map(entry).collect())
    }

    #[zbus(out_args("jobs"))]
    async fn history(
        &self,
        filter: Options,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &Connection,
    ) -> Result<Vec<HashMap<String, OwnedVariant>>, BusError> {
        let uid = self.hub.rights.uid(&header)?;
        let mut filter = options::filter(&filter, MOST_DESCRIBED)?;
        match filter.owner {
            Some(owner) => _ = self.hub.rights.owner(connection, &header, owner).await?,
            None if self.hub.rights.trusted(uid) => {}
            None => filter.owner = Some(uid),
        }
        let jobs = self.hub.desk.ledger.call(move |db| {
            let mut left = ANSWER_BYTES;
            let fits = |job: &Job| {
                let first = left == ANSWER_BYTES;
                let more = left.checked_sub(describe::size(job));
                left = more.unwrap_or(0);
                first || more.is_some()
            };
            let jobs = db.list_while(&filter, fits)?;
            jobs.into_iter().map(|job| Whole::of(job, db)).collect::<crate::Result<Vec<_>>>()
        });
        Ok(jobs.await?.into_iter().map(describe::description).collect())
    }

    #[zbus(out_args("sums"))]
    async fn statistics(
        &self,
        options: Options,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &Connection,
    ) -> Result<Vec<HashMap<String, OwnedVariant>>, BusError> {
        let uid = self.hub.rights.uid(&header)?;
        let mut of = options::sums(&options)?;
        match of.owner {
            Some(owner) => _ = self.hub.rights.owner(connection, &header, owner).await?,
            None if self.hub.rights.trusted(uid) => {}
            None => of.owner = Some(uid),
        }
        let sums = self.hub.desk.ledger.call(move |db| db.sums(of.by, of.owner, of.since_us)).await?;
        Ok(sums.into_iter().map(stats::sum).collect())
    }

    #[zbus(out_args("timeline"))]
    async fn timeline(
        &self,
        id: u64,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &Connection,
    ) -> Result<HashMap<String, OwnedVariant>, BusError> {
        let none = || BusError::NotFound(format!("there is no job {id}; `animctl list` shows the jobs"));
        i64::try_from(id).map_err(|_| none())?;
        let job = self.hub.desk.ledger.call(move |db| db.job(id)).await?.ok_or_else(none)?;
        self.hub.rights.owner(connection, &header, job.owner).await?;
        Ok(stats::timeline(self.hub.desk.ledger.call(move |db| db.timeline(id)).await?))
    }

    #[zbus(out_args("hold"))]
    async fn inhibit(
        &self,
        what: String,
        who: String,
        why: String,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &Connection,
    ) -> Result<OwnedFd, BusError> {
        let uid = self.hub.rights.uid(&header)?;
        let hold = hold::checked(&what, &who, &why, uid)?;
        if hold.what == crate::holds::What::Pause {
            self.hub.rights.check(connection, &header, Action::Unload).await?;
        }
        hold::hold(&self.hub.desk.holds, hold)
    }

    async fn pause(
        &self,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &Connection,
    ) -> Result<(), BusError> {
        let uid = self.hub.rights.check(connection, &header, Action::Configure).await?;
        self.hub.desk.pause(&format!("by user {uid}")).await?;
        self.hub.look.notify_one();
        Ok(())
    }

    async fn resume(
        &self,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &Connection,
    ) -> Result<(), BusError> {
        self.hub.rights.check(connection, &header, Action::Configure).await?;
        self.hub.desk.resume().await?;
        self.hub.look.notify_one();
        Ok(())
    }

    async fn unload(
        &self,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &Connection,
    ) -> Result<(), BusError> {
        self.hub.rights.check(connection, &header, Action::Unload).await?;
        Ok(self.hub.wishes.unload().await?)
    }

    #[zbus(out_args("profiles"))]
    #[expect(clippy::unused_async, reason = "the shape that zbus asks for")]
    async fn profiles(&self) -> Vec<HashMap<String, OwnedVariant>> {
        plan::profiles(&self.hub.desk)
    }

    async fn add_watch(
        &self,
        path: String,
        options: Options,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &Connection,
    ) -> Result<(), BusError> {
        let uid = self.hub.rights.check(connection, &header, Action::Configure).await?;
        watches::add(&self.hub.desk, &path, &options, uid).await
    }

    async fn remove_watch(
        &self,
        path: String,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &Connection,
    ) -> Result<(), BusError> {
        self.hub.rights.check(connection, &header, Action::Configure).await?;
        watches::remove(&self.hub.desk, &path).await
    }

    #[zbus(out_args("watches"))]
    async fn watches(
        &self,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &Connection,
    ) -> Result<Vec<HashMap<String, OwnedVariant>>, BusError> {
        self.hub.rights.check(connection, &header, Action::Configure).await?;
        Ok(watches::list(&self.hub.desk))
    }

    async fn reload(
        &self,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &Connection,
    ) -> Result<(), BusError> {
        self.hub.rights.check(connection, &header, Action::Configure).await?;
        let told = crate::reload::reload(&self.hub.desk).await;
        self.hub.look.notify_one();
        told.map(|_| ()).map_err(|e| BusError::InvalidOption(e.to_string()))
    }

    /// A job is new.
    #[zbus(signal)]
    pub async fn job_new(emitter: &SignalEmitter<'_>, id: u64, job: ObjectPath<'_>) -> zbus::Result<()>;

    /// A job has ended: done, failed or canceled.
    #[zbus(signal)]
    pub async fn job_removed(
        emitter: &SignalEmitter<'_>,
        id: u64,
        job: ObjectPath<'_>,
        result: &str,
    ) -> zbus::Result<()>;

    #[zbus(property(emits_changed_signal = "const"))]
    #[expect(clippy::unused_self, reason = "the shape that zbus asks for")]
    fn version(&self) -> &'static str {
        env!("CARGO_PKG_VERSION")
    }

    #[zbus(property)]
    fn state(&self) -> &'static str {
        self.hub.desk.board.status().borrow().state
    }

    #[zbus(property)]
    fn state_text(&self) -> String {
        self.hub.desk.board.status().borrow().text.to_string()
    }

    #[zbus(property)]
    fn profile(&self) -> String {
        plan::profile(&self.hub.desk).into()
    }

    #[zbus(property)]
    fn gpu(&self) -> HashMap<String, OwnedVariant> {
        plan::gpu(&self.hub.desk)
    }

    #[zbus(property)]
    fn queued(&self) -> u32 {
        self.hub.cards.waiting()
    }

    #[zbus(property)]
    fn paused(&self) -> bool {
        self.hub.desk.paused().is_some()
    }
}

impl Manager {
    /// Who submits what, if they may.
    async fn submission(
        &self,
        connection: &Connection,
        header: &Header<'_>,
        options: &Options,
    ) -> Result<(Caller, Submission), BusError> {
        let caller = Caller { uid: self.hub.rights.uid(header)?, leaving: self.hub.rights.leaving(header)? };
        let submission = options::submission(options)?;
        if submission.priority > 0 {
            self.hub.rights.check(connection, header, Action::RaisePriority).await?;
        }
        Ok((caller, submission))
    }

    async fn known(&self, connection: &Connection, id: u64) -> Result<OwnedObjectPath, BusError> {
        self.hub.serve_id(connection, id).await?;
        self.hub.desk.board.tell(Change::State(id));
        Ok(object_path(id))
    }

    async fn add(
        &self,
        connection: &Connection,
        mut caller: Caller,
        submission: Submission,
        file: File,
        source: Option<Source>,
    ) -> Result<OwnedObjectPath, BusError> {
        let (uid, desk) = (caller.uid, &self.hub.desk);
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
        let outbox = submission.kept_for_caller.then(|| desk.results());
        let file = Arc::new(file);
        let name = submission.name.unwrap_or_else(|| super::DEFAULT_NAME.into());
        for _ in 0..3 {
            let (spool, copied, folder) = (desk.spool.clone(), file.clone(), outbox.clone());
            let copy = move |turn: &Turn| {
                let _alone = turn.alone(copied.metadata().map_or(0, |meta| meta.len()));
                if let Some(folder) = &folder {
                    let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(folder);
                    made.map_err(crate::Error::file("create", folder))?;
                }
                spool.put(&copied, "the picture")
            };
            let spooled =
                self.hub.copies.run(uid, caller.leaving.left(), copy).await?.map_err(BusError::of_picture)?;
            let new = NewJob {
                owner: uid,
                watched: source.is_some(),
                idempotency_key: submission.idempotency_key.clone(),
                priority: submission.priority,
                outbox: outbox.clone(),
                retry_of: None,
                per_user: limit,
                name: name.clone(),
                source: source.clone(),
                work: Ok((spooled.sha256, Box::new(request.clone()))),
            };
            let (added, job) = desk.ledger.add(new, &desk.spool).await?;
            let sha256 = spooled.sha256;
            drop(spooled);
            match added {
                Added::New(id) => {
                    tracing::info!(job = id, "job {id} comes from user {uid}");
                    tracing::debug!(job = id, "job {id} is of `{}`", show(&name));
                    if let Some(job) = &job {
                        self.hub.serve(connection, job).await?;
                    }
                    desk.board.tell(Change::Added(id));
                    return Ok(object_path(id));
                }
                Added::Known(_) | Added::Full => {
                    let (spool, ledger) = (desk.spool.clone(), desk.ledger.clone());
                    // The picture may be another one than the known job's.
                    blocking(move || spool.release(&ledger, sha256)).await?;
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

fn outside(path: &Path) -> BusError {
    BusError::NotAuthorized(format!(
        "`{}` is not in a watched folder; pass a descriptor to Submit, as `animctl submit` does",
        show(path)
    ))
}

/// Opens a file of the caller's own under a watched folder. What others have there, and whether there is anything, is
/// nobody's business: the service may look into folders that the caller may not.
fn open_watched(root: &Root, path: &Path, uid: u32, trusted: bool) -> Result<File, BusError> {
    let below = path.strip_prefix(root.path()).map_err(|_| outside(path))?;
    let no_file = || {
        BusError::NotFound(format!(
            "there is no file of yours at `{}`; a picture of somebody else's is submitted by descriptor, as `animctl \
             submit` does",
            show(path)
        ))
    };
    let cannot = |e: rustix::io::Errno| match e {
        rustix::io::Errno::LOOP | rustix::io::Errno::XDEV => outside(path),
        e if trusted => BusError::InvalidImage(format!("`{}` cannot be opened: {e}", show(path))),
        _ => no_file(),
    };
    let flags = OFlags::CLOEXEC | OFlags::RDONLY;
    let no_dir = |e: std::io::Error| match root::is_swapped(&e) {
        true => BusError::NotReady(format!(
            "the watched folder of `{}` is not used now, because its path leads elsewhere; `animctl folder list` tells more",
            show(path)
        )),
        // Without a number it is a link in the place of a folder.
        false => cannot(rustix::io::Errno::from_io_error(&e).unwrap_or(rustix::io::Errno::LOOP)),
    };
    root.check().map_err(no_dir)?;
    let dir = Dir::open(root, below.parent().unwrap_or(Path::new(""))).map_err(no_dir)?;
    let name = below.file_name().ok_or_else(|| outside(path))?;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
    let file =
        rustix::fs::openat2(&dir, name, flags | OFlags::NONBLOCK, Mode::empty(), resolve).map_err(cannot)?;
    let file = File::from(file);
    let meta = file.metadata().map_err(|e| BusError::Internal(e.to_string()))?;
    if !trusted && uid != meta.uid() {
        return Err(no_file());
    }
    Ok(file)
}
