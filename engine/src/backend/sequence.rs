//! Operations on token sequences: what transformers are made of.

use super::TensorOps;
use crate::Result;
use crate::weights::{HostTensor, Matrix};

/// What is applied to a linear layer's output, element by element.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Activation {
    /// Nothing.
    #[default]
    None,
    /// x * sigmoid(x).
    Silu,
    /// GELU by its tanh formula.
    GeluTanh,
    /// GELU by the error function.
    GeluErf,
}

/// What follows a linear layer, in the kernel that computes it: `residual + gate * activation(x W^T + b)`.
pub struct Epilogue<'a, T> {
    /// The activation.
    pub activation: Activation,
    /// A factor for each output feature, `[out]`.
    pub gate: Option<&'a T>,
    /// Added last, `[rows, out]`.
    pub residual: Option<&'a T>,
}

impl<T> Default for Epilogue<'_, T> {
    fn default() -> Self {
        Self { activation: Activation::None, gate: None, residual: None }
    }
}

/// What a layer norm multiplies and adds after normalising: `x * weight + bias`, or `x * (1 + scale) + shift`.
pub enum NormParams<'a, T> {
    /// Learned, `[features]` each.
    Affine {
        /// The factor.
        weight: &'a T,
        /// The summand.
        bias: &'a T,
    },
    /// Modulation by the timestep, `[features]` each.
    Modulated {
        /// Added.
        shift: &'a T,
        /// One more than this is the factor.
        scale: &'a T,
    },
}

/// Operations on `[rows, features]`.
pub trait SequenceOps: TensorOps {
    /// A linear layer's weight (in whatever precision and layout the backend keeps it) and bias.
    type Linear: Send + Sync + 'static;
    /// Cosines and sines of the rotary embedding for one grid.
    type Rope: Send + Sync + 'static;

    /// Takes a weight `[out, in]` and its bias `[out]` to the device.
    fn load_linear(&self, weight: Matrix<'_>, bias: Option<HostTensor>) -> Result<Self::Linear>;

    /// `[rows, in]` to `[rows, out]`, with what follows it.
    fn linear(
        &self,
        x: &Self::Tensor,
        layer: &Self::Linear,
        epilogue: &Epilogue<'_, Self::Tensor>,
    ) -> Result<Self::Tensor>;

    /// Normalises each row to mean 0 and variance 1 (biased, plus `eps`), then applies `params`.
    fn layer_norm(
        &self,
        x: &Self::Tensor,
        params: &NormParams<'_, Self::Tensor>,
        eps: f64,
    ) -> Result<Self::Tensor>;

    /// Divides each row by its root mean square (plus `eps` under the root) and multiplies with `weight` `[features]`.
    fn rms_norm(&self, x: &Self::Tensor, weight: &Self::Tensor, eps: f64) -> Result<Self::Tensor>;

    /// Cosines and sines `[tokens, head_dim / 2]`, computed in f64 by the caller and rounded to f32 here at the earliest.
    fn load_rope(&self, cos: &[f64], sin: &[f64], tokens: usize) -> Result<Self::Rope>;

    /// [`SequenceOps::rms_norm`] over all features, then, with `rope`, the rotation of adjacent pairs within each head.
    fn rms_norm_rope(
        &self,
        x: &Self::Tensor,
        weight: &Self::Tensor,
        eps: f64,
        heads: usize,
        rope: &Self::Rope,
    ) -> Result<Self::Tensor>;

    /// softmax(`scale` * q k^T + bias) v for each head; heads lie side by side in the features.
    /// q `[rows, features]`, k and v `[keys, features]`, `bias` `[heads, rows, keys]`.
    fn attention(
        &self,
        q: &Self::Tensor,
        k: &Self::Tensor,
        v: &Self::Tensor,
        heads: usize,
        scale: f64,
        bias: Option<&Self::Tensor>,
    ) -> Result<Self::Tensor>;

    /// Rows of `table` `[n, features]` by their numbers.
    fn embedding(&self, table: &Self::Tensor, ids: &[u32]) -> Result<Self::Tensor>;

    /// Element by element.
    fn mul(&self, a: &Self::Tensor, b: &Self::Tensor) -> Result<Self::Tensor>;

    /// The activation alone, element by element.
    fn activate(&self, x: &Self::Tensor, activation: Activation) -> Result<Self::Tensor>;

    /// `[channels, frames, height, width]` to tokens `[frames * height/2 * width/2, channels * 4]`: tokens in the order
    /// frame, row, column; features in the order channel, row, column within the 2x2 patch.
    fn patchify(&self, x: &Self::Tensor) -> Result<Self::Tensor>;

    /// Tokens `[frames * height/2 * width/2, 4 * channels]` to `[channels, frames, height, width]`; features in the order
    /// row, column within the patch, channel. `grid` is frames, height, width of the result.
    fn unpatchify(&self, x: &Self::Tensor, grid: [usize; 3]) -> Result<Self::Tensor>;
}
