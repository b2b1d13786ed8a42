//! How far a job is.

use serde::{Deserialize, Serialize};

/// The stages of a job, in their order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Stage {
    /// Weights come into memory.
    Load,
    /// The prompt goes through umT5.
    Text,
    /// The picture is decoded, fitted, and goes through CLIP.
    Image,
    /// The picture goes through the VAE encoder.
    VaeEncode,
    /// The sampler loops over the DiT.
    Denoise,
    /// Latents become frames; frames go to the video encoder as they come.
    VaeDecode,
    /// The file is finished, synced and put in place.
    Write,
}

impl Stage {
    /// All stages, in their order.
    pub const ALL: [Self; 7] =
        [Self::Load, Self::Text, Self::Image, Self::VaeEncode, Self::Denoise, Self::VaeDecode, Self::Write];

    /// The name in the ledger, on the bus and in reports: `vae-encode`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Load => "load",
            Self::Text => "text",
            Self::Image => "image",
            Self::VaeEncode => "vae-encode",
            Self::Denoise => "denoise",
            Self::VaeDecode => "vae-decode",
            Self::Write => "write",
        }
    }
}

/// Where a job stands.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Progress {
    /// The stage under way.
    pub stage: Stage,
    /// Denoising steps that are done; 0 before [`Stage::Denoise`].
    pub step: u32,
    /// Denoising steps of the whole job.
    pub steps: u32,
    /// 0 to 1 over the whole job, never falling.
    pub fraction: f64,
    /// Seconds that the rest is expected to take, once there is something to expect it from.
    pub seconds_left: Option<f64>,
}
