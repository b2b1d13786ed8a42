//! The messages between the daemon and its engine child.
//!
//! The child's standard input is one end of a socket pair. Both sides send [`serde_json`] objects, one on each line of
//! at most [`MAX_LINE`] bytes. Each side begins with a `Hello`; a side that receives another [`PROTOCOL`] says so and
//! exits. When the daemon's end closes, the child cancels its job and exits. One job computes at a time; while its file is
//! being finished ([`FromEngine::Saving`]), the next one may. The child sends
//! [`FromEngine::Alive`] every [`HEARTBEAT_SECONDS`] from a thread of its own, which stops when the work that it
//! watches stops.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::ErrorCode;
use crate::lora::ModelLora;
use crate::progress::Progress;
use crate::recipe::Recipe;
use crate::request::Request;

/// The version of these messages. It rises with every change that the other side would misread.
pub const PROTOCOL: u32 = 6;
/// The maximum length of a line, in bytes.
pub const MAX_LINE: usize = 1 << 20;
/// The seconds between two heartbeats.
pub const HEARTBEAT_SECONDS: u64 = 2;

/// A message from the daemon to the engine.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "kebab-case")]
pub enum ToEngine {
    /// The first message.
    Hello {
        /// The daemon's [`PROTOCOL`].
        protocol: u32,
        /// The daemon's version.
        version: String,
    },
    /// Make one video. The engine answers with `Progress`, perhaps with `Saving`, then with `Done` or `Failed`.
    Generate {
        /// The daemon's number of the job.
        job: u64,
        /// The path of the picture.
        image: PathBuf,
        /// The path of the picture that the video ends at, if the request names one; not of a loop.
        #[serde(default)]
        last: Option<PathBuf>,
        /// The files of the request's `LoRAs`, in their order.
        #[serde(default)]
        loras: Vec<PathBuf>,
        /// The folder for the finished parts of a video that is made in several; parts that are there already are used. The
        /// daemon removes it.
        #[serde(default)]
        parts: Option<PathBuf>,
        /// The file that the engine writes and syncs; the daemon renames it. An existing file is replaced.
        output: PathBuf,
        /// The pictures that the engine writes beside the video.
        #[serde(default)]
        pictures: Pictures,
        /// All settings of the video.
        request: Box<Request>,
    },
    /// Stop this job if it is running; the engine answers with `Failed` and the code `canceled`.
    Cancel {
        /// The daemon's number of the job.
        job: u64,
    },
}

/// A message from the engine to the daemon.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "kebab-case")]
pub enum FromEngine {
    /// The first message.
    Hello {
        /// The engine's [`PROTOCOL`].
        protocol: u32,
        /// The engine's version.
        version: String,
        /// `cpu` or `cuda`.
        backend: String,
        /// The model's own name or, without one, the name of its folder.
        model: String,
        /// The GPUs that the engine was built for.
        #[serde(default)]
        kernels: Kernels,
        /// The model's description: its networks and their sizes.
        #[serde(default)]
        recipe: Option<Box<Recipe>>,
    },
    /// The engine is working or idle, and does not hang.
    Alive,
    /// The job's progress, sent at most ten times a second.
    Progress {
        /// The daemon's number of the job.
        job: u64,
        /// How far the job is.
        progress: Progress,
    },
    /// The file at the job's `preview` has been replaced by a newer preview.
    Preview {
        /// The daemon's number of the job.
        job: u64,
        /// 1 for the job's first preview, and one more for each later one.
        n: u32,
    },
    /// All frames of the job are computed, and its file is being finished; `Done` or `Failed` follows. The engine takes
    /// another job meanwhile.
    Saving {
        /// The daemon's number of the job.
        job: u64,
    },
    /// The video is at `output`, complete and synced. So are the poster and the thumbnail, if they could be written.
    Done {
        /// The daemon's number of the job.
        job: u64,
        /// What the job made and what it cost.
        report: Report,
    },
    /// The job cannot continue or, with `job` 0, the engine itself cannot.
    Failed {
        /// The daemon's number of the job; 0 for the engine itself, which then exits.
        job: u64,
        /// The code of the error, for programs.
        code: ErrorCode,
        /// The sentence that explains the error to the user.
        message: String,
    },
}

/// The JPEG files that the engine writes beside a video. A file is always complete when it exists. The folder must
/// exist. A picture that cannot be written is logged and does not fail the job.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pictures {
    /// One frame at the size of the video.
    #[serde(default)]
    pub poster: Option<PathBuf>,
    /// The same frame as `poster`, at most 512 pixels on its longer side.
    #[serde(default)]
    pub thumbnail: Option<PathBuf>,
    /// A small, rough preview of the video, replaced while the DiT works. The requester removes it.
    #[serde(default)]
    pub preview: Option<PathBuf>,
}

/// The GPUs that an engine has code for. All fields are empty in a build without CUDA.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kernels {
    /// The architectures that there is machine code for.
    #[serde(default)]
    pub native: Vec<Target>,
    /// The compute capability (major, minor) of the PTX. The driver compiles it for any GPU from that one on.
    #[serde(default)]
    pub ptx: Option<(u32, u32)>,
    /// The oldest branch of NVIDIA's driver that runs the code, such as 535 or 580.
    #[serde(default)]
    pub driver: Option<u32>,
}

/// An architecture that machine code is built for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Target {
    /// The compute capability, major and minor.
    pub capability: (u32, u32),
    /// Whether the code runs on exactly this version (`sm_90a`), and not on later minor ones too (`sm_80` on 8.6).
    pub exact: bool,
}

impl Target {
    /// Returns whether this machine code runs on a card of a compute capability.
    pub fn runs_on(&self, (major, minor): (u32, u32)) -> bool {
        match self.exact {
            true => self.capability == (major, minor),
            false => self.capability.0 == major && self.capability.1 <= minor,
        }
    }
}

/// What one job made and what it cost.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// The width in pixels.
    pub width: u32,
    /// The height in pixels.
    pub height: u32,
    /// The number of frames in the file.
    pub frames: u32,
    /// The seed that was used.
    pub seed: u64,
    /// The number of DiT forwards that were computed.
    pub forwards_computed: u32,
    /// The number of DiT forwards that a step cache saved.
    pub forwards_skipped: u32,
    /// The wall time of each stage in seconds, in order; the name is that of [`crate::progress::Stage::name`].
    pub seconds: Vec<(String, f64)>,
    /// For each denoising step its wall time in seconds, and whether it was computed (true) or skipped.
    pub steps: Vec<(f64, bool)>,
    /// The size of the file in bytes.
    pub bytes: u64,
    /// The peak resident memory of the process, in bytes.
    pub peak_ram_bytes: u64,
    /// The peak memory use on the GPU, in bytes; 0 without a GPU.
    pub peak_gpu_bytes: u64,
    /// The `LoRAs` that the model's own file names, which were added before those of the job.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub model_loras: Vec<ModelLora>,
    /// What went otherwise than planned, in sentences: less of the GPU's memory was free, for example.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
}

#[cfg(test)]
mod tests {
    use super::Target;

    #[test]
    fn code_of_an_earlier_minor_version_runs_unless_it_is_for_one_card() {
        let ampere = Target { capability: (8, 0), exact: false };
        assert!(ampere.runs_on((8, 0)) && ampere.runs_on((8, 6)) && !ampere.runs_on((9, 0)));
        assert!(!Target { capability: (8, 6), ..ampere }.runs_on((8, 0)));
        let hopper = Target { capability: (9, 0), exact: true };
        assert!(hopper.runs_on((9, 0)) && !hopper.runs_on((9, 1)) && !hopper.runs_on((10, 0)));
    }
}
