//! `animd-engine serve`, which animd runs as its child process.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError, mpsc};
use std::time::{Duration, Instant};

use animd_engine::backend::Backend;
use animd_engine::pipeline::{Film, Pipeline};
use animd_engine::progress::{Observer, Progress};
use animd_engine::weights::Cache;
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
    /// The job to stop; 0 for none, `u64::MAX` for the job that runs, whichever it is.
    cancel: AtomicU64,
    /// The time by which the work must give its next sign of life; `None` while there is no work. After that time the
    /// heartbeat stops, and the parent replaces this process.
    believed: Mutex<Option<Instant>>,
    /// Whether there is a job.
    busy: AtomicBool,
}

impl Shared {
    /// Sends one message. If the parent is gone, sending fails silently: the reading thread notices that and ends.
    fn send(&self, message: &FromEngine) {
        let Ok(mut line) = serde_json::to_vec(message) else { return };
        line.push(b'\n');
        let mut socket = self.socket.lock().unwrap_or_else(PoisonError::into_inner);
        let _ = socket.write_all(&line);
    }

    /// Records a sign of life of the work; the next one can take up to `patience`.
    fn alive(&self, patience: Duration) {
        *self.believed.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now().checked_add(patience);
    }

    /// Begins a job, and returns true, unless there is a job already.
    fn begin(&self) -> bool {
        let begins = !self.busy.swap(true, Ordering::SeqCst);
        if begins {
            self.alive(PREPARATION);
        }
        begins
    }

    /// Records that there is no work.
    fn rest(&self) {
        *self.believed.lock().unwrap_or_else(PoisonError::into_inner) = None;
        self.busy.store(false, Ordering::SeqCst);
    }

    fn beat(&self) {
        loop {
            std::thread::sleep(Duration::from_secs(HEARTBEAT_SECONDS));
            let believed = *self.believed.lock().unwrap_or_else(PoisonError::into_inner);
            if believed.is_none_or(|until| Instant::now() < until) {
                self.send(&FromEngine::Alive);
            }
        }
    }
}

/// Reports one job to the parent.
struct Reporter<'a> {
    shared: &'a Shared,
    job: u64,
    /// The longest time that the slowest part of the work can go without a sign of life.
    patience: Duration,
    last: Mutex<Option<(Instant, Progress)>>,
}

impl Observer for Reporter<'_> {
    fn progress(&self, progress: &Progress) {
        self.shared.alive(self.patience);
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
        self.shared.alive(self.patience);
        let cancel = self.shared.cancel.load(Ordering::SeqCst);
        cancel == self.job || cancel == u64::MAX
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
        let shared = Shared {
            socket: Mutex::new(socket),
            cancel: AtomicU64::new(0),
            believed: Mutex::new(None),
            busy: AtomicBool::new(false),
        };
        // All that outlives the work ends with the process.
        let shared: &'static Shared = Box::leak(Box::new(shared));
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
        std::thread::spawn(move || {
            let status = read(BufReader::new(reading), shared, &jobs);
            shared.cancel.store(u64::MAX, Ordering::SeqCst);
            drop(jobs);
            if status != 0 {
                std::process::exit(status.into());
            }
        });
        std::thread::spawn(|| shared.beat());
        while let Ok(order) = queue.recv() {
            let job = order.job;
            let result = one(&mut pipeline, shared, order);
            shared.rest();
            // After such an error nothing works on the GPU until the process ends: the parent starts another and tries again.
            if let Err(e @ Error::Device(_)) = &result {
                tracing::error!("{e}");
                return ExitCode::FAILURE;
            }
            shared.send(&match result {
                Ok(report) => FromEngine::Done { job, report },
                Err(e) => FromEngine::Failed { job, code: e.code(), message: e.to_string() },
            });
        }
        ExitCode::SUCCESS
    }
}

/// Tells the parent why this process cannot compute.
fn unusable(shared: &Shared, e: &Error) -> ExitCode {
    shared.send(&FromEngine::Failed { job: 0, code: e.code(), message: e.to_string() });
    ExitCode::from(EXIT_UNUSABLE)
}

fn one<B: Backend>(pipeline: &mut Pipeline<B>, shared: &Shared, order: Order) -> Result<Report> {
    let Order { job, image, last, loras, parts, output, pictures, request } = order;
    request.check()?;
    pipeline.adapt(&request.lora, &loras)?;
    let picture = image::decode(&image)?;
    let last = last.map(|last| image::decode(&last)).transpose()?;
    let film = Film::new(picture, last, *request)?;
    let patience = pipeline.patience(film.largest_part());
    let reporter = Reporter { shared, job, patience, last: Mutex::new(None) };
    reporter.check()?;
    pipeline.film(&film, &output, &pictures, parts.as_deref(), &reporter)
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
                let _ = shared.cancel.compare_exchange(job, 0, Ordering::SeqCst, Ordering::SeqCst);
                // A second job would wait while the first one runs, and the parent would take that for work.
                if shared.begin() {
                    let order = Order { job, image, last, loras, parts, output, pictures, request };
                    if jobs.send(order).is_err() {
                        return 0;
                    }
                } else {
                    let e = Error::Internal("the engine has a job already".into());
                    shared.send(&FromEngine::Failed { job, code: e.code(), message: e.to_string() });
                }
            }
            Ok(ToEngine::Cancel { job }) => shared.cancel.store(job, Ordering::SeqCst),
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
        let shared = Shared {
            socket: Mutex::new(socket),
            cancel: AtomicU64::new(0),
            believed: Mutex::new(None),
            busy: AtomicBool::new(false),
        };
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
        let believed = *shared.believed.lock().unwrap_or_else(PoisonError::into_inner);
        assert!(believed.is_some_and(|until| until <= Instant::now() + PREPARATION));
        assert!(!shared.begin(), "there is a job");
        shared.rest();
        assert_eq!(*shared.believed.lock().unwrap_or_else(PoisonError::into_inner), None);
        assert!(shared.begin());
        Ok(())
    }
}
