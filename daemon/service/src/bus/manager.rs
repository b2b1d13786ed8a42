//! The manager object: submitting, finding and listing jobs, and the service's state.

use std::collections::HashMap;
use std::ffi::OsString;
use std::fs::File;
use std::os::fd::OwnedFd as StdOwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use animd_common::files::{Identity, show};
use animd_common::users;
use animd_common::watch::root::{self, Dir, Root};
use animd_common::watch::{names, sidecar};
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
use super::{Facts, Hub, facts, forecast, hold, object_path, plan, stats, watches};
use crate::events::Change;
use crate::queue::{self, Origin, draw_seed};
use crate::store::Results;
use crate::store::ledger::{Added, Job, Source, State};

/// The most jobs that `List` returns at a time.
const MOST_LISTED: u32 = 1000;
/// The most jobs that `History` returns at a time.
const MOST_DESCRIBED: u32 = 200;
/// The approximate limit of an answer's size in bytes. Jobs with long prompts come in several answers, which a client
/// asks for in the same way.
const ANSWER_BYTES: usize = 1 << 20;

/// The caller who submits a job, and the means to notice that they leave.
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
        let watched = self.hub.watches.find(&path).ok_or_else(|| outside(&path))?;
        if submission.name.is_none() {
            submission.name = path.file_name().map(OsString::from);
        }
        let trusted = self.hub.rights.trusted(uid);
        let root = self.hub.watches.root(&watched.path);
        let open = move |_: &Turn| {
            let file = open_watched(&root, &path, uid, trusted)?;
            let meta = file.metadata().map_err(|e| BusError::Internal(e.to_string()))?;
            // A picture that the folder's watch takes anyway gets one job for both, and is moved when that job ends.
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
        plan::plan(&self.hub, options::plan(&options)?).await
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
        // The mirror removes the object of an ended job after a while.
        self.hub.events.tell(Change::State(id));
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
        let jobs = self.hub.ledger.call(move |db| db.list(&filter)).await?;
        let all = self.hub.rights.trusted(uid);
        let ends = match jobs.iter().any(|job| job.state == State::Queued) {
            true => forecast::ends(&self.hub).await?,
            false => HashMap::new(),
        };
        let entry = |job: &Job| {
            let mut facts = Facts::new(job, self.hub.events.live(job.id));
            if let Some(end) = ends.get(&job.id) {
                facts.expected_end = *end;
            }
            let public = facts.dict(
                self.hub.cards.position(&facts),
                job.state == State::Running && self.hub.events.is_canceling(job.id),
            );
            let private = (all || uid == job.owner).then(|| facts::private(job));
            public.into_iter().chain(private.into_iter().flatten()).collect()
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
        let jobs = self.hub.ledger.call(move |db| {
            let mut left = ANSWER_BYTES;
            db.list_while(&filter, |job| {
                let whole = Whole::of(job, db)?;
                let first = left == ANSWER_BYTES;
                let more = left.checked_sub(whole.size());
                left = more.unwrap_or(0);
                Ok((first || more.is_some()).then_some(whole))
            })
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
        let sums = self.hub.ledger.call(move |db| db.sums(of.by, of.owner, of.since_us)).await?;
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
        let job = self.hub.ledger.call(move |db| db.job(id)).await?.ok_or_else(none)?;
        self.hub.rights.owner(connection, &header, job.owner).await?;
        Ok(stats::timeline(self.hub.ledger.call(move |db| db.timeline(id)).await?))
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
        hold::hold(&self.hub.holds, hold)
    }

    async fn pause(
        &self,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &Connection,
    ) -> Result<(), BusError> {
        let uid = self.hub.rights.check(connection, &header, Action::Configure).await?;
        self.hub.queue.pause(&format!("by {}", users::name(uid))).await?;
        self.hub.look.notify_one();
        Ok(())
    }

    async fn resume(
        &self,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &Connection,
    ) -> Result<(), BusError> {
        self.hub.rights.check(connection, &header, Action::Configure).await?;
        self.hub.queue.resume().await?;
        self.hub.look.notify_one();
        Ok(())
    }

    async fn unload(
        &self,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &Connection,
    ) -> Result<(), BusError> {
        self.hub.rights.check(connection, &header, Action::Unload).await?;
        Ok(self.hub.commands.unload().await?)
    }

    #[zbus(out_args("profiles"))]
    #[expect(clippy::unused_async, reason = "the shape that zbus asks for")]
    async fn profiles(&self) -> Vec<HashMap<String, OwnedVariant>> {
        plan::profiles(&self.hub.profiles)
    }

    async fn add_watch(
        &self,
        path: String,
        options: Options,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &Connection,
    ) -> Result<(), BusError> {
        let wish = watches::checked(&path, &options)?;
        let uid = self.hub.rights.check(connection, &header, Action::Configure).await?;
        watches::add(&self.hub, wish, uid).await
    }

    async fn remove_watch(
        &self,
        path: String,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &Connection,
    ) -> Result<(), BusError> {
        let path = watches::checked(&path, &Options::new())?.path;
        self.hub.rights.check(connection, &header, Action::Configure).await?;
        watches::remove(&self.hub, &path).await
    }

    #[zbus(out_args("watches"))]
    async fn watches(
        &self,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &Connection,
    ) -> Result<Vec<HashMap<String, OwnedVariant>>, BusError> {
        self.hub.rights.check(connection, &header, Action::Configure).await?;
        Ok(watches::list(&self.hub.watches))
    }

    async fn reload(
        &self,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &Connection,
    ) -> Result<(), BusError> {
        self.hub.rights.check(connection, &header, Action::Configure).await?;
        let told = self.hub.reloader.reload().await;
        self.hub.look.notify_one();
        told.map(|_| ()).map_err(BusError::of_reload)
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
        self.hub.events.status().borrow().state.name()
    }

    #[zbus(property)]
    fn state_text(&self) -> String {
        self.hub.events.status().borrow().text.to_string()
    }

    #[zbus(property)]
    fn profile(&self) -> String {
        plan::profile(&self.hub.profiles).into()
    }

    #[zbus(property)]
    fn gpu(&self) -> HashMap<String, OwnedVariant> {
        plan::gpu(&self.hub.profiles)
    }

    #[zbus(property)]
    fn queued(&self) -> u32 {
        self.hub.cards.waiting()
    }

    #[zbus(property)]
    fn paused(&self) -> bool {
        self.hub.holds.paused().is_some()
    }
}

impl Manager {
    /// Returns the caller and the checked submission, if the caller may submit it.
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
        self.hub.events.tell(Change::State(id));
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
        let (uid, hub) = (caller.uid, &self.hub);
        let settings = hub.defaults.complete(submission.settings);
        let resolved = hub.defaults.resolve(settings, draw_seed);
        let request = resolved.map_err(|e| BusError::InvalidOption(e.to_string()))?;
        hub.queue.admit(&request)?;
        let full = || {
            let limit = hub.queue.config.get().queue.per_user;
            BusError::QueueFull(format!(
                "you have {limit} open jobs, which is the limit (queue.per_user); wait for one, or cancel one"
            ))
        };
        // This saves copying the picture in vain. The check that decides is made when the job is written to the ledger.
        let length = |fd: &StdOwnedFd| rustix::fs::fstat(fd).map_or(0, |stat| stat.st_size.unsigned_abs());
        let bytes = file.metadata().map_or(0, |meta| meta.len()) + submission.last.as_ref().map_or(0, length);
        match hub.queue.foresee(uid, submission.idempotency_key.clone(), bytes).await? {
            Some(Added::Known(id)) => return self.known(connection, id).await,
            Some(Added::Full) if source.is_none() => return Err(full()),
            Some(Added::Over(quota)) => return Err(BusError::QueueFull(hub.queue.over(quota, uid))),
            _ => {}
        }
        let results = submission.kept_for_caller.then(|| hub.queue.results.clone());
        let file = Arc::new(file);
        let last = submission.last.map(|last| Arc::new(File::from(last)));
        let name = submission.name.unwrap_or_else(|| super::DEFAULT_NAME.into());
        for _ in 0..3 {
            let (spool, copied, kept) = (hub.queue.spool.clone(), file.clone(), results.clone());
            let last = last.clone();
            let copy = move |turn: &Turn| {
                let length = |file: &File| file.metadata().map_or(0, |meta| meta.len());
                let _alone = turn.alone(length(&copied) + last.as_deref().map_or(0, length));
                kept.as_ref().map_or(Ok(()), Results::make)?;
                let last = last.map(|last| spool.put(&last, "the last picture")).transpose()?;
                Ok((spool.put(&copied, "the picture")?, last))
            };
            let (spooled, last) =
                hub.copies.run(uid, caller.leaving.left(), copy).await?.map_err(BusError::of_picture)?;
            let job = queue::Submission {
                owner: uid,
                name: name.clone(),
                origin: Origin::Bus { idempotency_key: submission.idempotency_key.clone() },
                priority: submission.priority,
                outbox: results.as_ref().map(|results| results.dir().to_owned()),
                source: source.clone(),
                work: Ok((spooled, request.clone())),
                last,
            };
            let serve = |job: Job| async move { Ok(hub.serve(connection, &job).await?) };
            match hub.queue.submit(job, serve).await? {
                Added::New(id) => return Ok(object_path(id)),
                Added::Known(id) => return self.known(connection, id).await,
                Added::Full => return Err(full()),
                Added::Over(quota) => return Err(BusError::QueueFull(hub.queue.over(quota, uid))),
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

/// Opens a file under a watched folder that belongs to the caller. The answer must not reveal other users' files or
/// whether they exist, because the service may look into folders that the caller may not.
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
        // An error without a number means that a link has taken the place of a folder.
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
