//! Each operation of the vocabulary on both backends, at awkward sizes.

use super::{Both, Cuda, Options, Pair, noise, open};
use crate::backend::conv::{ConvEpilogue, ConvOps, Spatial, Step, Time};
use crate::backend::sequence::{Activation, Attention, Epilogue, NormParams, Precision, SequenceOps};
use crate::backend::{Backend, TensorOps};
use crate::profile::{self, AttentionKind, Weights};
use crate::weights::{Component, DType, HostTensor, Matrix, Scale, e4m3};

/// A result that is written as f32 and was computed in it.
const F32: f64 = 2e-6;
/// Products of sums of two bf16 numbers: 2^-16, and the sums of f32.
const SPLIT: f64 = 3e-5;
/// A result rounded to bf16 once, 1.7e-3 in the root mean square.
const ROUNDED: f64 = 2e-3;
/// Both operands and the result rounded to bf16: the root of three times that, and a little.
const BF16: f64 = 4e-3;
/// Queries, keys, values, weights and result rounded.
const ATTENTION: f64 = 6e-3;
/// Both operands rounded to e4m3, by 0.026 in the root mean square.
const FP8: f64 = 0.045;

fn with(weights: Weights) -> Options {
    let precision = profile::Precision { dit: weights, ..Options::BF16.precision };
    Options { precision, ..Options::BF16 }
}

#[test]
fn parts_and_wholes_are_exact() {
    let Some(cuda) = open(&Options::BF16) else { return };
    let both = Both::new(&cuda);
    for shape in [&[5][..], &[3, 7], &[6, 40], &[3, 2, 5, 7], &[16, 3, 4, 6]] {
        let x = both.noise(shape, 1);
        both.compare(&format!("there and back {shape:?}"), &x, 0.0);
        for axis in 0..shape.len() {
            let part = |start, len| Pair {
                cpu: both.cpu.narrow(&x.cpu, axis, start, len).unwrap(),
                cuda: cuda.narrow(&x.cuda, axis, start, len).unwrap(),
            };
            let (head, tail) = (part(0, 1), part(1, shape[axis] - 1));
            both.compare(&format!("narrow {shape:?} {axis}"), &tail, 0.0);
            let whole = Pair {
                cpu: both.cpu.concat(&[&tail.cpu, &head.cpu], axis).unwrap(),
                cuda: cuda.concat(&[&tail.cuda, &head.cuda], axis).unwrap(),
            };
            both.compare(&format!("concat {shape:?} {axis}"), &whole, 0.0);
        }
    }
    let x = both.noise(&[2, 3], 1);
    assert!(cuda.narrow(&x.cuda, 1, 2, 2).is_err() && cuda.narrow(&x.cuda, 2, 0, 1).is_err());
    assert!(cuda.concat(&[&x.cuda, &both.noise(&[2, 4], 1).cuda], 0).is_err());
    assert!(cuda.concat(&[], 0).is_err() && cuda.upload(&[1.0], &[2]).is_err());
}

#[test]
fn sums_are_exact_and_go_from_left_to_right() {
    let Some(cuda) = open(&Options::BF16) else { return };
    let both = Both::new(&cuda);
    for (count, shape) in
        [(1, vec![7]), (2, vec![3, 40]), (8, vec![2, 3, 4, 5]), (9, vec![33]), (17, vec![9])]
    {
        let terms: Vec<Pair> = (0..count).map(|i| both.noise(&shape, i)).collect();
        let factors: Vec<f32> = noise(count as usize, 99);
        let sum = Pair {
            cpu: both
                .cpu
                .combine(&factors.iter().copied().zip(terms.iter().map(|t| &t.cpu)).collect::<Vec<_>>())
                .unwrap(),
            cuda: cuda
                .combine(&factors.iter().copied().zip(terms.iter().map(|t| &t.cuda)).collect::<Vec<_>>())
                .unwrap(),
        };
        both.compare(&format!("a sum of {count}"), &sum, 0.0);
    }
    let (a, b) = (both.noise(&[2], 1), both.noise(&[3], 1));
    assert!(cuda.combine(&[]).is_err() && cuda.combine(&[(1.0, &a.cuda), (1.0, &b.cuda)]).is_err());
    // Elements that do not follow each other.
    let x = both.noise(&[5, 6], 4);
    let part = Pair {
        cpu: both.cpu.combine(&[(2.0, &both.cpu.narrow(&x.cpu, 1, 1, 3).unwrap())]).unwrap(),
        cuda: cuda.combine(&[(2.0, &cuda.narrow(&x.cuda, 1, 1, 3).unwrap())]).unwrap(),
    };
    both.compare("twice a part", &part, 0.0);
}

/// A weight `[rows, cols]` as it lies in files.
fn weight(rows: usize, cols: usize, dtype: DType, seed: u64) -> Matrix<'static> {
    let values = noise(rows * cols, seed);
    let bytes: Vec<u8> = match dtype {
        DType::F32 => values.iter().flat_map(|v| v.to_le_bytes()).collect(),
        DType::F16 => values.iter().flat_map(|v| half::f16::from_f32(*v).to_le_bytes()).collect(),
        DType::Bf16 => values.iter().flat_map(|v| half::bf16::from_f32(*v).to_le_bytes()).collect(),
        DType::F8E4m3 => values.iter().map(|v| e4m3::encode(448.0 * v)).collect(),
    };
    let scales = || (0..rows).map(|i| (1 + i % 5) as f32 / 448.0).collect();
    let scale = (dtype == DType::F8E4m3).then(|| match seed % 2 {
        0 => Scale::PerTensor(1.0 / 448.0),
        _ => Scale::PerRow(scales()),
    });
    Matrix { rows, cols, dtype, bytes: bytes.into(), scale }
}

fn bias(len: usize, seed: u64) -> HostTensor {
    HostTensor { shape: vec![len], data: noise(len, seed) }
}

/// Layers side by side with every epilogue, on every kind of input.
fn linear(
    cuda: &Cuda,
    precision: Precision,
    dtype: DType,
    rows: usize,
    cols: usize,
    outs: &[usize],
    tolerance: f64,
) {
    let both = Both::new(cuda);
    let layers: Vec<_> = outs
        .iter()
        .enumerate()
        .map(|(i, &out)| (weight(out, cols, dtype, i as u64), (i == 0).then(|| bias(out, 7))))
        .collect();
    let on_cpu = both.cpu.load_linear(&layers, precision).unwrap();
    let on_cuda = cuda.load_linear(&layers, precision).unwrap();
    let out: usize = outs.iter().sum();
    let x = both.noise(&[rows, cols], 11);
    let (column, element, residual) =
        (both.noise(&[1, out], 12), both.noise(&[rows, out], 13), both.noise(&[rows, out], 14));
    let cases = [
        ("plain", Activation::None, None, None),
        ("silu", Activation::Silu, None, None),
        ("gelu", Activation::GeluTanh, Some(&element), None),
        ("erf", Activation::GeluErf, Some(&column), None),
        ("gated", Activation::None, Some(&column), Some(&residual)),
        ("both", Activation::Silu, None, Some(&residual)),
    ];
    for (name, activation, gate, residual) in cases {
        let result = Pair {
            cpu: both
                .cpu
                .linear(
                    &x.cpu,
                    &on_cpu,
                    &Epilogue { activation, gate: gate.map(|g| &g.cpu), residual: residual.map(|r| &r.cpu) },
                )
                .unwrap(),
            cuda: cuda
                .linear(
                    &x.cuda,
                    &on_cuda,
                    &Epilogue {
                        activation,
                        gate: gate.map(|g| &g.cuda),
                        residual: residual.map(|r| &r.cuda),
                    },
                )
                .unwrap(),
        };
        let name = format!("linear {precision:?} {dtype:?} {rows}x{cols}x{out} {name}");
        // A gate for each element is rounded to bf16.
        let tolerance = if gate.is_some_and(|g| g.cpu.dims() == [rows, out]) {
            tolerance.max(ROUNDED)
        } else {
            tolerance
        };
        both.compare(&name, &result, tolerance);
    }
    assert!(cuda.linear(&both.noise(&[rows, cols + 8], 1).cuda, &on_cuda, &Epilogue::default()).is_err());
}

#[test]
fn linear_layers_in_bf16() {
    let Some(cuda) = open(&Options::BF16) else { return };
    for dtype in [DType::F32, DType::F16, DType::Bf16, DType::F8E4m3] {
        linear(&cuda, Precision::Compute, dtype, 3, 40, &[24, 16], BF16);
    }
    linear(&cuda, Precision::Compute, DType::Bf16, 1, 16, &[8], BF16);
    linear(&cuda, Precision::Compute, DType::F32, 130, 588, &[264], BF16);
}

#[test]
fn linear_layers_in_8_bits() {
    let Some(cuda) = open(&with(Weights::Fp8)) else { return };
    for dtype in [DType::F32, DType::F16, DType::Bf16, DType::F8E4m3] {
        linear(&cuda, Precision::Compute, dtype, 5, 64, &[24, 16], FP8);
    }
    linear(&cuda, Precision::Compute, DType::Bf16, 130, 272, &[136], FP8);
    // Too odd for 8 bits.
    linear(&cuda, Precision::Compute, DType::F32, 4, 40, &[8], BF16);
}

#[test]
fn linear_layers_that_are_sensitive() {
    let Some(cuda) = open(&Options::BF16) else { return };
    for dtype in [DType::F32, DType::F16, DType::Bf16, DType::F8E4m3] {
        linear(&cuda, Precision::Full, dtype, 3, 40, &[24, 16], SPLIT);
    }
    linear(&cuda, Precision::Full, DType::F32, 17, 588, &[160], SPLIT);
    linear(&cuda, Precision::Full, DType::F32, 1, 256, &[64], SPLIT);
}

#[test]
fn each_network_has_its_own_precision() {
    let precision = profile::Precision { dit: Weights::Fp8, ..Options::BF16.precision };
    let Some(cuda) = open(&Options { precision, ..Options::BF16 }) else { return };
    linear(&cuda.loading(Component::T5), Precision::Compute, DType::F32, 3, 64, &[16], BF16);
    linear(&cuda.loading(Component::Dit), Precision::Full, DType::F32, 3, 64, &[16], SPLIT);
}

#[test]
fn norms_in_the_form_that_the_reader_wants() {
    for (weights, tolerance) in [(Weights::Bf16, BF16), (Weights::Fp8, FP8)] {
        let Some(cuda) = open(&with(weights)) else { return };
        let both = Both::new(&cuda);
        for (rows, features) in [(1, 16), (3, 80), (72, 256), (5, 1104)] {
            let x = both.noise(&[rows, features], 1);
            let [a, b] = [2, 3].map(|seed| both.noise(&[1, features], seed));
            let pairs = [("affine", false), ("modulated", true)];
            let mut norms: Vec<(&str, Pair)> = pairs
                .into_iter()
                .map(|(name, modulated)| {
                    let norm = |a, b| match modulated {
                        true => NormParams::Modulated { shift: a, scale: b },
                        false => NormParams::Affine { weight: a, bias: b },
                    };
                    let on_cuda = match modulated {
                        true => NormParams::Modulated { shift: &a.cuda, scale: &b.cuda },
                        false => NormParams::Affine { weight: &a.cuda, bias: &b.cuda },
                    };
                    let cpu = both.cpu.layer_norm(&x.cpu, &norm(&a.cpu, &b.cpu), 1e-6).unwrap();
                    (name, Pair { cpu, cuda: cuda.layer_norm(&x.cuda, &on_cuda, 1e-6).unwrap() })
                })
                .collect();
            let rms = Pair {
                cpu: both.cpu.rms_norm(&x.cpu, &a.cpu, 1e-6, None).unwrap(),
                cuda: cuda.rms_norm(&x.cuda, &a.cuda, 1e-6, None).unwrap(),
            };
            norms.push(("rms", rms));
            let layers = [(weight(24, features, DType::F32, 5), None)];
            let layer = (
                both.cpu.load_linear(&layers, Precision::Compute).unwrap(),
                cuda.load_linear(&layers, Precision::Compute).unwrap(),
            );
            for (name, norm) in norms {
                let read = Pair {
                    cpu: both.cpu.linear(&norm.cpu, &layer.0, &Epilogue::default()).unwrap(),
                    cuda: cuda.linear(&norm.cuda, &layer.1, &Epilogue::default()).unwrap(),
                };
                both.compare(&format!("{name} norm {rows}x{features} in {weights:?}"), &read, tolerance);
                if let super::super::Value::Deferred(deferred) = &norm.cuda.0 {
                    assert_eq!(deferred.forms(), (weights == Weights::Bf16, false, weights == Weights::Fp8));
                }
                both.compare(&format!("{name} norm {rows}x{features} itself"), &norm, 1e-5);
            }
        }
    }
}

/// Angles without a pattern.
fn rope(tokens: usize, pairs: usize) -> (Vec<f64>, Vec<f64>) {
    let angles = noise(tokens * pairs, 8);
    let part = |f: fn(f64) -> f64| angles.iter().map(|a| f(3.0 * f64::from(*a))).collect();
    (part(f64::cos), part(f64::sin))
}

#[test]
fn rms_norms_turn_pairs() {
    let Some(cuda) = open(&Options::BF16) else { return };
    let both = Both::new(&cuda);
    for (rows, heads, pairs) in [(1, 1, 4), (5, 3, 8), (72, 2, 64)] {
        let features = 2 * heads * pairs;
        let (cos, sin) = rope(rows, pairs);
        let tables =
            (both.cpu.load_rope(&cos, &sin, rows).unwrap(), cuda.load_rope(&cos, &sin, rows).unwrap());
        // Columns of something wider.
        let wide = both.noise(&[rows, 3 * features], 1);
        let weight = both.noise(&[features], 2);
        let x = Pair {
            cpu: both.cpu.narrow(&wide.cpu, 1, features, features).unwrap(),
            cuda: cuda.narrow(&wide.cuda, 1, features, features).unwrap(),
        };
        let y = Pair {
            cpu: both.cpu.rms_norm(&x.cpu, &weight.cpu, 1e-6, Some(&tables.0)).unwrap(),
            cuda: cuda.rms_norm(&x.cuda, &weight.cuda, 1e-6, Some(&tables.1)).unwrap(),
        };
        both.compare(&format!("rms norm and rope {rows}x{heads}x{pairs}"), &y, 1e-5);
    }
    let x = both.noise(&[3, 16], 1);
    let (cos, sin) = rope(2, 4);
    let rope = cuda.load_rope(&cos, &sin, 2).unwrap();
    assert!(cuda.rms_norm(&x.cuda, &x.cuda, 1e-6, None).is_err());
    assert!(cuda.rms_norm(&x.cuda, &both.noise(&[16], 1).cuda, 1e-6, Some(&rope)).is_err());
    assert!(cuda.load_rope(&cos, &sin[1..], 2).is_err());
}

struct Case {
    rows: usize,
    keys: usize,
    heads: usize,
    width: usize,
    bias: bool,
    residual: bool,
}

fn attention(cuda: &Cuda, case: &Case, tolerance: f64) {
    let both = Both::new(cuda);
    let &Case { rows, keys, heads, width, .. } = case;
    let features = heads * width;
    let (q, k, v) = (
        both.noise(&[rows, features], 1),
        both.noise(&[keys, features], 2),
        both.noise(&[keys, features], 3),
    );
    let bias = case.bias.then(|| both.noise(&[heads, rows + keys - 1], 4));
    let residual = case.residual.then(|| both.noise(&[rows, features], 5));
    let scale = (width as f64).powf(-0.5);
    let y = Pair {
        cpu: both
            .cpu
            .attention(&Attention {
                q: &q.cpu,
                k: &k.cpu,
                v: &v.cpu,
                heads,
                scale,
                bias: bias.as_ref().map(|b| &b.cpu),
                residual: residual.as_ref().map(|r| &r.cpu),
            })
            .unwrap(),
        cuda: cuda
            .attention(&Attention {
                q: &q.cuda,
                k: &k.cuda,
                v: &v.cuda,
                heads,
                scale,
                bias: bias.as_ref().map(|b| &b.cuda),
                residual: residual.as_ref().map(|r| &r.cuda),
            })
            .unwrap(),
    };
    both.compare(&format!("attention {rows}x{keys}x{heads}x{width}"), &y, tolerance);
}

#[test]
fn attention_of_all_kinds() {
    let options = Options { long_context: 100, ..Options::BF16 };
    let Some(cuda) = open(&options) else { return };
    for (keys, width) in [(1, 128), (77, 128), (130, 128), (9, 16), (77, 80), (70, 384)] {
        for (bias, residual) in [(false, false), (true, false), (false, true), (true, true)] {
            attention(&cuda, &Case { rows: 67, keys, heads: 2, width, bias, residual }, ATTENTION);
        }
    }
    attention(&cuda, &Case { rows: 1, keys: 1, heads: 1, width: 8, bias: true, residual: false }, ATTENTION);
    drop(cuda);
    // Values of equal size cancel in a mean over many keys, and the rounding of 8 bits does not: 0.05 on white noise.
    let Some(cuda) = open(&Options { attention: AttentionKind::EightBit, ..options }) else { return };
    for (rows, keys, residual) in [(72, 130, false), (100, 200, true), (3, 100, false)] {
        attention(&cuda, &Case { rows, keys, heads: 2, width: 128, bias: false, residual }, 0.06);
    }
    attention(
        &cuda,
        &Case { rows: 3, keys: 99, heads: 2, width: 128, bias: false, residual: false },
        ATTENTION,
    );
}

/// As the `DiT` has it: text, then picture, from normed queries.
#[test]
fn attentions_that_become_one_kernel() {
    let Some(cuda) = open(&Options { long_context: 100, ..Options::BF16 }) else { return };
    let both = Both::new(&cuda);
    let (rows, heads, features) = (72, 2, 256);
    let scale = 128f64.powf(-0.5);
    let [x, w] = [both.noise(&[rows, features], 1), both.noise(&[features], 2)];
    let q = Pair {
        cpu: both.cpu.rms_norm(&x.cpu, &w.cpu, 1e-6, None).unwrap(),
        cuda: cuda.rms_norm(&x.cuda, &w.cuda, 1e-6, None).unwrap(),
    };
    let sets = [(40, 3), (33, 4)]
        .map(|(keys, seed)| [both.noise(&[keys, features], seed), both.noise(&[keys, features], 10 * seed)]);
    let mut last: Option<Pair> = None;
    for [k, v] in &sets {
        let [on_cpu, on_cuda] = [0, 1].map(|_| last.clone());
        last = Some(Pair {
            cpu: both
                .cpu
                .attention(&Attention {
                    q: &q.cpu,
                    k: &k.cpu,
                    v: &v.cpu,
                    heads,
                    scale,
                    bias: None,
                    residual: on_cpu.as_ref().map(|p| &p.cpu),
                })
                .unwrap(),
            cuda: cuda
                .attention(&Attention {
                    q: &q.cuda,
                    k: &k.cuda,
                    v: &v.cuda,
                    heads,
                    scale,
                    bias: None,
                    residual: on_cuda.as_ref().map(|p| &p.cuda),
                })
                .unwrap(),
        });
        if let Some(before) = on_cuda
            && let super::super::Value::Deferred(deferred) = &before.cuda.0
        {
            assert_eq!(
                deferred.forms(),
                (false, false, false),
                "the first attention was computed on its own"
            );
        }
    }
    both.compare("text and picture", &last.unwrap(), ATTENTION);
}

/// As the `DiT` has it: both norms in one launch, and where they come from if nobody else has that.
#[test]
fn self_attention_with_its_norms() {
    let Some(cuda) = open(&Options { long_context: 100, ..Options::BF16 }) else { return };
    let both = Both::new(&cuda);
    let (rows, heads, features) = (72, 2, 256);
    let scale = 128f64.powf(-0.5);
    let w = both.noise(&[features], 2);
    let (cos, sin) = rope(rows, 64);
    let tables = (both.cpu.load_rope(&cos, &sin, rows).unwrap(), cuda.load_rope(&cos, &sin, rows).unwrap());
    let qkv = both.noise(&[rows, 3 * features], 5);
    let part = |i| Pair {
        cpu: both.cpu.narrow(&qkv.cpu, 1, i * features, features).unwrap(),
        cuda: cuda.narrow(&qkv.cuda, 1, i * features, features).unwrap(),
    };
    let normed = |x: Pair| Pair {
        cpu: both.cpu.rms_norm(&x.cpu, &w.cpu, 1e-6, Some(&tables.0)).unwrap(),
        cuda: cuda.rms_norm(&x.cuda, &w.cuda, 1e-6, Some(&tables.1)).unwrap(),
    };
    let (q, k, v) = (normed(part(0)), normed(part(1)), part(2));
    let y = Pair {
        cpu: both
            .cpu
            .attention(&Attention {
                q: &q.cpu,
                k: &k.cpu,
                v: &v.cpu,
                heads,
                scale,
                bias: None,
                residual: None,
            })
            .unwrap(),
        cuda: cuda
            .attention(&Attention {
                q: &q.cuda,
                k: &k.cuda,
                v: &v.cuda,
                heads,
                scale,
                bias: None,
                residual: None,
            })
            .unwrap(),
    };
    // Somebody else has `qkv`: its rows are as they were.
    both.compare("self-attention with its norms", &y, ATTENTION);
    both.compare("  and what they are the norms of", &part(0), 0.0);

    // All but the attention is let go of: the norms overwrite what a product gave, in bf16.
    let layers = [(weight(3 * features, 64, DType::F32, 1), None)];
    let (on_cpu, on_cuda) = (
        both.cpu.load_linear(&layers, Precision::Compute).unwrap(),
        cuda.load_linear(&layers, Precision::Compute).unwrap(),
    );
    let x = both.noise(&[rows, 64], 6);
    let y = {
        let qkv = Pair {
            cpu: both.cpu.linear(&x.cpu, &on_cpu, &Epilogue::default()).unwrap(),
            cuda: cuda.linear(&x.cuda, &on_cuda, &Epilogue::default()).unwrap(),
        };
        let part = |i| Pair {
            cpu: both.cpu.narrow(&qkv.cpu, 1, i * features, features).unwrap(),
            cuda: cuda.narrow(&qkv.cuda, 1, i * features, features).unwrap(),
        };
        let (q, k, v) = (normed(part(0)), normed(part(1)), part(2));
        Pair {
            cpu: both
                .cpu
                .attention(&Attention {
                    q: &q.cpu,
                    k: &k.cpu,
                    v: &v.cpu,
                    heads,
                    scale,
                    bias: None,
                    residual: None,
                })
                .unwrap(),
            cuda: cuda
                .attention(&Attention {
                    q: &q.cuda,
                    k: &k.cuda,
                    v: &v.cuda,
                    heads,
                    scale,
                    bias: None,
                    residual: None,
                })
                .unwrap(),
        }
    };
    let before = cuda.usage()[1].used;
    cuda.peak_memory();
    both.compare("self-attention in place", &y, 2.0 * ATTENTION);
    assert!(cuda.usage()[1].peak < before + 2 * (2 * rows * features), "the norms were written elsewhere");
    // What it read was as large as three of it.
    assert_eq!(before - cuda.usage()[1].used, 2 * rows * 2 * features);
}

#[test]
fn patches_are_exact() {
    let Some(cuda) = open(&Options::BF16) else { return };
    let both = Both::new(&cuda);
    for [c, t, h, w] in [[1, 1, 2, 2], [36, 3, 8, 12], [5, 2, 6, 10], [16, 1, 2, 514]] {
        let x = both.noise(&[c, t, h, w], 1);
        let tokens = Pair { cpu: both.cpu.patchify(&x.cpu).unwrap(), cuda: cuda.patchify(&x.cuda).unwrap() };
        both.compare(&format!("patchify {c} {t} {h} {w}"), &tokens, 0.0);
        let x = Pair {
            cpu: both.cpu.unpatchify(&tokens.cpu, [t, h, w]).unwrap(),
            cuda: cuda.unpatchify(&tokens.cuda, [t, h, w]).unwrap(),
        };
        both.compare(&format!("unpatchify {c} {t} {h} {w}"), &x, 0.0);
    }
    assert!(cuda.patchify(&both.noise(&[1, 1, 3, 2], 1).cuda).is_err());
}

fn convolution(
    both: &Both<'_>,
    io: [usize; 2],
    kernel: [usize; 3],
    parts: &[usize],
    past: usize,
    size: [usize; 2],
    step: Step,
) {
    let cuda = both.cuda;
    let [inputs, outputs] = io;
    let [kt, kh, kw] = kernel;
    let shape = match kt {
        1 => vec![outputs, inputs, kh, kw],
        _ => vec![outputs, inputs, kt, kh, kw],
    };
    let weight = HostTensor { data: noise(shape.iter().product(), 1), shape };
    let layer = (
        both.cpu.load_conv(weight.clone(), bias(outputs, 2)).unwrap(),
        cuda.load_conv(weight, bias(outputs, 2)).unwrap(),
    );
    let [h, w] = size;
    let parts: Vec<Pair> = parts
        .iter()
        .enumerate()
        .map(|(i, &frames)| both.noise(&[inputs, frames, h, w], 3 + i as u64))
        .collect();
    let run = |residual: Option<&Pair>, norm: Option<&Pair>| Pair {
        cpu: both
            .cpu
            .conv(
                &parts.iter().map(|p| &p.cpu).collect::<Vec<_>>(),
                past,
                &layer.0,
                step,
                &ConvEpilogue { residual: residual.map(|r| &r.cpu), norm: norm.map(|n| &n.cpu) },
            )
            .unwrap(),
        cuda: cuda
            .conv(
                &parts.iter().map(|p| &p.cuda).collect::<Vec<_>>(),
                past,
                &layer.1,
                step,
                &ConvEpilogue { residual: residual.map(|r| &r.cuda), norm: norm.map(|n| &n.cuda) },
            )
            .unwrap(),
    };
    let name = format!("conv {io:?} {kernel:?} {size:?} {step:?}");
    let plain = run(None, None);
    both.compare(&name, &plain, BF16);
    let shape = both.cpu.shape(&plain.cpu);
    if step.time != Time::Double && shape[0] % 8 == 0 {
        let residual = both.noise(&shape, 9);
        both.compare("  with a residual", &run(Some(&residual), None), BF16);
        let gamma = both.noise(&[shape[0]], 10);
        both.compare("  with a norm", &run(None, Some(&gamma)), 2.0 * BF16);
        both.compare("  with both", &run(Some(&residual), Some(&gamma)), 2.0 * BF16);
    }
    // What one convolution wrote is what another one reads.
    let again = HostTensor { shape: vec![8, shape[0], 1, 1], data: noise(8 * shape[0], 20) };
    let layer = (
        both.cpu.load_conv(again.clone(), bias(8, 21)).unwrap(),
        cuda.load_conv(again, bias(8, 21)).unwrap(),
    );
    let none = || ConvEpilogue { residual: None, norm: None };
    let end = ConvEpilogue { residual: None, norm: None };
    let then = Pair {
        cpu: both.cpu.conv(&[&plain.cpu], 0, &layer.0, Step::default(), &none()).unwrap(),
        cuda: cuda.conv(&[&plain.cuda], 0, &layer.1, Step::default(), &end).unwrap(),
    };
    both.compare("  and another", &then, 1.5 * BF16);
}

#[test]
fn convolutions_of_all_steps() {
    let Some(cuda) = open(&Options::BF16) else { return };
    let both = Both::new(&cuda);
    let same = Step::default();
    let step = |spatial, time| Step { spatial, time };
    for (io, size) in [([3, 8], [3, 7]), ([8, 3], [9, 10]), ([16, 32], [5, 6]), ([24, 96], [4, 4])] {
        convolution(&both, io, [3, 3, 3], &[1], 0, size, same);
        convolution(&both, io, [3, 3, 3], &[1, 1, 2], 2, size, same);
        convolution(&both, io, [1, 1, 1], &[2], 0, size, same);
        convolution(&both, io, [1, 3, 3], &[2], 0, size, step(Spatial::Double, Time::Same));
        convolution(&both, io, [3, 1, 1], &[1, 4], 1, size, step(Spatial::Same, Time::Halve));
    }
    convolution(&both, [16, 192], [3, 3, 3], &[2], 0, [4, 5], same);
    convolution(&both, [8, 16], [1, 3, 3], &[2], 0, [4, 6], step(Spatial::Halve, Time::Same));
    let double = step(Spatial::Same, Time::Double);
    convolution(&both, [32, 64], [3, 1, 1], &[2], 0, [3, 5], double);
    convolution(&both, [32, 64], [3, 1, 1], &[2, 1], 2, [3, 5], double);
    convolution(&both, [8, 128], [3, 1, 1], &[1, 2], 1, [3, 5], double);
    // Nine parts are more than a launch takes.
    convolution(&both, [8, 16], [3, 3, 3], &[1; 9], 2, [3, 4], same);
}

#[test]
fn norms_and_attention_over_voxels() {
    let Some(cuda) = open(&Options::BF16) else { return };
    let both = Both::new(&cuda);
    for channels in [8, 32, 96] {
        let (x, gamma) = (both.noise(&[channels, 2, 3, 5], 1), both.noise(&[channels], 2));
        for silu in [false, true] {
            let y = Pair {
                cpu: both.cpu.channel_norm(&x.cpu, &gamma.cpu, silu).unwrap(),
                cuda: cuda.channel_norm(&x.cuda, &gamma.cuda, silu).unwrap(),
            };
            both.compare(&format!("channel norm {channels} {silu}"), &y, BF16);
        }
        let qkv = both.noise(&[3 * channels, 3, 5, 7], 3);
        let y = Pair {
            cpu: both.cpu.frame_attention(&qkv.cpu).unwrap(),
            cuda: cuda.frame_attention(&qkv.cuda).unwrap(),
        };
        both.compare(&format!("frame attention {channels}"), &y, ATTENTION);
    }
}

#[test]
fn parts_of_volumes_are_volumes() {
    let Some(cuda) = open(&Options::BF16) else { return };
    let both = Both::new(&cuda);
    let id = |channels: usize| {
        let mut data = vec![0.0; channels * channels];
        (0..channels).for_each(|i| data[i * channels + i] = 1.0);
        let weight = HostTensor { shape: vec![channels, channels, 1, 1], data };
        (weight, HostTensor { shape: vec![channels], data: vec![0.0; channels] })
    };
    // As a convolution leaves them, in f32 and in bf16.
    for channels in [3, 16, 24] {
        let x = both.noise(&[channels, 3, 4, 6], 1);
        let (weight, bias) = id(channels);
        let layer = cuda.load_conv(weight, bias).unwrap();
        let made = cuda.conv(&[&x.cuda], 0, &layer, Step::default(), &ConvEpilogue::default()).unwrap();
        let x = Pair { cpu: x.cpu, cuda: made };
        for (axis, start, len) in [(0, 1, 2), (1, 1, 2), (1, 2, 1), (2, 1, 3), (3, 2, 3)] {
            let part = Pair {
                cpu: both.cpu.narrow(&x.cpu, axis, start, len).unwrap(),
                cuda: cuda.narrow(&x.cuda, axis, start, len).unwrap(),
            };
            both.compare(&format!("a part of {channels} channels, axis {axis}"), &part, ROUNDED);
            let whole = Pair {
                cpu: both.cpu.concat(&[&part.cpu, &x.cpu], axis).unwrap(),
                cuda: cuda.concat(&[&part.cuda, &x.cuda], axis).unwrap(),
            };
            both.compare("  and with the whole", &whole, ROUNDED);
            let (weight, bias) = id(both.cpu.shape(&part.cpu)[0]);
            let layer = cuda.load_conv(weight, bias).unwrap();
            let again =
                cuda.conv(&[&part.cuda], 0, &layer, Step::default(), &ConvEpilogue::default()).unwrap();
            both.compare("  through a convolution", &Pair { cpu: part.cpu, cuda: again }, ROUNDED);
        }
    }
}

#[test]
fn tiles_fade_into_each_other() {
    let Some(cuda) = open(&Options::BF16) else { return };
    let both = Both::new(&cuda);
    for (axis, left, right, extent) in [
        (2, [3, 2, 6, 8], [3, 2, 5, 8], 4),
        (3, [3, 2, 6, 8], [3, 2, 6, 5], 5),
        (2, [3, 1, 4, 4], [3, 1, 4, 4], 0),
    ] {
        let (before, after) = (both.noise(&left, 1), both.noise(&right, 2));
        let y = Pair {
            cpu: both.cpu.fade(&before.cpu, &after.cpu, axis, extent).unwrap(),
            cuda: cuda.fade(&before.cuda, &after.cuda, axis, extent).unwrap(),
        };
        both.compare(&format!("fade {axis} over {extent}"), &y, F32);
        both.compare("  and what it was", &after, 0.0);
    }
}
