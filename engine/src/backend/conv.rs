//! Operations on video volumes `[channels, frames, height, width]`: what the VAE is made of.
//!
//! The vocabulary is that of kernels, not of layers: a convolution does its own resampling, reads its causal past from
//! wherever that lies, and ends with whatever follows it element by element or voxel by voxel. So a backend may keep
//! volumes channels-last, make the past a view, and never write an upsampled or an unnormalised volume.

use super::TensorOps;
use crate::{Error, Result};

pub use animd_kernels::{Spatial, Time};

/// How a convolution moves.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Step {
    /// Over height and width.
    pub spatial: Spatial,
    /// Over frames.
    pub time: Time,
}

/// What a convolution connects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConvShape {
    /// Channels of the result, or twice as many before [`Time::Double`].
    pub outputs: usize,
    /// Channels that it reads.
    pub inputs: usize,
    /// Over frames, height and width: 1 or 3 frames, of 1x1 or 3x3.
    pub kernel: [usize; 3],
}

impl ConvShape {
    /// The extents of what it makes of volumes that follow each other in time.
    ///
    /// # Errors
    /// [`Error::Internal`] if they do not fit each other, the convolution or the step.
    pub fn result(&self, parts: &[[usize; 4]], past: usize, step: Step) -> Result<[usize; 4]> {
        let &Self { outputs, inputs, kernel: [_, kh, _] } = self;
        let misfit = || {
            Error::Internal(format!(
                "volumes of {parts:?}, {past} frames of them past, do not fit a convolution of {self:?}, {step:?}"
            ))
        };
        let &[_, _, height, width] = parts.first().ok_or_else(misfit)?;
        let alike = parts.iter().all(|&[i, _, h, w]| [i, h, w] == [inputs, height, width]);
        let frames: usize = parts.iter().map(|[_, frames, ..]| frames).sum();
        let new = frames.saturating_sub(past);
        if !alike || new * height * width == 0 {
            return Err(misfit());
        }
        let (height, width) = match step.spatial {
            Spatial::Same => (height, width),
            Spatial::Halve if kh == 3 && height % 2 + width % 2 == 0 => (height / 2, width / 2),
            Spatial::Halve => return Err(misfit()),
            Spatial::Double => (2 * height, 2 * width),
        };
        match step.time {
            Time::Same => Ok([outputs, new, height, width]),
            Time::Halve if new.is_multiple_of(2) => Ok([outputs, new / 2, height, width]),
            Time::Double if outputs.is_multiple_of(2) => Ok([outputs / 2, 2 * new, height, width]),
            Time::Halve | Time::Double => Err(misfit()),
        }
    }
}

/// What follows a convolution, in this order.
pub struct ConvEpilogue<'a, B: ConvOps> {
    /// Added; of the result's shape.
    pub residual: Option<&'a B::Tensor>,
    /// A [`ConvOps::channel_norm`] with `SiLU`. Not together with [`Time::Double`].
    pub norm: Option<&'a B::ChannelNorm>,
}

impl<B: ConvOps> Default for ConvEpilogue<'_, B> {
    fn default() -> Self {
        Self { residual: None, norm: None }
    }
}

/// Channels, frames and pixels of what a frame's pixels attend with, `[3 * channels, frames, height, width]`.
///
/// # Errors
/// [`Error::Internal`] for other extents.
pub(super) fn frame_attention_sizes([all, frames, height, width]: [usize; 4]) -> Result<[usize; 3]> {
    let (channels, pixels) = (all / 3, height * width);
    if all != 3 * channels || channels * pixels == 0 {
        return Err(Error::Internal(format!(
            "{:?} is no query, key and value",
            [all, frames, height, width]
        )));
    }
    Ok([channels, frames, pixels])
}

/// Whether one volume can be faded into another.
///
/// # Errors
/// [`Error::Internal`] if not.
pub(super) fn check_fade(before: [usize; 4], after: [usize; 4], axis: usize, extent: usize) -> Result<()> {
    let others_differ = (0..4).any(|i| i != axis && before[i] != after[i]);
    if axis > 3 || others_differ || extent > before[axis] || extent > after[axis] {
        return Err(Error::Internal(format!(
            "cannot fade {before:?} into {after:?} over {extent} along {axis}"
        )));
    }
    Ok(())
}

/// Operations on `[channels, frames, height, width]`.
pub trait ConvOps: TensorOps {
    /// A convolution's weight and bias on the device.
    type Conv: Send + Sync + 'static;
    /// gamma of a norm over channels on the device.
    type ChannelNorm: Send + Sync + 'static;

    /// The causal convolution over `parts`, which follow each other in time; the first `past` frames of them are not new,
    /// but what the kernel sees before the first new one. Before all of them are zeros.
    fn conv(
        &self,
        parts: &[&Self::Tensor],
        past: usize,
        layer: &Self::Conv,
        step: Step,
        epilogue: &ConvEpilogue<'_, Self>,
    ) -> Result<Self::Tensor>
    where
        Self: Sized;

    /// x / max(|x|, 1e-12) * sqrt(channels) * gamma, with the norm over the channels of each voxel; then `SiLU` if `silu`.
    fn channel_norm(&self, x: &Self::Tensor, norm: &Self::ChannelNorm, silu: bool) -> Result<Self::Tensor>;

    /// Attention with one head within each frame: softmax(q k^T / sqrt(channels)) v over the frame's pixels.
    /// `qkv` is `[3 * channels, ..]`, the result `[channels, ..]`.
    fn frame_attention(&self, qkv: &Self::Tensor) -> Result<Self::Tensor>;

    /// `after`, of which the first `extent` elements along `axis` are faded in over the last `extent` elements of
    /// `before`: element i is `before * (1 - i / extent) + after * (i / extent)`. The other extents are equal.
    fn fade(
        &self,
        before: &Self::Tensor,
        after: &Self::Tensor,
        axis: usize,
        extent: usize,
    ) -> Result<Self::Tensor>;
}
