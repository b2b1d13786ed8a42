//! Tests of the supervisor with engines that are tasks of the test, on a clock that the tests move.

mod models;
mod refused;
mod saving;
mod torn;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use animd_common::bus::ServiceState;
use animd_common::config::Config;
use animd_common::models::Models;
use animd_common::picture::TINY;
use animd_protocol::ErrorCode;
use animd_protocol::messages::{Kernels, ToEngine};
use animd_protocol::recipe::Recipe;
use animd_protocol::request::Settings;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::task::JoinHandle;

use super::commands::Commands;
use super::engine::Engine;
use super::gpu::Machine;
use super::gpu::nvml::Driver;
use super::profile::Profiles;
use super::profile::monitor::Start;
use super::*;
use crate::config::Defaults;
use crate::delivery::Waiting;
use crate::error::Result;
use crate::loras::Loras;
use crate::store::ledger::{Added, Job, NewJob, State};
use crate::store::{PartFolders, Results, Watches};

/// Seconds that no test reaches.
const NEVER: u64 = 1_000_000;

/// The engine's end of the socket, and the model that the engine was started with.
struct Remote(BufReader<UnixStream>, PathBuf);

impl Remote {
    /// Returns the supervisor's next message; `None` when it has closed its end.
    async fn next(&mut self) -> Option<ToEngine> {
        let mut line = String::new();
        match self.0.read_line(&mut line).await {
            Ok(0) | Err(_) => None,
            Ok(_) => Some(serde_json::from_str(&line).expect("a message")),
        }
    }

    async fn say(&mut self, message: &FromEngine) {
        let mut line = serde_json::to_vec(message).expect("JSON");
        line.push(b'\n');
        self.0.get_mut().write_all(&line).await.expect("the supervisor listens");
    }

    /// Answers the greeting as an engine without a GPU.
    async fn hello(&mut self) {
        self.hello_of(None).await;
    }

    /// Answers the greeting as an engine that has opened a model.
    async fn hello_of(&mut self, recipe: Option<Recipe>) {
        assert!(matches!(self.next().await, Some(ToEngine::Hello { .. })));
        self.say(&FromEngine::Hello {
            protocol: animd_protocol::messages::PROTOCOL,
            version: "1".into(),
            backend: "cpu".into(),
            model: "made-up".into(),
            kernels: Kernels::default(),
            recipe: recipe.map(Box::new),
        })
        .await;
    }

    /// Returns the number of the job that the engine is given.
    async fn job(&mut self) -> u64 {
        match self.next().await {
            Some(ToEngine::Generate { job, .. }) => job,
            other => panic!("a job, not {other:?}"),
        }
    }

    async fn fail(&mut self, job: u64, code: ErrorCode) {
        self.say(&FromEngine::Failed { job, code, message: "it did not work".into() }).await;
    }
}

/// Hands the other ends of engines to the test.
struct Sockets(mpsc::UnboundedSender<Remote>);

impl Launch for Sockets {
    fn launch(&self, _: &Config, model: &Path, _: &Start) -> Result<Engine> {
        let (ours, theirs) = UnixStream::pair().expect("a pair of sockets");
        _ = self.0.send(Remote(BufReader::new(theirs), model.to_owned()));
        Ok(Engine::on(ours, None))
    }
}

/// A running supervisor and the parts around it.
struct House {
    dir: tempfile::TempDir,
    tools: Tools,
    commands: Commands,
    engines: mpsc::UnboundedReceiver<Remote>,
    stop: watch::Sender<bool>,
    running: JoinHandle<()>,
}

impl House {
    /// Starts a supervisor. Time limits that `change` does not set are never reached.
    fn new(change: impl FnOnce(&mut Config)) -> Self {
        let dir = tempfile::tempdir().expect("a folder");
        let mut config = Config::default();
        config.model.path = Some("/model".into());
        config.folders.state = dir.path().to_owned();
        config.folders.outbox = dir.path().join("outbox");
        config.queue.free_mib = 0;
        let engine = &mut config.engine;
        (engine.start_seconds, engine.heartbeat_seconds) = (NEVER, NEVER);
        (engine.cancel_seconds, engine.idle_unload_seconds) = (NEVER, 0);
        change(&mut config);
        let current = CurrentConfig::new(config);
        let ledger = Ledger::open(&dir.path().join("ledger.db")).expect("a ledger");
        let spool = Spool::open(dir.path().join("spool")).expect("a spool");
        let pictures = PictureFiles::new(dir.path());
        let (events, holds, profiles) = (Events::default(), Holds::default(), Profiles::default());
        let defaults = Defaults::new(current.clone(), profiles.recipes().clone());
        let delivery = Delivery {
            config: current.clone(),
            defaults: defaults.clone(),
            ledger: ledger.clone(),
            spool: spool.clone(),
            pictures: pictures.clone(),
            parts: PartFolders::new(dir.path()),
            results: Results::new(dir.path()),
            events: events.clone(),
            watches: Watches::default(),
            waiting: Waiting::default(),
        };
        let machine = Machine::NoDriver { why: "there is no driver".into(), on_bus: 0 };
        let monitor =
            ProfileMonitor::new(current.clone(), defaults, profiles.clone(), Driver::answering(machine));
        let loras = Loras::new(current.clone());
        let tools =
            Tools { config: current, ledger, spool, pictures, events, holds, delivery, loras, profiles };
        let (commands, commanded) = Commands::channel();
        let (stop, stopped) = watch::channel(false);
        let (sender, engines) = mpsc::unbounded_channel();
        let mut supervisor = Supervisor::new(tools.clone(), monitor, commanded, stopped, None);
        supervisor.launch = Box::new(Sockets(sender));
        let running = tokio::spawn(supervisor.run());
        Self { dir, tools, commands, engines, stop, running }
    }

    async fn engine(&mut self) -> Remote {
        self.engines.recv().await.expect("the supervisor runs")
    }

    /// Queues a job and gives its number.
    async fn queue(&self) -> u64 {
        self.queue_with(Settings::default()).await
    }

    /// Queues a job with these settings and gives its number.
    async fn queue_with(&self, settings: Settings) -> u64 {
        let path: PathBuf = self.dir.path().join("photo.png");
        std::fs::write(&path, TINY).expect("written");
        let file = std::fs::File::open(&path).expect("it is there");
        let spooled = self.tools.spool.put(&file, "the picture").expect("spooled");
        let new = NewJob {
            owner: 0,
            watched: false,
            idempotency_key: None,
            per_user: u32::MAX,
            name: "photo.png".into(),
            source: None,
            priority: 0,
            outbox: None,
            retry_of: None,
            picture_bytes: spooled.bytes,
            last: None,
            parts_bytes: 0,
            work: Ok((
                spooled.sha256,
                Box::new(self.tools.delivery.defaults.resolve(settings, || 7).expect("valid")),
            )),
        };
        let (added, _) = self.tools.ledger.add(new, &self.tools.spool).await.expect("writable");
        let Added::New(id) = added else { panic!("{added:?}") };
        self.tools.events.tell(crate::events::Change::Added(id));
        id
    }

    async fn job(&self, id: u64) -> Job {
        self.tools.ledger.call(move |db| db.job(id)).await.expect("readable").expect("known")
    }

    /// Waits until the service's state is `state`, and returns its sentence.
    async fn until(&self, state: ServiceState) -> String {
        let mut status = self.tools.events.status();
        status.wait_for(|status| status.state == state).await.expect("the supervisor runs").text.to_string()
    }

    /// Stops the supervisor.
    async fn end(self) {
        _ = self.stop.send(true);
        self.running.await.expect("it ends");
    }
}

/// Returns settings that choose a model.
fn of_model(name: &str) -> Settings {
    Settings { model: Some(name.into()), ..Settings::default() }
}

/// Whole seconds of the paused clock since then.
fn seconds_since(start: Instant) -> u64 {
    start.elapsed().as_secs()
}

#[tokio::test(start_paused = true)]
async fn an_engine_that_says_nothing_is_replaced_after_pauses_that_grow() {
    let mut house = House::new(|config| config.engine.start_seconds = 120);
    let mut first = house.engine().await;
    assert!(matches!(first.next().await, Some(ToEngine::Hello { .. })));
    let mut start = Instant::now();
    // The silent engines are kept, because one that closes its socket is noticed at once.
    let mut silent = vec![first];
    // Half a second, one, two: the pauses between an engine's end and the next start.
    for half_seconds in [1, 2, 4, 8] {
        silent.push(house.engine().await);
        assert_eq!(start.elapsed().as_millis() / 500, 240 + half_seconds);
        start = Instant::now();
    }
    assert_eq!(house.tools.events.restarts(), 4);
    house.end().await;
}

#[tokio::test(start_paused = true)]
async fn an_engine_that_falls_silent_is_replaced_and_its_job_runs_again() {
    let mut house = House::new(|config| config.engine.heartbeat_seconds = 30);
    let mut engine = house.engine().await;
    let id = house.queue().await;
    engine.hello().await;
    assert_eq!(engine.job().await, id);
    let start = Instant::now();
    let mut next = house.engine().await;
    assert_eq!(seconds_since(start), 30);
    assert_eq!(engine.next().await, None, "the silent one was let go of");
    next.hello().await;
    assert_eq!(next.job().await, id);
    let job = house.job(id).await;
    assert_eq!((job.state, job.attempt, job.crashes), (State::Running, 2, 1));
    house.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_job_that_takes_engines_down_is_given_up() {
    let mut house = House::new(|config| config.queue.attempts = 3);
    let id = house.queue().await;
    for attempt in 1..=3 {
        let mut engine = house.engine().await;
        engine.hello().await;
        assert_eq!(engine.job().await, id);
        assert_eq!(house.job(id).await.attempt, attempt);
    }
    // The job is not tried again: the next engine has nothing to do.
    let mut idle = house.engine().await;
    idle.hello().await;
    house.until(ServiceState::Idle).await;
    let job = house.job(id).await;
    assert_eq!((job.state, job.error_code.as_deref()), (State::Failed, Some("crashed")));
    house.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_cancel_that_the_engine_ignores_ends_the_engine() {
    let mut house = House::new(|config| config.engine.cancel_seconds = 10);
    let id = house.queue().await;
    let mut engine = house.engine().await;
    engine.hello().await;
    engine.job().await;
    assert!(house.commands.cancel(id, "by somebody".into()).await.is_ok_and(|known| known));
    assert!(matches!(engine.next().await, Some(ToEngine::Cancel { job }) if job == id));
    let start = Instant::now();
    assert_eq!(engine.next().await, None);
    assert_eq!(seconds_since(start), 10);
    let mut idle = house.engine().await;
    idle.hello().await;
    house.until(ServiceState::Idle).await;
    assert_eq!(house.job(id).await.state, State::Canceled);
    house.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_job_that_failed_or_was_cancelled_leaves_the_engine_for_the_next() {
    let mut house = House::new(|_| ());
    let mut engine = house.engine().await;
    engine.hello().await;
    let failing = house.queue().await;
    assert_eq!(engine.job().await, failing);
    engine.fail(failing, ErrorCode::InvalidImage).await;
    let cancelled = house.queue().await;
    assert_eq!(engine.job().await, cancelled);
    assert!(house.commands.cancel(cancelled, "by somebody".into()).await.is_ok_and(|known| known));
    assert!(matches!(engine.next().await, Some(ToEngine::Cancel { .. })));
    engine.fail(cancelled, ErrorCode::Canceled).await;
    house.until(ServiceState::Idle).await;
    assert_eq!(house.job(failing).await.error_code.as_deref(), Some("invalid-image"));
    assert_eq!(house.job(cancelled).await.state, State::Canceled);
    assert_eq!(house.tools.events.restarts(), 0);
    house.end().await;
}

#[tokio::test(start_paused = true)]
async fn an_idle_engine_is_unloaded_and_comes_back_with_a_job() {
    let mut house = House::new(|config| config.engine.idle_unload_seconds = 600);
    let mut engine = house.engine().await;
    engine.hello().await;
    let text = house.until(ServiceState::Idle).await;
    assert!(text.contains("made-up"), "{text}");
    let start = Instant::now();
    assert_eq!(engine.next().await, None);
    assert_eq!(seconds_since(start), 600);
    let unloaded = |status: &crate::events::Status| status.text.contains("the model is unloaded");
    _ = house.tools.events.status().wait_for(unloaded).await;
    let id = house.queue().await;
    let mut engine = house.engine().await;
    engine.hello().await;
    assert_eq!(engine.job().await, id);
    let refused = house.commands.unload().await.expect_err("a job is being made");
    assert_eq!(refused.code(), ErrorCode::Busy);
    house.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_warm_hold_keeps_the_engine_until_it_ends() {
    let mut house = House::new(|config| config.engine.idle_unload_seconds = 60);
    let mut engine = house.engine().await;
    engine.hello().await;
    house.until(ServiceState::Idle).await;
    let hold = crate::holds::Hold { what: What::Warm, uid: 0, who: "a".into(), why: "b".into() };
    let hold = house.tools.holds.take(hold);
    tokio::time::sleep(Duration::from_secs(1000)).await;
    house.tools.holds.release(hold);
    let released = Instant::now();
    assert_eq!(engine.next().await, None);
    assert_eq!(seconds_since(released), 60, "it is idle from the end of the hold on");
    house.end().await;
}

#[tokio::test(start_paused = true)]
async fn sleep_gives_the_job_back_and_waking_starts_it_again() {
    let mut house = House::new(|_| ());
    let id = house.queue().await;
    let mut engine = house.engine().await;
    engine.hello().await;
    engine.job().await;
    house.commands.sleep().await.expect("the supervisor runs");
    assert_eq!(engine.next().await, None);
    let job = house.job(id).await;
    assert_eq!((job.state, job.attempt, job.crashes), (State::Queued, 0, 0));
    house.until(ServiceState::Paused).await;
    house.commands.wake().await.expect("the supervisor runs");
    let mut engine = house.engine().await;
    engine.hello().await;
    assert_eq!(engine.job().await, id);
    assert_eq!(house.tools.events.restarts(), 0, "nobody counts an engine that was ended as lost");
    house.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_stop_gives_the_job_back() {
    let mut house = House::new(|_| ());
    let id = house.queue().await;
    let mut engine = house.engine().await;
    engine.hello().await;
    engine.job().await;
    _ = house.stop.send(true);
    (&mut house.running).await.expect("it ends");
    assert_eq!(house.job(id).await.state, State::Queued);
    assert_eq!(house.tools.events.status().borrow().state, ServiceState::Stopping);
}
