//! The sections of the configuration as types, with the defaults that are built in.

use std::ffi::OsString;
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize};

use crate::{Error, Result};

/// `[model]`: where the model is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Model {
    /// The model's folder, in any layout that the engine reads; without one, jobs wait.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path: Option<PathBuf>,
    /// The DiT's weights, if not those in the folder.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dit: Option<PathBuf>,
    /// GiB that all prepared copies may take together; 0 is without limit.
    pub cache_gib: u64,
}

impl Default for Model {
    fn default() -> Self {
        Self { path: None, dit: None, cache_gib: 64 }
    }
}

/// `[lora]`: which files change a model.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Lora {
    /// The folders whose files jobs may name; without them, the model's own folders called `loras` and one of the service.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub folders: Option<Vec<PathBuf>>,
    /// Folders and single files besides these; what all configuration files name counts together.
    pub added: Vec<PathBuf>,
}

/// `[engine]`: the engine's process.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Engine {
    /// The program; without one, `animd-engine` beside this program, or else `/usr/libexec/animd/engine`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub program: Option<PathBuf>,
    /// Seconds without a message from the engine after which it is replaced.
    pub heartbeat_seconds: u64,
    /// Seconds that the engine may take until its first message.
    pub start_seconds: u64,
    /// Seconds that a cancelled job may take to stop before the engine is replaced.
    pub cancel_seconds: u64,
    /// Seconds without a job after which the engine is ended, so that its memory is free; 0 keeps it.
    pub idle_unload_seconds: u64,
}

impl Default for Engine {
    fn default() -> Self {
        Self {
            program: None,
            heartbeat_seconds: 30,
            start_seconds: 120,
            cancel_seconds: 10,
            idle_unload_seconds: 600,
        }
    }
}

impl Engine {
    /// Returns how long the engine may be idle before it is ended; `None` is for ever.
    pub fn idle_unload(&self) -> Option<Duration> {
        (self.idle_unload_seconds > 0).then(|| Duration::from_secs(self.idle_unload_seconds))
    }
}

/// `[profile]`: which GPU the engine works on, and how.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Profile {
    /// `auto`, the name of a profile, or the path of a profile's file.
    pub name: String,
    /// `auto`, the UUID of a GPU, or its number.
    #[serde(deserialize_with = "text_or_number")]
    pub gpu: String,
}

impl Default for Profile {
    fn default() -> Self {
        Self { name: "auto".into(), gpu: "auto".into() }
    }
}

/// Reads a text or a number as text, because people write `gpu = 0`.
fn text_or_number<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    struct Visitor;

    impl serde::de::Visitor<'_> for Visitor {
        type Value = String;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("text or a number")
        }

        fn visit_i64<E>(self, number: i64) -> Result<String, E> {
            Ok(number.to_string())
        }

        fn visit_u64<E>(self, number: u64) -> Result<String, E> {
            Ok(number.to_string())
        }

        fn visit_str<E>(self, text: &str) -> Result<String, E> {
            Ok(text.to_owned())
        }
    }

    deserializer.deserialize_any(Visitor)
}

/// `[folders]`: the service's own folders.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Folders {
    /// The folder whose pictures become videos.
    pub inbox: PathBuf,
    /// The folder for finished videos.
    pub outbox: PathBuf,
    /// The ledger and the waiting pictures.
    pub state: PathBuf,
}

impl Default for Folders {
    fn default() -> Self {
        let home = Path::new("/var/lib/animd");
        Self { inbox: home.join("inbox"), outbox: home.join("outbox"), state: home.join("state") }
    }
}

impl Folders {
    /// Returns the folders of `--user`, below the user's home or where the XDG variables say.
    ///
    /// # Errors
    /// [`Error::Config`] without `HOME`.
    pub fn of_user(env: &dyn Fn(&str) -> Option<OsString>) -> Result<Self> {
        let absolute = |name: &str| env(name).map(PathBuf::from).filter(|path| path.is_absolute());
        let home = absolute("HOME").ok_or_else(|| {
            Error::Config("HOME is not set, so there is no place for --user's folders; set it, or give --inbox, --outbox and --state".into())
        });
        let videos = match absolute("XDG_VIDEOS_DIR") {
            Some(dir) => dir,
            None => home.as_ref().map_err(|e| Error::Config(e.to_string()))?.join("Videos"),
        };
        let state = match absolute("XDG_STATE_HOME") {
            Some(dir) => dir,
            None => home?.join(".local/state"),
        };
        Ok(Self {
            inbox: videos.join("animd/inbox"),
            outbox: videos.join("animd/outbox"),
            state: state.join("animd"),
        })
    }
}

/// `[[watch]]`: one more folder whose pictures become videos.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Watch {
    /// The folder.
    pub path: PathBuf,
    /// Where its videos appear; without one, in `folders.outbox`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outbox: Option<PathBuf>,
    /// Seconds that a picture and its sidecar must lie unchanged; without it, `inbox.stable_seconds`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stable_seconds: Option<f64>,
    /// Seconds between two scans of the folder, whatever its file system; without it, the folder is polled only where
    /// changes are not reported.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub poll_seconds: Option<f64>,
}

impl Watch {
    /// Returns how long a picture must lie unchanged here.
    pub fn stable(&self, inbox: &Inbox) -> Duration {
        self.stable_seconds.map_or_else(|| inbox.stable(), Duration::from_secs_f64)
    }

    /// Returns how often the folder is scanned, if that is configured.
    pub fn poll(&self) -> Option<Duration> {
        self.poll_seconds.map(Duration::from_secs_f64)
    }
}

/// `[inbox]`: how pictures are taken from watched folders.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Inbox {
    /// Seconds that a picture and its sidecar must lie unchanged.
    pub stable_seconds: f64,
    /// Seconds between two scans of a folder whose file system does not report changes.
    pub poll_seconds: f64,
    /// Seconds between two scans of every folder, in case a report is lost.
    pub rescan_seconds: f64,
}

impl Default for Inbox {
    fn default() -> Self {
        Self { stable_seconds: 2.0, poll_seconds: 5.0, rescan_seconds: 300.0 }
    }
}

impl Inbox {
    /// Returns [`Self::stable_seconds`] as a duration.
    pub fn stable(&self) -> Duration {
        Duration::from_secs_f64(self.stable_seconds)
    }

    /// Returns [`Self::poll_seconds`] as a duration.
    pub fn poll(&self) -> Duration {
        Duration::from_secs_f64(self.poll_seconds)
    }

    /// Returns [`Self::rescan_seconds`] as a duration.
    pub fn rescan(&self) -> Duration {
        Duration::from_secs_f64(self.rescan_seconds)
    }
}

/// `[queue]`: how jobs are run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Queue {
    /// How often the engine may crash on a job before the job fails.
    pub attempts: u32,
    /// How often the service may die while a job runs before the job fails.
    pub interruptions: u32,
    /// MiB that must be free in the outbox before a job starts.
    pub free_mib: u64,
    /// The most open jobs that one user may have over the bus.
    pub per_user: u32,
    /// The most open jobs of all users together; beyond it the bus accepts no more.
    pub total: u32,
    /// MiB that the pictures and the kept videos of one user's jobs may take, of ended jobs as well.
    pub disk_mib_per_user: u64,
    /// MiB that the records of one user's jobs may take in the ledger.
    pub ledger_mib_per_user: u64,
}

impl Default for Queue {
    fn default() -> Self {
        Self {
            attempts: 3,
            interruptions: 20,
            free_mib: 256,
            per_user: 100,
            total: 10_000,
            disk_mib_per_user: 8192,
            ledger_mib_per_user: 256,
        }
    }
}

/// `[retention]`: for how many days the service keeps each kind of data; 0 is for ever.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Retention {
    /// Pictures of ended jobs, which `retry` needs.
    pub pictures_days: u32,
    /// Videos that were made for a caller who has not collected them.
    pub results_days: u32,
    /// Durations of single steps.
    pub steps_days: u32,
    /// Power, temperature, clocks and memory while jobs ran.
    pub samples_days: u32,
    /// What happened to jobs, and the engine's notes on them.
    pub events_days: u32,
    /// Ended jobs themselves.
    pub jobs_days: u32,
}

impl Default for Retention {
    fn default() -> Self {
        Self {
            pictures_days: 7,
            results_days: 7,
            steps_days: 7,
            samples_days: 30,
            events_days: 90,
            jobs_days: 0,
        }
    }
}

/// `[power]`: what the service asks of the machine.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Power {
    /// Whether the machine stays awake while a job runs.
    pub inhibit_sleep: bool,
}

impl Default for Power {
    fn default() -> Self {
        Self { inhibit_sleep: true }
    }
}

/// `[log]`: what is logged.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Log {
    /// `error`, `warn`, `info`, `debug` or `trace`, or a filter of tracing-subscriber.
    pub level: String,
}

impl Default for Log {
    fn default() -> Self {
        Self { level: "info".into() }
    }
}

/// `[metrics]`: figures for a monitoring system.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Metrics {
    /// The file that Prometheus' `node_exporter` reads; without one, none is written.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub textfile: Option<PathBuf>,
}
