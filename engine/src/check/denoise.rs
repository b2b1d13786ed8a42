//! How well a transformer denoises videos that it has never seen, beside what can be said of them without it.
//!
//! A sample at the noise level `s` is `(1 - s) x + s n` for clean latents `x` and noise `n`; the transformer predicts the
//! velocity `n - x` (Lipman et al., "Flow matching for generative modeling", 2023). Its loss is the mean square of what it
//! gets wrong. Two predictions need no transformer:
//!
//! - *nothing*: a velocity of zero has the loss of the mean square of the velocity.
//! - *blind*: the best guess from each value alone. With latents of the variance `v` about their channel's mean, its loss is
//!   `v / ((1 - s)^2 v + s^2)`, by the formula for the conditional mean of Gaussian values.
//!
//! A trained transformer sees the neighbours, the given picture and the prompt, and errs a small part of the blind guess's
//! error. One whose weights are made up, misread or mispaired errs as much, or more.

use serde::Serialize;

use crate::backend::Backend;
use crate::model::dit::{Blocks, Context, Dit, Grid, Inputs};
use crate::progress::Observer;
use crate::{Error, Result, noise};
use animd_protocol::profile::AttentionKind;

/// The noise levels at which the loss is computed.
pub const LEVELS: [f64; 3] = [0.3, 0.6, 0.9];
/// The timestep of pure noise.
const TIMESTEPS: f64 = 1000.0;

/// The loss at one noise level.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Loss {
    /// The noise level, from 0 (clean) to 1.
    pub level: f64,
    /// The transformer that predicted, in the recipe's order.
    pub expert: usize,
    /// The loss of its prediction.
    pub predicted: f64,
    /// Its loss in the first latent frame, which the given picture shows.
    pub given: f64,
    /// The loss of predicting no velocity.
    pub nothing: f64,
    /// The loss of the best guess from each value alone.
    pub blind: f64,
}

impl Loss {
    /// Returns the loss as a share of the blind guess's. What is no number counts as infinitely bad.
    pub fn share(&self) -> f64 {
        let share = self.predicted / self.blind.max(f64::MIN_POSITIVE);
        if share.is_finite() { share } else { f64::INFINITY }
    }
}

/// A video to denoise, on the device.
pub struct Sample<'a, B: Backend> {
    pub b: &'a B,
    pub grid: &'a Grid<B>,
    /// The mask and the picture's latents, `[20, t, h, w]`.
    pub y: B::Tensor,
    /// The clean latents, `[16, t, h, w]`, and their extents.
    pub clean: Vec<f32>,
    pub shape: [usize; 4],
    pub attention: AttentionKind,
    pub observer: &'a dyn Observer,
}

impl<B: Backend> Sample<'_, B> {
    /// Returns the loss of a transformer at a noise level. The noise is the same each time.
    ///
    /// # Errors
    /// Returns [`Error::Canceled`], and the backend's errors.
    pub fn loss(
        &self,
        dit: &Dit<B>,
        expert: usize,
        level: f64,
        context: &Context<B>,
        blocks: Blocks<'_, B>,
    ) -> Result<Loss> {
        let Self { b, clean, .. } = self;
        let noise = noise::cpu(NOISE_SEED).randn(clean.len());
        let s = level as f32;
        let noisy: Vec<f32> = clean.iter().zip(&noise).map(|(x, n)| (1.0 - s) * x + s * n).collect();
        let x = b.upload(&noisy, &self.shape)?;
        let time = dit.time(b, level * TIMESTEPS)?;
        let (y, grid, attention) = (&self.y, self.grid, self.attention);
        let inputs = Inputs { x: &x, y, time: &time, context, grid, attention };
        let velocity = b.download(&dit.forward(b, &inputs, blocks, self.observer, None)?.velocity)?;
        if velocity.len() != clean.len() {
            return Err(Error::Internal("a velocity that is not as large as the latents".into()));
        }
        let wanted = || clean.iter().zip(&noise).map(|(x, n)| f64::from(n - x));
        let [channels, frames, h, w] = self.shape;
        let (mut sum, mut given) = (0.0, 0.0);
        for (i, (got, want)) in velocity.iter().zip(wanted()).enumerate() {
            let error = (f64::from(*got) - want).powi(2);
            sum += error;
            if i / (h * w) % frames == 0 {
                given += error;
            }
        }
        let count = clean.len() as f64;
        Ok(Loss {
            level,
            expert,
            predicted: sum / count,
            given: given / (channels * h * w) as f64,
            nothing: wanted().map(|v| v * v).sum::<f64>() / count,
            blind: blind(clean, channels, level),
        })
    }
}

/// The seed of the noise that is added.
const NOISE_SEED: u64 = 20_220_613;

/// Returns the loss of the best guess of the velocity from each value alone, for latents of so many channels.
fn blind(clean: &[f32], channels: usize, level: f64) -> f64 {
    let each = clean.len() / channels.max(1);
    let losses = clean.chunks_exact(each.max(1)).map(|values| {
        let [_, deviation] = moments(values);
        let variance = deviation * deviation;
        variance / ((1.0 - level).powi(2) * variance + level * level)
    });
    losses.sum::<f64>() / channels as f64
}

/// Returns the mean and the standard deviation of some values.
pub fn moments(values: &[f32]) -> [f64; 2] {
    let count = values.len().max(1) as f64;
    let mean = values.iter().map(|v| f64::from(*v)).sum::<f64>() / count;
    let variance = values.iter().map(|v| (f64::from(*v) - mean).powi(2)).sum::<f64>() / count;
    [mean, variance.sqrt()]
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The formula is compared with the guess that it is the loss of, on Gaussian values.
    #[test]
    fn the_blind_loss_is_that_of_the_conditional_mean() {
        let n = 100_000;
        let mut generator = noise::cpu(1);
        for (mean, deviation, level) in [(0.0, 1.0, 0.5), (1.5, 0.4, 0.3), (-1.0, 2.0, 0.9)] {
            let clean: Vec<f32> = generator.randn(n).iter().map(|v| mean + deviation * v).collect();
            let (m, v, s) = (f64::from(mean), f64::from(deviation).powi(2), level);
            let guess = |x: f64| {
                let covariance = s - (1.0 - s) * v;
                covariance / ((1.0 - s).powi(2) * v + s * s) * (x - (1.0 - s) * m) - m
            };
            let noise = generator.randn(n);
            let errors = clean.iter().zip(&noise).map(|(x, n)| {
                let (x, n) = (f64::from(*x), f64::from(*n));
                (n - x - guess((1.0 - s) * x + s * n)).powi(2)
            });
            let measured = errors.sum::<f64>() / n as f64;
            // A mean of squares of n Gaussian values deviates by sqrt(2 / n) of itself, 0.45 %: five of these, twice.
            let predicted = blind(&clean, 1, level);
            assert!((measured / predicted - 1.0).abs() < 0.045, "{measured} {predicted}");
        }
    }

    #[test]
    fn a_loss_that_is_no_number_is_the_worst() {
        let loss = Loss { level: 0.5, expert: 0, predicted: f64::NAN, given: 0.0, nothing: 1.0, blind: 1.0 };
        assert_eq!(loss.share(), f64::INFINITY);
        assert_eq!(Loss { predicted: 0.25, ..loss }.share(), 0.25);
    }
}
