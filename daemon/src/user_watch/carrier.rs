//! Carries pictures to animd and videos back.

use std::collections::{HashMap, HashSet, VecDeque};
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use animd_client::{JobProxy, ManagerProxy, error_name, has_ended, id_of};
use animd_engine::request::Settings;
use futures_util::StreamExt;
use serde_json::Value;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};
use zbus::proxy::CacheProperties;
use zbus::{Connection, Variant, fdo};

use super::config::Config;
use super::desktop::Desktop;
use super::store::{self, Opened};
use crate::files::{Identity, show};
use crate::service::notify;
use crate::watch::away::{self, Leaving};
use crate::watch::{Ready, sidecar};
use crate::{Error, Result};

/// The first pause after animd could not be reached; it doubles each time.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
/// The longest.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
/// How long a full queue is left alone when no job of ours ends.
const FULL_PAUSE: Duration = Duration::from_secs(30);
/// After trouble with the user's own disk, a video is fetched again.
const DISK_PAUSE: Duration = Duration::from_secs(60);
/// Jobs are looked at this often, should a signal be lost.
const RECHECK: Duration = Duration::from_secs(900);
/// How often one file can have been put back into its folder to be made once more.
const MOST_WISHES: u32 = 1000;

/// The carrier's state. All of it can be lost: the folders and animd have it, too.
pub struct Carrier {
    config: Arc<Config>,
    connection: Connection,
    manager: ManagerProxy<'static>,
    desktop: Desktop,
    pictures: mpsc::UnboundedReceiver<Ready>,
    /// Pictures that wait for a place among our jobs.
    waiting: VecDeque<Ready>,
    /// Our open jobs.
    jobs: HashMap<u64, Ready>,
    /// Every picture of `waiting` and `jobs`.
    held: HashSet<(PathBuf, Identity)>,
    /// Nothing is submitted before this.
    pause: Option<Instant>,
    /// How often animd was away in a row.
    away: u32,
    /// All jobs are looked at then.
    recheck: Option<Instant>,
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
            Error::Refused { text, .. } => Self::Picture(text),
            e => Self::Here(e),
        }
    }
}

impl Carrier {
    /// With nothing in hand.
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
            jobs: HashMap::new(),
            held: HashSet::new(),
            pause: None,
            away: 0,
            recheck: None,
        })
    }

    /// Carries for ever. It may be dropped at any moment.
    pub async fn run(&mut self) -> Result<()> {
        let mut ended = self.manager.receive_job_removed().await?;
        let bus = fdo::DBusProxy::new(&self.connection).await?;
        let mut owners = bus.receive_name_owner_changed_with_args(&[(0, animd_client::NAME)]).await?;
        loop {
            self.submit().await;
            self.show();
            let far = Instant::now() + Duration::from_secs(86_400);
            let pause = self.pause.filter(|_| !self.waiting.is_empty());
            let wake = [pause, self.recheck].into_iter().flatten().min();
            tokio::select! {
                Some(ready) = self.pictures.recv() => self.take(ready),
                Some(signal) = ended.next() => {
                    if let Ok(args) = signal.args() && self.jobs.contains_key(&args.id) {
                        // There is room again.
                        if self.away == 0 {
                            self.pause = None;
                        }
                        let id = args.id;
                        self.look(id).await;
                    }
                }
                Some(signal) = owners.next() => {
                    // animd has come back: what it says of our jobs is news.
                    if signal.args().is_ok_and(|args| args.new_owner().is_some()) {
                        self.pause = None;
                        self.away = 0;
                        self.look_at_all().await;
                    }
                }
                () = sleep_until(wake.unwrap_or(far)) => {
                    let now = Instant::now();
                    self.pause = self.pause.filter(|pause| *pause > now);
                    if self.recheck.is_some_and(|recheck| recheck <= now) {
                        self.look_at_all().await;
                    }
                }
            }
        }
    }

    fn take(&mut self, ready: Ready) {
        if self.held.insert((ready.path.clone(), ready.identity)) {
            self.waiting.push_back(ready);
        }
    }

    fn release(&mut self, ready: &Ready) {
        self.held.remove(&(ready.path.clone(), ready.identity));
    }

    fn show(&self) {
        let text = match (self.waiting.len(), self.jobs.len()) {
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
                Ok(Some(id)) => {
                    self.away = 0;
                    self.jobs.insert(id, ready);
                    self.recheck.get_or_insert(Instant::now() + RECHECK);
                    self.look(id).await;
                }
                // It is gone, or another one, or with animd under another name.
                Ok(None) => self.release(&ready),
                Err(Trouble::Picture(text)) => {
                    self.fail(&ready, &text).await;
                    self.release(&ready);
                }
                Err(trouble) => {
                    self.waiting.push_front(ready);
                    self.wait(trouble);
                }
            }
        }
    }

    /// Waits as the trouble asks for.
    fn wait(&mut self, trouble: Trouble) {
        let now = Instant::now();
        match trouble {
            Trouble::Full(text) => {
                tracing::debug!("the queue is full: {text}");
                self.pause = Some(now + FULL_PAUSE);
            }
            Trouble::Away(text) => {
                if self.away == 0 {
                    tracing::warn!(
                        "animd cannot be reached; its jobs are kept, and it is asked again: {text}"
                    );
                }
                let pause = (FIRST_PAUSE * 2u32.saturating_pow(self.away.min(16))).min(LONGEST_PAUSE);
                self.away += 1;
                self.pause = Some(now + pause);
                self.recheck = Some(now + pause);
            }
            Trouble::Here(e) => {
                tracing::error!("a file cannot be used, and is tried again: {}", reason(&e));
                tracing::debug!("{e}");
                self.pause = Some(now + DISK_PAUSE);
                self.recheck = Some(now + DISK_PAUSE);
            }
            Trouble::Picture(_) => {}
        }
    }

    /// Makes a job of a picture, or finds the one that it has. `None` if there is nothing to wait for.
    async fn send(&self, ready: &Ready) -> Result<Option<u64>, Trouble> {
        let settings = self.config.place(&ready.root).map(|place| place.settings.clone()).unwrap_or_default();
        let (picture, root) = (ready.clone(), ready.root.clone());
        let read = move || {
            let settings = sidecar::settings(&root, &picture.path)?.or(settings);
            Ok::<_, Error>((store::open(&picture)?, settings))
        };
        let (Some(opened), settings) = blocking(read).await? else { return Ok(None) };
        for n in 0..MOST_WISHES {
            let id = self.ask(ready, &opened, &settings, n).await?;
            if self.jobs.contains_key(&id) {
                // Another name of a file whose job is under way. It is found again when that has ended.
                return Ok(None);
            }
            let description = self.describe(id).await?;
            let ended_us = description["finished"].as_i64().unwrap_or(i64::MAX);
            let Some(changed_us) = store::changed_us(ready) else { return Ok(None) };
            // One that ended before the picture was put here was another wish, made of the same file.
            let old = has_ended(description["state"].as_str().unwrap_or_default()) && ended_us < changed_us;
            if !old && !self.is_spent(id, &description).await? {
                return Ok(Some(id));
            }
        }
        Err(Trouble::Picture(format!(
            "the same file was put here {MOST_WISHES} times; put a copy here instead"
        )))
    }

    /// Whether a job's video has been taken away, so that only another job makes one.
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

    async fn ask(&self, ready: &Ready, opened: &Opened, settings: &Settings, n: u32) -> Result<u64, Trouble> {
        let settings = serde_json::to_value(settings).unwrap_or_default();
        let mut options: HashMap<&str, Variant<'_>> = HashMap::new();
        for (key, value) in settings.as_object().into_iter().flatten() {
            let value: Variant<'_> = match value {
                Value::String(text) => text.as_str().into(),
                Value::Number(n) => {
                    n.as_u64().map_or_else(|| n.as_f64().unwrap_or_default().into(), Into::into)
                }
                _ => continue,
            };
            options.insert(key, value);
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
        let map = dict.iter().filter_map(|(key, value)| Some((key.clone(), crate::bus::json(value)?)));
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
            self.recheck.get_or_insert(Instant::now() + RECHECK);
        }
    }

    /// Looks at one of our jobs, and brings it to its end if it has ended.
    async fn look(&mut self, id: u64) {
        let Some(ready) = self.jobs.get(&id).cloned() else { return };
        match self.finish(id, &ready).await {
            Ok(false) => self.away = 0,
            Ok(true) => {
                self.away = 0;
                self.jobs.remove(&id);
                self.release(&ready);
            }
            Err(Trouble::Picture(text)) => {
                self.fail(&ready, &text).await;
                self.jobs.remove(&id);
                self.release(&ready);
            }
            Err(trouble) => self.wait(trouble),
        }
    }

    /// True if the job has ended and everything is in its place.
    async fn finish(&self, id: u64, ready: &Ready) -> Result<bool, Trouble> {
        let description = match self.describe(id).await {
            Ok(description) => description,
            // Its owner had it forgotten: the picture is a new wish.
            Err(Trouble::Away(_)) if self.is_forgotten(id).await => return Ok(true),
            Err(e) => return Err(e),
        };
        let state = description["state"].as_str().unwrap_or_default();
        if !has_ended(state) {
            return Ok(false);
        }
        if state != "done" {
            let text = description["error_text"].as_str().unwrap_or("no reason is known");
            return Err(Trouble::Picture(text.to_owned()));
        }
        let job = self.job(id).await?;
        let video = match job.open_result().await {
            Ok(video) => File::from(OwnedFd::from(video)),
            Err(e) if error_name(&e) == Some("NotFound") => {
                let text = "its video was removed before it was fetched (retention.results_days); put the picture here again";
                return Err(Trouble::Picture(text.into()));
            }
            Err(e) => return Err(e.into()),
        };
        let thumbnail = match self.desktop.shows() {
            true => job.open_thumbnail().await.ok().map(|fd| File::from(OwnedFd::from(fd))),
            false => None,
        };
        let outbox = self.config.place(&ready.root).map(|place| place.outbox.join(&ready.below));
        let outbox = outbox.unwrap_or_else(|| ready.root.clone());
        let seed = description["settings"]["seed"].as_u64().unwrap_or_default();
        let uuid = description["uuid"].as_str().unwrap_or_default().to_owned();
        let until_us = description["created"].as_i64().unwrap_or_default();
        let picture = ready.clone();
        let path = blocking(move || {
            let path = store::keep(video, &outbox, &picture, seed, &uuid)?;
            put_away(&picture, None, until_us)?;
            Ok(path)
        })
        .await?;
        tracing::info!("the video of job {id} is in its place");
        tracing::debug!("the video of job {id} is `{}`", show(&path));
        self.desktop.done(id, &ready.path, &path, thumbnail);
        // Without this animd keeps it for a week; that does no harm.
        if let Err(e) = job.collected().await {
            tracing::debug!("animd was not told that job {id} is collected: {e}");
        }
        Ok(true)
    }

    async fn is_forgotten(&self, id: u64) -> bool {
        matches!(self.manager.get_job(id).await, Err(e) if error_name(&e) == Some("NotFound"))
    }

    /// Moves a picture away that has no video, with a note.
    async fn fail(&self, ready: &Ready, text: &str) {
        let (picture, note) = (ready.clone(), text.to_owned());
        tracing::warn!("a picture did not become a video; the note beside it says why");
        tracing::debug!("`{}`: {text}", show(&ready.path));
        if let Err(e) = blocking(move || put_away(&picture, Some(&note), crate::ledger::now_us())).await {
            tracing::error!("a picture cannot be moved away: {}", reason(&e));
        }
        self.desktop.failed(&ready.path, text);
    }
}

fn put_away(ready: &Ready, note: Option<&str>, sidecars_until_us: i64) -> Result<()> {
    let Some(target) = away::target(&ready.root, &ready.path, note.is_none()) else { return Ok(()) };
    let leaving = Leaving { source: &ready.path, identity: ready.identity, target, note, sidecars_until_us };
    leaving.put_away(|_| Ok(()))
}

fn reason(e: &Error) -> String {
    match e {
        Error::File { action, source, .. } => format!("cannot {action} a file: {source}"),
        e => e.to_string(),
    }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(|_| Error::Stopping)?
}
