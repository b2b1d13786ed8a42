//! Carries pictures to animd and videos back.

use std::collections::{HashMap, HashSet, VecDeque};
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use animd_client::{JobProxy, ManagerProxy, error_name, has_ended, id_of};
use animd_common::Error as Common;
use animd_common::bus;
use animd_common::clock::now_us;
use animd_common::files::{Identity, show};
use animd_common::notify::notify;
use animd_common::tasks::blocking;
use animd_common::watch::away::{self, Leaving};
use animd_common::watch::{Ready, names, sidecar};
use animd_protocol::request::Settings;
use futures_util::StreamExt;
use serde_json::Value;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};
use zbus::proxy::CacheProperties;
use zbus::{Connection, Fd, Variant, fdo};

use super::config::Config;
use super::desktop::Desktop;
use super::store::{self, Contents, Opened};
use crate::{Error, Result};

/// The first pause after animd could not be reached; it doubles each time.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
/// The longest pause.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
/// How long a full queue is left alone when no job of ours ends.
const FULL_PAUSE: Duration = Duration::from_secs(30);
/// The pause before a video is fetched again after an error of the user's own disk.
const DISK_PAUSE: Duration = Duration::from_secs(60);
/// How long a picture that animd refuses without a last one is tried again, for the second one of a pair to come.
const PAIR_PATIENCE: Duration = Duration::from_secs(60);
/// The pause before such a picture is tried again.
const PAIR_PAUSE: Duration = Duration::from_secs(5);
/// How long a picture that was gone when its job ended may take to appear under another name.
const RENAMED_PAUSE: Duration = Duration::from_secs(10);
/// The pause between two checks of all jobs, in case a signal is lost.
const RECHECK: Duration = Duration::from_secs(900);
/// The most times that one file can be put back into its folder for another video.
const MOST_WISHES: u32 = 1000;

/// Sends pictures to animd and fetches videos. Its state can be lost, because the folders and animd hold all of it.
pub struct Uploader {
    config: Arc<Config>,
    connection: Connection,
    manager: ManagerProxy<'static>,
    desktop: Desktop,
    pictures: mpsc::UnboundedReceiver<Ready>,
    /// Pictures that wait for a place among our jobs.
    waiting: VecDeque<Ready>,
    /// Pictures that could not be read, and when to try them again.
    later: Vec<(Instant, Ready)>,
    /// Our open jobs.
    jobs: HashMap<u64, Carried>,
    /// Every picture of `waiting`, `later` and `jobs`.
    held: HashSet<Wish>,
    /// Pictures that are finished but could not be moved away.
    stuck: HashSet<Wish>,
    /// Nothing is submitted before this.
    pause: Option<Instant>,
    /// How often animd was away in a row.
    away: u32,
    /// When to check all jobs.
    recheck: Option<Instant>,
}

/// A state of a file, at its place.
type Wish = (PathBuf, Identity);

/// A picture that has a job.
#[derive(Clone)]
struct Carried {
    ready: Ready,
    /// The hash of its sidecars.
    sidecars: Contents,
    /// The hash of its contents.
    contents: Contents,
    /// Whether its job has ended while the picture was gone: it may have been renamed, and is looked for once more.
    missing: bool,
}

/// What has become of a job.
enum Step {
    /// The job has not ended.
    Open,
    /// The job has ended, and its picture is not where it was.
    Missing,
    /// Everything is in its place.
    Over,
    /// The picture stays where it is, and is a new request.
    Again,
}

/// Why something did not work, and what that means.
enum Trouble {
    /// The picture is to blame, with a sentence for its owner.
    Picture(String),
    /// animd has no room now.
    Full(String),
    /// animd cannot be reached or cannot serve now.
    Away(String),
    /// Our own disk, or something else that may pass.
    Here(Error),
}

impl From<zbus::Error> for Trouble {
    fn from(e: zbus::Error) -> Self {
        let text = match &e {
            zbus::Error::MethodError(_, Some(text), _) => text.clone(),
            e => e.to_string(),
        };
        match error_name(&e) {
            Some("InvalidImage" | "InvalidOption" | "UnknownOption") => Self::Picture(text),
            Some("QueueFull" | "Busy") => Self::Full(text),
            _ => Self::Away(text),
        }
    }
}

impl From<Error> for Trouble {
    fn from(e: Error) -> Self {
        match e {
            Error::Common(Common::Refused { text, .. }) => Self::Picture(text),
            e => Self::Here(e),
        }
    }
}

impl Uploader {
    /// Returns an uploader without any pictures.
    pub async fn new(
        config: Arc<Config>,
        connection: Connection,
        desktop: Desktop,
        pictures: mpsc::UnboundedReceiver<Ready>,
    ) -> Result<Self> {
        let manager =
            ManagerProxy::builder(&connection).cache_properties(CacheProperties::No).build().await?;
        Ok(Self {
            config,
            connection,
            manager,
            desktop,
            pictures,
            waiting: VecDeque::new(),
            later: Vec::new(),
            jobs: HashMap::new(),
            held: HashSet::new(),
            stuck: HashSet::new(),
            pause: None,
            away: 0,
            recheck: None,
        })
    }

    /// Runs for ever. The future may be dropped at any moment.
    pub async fn run(&mut self) -> Result<()> {
        let mut news = self.listen().await?;
        loop {
            self.submit().await;
            self.show();
            let far = Instant::now() + Duration::from_secs(86_400);
            let pause = self.pause.filter(|_| !self.waiting.is_empty());
            let later = self.later.iter().map(|(due, _)| *due).min();
            let wake = [pause, self.recheck, later].into_iter().flatten().min();
            tokio::select! {
                Some(ready) = self.pictures.recv() => self.take(ready).await,
                Some(news) = news.recv() => match news {
                    News::Ended(id) => if self.jobs.contains_key(&id) {
                        // There is room again.
                        if self.away == 0 {
                            self.pause = None;
                        }
                        self.look(id).await;
                    },
                    // animd has come back, so the state of our jobs may have changed.
                    News::Here => {
                        self.pause = None;
                        self.away = 0;
                        self.look_at_all().await;
                    }
                },
                () = sleep_until(wake.unwrap_or(far)) => {
                    let now = Instant::now();
                    self.pause = self.pause.filter(|pause| *pause > now);
                    for (_, ready) in self.later.extract_if(.., |(due, _)| *due <= now) {
                        self.waiting.push_back(ready);
                    }
                    if self.recheck.is_some_and(|recheck| recheck <= now) {
                        self.look_at_all().await;
                    }
                }
            }
        }
    }

    /// Returns what the bus tells, in a queue without an end: a full one would stop the connection, and with it the
    /// answers that we wait for.
    async fn listen(&self) -> Result<mpsc::UnboundedReceiver<News>> {
        let mut ended = self.manager.receive_job_removed().await?;
        let bus = fdo::DBusProxy::new(&self.connection).await?;
        let mut owners = bus.receive_name_owner_changed_with_args(&[(0, animd_client::NAME)]).await?;
        let (sender, news) = mpsc::unbounded_channel();
        tokio::spawn(async move {
            loop {
                let told = tokio::select! {
                    Some(signal) = ended.next() => signal.args().ok().map(|args| News::Ended(args.id)),
                    Some(signal) = owners.next() =>
                        signal.args().is_ok_and(|args| args.new_owner().is_some()).then_some(News::Here),
                    else => return,
                };
                if let Some(told) = told
                    && sender.send(told).is_err()
                {
                    return;
                }
            }
        });
        Ok(news)
    }

    /// Takes a picture that is complete, or that has changed or whose sidecars have.
    async fn take(&mut self, ready: Ready) {
        if self.stuck.contains(&wish(&ready)) {
            return;
        }
        if let Some(id) = self.renamed(&ready) {
            tracing::debug!("the picture of job {id} is `{}` now", show(&ready.path));
            if let Some(carried) = self.jobs.get_mut(&id) {
                let old = wish(&carried.ready);
                carried.ready = ready;
                self.held.insert(wish(&carried.ready));
                self.held.remove(&old);
                self.look(id).await;
            }
        } else if self.held.insert(wish(&ready)) {
            self.waiting.push_back(ready);
        } else {
            self.hear_late(&ready).await;
        }
    }

    /// Returns the job of a picture that its user has given another name or folder.
    fn renamed(&self, ready: &Ready) -> Option<u64> {
        let mut jobs = self.jobs.iter().filter(|(_, carried)| carried.ready.identity == ready.identity);
        jobs.find(|(_, carried)| carried.ready.path != ready.path && store::is_gone(&carried.ready))
            .map(|(id, _)| *id)
    }

    /// Handles a sidecar that came after its picture was sent: a job that still waits is replaced. One that runs goes
    /// on, and the picture becomes a new request when it has ended.
    async fn hear_late(&mut self, ready: &Ready) {
        let Some((id, carried)) = self.jobs.iter().find(|(_, carried)| carried.ready == *ready) else {
            return;
        };
        let id = *id;
        if !is_late(carried).await {
            return;
        }
        let replaced = async {
            let waits = self.describe(id).await?["state"] == "queued";
            if waits {
                self.job(id).await?.cancel().await?;
            }
            Ok::<_, Trouble>(waits)
        };
        if let Ok(true) = replaced.await {
            tracing::info!("job {id} is made again: its sidecar arrived late");
            self.jobs.remove(&id);
            self.waiting.push_back(ready.clone());
        }
    }

    fn release(&mut self, ready: &Ready) {
        self.held.remove(&wish(ready));
    }

    fn show(&self) {
        let text = match (self.waiting.len() + self.later.len(), self.jobs.len()) {
            _ if self.away > 0 => "animd is away".to_owned(),
            (0, 0) => "waiting for pictures".to_owned(),
            (waiting, jobs) => format!("{jobs} pictures are with animd, {waiting} wait"),
        };
        notify(&[("STATUS", &text)]);
    }

    /// Submits pictures as long as there is room.
    async fn submit(&mut self) {
        while self.pause.is_none() && self.jobs.len() < self.config.per_user {
            let Some(ready) = self.waiting.pop_front() else { return };
            match self.send(&ready).await {
                Ok(Some((id, carried))) => {
                    self.away = 0;
                    if let Some(old) = self.jobs.insert(id, carried)
                        && wish(&old.ready) != wish(&ready)
                    {
                        self.release(&old.ready);
                    }
                    self.recheck_in(RECHECK);
                    self.look(id).await;
                }
                // It is gone, or another one, or with animd under another name.
                Ok(None) => self.release(&ready),
                // The second picture of a pair may be on its way to a model that needs it.
                Err(Trouble::Picture(text)) if may_become_a_pair(&ready, &text) => {
                    tracing::debug!("`{}` waits for a last picture: {text}", show(&ready.path));
                    self.later.push((Instant::now() + PAIR_PAUSE, ready));
                }
                Err(Trouble::Picture(text)) => {
                    self.fail(&ready, &text).await;
                    self.release(&ready);
                }
                // The others go on.
                Err(Trouble::Here(e)) => {
                    trouble_here(&e);
                    self.later.push((Instant::now() + DISK_PAUSE, ready));
                }
                Err(Trouble::Full(text)) => {
                    self.waiting.push_front(ready);
                    tracing::debug!("the queue is full: {text}");
                    self.pause = Some(Instant::now() + FULL_PAUSE);
                }
                Err(Trouble::Away(text)) => {
                    self.waiting.push_front(ready);
                    self.is_away(&text);
                }
            }
        }
    }

    fn is_away(&mut self, text: &str) {
        if self.away == 0 {
            tracing::warn!("cannot reach animd; its jobs are kept, and animd-watch tries again: {text}");
        }
        let pause = (FIRST_PAUSE * 2u32.saturating_pow(self.away.min(16))).min(LONGEST_PAUSE);
        self.away += 1;
        self.pause = Some(Instant::now() + pause);
        self.recheck_in(pause);
    }

    fn recheck_in(&mut self, pause: Duration) {
        let then = Instant::now() + pause;
        self.recheck = Some(self.recheck.map_or(then, |recheck| recheck.min(then)));
    }

    /// Submits a picture, or finds the job that it already has. `None` if there is nothing to wait for.
    async fn send(&self, ready: &Ready) -> Result<Option<(u64, Carried)>, Trouble> {
        if self.away > 0 {
            // Asked before a large picture is read for nothing. This starts a service that can be started.
            fdo::PeerProxy::new(&self.connection, animd_client::NAME, "/").await?.ping().await?;
        }
        let settings =
            self.config.place(ready.root.path()).map(|place| place.settings.clone()).unwrap_or_default();
        let (picture, root) = (ready.clone(), ready.root.clone());
        let read = move || {
            // First what they are compared with later: what comes in between is then seen as late.
            let sidecars = store::sidecars(&picture);
            let settings = sidecar::settings(&root, &picture.path)?.or(settings);
            let last =
                sidecar::open_last(&root, &picture.path, settings.last.as_deref().unwrap_or_default())?;
            Ok::<_, Error>((store::open(&picture, &sidecars)?, sidecars, settings, last))
        };
        let (Some(opened), sidecars, settings, last) = blocking(read).await? else { return Ok(None) };
        let carried = Carried { ready: ready.clone(), sidecars, contents: opened.contents, missing: false };
        // Written once more as it was, as synchronisation programs do.
        let same = |old: &Carried| {
            old.ready.path == ready.path
                && old.contents == carried.contents
                && old.sidecars == carried.sidecars
        };
        if let Some((id, _)) = self.jobs.iter().find(|(_, old)| same(old)) {
            return Ok(Some((*id, carried)));
        }
        for n in 0..MOST_WISHES {
            let id = self.ask(ready, &opened, &settings, last.as_ref(), n).await?;
            if self.jobs.contains_key(&id) {
                // Another name of a file whose job is under way. It is found again when that has ended.
                return Ok(None);
            }
            let description = self.describe(id).await?;
            let ended_us = description["finished"].as_i64().unwrap_or(i64::MAX);
            // Gone meanwhile, it still has a job: it may appear again under another name, or written once more.
            let changed_us = store::changed_us(ready).unwrap_or(i64::MIN);
            // One that ended before the picture was put here was another wish, made of the same file.
            let old = has_ended(description["state"].as_str().unwrap_or_default()) && ended_us < changed_us;
            if !old && !self.is_spent(id, &description).await? {
                return Ok(Some((id, carried)));
            }
        }
        Err(Trouble::Picture(format!(
            "the same file was put here {MOST_WISHES} times; put a copy here instead"
        )))
    }

    /// Returns whether a job's video has been taken away, so that only another job makes one.
    async fn is_spent(&self, id: u64, description: &Value) -> Result<bool, Trouble> {
        if description["state"] != "done" {
            return Ok(false);
        }
        match self.job(id).await?.open_result().await {
            Ok(_) => Ok(false),
            Err(e) if error_name(&e) == Some("NotFound") => Ok(true),
            Err(e) => Err(e.into()),
        }
    }

    async fn ask(
        &self,
        ready: &Ready,
        opened: &Opened,
        settings: &Settings,
        last: Option<&File>,
        n: u32,
    ) -> Result<u64, Trouble> {
        let last_name = settings.last.as_deref().unwrap_or_default();
        let settings = serde_json::to_value(settings).unwrap_or_default();
        let mut options: HashMap<&str, Variant<'_>> = HashMap::new();
        for (key, value) in settings.as_object().into_iter().flatten() {
            if let Some(value) = bus::variant(value).filter(|_| key != "last") {
                options.insert(key, value);
            }
        }
        // The name of a picture says nothing to animd, which gets the picture itself.
        if let Some(last) = last {
            options.insert("last", Fd::from(last.as_fd()).into());
            options.insert("last_name", last_name.into());
        }
        let name = show(ready.path.file_name().unwrap_or_default());
        options.insert("name", name.into());
        options.insert("keep", "caller".into());
        options.insert("idempotency_key", opened.key(n).into());
        let path = self.manager.submit(opened.file.as_fd().into(), options).await?;
        id_of(&path).ok_or_else(|| Trouble::Away(format!("animd gave `{}` as a job", path.as_str())))
    }

    async fn job(&self, id: u64) -> zbus::Result<JobProxy<'static>> {
        let path = self.manager.get_job(id).await?;
        JobProxy::builder(&self.connection).path(path).cache_properties(CacheProperties::No).build().await
    }

    async fn describe(&self, id: u64) -> Result<Value, Trouble> {
        let dict = self.job(id).await?.describe().await?;
        let map = dict.iter().filter_map(|(key, value)| Some((key.clone(), bus::json(value)?)));
        Ok(Value::Object(map.collect()))
    }

    async fn look_at_all(&mut self) {
        self.recheck = None;
        let ids: Vec<u64> = self.jobs.keys().copied().collect();
        for id in ids {
            self.look(id).await;
            if self.away > 0 {
                return;
            }
        }
        if !self.jobs.is_empty() {
            self.recheck_in(RECHECK);
        }
    }

    /// Looks at one of our jobs, and brings it to its end if it has ended.
    async fn look(&mut self, id: u64) {
        let Some(carried) = self.jobs.get(&id).cloned() else { return };
        let step = self.finish(id, &carried).await;
        if !matches!(step, Err(Trouble::Away(_))) {
            self.away = 0;
        }
        match step {
            Ok(Step::Open) => {}
            Ok(Step::Missing) => {
                if let Some(carried) = self.jobs.get_mut(&id) {
                    carried.missing = true;
                }
                self.recheck_in(RENAMED_PAUSE);
            }
            Ok(Step::Over) => {
                self.jobs.remove(&id);
                self.release(&carried.ready);
            }
            Ok(Step::Again) => {
                self.jobs.remove(&id);
                self.waiting.push_back(carried.ready);
            }
            Err(Trouble::Picture(text)) => {
                self.jobs.remove(&id);
                self.fail(&carried.ready, &text).await;
                self.release(&carried.ready);
            }
            Err(Trouble::Here(e)) => {
                trouble_here(&e);
                self.recheck_in(DISK_PAUSE);
            }
            Err(Trouble::Full(_)) => self.recheck_in(FULL_PAUSE),
            Err(Trouble::Away(text)) => self.is_away(&text),
        }
    }

    async fn finish(&mut self, id: u64, carried: &Carried) -> Result<Step, Trouble> {
        let ready = &carried.ready;
        let description = match self.describe(id).await {
            Ok(description) => description,
            // Its owner had it forgotten.
            Err(Trouble::Away(_)) if self.is_forgotten(id).await => return Ok(Step::Again),
            Err(e) => return Err(e),
        };
        let state = description["state"].as_str().unwrap_or_default();
        if !has_ended(state) {
            return Ok(Step::Open);
        }
        if !carried.missing && store::is_gone(ready) {
            return Ok(Step::Missing);
        }
        let late = is_late(carried).await;
        if state != "done" {
            let text = description["error_text"].as_str().unwrap_or("no reason is known");
            if late {
                return Ok(Step::Again);
            }
            if state == "canceled" {
                tracing::info!("job {id} was cancelled");
                self.put_away(ready, names::CANCELED, None).await;
                return Ok(Step::Over);
            }
            return Err(Trouble::Picture(text.to_owned()));
        }
        let job = self.job(id).await?;
        let video = match job.open_result().await {
            Ok(video) => File::from(OwnedFd::from(video)),
            // `retention.results_days` have passed.
            Err(e) if error_name(&e) == Some("NotFound") => return Ok(Step::Again),
            Err(e) => return Err(e.into()),
        };
        let thumbnail = match self.desktop.shows() {
            true => job.open_thumbnail().await.ok().map(|fd| File::from(OwnedFd::from(fd))),
            false => None,
        };
        let outbox = self.config.place(ready.root.path()).map(|place| place.outbox.join(&ready.below));
        let outbox = outbox.unwrap_or_else(|| ready.root.path().to_owned());
        let seed = description["settings"]["seed"].as_u64().unwrap_or_default();
        let uuid = description["uuid"].as_str().unwrap_or_default().to_owned();
        let picture = ready.clone();
        let path = blocking(move || store::keep(video, &outbox, &picture, seed, &uuid)).await?;
        tracing::info!("the video of job {id} is in its place");
        tracing::debug!("the video of job {id} is `{}`", show(&path));
        self.desktop.done(id, &ready.path, &path, thumbnail);
        // As long as the picture lies there, its job must be found again; a collected job would be made once more.
        let over = late || self.put_away(ready, names::DONE, None).await;
        if over && let Err(e) = job.collected().await {
            // animd keeps it for a week then, which does no harm.
            tracing::debug!("animd was not told that job {id} is collected: {e}");
        }
        Ok(if late { Step::Again } else { Step::Over })
    }

    async fn is_forgotten(&self, id: u64) -> bool {
        matches!(self.manager.get_job(id).await, Err(e) if error_name(&e) == Some("NotFound"))
    }

    /// Moves a picture away that has no video, with a note.
    async fn fail(&mut self, ready: &Ready, text: &str) {
        tracing::warn!("a picture did not become a video; the note beside it says why");
        tracing::debug!("`{}`: {text}", show(&ready.path));
        self.put_away(ready, names::FAILED, Some(text.to_owned())).await;
        self.desktop.failed(&ready.path, text);
    }

    /// Moves a picture into the folder `into`. Returns false if it cannot be moved; it is not taken again then.
    async fn put_away(&mut self, ready: &Ready, into: &'static str, note: Option<String>) -> bool {
        let picture = ready.clone();
        match blocking(move || put_away(&picture, into, note.as_deref())).await {
            Ok(()) => true,
            Err(e) => {
                tracing::error!("cannot move a picture away, so it is not taken again: {}", reason(&e));
                tracing::debug!("{e}");
                self.stuck.insert(wish(ready));
                false
            }
        }
    }
}

/// What the bus tells us of.
enum News {
    /// A job has ended, anybody's.
    Ended(u64),
    /// animd has appeared on the bus.
    Here,
}

fn wish(ready: &Ready) -> Wish {
    (ready.path.clone(), ready.identity)
}

/// Returns whether a picture's sidecars have changed since it was sent.
async fn is_late(carried: &Carried) -> bool {
    let ready = carried.ready.clone();
    let now: Result<_> = blocking(move || Ok(store::sidecars(&ready))).await;
    now.is_ok_and(|now| now != carried.sidecars) && !store::is_gone(&carried.ready)
}

/// Returns whether a picture that was refused with this sentence, about its `last`, came so lately that its last picture may be
/// on its way.
fn may_become_a_pair(ready: &Ready, text: &str) -> bool {
    let since_us = now_us() - PAIR_PATIENCE.as_micros() as i64;
    text.contains("`last`") && store::changed_us(ready).is_some_and(|changed_us| changed_us > since_us)
}

fn trouble_here(e: &Error) {
    tracing::error!("cannot use a file; trying again: {}", reason(e));
    tracing::debug!("{e}");
}

fn put_away(ready: &Ready, into: &str, note: Option<&str>) -> Result<()> {
    let Some(target) = away::target(&ready.root, &ready.path, into) else { return Ok(()) };
    // Late sidecars are known by what they say.
    let sidecars_until_us = i64::MAX;
    let (root, source, identity) = (&ready.root, &*ready.path, ready.identity);
    let leaving = Leaving { root, source, identity, target, note, sidecars_until_us };
    leaving.put_away(|_| Ok(())).map(|_| ())
}

fn reason(e: &Error) -> String {
    match e {
        Error::Common(e) => e.without_path(),
        e => e.to_string(),
    }
}
