//! Linear layers, with weights as f32 or as 8-bit values with a scale for each row.

use candle_core::Tensor;
use candle_core::cpu::erf::erf_f32;
use rayon::prelude::*;

use super::{tensor, update, with_values};
use crate::backend::loading::LinearWeights;
use crate::backend::sequence::{Activation, Epilogue};
use crate::weights::{Encoding, Granularity, Matrix, e4m3};
use crate::{Error, Result};

/// A linear layer's weight and bias.
#[derive(Debug)]
pub struct Linear {
    /// The values, `[out, in]`; without `scale` they are the real ones.
    weight: Tensor,
    /// With a scale, `[out]`, the inputs are rounded to 8 bits and the sums are multiplied with it.
    scale: Option<Vec<f32>>,
    /// The bias, `[out]`.
    bias: Option<Vec<f32>>,
}

impl Linear {
    /// Returns a layer of weights. `simulate_fp8` keeps 8-bit values apart from their scales, if every layer has one
    /// for each row.
    pub(super) fn load(weights: &LinearWeights<'_>, simulate_fp8: bool) -> Result<Self> {
        let by_row = |m: &Matrix<'_>| matches!(m.encoding, Encoding::Scaled { by: Granularity::Row, .. });
        let quantised = simulate_fp8 && weights.matrices().all(by_row);
        let mut weight = Vec::with_capacity(weights.outputs() * weights.inputs());
        let mut scale = Vec::new();
        for matrix in weights.matrices() {
            weight.append(&mut if quantised {
                scale.extend_from_slice(&matrix.scales);
                matrix.numbers()
            } else {
                matrix.to_f32()
            });
        }
        let weight = tensor(weight, &[weights.outputs(), weights.inputs()])?;
        Ok(Self { weight, scale: quantised.then_some(scale), bias: weights.bias() })
    }

    /// Returns `residual + gate * activation(x W^T + b)`, with a gate `[out]`, `[1, out]` or `[rows, out]`.
    pub(super) fn forward(&self, x: &Tensor, epilogue: &Epilogue<'_, Tensor>) -> Result<Tensor> {
        let (rows, _) = x.dims2()?;
        let out = self.weight.dims2()?.0;
        let rounded = self.scale.as_ref().map(|_| round_rows(x)).transpose()?;
        let (x, row_scales) = match &rounded {
            Some((x, scales)) => (x, Some(scales)),
            None => (x, None),
        };
        let y = x.matmul(&self.weight.t()?)?;

        let gate = epilogue.gate.map(|gate| with_values(gate, |g| Ok(g.to_vec()))).transpose()?;
        if gate.as_ref().is_some_and(|g| g.len() != out && g.len() != rows * out) {
            return Err(Error::Internal(format!("a gate that is neither [{out}] nor [{rows}, {out}]")));
        }
        if epilogue.residual.is_some_and(|r| r.dims() != [rows, out]) {
            return Err(Error::Internal(format!("a residual that is not [{rows}, {out}]")));
        }
        let finish = |residual: Option<&[f32]>| {
            update(&y, |y| {
                y.par_chunks_exact_mut(out).enumerate().for_each(|(r, y)| {
                    if let (Some(scales), Some(columns)) = (row_scales, &self.scale) {
                        y.iter_mut().zip(columns).for_each(|(y, column)| *y = *y * scales[r] * column);
                    }
                    if let Some(bias) = &self.bias {
                        y.iter_mut().zip(bias).for_each(|(y, b)| *y += b);
                    }
                    activate(y, epilogue.activation);
                    if let Some(gate) = &gate {
                        let gate = if gate.len() == out { &gate[..] } else { &gate[r * out..][..out] };
                        y.iter_mut().zip(gate).for_each(|(y, g)| *y *= g);
                    }
                    if let Some(residual) = residual {
                        y.iter_mut().zip(&residual[r * out..]).for_each(|(y, x)| *y += x);
                    }
                });
            })
        };
        match epilogue.residual {
            Some(residual) => with_values(residual, |residual| finish(Some(residual)))?,
            None => finish(None)?,
        }
        Ok(y)
    }
}

/// Applies an activation in place.
fn activate(values: &mut [f32], activation: Activation) {
    let f = match activation {
        Activation::None => return,
        Activation::Silu => silu,
        Activation::GeluTanh => gelu_tanh,
        Activation::GeluErf => gelu_erf,
    };
    for x in values {
        *x = f(*x);
    }
}

fn silu(x: f32) -> f32 {
    x / (1.0 + (-x).exp())
}

/// GELU: Hendrycks and Gimpel, "Gaussian error linear units" (2016).
fn gelu_tanh(x: f32) -> f32 {
    const SQRT_2_PI: f32 = std::f32::consts::FRAC_2_SQRT_PI * std::f32::consts::FRAC_1_SQRT_2;
    let u = SQRT_2_PI * (x + 0.044_715 * x * x * x);
    // This is (1 + tanh u) / 2, without the cancellation for u far below 0.
    x / (1.0 + (-2.0 * u).exp())
}

fn gelu_erf(x: f32) -> f32 {
    0.5 * x * (1.0 + erf_f32(x * std::f32::consts::FRAC_1_SQRT_2))
}

/// Rounds each row to 8 bits and returns the rounded values and the scales. A scale maps the row's largest magnitude to
/// the largest 8-bit value.
fn round_rows(x: &Tensor) -> Result<(Tensor, Vec<f32>)> {
    let (rows, cols) = x.dims2()?;
    let mut scales = vec![0.0; rows];
    let mut rounded = with_values(x, |x| Ok(x.to_vec()))?;
    rounded.par_chunks_exact_mut(cols).zip(&mut scales).for_each(|(row, scale)| {
        let largest = row.iter().fold(0.0f32, |m, v| m.max(v.abs()));
        *scale = largest.max(1e-10) / e4m3::MAX;
        for v in row {
            *v = e4m3::decode(e4m3::encode(*v / *scale));
        }
    });
    Ok((tensor(rounded, &[rows, cols])?, scales))
}
