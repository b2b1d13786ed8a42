//! Compares every sequence operation with its definition in f64, at sizes that are multiples of nothing.

use super::{Cpu, Linear, Rounding};
use crate::Result;
use crate::backend::loading::{LinearWeights, Role};
use crate::backend::sequence::{Activation, Affine, Attention, Epilogue, Input, KeyValue, Norm, Projection};
use crate::backend::{Backend, Keeping, Loader, SequenceOps, TensorOps};
use crate::weights::{DType, Encoding, Granularity, HostTensor, Matrix, e4m3};
use animd_protocol::profile::AttentionKind;

type Tensor = <Cpu as TensorOps>::Tensor;

/// The error of one rounding to f32, for values of about 1. A sum of n products in f32 has the root of n times that.
const ROUNDING: f64 = 3e-7;

/// Returns numbers about -1.7 to 1.7 with a variance of about 1, equal for equal `seed`.
fn numbers(seed: u64, len: usize) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        ((state >> 40) as f32 / (1u64 << 24) as f32 - 0.5) * 3.46
    };
    (0..len).map(|_| next()).collect()
}

fn upload(data: &[f32], shape: &[usize]) -> Tensor {
    Cpu::new().upload(data, shape).unwrap()
}

fn wide(data: &[f32]) -> Vec<f64> {
    data.iter().map(|v| f64::from(*v)).collect()
}

#[track_caller]
fn assert_near(got: &Tensor, want: &[f64], tolerance: f64) {
    let got = Cpu::new().download(got).unwrap();
    assert_eq!(got.len(), want.len());
    for (i, (g, w)) in got.iter().zip(want).enumerate() {
        assert!((f64::from(*g) - w).abs() <= tolerance, "element {i} is {g}, not {w}");
    }
}

fn matrix(rows: usize, cols: usize, data: &[f32]) -> Matrix<'static> {
    let bytes: Vec<u8> = data.iter().flat_map(|v| v.to_le_bytes()).collect();
    Matrix::plain(rows, cols, DType::F32, bytes)
}

/// Returns a linear layer made of layers side by side.
fn load(b: &Cpu, layers: Vec<(Matrix<'_>, Option<HostTensor>)>) -> Result<Linear> {
    b.loader(Keeping::F32).linear(&LinearWeights::new(layers)?, Role::Bulk)
}

fn vector(data: &[f32]) -> HostTensor {
    HostTensor { shape: vec![data.len()], data: data.to_vec() }
}

/// Returns x `[rows, cols]` times w `[out, cols]`, transposed.
fn product(x: &[f64], w: &[f64], cols: usize) -> Vec<f64> {
    let dot = |x: &[f64], w: &[f64]| x.iter().zip(w).map(|(x, w)| x * w).sum();
    x.chunks(cols).flat_map(|x| w.chunks(cols).map(move |w| dot(x, w))).collect()
}

fn erf(x: f64) -> f64 {
    // The function is the integral of its derivative, by Simpson's rule.
    let n = 2000;
    let step = x / f64::from(n);
    let f = |i: i32| (-(f64::from(i) * step).powi(2)).exp();
    let sum: f64 = (0..n / 2).map(|i| f(2 * i) + 4.0 * f(2 * i + 1) + f(2 * i + 2)).sum();
    sum * step / 3.0 * 2.0 / std::f64::consts::PI.sqrt()
}

fn activated(x: f64, activation: Activation) -> f64 {
    match activation {
        Activation::None => x,
        Activation::Silu => x / (1.0 + (-x).exp()),
        Activation::GeluTanh => {
            0.5 * x * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x.powi(3))).tanh())
        }
        Activation::GeluErf => 0.5 * x * (1.0 + erf(x / 2f64.sqrt())),
    }
}

#[test]
fn linear_layers_side_by_side_with_every_epilogue() {
    let (rows, cols, outs) = (5, 37, [11, 3]);
    let out = outs[0] + outs[1];
    let x = numbers(1, rows * cols);
    let w = numbers(2, out * cols);
    let bias = numbers(3, outs[0]);
    let residual = numbers(4, rows * out);
    let b = Cpu::new();
    let (w1, w2) = w.split_at(outs[0] * cols);
    let layers = vec![(matrix(outs[0], cols, w1), Some(vector(&bias))), (matrix(outs[1], cols, w2), None)];
    let layer = load(&b, layers).unwrap();

    let mut sums = product(&wide(&x), &wide(&w), cols);
    for row in sums.chunks_mut(out) {
        row.iter_mut().zip(&bias).for_each(|(y, b)| *y += f64::from(*b));
    }
    let x = upload(&x, &[rows, cols]);
    let tolerance = ROUNDING * 37.0; // the largest sums are about 30
    for activation in [Activation::None, Activation::Silu, Activation::GeluTanh, Activation::GeluErf] {
        let y = b.linear(Input::Plain(&x), &layer, &Epilogue { activation, ..Epilogue::default() }).unwrap();
        let want: Vec<f64> = sums.iter().map(|y| activated(*y, activation)).collect();
        assert_near(&y, &want, tolerance);

        for gate_shape in [vec![out], vec![1, out]] {
            let gate = numbers(5, gate_shape.iter().product());
            let want: Vec<f64> = want
                .iter()
                .enumerate()
                .map(|(i, y)| f64::from(residual[i]) + f64::from(gate[i % gate.len()]) * y)
                .collect();
            let (gate, residual) = (upload(&gate, &gate_shape), upload(&residual, &[rows, out]));
            let epilogue = Epilogue { activation, gate: Some(&gate), residual: Some(&residual) };
            assert_near(&b.linear(Input::Plain(&x), &layer, &epilogue).unwrap(), &want, 2.0 * tolerance);
        }
    }
    let odd = upload(&[1.0; 7], &[7]);
    for epilogue in [
        Epilogue { gate: Some(&odd), ..Epilogue::default() },
        Epilogue { residual: Some(&odd), ..Epilogue::default() },
    ] {
        assert!(b.linear(Input::Plain(&x), &layer, &epilogue).is_err());
    }
    assert!(load(&b, vec![]).is_err());
    assert!(load(&b, vec![(matrix(2, 3, &[0.0; 6]), Some(vector(&[0.0; 3])))]).is_err());
    assert!(load(&b, vec![(matrix(2, 3, &[0.0; 5]), None)]).is_err());
}

#[test]
fn quantised_weights_are_stored_times_scale() {
    let (rows, cols, out) = (3, 19, 6);
    let x = numbers(1, rows * cols);
    let codes: Vec<u8> = numbers(2, out * cols).iter().map(|v| e4m3::encode(v * 100.0)).collect();
    let scales: Vec<f32> = numbers(3, out).iter().map(|v| v.abs() / 100.0 + 1e-3).collect();
    let quantised = |by, scales| Matrix {
        rows: out,
        cols,
        encoding: Encoding::Scaled { dtype: DType::F8E4m3, by },
        bytes: codes.clone().into(),
        scales,
    };
    let stored: Vec<f64> = codes.iter().map(|c| f64::from(e4m3::decode(*c))).collect();
    let input = upload(&x, &[rows, cols]);
    for simulate_fp8 in [false, true] {
        let b = Cpu { simulate: simulate_fp8.then_some(Rounding::Fp8) };
        let per_row = load(&b, vec![(quantised(Granularity::Row, scales.clone()), None)]).unwrap();
        let per_tensor = load(&b, vec![(quantised(Granularity::Tensor, vec![0.01]), None)]).unwrap();
        // Inputs are rounded to 8 bits only where the weight has a scale for each row.
        let rounded: Vec<f64> = x
            .chunks(cols)
            .flat_map(|row| {
                let scale = row.iter().fold(0.0f32, |m, v| m.max(v.abs())) / 448.0;
                row.iter().map(move |v| match simulate_fp8 {
                    true => f64::from(e4m3::decode(e4m3::encode(v / scale))) * f64::from(scale),
                    false => f64::from(*v),
                })
            })
            .collect();
        let sums = product(&rounded, &stored, cols);
        let want: Vec<f64> = sums.iter().enumerate().map(|(i, y)| y * f64::from(scales[i % out])).collect();
        assert_near(
            &b.linear(Input::Plain(&input), &per_row, &Epilogue::default()).unwrap(),
            &want,
            ROUNDING * 20.0,
        );
        let want: Vec<f64> =
            product(&wide(&x), &stored, cols).iter().map(|y| y * f64::from(0.01f32)).collect();
        assert_near(
            &b.linear(Input::Plain(&input), &per_tensor, &Epilogue::default()).unwrap(),
            &want,
            ROUNDING * 20.0,
        );
        // A row of zeros has no largest value to divide by.
        let zeros =
            b.linear(Input::Plain(&upload(&[0.0; 19], &[1, cols])), &per_row, &Epilogue::default()).unwrap();
        assert_near(&zeros, &[0.0; 6], 0.0);
    }
}

#[test]
fn layer_norm_learned_and_modulated() {
    let (rows, features, eps) = (4, 77, 1e-2);
    // The values are far from 0 on average, so that a variance from squares alone would cancel.
    let x: Vec<f32> = numbers(1, rows * features).iter().map(|v| v + 100.0).collect();
    let (factor, summand) = (numbers(2, features), numbers(3, features));
    let want = |one: f64| -> Vec<f64> {
        wide(&x)
            .chunks(features)
            .flat_map(|x| {
                let mean = x.iter().sum::<f64>() / features as f64;
                let variance = x.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / features as f64;
                let row = x.iter().zip(&factor).zip(&summand).map(move |((x, f), s)| {
                    (x - mean) / (variance + eps).sqrt() * (one + f64::from(*f)) + f64::from(*s)
                });
                row.collect::<Vec<_>>()
            })
            .collect()
    };
    let b = Cpu::new();
    let input = upload(&x, &[rows, features]);
    let (f, s) = (upload(&factor, &[features]), upload(&summand, &[1, features]));
    let learned = Norm::Layer { affine: Affine::Learned { weight: &f, bias: &s }, eps };
    let modulated = Norm::Layer { affine: Affine::Modulated { scale: &f, shift: &s }, eps };
    // The norm is compared on its own, and as a layer that changes nothing reads it.
    let mut one = vec![0.0; features * features];
    (0..features).for_each(|i| one[i * features + i] = 1.0);
    let layer = load(&b, vec![(matrix(features, features, &one), None)]).unwrap();
    for (norm, one) in [(learned, 0.0), (modulated, 1.0)] {
        assert_near(&b.norm(&input, &norm).unwrap(), &want(one), ROUNDING * 5.0);
        let read = b.linear(Input::Normed(&input, norm), &layer, &Epilogue::default()).unwrap();
        assert_near(&read, &want(one), ROUNDING * 5.0);
    }
    let short = upload(&factor[1..], &[features - 1]);
    let short = Norm::Layer { affine: Affine::Learned { weight: &short, bias: &s }, eps };
    assert!(b.norm(&input, &short).is_err());
}

#[test]
fn rms_norm_and_the_rotation_of_pairs() {
    let (rows, heads, head_dim, eps) = (7, 3, 10, 1e-2);
    let features = heads * head_dim;
    let x = numbers(1, rows * features);
    let weight = numbers(2, features);
    let angles: Vec<f64> = wide(&numbers(3, rows * head_dim / 2)).iter().map(|v| v * 5.0).collect();
    let mut want: Vec<f64> = wide(&x)
        .chunks(features)
        .flat_map(|x| {
            let rms = (x.iter().map(|v| v * v).sum::<f64>() / features as f64 + eps).sqrt();
            x.iter().zip(&weight).map(move |(x, w)| x / rms * f64::from(*w)).collect::<Vec<_>>()
        })
        .collect();
    let b = Cpu::new();
    let (input, w) = (upload(&x, &[rows, features]), upload(&weight, &[features]));
    assert_near(&b.norm(&input, &Norm::Rms { weight: &w, eps }).unwrap(), &want, ROUNDING * 3.0);

    for row in 0..rows {
        for head in 0..heads {
            for pair in 0..head_dim / 2 {
                let i = row * features + head * head_dim + 2 * pair;
                let (sin, cos) = angles[row * head_dim / 2 + pair].sin_cos();
                (want[i], want[i + 1]) =
                    (want[i] * cos - want[i + 1] * sin, want[i] * sin + want[i + 1] * cos);
            }
        }
    }
    let table = |f: fn(f64) -> f64| angles.iter().map(|a| f(*a)).collect::<Vec<_>>();
    let rope = b.load_rope(&table(f64::cos), &table(f64::sin), rows).unwrap();
    // The layer gives its input twice, as two equal parts; the second has no norm.
    let mut one = vec![0.0; features * features];
    (0..features).for_each(|i| one[i * features + i] = 1.0);
    let twice =
        load(&b, vec![(matrix(features, features, &one), None), (matrix(features, features, &one), None)]);
    let twice = twice.unwrap();
    let projection = Projection { norms: [Some(&w), None], eps, rope: Some(&rope) };
    let [normed, plain] = b.project(Input::Plain(&input), &twice, &projection).unwrap();
    assert_near(&normed, &want, ROUNDING * 5.0);
    assert_near(&plain, &wide(&x), 0.0);
    let unrotated = Projection { norms: [Some(&w), None], eps, rope: None };
    let [normed, _] = b.project(Input::Plain(&input), &twice, &unrotated).unwrap();
    let norm = b.norm(&input, &Norm::Rms { weight: &w, eps }).unwrap();
    assert_near(&normed, &wide(&b.download(&norm).unwrap()), 0.0);

    let fewer = b.slice(&input, 0, 0, rows - 1).unwrap();
    assert!(b.project(Input::Plain(&fewer), &twice, &projection).is_err());
    let thirds = Projection { norms: [Some(&w), None, None, None, None, None, None], eps, rope: None };
    assert!(b.project(Input::Plain(&input), &twice, &thirds).is_err());
    assert!(b.load_rope(&[1.0; 3], &[0.0; 3], 2).is_err());
}

#[test]
fn a_gated_linear_unit_is_its_definition() {
    let (rows, cols, out) = (5, 19, 7);
    let (x, gate, up) = (numbers(1, rows * cols), numbers(2, out * cols), numbers(3, out * cols));
    let b = Cpu::new();
    let [on_gate, on_up] = [&gate, &up].map(|w| load(&b, vec![(matrix(out, cols, w), None)]).unwrap());
    let product = |w: &[f32]| product(&wide(&x), &wide(w), cols);
    let (gate, up) = (product(&gate), product(&up));
    let x = upload(&x, &[rows, cols]);
    for activation in [Activation::Silu, Activation::GeluTanh] {
        let got = b.gated_linear(Input::Plain(&x), &on_gate, &on_up, activation).unwrap();
        let want: Vec<f64> = gate.iter().zip(&up).map(|(g, u)| activated(*g, activation) * u).collect();
        // Two sums of up to 20.
        assert_near(&got, &want, ROUNDING * 20.0 * 20.0);
    }
}

#[test]
fn attention_with_bias_to_several_sets() {
    // The second size has more keys than are summed at once, the third more rows than are scored at once.
    for (rows, keys, heads, width) in [(5, 7, 3, 10), (3, 300, 2, 9), (200, 17001, 1, 4)] {
        let features = heads * width;
        let q = numbers(1, rows * features);
        let [k, v] = [3, 4].map(|seed| numbers(seed, keys * features));
        let few = 3;
        let [k2, v2] = [6, 7].map(|seed| numbers(seed, few * features));
        let bias = numbers(5, heads * (rows + keys - 1));
        let scale = 0.7;
        let add = |want: &mut [f64], k: &[f32], v: &[f32], keys: usize, bias: Option<&[f32]>| {
            let offsets = rows + keys - 1;
            for (row, head) in (0..rows).flat_map(|r| (0..heads).map(move |h| (r, h))) {
                let at = |x: &[f32], row: usize, i: usize| f64::from(x[row * features + head * width + i]);
                let score = |key: usize| {
                    let dot: f64 = (0..width).map(|i| at(&q, row, i) * at(k, key, i)).sum();
                    dot * scale + bias.map_or(0.0, |b| f64::from(b[head * offsets + key + rows - 1 - row]))
                };
                let weights: Vec<f64> = (0..keys).map(|key| score(key).exp()).collect();
                let sum: f64 = weights.iter().sum();
                for i in 0..width {
                    let mean: f64 = weights.iter().enumerate().map(|(key, w)| w / sum * at(v, key, i)).sum();
                    want[row * features + head * width + i] += mean;
                }
            }
        };
        let b = Cpu::new();
        let q_ = upload(&q, &[rows, features]);
        let (k_, v_) = (upload(&k, &[keys, features]), upload(&v, &[keys, features]));
        let (k2_, v2_) = (upload(&k2, &[few, features]), upload(&v2, &[few, features]));
        let b_ = upload(&bias, &[heads, rows + keys - 1]);
        let run = |sets: &[KeyValue<'_, Tensor>]| {
            b.attention(&Attention { q: &q_, sets, heads, scale, kind: AttentionKind::Exact })
        };
        // Scores are up to 20, so their errors are up to 1e-6, and so are those of the weights.
        let tolerance = 5e-6;
        let mut want = vec![0.0; rows * features];
        add(&mut want, &k, &v, keys, None);
        assert_near(&run(&[KeyValue::new(&k_, &v_)]).unwrap(), &want, tolerance);
        let mut want = vec![0.0; rows * features];
        add(&mut want, &k, &v, keys, Some(&bias));
        add(&mut want, &k2, &v2, few, None);
        let biased = KeyValue { bias: Some(&b_), ..KeyValue::new(&k_, &v_) };
        assert_near(&run(&[biased, KeyValue::new(&k2_, &v2_)]).unwrap(), &want, 2.0 * tolerance);
        assert!(run(&[KeyValue { bias: Some(&q_), ..KeyValue::new(&k_, &v_) }]).is_err());
        assert!(run(&[KeyValue { copies: 0, ..KeyValue::new(&k_, &v_) }]).is_err());
        assert!(run(&[KeyValue::new(&k_, &v2_)]).is_err() && run(&[]).is_err());
    }
}

#[test]
fn a_last_key_that_counts_several_times_is_as_good_as_copies_of_it() {
    // The third size has more equal keys than are summed at once.
    for (rows, keys, copies, heads, width) in
        [(3, 1, 7, 2, 5), (4, 30, 1, 1, 8), (5, 40, 472, 2, 6), (2, 130, 3, 1, 4)]
    {
        let features = heads * width;
        let (q, k, v) =
            (numbers(1, rows * features), numbers(2, keys * features), numbers(3, keys * features));
        let b = Cpu::new();
        let q = upload(&q, &[rows, features]);
        let all = |x: &[f32]| [x, &x[(keys - 1) * features..].repeat(copies - 1)].concat();
        let tensors = |k: &[f32], v: &[f32]| [k, v].map(|x| upload(x, &[x.len() / features, features]));
        let ([k_, v_], [all_k, all_v]) = (tensors(&k, &v), tensors(&all(&k), &all(&v)));
        let run = |set: KeyValue<'_, Tensor>| {
            b.attention(&Attention { q: &q, sets: &[set], heads, scale: 0.7, kind: AttentionKind::Exact })
        };
        let want = run(KeyValue::new(&all_k, &all_v)).unwrap();
        let got = run(KeyValue { copies, ..KeyValue::new(&k_, &v_) }).unwrap();
        // As in attention with a bias: scores are up to 20.
        assert_near(&got, &wide(&b.download(&want).unwrap()), 1e-5);
    }
}

#[test]
fn scores_of_hundreds_do_not_overflow() {
    let b = Cpu::new();
    let q = upload(&[1000.0, -1000.0], &[2, 1]);
    let v = upload(&[3.0, 5.0], &[2, 1]);
    let sets = &[KeyValue::new(&q, &v)];
    let got = b.attention(&Attention { q: &q, sets, heads: 1, scale: 1.0, kind: AttentionKind::Exact });
    assert_near(&got.unwrap(), &[3.0, 5.0], 0.0);
}

#[test]
fn patches_and_back() {
    let (c, f, h, w) = (3, 2, 4, 6);
    let x = numbers(1, c * f * h * w);
    let b = Cpu::new();
    let tokens = b.patchify(&upload(&x, &[c, f, h, w])).unwrap();
    assert_eq!(b.shape(&tokens), [f * h / 2 * w / 2, 4 * c]);
    let value = |ci: usize, fi: usize, y: usize, x_: usize| f64::from(x[((ci * f + fi) * h + y) * w + x_]);
    let mut channel_first = Vec::new();
    let mut channel_last = Vec::new();
    for (fi, y, x) in
        (0..f).flat_map(|f| (0..h / 2).flat_map(move |y| (0..w / 2).map(move |x| (f, 2 * y, 2 * x))))
    {
        let corners = [(0, 0), (0, 1), (1, 0), (1, 1)];
        channel_first.extend((0..c).flat_map(|ci| corners.map(|(dy, dx)| value(ci, fi, y + dy, x + dx))));
        channel_last.extend(
            corners
                .iter()
                .flat_map(|(dy, dx)| (0..c).map(move |ci| (ci, *dy, *dx)))
                .map(|(ci, dy, dx)| value(ci, fi, y + dy, x + dx)),
        );
    }
    assert_near(&tokens, &channel_first, 0.0);
    let tokens: Vec<f32> = channel_last.iter().map(|v| *v as f32).collect();
    let back = b.unpatchify(&upload(&tokens, &[f * h / 2 * w / 2, 4 * c]), [f, h, w]).unwrap();
    assert_eq!(b.shape(&back), [c, f, h, w]);
    assert_near(&back, &wide(&x), 0.0);
    assert!(b.patchify(&upload(&x, &[c, f, w / 2, 2 * h])).is_err());
    assert!(b.unpatchify(&upload(&tokens, &[f * h / 2 * w / 2, 4 * c]), [f, h, w + 2]).is_err());
}
