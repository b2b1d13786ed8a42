//! Tests of the supervisor with engines that are tasks of the test, on a clock that the tests move.

mod refused;
mod torn;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use animd_common::bus::ServiceState;
use animd_common::config::Config;
use animd_common::models::Models;
use animd_common::picture::TINY;
use animd_protocol::ErrorCode;
use animd_protocol::messages::{Kernels, ToEngine};
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
        assert!(matches!(self.next().await, Some(ToEngine::Hello { .. })));
        self.say(&FromEngine::Hello {
            protocol: animd_protocol::messages::PROTOCOL,
            version: "1".into(),
            backend: "cpu".into(),
            model: "made-up".into(),
            kernels: Kernels::default(),
            recipe: None,
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
        let defaults = Defaults::new(current.clone());
        let ledger = Ledger::open(&dir.path().join("ledger.db")).expect("a ledger");
        let spool = Spool::open(dir.path().join("spool")).expect("a spool");
        let pictures = PictureFiles::new(dir.path());
        let (events, holds, profiles) = (Events::default(), Holds::default(), Profiles::default());
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
            work: Ok((spooled.sha256, Box::new(settings.resolve(|| 7).expect("valid")))),
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

/// Returns settings that choose a model.
fn of_model(name: &str) -> Settings {
    Settings { model: Some(name.into()), ..Settings::default() }
}

#[tokio::test(start_paused = true)]
async fn a_job_of_another_model_gets_an_engine_with_that_model() {
    let models = tempfile::tempdir().expect("a folder");
    let other = models.path().join("models/other");
    std::fs::create_dir_all(&other).expect("made");
    let mut house = House::new(|config| config.models = Models::beside(models.path()));
    let mut first = house.engine().await;
    assert_eq!(first.1, Path::new("/model"));
    first.hello().await;
    house.until(ServiceState::Idle).await;
    let [a, b, c] = [of_model("other"), of_model("other"), Settings::default()];
    let [a, b, c] = [house.queue_with(a).await, house.queue_with(b).await, house.queue_with(c).await];
    let mut second = house.engine().await;
    assert_eq!(first.next().await, None, "one model at a time");
    assert_eq!(second.1, other);
    second.hello().await;
    for id in [a, b] {
        assert_eq!(second.job().await, id);
        second.fail(id, ErrorCode::InvalidImage).await;
    }
    let mut third = house.engine().await;
    assert_eq!(third.1, Path::new("/model"));
    third.hello().await;
    assert_eq!(third.job().await, c);
    house.end().await;
}

#[tokio::test(start_paused = true)]
async fn without_a_configured_model_jobs_that_name_one_run_and_others_wait() {
    let models = tempfile::tempdir().expect("a folder");
    let small = models.path().join("models/small");
    std::fs::create_dir_all(&small).expect("made");
    let mut house = House::new(|config| {
        config.model.path = None;
        config.models = Models::beside(models.path());
    });
    let first = house.queue().await;
    let said = house.until(ServiceState::NoWeights).await;
    assert!(said.starts_with("no model is configured: ") && said.contains("`animctl demo`"), "{said}");
    let named = house.queue_with(of_model("small")).await;
    let mut engine = house.engine().await;
    assert_eq!(engine.1, small);
    engine.hello().await;
    assert_eq!(engine.job().await, named);
    assert!(
        house.tools.profiles.recipe_of(None).is_none(),
        "another model says nothing of the configured one"
    );
    engine.fail(named, ErrorCode::InvalidImage).await;
    assert_eq!(house.until(ServiceState::NoWeights).await, said);
    let job = house.job(first).await;
    assert_eq!((job.state, job.attempt), (State::Queued, 0));
    house.end().await;
}

/// Refuses the model of an engine that was just started.
async fn refuse_model(mut engine: Remote) {
    assert!(matches!(engine.next().await, Some(ToEngine::Hello { .. })));
    engine.say(&FromEngine::Failed { job: 0, code: ErrorCode::Model, message: "it is torn".into() }).await;
}

#[tokio::test(start_paused = true)]
async fn a_configured_model_that_cannot_be_used_holds_up_its_own_jobs_only() {
    let models = tempfile::tempdir().expect("a folder");
    let other = models.path().join("models/other");
    std::fs::create_dir_all(&other).expect("made");
    let mut house = House::new(|config| config.models = Models::beside(models.path()));
    let first = house.queue().await;
    // The pauses between the tries grow to a minute.
    for _ in 0..8 {
        let engine = house.engine().await;
        assert_eq!(engine.1, Path::new("/model"));
        refuse_model(engine).await;
    }
    assert_eq!(house.until(ServiceState::NoWeights).await, "it is torn");
    let named = house.queue_with(of_model("other")).await;
    let mut engine = house.engine().await;
    while engine.1 != other {
        // The clock moves on while the ledger works, so that another try may have begun.
        refuse_model(engine).await;
        engine = house.engine().await;
    }
    engine.hello().await;
    assert_eq!(engine.job().await, named);
    engine.fail(named, ErrorCode::InvalidImage).await;
    assert_eq!(house.until(ServiceState::NoWeights).await, "it is torn");
    // The configured model is tried again all the same, and nobody else makes its videos.
    let idle = Instant::now();
    let mut engine = house.engine().await;
    assert_eq!(engine.1, Path::new("/model"));
    assert!(seconds_since(idle) <= 60);
    engine.hello().await;
    assert_eq!(engine.job().await, first);
    house.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_model_that_cannot_be_used_fails_its_own_jobs_only() {
    let models = tempfile::tempdir().expect("a folder");
    std::fs::create_dir_all(models.path().join("models/broken")).expect("made");
    let mut house = House::new(|config| config.models = Models::beside(models.path()));
    let gone = house.queue_with(of_model("gone")).await;
    let broken = house.queue_with(of_model("broken")).await;
    let good = house.queue().await;
    let mut engine = house.engine().await;
    while engine.1 != models.path().join("models/broken") {
        // The supervisor may have started the first engine before the jobs came.
        engine.hello().await;
        engine = house.engine().await;
    }
    assert!(matches!(engine.next().await, Some(ToEngine::Hello { .. })));
    engine.say(&FromEngine::Failed { job: 0, code: ErrorCode::Model, message: "it is torn".into() }).await;
    drop(engine);
    let mut next = house.engine().await;
    assert_eq!(next.1, Path::new("/model"));
    next.hello().await;
    assert_eq!(next.job().await, good);
    for (id, said) in
        [(gone, "no model is called `gone`"), (broken, "its model `broken` cannot be used: it is torn")]
    {
        let job = house.job(id).await;
        assert_eq!((job.state, job.error_code.as_deref()), (State::Failed, Some("model")));
        let text = job.error_text.map(String::from).unwrap_or_default();
        assert!(text.contains(said), "{text}");
    }
    house.end().await;
}

/// How long these tests wait for what should not come. Their clock is real: a paused one would run on to the limit for
/// silent engines whenever a test waits for the ledger.
const A_WHILE: Duration = Duration::from_millis(300);

/// Starts a supervisor whose engine finishes the file of the first of two jobs, and computes the second one.
async fn saving_one_and_computing_another(change: impl FnOnce(&mut Config)) -> (House, Remote, u64, u64) {
    let mut house = House::new(|config| {
        config.profile.name = "cpu".into();
        change(config);
    });
    let (first, second) = (house.queue().await, house.queue().await);
    let mut engine = house.engine().await;
    engine.hello().await;
    assert_eq!(engine.job().await, first);
    engine.say(&FromEngine::Saving { job: first }).await;
    assert_eq!(engine.job().await, second);
    for id in [first, second] {
        assert_eq!(house.job(id).await.state, State::Running);
    }
    (house, engine, first, second)
}

#[tokio::test]
async fn a_job_starts_while_the_file_of_the_one_before_is_finished() {
    let (house, mut engine, first, second) = saving_one_and_computing_another(|_| ()).await;
    let third = house.queue().await;
    // Nobody saves two files at a time, and nobody saves what he was not given.
    engine.say(&FromEngine::Saving { job: second }).await;
    engine.say(&FromEngine::Saving { job: 77 }).await;
    assert!(tokio::time::timeout(A_WHILE, engine.next()).await.is_err());
    engine.fail(first, ErrorCode::InvalidImage).await;
    house
        .tools
        .events
        .status()
        .wait_for(|status| status.text.contains(&format!("job {second}")))
        .await
        .unwrap();
    assert_eq!(house.job(second).await.state, State::Running);
    engine.say(&FromEngine::Saving { job: second }).await;
    assert_eq!(engine.job().await, third);
    // The later one may end before the earlier one.
    engine.fail(third, ErrorCode::InvalidImage).await;
    let text = format!("job {second} is running");
    house.tools.events.status().wait_for(|status| status.text.contains(&text)).await.unwrap();
    let refused = house.commands.unload().await.expect_err("a file is being finished");
    assert_eq!(refused.code(), ErrorCode::Busy);
    engine.fail(second, ErrorCode::InvalidImage).await;
    house.until(ServiceState::Idle).await;
    for id in [first, second, third] {
        assert_eq!(house.job(id).await.state, State::Failed);
    }
    house.end().await;
}

#[tokio::test]
async fn both_jobs_of_an_engine_that_dies_run_again() {
    let (mut house, engine, first, second) = saving_one_and_computing_another(|_| ()).await;
    drop(engine);
    let mut next = house.engine().await;
    next.hello().await;
    for id in [first, second] {
        assert_eq!(next.job().await, id, "in the order of the queue");
        let job = house.job(id).await;
        assert_eq!((job.attempt, job.crashes), (2, 1));
        next.fail(id, ErrorCode::InvalidImage).await;
    }
    assert_eq!(house.tools.events.restarts(), 1);
    house.end().await;
}

#[tokio::test]
async fn both_jobs_go_back_into_the_queue_when_the_machine_sleeps() {
    let (house, mut engine, first, second) = saving_one_and_computing_another(|_| ()).await;
    house.commands.sleep().await.expect("the supervisor runs");
    assert_eq!(engine.next().await, None);
    for id in [first, second] {
        let job = house.job(id).await;
        assert_eq!((job.state, job.attempt, job.crashes), (State::Queued, 0, 0));
    }
    house.end().await;
}

#[tokio::test]
async fn a_job_whose_file_is_being_finished_can_be_cancelled() {
    let (mut house, mut engine, first, second) =
        saving_one_and_computing_another(|config| config.engine.cancel_seconds = 1).await;
    assert!(house.commands.cancel(first, "by somebody".into()).await.is_ok_and(|known| known));
    assert!(matches!(engine.next().await, Some(ToEngine::Cancel { job }) if job == first));
    // An engine that ignores the cancel is ended, and the other job runs again.
    assert_eq!(engine.next().await, None);
    let mut next = house.engine().await;
    next.hello().await;
    assert_eq!(next.job().await, second);
    assert_eq!(house.job(first).await.state, State::Canceled);
    house.end().await;
}

#[tokio::test]
async fn another_model_waits_until_the_last_file_is_finished() {
    let models = tempfile::tempdir().expect("a folder");
    std::fs::create_dir_all(models.path().join("models/other")).expect("made");
    let mut house = House::new(|config| config.models = Models::beside(models.path()));
    let first = house.queue().await;
    let mut engine = house.engine().await;
    engine.hello().await;
    assert_eq!(engine.job().await, first);
    let other = house.queue_with(of_model("other")).await;
    engine.say(&FromEngine::Saving { job: first }).await;
    assert!(tokio::time::timeout(A_WHILE, engine.next()).await.is_err(), "it is not ended");
    let status = house.tools.events.status().borrow().clone();
    assert_eq!(status.state, ServiceState::Busy, "{}", status.text);
    engine.fail(first, ErrorCode::InvalidImage).await;
    assert_eq!(engine.next().await, None);
    let mut next = house.engine().await;
    assert_eq!(next.1, models.path().join("models/other"));
    next.hello().await;
    assert_eq!(next.job().await, other);
    house.end().await;
}

#[tokio::test]
async fn a_choice_that_is_due_waits_for_the_last_file_and_no_longer() {
    let (house, mut engine, first, second) = saving_one_and_computing_another(|_| ()).await;
    let third = house.queue().await;
    engine.fail(first, ErrorCode::InvalidImage).await;
    let mut config = Config::clone(&house.tools.config.get());
    config.profile.name = "cpu-of-another-name".into();
    house.tools.config.replace(Arc::new(config));
    engine.say(&FromEngine::Saving { job: second }).await;
    assert!(tokio::time::timeout(A_WHILE, engine.next()).await.is_err(), "no job before the choice is made");
    assert_eq!(house.job(third).await.state, State::Queued);
    let looked = house.tools.profiles.choice();
    engine.fail(second, ErrorCode::InvalidImage).await;
    // Whatever comes of it, the choice is made again now.
    while *house.tools.profiles.choice() == *looked {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    house.end().await;
}
