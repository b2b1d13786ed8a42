//! The engine's process, as its parent sees it: a child whose standard input is one end of a socket pair.

use std::ffi::OsStr;
use std::fmt;
use std::fs;
use std::io;
use std::mem::take;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream as StdUnixStream;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use animd_common::config::Config;
use animd_common::files::show;
use animd_common::text::Text;
use animd_protocol::messages::{FromEngine, MAX_LINE, PROTOCOL, ToEngine};
use rustix::process::Signal;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::process::{Child, Command};
use tokio::time::{Instant, timeout};

use super::profile::monitor::Start;
use crate::error::{Error, Result};

/// The kernel's out-of-memory killer takes the engine before the service and most others.
const OOM_SCORE: &str = "800";

/// The longest text of an engine's message, in characters: a list of jobs with their errors fits into one message of a
/// bus.
const MAX_TEXT: usize = 4000;

/// What the engine reported in its greeting.
#[derive(Clone, Debug, PartialEq)]
pub struct Hello {
    /// Its version.
    pub version: String,
    /// `cpu` or `cuda`.
    pub backend: String,
    /// The model.
    pub model: String,
    /// The family of models that it belongs to.
    pub family: Option<String>,
}

/// How an engine's process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// The process ended by itself, or by a signal that tells why.
    Status(ExitStatus),
    /// Somebody else sent SIGKILL, and the kernel has killed a process for lack of memory since the engine was started.
    OutOfMemory,
    /// Somebody else sent SIGKILL.
    Killed,
    /// The service ended the process.
    Ended,
    /// The process has not ended so far: it is inside the kernel, perhaps in a driver, and dies when that returns.
    Stuck,
}

impl Exit {
    fn of(status: ExitStatus, oom_kills: Option<u64>) -> Self {
        match status.signal() {
            Some(9) if self::oom_kills() > oom_kills => Self::OutOfMemory,
            Some(9) => Self::Killed,
            _ => Self::Status(status),
        }
    }

    /// Returns whether lack of memory is the likely reason.
    pub fn is_memory(self) -> bool {
        matches!(self, Self::OutOfMemory | Self::Killed)
    }
}

impl fmt::Display for Exit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Status(status) => status.fmt(f),
            Self::OutOfMemory => f.write_str("the machine ran out of memory and the kernel killed it"),
            Self::Killed => {
                f.write_str("something killed it, probably because the machine ran out of memory")
            }
            Self::Ended => f.write_str("it was ended"),
            Self::Stuck => f.write_str("it was killed, but does not die"),
        }
    }
}

/// Returns how often the kernel has killed a process for lack of memory since the machine was started.
fn oom_kills() -> Option<u64> {
    let text = fs::read_to_string("/proc/vmstat").ok()?;
    text.lines().find_map(|line| line.strip_prefix("oom_kill ")?.trim().parse().ok())
}

/// A way to start engines.
pub trait Launch: Send + Sync {
    /// Starts an engine for a model, as the configuration and the choice of the profile say.
    ///
    /// # Errors
    /// Why no engine could be started.
    fn launch(&self, config: &Config, model: &Path, start: &Start) -> Result<Engine>;
}

/// Starts the configured program.
pub struct Program;

impl Launch for Program {
    fn launch(&self, config: &Config, model: &Path, start: &Start) -> Result<Engine> {
        // `model.dit` belongs to the configured model, and not to one that a job names.
        let is_configured = config.model.path.as_deref() == Some(model);
        let dit = config.model.dit.as_deref().filter(|_| is_configured);
        let Config { log, model: configured, .. } = config;
        Engine::start(&config.engine_program(), model, dit, start, &log.level, configured.cache_gib)
    }
}

/// A running engine.
pub struct Engine {
    /// None in tests, where a task has the other end of the socket.
    child: Option<Child>,
    lines: Lines,
    writer: OwnedWriteHalf,
    /// What [`oom_kills`] returned when the engine was started.
    oom_kills: Option<u64>,
    /// When the engine was started.
    pub started: Instant,
    /// When the engine last sent something.
    pub heard: Instant,
}

impl Engine {
    /// Starts `PROGRAM serve --model DIR [--dit PATH] --profile FILE` on the GPU of the choice and says hello. Needs to
    /// be called on a thread that lives as long as the service: the child is killed when that thread ends. The child
    /// logs at `log_level`, too.
    pub fn start(
        program: &Path,
        model: &Path,
        dit: Option<&Path>,
        start: &Start,
        log_level: &str,
        cache_gib: u64,
    ) -> Result<Self> {
        let failed = |e: io::Error| Error::file("start the engine", program)(e);
        let (ours, theirs) = StdUnixStream::pair().map_err(failed)?;
        ours.set_nonblocking(true).map_err(failed)?;
        let mut command = Command::new(program);
        command
            .arg("serve")
            .arg("--model")
            .arg(model)
            .arg("--profile")
            .arg(&start.file)
            .env("CUDA_VISIBLE_DEVICES", &start.visible)
            // These variables are the service's own as well, and outrank the configuration file.
            .env("ANIMD_LOG_LEVEL", log_level)
            .env("ANIMD_MODEL_CACHE_GIB", cache_gib.to_string())
            .stdin(Stdio::from(OwnedFd::from(theirs)))
            .kill_on_drop(true);
        if let Some(dit) = dit {
            command.args([OsStr::new("--dit"), dit.as_os_str()]);
        }
        // Ctrl-C at the service's terminal is for the service, which then ends its engine.
        command.process_group(0);
        let parent = rustix::process::getpid();
        // SAFETY: between fork and exec this calls only prctl and getppid, which are async-signal-safe.
        unsafe {
            command.pre_exec(move || {
                rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
                // The service may have died before the line above.
                if rustix::process::getppid() == Some(parent) {
                    Ok(())
                } else {
                    Err(io::ErrorKind::Interrupted.into())
                }
            });
        }
        let oom_kills = oom_kills();
        let child = command.spawn().map_err(failed)?;
        if let Some(pid) = child.id() {
            // Raising the score needs no rights. Where /proc cannot be written, the engine is an ordinary candidate.
            _ = fs::write(format!("/proc/{pid}/oom_score_adj"), OOM_SCORE);
        }
        let socket = UnixStream::from_std(ours).map_err(failed)?;
        tracing::info!("the engine `{}` is started, process {}", show(program), child.id().unwrap_or(0));
        Ok(Self { oom_kills, ..Self::on(socket, Some(child)) })
    }

    /// Returns the engine at the other end of a socket.
    pub(super) fn on(socket: UnixStream, child: Option<Child>) -> Self {
        let (reader, writer) = socket.into_split();
        let now = Instant::now();
        Self { child, lines: Lines::new(reader), writer, oom_kills: None, started: now, heard: now }
    }

    /// Returns the number of the engine's process, while it lives.
    pub fn pid(&self) -> Option<u32> {
        self.child.as_ref()?.id()
    }

    /// Sends one message.
    pub async fn send(&mut self, message: &ToEngine) -> io::Result<()> {
        let mut line = serde_json::to_vec(message)?;
        line.push(b'\n');
        // An engine that does not read is a hung one: the caller must not hang with it.
        timeout(Duration::from_secs(5), self.writer.write_all(&line))
            .await
            .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
    }

    /// Sends the greeting.
    pub async fn greet(&mut self) -> io::Result<()> {
        self.send(&ToEngine::Hello { protocol: PROTOCOL, version: env!("CARGO_PKG_VERSION").into() }).await
    }

    /// Returns the next message; `None` when the engine has closed its end. May be dropped and called again.
    pub async fn next(&mut self) -> io::Result<Option<FromEngine>> {
        let Some(line) = self.lines.next().await? else { return Ok(None) };
        self.heard = Instant::now();
        let message = serde_json::from_slice(&line);
        message.map(fit).map(Some).map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e))
    }

    /// Ends the process, unless it ends by itself within `grace`, and says how it ended.
    pub async fn end(mut self, grace: Duration) -> Exit {
        let Some(child) = &mut self.child else { return Exit::Ended };
        if let Ok(Ok(status)) = timeout(grace, child.wait()).await {
            return Exit::of(status, self.oom_kills);
        }
        _ = child.start_kill();
        match timeout(Duration::from_secs(10), child.wait()).await {
            Ok(Ok(_)) => Exit::Ended,
            _ => Exit::Stuck,
        }
    }
}

/// Returns an engine's message with nothing in its texts that the ledger, the bus and a note cannot carry: they quote
/// models and pictures.
fn fit(mut message: FromEngine) -> FromEngine {
    let fit = |text: &mut String| {
        if let Some((end, _)) = text.char_indices().nth(MAX_TEXT) {
            text.truncate(end);
            text.push('…');
        }
        *text = Text::from(take(text)).into();
    };
    match &mut message {
        FromEngine::Hello { version, backend, model, recipe, .. } => {
            let family = recipe.as_mut().map(|recipe| &mut recipe.family);
            [version, backend, model].into_iter().chain(family).for_each(fit);
        }
        FromEngine::Failed { message, .. } => fit(message),
        FromEngine::Done { report, .. } => report.seconds.iter_mut().for_each(|(stage, _)| fit(stage)),
        FromEngine::Alive
        | FromEngine::Progress { .. }
        | FromEngine::Preview { .. }
        | FromEngine::Saving { .. } => {}
    }
    message
}

/// Reads lines of limited length from a socket.
struct Lines {
    reader: OwnedReadHalf,
    buffer: Vec<u8>,
    searched: usize,
}

impl Lines {
    fn new(reader: OwnedReadHalf) -> Self {
        Self { reader, buffer: Vec::new(), searched: 0 }
    }

    /// Returns the next line without its end. Keeps what it has read when dropped.
    async fn next(&mut self) -> io::Result<Option<Vec<u8>>> {
        loop {
            if let Some(at) = self.buffer[self.searched..].iter().position(|b| *b == b'\n') {
                let mut line: Vec<u8> = self.buffer.drain(..=self.searched + at).collect();
                line.pop();
                self.searched = 0;
                return Ok(Some(line));
            }
            self.searched = self.buffer.len();
            if self.buffer.len() > MAX_LINE {
                return Err(io::Error::new(
                    io::ErrorKind::InvalidData,
                    format!("a line of more than {MAX_LINE} bytes"),
                ));
            }
            if self.reader.read_buf(&mut self.buffer).await? == 0 {
                return Ok(None);
            }
        }
    }
}
