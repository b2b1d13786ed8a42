//! Operations on video volumes `[channels, frames, height, width]`: what the VAE is made of.

use super::TensorOps;
use crate::Result;
use crate::weights::HostTensor;

/// How a convolution moves over height and width.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Spatial {
    /// Stride 1, zeros around, so that the extents stay (3x3 and 1x1 kernels).
    Same,
    /// Stride 2 after one row of zeros below and one column of zeros to the right.
    Halve,
}

/// Operations on `[channels, frames, height, width]`.
pub trait ConvOps: TensorOps {
    /// A convolution's weight and bias on the device.
    type Conv: Send + Sync + 'static;

    /// Takes a weight `[out, in, kt, kh, kw]` or, for one frame at a time, `[out, in, kh, kw]`, and its bias `[out]`.
    fn load_conv(&self, weight: HostTensor, bias: HostTensor) -> Result<Self::Conv>;

    /// The convolution over `past` (frames before the first, or none) followed by `x`, and zero frames before these as
    /// far as the kernel reaches: causal in time with stride `time_stride`.
    /// The result has as many frames as kernel positions that end at or after the first frame of `x`.
    /// With `residual`, that is added to the result.
    fn conv(
        &self,
        x: &Self::Tensor,
        past: Option<&Self::Tensor>,
        layer: &Self::Conv,
        spatial: Spatial,
        time_stride: usize,
        residual: Option<&Self::Tensor>,
    ) -> Result<Self::Tensor>;

    /// x / max(|x|, 1e-12) * sqrt(channels) * gamma, the norm over the channels of each voxel; then `SiLU` if `silu`.
    fn channel_norm(&self, x: &Self::Tensor, gamma: &Self::Tensor, silu: bool) -> Result<Self::Tensor>;

    /// Each pixel four times.
    fn upsample_nearest(&self, x: &Self::Tensor) -> Result<Self::Tensor>;

    /// `[2 * channels, frames, ..]` to `[channels, 2 * frames, ..]`: the first half of the channels holds the even frames.
    fn interleave_frames(&self, x: &Self::Tensor) -> Result<Self::Tensor>;
}
