//! Linear layers, with weights as f32 or as 8-bit values with a scale for each row.

use candle_core::Tensor;
use candle_core::cpu::erf::erf_f32;
use rayon::prelude::*;

use super::rounding::Rounding;
use super::{tensor, update, with_values};
use crate::backend::loading::{LinearWeights, Role};
use crate::backend::sequence::{Activation, Epilogue};
use crate::weights::{Encoding, Granularity, Matrix};
use crate::{Error, Result};
use animd_protocol::plan::network::ROTATED;

/// A linear layer's weight and bias.
#[derive(Debug)]
pub struct Linear {
    /// The values, `[out, in]`; without `rounding` they are the real ones.
    weight: Tensor,
    /// How inputs are rounded, and the factor of each output's sum, `[out]`.
    rounding: Option<(Rounding, Vec<f32>)>,
    /// The bias, `[out]`.
    bias: Option<Vec<f32>>,
}

impl Linear {
    /// Returns a layer of weights. `simulate` keeps 8-bit values apart from their scales.
    pub(super) fn load(weights: &LinearWeights<'_>, simulate: Option<Rounding>, role: Role) -> Result<Self> {
        let (outputs, inputs) = (weights.outputs(), weights.inputs());
        let by_row = |m: &Matrix<'_>| matches!(m.encoding, Encoding::Scaled { by: Granularity::Row, .. });
        let rounding = simulate.filter(|rounding| match rounding {
            Rounding::Fp8 => weights.matrices().all(by_row),
            // The GPU computes sensitive and odd layers in more bits.
            Rounding::Int8 => role == Role::Bulk && inputs.is_multiple_of(ROTATED),
        });
        let stored = rounding == Some(Rounding::Fp8);
        let mut weight = Vec::with_capacity(outputs * inputs);
        let mut scales = Vec::new();
        for matrix in weights.matrices() {
            weight.append(&mut if stored {
                scales.extend_from_slice(&matrix.scales);
                matrix.numbers()
            } else {
                matrix.to_f32()
            });
        }
        if rounding == Some(Rounding::Int8) {
            scales = Rounding::Int8.round(&mut weight, inputs);
        }
        let weight = tensor(weight, &[outputs, inputs])?;
        Ok(Self { weight, rounding: rounding.map(|rounding| (rounding, scales)), bias: weights.bias() })
    }

    /// Returns `residual + gate * activation(x W^T + b)`, with a gate `[out]`, `[1, out]` or `[rows, out]`.
    pub(super) fn forward(&self, x: &Tensor, epilogue: &Epilogue<'_, Tensor>) -> Result<Tensor> {
        let (rows, _) = x.dims2()?;
        let out = self.weight.dims2()?.0;
        let rounded = self.rounding.as_ref().map(|(rounding, _)| round_rows(x, *rounding)).transpose()?;
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
                    if let (Some(scales), Some((_, columns))) = (row_scales, &self.rounding) {
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

/// Rounds each row to 8 bits and returns the rounded values and the scales.
fn round_rows(x: &Tensor, rounding: Rounding) -> Result<(Tensor, Vec<f32>)> {
    let (rows, cols) = x.dims2()?;
    let mut rounded = with_values(x, |x| Ok(x.to_vec()))?;
    let scales = rounding.round(&mut rounded, cols);
    Ok((tensor(rounded, &[rows, cols])?, scales))
}
