//! Operations on token sequences.

use candle_core::Tensor;
use rayon::prelude::*;

use super::attention::attention;
use super::linear::Linear;
use super::{Cpu, tensor, with_values};
use crate::backend::SequenceOps;
use crate::backend::sequence::{Attention, Epilogue, NormParams, Role};
use crate::weights::{HostTensor, Matrix};
use crate::{Error, Result};

/// Cosines and sines of the rotary embedding, `[tokens, pairs]`; pairs are half a head.
#[derive(Debug)]
pub struct Rope {
    cos: Vec<f64>,
    sin: Vec<f64>,
    pairs: usize,
}

impl SequenceOps for Cpu {
    type Linear = Linear;
    type Rope = Rope;

    fn load_linear(&self, layers: &[(Matrix<'_>, Option<HostTensor>)], _: Role) -> Result<Linear> {
        Linear::load(layers, self.simulate_fp8)
    }

    fn linear(&self, x: &Tensor, layer: &Linear, epilogue: &Epilogue<'_, Tensor>) -> Result<Tensor> {
        layer.forward(x, epilogue)
    }

    fn layer_norm(&self, x: &Tensor, params: &NormParams<'_, Tensor>, eps: f64) -> Result<Tensor> {
        let (factor, summand, one) = match params {
            NormParams::Affine { weight, bias } => (weight, bias, 0.0),
            NormParams::Modulated { shift, scale } => (scale, shift, 1.0),
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

    fn load_rope(&self, cos: &[f64], sin: &[f64], tokens: usize) -> Result<Rope> {
        if tokens == 0 || !cos.len().is_multiple_of(tokens) || cos.len() != sin.len() {
            return Err(Error::Internal(format!(
                "{} cosines, {} sines, {tokens} tokens",
                cos.len(),
                sin.len()
            )));
        }
        Ok(Rope { cos: cos.to_vec(), sin: sin.to_vec(), pairs: cos.len() / tokens })
    }

    fn rms_norm(&self, x: &Tensor, weight: &Tensor, eps: f64, rope: Option<&Rope>) -> Result<Tensor> {
        let (rows, features) = x.dims2()?;
        if rope.is_some_and(|r| r.cos.len() != rows * r.pairs || features % (2 * r.pairs) != 0) {
            return Err(Error::Internal(format!(
                "a rotary embedding that does not fit [{rows}, {features}]"
            )));
        }
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

/// A vector of as many elements as `x` `[rows, features]` has features.
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
