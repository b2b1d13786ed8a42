//! Operations on token sequences: what transformers are made of.

use super::TensorOps;
use crate::{Error, Result};
use animd_protocol::profile::AttentionKind;

pub use animd_kernels::Activation;

/// What a linear layer reads, `[rows, in]`.
pub enum Input<'a, T> {
    /// A tensor as it is.
    Plain(&'a T),
    /// A norm of a tensor, which exists in the form that the layer reads and nowhere else.
    Normed(&'a T, Norm<'a, T>),
}

impl<T> Clone for Input<'_, T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for Input<'_, T> {}

impl<T> Input<'_, T> {
    /// The tensor, before its norm.
    pub fn tensor(&self) -> &T {
        match self {
            Self::Plain(x) | Self::Normed(x, _) => x,
        }
    }
}

/// A norm of each row of `[rows, features]`.
pub enum Norm<'a, T> {
    /// To mean 0 and variance 1 (biased, plus `eps`), then what the affine map makes of it.
    Layer {
        /// What follows.
        affine: Affine<'a, T>,
        /// Added to the variance.
        eps: f64,
    },
    /// Divided by the root mean square over all features, times a factor.
    Rms {
        /// The factor, `[features]`.
        weight: &'a T,
        /// Added to the mean square, under the root.
        eps: f64,
    },
}

impl<T> Clone for Norm<'_, T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for Norm<'_, T> {}

/// What a layer norm multiplies and adds after normalising: `x * weight + bias`, `x * (1 + scale) + shift`.
/// All of them are `[features]` or `[1, features]`.
pub enum Affine<'a, T> {
    /// Learned.
    Learned {
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

impl<T> Clone for Affine<'_, T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for Affine<'_, T> {}

/// What follows a linear layer, in the kernel that computes it: `residual + gate * activation(x W^T + b)`.
pub struct Epilogue<'a, T> {
    /// The activation.
    pub activation: Activation,
    /// A factor for each output feature, `[out]` or `[1, out]`.
    pub gate: Option<&'a T>,
    /// Added last, `[rows, out]`; the result has its precision.
    pub residual: Option<&'a T>,
}

impl<T> Default for Epilogue<'_, T> {
    fn default() -> Self {
        Self { activation: Activation::None, gate: None, residual: None }
    }
}

/// What follows a layer whose output features are `N` equal parts: queries, keys, values, or some of them.
pub struct Projection<'a, B: SequenceOps, const N: usize> {
    /// The factors of an RMS norm over each part, `[out / N]`; `None` leaves the part as it is.
    pub norms: [Option<&'a B::Tensor>; N],
    /// Added to the mean squares, under the root.
    pub eps: f64,
    /// Rotates the adjacent pairs within each head of the normed parts.
    pub rope: Option<&'a B::Rope>,
}

impl<B: SequenceOps, const N: usize> Projection<'_, B, N> {
    /// The parts as they are.
    pub const PLAIN: Self = Self { norms: [None; N], eps: 0.0, rope: None };
}

/// Keys and values that queries attend to.
pub struct KeyValue<'a, T> {
    /// Keys `[keys, features]`.
    pub k: &'a T,
    /// Values `[keys, features]`.
    pub v: &'a T,
    /// A bias of the products that depends on how far apart the two are, `[heads, rows + keys - 1]`: for query r and key k
    /// it is the element `k - r + rows - 1` of its head.
    pub bias: Option<&'a T>,
}

impl<'a, T> KeyValue<'a, T> {
    /// Without a bias.
    pub fn new(k: &'a T, v: &'a T) -> Self {
        Self { k, v, bias: None }
    }
}

/// The sum over sets of keys and values of `softmax(scale * q k^T + bias) v` for each head; heads lie side by side in the
/// features. Each set has a softmax of its own.
pub struct Attention<'a, T> {
    /// Queries `[rows, features]`.
    pub q: &'a T,
    /// What they attend to, at least one set.
    pub sets: &'a [KeyValue<'a, T>],
    /// Heads.
    pub heads: usize,
    /// The factor of the products.
    pub scale: f64,
    /// In which precision long sequences are attended to; a backend without this kind is exact.
    pub kind: AttentionKind,
}

impl<T> Attention<'_, T> {
    /// Rows, features and the width of a head.
    ///
    /// # Errors
    /// [`Error::Internal`] if the tensors do not fit each other.
    pub fn sizes(&self, extents: impl Fn(&T) -> &[usize]) -> Result<[usize; 3]> {
        let q = extents(self.q);
        if let [rows, features] = *q
            && rows * features * self.heads > 0
            && features.is_multiple_of(self.heads)
            && !self.sets.is_empty()
            && self.sets.iter().all(|set| {
                let keys = extents(set.k).first().copied().unwrap_or_default();
                let bias = [self.heads, (rows + keys).saturating_sub(1)];
                keys > 0
                    && extents(set.k) == [keys, features]
                    && extents(set.v) == [keys, features]
                    && set.bias.is_none_or(|b| extents(b) == bias)
            })
        {
            return Ok([rows, features, features / self.heads]);
        }
        let sets: Vec<_> =
            self.sets.iter().map(|set| (extents(set.k), extents(set.v), set.bias.map(&extents))).collect();
        Err(Error::Internal(format!(
            "attention of queries {q:?} to keys, values and biases {sets:?} with {} heads",
            self.heads
        )))
    }
}

/// The pairs of a head that a rotary embedding's tables are for.
///
/// # Errors
/// [`Error::Internal`] if they are no tables of so many tokens.
pub(super) fn rope_pairs(cos: &[f64], sin: &[f64], tokens: usize) -> Result<usize> {
    if tokens == 0 || !cos.len().is_multiple_of(tokens) || cos.len() != sin.len() {
        return Err(Error::Internal(format!("{} cosines, {} sines, {tokens} tokens", cos.len(), sin.len())));
    }
    Ok(cos.len() / tokens)
}

/// The width of each of `parts` parts of a layer's output `[rows, out]`, of which a rotary embedding of so many tokens and
/// pairs may rotate some.
///
/// # Errors
/// [`Error::Internal`] if one does not divide the other.
pub(super) fn part_width([rows, out]: [usize; 2], parts: usize, rope: Option<[usize; 2]>) -> Result<usize> {
    let width = out / parts.max(1);
    let fits = |[tokens, pairs]: [usize; 2]| tokens == rows && width.is_multiple_of(2 * pairs.max(1));
    if width * parts != out || !rope.is_none_or(fits) {
        return Err(Error::Internal(format!(
            "[{rows}, {out}] is not {parts} parts that a rotary embedding of {rope:?} fits"
        )));
    }
    Ok(width)
}

/// Operations on `[rows, features]`. What [`TensorOps::slice`] returns may be a view; every operation takes views.
pub trait SequenceOps: TensorOps {
    /// A linear layer's weight (in whatever precision and layout the backend keeps it) and bias.
    type Linear: Send + Sync + 'static;
    /// Cosines and sines of the rotary embedding for one grid.
    type Rope: Send + Sync + 'static;

    /// `[rows, in]` to `[rows, out]`, with what follows it.
    fn linear(
        &self,
        x: Input<'_, Self::Tensor>,
        layer: &Self::Linear,
        epilogue: &Epilogue<'_, Self::Tensor>,
    ) -> Result<Self::Tensor>;

    /// A gated linear unit: `activation(gate(x)) * up(x)`, element by element.
    fn gated_linear(
        &self,
        x: Input<'_, Self::Tensor>,
        gate: &Self::Linear,
        up: &Self::Linear,
        activation: Activation,
    ) -> Result<Self::Tensor>;

    /// A linear layer's output in `N` equal parts, each `[rows, out / N]`, with the norms and the rotary embedding of queries
    /// and keys.
    fn project<const N: usize>(
        &self,
        x: Input<'_, Self::Tensor>,
        layer: &Self::Linear,
        projection: &Projection<'_, Self, N>,
    ) -> Result<[Self::Tensor; N]>
    where
        Self: Sized;

    /// A norm that others than one linear layer read, in f32.
    fn norm(&self, x: &Self::Tensor, norm: &Norm<'_, Self::Tensor>) -> Result<Self::Tensor>;

    /// Cosines and sines `[tokens, head_dim / 2]`, rounded to f32 here at the earliest.
    fn load_rope(&self, cos: &[f64], sin: &[f64], tokens: usize) -> Result<Self::Rope>;

    /// See [`Attention`].
    fn attention(&self, attention: &Attention<'_, Self::Tensor>) -> Result<Self::Tensor>;

    /// `[channels, frames, height, width]` to tokens `[frames * height/2 * width/2, channels * 4]`: tokens in the order
    /// frame, row, column; features in the order channel, row, column within the 2x2 patch.
    fn patchify(&self, x: &Self::Tensor) -> Result<Self::Tensor>;

    /// Tokens `[frames * height/2 * width/2, 4 * channels]` to `[channels, frames, height, width]`; features in the order
    /// row, column within the patch, channel. `grid` is frames, height, width of the result.
    fn unpatchify(&self, x: &Self::Tensor, grid: [usize; 3]) -> Result<Self::Tensor>;
}
