//! How a job ends, exactly once, whenever the machine stops.
//!
//! The order is: the engine wrote and synced the unfinished file; the ledger commits `finishing` with the video's name
//! and hash, or the reason; the video is renamed, replacing nothing; the source is moved; the ledger commits the end.
//! [`Desk::recover`] finishes what was cut short, before any folder is looked at.

use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use animd_protocol::ErrorCode;
use animd_protocol::messages::Report;
use animd_protocol::recipe::Recipe;
use animd_protocol::request::Settings;
use tokio::sync::{Notify, watch};
use tokio::time::sleep;

use crate::board::{Board, Change, stopped};
use crate::config::{Config, Sources};
use crate::files::{self, numbered, rename_new, show, split_name};
use crate::holds::Holds;
use crate::ledger::{Ended, Job, Ledger, Outcome, PAUSED, State, Succeeded};
use crate::pictures::Picture;
use crate::profile::Profiles;
use crate::spool::Spool;
use crate::watch::away::{self, Leaving};
use crate::watch::root::Dir;
use crate::watch::{Watches, sidecar};
use crate::{Error, Result};

const LOOK: &str = "look into the service's log (`journalctl -u animd`, or its standard error)";
/// Between two looks for an outbox that is away.
pub const AWAY: Duration = Duration::from_secs(30);

/// What everything that touches jobs shares.
pub struct Desk {
    config: RwLock<Arc<Config>>,
    /// Finished jobs whose outbox is away.
    waiting: Waiting,
    /// The configured model, once its engine has opened it.
    recipe: RwLock<Option<Arc<Recipe>>>,
    /// Where the configuration is read again from.
    pub sources: Sources,
    /// The queue and the log.
    pub ledger: Ledger,
    /// The waiting pictures.
    pub spool: Spool,
    /// What is going on, for the bus.
    pub board: Board,
    /// Who wants the model warm or the queue paused.
    pub holds: Holds,
    /// Which profile the engine has, on which GPU, and why.
    pub profiles: Profiles,
    /// Which folders are watched.
    pub watches: Watches,
}

impl Desk {
    /// With the ledger and the spool of the state folder.
    pub fn new(config: Config, ledger: Ledger, spool: Spool) -> Self {
        let desk = Self {
            config: RwLock::default(),
            waiting: Waiting::default(),
            recipe: RwLock::default(),
            sources: Sources::default(),
            ledger,
            spool,
            board: Board::default(),
            holds: Holds::default(),
            profiles: Profiles::default(),
            watches: Watches::default(),
        };
        desk.set_config(config);
        desk
    }

    /// The configuration as it is now; it may be another one at the next call.
    pub fn config(&self) -> Arc<Config> {
        self.config.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The configured model, once its engine has opened it.
    pub fn recipe(&self) -> Option<Arc<Recipe>> {
        self.recipe.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The engine has opened the model's files.
    pub fn set_recipe(&self, recipe: Option<Arc<Recipe>>) {
        *self.recipe.write().unwrap_or_else(PoisonError::into_inner) = recipe;
    }

    /// Another configuration from here on.
    pub fn set_config(&self, config: Config) {
        self.spool.set_keep(config.retention.pictures_days);
        self.spool.set_reserve(config.queue.free_mib);
        let total = config.queue.total;
        // Not awaited: a ledger that is busy must not hold up whoever reloads, and what comes later sees the new limit.
        self.ledger.tell(move |db| db.set_total(total));
        let config = Arc::new(config);
        let before = {
            let mut now = self.config.write().unwrap_or_else(PoisonError::into_inner);
            std::mem::replace(&mut *now, config.clone())
        };
        if before.model != config.model {
            self.set_recipe(None);
        }
        self.watches.configure(&config);
        // It may ask for another profile.
        self.board.queued.notify_one();
    }

    /// What a job gets that does not say otherwise: the configuration's, and then the profile's.
    pub fn defaults(&self) -> Settings {
        self.config().defaults.clone().or(self.profiles.settings())
    }

    /// The folder for the video of a job.
    pub fn outbox(&self, job: &Job) -> PathBuf {
        job.outbox.clone().unwrap_or_else(|| self.config().folders.outbox.clone())
    }

    /// The unfinished file of a job's current attempt.
    pub fn part(&self, job: &Job) -> PathBuf {
        job.part(&self.outbox(job))
    }

    /// Opens a folder that videos are written to, if it is one to use. Nobody can swap the service's own.
    pub fn outbox_dir(&self, path: &Path) -> io::Result<Dir> {
        if path == self.results() {
            return Dir::own(path);
        }
        Dir::open(&self.watches.outbox(path), Path::new(""))
    }

    /// As [`Self::outbox_dir`], for a folder that may have to be made.
    pub fn make_outbox(&self, path: &Path) -> io::Result<Dir> {
        match path == self.results() {
            true => fs::create_dir_all(path)?,
            false => self.watches.outbox(path).make()?,
        }
        self.outbox_dir(path)
    }

    /// Removes the unfinished file of a job's current attempt, if there is one.
    pub fn remove_part(&self, job: &Job) {
        if let Ok(outbox) = self.outbox_dir(&self.outbox(job)) {
            _ = fs::remove_file(outbox.at(&self.part(job)));
        }
    }

    /// Opens a finished video. Its folder may have another use by now; it is only read.
    pub fn open_video(&self, path: &Path) -> io::Result<File> {
        let dir = path.parent().unwrap_or(Path::new("/"));
        let dir = match dir == self.results() {
            true => Dir::own(dir)?,
            false => Dir::open(&self.watches.left(dir), Path::new(""))?,
        };
        Ok(files::open_regular(&dir.at(path))?.0)
    }

    /// Adds to the service's state that watched folders are not used, because their paths lead elsewhere, if that is so.
    pub fn tell_of_swapped(&self) {
        let what = match self.watches.swapped().len() {
            0 => None,
            1 => Some("a watched folder is not used, because its path leads elsewhere".to_owned()),
            n => Some(format!("{n} watched folders are not used, because their paths lead elsewhere")),
        };
        self.board.set_folders(what.map(|what| format!("{what}: `animctl folder list` tells more")));
    }

    /// Ends a job that is in state `from`. False if somebody else has ended it meanwhile.
    pub async fn end(self: &Arc<Self>, id: u64, from: State, ended: Ended) -> Result<bool> {
        let desk = self.clone();
        blocking(move || desk.end_blocking(id, from, &ended)).await
    }

    /// Finishes a job that is `finishing` already.
    pub async fn settle(self: &Arc<Self>, id: u64) -> Result<()> {
        let desk = self.clone();
        blocking(move || desk.settle_blocking(id)).await
    }

    /// Looks at the finished file of a running job and says where its video shall be.
    pub async fn examine(self: &Arc<Self>, job: Job, report: Report) -> Result<Ended> {
        let desk = self.clone();
        blocking(move || Ok(desk.examine_blocking(&job, report))).await
    }

    fn examine_blocking(&self, job: &Job, report: Report) -> Ended {
        let part = self.part(job);
        let failed = |text: String| Ended::Failed { code: ErrorCode::Output, text };
        let opened = self.outbox_dir(&self.outbox(job)).and_then(|outbox| {
            let (file, meta) = files::open_regular(&outbox.at(&part))?;
            Ok((outbox, file, meta))
        });
        let (outbox, mut file, meta) = match opened {
            Ok(open) => open,
            Err(e) => return failed(format!("the engine's file `{}` cannot be read: {e}", show(&part))),
        };
        if meta.len() == 0 {
            return failed(format!("the engine left `{}` empty; {LOOK}", show(&part)));
        }
        if meta.len() != report.bytes {
            return failed(format!(
                "the engine wrote {} bytes, and `{}` has {}; is another program at work in the outbox? {LOOK}",
                report.bytes,
                show(&part),
                meta.len()
            ));
        }
        let hashed = files::hash(&mut file, |_| Ok(())).and_then(|sha| {
            file.set_permissions(fs::Permissions::from_mode(0o640))?;
            file.sync_all()?;
            Ok(sha)
        });
        let sha256 = match hashed {
            Ok(sha) => sha,
            Err(e) => return failed(format!("the engine's file `{}` cannot be read: {e}", show(&part))),
        };
        let seed = job.request.as_ref().map_or(report.seed, |r| r.seed);
        let free = free_output(&outbox.path(), &job.name, seed);
        let output = self.outbox(job).join(free.file_name().unwrap_or_default());
        Ended::Done(Box::new(Succeeded { report, output, bytes: meta.len(), sha256 }))
    }

    fn end_blocking(&self, id: u64, from: State, ended: &Ended) -> Result<bool> {
        let Some(job) = self.ledger.call_blocking(move |db| db.job(id))? else { return Ok(false) };
        let target = self.source_target(&job, ended.outcome());
        let ended = ended.clone();
        if !self.ledger.call_blocking(move |db| db.finishing(id, from, &ended, target.as_deref()))? {
            return Ok(false);
        }
        self.board.tell(Change::State(id));
        self.settle_blocking(id)?;
        Ok(true)
    }

    /// Puts the files of a finishing job in place. Doing it again after it was cut short anywhere does the rest.
    pub(crate) fn settle_blocking(&self, id: u64) -> Result<()> {
        let find = move || self.ledger.call_blocking(move |db| db.job(id));
        let Some(mut job) = find()?.filter(|job| job.state == State::Finishing) else { return Ok(()) };
        if job.outcome == Some(Outcome::Done) {
            match self.put_video(&job) {
                Ok(true) => {}
                Ok(false) => {
                    tracing::warn!(job = id, "the finished file of job {id} is gone; it runs again");
                    self.ledger.call_blocking(move |db| db.vanished(id))?;
                    self.waiting.remove(id);
                    self.board.tell(Change::State(id));
                    return Ok(());
                }
                Err(e @ (Error::Ledger(_) | Error::Stopping)) => return Err(e),
                // A disk that is not mounted yet: making the folder, or the video again, would be worse than to wait.
                Err(e) if !self.outbox_is_there(&job) => {
                    if self.waiting.insert(id) {
                        tracing::error!(
                            job = id,
                            "the video of job {id} waits until its outbox is there again ({e})"
                        );
                    }
                    return Ok(());
                }
                Err(e) if self.save_video(&job, &e)? => {}
                Err(e) => {
                    let text = format!("the video could not be put into the outbox: {e}");
                    let target = self.source_target(&job, Outcome::Failed);
                    let told = text.clone();
                    self.ledger.call_blocking(move |db| {
                        db.fail_delivery(id, ErrorCode::Output, &told, target.as_deref())
                    })?;
                    let Some(changed) = find()? else { return Ok(()) };
                    job = changed;
                }
            }
        }
        self.remove_picture(&job, Picture::Preview);
        if job.outcome != Some(Outcome::Done) {
            self.remove_part(&job);
            self.remove_pictures(&job);
        }
        let left = match self.put_source(&job) {
            Ok(()) => None,
            Err(e @ (Error::Ledger(_) | Error::Stopping)) => return Err(e),
            Err(e) => Some(e.to_string()),
        };
        if let Some(text) = &left {
            tracing::warn!(job = id, "the picture of job {id} stays in the inbox and is not taken again");
            tracing::debug!(job = id, "the picture of job {id} stays: {text}");
        }
        self.ledger.call_blocking(move |db| db.close(id, left.as_deref()))?;
        self.waiting.remove(id);
        if let Some(sha) = job.image_sha256 {
            self.spool.release(&self.ledger, sha)?;
        }
        if let (Some(Outcome::Done), Some(path)) = (&job.outcome, &job.output) {
            tracing::info!(job = id, "job {id} is done");
            tracing::debug!(job = id, "the video of job {id} is `{}`", show(path));
        } else {
            let how = job.outcome.map_or("ended", Outcome::name);
            let why = job.error_text.as_deref().unwrap_or("no reason known");
            // The reason may name files.
            let code = job.error_code.as_deref().unwrap_or("unknown");
            tracing::warn!(job = id, "job {id} {how} ({code}); `animctl show {id}` tells its owner why");
            tracing::debug!(job = id, "job {id} ({}) {how}: {why}", show(&job.name));
        }
        self.board.tell(Change::State(id));
        Ok(())
    }

    /// Copies a finished video that its outbox refuses to where videos for callers lie. False if that fails, too.
    fn save_video(&self, job: &Job, refused: &Error) -> Result<bool> {
        let (id, dir) = (job.id, self.results());
        let output = dir.join(format!("{}.mp4", job.uuid));
        let copy = |outbox: Dir| files::copy_new(&outbox.at(&self.part(job)), &output);
        let made = fs::create_dir_all(&dir).and_then(|()| self.outbox_dir(&self.outbox(job)));
        let copied = match made.and_then(copy) {
            // Copies are whole, and the name is this job's alone: a crash came between it and the ledger.
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            copied => copied,
        };
        if let Err(e) = copied.and_then(|()| files::sync_dir(&dir)) {
            tracing::error!(job = id, "the video of job {id} cannot be kept elsewhere either: {e}");
            return Ok(false);
        }
        tracing::error!(
            job = id,
            "the outbox takes no video ({refused}): that of job {id} is kept by the service for retention.results_days; \
             `animctl fetch {id} FILE` copies it"
        );
        self.ledger.call_blocking(move |db| db.set_output(id, &output))?;
        self.remove_part(job);
        Ok(true)
    }

    /// Renames the unfinished file to the video's name. False if there is neither.
    fn put_video(&self, job: &Job) -> Result<bool> {
        let Some(mut output) = job.output.clone() else { return Ok(false) };
        let (from, dir) = (self.outbox(job), output.parent().unwrap_or(Path::new("/")).to_owned());
        let to = self.outbox_dir(&dir).map_err(Error::file("find", &dir))?;
        let from = if from == dir { Ok(to.clone()) } else { self.outbox_dir(&from) };
        let part = from.map(|from| (from.at(&self.part(job)), from));
        loop {
            let renamed = match &part {
                Ok((part, _)) => rename_new(part, &to.at(&output)),
                // The video was copied elsewhere, because this folder takes none.
                Err(_) => Err(io::ErrorKind::NotFound.into()),
            };
            match renamed {
                Ok(()) => break,
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {
                    // Linked, but not yet unlinked, where the file system cannot rename without replacing.
                    let ino = |path: &Path| fs::symlink_metadata(path).map(|m| (m.dev(), m.ino()));
                    if let Ok((part, _)) = &part
                        && let (Ok(a), Ok(b)) = (ino(part), ino(&to.at(&output)))
                        && a == b
                    {
                        fs::remove_file(part).map_err(Error::file("remove", self.part(job)))?;
                        break;
                    }
                    let seed = job.request.as_ref().map_or(0, |r| r.seed);
                    let free = free_output(&to.path(), &job.name, seed);
                    output = dir.join(free.file_name().unwrap_or_default());
                    let (id, path) = (job.id, output.clone());
                    tracing::info!(job = id, "the name of job {id}'s video is taken; it gets a number");
                    self.ledger.call_blocking(move |db| db.set_output(id, &path))?;
                }
                // Renamed before, unless what lies there is somebody else's.
                Err(e) if e.kind() == io::ErrorKind::NotFound => {
                    return holds(&to.at(&output), job.output_sha256).map_err(Error::file("read", &output));
                }
                Err(e) => return Err(Error::file("create", &output)(e)),
            }
        }
        away::warn_unsynced(&dir, files::sync_dir(&to.path()));
        Ok(true)
    }

    /// Whether the folder that a job's video goes into is there, and is one to use.
    fn outbox_is_there(&self, job: &Job) -> bool {
        job.output.as_deref().and_then(Path::parent).is_some_and(|dir| self.outbox_dir(dir).is_ok())
    }

    /// Where the source of a job goes when it ends like this.
    pub fn source_target(&self, job: &Job, outcome: Outcome) -> Option<PathBuf> {
        let source = &job.source.as_ref()?.path;
        away::target(&self.watches.root_of(source, None), source, outcome == Outcome::Done)
    }

    /// Whether a picture's sidecars say something else than its job has, since they were read.
    pub fn is_late(&self, job: &Job) -> bool {
        let Some(source) = &job.source else { return false };
        let root = self.watches.root_of(&source.path, None);
        if sidecar::changed_us(&root, &source.path).is_none_or(|changed_us| changed_us <= source.read_us) {
            return false;
        }
        let seed = || job.request.as_ref().map_or(0, |request| request.seed);
        match sidecar::request(&root, &source.path, self.defaults(), seed) {
            Ok(request) => job.request.as_ref() != Some(&request),
            Err(Error::Refused { text, .. }) => job.error_text != Some(text.into()),
            Err(_) => false,
        }
    }

    /// Moves the picture and its sidecars out of the watched folder, if it is still the one that was taken. With a
    /// sidecar that came late it stays, and is a new wish.
    fn put_source(&self, job: &Job) -> Result<()> {
        let (Some(source), Some(target)) = (&job.source, job.source_target.clone()) else {
            return Ok(());
        };
        let id = job.id;
        if job.outcome != Some(Outcome::Canceled) && self.is_late(job) {
            tracing::info!(job = id, "the picture of job {id} stays for another job: its sidecar came late");
            return Ok(());
        }
        let root = self.watches.root_of(&source.path, Some(&target));
        let leaving = Leaving {
            root: &root,
            source: &source.path,
            identity: source.identity,
            target,
            note: job.error_text.as_deref().filter(|_| job.outcome != Some(Outcome::Done)),
            // What changed since, and says the same, goes with it.
            sidecars_until_us: match job.outcome {
                Some(Outcome::Canceled) => source.read_us,
                _ => i64::MAX,
            },
        };
        leaving.put_away(|target| {
            let path = target.to_owned();
            self.ledger.call_blocking(move |db| db.set_source_target(id, &path))
        })
    }

    /// Tries once more to move a picture away whose job has ended.
    pub async fn move_left(self: &Arc<Self>, job: Job) -> Result<()> {
        let desk = self.clone();
        blocking(move || {
            let id = job.id;
            desk.put_source(&job)?;
            desk.ledger.call_blocking(move |db| db.source_moved(id))
        })
        .await
    }

    /// Finishes what a crash cut short. Runs before the bus, the inbox and the engine. Blocks.
    pub fn recover(&self) -> Result<()> {
        self.board.set_paused(self.ledger.call_blocking(|db| db.setting(PAUSED))?.map(Into::into));
        for job in self.ledger.call_blocking(|db| db.open_jobs())? {
            let id = job.id;
            match job.state {
                State::Finishing => {
                    tracing::info!(
                        job = id,
                        "job {id} was being finished when the service ended; it is finished now"
                    );
                    self.settle_blocking(id)?;
                }
                State::Running => {
                    self.remove_part(&job);
                    self.remove_pictures(&job);
                    let interruptions = job.interruptions + 1;
                    if interruptions < self.config().queue.interruptions {
                        tracing::warn!(job = id, "the service ended while job {id} ran; it runs again");
                        self.ledger.call_blocking(move |db| db.interrupted(id))?;
                    } else {
                        let text = format!(
                            "the service or the machine went down {interruptions} times while this was made; it is not tried again: \
                             {LOOK}, then drop the picture once more"
                        );
                        self.end_blocking(
                            id,
                            State::Running,
                            &Ended::Failed { code: ErrorCode::Crashed, text },
                        )?;
                    }
                }
                _ => {}
            }
        }
        self.spool.sweep(&self.ledger)?;
        self.remove_parts();
        self.sweep_pictures();
        Ok(())
    }

    /// Removes unfinished files of our own jobs: no job is running or finishing now.
    fn remove_parts(&self) {
        let mut folders = self.ledger.call_blocking(|db| db.outboxes()).unwrap_or_default();
        folders.push(self.config().folders.outbox.clone());
        for folder in folders {
            let Ok(outbox) = self.outbox_dir(&folder) else { continue };
            let Ok(entries) = fs::read_dir(outbox.path()) else { continue };
            for entry in entries.flatten() {
                let name = entry.file_name();
                let Some(uuid) = part_uuid(&name) else { continue };
                if self.ledger.call_blocking(move |db| db.knows(&uuid)).unwrap_or(false) {
                    tracing::info!("an unfinished file is removed: {}", show(&name));
                    _ = fs::remove_file(entry.path());
                }
            }
        }
    }
}

/// Finished jobs that could not be delivered: their numbers, and whoever waits for the first.
#[derive(Default)]
struct Waiting {
    jobs: Mutex<BTreeSet<u64>>,
    some: Notify,
}

impl Waiting {
    /// False if it waits already.
    fn insert(&self, id: u64) -> bool {
        let new = self.jobs.lock().unwrap_or_else(PoisonError::into_inner).insert(id);
        self.some.notify_one();
        new
    }

    fn remove(&self, id: u64) {
        self.jobs.lock().unwrap_or_else(PoisonError::into_inner).remove(&id);
    }

    fn all(&self) -> Vec<u64> {
        self.jobs.lock().unwrap_or_else(PoisonError::into_inner).iter().copied().collect()
    }
}

/// Delivers videos whose outbox was away: looks for it again after `pause`, until `stop` turns true.
pub async fn deliver_waiting(desk: Arc<Desk>, pause: Duration, mut stop: watch::Receiver<bool>) {
    loop {
        tokio::select! {
            // Nothing wakes a service for which nothing waits.
            () = async { desk.waiting.some.notified().await; sleep(pause).await } => {}
            () = stopped(&mut stop) => return,
        }
        for id in desk.waiting.all() {
            if let Err(e) = desk.settle(id).await {
                tracing::warn!(job = id, "the video of job {id} still waits: {e}");
                desk.waiting.insert(id);
            }
        }
    }
}

/// Runs blocking work off the runtime's thread.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(|_| Error::Stopping)?
}

/// Whether `path` is a regular file with these contents.
fn holds(path: &Path, sha256: Option<[u8; 32]>) -> io::Result<bool> {
    match files::open_regular(path) {
        Ok((mut file, _)) => Ok(Some(files::hash(&mut file, |_| Ok(()))?) == sha256),
        Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::InvalidInput) => Ok(false),
        Err(e) => Err(e),
    }
}

/// The job's UUID in the name of an unfinished file, also where the engine put something of its own around it.
fn part_uuid(name: &OsStr) -> Option<String> {
    let name = name.to_str()?;
    if !name.ends_with(crate::ledger::PART_SUFFIX) {
        return None;
    }
    let rest = name.trim_start_matches('.').strip_prefix("animd-")?;
    let uuid = rest.get(..36)?;
    uuid::Uuid::parse_str(uuid).ok().map(|_| uuid.to_owned())
}

/// `STEM-SEED.mp4`, with a number if that exists.
fn free_output(dir: &Path, name: &OsStr, seed: u64) -> PathBuf {
    (1..u32::MAX)
        .map(|n| dir.join(output_name(name, seed, n)))
        .find(|path| fs::symlink_metadata(path).is_err())
        .unwrap_or_else(|| dir.join("video.mp4"))
}

/// A name for the video of a picture: `STEM-SEED.mp4`, and a number from the second on.
pub fn output_name(picture: &OsStr, seed: u64, n: u32) -> OsString {
    // The tail holds the seed, so that a cut stem never costs it; a number goes before `.mp4`.
    let tail = if n < 2 { format!("-{seed}.mp4") } else { format!("-{seed}-{n}.mp4") };
    numbered(split_name(picture).0, 1, &tail)
}

#[cfg(test)]
mod tests {
    use animd_protocol::request::Settings;

    use super::*;
    use crate::files::Identity;
    use crate::ledger::{Added, NewJob, Source, Store, now_us};
    use crate::watch::names::{DONE, FAILED};

    struct Place {
        _dir: tempfile::TempDir,
        desk: Arc<Desk>,
        inbox: PathBuf,
    }

    fn place() -> Result<Place> {
        let dir = tempfile::tempdir().map_err(Error::file("make", "a folder"))?;
        let mut config = Config::default();
        config.folders.inbox = dir.path().join("inbox");
        config.folders.outbox = dir.path().join("outbox");
        config.folders.state = dir.path().join("state");
        for dir in [&config.folders.inbox, &config.folders.outbox] {
            fs::create_dir(dir).map_err(Error::file("create", dir))?;
        }
        let ledger = Ledger::open(&dir.path().join("ledger.db"))?;
        let desk = Desk::new(config.clone(), ledger, Spool::open(dir.path().join("spool"))?);
        Ok(Place { _dir: dir, desk: Arc::new(desk), inbox: config.folders.inbox })
    }

    /// Of the "video" that the tests write.
    fn report() -> Report {
        Report { bytes: 5, ..Report::default() }
    }

    impl Place {
        /// A picture in the inbox and its job, claimed.
        fn running(&self) -> Result<Job> {
            let path = self.inbox.join("photo.png");
            fs::write(&path, crate::picture::TINY).map_err(Error::file("write", &path))?;
            let (file, meta) = files::open_regular(&path).map_err(Error::file("open", &path))?;
            let spooled = self.desk.spool.put(&file, "the picture")?;
            let new = NewJob {
                owner: 0,
                watched: true,
                idempotency_key: None,
                priority: 0,
                outbox: None,
                retry_of: None,
                per_user: u32::MAX,
                name: "photo.png".into(),
                source: Some(Source { path, identity: Identity::of(&meta), read_us: now_us() }),
                work: Ok((spooled.sha256, Box::new(Settings::default().resolve(|| 7)?))),
            };
            assert!(matches!(
                self.desk.ledger.call_blocking(move |db| db.add(&new, || true))?,
                Added::New(_)
            ));
            Ok(self.desk.ledger.call_blocking(Store::claim)?.expect("it was just queued"))
        }

        /// The same, up to the commit of `finishing`.
        fn finishing(&self) -> Result<Job> {
            let job = self.running()?;
            fs::write(self.desk.part(&job), "video").map_err(Error::file("write", "part"))?;
            let ended = self.desk.examine_blocking(&job, report());
            let target = self.desk.source_target(&job, ended.outcome());
            let id = job.id;
            assert!(self.desk.ledger.call_blocking(move |db| db.finishing(
                id,
                State::Running,
                &ended,
                target.as_deref()
            ))?);
            Ok(self.job(id))
        }

        fn outbox(&self) -> PathBuf {
            self.desk.config().folders.outbox.clone()
        }

        fn job(&self, id: u64) -> Job {
            self.desk.ledger.call_blocking(move |db| db.job(id)).expect("readable").expect("known")
        }

        fn names(&self, folder: &str) -> Vec<String> {
            let mut names: Vec<String> = fs::read_dir(self.inbox.join(folder))
                .map(|dir| {
                    dir.flatten().filter(|e| e.path().is_file()).map(|e| show(e.file_name())).collect()
                })
                .unwrap_or_default();
            names.sort();
            names
        }
    }

    #[test]
    fn a_finishing_job_is_finished_from_every_point() -> Result<()> {
        // How far the delivery came before the power went: nothing; the rename; the rename and the move.
        for reached in 0..3 {
            let place = place()?;
            let job = place.finishing()?;
            let output = job.output.clone().expect("decided");
            if reached > 0 {
                fs::rename(place.desk.part(&job), &output).map_err(Error::file("rename", &output))?;
            }
            if reached > 1 {
                let target = job.source_target.clone().expect("decided");
                fs::create_dir(place.inbox.join(DONE)).map_err(Error::file("create", DONE))?;
                fs::rename(place.inbox.join("photo.png"), &target).map_err(Error::file("rename", &target))?;
            }
            place.desk.recover()?;
            assert_eq!(place.job(job.id).state, State::Done);
            assert_eq!(place.names("../outbox"), ["photo-7.mp4"]);
            assert_eq!((place.names(""), place.names(DONE)), (vec![], vec!["photo.png".to_owned()]));
            assert_eq!(place.names("../spool").len(), 1, "another try needs the picture");
        }
        Ok(())
    }

    #[test]
    fn a_sidecar_follows_a_picture_that_had_been_moved() -> Result<()> {
        let place = place()?;
        let sidecar = place.inbox.join("photo.txt");
        fs::write(&sidecar, "a wave").map_err(Error::file("write", &sidecar))?;
        let job = place.finishing()?;
        let target = job.source_target.clone().expect("decided");
        fs::create_dir(place.inbox.join(DONE)).map_err(Error::file("create", DONE))?;
        fs::rename(place.inbox.join("photo.png"), &target).map_err(Error::file("rename", &target))?;
        place.desk.recover()?;
        assert_eq!(place.names(DONE), ["photo.png", "photo.txt"]);
        assert_eq!(place.names(""), Vec::<String>::new());
        Ok(())
    }

    #[test]
    fn a_name_that_is_taken_meanwhile_gets_a_number() -> Result<()> {
        let place = place()?;
        let job = place.finishing()?;
        fs::write(place.outbox().join("photo-7.mp4"), "a stranger's").map_err(Error::file("write", "x"))?;
        place.desk.settle_blocking(job.id)?;
        assert_eq!(place.names("../outbox"), ["photo-7-2.mp4", "photo-7.mp4"]);
        assert_eq!(fs::read(place.outbox().join("photo-7.mp4")).ok().as_deref(), Some(&b"a stranger's"[..]));
        assert_eq!(place.job(job.id).output.as_deref(), Some(&*place.outbox().join("photo-7-2.mp4")));
        Ok(())
    }

    #[test]
    fn a_video_that_its_outbox_refuses_is_kept() -> Result<()> {
        let place = place()?;
        let job = place.running()?;
        let part = place.desk.part(&job);
        fs::write(&part, "video").map_err(Error::file("write", &part))?;
        let Ended::Done(mut done) = place.desk.examine_blocking(&job, report()) else {
            panic!("the file is there")
        };
        // A name that no file system takes stands for an outbox that refuses.
        done.output = place.outbox().join("x".repeat(300)).with_extension("mp4");
        place.desk.end_blocking(job.id, State::Running, &Ended::Done(done))?;
        let ended = place.job(job.id);
        assert_eq!(ended.state, State::Done);
        let video = ended.output.expect("kept");
        assert_eq!(video.parent(), Some(&*place.desk.results()));
        assert_eq!(fs::read(&video).ok().as_deref(), Some(&b"video"[..]));
        assert_eq!((place.names(DONE), place.names("../outbox")), (vec!["photo.png".to_owned()], vec![]));
        Ok(())
    }

    #[test]
    fn a_video_waits_for_an_outbox_that_is_away() -> Result<()> {
        let place = place()?;
        let job = place.finishing()?;
        let (outbox, away) = (place.outbox(), place.inbox.with_file_name("away"));
        fs::rename(&outbox, &away).map_err(Error::file("rename", &outbox))?;
        place.desk.recover()?;
        assert_eq!(place.job(job.id).state, State::Finishing);
        fs::rename(&away, &outbox).map_err(Error::file("rename", &away))?;
        place.desk.recover()?;
        assert_eq!(place.job(job.id).state, State::Done);
        assert_eq!(place.names("../outbox"), ["photo-7.mp4"]);
        Ok(())
    }

    #[tokio::test]
    async fn a_video_is_delivered_when_its_outbox_is_back() -> Result<()> {
        let place = blocking(place).await?;
        let (outbox, away) = (place.outbox(), place.inbox.with_file_name("away"));
        let (place, id) = blocking(move || {
            let job = place.finishing()?;
            fs::rename(place.outbox(), place.inbox.with_file_name("away"))
                .map_err(Error::file("rename", "outbox"))?;
            place.desk.recover()?;
            Ok((place, job.id))
        })
        .await?;
        let (stop, stopped) = watch::channel(false);
        let waiting = tokio::spawn(deliver_waiting(place.desk.clone(), Duration::from_millis(10), stopped));
        // It looks in vain at first.
        sleep(Duration::from_millis(50)).await;
        let state = || place.desk.ledger.call(move |db| Ok(db.job(id)?.map(|job| job.state)));
        assert_eq!(state().await?, Some(State::Finishing));
        fs::rename(&away, &outbox).map_err(Error::file("rename", &away))?;
        let start = std::time::Instant::now();
        while state().await? != Some(State::Done) {
            assert!(start.elapsed() < Duration::from_secs(60), "it is not delivered");
            sleep(Duration::from_millis(10)).await;
        }
        _ = stop.send(true);
        waiting.await.expect("it ends");
        assert_eq!(place.names("../outbox"), ["photo-7.mp4"]);
        Ok(())
    }

    #[test]
    fn a_vanished_file_makes_the_job_run_again() -> Result<()> {
        let place = place()?;
        let job = place.finishing()?;
        fs::remove_file(place.desk.part(&job)).map_err(Error::file("remove", "part"))?;
        place.desk.recover()?;
        assert_eq!(place.job(job.id).state, State::Queued);
        assert_eq!((place.names("").len(), place.names("../spool").len()), (1, 1));
        Ok(())
    }

    #[test]
    fn a_strangers_file_is_no_video() -> Result<()> {
        let place = place()?;
        let job = place.finishing()?;
        let output = job.output.clone().expect("decided");
        fs::remove_file(place.desk.part(&job)).map_err(Error::file("remove", "part"))?;
        fs::write(&output, "a stranger's").map_err(Error::file("write", &output))?;
        place.desk.recover()?;
        assert_eq!(place.job(job.id).state, State::Queued);
        assert_eq!(fs::read(&output).ok().as_deref(), Some(&b"a stranger's"[..]));
        Ok(())
    }

    #[test]
    fn a_running_job_runs_again_until_it_is_hopeless() -> Result<()> {
        let place = place()?;
        let job = place.running()?;
        for n in 1..place.desk.config().queue.interruptions {
            fs::write(place.desk.part(&place.job(job.id)), "torn").map_err(Error::file("write", "part"))?;
            place.desk.recover()?;
            assert_eq!((place.job(job.id).state, place.job(job.id).interruptions), (State::Queued, n));
            assert_eq!(place.names("../outbox"), Vec::<String>::new());
            place.desk.ledger.call_blocking(Store::claim)?;
        }
        place.desk.recover()?;
        assert_eq!(place.job(job.id).error_code.as_deref(), Some("crashed"));
        assert_eq!(place.names(FAILED), ["photo.png", "photo.png.error.txt"]);
        Ok(())
    }

    #[test]
    fn a_replaced_source_stays_where_it_is() -> Result<()> {
        let place = place()?;
        let job = place.finishing()?;
        fs::write(place.inbox.join("new"), "another picture").map_err(Error::file("write", "new"))?;
        fs::rename(place.inbox.join("new"), place.inbox.join("photo.png"))
            .map_err(Error::file("rename", "new"))?;
        place.desk.settle_blocking(job.id)?;
        assert_eq!(place.job(job.id).state, State::Done);
        assert_eq!((place.names(""), place.names(DONE)), (vec!["photo.png".to_owned()], vec![]));
        Ok(())
    }

    #[test]
    fn the_same_file_makes_one_job() -> Result<()> {
        let place = place()?;
        let job = place.running()?;
        let again = |place: &Place, mtime: i64| {
            let mut source = job.source.clone().expect("watched");
            source.identity.mtime_ns += mtime;
            let new = NewJob {
                owner: 0,
                watched: true,
                idempotency_key: None,
                priority: 0,
                outbox: None,
                retry_of: None,
                per_user: u32::MAX,
                name: "photo.png".into(),
                source: Some(source),
                work: Ok((
                    job.image_sha256.expect("spooled"),
                    Box::new(Settings::default().resolve(|| 99).expect("valid")),
                )),
            };
            place.desk.ledger.call_blocking(move |db| db.add(&new, || true)).expect("writable")
        };
        assert_eq!(again(&place, 0), Added::Known(job.id));
        // Touched, or copied once more with the same contents.
        assert_eq!(again(&place, 1), Added::Known(job.id));
        Ok(())
    }

    #[test]
    fn unfinished_files_are_known_by_their_uuid() {
        let uuid = "6b2cb0a8-9c0f-4d3e-8a57-0f8c1f3d2b11";
        assert_eq!(part_uuid(OsStr::new(&format!(".animd-{uuid}-1.part"))).as_deref(), Some(uuid));
        assert_eq!(part_uuid(OsStr::new(&format!("..animd-{uuid}-1.part.x.part"))).as_deref(), Some(uuid));
        assert_eq!(part_uuid(OsStr::new(".animd-short.part")), None);
        assert_eq!(part_uuid(OsStr::new(&format!("animd-{uuid}.mp4"))), None);
    }
}
