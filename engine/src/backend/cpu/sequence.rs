//! Operations on token sequences.

use std::borrow::Cow;

use candle_core::Tensor;
use rayon::prelude::*;

use super::attention::attention;
use super::linear::Linear;
use super::{Cpu, tensor, with_values};
use crate::backend::SequenceOps;
use crate::backend::sequence::{
    Activation, Affine, Attention, Epilogue, Input, Norm, Projection, part_width, rope_pairs,
};
use crate::{Error, Result};

/// Cosines and sines of the rotary embedding, `[tokens, pairs]`; pairs are half a head.
#[derive(Debug)]
pub struct Rope {
    cos: Vec<f64>,
    sin: Vec<f64>,
    pairs: usize,
}

impl Rope {
    /// Returns the tokens and pairs.
    fn shape(&self) -> [usize; 2] {
        [self.cos.len() / self.pairs.max(1), self.pairs]
    }
}

impl SequenceOps for Cpu {
    type Linear = Linear;
    type Rope = Rope;

    fn linear(
        &self,
        x: Input<'_, Tensor>,
        layer: &Linear,
        epilogue: &Epilogue<'_, Tensor>,
    ) -> Result<Tensor> {
        layer.forward(&*input(x)?, epilogue)
    }

    fn gated_linear(
        &self,
        x: Input<'_, Tensor>,
        gate: &Linear,
        up: &Linear,
        activation: Activation,
    ) -> Result<Tensor> {
        let x = input(x)?;
        let up = up.forward(&x, &Epilogue::default())?;
        gate.forward(&x, &Epilogue { activation, gate: Some(&up), residual: None })
    }

    fn project<const N: usize>(
        &self,
        x: Input<'_, Tensor>,
        layer: &Linear,
        projection: &Projection<'_, Self, N>,
    ) -> Result<[Tensor; N]> {
        let y = layer.forward(&*input(x)?, &Epilogue::default())?;
        let (rows, out) = y.dims2()?;
        let &Projection { norms, eps, rope } = projection;
        let width = part_width([rows, out], N, rope.map(Rope::shape))?;
        let parts = norms.iter().enumerate().map(|(i, norm)| {
            let part = y.narrow(1, i * width, width)?.contiguous()?;
            norm.map_or(Ok(part.clone()), |weight| rms_norm(&part, weight, eps, rope))
        });
        let parts = parts.collect::<Result<Vec<_>>>()?;
        parts.try_into().map_err(|_| Error::Internal("parts were lost".into()))
    }

    fn norm(&self, x: &Tensor, norm: &Norm<'_, Tensor>) -> Result<Tensor> {
        normed(x, norm)
    }

    fn load_rope(&self, cos: &[f64], sin: &[f64], tokens: usize) -> Result<Rope> {
        let pairs = rope_pairs(cos, sin, tokens)?;
        Ok(Rope { cos: cos.to_vec(), sin: sin.to_vec(), pairs })
    }

    fn attention(&self, a: &Attention<'_, Tensor>) -> Result<Tensor> {
        attention(a)
    }

    fn patchify(&self, x: &Tensor) -> Result<Tensor> {
        let (c, f, h, w) = x.dims4()?;
        if h % 2 != 0 || w % 2 != 0 {
            return Err(Error::Internal(format!("a grid of {h}x{w} does not divide into patches of 2x2")));
        }
        let x = x.reshape(&[c, f, h / 2, 2, w / 2, 2][..])?.permute(&[1, 2, 4, 0, 3, 5][..])?;
        Ok(x.reshape((f * h / 2 * w / 2, 4 * c))?.contiguous()?)
    }

    fn unpatchify(&self, x: &Tensor, [f, h, w]: [usize; 3]) -> Result<Tensor> {
        let c = x.dims2()?.1 / 4;
        let x = x.reshape(&[f, h / 2, w / 2, 2, 2, c][..])?.permute(&[5, 0, 1, 3, 2, 4][..])?;
        Ok(x.reshape((c, f, h, w))?.contiguous()?)
    }
}

/// Returns the tensor that a linear layer reads.
fn input(x: Input<'_, Tensor>) -> Result<Cow<'_, Tensor>> {
    match x {
        Input::Plain(x) => Ok(Cow::Borrowed(x)),
        Input::Normed(x, norm) => Ok(Cow::Owned(normed(x, &norm)?)),
    }
}

fn normed(x: &Tensor, norm: &Norm<'_, Tensor>) -> Result<Tensor> {
    match *norm {
        Norm::Layer { affine, eps } => layer_norm(x, &affine, eps),
        Norm::Rms { weight, eps } => rms_norm(x, weight, eps, None),
    }
}

fn layer_norm(x: &Tensor, affine: &Affine<'_, Tensor>, eps: f64) -> Result<Tensor> {
    let (factor, summand, one) = match affine {
        Affine::Learned { weight, bias } => (weight, bias, 0.0),
        Affine::Modulated { shift, scale } => (scale, shift, 1.0),
    };
    let factor: Vec<f32> = vector(factor, x)?.iter().map(|f| one + f).collect();
    let summand = vector(summand, x)?;
    map_rows(x, |_, x, y| {
        let n = x.len() as f64;
        let mean = x.iter().map(|v| f64::from(*v)).sum::<f64>() / n;
        let variance = x.iter().map(|v| (f64::from(*v) - mean).powi(2)).sum::<f64>() / n;
        let inverse = 1.0 / (variance + eps).sqrt();
        for (((y, x), factor), summand) in y.iter_mut().zip(x).zip(&factor).zip(&summand) {
            *y = ((f64::from(*x) - mean) * inverse) as f32 * factor + summand;
        }
    })
}

/// Computes an RMS norm and then, with `rope`, a rotation of the adjacent pairs within each head.
fn rms_norm(x: &Tensor, weight: &Tensor, eps: f64, rope: Option<&Rope>) -> Result<Tensor> {
    let weight = vector(weight, x)?;
    map_rows(x, |row, x, y| {
        let mean = x.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>() / x.len() as f64;
        let inverse = 1.0 / (mean + eps).sqrt();
        for ((y, x), weight) in y.iter_mut().zip(x).zip(&weight) {
            *y = (f64::from(*x) * inverse) as f32 * weight;
        }
        let Some(rope) = rope else { return };
        let (cos, sin) = (&rope.cos[row * rope.pairs..], &rope.sin[row * rope.pairs..]);
        for head in y.chunks_exact_mut(2 * rope.pairs) {
            for ((pair, cos), sin) in head.as_chunks_mut::<2>().0.iter_mut().zip(cos).zip(sin) {
                let [a, b] = pair.map(f64::from);
                *pair = [(a * cos - b * sin) as f32, (a * sin + b * cos) as f32];
            }
        }
    })
}

/// Returns a vector that has as many elements as `x` `[rows, features]` has features.
fn vector(vector: &Tensor, x: &Tensor) -> Result<Vec<f32>> {
    let (_, features) = x.dims2()?;
    if vector.elem_count() != features {
        return Err(Error::Internal(format!("{:?} for {features} features", vector.dims())));
    }
    with_values(vector, |v| Ok(v.to_vec()))
}

/// Computes each row of the result from the same row of `x`: `f(number, from, to)`.
fn map_rows(x: &Tensor, f: impl Fn(usize, &[f32], &mut [f32]) + Sync) -> Result<Tensor> {
    let (_, features) = x.dims2()?;
    let mut y = vec![0.0; x.elem_count()];
    with_values(x, |x| {
        let rows = y.par_chunks_exact_mut(features).zip(x.par_chunks_exact(features));
        rows.enumerate().for_each(|(i, (y, x))| f(i, x, y));
        Ok(())
    })?;
    tensor(y, x.dims())
}
