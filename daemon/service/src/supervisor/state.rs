//! The engine as the supervisor sees it: its state, and how each event changes it.

use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use animd_common::bus::ServiceState;
use animd_common::config;
use animd_protocol::ErrorCode;
use animd_protocol::messages::Report;
use tokio::time::Instant;

use super::engine::{Engine, Hello};
use crate::store::ledger::{Job, Renewal};

/// The state of the engine.
pub enum EngineState {
    /// There is no process.
    Absent(Absence),
    /// The engine was started and has not sent its greeting.
    Starting(Engine),
    /// The engine computes nothing, and takes a job.
    Idle {
        /// The process.
        engine: Engine,
        /// What the engine reported in its greeting.
        hello: Hello,
        /// When it became idle.
        since: Instant,
        /// The job whose file it finishes, if there is one.
        saving: Option<Running>,
    },
    /// The engine makes a video.
    Busy {
        /// The process.
        engine: Engine,
        /// What the engine reported in its greeting.
        hello: Hello,
        /// The job that it works on.
        running: Running,
        /// The job before, while its file is being finished.
        saving: Option<Running>,
    },
}

/// Why there is no engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Absence {
    /// The engine is started as soon as it can be.
    Due,
    /// Nobody needs an engine. It is started again with the next job, or when somebody wants it warm.
    Unloaded,
    /// The machine sleeps, or is about to. `unloaded` says whether the engine is started again afterwards.
    Asleep {
        /// Whether nobody needed an engine before.
        unloaded: bool,
    },
}

/// The job that the engine works on.
pub struct Running {
    /// The job.
    pub job: Box<Job>,
    /// The stop that the engine was told of, if it was.
    pub stop: Option<Stop>,
}

/// A stop of the running job that the engine was told of.
pub struct Stop {
    /// What becomes of the job.
    pub then: Then,
    /// The time at which the engine is ended if it still works on the job.
    pub deadline: Instant,
}

/// What the engine has made of a job.
pub enum Finished {
    /// A video.
    Done(Report),
    /// Nothing, for this reason.
    Failed {
        /// The stable code.
        code: ErrorCode,
        /// The sentence.
        text: String,
    },
}

/// What becomes of a job that the engine was told to stop.
pub enum Then {
    /// It is cancelled, by somebody whom this sentence names for the ledger.
    Cancel(String),
    /// It begins again with other settings.
    Renew(Arc<Renewal>),
}

/// The reason why no job can run, for everybody who asks for the service's state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trouble {
    /// The service's state.
    pub state: ServiceState,
    /// The sentence.
    pub text: String,
}

impl Trouble {
    /// Returns the trouble of an engine that cannot work, with the reason.
    pub fn no_engine(text: impl Into<String>) -> Self {
        Self { state: ServiceState::NoEngine, text: text.into() }
    }
}

/// Why an engine is lost.
#[derive(Debug)]
pub enum Loss {
    /// The engine has closed its end of the socket, and is about to exit by itself.
    Closed,
    /// The engine sends something that is not a message.
    Unreadable(io::Error),
    /// The engine does not accept its job.
    RefusesJob(io::Error),
    /// The engine does not accept other messages.
    Deaf(io::Error),
    /// The engine has sent nothing for so many seconds.
    Silent(u64),
    /// The engine goes on with a job that it was told to stop.
    IgnoresStop,
    /// The engine speaks another version of the protocol.
    Protocol(String),
}

impl fmt::Display for Loss {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Closed => f.write_str("it closed its connection"),
            Self::Unreadable(e) => write!(f, "its messages cannot be read: {e}"),
            Self::RefusesJob(e) => write!(f, "it does not take its job: {e}"),
            Self::Deaf(e) => write!(f, "it does not listen: {e}"),
            Self::Silent(seconds) => write!(f, "it has not been heard for {seconds} seconds"),
            Self::IgnoresStop => f.write_str("it does not stop its job"),
            Self::Protocol(text) => f.write_str(text),
        }
    }
}

impl EngineState {
    /// Returns the process, if there is one.
    pub fn engine(&self) -> Option<&Engine> {
        match self {
            Self::Absent(_) => None,
            Self::Starting(engine) | Self::Idle { engine, .. } | Self::Busy { engine, .. } => Some(engine),
        }
    }

    /// Returns the process, to speak with.
    pub fn engine_mut(&mut self) -> Option<&mut Engine> {
        match self {
            Self::Absent(_) => None,
            Self::Starting(engine) | Self::Idle { engine, .. } | Self::Busy { engine, .. } => Some(engine),
        }
    }

    /// Returns the number of the process.
    pub fn pid(&self) -> Option<u32> {
        self.engine()?.pid()
    }

    /// Returns what the engine has said of itself.
    pub fn hello(&self) -> Option<&Hello> {
        match self {
            Self::Idle { hello, .. } | Self::Busy { hello, .. } => Some(hello),
            Self::Absent(_) | Self::Starting(_) => None,
        }
    }

    /// Returns the job that the engine computes.
    pub fn running(&self) -> Option<&Running> {
        match self {
            Self::Busy { running, .. } => Some(running),
            _ => None,
        }
    }

    /// Returns the jobs that the engine has: the one that it computes, then the one whose file it finishes.
    pub fn jobs(&self) -> impl Iterator<Item = &Running> {
        let saving = match self {
            Self::Idle { saving, .. } | Self::Busy { saving, .. } => saving.as_ref(),
            Self::Absent(_) | Self::Starting(_) => None,
        };
        self.running().into_iter().chain(saving)
    }

    /// Returns one of the engine's jobs, to be cancelled.
    pub fn job_mut(&mut self, id: u64) -> Option<&mut Running> {
        let (running, saving) = match self {
            Self::Absent(_) | Self::Starting(_) => return None,
            Self::Idle { saving, .. } => (None, saving),
            Self::Busy { running, saving, .. } => (Some(running), saving),
        };
        running.into_iter().chain(saving).find(|running| running.job.id == id)
    }

    /// Returns whether the engine has a job.
    pub fn is_working(&self) -> bool {
        self.jobs().next().is_some()
    }

    /// Returns why there is no process.
    pub fn absence(&self) -> Option<Absence> {
        match self {
            Self::Absent(absence) => Some(*absence),
            _ => None,
        }
    }

    /// Returns the process and its jobs, the older one first, and leaves none, for the reason `absence`.
    pub fn take(&mut self, absence: Absence) -> (Option<Engine>, Vec<Running>) {
        match std::mem::replace(self, Self::Absent(absence)) {
            Self::Absent(_) => (None, Vec::new()),
            Self::Starting(engine) => (Some(engine), Vec::new()),
            Self::Idle { engine, saving, .. } => (Some(engine), saving.into_iter().collect()),
            Self::Busy { engine, running, saving, .. } => {
                (Some(engine), saving.into_iter().chain([running]).collect())
            }
        }
    }

    /// Takes note of the engine's greeting.
    pub fn greeted(&mut self, hello: Hello, now: Instant) {
        *self = match std::mem::replace(self, Self::Absent(Absence::Due)) {
            Self::Absent(absence) => Self::Absent(absence),
            Self::Starting(engine) => Self::Idle { engine, hello, since: now, saving: None },
            Self::Idle { engine, saving, .. } => Self::Idle { engine, hello, since: now, saving },
            Self::Busy { engine, running, saving, .. } => Self::Busy { engine, hello, running, saving },
        };
    }

    /// Gives an idle engine a job. Nothing happens in any other state.
    pub fn begins(&mut self, job: Job) {
        *self = match std::mem::replace(self, Self::Absent(Absence::Due)) {
            Self::Idle { engine, hello, saving, .. } => {
                Self::Busy { engine, hello, running: Running { job: Box::new(job), stop: None }, saving }
            }
            other => other,
        };
    }

    /// Takes note that the engine has computed job `id` and finishes its file; false if it does not compute that job, or
    /// still finishes another one.
    pub fn saves(&mut self, id: u64, now: Instant) -> bool {
        match std::mem::replace(self, Self::Absent(Absence::Due)) {
            Self::Busy { engine, hello, running, saving: None } if running.job.id == id => {
                *self = Self::Idle { engine, hello, since: now, saving: Some(running) };
                true
            }
            other => {
                *self = other;
                false
            }
        }
    }

    /// Takes note that the engine has stopped working on job `id`, and returns the job; `None` if it did not work on
    /// it.
    pub fn ends(&mut self, id: u64, now: Instant) -> Option<Running> {
        if let Self::Idle { saving, since, .. } = self {
            let saved = saving.take_if(|saving| saving.job.id == id)?;
            *since = now;
            return Some(saved);
        }
        if let Self::Busy { saving, .. } = self
            && let Some(saved) = saving.take_if(|saving| saving.job.id == id)
        {
            return Some(saved);
        }
        self.running().filter(|running| running.job.id == id)?;
        match std::mem::replace(self, Self::Absent(Absence::Due)) {
            Self::Busy { engine, hello, running, saving } => {
                *self = Self::Idle { engine, hello, since: now, saving };
                Some(running)
            }
            other => {
                *self = other;
                None
            }
        }
    }

    /// Takes note that nobody wants the engine warm any more: its idle time starts now.
    pub fn touch(&mut self, now: Instant) {
        if let Self::Idle { since, .. } = self {
            *since = now;
        }
    }

    /// Takes note that nobody needs an engine, and returns the one that there is.
    pub fn unload(&mut self) -> Option<Engine> {
        let absence = match self.absence() {
            Some(Absence::Asleep { .. }) => Absence::Asleep { unloaded: true },
            _ => Absence::Unloaded,
        };
        self.take(absence).0
    }

    /// Takes note that the machine goes to sleep, and returns the engine and its jobs.
    pub fn sleep(&mut self) -> (Option<Engine>, Vec<Running>) {
        let unloaded = matches!(self.absence(), Some(Absence::Unloaded | Absence::Asleep { unloaded: true }));
        self.take(Absence::Asleep { unloaded })
    }

    /// Takes note that the machine is awake again.
    pub fn wake(&mut self) {
        if let Self::Absent(Absence::Asleep { unloaded }) = *self {
            *self = Self::Absent(if unloaded { Absence::Unloaded } else { Absence::Due });
        }
    }

    /// Returns when an engine that stays silent counts as hung.
    pub fn silence_ends(&self, config: &config::Engine) -> Option<Instant> {
        let engine = self.engine()?;
        Some(match self.hello() {
            Some(_) => engine.heard + Duration::from_secs(config.heartbeat_seconds),
            None => engine.started + Duration::from_secs(config.start_seconds),
        })
    }

    /// Returns when an engine that is idle, and that nobody keeps warm, has been idle long enough.
    pub fn idle_ends(&self, config: &config::Engine) -> Option<Instant> {
        match self {
            Self::Idle { since, saving: None, .. } => Some(*since + config.idle_unload()?),
            _ => None,
        }
    }

    /// Returns when an engine that was told to stop a job should have done so.
    pub fn stop_ends(&self) -> Option<Instant> {
        self.jobs().filter_map(|running| Some(running.stop.as_ref()?.deadline)).min()
    }
}
