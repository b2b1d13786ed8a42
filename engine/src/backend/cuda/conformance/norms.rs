//! Norms of rows, as they are and as a product reads them.

use super::linear::weight;
use super::{BF16, Both, Check, FP8, Options, Pair, noise, with};
use crate::Result;
use crate::backend::SequenceOps;
use crate::backend::cpu::Cpu;
use crate::backend::cuda::Cuda;
use crate::backend::sequence::{Epilogue, NormParams, Role};
use crate::profile::Weights;
use crate::weights::DType;

/// Sums of up to a thousand f32, and the roots of their means.
const NORM: f64 = 1e-5;

pub(super) fn check(check: &Check) -> Result<()> {
    for (weights, tolerance) in [(Weights::Bf16, BF16), (Weights::Fp8, FP8)] {
        let cuda = check.open(&with(weights))?;
        let both = Both::new(check, &cuda);
        for (rows, features) in [(1, 16), (3, 80), (72, 256), (5, 1104)] {
            norms(&both, rows, features, weights, tolerance)?;
        }
    }
    let cuda = check.open(&Options::BF16)?;
    let both = Both::new(check, &cuda);
    for (rows, heads, pairs) in [(1, 1, 4), (5, 3, 8), (72, 2, 64)] {
        let features = 2 * heads * pairs;
        let (on_cpu, on_cuda) = rope(&both, rows, pairs)?;
        // Columns of something wider.
        let x = both.slice(&both.noise(&[rows, 3 * features], 1)?, 1, features, features)?;
        let weight = both.noise(&[features], 2)?;
        let y = Pair {
            cpu: both.cpu.rms_norm(&x.cpu, &weight.cpu, 1e-6, Some(&on_cpu))?,
            cuda: cuda.rms_norm(&x.cuda, &weight.cuda, 1e-6, Some(&on_cuda))?,
        };
        both.compare("RMS norm, rotary embedding", format!("{rows}x{heads}x{pairs}"), &y, NORM)?;
    }
    Ok(())
}

/// Each norm through a product, in the form that it reads, and itself.
fn norms(both: &Both<'_>, rows: usize, features: usize, weights: Weights, tolerance: f64) -> Result<()> {
    let (cpu, cuda) = (&both.cpu, both.cuda);
    let x = both.noise(&[rows, features], 1)?;
    let (a, b) = (both.noise(&[1, features], 2)?, both.noise(&[1, features], 3)?);
    let affine = Pair {
        cpu: cpu.layer_norm(&x.cpu, &NormParams::Affine { weight: &a.cpu, bias: &b.cpu }, 1e-6)?,
        cuda: cuda.layer_norm(&x.cuda, &NormParams::Affine { weight: &a.cuda, bias: &b.cuda }, 1e-6)?,
    };
    let modulated = Pair {
        cpu: cpu.layer_norm(&x.cpu, &NormParams::Modulated { shift: &a.cpu, scale: &b.cpu }, 1e-6)?,
        cuda: cuda.layer_norm(&x.cuda, &NormParams::Modulated { shift: &a.cuda, scale: &b.cuda }, 1e-6)?,
    };
    let rms = Pair {
        cpu: cpu.rms_norm(&x.cpu, &a.cpu, 1e-6, None)?,
        cuda: cuda.rms_norm(&x.cuda, &a.cuda, 1e-6, None)?,
    };
    let layers = [(weight(24, features, DType::F32, 5), None)];
    let on_cpu = cpu.load_linear(&layers, Role::Bulk)?;
    let on_cuda = cuda.load_linear(&layers, Role::Bulk)?;
    let through = match weights {
        Weights::Fp8 => "norm to 8-bit product",
        _ => "norm to bf16 product",
    };
    for (name, kind, norm) in
        [("layer norm", "affine", affine), ("layer norm", "modulated", modulated), ("RMS norm", "plain", rms)]
    {
        let read = Pair {
            cpu: cpu.linear(&norm.cpu, &on_cpu, &Epilogue::default())?,
            cuda: cuda.linear(&norm.cuda, &on_cuda, &Epilogue::default())?,
        };
        both.compare(through, format!("{name}, {kind}, {rows}x{features}"), &read, tolerance)?;
        both.compare(name, format!("{kind}, {rows}x{features}"), &norm, NORM)?;
    }
    Ok(())
}

/// Angles without a pattern, on both.
pub(super) fn rope(
    both: &Both<'_>,
    tokens: usize,
    pairs: usize,
) -> Result<(<Cpu as SequenceOps>::Rope, <Cuda as SequenceOps>::Rope)> {
    let angles = noise(tokens * pairs, 8);
    let part = |f: fn(f64) -> f64| -> Vec<f64> { angles.iter().map(|a| f(3.0 * f64::from(*a))).collect() };
    let (cos, sin) = (part(f64::cos), part(f64::sin));
    Ok((both.cpu.load_rope(&cos, &sin, tokens)?, both.cuda.load_rope(&cos, &sin, tokens)?))
}
