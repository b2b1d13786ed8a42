//! Norms of rows: on their own, as a product reads them, and of the parts of a product.

use super::linear::{bias, weight};
use super::{BF16, Both, Check, FP8, IN_BF16, IN_FP8, IN_INT8, Options, Pair, Read, noise};
use crate::Result;
use crate::backend::cpu::Cpu;
use crate::backend::cuda::Cuda;
use crate::backend::loading::Role;
use crate::backend::sequence::{Activation, Affine, Input, Norm, Projection};
use crate::backend::{Keeping, SequenceOps};
use crate::weights::DType;

/// The tolerance of sums of up to a thousand f32, and of the roots of their means.
const NORM: f64 = 1e-5;

pub(super) fn check(check: &Check) -> Result<()> {
    let cuda = check.open(&Options::default())?;
    let both = |keeping| Both::new(check, &cuda, keeping);
    // Layers and the tolerances of a product and of the parts of one.
    let mut layers = vec![
        (both(IN_BF16), "norm to bf16 product", BF16, BF16),
        (both(IN_INT8).simulating_int8(), "norm to int8 product", BF16, BF16),
    ];
    if cuda.has_fp8() {
        layers.push((both(IN_FP8), "norm to fp8 product", FP8, FP8));
    }
    for (both, through, tolerance, _) in &layers {
        for (rows, features) in [(1, 16), (3, 80), (72, 256), (5, 1104)] {
            norms(both, rows, features, through, *tolerance)?;
        }
    }
    layers.push((both(Keeping::F32), "", BF16, BF16));
    for (both, _, _, tolerance) in &layers {
        for (rows, heads, pairs) in [(1, 1, 4), (5, 3, 8), (72, 2, 64)] {
            projections(both, rows, heads, pairs, *tolerance)?;
        }
    }
    Ok(())
}

/// Checks each norm on its own, and through a product in the form that the product reads.
fn norms(both: &Both<'_>, rows: usize, features: usize, through: &'static str, tolerance: f64) -> Result<()> {
    let x = both.noise(&[rows, features], 1)?;
    let (a, b) = (both.noise(&[1, features], 2)?, both.noise(&[1, features], 3)?);
    let layer = both.load(vec![(weight(24, features, DType::F32, 5), None)], Role::Bulk)?;
    let eps = 1e-6;
    let learned = (
        Norm::Layer { affine: Affine::Learned { weight: &a.cpu, bias: &b.cpu }, eps },
        Norm::Layer { affine: Affine::Learned { weight: &a.cuda, bias: &b.cuda }, eps },
    );
    let modulated = (
        Norm::Layer { affine: Affine::Modulated { shift: &a.cpu, scale: &b.cpu }, eps },
        Norm::Layer { affine: Affine::Modulated { shift: &a.cuda, scale: &b.cuda }, eps },
    );
    let rms = (Norm::Rms { weight: &a.cpu, eps }, Norm::Rms { weight: &a.cuda, eps });
    for (name, kind, (on_cpu, on_cuda)) in [
        ("layer norm", "learned", learned),
        ("layer norm", "modulated", modulated),
        ("RMS norm", "plain", rms),
    ] {
        let read = Read { cpu: Input::Normed(&x.cpu, on_cpu), cuda: Input::Normed(&x.cuda, on_cuda) };
        let product = both.linear(read, &layer, Activation::None, [None; 2])?;
        both.compare(through, format!("{name}, {kind}, {rows}x{features}"), &product, tolerance)?;
        let norm = Pair { cpu: both.cpu.norm(&x.cpu, &on_cpu)?, cuda: both.cuda.norm(&x.cuda, &on_cuda)? };
        both.compare(name, format!("{kind}, {rows}x{features}"), &norm, NORM)?;
    }
    Ok(())
}

/// Checks queries, keys and values of one product: with a rotary embedding and without, with two norms, one, and none.
fn projections(both: &Both<'_>, rows: usize, heads: usize, pairs: usize, tolerance: f64) -> Result<()> {
    let features = 2 * heads * pairs;
    let (on_cpu, on_cuda) = rope(both, rows, pairs)?;
    let weights = (0..3).map(|i| (weight(features, 256, DType::F32, i), Some(bias(features, 7 + i))));
    let layer = both.load(weights.collect(), Role::Bulk)?;
    let x = both.noise(&[rows, 256], 6)?;
    let (q, k) = (both.noise(&[features], 2)?, both.noise(&[features], 3)?);
    for (name, count, rotated) in
        [("both, rotated", 2, true), ("both", 2, false), ("queries", 1, false), ("none", 0, false)]
    {
        let norms = [Some(&q).filter(|_| count > 0), Some(&k).filter(|_| count > 1), None];
        let eps = 1e-6;
        let cpu =
            Projection { norms: norms.map(|n| n.map(|n| &n.cpu)), eps, rope: rotated.then_some(&on_cpu) };
        let cuda =
            Projection { norms: norms.map(|n| n.map(|n| &n.cuda)), eps, rope: rotated.then_some(&on_cuda) };
        let cpu = both.cpu.project(Input::Plain(&x.cpu), &layer.cpu, &cpu)?;
        let cuda = both.cuda.project(Input::Plain(&x.cuda), &layer.cuda, &cuda)?;
        for (part, (cpu, cuda)) in ["q", "k", "v"].into_iter().zip(cpu.into_iter().zip(cuda)) {
            let case = format!("{rows}x{heads}x{pairs}, norms: {name}; {part}");
            // A norm over few features enlarges the error of a single one.
            both.compare("projection", case, &Pair { cpu, cuda }, 1.5 * tolerance)?;
        }
    }
    Ok(())
}

/// Returns angles without a pattern, on both backends.
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
