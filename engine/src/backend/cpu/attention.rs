//! Attention in blocks of query rows, so that the scores of a long sequence never exist all at once.

use candle_core::Tensor;
use rayon::prelude::*;

use super::{tensor, update, with_values};
use crate::Result;
use crate::backend::sequence::{Attention, KeyValue};

/// The number of scores at a time: 8 MB, but at least [`MIN_ROWS`] rows of them, because fewer slow the products down.
const SCORES: usize = 1 << 21;
const MIN_ROWS: usize = 128;
/// The number of values that are summed up in order. Padding makes hundreds of keys equal, and the rounding of a long
/// sum of equal values goes in one direction.
const SUMMANDS: usize = 128;
/// The number of independent sums and maxima in a row, so that they fill vector registers.
const LANES: usize = 16;

/// Computes [`Attention`].
pub(super) fn attention(a: &Attention<'_, Tensor>) -> Result<Tensor> {
    let [rows, features, _] = a.sizes(Tensor::dims)?;
    let mut out = vec![0.0; rows * features];
    for set in a.sets {
        add_set(a, set, &mut out)?;
    }
    tensor(out, &[rows, features])
}

/// Adds the result of one set of keys and values to `out` `[rows, features]`.
fn add_set(a: &Attention<'_, Tensor>, set: &KeyValue<'_, Tensor>, out: &mut [f32]) -> Result<()> {
    let (rows, features) = a.q.dims2()?;
    let keys = set.k.dims2()?.0;
    let offsets = rows + keys - 1;
    let bias = set.bias.map(|bias| with_values(bias, |bias| Ok(bias.to_vec()))).transpose()?;
    let width = features / a.heads;
    let extra = (set.copies as f32).ln();
    let block = (SCORES / keys).max(MIN_ROWS);
    for head in 0..a.heads {
        let columns = |x: &Tensor| x.narrow(1, head * width, width);
        let (k, v) = (columns(set.k)?.t()?, columns(set.v)?);
        let bias = bias.as_ref().map(|bias| &bias[head * offsets..][..offsets]);
        for (i, out) in out.chunks_mut(block * features).enumerate() {
            let first = i * block;
            let count = out.len() / features;
            let scores = columns(&a.q.narrow(0, first, count)?)?.matmul(&k)?;
            update(&scores, |scores| {
                scores.par_chunks_exact_mut(keys).enumerate().for_each(|(r, scores)| {
                    let bias = bias.map(|bias| &bias[rows - 1 - (first + r)..][..keys]);
                    softmax(scores, a.scale as f32, bias, extra);
                });
            })?;
            for start in (0..keys).step_by(SUMMANDS) {
                let len = SUMMANDS.min(keys - start);
                with_values(&scores.narrow(1, start, len)?.matmul(&v.narrow(0, start, len)?)?, |values| {
                    for (out, values) in out.chunks_exact_mut(features).zip(values.chunks_exact(width)) {
                        out[head * width..][..width].iter_mut().zip(values).for_each(|(out, v)| *out += v);
                    }
                    Ok(())
                })?;
            }
        }
    }
    Ok(())
}

/// Computes softmax(scale * x + bias) in place, after `extra` is added to the last one.
fn softmax(x: &mut [f32], scale: f32, bias: Option<&[f32]>, extra: f32) {
    match bias {
        Some(bias) => x.iter_mut().zip(bias).for_each(|(x, b)| *x = *x * scale + b),
        None => x.iter_mut().for_each(|x| *x *= scale),
    }
    if let Some(last) = x.last_mut() {
        *last += extra;
    }
    let max = fold(x, f32::NEG_INFINITY, |max, x| if x > max { x } else { max });
    for x in x.iter_mut() {
        *x = exp(*x - max);
    }
    let factor = 1.0 / fold(x, 0.0, |sum, x| sum + x);
    for x in x {
        *x *= factor;
    }
}

/// Folds with `f`, whose result must not depend on the order, in as many lanes as suit vector registers.
fn fold(x: &[f32], init: f32, f: impl Fn(f32, f32) -> f32) -> f32 {
    let mut lanes = [init; LANES];
    let (chunks, rest) = x.as_chunks::<LANES>();
    for chunk in chunks {
        for (lane, x) in lanes.iter_mut().zip(chunk) {
            *lane = f(*lane, *x);
        }
    }
    rest.iter().chain(&lanes).fold(init, |total, x| f(total, *x))
}

/// Returns e^x for x <= 0 within 2 units in the last place, without branches or calls, so that loops over it vectorise.
/// Below -87 it stays at e^-87, about 1e-38.
#[inline(always)]
fn exp(x: f32) -> f32 {
    // ln 2 is split in two parts; the first has so few bits that its product with n is exact.
    const LN2_HIGH: f32 = 0.693_359_4;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    // Adding 1.5 * 2^23 leaves no bits for a fraction: the nearest integer then stands in the low bits.
    const ROUND: f32 = 12_582_912.0;
    // The comparison is not `max`, which would hide a NaN.
    let x = if x < -87.0 { -87.0 } else { x };
    let shifted = x * std::f32::consts::LOG2_E + ROUND;
    let n = shifted - ROUND;
    let r = (x - n * LN2_HIGH) - n * LN2_LOW;
    // This is Taylor's series; |r| <= ln(2)/2, so that the first omitted term is 5e-9.
    let tail = 1.0 / 24.0 + r * (1.0 / 120.0 + r * (1.0 / 720.0 + r * (1.0 / 5040.0)));
    let y = 1.0 + (r + r * r * (0.5 + r * (1.0 / 6.0 + r * tail)));
    // The exponent bits give 2^n; the shift drops all of `shifted` but n.
    y * f32::from_bits(shifted.to_bits().wrapping_add(127) << 23)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_within_two_units_in_the_last_place() {
        for i in 0..=8_700_000u32 {
            let x = -(i as f32) * 1e-5;
            let exact = f64::from(x).exp();
            let error = (f64::from(exp(x)) - exact).abs() / exact;
            assert!(error <= 2.0 * f64::from(f32::EPSILON), "{x}: {error:e}");
        }
        assert!((exp(-1e30) - 1.6e-38).abs() < 1e-39);
        assert!(exp(f32::NAN).is_nan());
        assert_eq!(exp(0.0), 1.0);
    }
}
