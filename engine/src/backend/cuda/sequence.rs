//! Operations on token sequences.

use std::f64::consts::FRAC_1_SQRT_2;

use animd_kernels::cuda::{AnyAttentionArguments, Batches, Element, RopeTables};

use super::deferred::{Deferred, Operation};
use super::linear::{Form, Linear};
use super::tensor::{Tensor, View};
use super::{Cuda, Gpu, kernel};
use crate::backend::SequenceOps;
use crate::backend::sequence::{Attention, Epilogue, NormParams, Role};
use crate::profile::{Sensitive, Weights};
use crate::weights::{Component, HostTensor, Matrix};
use crate::{Error, Result};

/// The width of heads that the fast kernels are for, and the scale that they have.
const WIDTH: usize = 128;
const SCALE: f64 = FRAC_1_SQRT_2 / 8.0;

/// Cosines and sines of the rotary embedding, `[tokens, pairs]` each, f32.
#[derive(Clone)]
pub struct Rope {
    cosines: View,
    sines: View,
    pairs: usize,
}

impl Rope {
    /// As the kernels take them.
    pub(super) fn tables(&self) -> RopeTables {
        RopeTables { cosines: self.cosines.address, sines: self.sines.address, pairs: self.pairs }
    }

    /// Whether two norms have the same one.
    pub(super) fn same(a: Option<&Self>, b: Option<&Self>) -> bool {
        a.map(|rope| rope.cosines.address) == b.map(|rope| rope.cosines.address)
    }
}

impl Cuda {
    /// How the linear layers of the network that is loaded are computed, and what their results are.
    fn form(&self, role: Role) -> (Form, Element) {
        let weights = match self.component {
            Component::Dit => self.precision.dit,
            Component::T5 => self.precision.text,
            Component::Clip => self.precision.clip,
            Component::Vae => self.precision.vae,
        };
        match role {
            Role::Bulk if weights == Weights::Fp32 => (Form::Split, Element::F32),
            Role::Bulk => (Form::of(weights), Element::Bf16),
            Role::Sensitive if self.precision.sensitive == Sensitive::Fp32 => (Form::Split, Element::F32),
            Role::Sensitive => (Form::Bf16, Element::Bf16),
        }
    }
}

impl SequenceOps for Cuda {
    type Linear = Linear;
    type Rope = Rope;

    fn load_linear(&self, layers: &[(Matrix<'_>, Option<HostTensor>)], role: Role) -> Result<Linear> {
        let (form, result) = self.form(role);
        Linear::load(&self.gpu, &self.staging, layers, form, result)
    }

    fn linear(&self, x: &Tensor, layer: &Linear, epilogue: &Epilogue<'_, Tensor>) -> Result<Tensor> {
        layer.forward(&self.gpu, x, epilogue)
    }

    fn layer_norm(&self, x: &Tensor, params: &NormParams<'_, Tensor>, eps: f64) -> Result<Tensor> {
        let (factor, summand, modulated) = match params {
            NormParams::Affine { weight, bias } => (weight, bias, false),
            NormParams::Modulated { shift, scale } => (scale, shift, true),
        };
        let shape = matrix(x)?;
        let factor = self.gpu.vector(factor, shape[1])?;
        let summand = self.gpu.vector(summand, shape[1])?;
        let x = self.gpu.any_rows(x)?;
        let operation = Operation::LayerNorm { x, factor, summand, modulated, eps: eps as f32 };
        Ok(Deferred::tensor(shape, operation))
    }

    fn load_rope(&self, cos: &[f64], sin: &[f64], tokens: usize) -> Result<Rope> {
        if tokens == 0 || !cos.len().is_multiple_of(tokens) || cos.len() != sin.len() {
            return Err(Error::Internal(format!(
                "{} cosines, {} sines, {tokens} tokens",
                cos.len(),
                sin.len()
            )));
        }
        let pairs = cos.len() / tokens;
        let table = |values: &[f64]| {
            let values: Vec<f32> = values.iter().map(|v| *v as f32).collect();
            self.gpu.upload(&values, &[tokens, pairs])
        };
        Ok(Rope { cosines: table(cos)?, sines: table(sin)?, pairs })
    }

    fn rms_norm(&self, x: &Tensor, weight: &Tensor, eps: f64, rope: Option<&Rope>) -> Result<Tensor> {
        let shape = matrix(x)?;
        let [rows, features] = shape;
        if rope.is_some_and(|r| r.cosines.shape[0] != rows || !features.is_multiple_of(2 * r.pairs)) {
            return Err(Error::Internal(format!(
                "a rotary embedding that does not fit [{rows}, {features}]"
            )));
        }
        let weight = self.gpu.vector(weight, features)?;
        let x = self.gpu.any_rows(x)?;
        Ok(Deferred::tensor(shape, Operation::RmsNorm { x, weight, eps: eps as f32, rope: rope.cloned() }))
    }

    fn attention(&self, a: &Attention<'_, Tensor>) -> Result<Tensor> {
        let ([rows, features], [keys, width]) = (matrix(a.q)?, matrix(a.k)?);
        let fits = width == features
            && a.v.extents() == a.k.extents()
            && a.heads > 0
            && features.is_multiple_of(a.heads)
            && a.bias.is_none_or(|b| b.extents() == [a.heads, rows + keys - 1])
            && a.residual.is_none_or(|r| r.extents() == a.q.extents());
        if !fits || rows == 0 || keys == 0 {
            return Err(Error::Internal(format!(
                "attention of {:?}, {:?}, {:?} with {} heads",
                a.q.extents(),
                a.k.extents(),
                a.v.extents(),
                a.heads
            )));
        }
        let usual = features / a.heads == WIDTH && (a.scale - SCALE).abs() < 1e-9 && a.bias.is_none();
        match a.residual {
            None if usual => {
                let [q, k, v] = [a.q, a.k, a.v].map(Clone::clone);
                let operation = Operation::Attention { q, k, v, heads: a.heads };
                Ok(Deferred::tensor([rows, features], operation))
            }
            Some(residual) if usual && keys < self.gpu.long_context => {
                self.gpu.cross_attention(a, residual).map(Into::into)
            }
            _ => self.gpu.any_attention(a, keys).map(Into::into),
        }
    }

    fn patchify(&self, x: &Tensor) -> Result<Tensor> {
        let [channels, frames, height, width] = *x.extents() else {
            return Err(Error::Internal(format!("{:?} is no latent", x.extents())));
        };
        if !height.is_multiple_of(2) || !width.is_multiple_of(2) || channels * frames * height * width == 0 {
            return Err(Error::Internal(format!("{:?} cannot be divided into patches", x.extents())));
        }
        let gpu = &self.gpu;
        let x = gpu.dense(x, Element::F32)?;
        let tokens = gpu.matrix([frames * height * width / 4, 4 * channels], Element::F32)?;
        // SAFETY: the views have these extents; the order of the stream keeps them.
        kernel(unsafe {
            let (from, grid) = ((x.address, channels), [frames, height, width]);
            gpu.volumes.patchify(&gpu.stream, from, None, grid, tokens.rows())
        })?;
        Ok(tokens.into())
    }

    fn unpatchify(&self, x: &Tensor, grid: [usize; 3]) -> Result<Tensor> {
        let ([tokens, features], [frames, height, width]) = (matrix(x)?, grid);
        let even = height.is_multiple_of(2) && width.is_multiple_of(2);
        if !even || 4 * tokens != frames * height * width || !features.is_multiple_of(4) || tokens == 0 {
            return Err(Error::Internal(format!("[{tokens}, {features}] are no patches of {grid:?}")));
        }
        let gpu = &self.gpu;
        let x = gpu.rows(x, Element::F32)?;
        let channels = features / 4;
        let y = gpu.row_major(&[channels, frames, height, width], Element::F32)?;
        // SAFETY: the views have these extents; the order of the stream keeps them.
        kernel(unsafe { gpu.volumes.unpatchify(&gpu.stream, x.rows(), y.address, channels, grid) })?;
        Ok(y.into())
    }
}

impl Gpu {
    /// Attention to few keys over heads of 128 channels, added to a residual, which may be such attention, too.
    fn cross_attention(&self, a: &Attention<'_, Tensor>, residual: &Tensor) -> Result<View> {
        let first = self.pending_attention(residual, a.q, a.heads)?;
        let (q, k) = (self.rows(a.q, Element::Bf16)?, self.rows(a.k, Element::Bf16)?);
        let v = self.rows(a.v, Element::Bf16)?;
        let second = super::deferred::KeyValueViews { k, v };
        let y = self.matrix([q.shape[0], q.shape[1]], Element::Bf16)?;
        let (sets, residual) = match &first {
            Some(first) => (vec![first.rows(), second.rows()], None),
            None => (vec![second.rows()], Some(self.rows(residual, Element::Bf16)?)),
        };
        // SAFETY: the views keep their memory, and pieces are given back in the order of the stream.
        kernel(unsafe {
            let residual = residual.as_ref().map(View::rows);
            self.cross_attention.run(&self.stream, q.rows(), &sets, residual, y.rows(), a.heads)
        })?;
        Ok(y)
    }

    /// Attention with heads of any width, a bias, another scale, or a residual and many keys.
    fn any_attention(&self, a: &Attention<'_, Tensor>, keys: usize) -> Result<View> {
        let (q, k) = self.query_and_key(a.q, a.k, a.v)?;
        let v = self.rows(a.v, Element::Bf16)?;
        let [rows, features] = [q.shape[0], q.shape[1]];
        let bias = a.bias.map(|bias| self.vector(bias, a.heads * (rows + keys - 1))).transpose()?;
        let residual = a.residual.map(|residual| self.rows(residual, Element::Bf16)).transpose()?;
        let y = self.matrix([rows, features], Element::Bf16)?;
        let one = |view: &View| Batches::one(view.rows());
        let arguments = AnyAttentionArguments {
            q: one(&q),
            k: one(&k),
            v: one(&v),
            bias: bias.as_ref().map(|bias| bias.address),
            residual: residual.as_ref().map(one),
            output: one(&y),
            heads: a.heads,
            width: features / a.heads,
            batches: 1,
            scale: a.scale as f32,
        };
        // SAFETY: the views keep their memory, and pieces are given back in the order of the stream.
        kernel(unsafe { self.any_attention.run(&self.stream, &arguments) })?;
        Ok(y)
    }
}

/// The extents of a matrix.
fn matrix(x: &Tensor) -> Result<[usize; 2]> {
    <[usize; 2]>::try_from(x.extents())
        .map_err(|_| Error::Internal(format!("{:?} is no matrix of rows and features", x.extents())))
}
