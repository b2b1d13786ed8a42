//! What the daemon and its engine child say to each other.
//!
//! The child's standard input is one end of a socket pair. Both sides send [`serde_json`] objects, one a line, at most
//! [`MAX_LINE`] bytes. Each begins with a `Hello`; a side that hears another [`PROTOCOL`] says so and ends.
//! When the daemon's end closes, the child cancels its job and ends. One job runs at a time. The child sends [`FromEngine::Alive`] every [`HEARTBEAT_SECONDS`], from a thread of its own
//! whose pulse stops with the work it watches.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::ErrorCode;
use crate::progress::Progress;
use crate::recipe::Recipe;
use crate::request::Request;

/// The version of these messages; raised with every change that the other side would misread.
pub const PROTOCOL: u32 = 3;
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
        /// The pictures to write beside it.
        #[serde(default)]
        pictures: Pictures,
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
        /// What the engine was built for.
        #[serde(default)]
        kernels: Kernels,
        /// The model as a value: its networks and their sizes.
        #[serde(default)]
        recipe: Option<Box<Recipe>>,
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
    /// A newer preview lies at the job's `preview`.
    Preview {
        /// The daemon's number of the job.
        job: u64,
        /// 1 for the job's first preview, and one more for each that replaces it.
        n: u32,
    },
    /// The video lies at `output`, complete and synced; so do the poster and the thumbnail, if they could be written.
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
        /// What went wrong, for programs.
        code: ErrorCode,
        /// The sentence for the user.
        message: String,
    },
}

/// JPEG files that the engine writes beside a video, each whole whenever there is one. The folder exists. A picture that
/// cannot be written is a line in the log and no reason to fail.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pictures {
    /// One frame, as large as the video.
    #[serde(default)]
    pub poster: Option<PathBuf>,
    /// The same frame, at most 512 pixels on its longer side.
    #[serde(default)]
    pub thumbnail: Option<PathBuf>,
    /// What the video is going to be, small and rough, replaced while the DiT is at work; whoever asked for it removes it.
    #[serde(default)]
    pub preview: Option<PathBuf>,
}

/// Which GPUs an engine has code for. All empty in a build without CUDA.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kernels {
    /// What there is machine code for.
    #[serde(default)]
    pub native: Vec<Target>,
    /// The compute capability (major, minor) of the PTX, which the driver compiles for any GPU from there on.
    #[serde(default)]
    pub ptx: Option<(u32, u32)>,
    /// The oldest branch of NVIDIA's driver that runs it: 535, 580.
    #[serde(default)]
    pub driver: Option<u32>,
    /// Whether weights can be away from the GPU between their uses; else all of them stay there, whatever a profile says.
    #[serde(default)]
    pub offload: bool,
}

/// What machine code runs on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Target {
    /// The compute capability, major and minor.
    pub capability: (u32, u32),
    /// It runs there alone (`sm_90a`), and not on later minor versions too (`sm_80` on 8.6).
    pub exact: bool,
    /// Whether it has 8-bit attention; where it has not, attention is computed exactly, whatever a profile says.
    #[serde(default)]
    pub eight_bit_attention: bool,
}

impl Target {
    /// Whether this machine code runs on a card of a compute capability.
    pub fn runs_on(&self, (major, minor): (u32, u32)) -> bool {
        match self.exact {
            true => self.capability == (major, minor),
            false => self.capability.0 == major && self.capability.1 <= minor,
        }
    }
}

impl Kernels {
    /// Whether a card of this compute capability gets 8-bit attention where a profile asks for it.
    pub fn has_eight_bit_attention(&self, capability: (u32, u32)) -> bool {
        let native = self.native.iter().find(|target| target.runs_on(capability));
        // What the driver compiles for a newer card is the code of the card that the PTX is of.
        let ptx = self.ptx.filter(|ptx| *ptx <= capability);
        let served = native.or_else(|| self.native.iter().find(|target| Some(target.capability) == ptx));
        served.is_some_and(|target| target.eight_bit_attention)
    }
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
