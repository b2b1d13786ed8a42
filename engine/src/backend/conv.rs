//! Operations on video volumes `[channels, frames, height, width]`, for the VAE.
//!
//! The vocabulary consists of kernels, not of layers: a convolution does its own resampling, reads its causal past from
//! wherever that is stored, and ends with element-wise or voxel-wise operations. So a backend may keep
//! volumes channels-last, make the past a view, and never write an upsampled or an unnormalised volume.

use super::TensorOps;
use crate::{Error, Result};

pub use animd_kernels::{Spatial, Time};

/// The resampling of a convolution.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Step {
    /// The resampling over height and width.
    pub spatial: Spatial,
    /// The resampling over frames.
    pub time: Time,
}

/// The shape of a convolution.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConvShape {
    /// The channels of the result, or twice as many before [`Time::Double`].
    pub outputs: usize,
    /// The channels of the input.
    pub inputs: usize,
    /// The kernel's frames, height and width: 1 or 3 frames, of 1x1 or 3x3.
    pub kernel: [usize; 3],
}

impl ConvShape {
    /// Returns the extents of the result, from volumes that follow each other in time.
    ///
    /// # Errors
    /// Returns [`Error::Internal`] if they do not fit each other, the convolution or the step.
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

/// The operations after a convolution, in this order.
pub struct ConvEpilogue<'a, B: ConvOps> {
    /// A tensor of the result's shape that is added.
    pub residual: Option<&'a B::Tensor>,
    /// A [`ConvOps::channel_norm`] with `SiLU`. Not together with [`Time::Double`].
    pub norm: Option<&'a B::ChannelNorm>,
}

impl<B: ConvOps> Default for ConvEpilogue<'_, B> {
    fn default() -> Self {
        Self { residual: None, norm: None }
    }
}

/// Returns the channels, frames and pixels of attention's input, `[3 * channels, frames, height, width]`.
///
/// # Errors
/// Returns [`Error::Internal`] for other extents.
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

/// Operations on `[channels, frames, height, width]`.
pub trait ConvOps: TensorOps {
    /// A convolution's weight and bias on the device.
    type Conv: Send + Sync + 'static;
    /// The gamma of a norm over channels on the device.
    type ChannelNorm: Send + Sync + 'static;

    /// Returns the causal convolution over `parts`, which follow each other in time. Their first `past` frames are not
    /// new: they are what the kernel sees before the first new frame. Zeros precede all parts.
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

    /// Returns x / max(|x|, 1e-12) * sqrt(channels) * gamma, with the norm over the channels of each voxel; then `SiLU`
    /// if
    /// `silu`.
    fn channel_norm(&self, x: &Self::Tensor, norm: &Self::ChannelNorm, silu: bool) -> Result<Self::Tensor>;

    /// Returns attention with one head within each frame: softmax(q k^T / sqrt(channels)) v over the frame's pixels.
    /// `qkv` is `[3 * channels, ..]`, the result `[channels, ..]`.
    fn frame_attention(&self, qkv: &Self::Tensor) -> Result<Self::Tensor>;
}
