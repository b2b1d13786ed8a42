//! The one loop that starts, feeds, times and replaces the engine, and feeds systemd's watchdog while it does.

use std::fs;
use std::future::pending;
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use animd_protocol::ErrorCode;
use animd_protocol::messages::{FromEngine, PROTOCOL, Report, ToEngine};
use animd_protocol::progress::Progress;
use animd_protocol::request::Request;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep_until};

use crate::board::{Change, Live, stopped};
use crate::delivery::{Desk, blocking};
use crate::engine::{Engine, Exit, Hello};
use crate::files::{free_space, show};
use crate::holds::What;
use crate::ledger::{Ended, Job, State, Store};
use crate::pictures::Picture;
use crate::profile::keeper::Keeper;
use crate::watch::root::Dir;
use crate::wishes::Wish;
use crate::{Error, Result};

/// The first pause before an engine that ended is started again; it doubles each time.
const FIRST_PAUSE: Duration = Duration::from_millis(500);
/// The longest.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
/// How long the queue rests after the ledger refused.
const LEDGER_PAUSE: Duration = Duration::from_secs(5);
/// How long an engine that has closed its end may take to exit: a driver frees its memory first.
const EXIT_PATIENCE: Duration = Duration::from_secs(5);
/// What to do when memory ran out.
const MEMORY: &str = "close other programs, add memory or swap, or choose a smaller `size` or fewer `frames`";
/// Why an engine that exits is lost.
const CLOSED: &str = "it closed its connection";
/// When nothing else is due.
const FAR: Duration = Duration::from_secs(3600);

/// The supervisor's state.
pub struct Supervisor {
    desk: Arc<Desk>,
    wishes: mpsc::Receiver<Wish>,
    stop: watch::Receiver<bool>,
    engine: Option<Engine>,
    running: Option<Running>,
    /// What the ledger refused; it is offered again before anything is started.
    unsettled: Vec<(u64, Unsettled)>,
    /// Why there is no engine: a state's name and a sentence.
    trouble: Option<(&'static str, String)>,
    /// Ends of the engine since a job last ended properly.
    failures: u32,
    next_start: Instant,
    /// The engine was ended because nobody needed it: it comes back with the next job, or when somebody wants it warm.
    unloaded: bool,
    /// Since when the engine has had nothing to do.
    idle_since: Instant,
    /// An engine should be there.
    wanted: bool,
    /// The machine sleeps, or is about to.
    asleep: bool,
    /// The queue is not looked at before this.
    next_claim: Instant,
    watchdog: Option<(Duration, Instant)>,
    keeper: Keeper,
}

struct Running {
    job: Job,
    cancel: Option<(String, Instant)>,
}

/// What is still to be written down of a job that has stopped.
#[derive(Clone)]
enum Unsettled {
    /// It was running and has ended.
    Ended(Ended),
    /// How it ends is written down, or it still waits.
    Finishing,
    /// It runs again, and its start does not count.
    GivenBack,
    /// It runs again after the engine died under it.
    Crashed(String),
}

enum Event {
    Stop,
    Wish(Wish),
    Message(io::Result<Option<FromEngine>>),
    Look,
    /// A hold came or went.
    Held,
    /// A time has come, and no message waited.
    Due,
}

impl Supervisor {
    /// A supervisor that runs jobs until `stop` turns true. `watchdog` is how often systemd wants to hear of us.
    pub fn new(
        desk: Arc<Desk>,
        wishes: mpsc::Receiver<Wish>,
        stop: watch::Receiver<bool>,
        watchdog: Option<Duration>,
    ) -> Self {
        let now = Instant::now();
        let desk_paused = desk.paused().is_some();
        Self {
            keeper: Keeper::new(desk.clone()),
            desk,
            wishes,
            stop,
            engine: None,
            running: None,
            unsettled: Vec::new(),
            trouble: None,
            failures: 0,
            next_start: now,
            // A pause that outlived the last run: whoever made it may want the GPU.
            unloaded: desk_paused,
            idle_since: now,
            wanted: false,
            asleep: false,
            next_claim: now,
            watchdog: watchdog.map(|period| (period, now)),
        }
    }

    /// Runs until told to stop; then the engine is ended and its job is back in the queue.
    pub async fn run(mut self) {
        let mut holds = self.desk.holds.changes();
        loop {
            if let Err(e) = self.look().await {
                tracing::error!("the profile is not looked at: {e}");
            }
            if let Err(e) = self.start_engine().await {
                tracing::error!("the ledger does not say whether jobs wait: {e}");
                self.next_start = Instant::now() + LEDGER_PAUSE;
            }
            if let Err(e) = self.start_job().await {
                tracing::error!("the queue rests for {LEDGER_PAUSE:?}: {e}");
                self.next_claim = Instant::now() + LEDGER_PAUSE;
            }
            self.show();
            let due = self.due();
            let Self { engine, stop, wishes, desk, .. } = &mut self;
            let event = tokio::select! {
                biased;
                () = stopped(stop) => Event::Stop,
                Some(wish) = wishes.recv() => Event::Wish(wish),
                message = hear(engine) => Event::Message(message),
                () = desk.board.queued.notified() => Event::Look,
                Ok(()) = holds.changed() => Event::Held,
                () = sleep_until(due) => Event::Due,
            };
            match event {
                Event::Stop => return self.end().await,
                Event::Wish(Wish::Cancel { id, text, reply }) => _ = reply.send(self.cancel(id, text).await),
                Event::Wish(Wish::Unload { reply }) => _ = reply.send(self.unload().await),
                Event::Wish(Wish::Sleep { reply }) => {
                    self.sleep().await;
                    _ = reply.send(());
                }
                Event::Wish(Wish::Wake) => self.wake(),
                Event::Message(Ok(Some(message))) => self.take(message).await,
                Event::Message(Ok(None)) => self.lost(CLOSED).await,
                Event::Message(Err(e)) => self.lost(&format!("its messages cannot be read: {e}")).await,
                Event::Look => {}
                // The end of a warm hold is not the end of the model: it is idle from here on.
                Event::Held => self.idle_since = Instant::now(),
                Event::Due => self.check_times().await,
            }
            self.feed_watchdog();
        }
    }

    /// When something has to be looked at though nothing happens.
    fn due(&self) -> Instant {
        let config = &self.desk.config().engine;
        let mut due = Instant::now() + FAR;
        match &self.engine {
            Some(engine) => due = due.min(silence_ends(engine, config)),
            None if self.wanted => due = due.min(self.next_start),
            None => {}
        }
        if let Some(end) = self.idle_ends() {
            due = due.min(end);
        }
        if let Some(look) = self.keeper.due().filter(|_| self.running.is_none()) {
            due = due.min(look);
        }
        if (self.running.is_none() || !self.unsettled.is_empty()) && self.next_claim > Instant::now() {
            due = due.min(self.next_claim);
        }
        if let Some((_, deadline)) = self.running.as_ref().and_then(|r| r.cancel.as_ref()) {
            due = due.min(*deadline);
        }
        if let Some((_, next)) = self.watchdog {
            due = due.min(next);
        }
        due
    }

    /// When an idle engine has been idle long enough.
    fn idle_ends(&self) -> Option<Instant> {
        self.engine.as_ref()?.hello.as_ref()?;
        if self.running.is_some() || self.desk.holds.any(What::Warm) {
            return None;
        }
        Some(self.idle_since + self.desk.config().engine.idle_unload()?)
    }

    fn feed_watchdog(&mut self) {
        let now = Instant::now();
        if let Some((period, next)) = &mut self.watchdog
            && now >= *next
        {
            *next = now + *period;
            crate::service::notify(&[("WATCHDOG", "1")]);
        }
    }

    /// Waits for something slow, as a delivery to a slow disk is, and feeds the watchdog meanwhile.
    async fn patiently<T>(&mut self, work: impl Future<Output = T>) -> T {
        let mut work = pin!(work);
        loop {
            let next = self.watchdog.map_or_else(|| Instant::now() + FAR, |(_, next)| next);
            tokio::select! {
                biased;
                done = &mut work => return done,
                () = sleep_until(next) => self.feed_watchdog(),
            }
        }
    }

    /// Only after the engine's messages were looked for and there were none: while a video was delivered nobody looked.
    async fn check_times(&mut self) {
        let now = Instant::now();
        if let Some(engine) = &self.engine
            && now >= silence_ends(engine, &self.desk.config().engine)
        {
            let silent = engine.heard.elapsed().as_secs();
            self.lost(&format!("it has not been heard for {silent} seconds")).await;
        }
        if self.running.as_ref().and_then(|r| r.cancel.as_ref()).is_some_and(|(_, deadline)| now >= *deadline)
        {
            self.lost("it does not stop its cancelled job").await;
        }
        if self.idle_ends().is_some_and(|end| now >= end) {
            self.rest("it was idle for engine.idle_unload_seconds").await;
        }
    }

    /// Whether an engine should be there: not while the machine sleeps, and one that was unloaded only when it has
    /// something to do.
    async fn is_wanted(&mut self) -> Result<bool> {
        if self.asleep {
            return Ok(false);
        }
        if !self.unloaded || self.desk.holds.any(What::Warm) {
            return Ok(true);
        }
        Ok(self.desk.paused().is_none() && self.desk.ledger.call(|db| db.waits()).await?)
    }

    /// Looks at the choice of the profile when it may have changed; an idle engine that no longer goes with it is ended.
    async fn look(&mut self) -> Result<()> {
        if self.running.is_some() {
            return Ok(());
        }
        let job = self.keeper.is_stale()
            && self.desk.paused().is_none()
            && self.desk.ledger.call(|db| db.waits()).await?;
        if self.keeper.is_due() || job {
            self.keeper.look(self.engine.as_ref().and_then(Engine::pid)).await;
        }
        // By hand nobody would start it again.
        if self.keeper.needs_new_start() && std::env::var_os("NOTIFY_SOCKET").is_some() {
            self.desk.profiles.ask_new_start();
        }
        if self.engine.is_some() && self.keeper.outdated() {
            self.replace_engine().await;
        }
        Ok(())
    }

    /// Ends an idle engine, for another one to be started at once.
    async fn replace_engine(&mut self) {
        if let Some(engine) = self.engine.take() {
            tracing::info!("the engine is ended: another profile is chosen");
            self.patiently(engine.end(Duration::ZERO)).await;
            self.next_start = Instant::now();
        }
    }

    async fn start_engine(&mut self) -> Result<()> {
        if self.engine.is_some() {
            return Ok(());
        }
        self.wanted = false;
        let config = &self.desk.config();
        let Some(model) = &config.model.path else {
            let text = "no model is configured: set `path` in [model] of animd.toml, or start animd with --model DIR";
            self.trouble = Some(("no-weights", text.into()));
            return Ok(());
        };
        self.wanted = self.is_wanted().await?;
        if !self.wanted || Instant::now() < self.next_start {
            return Ok(());
        }
        if !self.keeper.is_fresh() {
            // It is now that the memory is taken.
            self.keeper.look(None).await;
        }
        let start = match self.keeper.start() {
            Ok(Some(start)) => start,
            Ok(None) => {
                self.wanted = false;
                self.trouble = Some(("no-gpu", self.desk.profiles.choice().text()));
                return Ok(());
            }
            Err(e) => {
                self.trouble = Some(("no-engine", e.to_string()));
                self.pause();
                return Ok(());
            }
        };
        self.unloaded = false;
        let started = Engine::start(
            &config.engine_program(),
            model,
            config.model.dit.as_deref(),
            &start,
            &config.log.level,
        );
        let greeted = match started {
            Ok(mut engine) => match engine.greet().await {
                Ok(()) => Ok(engine),
                Err(e) => Err(format!("the engine does not listen: {e}")),
            },
            Err(e) => Err(e.to_string()),
        };
        match greeted {
            Ok(engine) => self.engine = Some(engine),
            Err(text) => {
                tracing::error!("{text}");
                self.trouble = Some(("no-engine", text));
                self.pause();
            }
        }
        Ok(())
    }

    fn pause(&mut self) {
        let pause = (FIRST_PAUSE * 2u32.saturating_pow(self.failures.min(16))).min(LONGEST_PAUSE);
        self.failures += 1;
        self.next_start = Instant::now() + pause;
    }

    /// Offers the ledger once more what it refused.
    async fn settle(&mut self) -> Result<()> {
        if Instant::now() < self.next_claim {
            return Ok(());
        }
        while let Some((id, left)) = self.unsettled.first().cloned() {
            let desk = self.desk.clone();
            self.patiently(async move {
                match left {
                    Unsettled::Ended(ended) => {
                        // False: this much was written down, and its files are still to be put in place.
                        if desk.end(id, State::Running, ended).await? {
                            Ok(())
                        } else {
                            desk.settle(id).await
                        }
                    }
                    Unsettled::Finishing => desk.settle(id).await,
                    Unsettled::GivenBack => {
                        desk.ledger.call(move |db| db.give_back(id, "it could not be started")).await
                    }
                    Unsettled::Crashed(why) => desk.ledger.call(move |db| db.crashed(id, &why)).await,
                }
            })
            .await?;
            self.unsettled.remove(0);
            self.desk.board.tell(Change::State(id));
        }
        Ok(())
    }

    /// Keeps what the ledger refused for [`Self::settle`].
    fn keep(&mut self, id: u64, left: Unsettled, e: &Error) {
        tracing::error!(job = id, "job {id} cannot be written down now, which is tried again: {e}");
        self.unsettled.push((id, left));
        self.next_claim = Instant::now() + LEDGER_PAUSE;
    }

    /// Gives the engine the next job, if both are there.
    async fn start_job(&mut self) -> Result<()> {
        self.settle().await?;
        while self.running.is_none() && Instant::now() >= self.next_claim && self.desk.paused().is_none() {
            let Some(hello) = self.engine.as_ref().and_then(|e| e.hello.clone()) else { return Ok(()) };
            let Some(job) = self.desk.ledger.call(Store::claim).await? else { return Ok(()) };
            let id = job.id;
            self.desk.board.tell(Change::State(id));
            match self.prepare(&job, &hello).await {
                Ok(generate) => {
                    tracing::info!(job = id, "job {id} starts, attempt {}", job.attempt);
                    self.attempt_starts(job).await;
                    if let Some(engine) = &mut self.engine
                        && let Err(e) = engine.send(&generate).await
                    {
                        self.lost(&format!("it does not take its job: {e}")).await;
                    }
                }
                Err(Error::Refused { code, text }) => {
                    self.conclude(id, Ended::Failed { code, text }).await;
                }
                Err(e) => {
                    self.keep(id, Unsettled::GivenBack, &e);
                    return Err(e);
                }
            }
        }
        Ok(())
    }

    /// The one place where an attempt at a job starts.
    async fn attempt_starts(&mut self, job: Job) {
        let (id, attempt) = (job.id, job.attempt);
        self.running = Some(Running { job, cancel: None });
        self.keeper.job_starts(id, attempt).await;
    }

    /// The one place where an attempt ends, however it does; `None` if it is not this job that runs.
    fn attempt_ends(&mut self, id: u64) -> Option<Running> {
        let running = self.running.take_if(|r| r.job.id == id)?;
        self.idle_since = Instant::now();
        self.keeper.attempt_ends();
        self.desk.board.set_live(id, None);
        self.desk.remove_picture(&running.job, Picture::Preview);
        Some(running)
    }

    /// [`Self::attempt_ends`] for whatever runs.
    fn attempt_breaks(&mut self) -> Option<Running> {
        self.attempt_ends(self.running.as_ref()?.job.id)
    }

    /// Checks what can be known before the work: the picture is there, the outbox takes a file and has room.
    async fn prepare(&mut self, job: &Job, hello: &Hello) -> Result<ToEngine> {
        let Some((request, sha256)) = job.request.clone().zip(job.image_sha256) else {
            let text = "its settings were written down by another version of animd; submit the picture again";
            return Err(Error::refused(ErrorCode::InvalidSetting, text));
        };
        let image = self.desk.spool.path(&sha256);
        if !image.exists() {
            let text =
                format!("the service's copy of `{}` is gone; submit the picture again", show(&job.name));
            return Err(Error::refused(ErrorCode::File, text));
        }
        let output = self.desk.part(job);
        // The engine is told in JSON, which has no other names.
        if output.to_str().is_none() {
            let text = format!(
                "the video would go to `{}`, and the engine takes no path that is not valid UTF-8; rename the folder",
                show(self.desk.outbox(job))
            );
            return Err(Error::refused(ErrorCode::Output, text));
        }
        let (desk, outbox, part) = (self.desk.clone(), self.desk.outbox(job), output.clone());
        blocking(move || check_outbox(&desk, &outbox, &part)).await?;
        let (id, hello) = (job.id, hello.clone());
        self.desk.ledger.call(move |db| db.engine(id, &hello.version, &hello.backend, &hello.model)).await?;
        let request: Box<Request> = Box::new(request);
        let pictures = self.desk.pictures(job)?;
        Ok(ToEngine::Generate { job: id, image, output, pictures, request })
    }

    async fn take(&mut self, message: FromEngine) {
        match message {
            FromEngine::Hello { protocol, .. } if protocol != PROTOCOL => {
                let text = format!(
                    "the engine speaks protocol {protocol} and the service {PROTOCOL}: finish the upgrade so that both are of \
                     one version, then restart animd"
                );
                self.trouble = Some(("no-engine", text.clone()));
                self.lost(&text).await;
            }
            FromEngine::Hello { version, backend, model, kernels, recipe, .. } => {
                tracing::info!("the engine {version} is ready: {model} on {backend}");
                let recipe = recipe.map(Arc::from);
                self.desk.set_recipe(recipe.clone());
                self.trouble = None;
                if let Some(engine) = &mut self.engine {
                    engine.hello = Some(Hello { version, backend, model });
                }
                self.idle_since = Instant::now();
                self.keeper.hello(&kernels, recipe, self.engine.as_ref().and_then(Engine::pid)).await;
            }
            // Whoever wants a preview asks for it.
            FromEngine::Alive | FromEngine::Preview { .. } => {}
            FromEngine::Progress { job, progress } => self.progress(job, &progress),
            FromEngine::Done { job, report } => self.done(job, report).await,
            FromEngine::Failed { job: 0, code, message } => {
                tracing::error!("the engine cannot work: {message}");
                let state = match code {
                    ErrorCode::Model => "no-weights",
                    ErrorCode::Device => "no-gpu",
                    _ => "no-engine",
                };
                self.trouble = Some((state, message));
            }
            FromEngine::Failed { job, code, message } => self.failed(job, code, message).await,
        }
    }

    fn progress(&mut self, job: u64, progress: &Progress) {
        if self.running.as_ref().is_none_or(|r| r.job.id != job) {
            return;
        }
        self.keeper.stage(progress.stage);
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let left = progress.seconds_left.and_then(|s| Duration::try_from_secs_f64(s).ok());
        let expected_end_us = left.map(|left| (now + left).as_micros() as u64);
        self.desk.board.set_live(job, Some(Live { progress: *progress, expected_end_us }));
        self.desk.board.tell(Change::Progress(job));
    }

    async fn done(&mut self, id: u64, report: Report) {
        let Some(running) = self.attempt_ends(id) else { return };
        self.failures = 0;
        let (desk, job) = (self.desk.clone(), running.job);
        match self.patiently(async move { desk.examine(job, report).await }).await {
            // A cancel that came too late changes nothing: there is a video.
            Ok(ended) => self.conclude(id, ended).await,
            Err(e) => self.keep(id, Unsettled::GivenBack, &e),
        }
    }

    async fn failed(&mut self, id: u64, code: ErrorCode, text: String) {
        let Some(running) = self.attempt_ends(id) else { return };
        self.failures = 0;
        match (code, running.cancel) {
            (ErrorCode::Canceled, Some((text, _))) => self.conclude(id, Ended::Canceled { text }).await,
            // Somebody told the engine to end, not us: it is about to.
            (ErrorCode::Canceled, None) => {
                self.requeue(running.job, "the engine was told to end", false).await;
            }
            _ => {
                // The engine knows the picture by the name of its copy, which says nothing to anybody.
                let text = match running.job.image_sha256 {
                    Some(sha256) => {
                        let copy = self.desk.spool.path(&sha256);
                        text.replace(&*copy.to_string_lossy(), &show(&running.job.name))
                    }
                    None => text,
                };
                self.conclude(id, Ended::Failed { code, text }).await;
            }
        }
    }

    async fn conclude(&mut self, id: u64, ended: Ended) {
        self.keeper.job_ends(id, &ended).await;
        let (desk, told) = (self.desk.clone(), ended.clone());
        if let Err(e) = self.patiently(async move { desk.end(id, State::Running, told).await }).await {
            self.keep(id, Unsettled::Ended(ended), &e);
        }
    }

    /// The engine is gone, or has to go. Its job runs again, unless it has taken engines down too often.
    async fn lost(&mut self, why: &str) {
        let Some(engine) = self.engine.take() else { return };
        // One that has closed its end is about to exit by itself, and its status tells why.
        let grace = if why == CLOSED { EXIT_PATIENCE } else { Duration::ZERO };
        let exit = self.patiently(engine.end(grace)).await;
        let why = match exit {
            exit if exit.is_memory() => exit.to_string(),
            // What we did to it says nothing.
            Exit::Ended => why.to_owned(),
            exit => format!("{why} ({exit})"),
        };
        tracing::warn!("the engine has ended: {why}");
        self.desk.board.engine_lost();
        if self.trouble.is_none() {
            let remedy = if exit.is_memory() { format!("; {MEMORY}") } else { String::new() };
            self.trouble = Some(("no-engine", format!("the engine is started again: {why}{remedy}")));
        }
        self.pause();
        let Some(running) = self.attempt_breaks() else { return };
        match running.cancel {
            Some((text, _)) => self.conclude(running.job.id, Ended::Canceled { text }).await,
            None => self.requeue(running.job, &why, exit.is_memory()).await,
        }
    }

    /// After the engine went down under a job, for lack of memory or otherwise.
    async fn requeue(&mut self, job: Job, why: &str, memory: bool) {
        let (id, crashes, why) = (job.id, job.crashes + 1, why.to_owned());
        if crashes >= self.desk.config().queue.attempts {
            let remedy = match memory {
                true => MEMORY,
                false => {
                    "look into the service's log (`journalctl -u animd`, or its standard error), or try a smaller size"
                }
            };
            let text = format!(
                "the engine went down {crashes} times while making this, the last time because {why}; it is not tried \
                 again: {remedy}"
            );
            return self.conclude(id, Ended::Failed { code: ErrorCode::Crashed, text }).await;
        }
        self.remove_part(&job).await;
        let told = why.clone();
        if let Err(e) = self.desk.ledger.call(move |db| db.crashed(id, &told)).await {
            self.keep(id, Unsettled::Crashed(why), &e);
        }
        self.desk.board.tell(Change::State(id));
    }

    /// Removes a job's unfinished file, which may lie on a disk that hangs.
    async fn remove_part(&mut self, job: &Job) {
        let part = self.desk.part(job);
        let removed = blocking(move || fs::remove_file(&part).map_err(Error::file("remove", &part)));
        _ = self.patiently(removed).await;
    }

    async fn cancel(&mut self, id: u64, text: String) -> Result<bool> {
        match self.running.as_mut().filter(|r| r.job.id == id) {
            Some(running) => {
                let grace = Duration::from_secs(self.desk.config().engine.cancel_seconds);
                if running.cancel.is_none() {
                    tracing::info!(job = id, "job {id} is being cancelled");
                    running.cancel = Some((text, Instant::now() + grace));
                    if let Some(engine) = &mut self.engine
                        && let Err(e) = engine.send(&ToEngine::Cancel { job: id }).await
                    {
                        self.lost(&format!("it does not listen: {e}")).await;
                    }
                }
                Ok(true)
            }
            None => {
                let desk = self.desk.clone();
                let ended = self
                    .patiently(async move { desk.end(id, State::Queued, Ended::Canceled { text }).await });
                let ended = ended.await;
                if let Err(e) = &ended {
                    self.keep(id, Unsettled::Finishing, e);
                }
                ended
            }
        }
    }

    /// Somebody wants the engine's memory.
    async fn unload(&mut self) -> Result<()> {
        let refuse = |text: String| Err(Error::refused(ErrorCode::Busy, text));
        if let Some(running) = &self.running {
            let id = running.job.id;
            return refuse(format!(
                "job {id} is being made; cancel it, or pause the queue and wait for its end"
            ));
        }
        if self.desk.paused().is_none() && self.desk.ledger.call(|db| db.waits()).await? {
            return refuse(
                "jobs wait, and the next one would bring the model back; pause the queue first".into(),
            );
        }
        // Whoever may ask for the memory outranks whoever wants the model warm: else one user could keep the GPU for ever.
        for hold in self.desk.holds.end(What::Warm) {
            tracing::info!("the model was kept warm by `{}` of user {}, which has ended", hold.who, hold.uid);
        }
        self.rest("somebody asked for it").await;
        Ok(())
    }

    /// Ends an idle engine, so that all its memory is free.
    async fn rest(&mut self, why: &str) {
        self.unloaded = true;
        if let Some(engine) = self.engine.take() {
            tracing::info!("the engine is ended: {why}");
            self.patiently(engine.end(Duration::ZERO)).await;
        }
    }

    /// The machine is about to sleep, which no engine on a GPU survives.
    async fn sleep(&mut self) {
        tracing::info!("the machine goes to sleep: the engine is ended");
        self.asleep = true;
        self.drop_engine("the machine went to sleep").await;
    }

    fn wake(&mut self) {
        tracing::info!("the machine is awake");
        self.asleep = false;
        self.failures = 0;
        self.next_start = Instant::now();
    }

    /// Ends the engine at once; its job goes back into the queue as if it had not been started.
    async fn drop_engine(&mut self, why: &'static str) {
        if let Some(engine) = self.engine.take() {
            // Nothing of what it holds is durable, and a polite end may take a step of the sampler.
            self.patiently(engine.end(Duration::ZERO)).await;
        }
        let Some(running) = self.attempt_breaks() else { return };
        let id = running.job.id;
        if let Some((text, _)) = running.cancel {
            return self.conclude(id, Ended::Canceled { text }).await;
        }
        tracing::info!(job = id, "job {id} goes back into the queue: {why}");
        if let Err(e) = self.desk.ledger.call(move |db| db.give_back(id, why)).await {
            self.keep(id, Unsettled::GivenBack, &e);
        }
        self.remove_part(&running.job).await;
        self.desk.board.tell(Change::State(id));
    }

    /// The service stops: quickly, and with nothing lost.
    async fn end(mut self) {
        self.desk.board.set_status("stopping", "the service is stopping");
        self.drop_engine("the service was stopped").await;
        self.next_claim = Instant::now();
        if let Err(e) = self.settle().await {
            tracing::error!("the next start puts right what could not be written down: {e}");
        }
    }

    /// Tells everybody what is going on.
    fn show(&self) {
        let paused = self.desk.paused().map(|who| {
            let end = match self.desk.board.paused() {
                Some(_) => "`animctl resume` ends that",
                None => "it goes on when that program ends",
            };
            format!("the queue is paused {who}; {end}")
        });
        let (state, text) = match (&self.running, &self.engine, &self.trouble, paused) {
            (Some(running), _, _, paused) => {
                let id = running.job.id;
                let stage = self.desk.board.live(id).map_or("load", |live| live.progress.stage.name());
                let then = paused.map(|text| format!("; then {text}")).unwrap_or_default();
                ("busy", format!("job {id} is being made: {stage}{then}"))
            }
            _ if self.asleep => {
                ("paused", "the machine goes to sleep; the queue goes on when it wakes".into())
            }
            (None, None, Some((state, text)), _) => (*state, text.clone()),
            (None, _, _, Some(text)) => ("paused", text),
            (None, None, None, None) if self.unloaded => (
                "idle",
                "waiting for pictures; the model is unloaded and comes back with the next job".into(),
            ),
            (None, None, None, None) => ("starting", "the service is starting".into()),
            (None, Some(engine), _, None) => match &engine.hello {
                Some(hello) => {
                    ("idle", format!("waiting for pictures; {} on {}", hello.model, hello.backend))
                }
                None => ("loading", "the engine is starting".into()),
            },
        };
        self.desk.board.set_status(state, text);
    }
}

async fn hear(engine: &mut Option<Engine>) -> io::Result<Option<FromEngine>> {
    match engine {
        Some(engine) => engine.next().await,
        None => pending().await,
    }
}

/// When a silent engine counts as hung.
fn silence_ends(engine: &Engine, config: &crate::config::Engine) -> Instant {
    match engine.hello {
        Some(_) => engine.heard + Duration::from_secs(config.heartbeat_seconds),
        None => engine.started + Duration::from_secs(config.start_seconds),
    }
}

/// Makes the job's unfinished file, so that an outbox that refuses is known before the work and not after it.
fn check_outbox(desk: &Desk, outbox: &Path, part: &Path) -> Result<()> {
    let refuse = |text: String| Error::refused(ErrorCode::Output, text);
    let make = |dir: Dir| {
        let part = dir.at(part);
        match fs::remove_file(&part) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
        fs::OpenOptions::new().write(true).create_new(true).mode(0o640).open(&part)?;
        Ok((dir, part))
    };
    let (dir, part) = desk.make_outbox(outbox).and_then(make).map_err(|e| {
        refuse(format!(
            "the outbox `{}` takes no file: {e}; make it a folder that animd may write to",
            show(outbox)
        ))
    })?;
    let free = free_space(&dir.path()).map_err(|e| {
        refuse(format!("the outbox `{}` cannot be asked for its free space: {e}", show(outbox)))
    })? >> 20;
    let free_mib = desk.config().queue.free_mib;
    if free < free_mib {
        _ = fs::remove_file(part);
        return Err(refuse(format!(
            "the disk of the outbox `{}` has {free} MiB left, and queue.free_mib asks for {free_mib}; make room",
            show(outbox)
        )));
    }
    Ok(())
}
