//! Operations on video volumes `[channels, frames, height, width]`: what the VAE is made of.
//!
//! The vocabulary is that of kernels, not of layers: a convolution does its own resampling, reads its causal past from
//! wherever that lies, and ends with whatever follows it element by element or voxel by voxel. So a backend may keep
//! volumes channels-last, make the past a view, and never write an upsampled or an unnormalised volume.

use super::TensorOps;
use crate::Result;
use crate::weights::HostTensor;

/// How a convolution moves over height and width.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Spatial {
    /// Stride 1, zeros around, so that the extents stay (3x3 and 1x1 kernels).
    #[default]
    Same,
    /// Stride 2 after one row of zeros below and one column of zeros to the right (3x3 kernels, even extents).
    Halve,
    /// As `Same`, after each pixel has become four equal ones.
    Double,
}

/// How a convolution moves over time. It is causal: a frame of the result depends on no later frame.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Time {
    /// One frame of the result for each new frame, at which the kernel ends.
    #[default]
    Same,
    /// One frame of the result for each pair of new frames, at the second of which the kernel ends.
    Halve,
    /// As `Same`, but a result of `2 * channels` becomes `channels` with twice the frames: the first half of the
    /// channels holds the even frames.
    Double,
}

/// How a convolution moves.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Step {
    /// Over height and width.
    pub spatial: Spatial,
    /// Over frames.
    pub time: Time,
}

/// What follows a convolution, in this order.
pub struct ConvEpilogue<'a, T> {
    /// Added; of the result's shape.
    pub residual: Option<&'a T>,
    /// gamma `[channels]` of a [`ConvOps::channel_norm`] with `SiLU`. Not together with [`Time::Double`].
    pub norm: Option<&'a T>,
}

impl<T> Default for ConvEpilogue<'_, T> {
    fn default() -> Self {
        Self { residual: None, norm: None }
    }
}

/// Operations on `[channels, frames, height, width]`.
pub trait ConvOps: TensorOps {
    /// A convolution's weight and bias on the device.
    type Conv: Send + Sync + 'static;

    /// Takes a weight `[out, in, kt, kh, kw]` or, for one frame at a time, `[out, in, kh, kw]`, and its bias `[out]`.
    fn load_conv(&self, weight: HostTensor, bias: HostTensor) -> Result<Self::Conv>;

    /// The convolution over `parts`, which follow each other in time; the first `past` frames of them are not new, but
    /// what the kernel sees before the first new one. Before all of them are zeros.
    fn conv(
        &self,
        parts: &[&Self::Tensor],
        past: usize,
        layer: &Self::Conv,
        step: Step,
        epilogue: &ConvEpilogue<'_, Self::Tensor>,
    ) -> Result<Self::Tensor>;

    /// x / max(|x|, 1e-12) * sqrt(channels) * gamma, with the norm over the channels of each voxel; then `SiLU` if `silu`.
    fn channel_norm(&self, x: &Self::Tensor, gamma: &Self::Tensor, silu: bool) -> Result<Self::Tensor>;

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
