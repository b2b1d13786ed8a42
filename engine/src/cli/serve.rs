//! `animd-engine serve`, which animd runs as its child process.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError, mpsc};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use animd_engine::backend::Backend;
use animd_engine::pipeline::{Computed, Film, Pipeline};
use animd_engine::progress::{Observer, Progress};
use animd_engine::weights::{self, Cache};
use animd_engine::{Error, Result, image};
use animd_protocol::ErrorCode;
use animd_protocol::messages::{
    FromEngine, HEARTBEAT_SECONDS, MAX_LINE, PROTOCOL, Pictures, Report, ToEngine,
};
use animd_protocol::plan::Setup;
use animd_protocol::request::Request;

use super::ModelArgs;
use super::backend::{self, Chosen};
use super::cache::CacheArgs;

/// Take jobs from a parent process on standard input, a socket.
#[derive(clap::Args)]
pub struct Serve {
    #[command(flatten)]
    model: ModelArgs,
    /// How to run it: the name of a profile, or a profile's file
    #[arg(long, value_name = "NAME-OR-FILE")]
    profile: Option<String>,
    #[command(flatten)]
    cache: CacheArgs,
}

/// The exit status if the parent spoke another version of the protocol.
const EXIT_PROTOCOL: u8 = 3;
/// The exit status if the model or the device cannot be used; a `Failed` with job 0 said why.
const EXIT_UNUSABLE: u8 = 4;
/// The time that a job can take to its first sign of life. Its picture is read, decoded and fitted first, which takes
/// some seconds for the largest picture.
const PREPARATION: Duration = Duration::from_secs(120);

/// The state that the reading thread, the heartbeat and the work share.
struct Shared {
    socket: Mutex<UnixStream>,
    /// The jobs to stop.
    canceled: Mutex<BTreeSet<u64>>,
    /// Whether the parent is gone: then all jobs should stop.
    alone: AtomicBool,
    /// The time by which the work on each job must give its next sign of life. After that time the heartbeat stops, and the
    /// parent replaces this process.
    believed: Mutex<BTreeMap<u64, Instant>>,
    /// Whether a job computes.
    busy: AtomicBool,
}

impl Shared {
    fn new(socket: UnixStream) -> Self {
        let (socket, busy, alone) = (Mutex::new(socket), AtomicBool::new(false), AtomicBool::new(false));
        Self { socket, canceled: Mutex::default(), alone, believed: Mutex::default(), busy }
    }

    /// Sends one message. If the parent is gone, sending fails silently: the reading thread notices that and ends.
    fn send(&self, message: &FromEngine) {
        let Ok(mut line) = serde_json::to_vec(message) else { return };
        line.push(b'\n');
        let mut socket = self.socket.lock().unwrap_or_else(PoisonError::into_inner);
        let _ = socket.write_all(&line);
    }

    fn canceled(&self) -> MutexGuard<'_, BTreeSet<u64>> {
        self.canceled.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn believed(&self) -> MutexGuard<'_, BTreeMap<u64, Instant>> {
        self.believed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Records a sign of life of the work on a job; the next one can take up to `patience`.
    fn alive(&self, job: u64, patience: Duration) {
        if let Some(until) = Instant::now().checked_add(patience) {
            self.believed().insert(job, until);
        }
    }

    /// Begins a job, and returns true, unless one computes already.
    fn begin(&self, job: u64) -> bool {
        let begins = !self.busy.swap(true, Ordering::SeqCst);
        if begins {
            self.alive(job, PREPARATION);
        }
        begins
    }

    /// Records that no job computes.
    fn rest(&self) {
        self.busy.store(false, Ordering::SeqCst);
    }

    /// Tells the parent how a job has ended.
    fn end(&self, job: u64, result: Result<Report>) {
        self.believed().remove(&job);
        self.send(&match result {
            Ok(report) => FromEngine::Done { job, report },
            Err(e) => FromEngine::Failed { job, code: e.code(), message: e.to_string() },
        });
    }

    fn beat(&self) {
        loop {
            thread::sleep(Duration::from_secs(HEARTBEAT_SECONDS));
            let now = Instant::now();
            if self.believed().values().all(|until| now < *until) {
                self.send(&FromEngine::Alive);
            }
        }
    }
}

/// Reports one job to the parent.
struct Reporter {
    shared: &'static Shared,
    job: u64,
    /// The longest time that the slowest part of the work can go without a sign of life.
    patience: Duration,
    last: Mutex<Option<(Instant, Progress)>>,
}

impl Observer for Reporter {
    fn progress(&self, progress: &Progress) {
        self.shared.alive(self.job, self.patience);
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let due =
            last.is_none_or(|(at, p)| at.elapsed() > Duration::from_millis(100) || p.stage != progress.stage);
        if due {
            *last = Some((Instant::now(), *progress));
            self.shared.send(&FromEngine::Progress { job: self.job, progress: *progress });
        }
    }

    fn preview(&self, n: u32) {
        self.shared.send(&FromEngine::Preview { job: self.job, n });
    }

    fn canceled(&self) -> bool {
        self.shared.alive(self.job, self.patience);
        self.shared.alone.load(Ordering::SeqCst) || self.shared.canceled().contains(&self.job)
    }
}

/// Drops prepared copies beyond the limit, which may be lower than it was. No job waits or fails for that.
fn keep_limit(cache: &Cache) {
    match cache.keep_limit() {
        Ok(dropped) => {
            for copy in dropped {
                tracing::info!(
                    "the prepared copy `{}` is dropped: the cache was larger than its limit",
                    copy.name
                );
            }
        }
        Err(e) => tracing::debug!("the limit of the prepared copies is not looked at: {e}"),
    }
}

impl Serve {
    /// Runs the command; see [`animd_protocol::messages`].
    pub fn run(self) -> ExitCode {
        let socket = match std::io::stdin().as_fd().try_clone_to_owned() {
            Ok(fd) => UnixStream::from(fd),
            Err(e) => {
                eprintln!("error: cannot use standard input: {e}");
                return ExitCode::FAILURE;
            }
        };
        if socket.local_addr().is_err() {
            eprintln!(
                "error: `serve` is for animd, which gives it a socket as standard input; use `generate`"
            );
            return ExitCode::from(2);
        }
        let reading = match socket.try_clone() {
            Ok(reading) => reading,
            Err(e) => {
                eprintln!("error: cannot use the socket: {e}");
                return ExitCode::FAILURE;
            }
        };
        let shared = Shared::new(socket);
        // All that outlives the work ends with the process.
        let shared: &'static Shared = Box::leak(Box::new(shared));
        let report = move |e: Error| {
            shared.send(&FromEngine::Failed { job: 0, code: e.code(), message: e.to_string() });
            EXIT_UNUSABLE
        };
        if let Err(e) = weights::on_fault(report) {
            tracing::warn!("{e}");
        }
        self.work(reading, shared)
    }

    fn work(self, reading: UnixStream, shared: &'static Shared) -> ExitCode {
        // The parent applies a profile's settings: its requests are complete.
        let profile = self.profile.as_deref().map_or(Ok(None), |name| super::profile::open(name).map(Some));
        let chosen = profile
            .and_then(|profile| Ok((backend::choose(profile.as_ref())?, backend::setup(profile.as_ref()))));
        match chosen {
            Ok((Chosen::Cpu(backend), setup)) => self.work_on(backend, &setup, reading, shared),
            #[cfg(feature = "cuda")]
            Ok((Chosen::Cuda(backend), setup)) => self.work_on(backend, &setup, reading, shared),
            Err(e) => unusable(shared, &e),
        }
    }

    fn work_on<B: Backend>(
        self,
        backend: B,
        setup: &Setup,
        reading: UnixStream,
        shared: &'static Shared,
    ) -> ExitCode {
        let cache = self.cache.cache();
        let ModelArgs { model, dit } = &self.model;
        let opened = Pipeline::open(backend, setup, model, dit.as_deref(), cache.as_ref());
        // The copies of this model are in use by now, so they stay.
        if let Some(cache) = &cache {
            keep_limit(cache);
        }
        let mut pipeline = match opened {
            Ok(pipeline) => pipeline,
            Err(e) => return unusable(shared, &e),
        };
        shared.send(&FromEngine::Hello {
            protocol: PROTOCOL,
            version: env!("CARGO_PKG_VERSION").into(),
            backend: pipeline.backend_name().into(),
            model: pipeline.model_name().into(),
            kernels: backend::kernels(),
            recipe: Some(Box::new(pipeline.recipe().clone())),
        });
        let (jobs, queue) = mpsc::sync_channel(1);
        thread::spawn(move || {
            let status = read(BufReader::new(reading), shared, &jobs);
            shared.alone.store(true, Ordering::SeqCst);
            drop(jobs);
            if status != 0 {
                std::process::exit(status.into());
            }
        });
        thread::spawn(|| shared.beat());
        let mut saving = Saving::default();
        while let Ok(order) = queue.recv() {
            let job = order.job;
            let computed = compute(&mut pipeline, shared, order);
            saving.wait();
            match computed {
                Ok((computed, reporter)) => saving.start(computed, reporter),
                // After such an error nothing works on the GPU until the process ends: the parent starts another and tries
                // again.
                Err(e @ Error::Device(_)) => {
                    tracing::error!("{e}");
                    return ExitCode::FAILURE;
                }
                Err(e) => {
                    // It is the model that is wrong then: the parent keeps the job, and starts another engine.
                    if !matches!(e, Error::Canceled)
                        && let Err(changed) = weights::unchanged()
                    {
                        return unusable(shared, &changed);
                    }
                    shared.rest();
                    shared.end(job, Err(e));
                }
            }
        }
        saving.wait();
        ExitCode::SUCCESS
    }
}

/// The thread that finishes a job's file, one at a time, while the next job computes.
#[derive(Default)]
struct Saving(Option<JoinHandle<()>>);

impl Saving {
    /// Finishes a job's file, and lets the parent give the next job meanwhile.
    fn start(&mut self, computed: Computed, reporter: Reporter) {
        let Reporter { shared, job, patience, .. } = reporter;
        shared.alive(job, patience);
        shared.rest();
        shared.send(&FromEngine::Saving { job });
        self.0 = Some(thread::spawn(move || shared.end(job, computed.save(&reporter))));
    }

    /// Waits until the file is finished.
    fn wait(&mut self) {
        if self.0.take().is_some_and(|thread| thread.join().is_err()) {
            // The job stops giving signs of life, and the parent tries it again with another engine.
            tracing::error!("the thread that finishes a video panicked");
        }
    }
}

/// Tells the parent why this process cannot compute.
fn unusable(shared: &Shared, e: &Error) -> ExitCode {
    shared.send(&FromEngine::Failed { job: 0, code: e.code(), message: e.to_string() });
    ExitCode::from(EXIT_UNUSABLE)
}

/// Computes a job's video.
fn compute<B: Backend>(
    pipeline: &mut Pipeline<B>,
    shared: &'static Shared,
    order: Order,
) -> Result<(Computed, Reporter)> {
    let Order { job, image, last, loras, parts, output, pictures, request } = order;
    request.check()?;
    pipeline.adapt(&request.lora, &loras)?;
    weights::unchanged()?;
    let picture = image::decode(&image)?;
    let last = last.map(|last| image::decode(&last)).transpose()?;
    let film = Film::new(picture, last, *request)?;
    let patience = pipeline.patience(film.largest_part());
    let reporter = Reporter { shared, job, patience, last: Mutex::new(None) };
    reporter.check()?;
    let computed = pipeline.compute_film(&film, &output, &pictures, parts.as_deref(), &reporter)?;
    Ok((computed, reporter))
}

/// The content of a [`ToEngine::Generate`].
struct Order {
    job: u64,
    image: PathBuf,
    last: Option<PathBuf>,
    loras: Vec<PathBuf>,
    parts: Option<PathBuf>,
    output: PathBuf,
    pictures: Pictures,
    request: Box<Request>,
}

/// Reads the parent's messages until the parent goes away. Returns the exit status, 0 for an ordinary end.
fn read(mut input: impl BufRead, shared: &Shared, jobs: &mpsc::SyncSender<Order>) -> u8 {
    let refuse = |text: String| {
        shared.send(&FromEngine::Failed { job: 0, code: ErrorCode::Internal, message: text });
        EXIT_PROTOCOL
    };
    let mut line = Vec::new();
    loop {
        line.clear();
        match input.by_ref().take(MAX_LINE as u64 + 1).read_until(b'\n', &mut line) {
            Ok(0) | Err(_) => return 0,
            Ok(n) if n > MAX_LINE => return refuse(format!("a message of more than {MAX_LINE} bytes")),
            Ok(_) => {}
        }
        match serde_json::from_slice(&line) {
            Ok(ToEngine::Hello { protocol: PROTOCOL, .. }) => {}
            Ok(ToEngine::Hello { protocol, version }) => {
                return refuse(format!(
                    "animd {version} speaks protocol {protocol}, and this engine ({}) protocol {PROTOCOL}: restart animd \
                     after an upgrade",
                    env!("CARGO_PKG_VERSION")
                ));
            }
            Ok(ToEngine::Generate { job, image, last, loras, parts, output, pictures, request }) => {
                // An earlier attempt at this job may have been cancelled.
                shared.canceled().remove(&job);
                // A second job would wait while the first one computes, and the parent would take that for work.
                if shared.begin(job) {
                    let order = Order { job, image, last, loras, parts, output, pictures, request };
                    if jobs.send(order).is_err() {
                        return 0;
                    }
                } else {
                    let e = Error::Internal("the engine has a job already".into());
                    shared.send(&FromEngine::Failed { job, code: e.code(), message: e.to_string() });
                }
            }
            Ok(ToEngine::Cancel { job }) => _ = shared.canceled().insert(job),
            Err(e) => return refuse(format!("a message that is not understood: {e}")),
        }
    }
}

#[cfg(test)]
mod tests {
    use animd_protocol::request::Settings;

    use super::*;

    #[test]
    fn a_job_has_a_deadline_before_its_first_sign_of_life() -> Result<()> {
        let (socket, _parent) = UnixStream::pair().map_err(|e| Error::Internal(e.to_string()))?;
        let shared = Shared::new(socket);
        let order = ToEngine::Generate {
            job: 7,
            image: "photo.png".into(),
            last: None,
            loras: Vec::new(),
            parts: None,
            output: "video.mp4".into(),
            pictures: Pictures::default(),
            request: Box::new(Settings::default().resolve(|| 1)?),
        };
        let line = serde_json::to_vec(&order).map_err(|e| Error::Internal(e.to_string()))?;
        let (jobs, queue) = mpsc::sync_channel(1);
        assert_eq!(read(&line[..], &shared, &jobs), 0);
        assert_eq!(queue.recv().map(|order| order.job), Ok(7));
        let believed = shared.believed().get(&7).copied();
        assert!(believed.is_some_and(|until| until <= Instant::now() + PREPARATION));
        assert!(!shared.begin(8), "there is a job");
        shared.rest();
        assert!(shared.begin(8), "the file of the first one may still be finished");
        assert_eq!(shared.believed().len(), 2, "each has a deadline of its own");
        shared.end(7, Err(Error::Canceled));
        assert_eq!(shared.believed().keys().copied().collect::<Vec<_>>(), [8]);
        Ok(())
    }
}
