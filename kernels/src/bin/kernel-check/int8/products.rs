//! Matrix products of whole numbers, and linear layers whose rows and weights are quantised.

use std::sync::Arc;

use animd_kernels::cuda::cudarc::driver::CudaStream;
use animd_kernels::cuda::{
    Activation, Element, Epilogue, Gemm, Int8Rows, Norms, Operands, Typed, rotation_group,
};
use half::bf16;

use super::super::bench::{BF16_ROUNDING, Input, Output, by_rows, verdict};
use super::super::gemm::{Addends, Follows, activate};
use super::super::{Result, mix, normal};
use super::{BF16, F32, INT8};

pub fn all(gemm: &Gemm, stream: &Arc<CudaStream>, quick: bool) -> Result<bool> {
    // Rows, columns, inner, elements between rows. One shape has more than one band of rows of tiles; the last two have
    // the model's lengths of sums.
    let shapes = [
        (1, 8, 16, 0),
        (1, 5120, 256, 0),
        (127, 64, 144, 16),
        (193, 264, 80, 0),
        (257, 520, 1280, 32),
        (64, 256, 64, 0),
        (3200, 264, 80, 0),
        (300, 512, 5120, 0),
        (5000, 2056, 192, 0),
        (70, 72, 13_824, 0),
    ];
    let mut good = true;
    for (i, shape) in shapes.into_iter().enumerate() {
        if quick && shape.0 * shape.1 * shape.2 > 200_000_000 {
            continue;
        }
        for (j, follows) in Follows::ALL.into_iter().enumerate() {
            // One shape is checked with all epilogues, the others with two or three.
            if i == 3 || j == 1 || j % shapes.len() == i {
                for output in [BF16, F32] {
                    good &= product(gemm, stream, shape, follows, output)?;
                }
            }
        }
    }
    Ok(good)
}

/// Returns whole numbers from -127 to 127, or with `seed` 0 only the greatest.
pub fn codes(count: usize, seed: u64) -> Vec<f32> {
    let code = |i: usize| (mix((seed << 40) ^ i as u64) % 255) as f32 - 127.0;
    (0..count).map(|i| if seed == 0 { 127.0 } else { code(i) }).collect()
}

fn product(
    gemm: &Gemm,
    stream: &Arc<CudaStream>,
    (rows, columns, inner, gap): (usize, usize, usize, usize),
    follows: Follows,
    output: Element,
) -> Result<bool> {
    // The longest sums are as great as they can be.
    let seed = if inner == 13_824 { 0 } else { 110 };
    let a = Input::new(stream, &codes(rows * inner, seed), inner, gap, INT8)?;
    let b = Input::new(stream, &codes(columns * inner, 2 * seed), inner, gap, INT8)?;
    // With these scales results are about 1, where activations bend.
    let scales = |count, seed, factor: f32| -> Vec<f32> {
        normal(count, seed).into_iter().map(|x| (x.abs() + 0.5) * factor).collect()
    };
    let a_scale = Input::new(stream, &scales(rows, 112, 1.0), rows, 0, F32)?;
    let factor = 1.0 / (5400.0 * (inner as f32).sqrt());
    let b_scale = Input::new(stream, &scales(columns, 113, factor), columns, 0, F32)?;
    let addends = Addends::random(stream, [rows, columns, gap], output, 114)?;
    let Addends { bias, gate, gates, residual } = &addends;
    let operands = Operands::Int8 {
        a: a.rows(stream),
        a_scale: a_scale.at(stream),
        b: b.rows(stream),
        b_scale: b_scale.at(stream),
    };
    let epilogue = follows.epilogue(stream, &addends);
    let run = || -> Result<Vec<f64>> {
        let to = Output::new(stream, [rows, columns, gap], output)?;
        // SAFETY: the buffers have these sizes and live until the copy has waited for the stream.
        unsafe { gemm.run(stream, &operands, inner, &epilogue, to.rows(stream), output)? };
        to.read(stream)
    };
    let (given, again) = (run()?, run()?);

    let whole = |x: &Input| -> Vec<i32> { x.values.iter().map(|x| *x as i32).collect() };
    let (left, right) = (whole(&a), whole(&b));
    let wanted = by_rows(rows, columns, |r, out| {
        let left = &left[r * inner..][..inner];
        for (c, out) in out.iter_mut().enumerate() {
            let right = &right[c * inner..][..inner];
            let sum: i32 = left.iter().zip(right).map(|(a, b)| a * b).sum();
            let bias = if epilogue.bias.is_some() { bias.values[c] as f32 } else { 0.0 };
            // This rounds as the epilogue does.
            let x = (sum as f32 * a_scale.values[r] as f32).mul_add(b_scale.values[c] as f32, bias);
            let x = activate(f64::from(x), epilogue.activation);
            *out = match follows {
                Follows::GateAndResidual => residual.values[r * columns + c] + gate.values[c] * x,
                Follows::Residual => residual.values[r * columns + c] + x,
                Follows::ElementGate => gates.values[r * columns + c] * x,
                _ => x,
            };
            if matches!(follows, Follows::Nothing | Follows::Bias) && output == BF16 {
                *out = bf16::from_f32(*out as f32).to_f64();
            }
        }
    });
    // What follows the sums is f32 arithmetic, whose activations are good to a few units of 2^-24.
    let limit = match (follows, output) {
        (Follows::Nothing | Follows::Bias, _) => 0.0,
        (_, F32) => 1e-6,
        _ => BF16_ROUNDING,
    };
    let name = format!("Int8 {rows}x{columns}x{inner} to {output:?}, {follows:?}");
    Ok(verdict(&name, &given, &again, &wanted, limit))
}

/// Checks a linear layer from bf16 activations and weights, both rotated and quantised here, against the product in
/// f64. `outliers` says how much greater one channel in 32 is than the others.
pub fn linear(
    norms: &Norms,
    gemm: &Gemm,
    stream: &Arc<CudaStream>,
    [rows, columns, inner]: [usize; 3],
    outliers: f32,
) -> Result<bool> {
    let mut values = normal(rows * inner, 120);
    for (i, x) in values.iter_mut().enumerate() {
        *x *= if i % inner % 32 == 5 { outliers } else { 1.0 };
    }
    let x = Input::new(stream, &values, inner, 0, BF16)?;
    let w = Input::random(stream, [columns, inner, 0], BF16, 121)?;
    let group = rotation_group(inner);
    let run = || -> Result<Vec<f64>> {
        let (a, b) =
            (Output::new(stream, [rows, inner, 0], INT8)?, Output::new(stream, [columns, inner, 0], INT8)?);
        let to = Output::new(stream, [rows, columns, 0], F32)?;
        let (a, b) = (a.typed(stream), b.typed(stream));
        let int8 = |y: Typed| Int8Rows { rows: y.rows, scale: y.scale, group };
        let operands = Operands::Int8 { a: a.rows, a_scale: a.scale, b: b.rows, b_scale: b.scale };
        // SAFETY: the buffers have these sizes and live until the output has been read.
        unsafe {
            norms.quantize_int8(stream, x.typed(stream), Activation::None, int8(a), inner)?;
            norms.quantize_int8(stream, w.typed(stream), Activation::None, int8(b), inner)?;
            gemm.run(stream, &operands, inner, &Epilogue::default(), to.rows(stream), F32)?;
        }
        to.read(stream)
    };
    let (given, again) = (run()?, run()?);
    let wanted = by_rows(rows, columns, |r, out| {
        let left = &x.values[r * inner..][..inner];
        for (out, right) in out.iter_mut().zip(w.values.chunks_exact(inner)) {
            *out = left.iter().zip(right).map(|(a, b)| a * b).sum();
        }
    });
    // Two roundings of rows of normal numbers, whose greatest is 4 deviations, in rms: sqrt(2) * 4 / 127 / sqrt(12).
    let name = format!("linear {rows}x{columns}x{inner}, outliers of {outliers}, against f64");
    Ok(verdict(&name, &given, &again, &wanted, 0.0145))
}
