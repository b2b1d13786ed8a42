//! Operations on video volumes `[channels, frames, height, width]`: what the VAE is made of.
//!
//! The vocabulary is that of kernels, not of layers: a convolution does its own resampling, reads its causal past from
//! wherever that lies, and ends with whatever follows it element by element or voxel by voxel. So a backend may keep
//! volumes channels-last, make the past a view, and never write an upsampled or an unnormalised volume.

use super::TensorOps;
use crate::weights::HostTensor;
use crate::{Error, Result};

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
    /// That of a weight `[out, in, kt, kh, kw]` or `[out, in, kh, kw]` and its bias `[out]`.
    ///
    /// # Errors
    /// [`Error::Internal`] for other extents, and values that are not as many.
    pub fn of(weight: &HostTensor, bias: &HostTensor) -> Result<Self> {
        let (outputs, inputs, kernel) = match *weight.shape {
            [o, i, kt, kh, kw] => (o, i, [kt, kh, kw]),
            [o, i, kh, kw] => (o, i, [1, kh, kw]),
            _ => return Err(Error::Internal(format!("{:?} is no convolution's weight", weight.shape))),
        };
        let known = matches!(kernel, [1 | 3, 1, 1] | [1 | 3, 3, 3]);
        let values = outputs * inputs * kernel.iter().product::<usize>();
        if !known || values == 0 || weight.data.len() != values || bias.data.len() != outputs {
            return Err(Error::Internal(format!(
                "a convolution's weight {:?} and bias {:?} do not go together",
                weight.shape, bias.shape
            )));
        }
        Ok(Self { outputs, inputs, kernel })
    }

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
