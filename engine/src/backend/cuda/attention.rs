//! Attention: kernels for heads of 128 channels (for few keys and for many), and one for everything else.

use std::f64::consts::FRAC_1_SQRT_2;

use animd_kernels::cuda::{self, AnyAttentionArguments, Attention8bitLayout, Batches, Element, HEAD_DIM};

use super::error::kernel;
use super::gpu::Gpu;
use super::tensor::Tensor;
use crate::Result;
use crate::backend::sequence::{Attention, KeyValue};
use animd_protocol::profile::AttentionKind;

/// The scale that the kernels for heads of 128 channels use: the root of 1 / 128.
pub(super) const SCALE: f64 = FRAC_1_SQRT_2 / 8.0;

impl Gpu {
    /// Computes [`Attention`]. Each kernel adds to the result of the one before.
    pub fn attend(&self, a: &Attention<'_, Tensor>) -> Result<Tensor> {
        let [rows, features, width] = a.sizes(|x| &x.shape)?;
        let plain = a.sets.iter().all(|set| set.bias.is_none());
        let fast = width == HEAD_DIM && (a.scale - SCALE).abs() < 1e-9 && plain;
        let few = |set: &KeyValue<'_, Tensor>| set.k.shape[0] < self.long_context;
        let q = self.rows(a.q, Element::Bf16)?;
        let mut sum: Option<Tensor> = None;
        let mut rest = a.sets;
        while let [first, others @ ..] = rest {
            let pair = fast && few(first) && others.first().is_some_and(few);
            let (now, later) = rest.split_at(if pair { 2 } else { 1 });
            let y = self.matrix([rows, features], Element::Bf16)?;
            match &sum {
                before if fast && few(first) => self.attend_to_few(a, &q, now, before.as_ref(), &y)?,
                None if fast && first.copies == 1 => self.attend_to_many(a, &q, first, &y)?,
                before => self.attend_to_any(a, &q, first, before.as_ref(), &y)?,
            }
            sum = Some(y);
            rest = later;
        }
        sum.ok_or_else(|| crate::Error::Internal("attention to nothing".into()))
    }

    /// Attends to one or two short sets of keys, with heads of 128 channels.
    fn attend_to_few(
        &self,
        a: &Attention<'_, Tensor>,
        q: &Tensor,
        sets: &[KeyValue<'_, Tensor>],
        residual: Option<&Tensor>,
        y: &Tensor,
    ) -> Result<()> {
        let in_bf16 = |set: &KeyValue<'_, Tensor>| {
            Ok((self.rows(set.k, Element::Bf16)?, self.rows(set.v, Element::Bf16)?, set.copies))
        };
        let sets = sets.iter().map(in_bf16).collect::<Result<Vec<_>>>()?;
        let sets: Vec<_> = sets
            .iter()
            .map(|(k, v, copies)| cuda::KeyValue { k: k.rows(), v: v.rows(), copies: *copies })
            .collect();
        let residual = residual.map(Tensor::rows);
        // SAFETY: the tensors have these extents; the order of the stream keeps them.
        kernel(unsafe {
            self.cross_attention.run(&self.stream, q.rows(), &sets, residual, y.rows(), a.heads)
        })
    }

    /// Attends to a long set of keys, with heads of 128 channels, and adds to nothing.
    fn attend_to_many(
        &self,
        a: &Attention<'_, Tensor>,
        q: &Tensor,
        set: &KeyValue<'_, Tensor>,
        y: &Tensor,
    ) -> Result<()> {
        let (k, v) = (self.rows(set.k, Element::Bf16)?, self.rows(set.v, Element::Bf16)?);
        let (q, k, v, y) = (q.rows(), k.rows(), v.rows(), y.rows());
        if a.kind == AttentionKind::EightBit {
            let layout = Attention8bitLayout::new(q.rows, k.rows, a.heads);
            let piece = self.work.take(layout.bytes())?;
            let workspace = kernel(layout.at(piece.address))?;
            // SAFETY: the tensors have these extents, and the piece those of the workspace; the order of the stream
            // keeps them.
            return kernel(unsafe { self.attention.eight_bit(&self.stream, q, k, v, y, &workspace) });
        }
        // SAFETY: as above.
        kernel(unsafe { self.attention.bf16(&self.stream, q, k, v, y, a.heads) })
    }

    /// Attends with heads of any width, a bias, another scale, many keys of which the last one counts several times, or an
    /// earlier result to add to.
    fn attend_to_any(
        &self,
        a: &Attention<'_, Tensor>,
        q: &Tensor,
        set: &KeyValue<'_, Tensor>,
        residual: Option<&Tensor>,
        y: &Tensor,
    ) -> Result<()> {
        let [rows, features] = q.matrix()?;
        let (k, v) = (self.rows(set.k, Element::Bf16)?, self.rows(set.v, Element::Bf16)?);
        let offsets = rows + k.shape[0] - 1;
        let bias = set.bias.map(|bias| self.vector(bias, a.heads * offsets)).transpose()?;
        let one = |x: &Tensor| Batches::one(x.rows());
        let arguments = AnyAttentionArguments {
            q: one(q),
            k: one(&k),
            v: one(&v),
            bias: bias.as_ref().map(|bias| bias.address),
            residual: residual.map(one),
            output: one(y),
            heads: a.heads,
            width: features / a.heads,
            batches: 1,
            scale: a.scale as f32,
            copies: set.copies,
        };
        // SAFETY: the tensors have these extents; the order of the stream keeps them.
        kernel(unsafe { self.any_attention.run(&self.stream, &arguments) })
    }
}
