//! One attempt at a job: from the queue to the engine, until the engine reports its end or dies.

use std::fs;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use animd_common::Error as Common;
use animd_common::bus::ServiceState;
use animd_common::files::show;
use animd_common::tasks::blocking;
use animd_protocol::ErrorCode;
use animd_protocol::messages::{FromEngine, PROTOCOL, Report, ToEngine};
use animd_protocol::progress::Progress;
use animd_protocol::request::Request;
use tokio::time::Instant;

use super::Supervisor;
use super::engine::{Engine, Exit, Hello};
use super::state::{Absence, Finished, Loss, Running, Stop, Then, Trouble};
use super::unsettled::Unsettled;
use crate::error::{Error, Result};
use crate::events::{Change, Live};
use crate::store::Picture;
use crate::store::ledger::{Ended, Job, State, Store};

/// How long an engine that has closed its socket may take to exit: the driver frees its memory first.
const EXIT_PATIENCE: Duration = Duration::from_secs(5);
/// The remedy when memory ran out.
const MEMORY: &str = "close other programs, add memory or swap, or choose a smaller `size` or fewer `frames`";

impl Supervisor {
    /// Gives the next job to the engine, if there are both.
    pub(super) async fn start_job(&mut self) -> Result<()> {
        self.settle().await?;
        if Instant::now() < self.next_claim {
            return Ok(());
        }
        // Whatever is refused from here on says so again.
        self.refused = None;
        while self.engine.running().is_none()
            && Instant::now() >= self.next_claim
            && self.tools.holds.paused().is_none()
        {
            // The choice of the profile is looked at, and an outdated engine replaced, when the last file is finished. Without
            // this a queue that is never empty would put that off for ever.
            if self.engine.is_working() && self.monitor.needs_rest() {
                return Ok(());
            }
            let Some(hello) = self.engine.hello().cloned() else { return Ok(()) };
            let Some(job) = self.claim().await? else { return Ok(()) };
            let id = job.id;
            self.tools.events.tell(Change::State(id));
            match self.prepare(&job, &hello).await {
                Ok(generate) => {
                    tracing::info!(job = id, "job {id} starts, attempt {}", job.attempt);
                    self.attempt_starts(job).await;
                    if let Some(engine) = self.engine.engine_mut()
                        && let Err(e) = engine.send(&generate).await
                    {
                        self.lost(Loss::RefusesJob(e)).await;
                    }
                }
                Err(Error::Common(Common::Refused { code, text })) => {
                    self.conclude(id, Ended::Failed { code, text }).await;
                }
                Err(e) => {
                    self.keep(id, Unsettled::GivenBack("it could not be started".into()), &e);
                    return Err(e);
                }
            }
        }
        Ok(())
    }

    /// Starts an attempt at a job; no other function does.
    async fn attempt_starts(&mut self, job: Job) {
        let (id, attempt) = (job.id, job.attempt);
        self.engine.begins(job);
        self.meter.job_starts(id, attempt).await;
    }

    /// Ends an attempt, whatever its outcome; no other function does.
    fn attempt_ended(&mut self, running: &Running) {
        self.meter.attempt_ends(running.job.id);
        self.tools.events.set_live(running.job.id, None);
        self.tools.pictures.remove(&running.job, Picture::Preview);
    }

    /// Takes note that the engine has ended its work on a job, and returns it; `None` if another job runs, or none.
    fn attempt_ends(&mut self, id: u64) -> Option<Running> {
        let running = self.engine.ends(id, Instant::now())?;
        self.attempt_ended(&running);
        Some(running)
    }

    /// Checks before the work that the job can be given to the engine; that its outbox takes a file is known.
    async fn prepare(&mut self, job: &Job, hello: &Hello) -> Result<ToEngine> {
        let Some((mut request, sha256)) = job.request.clone().zip(job.image_sha256) else {
            let text = "its settings were stored by another version of animd; submit the picture again";
            return Err(Error::refused(ErrorCode::InvalidSetting, text));
        };
        let copy = |sha256: [u8; 32], name: String| {
            let copy = self.tools.spool.path(&sha256);
            if copy.exists() {
                return Ok(copy);
            }
            let text = format!("the service's copy of `{name}` is gone; submit the picture again");
            Err(Error::refused(ErrorCode::File, text))
        };
        let image = copy(sha256, show(&job.name))?;
        let last = job.last_sha256.filter(|_| !request.last.is_empty());
        let last = last.map(|sha256| copy(sha256, show(&request.last))).transpose()?;
        if request.open.is_some() {
            request = self.settled(job.id, request).await?;
        }
        let loras;
        (request, loras) = self.tools.loras.pin(request).await?;
        let parts = self.tools.delivery.parts.prepare(job, &request)?;
        let output = self.tools.delivery.part(job);
        // The engine's messages are JSON, which holds UTF-8 names only.
        if output.to_str().is_none() {
            let text = format!(
                "the video would go to `{}`, and the engine takes no path that is not valid UTF-8; rename the folder",
                show(self.tools.delivery.outbox(job))
            );
            return Err(Error::refused(ErrorCode::Output, text));
        }
        let (id, hello) = (job.id, hello.clone());
        let record = move |db: &mut Store| {
            let Hello { version, backend, model, family } = &hello;
            db.engine(id, version, backend, model, family.as_deref())
        };
        self.tools.ledger.call(record).await?;
        if !loras.is_empty() {
            let pinned = request.clone();
            self.tools.ledger.call(move |db| db.pin_loras(id, &pinned)).await?;
        }
        let request: Box<Request> = Box::new(request);
        let pictures = self.tools.pictures.prepare(job)?;
        Ok(ToEngine::Generate { job: id, image, last, loras, parts, output, pictures, request })
    }

    /// Returns a request whose settings were completed while its model's family was not known, with that family's defaults, and
    /// writes it down.
    async fn settled(&self, id: u64, request: Request) -> Result<Request> {
        let recipe = self.tools.profiles.recipes().of(request.model.as_deref());
        let request = request.settled(recipe.as_ref().map(|recipe| &recipe.defaults))?;
        if let Some(recipe) = recipe {
            recipe.check(&request)?;
        }
        let settled = request.clone();
        self.tools.ledger.call(move |db| db.settle(id, &settled)).await?;
        Ok(request)
    }

    pub(super) async fn take(&mut self, message: FromEngine) {
        match message {
            FromEngine::Hello { protocol, .. } if protocol != PROTOCOL => {
                let text = format!(
                    "the engine speaks protocol {protocol} and the service {PROTOCOL}: finish the upgrade so that both are of \
                     one version, then restart animd"
                );
                self.trouble = Some(Trouble::no_engine(text.clone()));
                self.lost(Loss::Protocol(text)).await;
            }
            FromEngine::Hello { version, backend, model, kernels, recipe, .. } => {
                tracing::info!("the engine {version} is ready: {model} on {backend}");
                let name = self.model.name().map(str::to_owned);
                let family = recipe.as_ref().map(|recipe| recipe.family.clone());
                if let Some(recipe) = recipe {
                    self.tools.profiles.recipes().learn(name, Arc::from(recipe));
                }
                self.trouble = None;
                self.engine.greeted(Hello { version, backend, model, family }, Instant::now());
                self.monitor.hello(&kernels, self.engine.pid()).await;
            }
            // A preview is not signalled: a client that wants one asks for it.
            FromEngine::Alive | FromEngine::Preview { .. } => {}
            FromEngine::Progress { job, progress } => self.progress(job, &progress),
            FromEngine::Saving { job } => {
                if self.engine.saves(job, Instant::now()) {
                    self.meter.attempt_ends(job);
                }
            }
            FromEngine::Done { job, report } => self.done(job, report).await,
            FromEngine::Failed { job: 0, code, message } => {
                tracing::error!("the engine cannot work: {message}");
                let state = match code {
                    // A file of the model was cut or written during a job. The engine is about to exit.
                    ErrorCode::Model if self.engine.is_working() => return self.torn = Some(message),
                    ErrorCode::Model if self.refuses_model(&message).await => return,
                    ErrorCode::Model => return self.configured_model_is_unusable(message),
                    ErrorCode::Device => ServiceState::NoGpu,
                    _ => ServiceState::NoEngine,
                };
                self.trouble = Some(Trouble { state, text: message });
            }
            FromEngine::Failed { job, code, message } => self.failed(job, code, message).await,
        }
    }

    /// Fails the job that asked for a model which the engine cannot use. Returns false if no job did.
    async fn refuses_model(&mut self, why: &str) -> bool {
        // What the ledger does not take now is found again when the next engine is started.
        self.refuse_model(why).await.unwrap_or_else(|e| {
            tracing::error!("cannot write to the ledger that a model cannot be used: {e}");
            true
        })
    }

    fn progress(&mut self, job: u64, progress: &Progress) {
        if !self.engine.jobs().any(|running| running.job.id == job) {
            return;
        }
        self.meter.stage(job, progress.stage);
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let left = progress.seconds_left.and_then(|s| Duration::try_from_secs_f64(s).ok());
        let expected_end_us = left.map(|left| (now + left).as_micros() as u64);
        self.tools.events.set_live(job, Some(Live { progress: *progress, expected_end_us }));
        self.tools.events.tell(Change::Progress(job));
    }

    async fn done(&mut self, id: u64, report: Report) {
        let live = self.tools.events.live(id);
        let Some(running) = self.attempt_ends(id) else { return };
        self.failures = 0;
        match running.stop {
            Some(Stop { then: Then::Renew(renewal), .. }) => self.begin_again(*running.job, renewal).await,
            // A cancel that came too late changes nothing, because there is a video.
            _ => self.finish(*running.job, Finished::Done(report), live).await,
        }
    }

    /// Delivers the video of a job.
    pub(super) async fn deliver(&mut self, job: Job, report: Report) {
        let (delivery, id) = (self.tools.delivery.clone(), job.id);
        let finished = Unsettled::Finished(Box::new((job.clone(), report.clone())));
        match self.patiently(async move { delivery.examine(job, report).await }).await {
            Ok(ended) => self.conclude(id, ended).await,
            Err(e) => self.keep(id, finished, &e),
        }
    }

    async fn failed(&mut self, id: u64, code: ErrorCode, text: String) {
        let live = self.tools.events.live(id);
        let Some(running) = self.attempt_ends(id) else { return };
        self.failures = 0;
        match (code, running.stop.map(|stop| stop.then)) {
            (ErrorCode::Canceled, Some(Then::Cancel(text))) => {
                self.conclude(id, Ended::Canceled { text }).await;
            }
            (_, Some(Then::Renew(renewal))) => self.begin_again(*running.job, renewal).await,
            // Somebody other than the supervisor told the engine to end, and it is about to.
            (ErrorCode::Canceled, None) => {
                self.requeue(*running.job, "the engine was told to end", false).await;
            }
            // The video could not be encoded or written: the disk is short, or a program is gone.
            (ErrorCode::Output, None) if running.job.crashes + 1 < self.tools.config.get().queue.attempts => {
                tracing::warn!(job = id, "the video of job {id} could not be saved; the job runs again");
                self.remove_part(&running.job).await;
                let why = text.clone();
                if let Err(e) = self.tools.ledger.call(move |db| db.crashed(id, &why)).await {
                    self.keep(id, Unsettled::Crashed(text), &e);
                }
                self.tools.events.tell(Change::State(id));
            }
            _ => {
                // The engine knows the picture by the name of its copy in the spool, which tells a user nothing.
                let job = &running.job;
                let last = job.request.as_ref().map(|request| show(&request.last));
                let names = [(job.image_sha256, Some(show(&job.name))), (job.last_sha256, last)];
                let named = |text: String, (sha256, name): (Option<[u8; 32]>, Option<String>)| match sha256
                    .zip(name)
                {
                    Some((sha256, name)) => {
                        text.replace(&*self.tools.spool.path(&sha256).to_string_lossy(), &name)
                    }
                    None => text,
                };
                let text = names.into_iter().fold(text, named);
                self.finish(*running.job, Finished::Failed { code, text }, live).await;
            }
        }
    }

    pub(super) async fn conclude(&mut self, id: u64, ended: Ended) {
        self.meter.job_ends(id, &ended).await;
        let (delivery, told) = (self.tools.delivery.clone(), ended.clone());
        if let Err(e) = self.patiently(async move { delivery.end(id, State::Running, told).await }).await {
            self.keep(id, Unsettled::Ended(ended), &e);
        }
    }

    /// Ends an engine that is lost. Its jobs run again, unless they have taken engines down too often: of two jobs it is not
    /// known which one did.
    pub(super) async fn lost(&mut self, why: Loss) {
        let (Some(engine), jobs) = self.engine.take(Absence::Due) else { return };
        // An engine that has closed its socket is about to exit by itself, and its exit status tells why.
        let grace = if matches!(why, Loss::Closed) { EXIT_PATIENCE } else { Duration::ZERO };
        let exit = self.patiently(engine.end(grace)).await;
        let torn = self.torn.take();
        let why = match (exit, &torn) {
            (_, Some(torn)) => torn.clone(),
            (exit, _) if exit.is_memory() => exit.to_string(),
            // The exit status of an engine that the supervisor killed says nothing.
            (Exit::Ended, _) => why.to_string(),
            (exit, _) => format!("{why} ({exit})"),
        };
        tracing::warn!("the engine has ended: {why}");
        self.tools.events.engine_lost();
        let waits = torn.is_some() && self.model.name().is_none();
        if waits {
            self.configured_model_is_unusable(why.clone());
        }
        let is_explained = self.trouble.is_some() || (self.model.name().is_none() && self.unusable.is_some());
        if !is_explained {
            let remedy = if exit.is_memory() { format!("; {MEMORY}") } else { String::new() };
            self.trouble = Some(Trouble::no_engine(format!("the engine is started again: {why}{remedy}")));
        }
        self.pause();
        for running in jobs {
            match self.stopped(running).await {
                // Its model's files are at fault, and it waits for them as all jobs of the configured model do.
                Some(job) if waits => self.put_back(job, &why).await,
                Some(job) => self.requeue(job, &why, exit.is_memory()).await,
                None => {}
            }
        }
    }

    /// Lets become of a job whose engine is gone what it was stopped for. Returns the job if nobody had stopped it.
    async fn stopped(&mut self, running: Running) -> Option<Job> {
        self.attempt_ended(&running);
        let Running { job, stop } = running;
        match stop.map(|stop| stop.then) {
            Some(Then::Cancel(text)) => self.conclude(job.id, Ended::Canceled { text }).await,
            Some(Then::Renew(renewal)) => self.begin_again(*job, renewal).await,
            None => return Some(*job),
        }
        None
    }

    /// Ends an engine at once; its jobs go back into the queue as if they had not been started.
    pub(super) async fn give_back(
        &mut self,
        (engine, jobs): (Option<Engine>, Vec<Running>),
        why: &'static str,
    ) {
        if let Some(engine) = engine {
            // The engine holds nothing durable, and a polite end may take as long as a denoising step.
            self.patiently(engine.end(Duration::ZERO)).await;
        }
        // What it said of a file is nothing about the next engine.
        self.torn = None;
        for running in jobs {
            if let Some(job) = self.stopped(running).await {
                self.put_back(job, why).await;
            }
        }
    }

    /// Puts a job back into the queue as if it had not been started.
    async fn put_back(&mut self, job: Job, why: &str) {
        let (id, told) = (job.id, why.to_owned());
        tracing::info!(job = id, "job {id} goes back into the queue: {why}");
        if let Err(e) = self.tools.ledger.call(move |db| db.give_back(id, &told)).await {
            self.keep(id, Unsettled::GivenBack(why.to_owned()), &e);
        }
        self.remove_part(&job).await;
        self.tools.events.tell(Change::State(id));
    }

    /// Queues a job again after its engine went down, for lack of memory or otherwise; one that did so too often fails.
    async fn requeue(&mut self, job: Job, why: &str, memory: bool) {
        let (id, crashes, why) = (job.id, job.crashes + 1, why.to_owned());
        if crashes >= self.tools.config.get().queue.attempts {
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
        if let Err(e) = self.tools.ledger.call(move |db| db.crashed(id, &told)).await {
            self.keep(id, Unsettled::Crashed(why), &e);
        }
        self.tools.events.tell(Change::State(id));
    }

    /// Removes a job's unfinished file, and feeds the watchdog meanwhile, because its disk may hang.
    pub(super) async fn remove_part(&mut self, job: &Job) {
        let part = self.tools.delivery.part(job);
        let removed = blocking(move || fs::remove_file(&part).map_err(Error::file("remove", &part)));
        _ = self.patiently(removed).await;
    }
}
