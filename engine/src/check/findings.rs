//! The figures that checking a model gives.

use serde::Serialize;

use super::denoise::{self, Loss};
use crate::weights::Component;

/// What the VAE does with a video.
#[derive(Clone, Debug, Serialize)]
pub struct Latents {
    /// The peak signal-to-noise ratio of the decoded video against the video, in dB.
    pub psnr: f64,
    /// That of the first frame.
    pub psnr_first: f64,
    /// The mean of each channel of the latents.
    pub means: Vec<f64>,
    /// The standard deviation of each channel of the latents.
    pub deviations: Vec<f64>,
}

/// Sums up latents of a video `[3, frames, plane]` and what was decoded of them: pieces `[3, n, plane]` from a frame on.
pub(super) fn latents(
    encoded: &[f32],
    video: &[f32],
    decoded: &[(usize, Vec<f32>)],
    [frames, plane]: [usize; 2],
) -> Latents {
    let (mut sum, mut first_sum) = (0.0, 0.0);
    for (first, values) in decoded {
        let count = values.len() / 3 / plane;
        for (i, value) in values.iter().enumerate() {
            let (channel, frame, pixel) = (i / plane / count, i / plane % count + first, i % plane);
            // Frames are shown in the range from -1 to 1.
            let error =
                f64::from(value.clamp(-1.0, 1.0) - video[(channel * frames + frame) * plane + pixel]).powi(2);
            sum += error;
            first_sum += if frame == 0 { error } else { 0.0 };
        }
    }
    let psnr = |mean: f64| 10.0 * (4.0 / mean.max(1e-12)).log10();
    let channels = crate::model::vae::LATENT_CHANNELS;
    let moments: Vec<[f64; 2]> =
        encoded.chunks_exact(encoded.len() / channels).map(denoise::moments).collect();
    Latents {
        psnr: psnr(sum / (3 * frames * plane) as f64),
        psnr_first: psnr(first_sum / (3 * plane) as f64),
        means: moments.iter().map(|m| m[0]).collect(),
        deviations: moments.iter().map(|m| m[1]).collect(),
    }
}

/// What a block is worth: the losses with it and without it.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Worth {
    /// The transformer, in the recipe's order.
    pub expert: usize,
    /// The block.
    pub block: usize,
    /// The loss of the whole transformer.
    pub with: f64,
    /// The loss without the block.
    pub without: f64,
}

/// The losses for a video with a prompt that asks for its motion, and with one that asks for the opposite.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Prompt {
    /// With the right prompt.
    pub right: f64,
    /// With the opposite one.
    pub wrong: f64,
}

/// What the whole model has computed.
#[derive(Clone, Debug, Serialize)]
pub struct Findings {
    /// The VAE.
    pub latents: Latents,
    /// The losses at each noise level, of the transformer that computes there.
    pub losses: Vec<Loss>,
    /// The losses of all transformers at all noise levels.
    pub all_losses: Vec<Loss>,
    /// The blocks.
    pub worth: Vec<Worth>,
    /// The prompts.
    pub prompts: Vec<Prompt>,
}

/// A tensor that is not as it should be.
#[derive(Clone, Debug, Serialize)]
pub struct Suspect {
    /// The kind of network.
    pub component: Component,
    /// The tensor, by its official name.
    pub tensor: Option<String>,
    /// What is wrong, if that names no file.
    pub what: Option<String>,
}
