//! The rows of the ledger.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

use animd_common::files::{Identity, path_from};
use animd_common::text::{self, Text};
use animd_protocol::ErrorCode;
use animd_protocol::messages::Report;
use animd_protocol::request::Request;
use rusqlite::Row;
use rusqlite::types::{FromSql, FromSqlError, FromSqlResult, ToSql, ToSqlOutput, ValueRef};

use super::text::{text as column, text_if_any};
use crate::store::spool::Spool;

/// The state of a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum State {
    /// The job waits.
    Queued,
    /// The engine works on the job.
    Running,
    /// The job's outcome is committed, and its files are being put in place.
    Finishing,
    /// The video is made.
    Done,
    /// The job failed; its row has the reason.
    Failed,
    /// Somebody cancelled the job.
    Canceled,
}

impl State {
    /// All states.
    pub const ALL: [Self; 6] =
        [Self::Queued, Self::Running, Self::Finishing, Self::Done, Self::Failed, Self::Canceled];

    /// Returns the name in the ledger, on the bus and in JSON.
    pub fn name(self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::Running => "running",
            Self::Finishing => "finishing",
            Self::Done => "done",
            Self::Failed => "failed",
            Self::Canceled => "canceled",
        }
    }

    /// Returns whether something is still to happen.
    pub fn is_open(self) -> bool {
        matches!(self, Self::Queued | Self::Running | Self::Finishing)
    }

    /// Returns the state with this name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|state| state.name() == name)
    }
}

/// How a job ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The video is made.
    Done,
    /// The job failed; its row has the reason.
    Failed,
    /// Somebody cancelled the job.
    Canceled,
}

impl Outcome {
    /// Returns the name of the state that the job ends in.
    pub fn name(self) -> &'static str {
        match self {
            Self::Done => "done",
            Self::Failed => "failed",
            Self::Canceled => "canceled",
        }
    }
}

impl FromSql for State {
    fn column_result(value: ValueRef<'_>) -> FromSqlResult<Self> {
        Self::from_name(value.as_str()?).ok_or(FromSqlError::InvalidType)
    }
}

impl ToSql for State {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        Ok(self.name().into())
    }
}

impl FromSql for Outcome {
    fn column_result(value: ValueRef<'_>) -> FromSqlResult<Self> {
        let name = value.as_str()?;
        [Self::Done, Self::Failed, Self::Canceled]
            .into_iter()
            .find(|outcome| outcome.name() == name)
            .ok_or(FromSqlError::InvalidType)
    }
}

impl ToSql for Outcome {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        Ok(self.name().into())
    }
}

/// A picture that lies in the watched folder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Source {
    /// The picture's path.
    pub path: PathBuf,
    /// The identity of the file's current contents.
    pub identity: Identity,
    /// When its sidecars were read ([`animd_common::watch::sidecar::read_us`]): what they say later came too late.
    pub read_us: i64,
}

/// A job that is about to be written to the ledger.
#[derive(Clone, Debug)]
pub struct NewJob {
    /// Who may see its prompt and fetch its video.
    pub owner: u32,
    /// Whether it came from the watched folder (or else over the bus).
    pub watched: bool,
    /// A caller's own name for it: the same key gives the same job.
    pub idempotency_key: Option<String>,
    /// How many open jobs its owner may have over the bus, this one included.
    pub per_user: u32,
    /// The picture's name.
    pub name: OsString,
    /// The file to move when the job has ended.
    pub source: Option<Source>,
    /// The priority: a waiting job with a larger one runs first.
    pub priority: i32,
    /// The folder for its video; `None` is the configured one.
    pub outbox: Option<PathBuf>,
    /// The job that it is another try of.
    pub retry_of: Option<u64>,
    /// The size of the spooled picture, if there is one.
    pub picture_bytes: u64,
    /// The hash and the size of the spooled picture that the video ends at, if there is one.
    pub last: Option<([u8; 32], u64)>,
    /// The bytes that are set aside for finished parts while the job is open.
    pub parts_bytes: u64,
    /// The spooled picture and the resolved settings, or why there is none.
    pub work: Result<(/* sha256 */ [u8; 32], Box<Request>), Refusal>,
}

impl NewJob {
    /// Returns a job of user 1000 over the bus, for tests.
    #[cfg(test)]
    pub fn made_up(picture: [u8; 32], request: Request) -> Self {
        Self {
            owner: 1000,
            watched: false,
            idempotency_key: None,
            priority: 0,
            outbox: None,
            retry_of: None,
            per_user: 100,
            name: "photo.png".into(),
            source: None,
            picture_bytes: 9,
            last: None,
            parts_bytes: 0,
            work: Ok((picture, Box::new(request))),
        }
    }

    /// Returns whether the spool has its pictures.
    pub fn has_picture(&self, spool: &Spool) -> bool {
        self.work.as_ref().is_ok_and(|(sha256, _)| spool.has(sha256))
            && self.last.is_none_or(|(sha256, _)| spool.has(&sha256))
    }
}

/// Why a picture was not even queued; it still gets a row, and ends as failed.
#[derive(Clone, Debug)]
pub struct Refusal {
    /// What is wrong with it, for programs.
    pub code: ErrorCode,
    /// The message for the user.
    pub text: String,
    /// Where the source goes.
    pub target: Option<PathBuf>,
}

/// The share that a user has used up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Quota {
    /// `queue.disk_mib_per_user`.
    Disk,
    /// `queue.ledger_mib_per_user`.
    Ledger,
}

/// What became of a [`NewJob`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Added {
    /// The job has a new row.
    New(u64),
    /// The job has a row with this number already: the key and user are the same, or the file is.
    Known(u64),
    /// The spooled picture went away meanwhile; spool it again.
    Unspooled,
    /// Its owner has as many open jobs as one may have.
    Full,
    /// Its owner's jobs take as much of the disk as one user's may.
    Over(Quota),
}

/// A job that the engine finished.
#[derive(Clone, Debug)]
pub struct Succeeded {
    /// The engine's report.
    pub report: Report,
    /// Where the video goes.
    pub output: PathBuf,
    /// The device and the inode of the folder that the unfinished video lies in.
    pub folder: (i64, i64),
    /// The file's size.
    pub bytes: u64,
    /// The file's hash.
    pub sha256: [u8; 32],
}

/// How a job ends, to be committed before its files are moved.
#[derive(Clone, Debug)]
pub enum Ended {
    /// The job ends with a video.
    Done(Box<Succeeded>),
    /// The job ends with an error.
    Failed {
        /// What went wrong, for programs.
        code: ErrorCode,
        /// The message for the user.
        text: String,
    },
    /// Somebody cancelled the job.
    Canceled {
        /// The message for the user.
        text: String,
    },
}

impl Ended {
    /// Returns the state that the job ends in.
    pub fn outcome(&self) -> Outcome {
        match self {
            Self::Done(_) => Outcome::Done,
            Self::Failed { .. } => Outcome::Failed,
            Self::Canceled { .. } => Outcome::Canceled,
        }
    }
}

/// A job's row.
#[derive(Clone, Debug)]
pub struct Job {
    /// The job's number.
    pub id: u64,
    /// The UUID, which names the unfinished file.
    pub uuid: Text,
    /// The state.
    pub state: State,
    /// The outcome, once it is decided.
    pub outcome: Option<Outcome>,
    /// The priority: a waiting job with a larger one runs first.
    pub priority: i32,
    /// How often the job was started.
    pub attempt: u32,
    /// Starts that ended with the engine's death.
    pub crashes: u32,
    /// Starts that ended with the service's death.
    pub interruptions: u32,
    /// Microseconds since the epoch.
    pub created_us: u64,
    /// Microseconds since the epoch, of the last start.
    pub started_us: Option<u64>,
    /// Microseconds since the epoch.
    pub finished_us: Option<u64>,
    /// The uid of the owner, who may see everything about the job.
    pub owner: u32,
    /// The picture's name.
    pub name: OsString,
    /// The file in the watched folder.
    pub source: Option<Source>,
    /// Where the source goes.
    pub source_target: Option<PathBuf>,
    /// The spooled picture's hash.
    pub image_sha256: Option<[u8; 32]>,
    /// The hash of the spooled picture that the video ends at.
    pub last_sha256: Option<[u8; 32]>,
    /// What to make; missing if it was refused before.
    pub request: Option<Request>,
    /// The folder for its video; `None` is the configured one.
    pub outbox: Option<PathBuf>,
    /// The device and the inode of the folder that its unfinished video was written to, once it is finished.
    pub outbox_id: Option<(i64, i64)>,
    /// Whether its source could not be moved.
    pub source_left: bool,
    /// The job that it is another try of.
    pub retry_of: Option<u64>,
    /// The video.
    pub output: Option<PathBuf>,
    /// The video's size in bytes.
    pub output_bytes: Option<u64>,
    /// The video's hash.
    pub output_sha256: Option<[u8; 32]>,
    /// Pixels.
    pub width: Option<u32>,
    /// Pixels.
    pub height: Option<u32>,
    /// Largest resident memory of the engine in bytes.
    pub ram_peak_bytes: Option<u64>,
    /// Largest memory in use on the GPU in bytes.
    pub gpu_peak_bytes: Option<u64>,
    /// DiT forwards that were computed.
    pub forwards_computed: Option<u32>,
    /// DiT forwards that a step cache saved.
    pub forwards_skipped: Option<u32>,
    /// The model's name for itself.
    pub model: Option<Text>,
    /// The family of models that it belongs to.
    pub family: Option<Text>,
    /// `cpu` or `cuda`.
    pub backend: Option<Text>,
    /// The profile that it ran with.
    pub profile: Option<Text>,
    /// The GPU that it ran on.
    pub gpu_uuid: Option<Text>,
    /// What the GPU calls itself.
    pub gpu_name: Option<Text>,
    /// The driver's version.
    pub driver: Option<Text>,
    /// Energy of the whole board over the last attempt, in millijoules.
    pub energy_mj: Option<u64>,
    /// `counter` (the board's own) or `sampled` (power over time).
    pub energy_method: Option<Text>,
    /// Why it failed: a stable name.
    pub error_code: Option<Text>,
    /// Why it failed: the sentence.
    pub error_text: Option<Text>,
}

impl Job {
    pub(super) fn from_row(row: &Row<'_>) -> rusqlite::Result<Self> {
        let path = |name| row.get::<_, Option<Vec<u8>>>(name).map(|bytes| bytes.map(path_from));
        let whole = |name| row.get::<_, Option<i64>>(name).map(|n| n.map(|n| n as u64));
        let small = |name| row.get::<_, Option<u32>>(name);
        let source = match path("source_path")? {
            Some(path) => Some(Source {
                path,
                identity: Identity {
                    dev: row.get("source_dev")?,
                    ino: row.get("source_ino")?,
                    mtime_ns: row.get("source_mtime_ns")?,
                },
                read_us: match row.get("settings_us")? {
                    Some(read_us) => read_us,
                    None => row.get("created_us")?,
                },
            }),
            None => None,
        };
        let request = text_if_any(row, "settings_json")?;
        Ok(Self {
            id: row.get::<_, i64>("id")? as u64,
            uuid: column(row, "uuid")?,
            state: row.get("state")?,
            outcome: row.get("outcome")?,
            priority: row.get("priority")?,
            attempt: row.get("attempt")?,
            crashes: row.get("crashes")?,
            interruptions: row.get("interruptions")?,
            created_us: row.get::<_, i64>("created_us")? as u64,
            started_us: whole("started_us")?,
            finished_us: whole("finished_us")?,
            owner: row.get("owner_uid")?,
            name: name(row.get("name")?),
            source,
            source_target: path("source_target")?,
            image_sha256: row.get("image_sha256")?,
            last_sha256: row.get("last_sha256")?,
            // Settings of a version that had other keys: the job cannot be run, but its row can be shown.
            request: request.and_then(|json| serde_json::from_str(&json).ok()).map(text::old_request),
            outbox: path("outbox")?,
            outbox_id: row.get::<_, Option<i64>>("outbox_dev")?.zip(row.get::<_, Option<i64>>("outbox_ino")?),
            source_left: row.get("source_left")?,
            retry_of: whole("retry_of")?,
            output: path("output_path")?,
            output_bytes: whole("output_bytes")?,
            output_sha256: row.get("output_sha256")?,
            width: small("width")?,
            height: small("height")?,
            ram_peak_bytes: whole("ram_peak_bytes")?,
            gpu_peak_bytes: whole("gpu_peak_bytes")?,
            forwards_computed: small("forwards_computed")?,
            forwards_skipped: small("forwards_skipped")?,
            model: text_if_any(row, "model")?,
            family: text_if_any(row, "family")?,
            backend: text_if_any(row, "backend")?,
            profile: text_if_any(row, "profile")?,
            gpu_uuid: text_if_any(row, "gpu_uuid")?,
            gpu_name: text_if_any(row, "gpu_name")?,
            driver: text_if_any(row, "driver")?,
            energy_mj: whole("energy_mj")?,
            energy_method: text_if_any(row, "energy_method")?,
            error_code: text_if_any(row, "error_code")?,
            error_text: text_if_any(row, "error_text")?,
        })
    }
}

/// Returns a picture's name, which becomes its video's: no name of a file has a zero byte.
fn name(mut bytes: Vec<u8>) -> OsString {
    bytes.retain(|byte| *byte != 0);
    OsString::from_vec(bytes)
}
