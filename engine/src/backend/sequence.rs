//! Operations on token sequences, for transformers.

use super::TensorOps;
use crate::{Error, Result};
use animd_protocol::profile::AttentionKind;

pub use animd_kernels::Activation;

/// The input of a linear layer, `[rows, in]`.
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
    /// Returns the tensor, before its norm.
    pub fn tensor(&self) -> &T {
        match self {
            Self::Plain(x) | Self::Normed(x, _) => x,
        }
    }
}

/// A norm of each row of `[rows, features]`.
pub enum Norm<'a, T> {
    /// Normalises to mean 0 and variance 1 (biased, plus `eps`), then applies the affine map.
    Layer {
        /// The affine map.
        affine: Affine<'a, T>,
        /// Added to the variance.
        eps: f64,
    },
    /// Divides by the root mean square over all features, then multiplies by a factor.
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

/// The affine map of a layer norm: `x * weight + bias` or `x * (1 + scale) + shift`.
/// All tensors are `[features]` or `[1, features]`.
pub enum Affine<'a, T> {
    /// Learned parameters.
    Learned {
        /// The factor.
        weight: &'a T,
        /// The summand.
        bias: &'a T,
    },
    /// Modulation by the timestep.
    Modulated {
        /// The summand.
        shift: &'a T,
        /// The factor is one more than this.
        scale: &'a T,
    },
}

impl<T> Clone for Affine<'_, T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for Affine<'_, T> {}

/// The operations after a linear layer, in the same kernel: `residual + gate * activation(x W^T + b)`.
pub struct Epilogue<'a, T> {
    /// The activation.
    pub activation: Activation,
    /// A factor for each output feature, `[out]` or `[1, out]`.
    pub gate: Option<&'a T>,
    /// A tensor `[rows, out]` that is added last; the result has its precision.
    pub residual: Option<&'a T>,
}

impl<T> Default for Epilogue<'_, T> {
    fn default() -> Self {
        Self { activation: Activation::None, gate: None, residual: None }
    }
}

/// The operations after a layer whose output features are `N` equal parts: queries, keys, values, or some of these.
pub struct Projection<'a, B: SequenceOps, const N: usize> {
    /// The factors of an RMS norm over each part, `[out / N]`; `None` leaves the part as it is.
    pub norms: [Option<&'a B::Tensor>; N],
    /// Added to the mean squares, under the root.
    pub eps: f64,
    /// The rotary embedding, which rotates the adjacent pairs within each head of the normed parts.
    pub rope: Option<&'a B::Rope>,
}

impl<B: SequenceOps, const N: usize> Projection<'_, B, N> {
    /// Returns an epilogue that leaves the parts as they are.
    pub const PLAIN: Self = Self { norms: [None; N], eps: 0.0, rope: None };
}

/// Keys and values that queries attend to.
pub struct KeyValue<'a, T> {
    /// Keys `[keys, features]`.
    pub k: &'a T,
    /// Values `[keys, features]`.
    pub v: &'a T,
    /// A bias of the products that depends on the distance of query and key, `[heads, rows + keys - 1]`: for query r
    /// and key k it is the element `k - r + rows - 1` of its head.
    pub bias: Option<&'a T>,
    /// How many times the last key and its value count, at least once: as if so many lay there, all alike.
    pub copies: usize,
}

impl<'a, T> KeyValue<'a, T> {
    /// Returns keys and values without a bias, of which each counts once.
    pub fn new(k: &'a T, v: &'a T) -> Self {
        Self { k, v, bias: None, copies: 1 }
    }
}

/// The sum over sets of keys and values of `softmax(scale * q k^T + bias) v` for each head; heads lie side by side in
/// the features. Each set has a softmax of its own.
pub struct Attention<'a, T> {
    /// Queries `[rows, features]`.
    pub q: &'a T,
    /// The sets of keys and values to attend to, at least one.
    pub sets: &'a [KeyValue<'a, T>],
    /// The number of heads.
    pub heads: usize,
    /// The factor of the products.
    pub scale: f64,
    /// The precision of attention over long sequences; a backend without this kind is exact.
    pub kind: AttentionKind,
}

impl<T> Attention<'_, T> {
    /// Returns the rows, the features and the width of a head.
    ///
    /// # Errors
    /// Returns [`Error::Internal`] if the tensors do not fit each other.
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
                    && set.copies > 0
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

/// Attention of a layer's queries to keys and values of the same layer and input.
pub struct SelfAttention<'a, B: SequenceOps> {
    /// The layer whose outputs are queries, keys and values.
    pub layer: &'a B::Linear,
    /// What follows the layer.
    pub projection: Projection<'a, B, 3>,
    /// The number of heads.
    pub heads: usize,
    /// The factor of the products.
    pub scale: f64,
    /// The precision of attention over long sequences.
    pub kind: AttentionKind,
}

impl<B: SequenceOps> SelfAttention<'_, B> {
    /// Computes the parts by [`SequenceOps::project`], and then attention as of any queries, keys and values.
    ///
    /// # Errors
    /// Returns what the two operations return.
    pub(super) fn in_two_steps(&self, b: &B, x: Input<'_, B::Tensor>) -> Result<B::Tensor> {
        let &Self { layer, ref projection, heads, scale, kind } = self;
        let [q, k, v] = b.project(x, layer, projection)?;
        b.attention(&Attention { q: &q, sets: &[KeyValue::new(&k, &v)], heads, scale, kind })
    }
}

/// Returns the number of pairs of a head that a rotary embedding's tables are for.
///
/// # Errors
/// Returns [`Error::Internal`] if they are not tables of so many tokens.
pub(super) fn rope_pairs(cos: &[f64], sin: &[f64], tokens: usize) -> Result<usize> {
    if tokens == 0 || !cos.len().is_multiple_of(tokens) || cos.len() != sin.len() {
        return Err(Error::Internal(format!("{} cosines, {} sines, {tokens} tokens", cos.len(), sin.len())));
    }
    Ok(cos.len() / tokens)
}

/// Returns the width of each of `parts` parts of a layer's output `[rows, out]`. A rotary embedding of so many tokens
/// and pairs may rotate some of the parts.
///
/// # Errors
/// Returns [`Error::Internal`] if one does not divide the other.
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

/// Operations on `[rows, features]`. [`TensorOps::slice`] may return a view; every operation takes views.
pub trait SequenceOps: TensorOps {
    /// The weight (in whatever precision and layout the backend keeps it) and bias of a linear layer.
    type Linear: Send + Sync + 'static;
    /// The cosines and sines of the rotary embedding for one grid.
    type Rope: Send + Sync + 'static;

    /// Computes a linear layer with its epilogue, from `[rows, in]` to `[rows, out]`.
    fn linear(
        &self,
        x: Input<'_, Self::Tensor>,
        layer: &Self::Linear,
        epilogue: &Epilogue<'_, Self::Tensor>,
    ) -> Result<Self::Tensor>;

    /// Computes a gated linear unit: `activation(gate(x)) * up(x)`, element by element.
    fn gated_linear(
        &self,
        x: Input<'_, Self::Tensor>,
        gate: &Self::Linear,
        up: &Self::Linear,
        activation: Activation,
    ) -> Result<Self::Tensor>;

    /// Computes two linear layers with an activation between them, and the epilogue after the second one: the wide rows
    /// between them exist only in the form that the second layer reads.
    fn feed_forward(
        &self,
        x: Input<'_, Self::Tensor>,
        [up, down]: [&Self::Linear; 2],
        activation: Activation,
        epilogue: &Epilogue<'_, Self::Tensor>,
    ) -> Result<Self::Tensor> {
        let inner = self.linear(x, up, &Epilogue { activation, ..Epilogue::default() })?;
        self.linear(Input::Plain(&inner), down, epilogue)
    }

    /// Computes a linear layer's output in `N` equal parts, each `[rows, out / N]`, with the norms and the rotary
    /// embedding of queries and keys.
    fn project<const N: usize>(
        &self,
        x: Input<'_, Self::Tensor>,
        layer: &Self::Linear,
        projection: &Projection<'_, Self, N>,
    ) -> Result<[Self::Tensor; N]>
    where
        Self: Sized;

    /// Computes a norm in f32, for readers other than a single linear layer.
    fn norm(&self, x: &Self::Tensor, norm: &Norm<'_, Self::Tensor>) -> Result<Self::Tensor>;

    /// Makes the rotary tables from cosines and sines `[tokens, head_dim / 2]`, which are not rounded to f32 before.
    fn load_rope(&self, cos: &[f64], sin: &[f64], tokens: usize) -> Result<Self::Rope>;

    /// Computes [`Attention`].
    fn attention(&self, attention: &Attention<'_, Self::Tensor>) -> Result<Self::Tensor>;

    /// Computes [`SelfAttention`] of an input `[rows, in]`; the result is `[rows, out / 3]`. Queries and keys may exist only
    /// in the form that attention reads.
    fn self_attention(
        &self,
        x: Input<'_, Self::Tensor>,
        attention: &SelfAttention<'_, Self>,
    ) -> Result<Self::Tensor>
    where
        Self: Sized,
    {
        attention.in_two_steps(self, x)
    }

    /// Turns `[channels, frames, height, width]` into tokens `[frames * height/2 * width/2, channels * 4]`: tokens in
    /// the order frame, row, column; features in the order channel, row, column within the 2x2 patch.
    fn patchify(&self, x: &Self::Tensor) -> Result<Self::Tensor>;

    /// Turns tokens `[frames * height/2 * width/2, 4 * channels]` into `[channels, frames, height, width]`; features in
    /// the order row, column within the patch, channel. `grid` is the frames, height and width of the result.
    fn unpatchify(&self, x: &Self::Tensor, grid: [usize; 3]) -> Result<Self::Tensor>;
}
