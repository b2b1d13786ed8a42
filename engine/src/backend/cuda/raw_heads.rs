//! 8-bit self-attention whose queries and keys go from their product straight to the form that attention reads: their norms
//! and the rotary embedding are applied where they are quantised.

use animd_kernels::cuda::{self, Attention8bitLayout, Element, Gemm, HEAD_DIM};

use super::Cuda;
use super::attention::SCALE;
use super::error::kernel;
use super::gpu::Gpu;
use super::linear::{Form, Linear};
use super::norms::Rope;
use super::tensor::Tensor;
use crate::Result;
use crate::backend::sequence::{Input, SelfAttention};
use animd_protocol::profile::AttentionKind;

/// Self-attention that the kernels can compute in this way.
pub(super) struct RawHeads<'a> {
    layer: &'a Linear,
    /// The factors of the norms of queries and keys.
    weights: [&'a Tensor; 2],
    eps: f64,
    rope: &'a Rope,
    heads: usize,
}

impl<'a> RawHeads<'a> {
    /// Returns the attention if its shape, its precision and this GPU allow to compute it in this way.
    pub fn of(gpu: &Gpu, x: &Input<'_, Tensor>, a: &'a SelfAttention<'a, Cuda>) -> Option<Self> {
        let &SelfAttention { layer, ref projection, heads, scale, kind } = a;
        let [Some(query), Some(key), None] = projection.norms else { return None };
        let rope = projection.rope?;
        let rows = x.tensor().shape.first().copied().unwrap_or_default();
        let sums = match layer.form {
            Form::Bf16 | Form::Int8 => true,
            Form::Fp8 => gpu.fast_sums,
            Form::Split => false,
        };
        let fits = gpu.raw_heads
            && kind == AttentionKind::EightBit
            && (scale - SCALE).abs() < 1e-9
            && rows >= gpu.long_context
            && rope.shape() == [rows, HEAD_DIM / 2]
            && gpu.attention.takes_raw(heads)
            && layer.outputs == 3 * heads * HEAD_DIM
            && layer.result == Element::Bf16
            && sums;
        fits.then_some(Self { layer, weights: [query, key], eps: projection.eps, rope, heads })
    }

    /// Computes the attention, `[rows, heads * 128]`.
    pub fn attend(&self, gpu: &Gpu, x: Input<'_, Tensor>) -> Result<Tensor> {
        let width = self.heads * HEAD_DIM;
        let [all, squares] = {
            let operand = self.layer.operand(gpu, x)?;
            self.layer.squared(gpu, &operand, 2 * width / Gemm::SQUARED)?
        };
        let rows = all.shape[0];
        let [query, key] = self.weights;
        let weights = [gpu.vector(query, width)?, gpu.vector(key, width)?];
        let part = |i: usize| all.slice(1, i * width, width).rows();
        let raw = cuda::RawHeads {
            q: part(0),
            k: part(1),
            v: part(2),
            squares: squares.address,
            weights: [weights[0].address, weights[1].address],
            eps: self.eps as f32,
            rope: self.rope.tables(),
        };
        let layout = Attention8bitLayout::new(rows, rows, self.heads);
        let piece = gpu.work.take(layout.bytes())?;
        let workspace = kernel(layout.at(piece.address))?;
        // SAFETY: the tensors have these extents, and the piece those of the workspace; the order of the stream keeps
        // them.
        kernel(unsafe { gpu.attention.quantize_8bit_raw(&gpu.stream, &raw, &workspace) })?;
        // From here on there are only the quantised rows.
        drop((all, squares));
        let y = gpu.matrix([rows, width], Element::Bf16)?;
        // SAFETY: as above.
        kernel(unsafe { gpu.attention.multiply_8bit(&gpu.stream, y.rows(), &workspace) })?;
        Ok(y)
    }
}
