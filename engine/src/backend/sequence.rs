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

/// How much a linear layer's rounding shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Few and sensitive: embeddings, modulation, head. f32, or the nearest that the backend has; so is the result.
    Sensitive,
    /// The bulk of the work, in the precision of its network.
    Bulk,
}

/// What follows a linear layer, in the kernel that computes it: `residual + gate * activation(x W^T + b)`.
pub struct Epilogue<'a, T> {
    /// The activation.
    pub activation: Activation,
    /// A factor for each output feature, `[out]` or `[1, out]`, or for each element, `[rows, out]`.
    pub gate: Option<&'a T>,
    /// Added last, `[rows, out]`; the result has its precision.
    pub residual: Option<&'a T>,
}

impl<T> Default for Epilogue<'_, T> {
    fn default() -> Self {
        Self { activation: Activation::None, gate: None, residual: None }
    }
}

/// What a layer norm multiplies and adds after normalising: `x * weight + bias`, `x * (1 + scale) + shift`.
/// All of them are `[features]` or `[1, features]`.
pub enum NormParams<'a, T> {
    /// Learned.
    Affine {
        /// The factor.
        weight: &'a T,
        /// The summand.
        bias: &'a T,
    },
    /// Modulation by the timestep.
    Modulated {
        /// Added.
        shift: &'a T,
        /// One more than this is the factor.
        scale: &'a T,
    },
}

/// `residual + softmax(scale * q k^T + bias) v` for each head; heads lie side by side in the features.
pub struct Attention<'a, T> {
    /// Queries `[rows, features]`.
    pub q: &'a T,
    /// Keys `[keys, features]`.
    pub k: &'a T,
    /// Values `[keys, features]`.
    pub v: &'a T,
    /// Heads.
    pub heads: usize,
    /// The factor of the products.
    pub scale: f64,
    /// A bias that depends on how far apart the two are, `[heads, rows + keys - 1]`: for query r and key k it is the
    /// element `k - r + rows - 1` of its head.
    pub bias: Option<&'a T>,
    /// Added, `[rows, features]`.
    pub residual: Option<&'a T>,
}

/// Operations on `[rows, features]`. What [`TensorOps::slice`] returns may be a view; every operation takes views.
pub trait SequenceOps: TensorOps {
    /// A linear layer's weight (in whatever precision and layout the backend keeps it) and bias.
    type Linear: Send + Sync + 'static;
    /// Cosines and sines of the rotary embedding for one grid.
    type Rope: Send + Sync + 'static;

    /// Takes weights `[out, in]` and their biases `[out]` to the device. Several layers of one input become one, their
    /// outputs side by side.
    fn load_linear(&self, layers: &[(Matrix<'_>, Option<HostTensor>)], role: Role) -> Result<Self::Linear>;

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

    /// Cosines and sines `[tokens, head_dim / 2]`, rounded to f32 here at the earliest.
    fn load_rope(&self, cos: &[f64], sin: &[f64], tokens: usize) -> Result<Self::Rope>;

    /// Divides each row by its root mean square over all features (`eps` is added under the root) and multiplies with
    /// `weight` `[features]`; then, with `rope`, rotates the adjacent pairs within each head.
    fn rms_norm(
        &self,
        x: &Self::Tensor,
        weight: &Self::Tensor,
        eps: f64,
        rope: Option<&Self::Rope>,
    ) -> Result<Self::Tensor>;

    /// See [`Attention`].
    fn attention(&self, attention: &Attention<'_, Self::Tensor>) -> Result<Self::Tensor>;

    /// `[channels, frames, height, width]` to tokens `[frames * height/2 * width/2, channels * 4]`: tokens in the order
    /// frame, row, column; features in the order channel, row, column within the 2x2 patch.
    fn patchify(&self, x: &Self::Tensor) -> Result<Self::Tensor>;

    /// Tokens `[frames * height/2 * width/2, 4 * channels]` to `[channels, frames, height, width]`; features in the order
    /// row, column within the patch, channel. `grid` is frames, height, width of the result.
    fn unpatchify(&self, x: &Self::Tensor, grid: [usize; 3]) -> Result<Self::Tensor>;
}
