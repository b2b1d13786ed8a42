//! What the daemon and its engine child say to each other.
//!
//! The child's standard input is one end of a socket pair. Both sides send [`serde_json`] objects, one a line, at most
//! [`MAX_LINE`] bytes. Each begins with a `Hello`; a side that hears another [`PROTOCOL`] says so and ends.
//! When the daemon's end closes, the child cancels its job and ends. One job runs at a time. The child sends [`FromEngine::Alive`] every [`HEARTBEAT_SECONDS`], from a thread of its own
//! whose pulse stops with the work it watches.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::progress::Progress;
use crate::request::Request;

/// The version of these messages; raised with every change that the other side would misread.
pub const PROTOCOL: u32 = 1;
/// The longest line, in bytes.
pub const MAX_LINE: usize = 1 << 20;
/// Seconds between two heartbeats.
pub const HEARTBEAT_SECONDS: u64 = 2;

/// From the daemon to the engine.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "kebab-case")]
pub enum ToEngine {
    /// The first message.
    Hello {
        /// [`PROTOCOL`] of the daemon.
        protocol: u32,
        /// The daemon's version.
        version: String,
    },
    /// Make one video. Answered by `Progress`, then `Done` or `Failed`.
    Generate {
        /// The daemon's number of the job.
        job: u64,
        /// The picture.
        image: PathBuf,
        /// The file to write and sync; the daemon renames it. An existing file is replaced.
        output: PathBuf,
        /// Everything else.
        request: Box<Request>,
    },
    /// Stop this job if it is the one that runs; answered by `Failed` with code `canceled`.
    Cancel {
        /// The daemon's number of the job.
        job: u64,
    },
}

/// From the engine to the daemon.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "kebab-case")]
pub enum FromEngine {
    /// The first message.
    Hello {
        /// [`PROTOCOL`] of the engine.
        protocol: u32,
        /// The engine's version.
        version: String,
        /// `cpu` or `cuda`.
        backend: String,
        /// What the model calls itself, or the folder's name.
        model: String,
    },
    /// The engine is at work or idle, and not hung.
    Alive,
    /// The job's progress, at most ten times a second.
    Progress {
        /// The daemon's number of the job.
        job: u64,
        /// Where it stands.
        progress: Progress,
    },
    /// The video lies at `output`, complete and synced.
    Done {
        /// The daemon's number of the job.
        job: u64,
        /// What was made and what it cost.
        report: Report,
    },
    /// The job, or with `job` 0 the engine itself, cannot go on.
    Failed {
        /// The daemon's number of the job; 0 for the engine itself, which then ends.
        job: u64,
        /// [`crate::Error::code`].
        code: String,
        /// The sentence for the user.
        message: String,
    },
}

/// What one job made and what it cost.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// Pixels.
    pub width: u32,
    /// Pixels.
    pub height: u32,
    /// Frames in the file.
    pub frames: u32,
    /// The seed that was used.
    pub seed: u64,
    /// DiT forwards that were computed.
    pub forwards_computed: u32,
    /// DiT forwards that a step cache saved.
    pub forwards_skipped: u32,
    /// Wall seconds of each stage, by [`crate::progress::Stage::name`], in order.
    pub seconds: Vec<(String, f64)>,
    /// The wall seconds of each denoising step, and whether it was computed (true) or skipped.
    pub steps: Vec<(f64, bool)>,
    /// Bytes of the file.
    pub bytes: u64,
    /// Largest resident memory of the process, in bytes.
    pub peak_ram_bytes: u64,
    /// Largest memory in use on the GPU, in bytes; 0 without one.
    pub peak_gpu_bytes: u64,
}
