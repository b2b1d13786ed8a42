//! Convolutions and norms against the plain definition in f64.

use super::*;
use crate::backend::TensorOps;

/// Returns values without a pattern, about -1 to 1.
fn noise(len: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let next = |_| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..len).map(next).collect()
}

fn upload(data: &[f32], shape: [usize; 4]) -> Tensor {
    Cpu::new().upload(data, &shape).unwrap()
}

fn values(x: &Tensor) -> Vec<f32> {
    Cpu::new().download(x).unwrap()
}

/// Returns the largest distance, relative to the largest value.
fn distance(got: &[f32], want: &[f64]) -> f64 {
    assert_eq!(got.len(), want.len());
    let most = |v: &mut dyn Iterator<Item = f64>| v.fold(0.0, f64::max);
    most(&mut got.iter().zip(want).map(|(g, w)| (f64::from(*g) - w).abs()))
        / most(&mut want.iter().map(|w| w.abs()))
}

fn kernels() -> Vec<Kernel> {
    let mut kernels = vec![Kernel::Plain];
    kernels.extend(Some(Kernel::best()).filter(|best| *best != Kernel::Plain));
    kernels
}

/// One convolution with its inputs, for the definition.
struct Case {
    inputs: usize,
    outputs: usize,
    kernel: [usize; 3],
    past: usize,
    frames: usize,
    size: [usize; 2],
    step: Step,
}

impl Case {
    fn weight(&self) -> HostTensor {
        let shape = [&[self.outputs, self.inputs], &self.kernel[..]].concat();
        HostTensor { data: noise(shape.iter().product(), 1), shape }
    }

    fn bias(&self) -> HostTensor {
        HostTensor { shape: vec![self.outputs], data: noise(self.outputs, 2) }
    }

    fn layer(&self) -> Conv {
        Conv::load(ConvWeights::new(self.weight(), self.bias()).unwrap())
    }

    fn input(&self) -> Vec<f32> {
        noise(self.inputs * (self.past + self.frames) * self.size[0] * self.size[1], 3)
    }

    fn shape(&self) -> [usize; 4] {
        let [h, w] = self.size;
        let [h, w] = match self.step.spatial {
            Spatial::Same => [h, w],
            Spatial::Halve => [h / 2, w / 2],
            Spatial::Double => [2 * h, 2 * w],
        };
        match self.step.time {
            Time::Same => [self.outputs, self.frames, h, w],
            Time::Halve => [self.outputs, self.frames / 2, h, w],
            Time::Double => [self.outputs / 2, 2 * self.frames, h, w],
        }
    }

    /// Computes the convolution by its definition.
    fn result(&self) -> Vec<f64> {
        let (weight, bias, x) = (self.weight().data, self.bias().data, self.input());
        let ([kt, kh, kw], [h, w], all) = (self.kernel, self.size, self.past + self.frames);
        let input = |c: usize, t: isize, y: isize, x_: isize| -> f64 {
            let (y, x_, [h_, w_]) = match self.step.spatial {
                Spatial::Double => (y.div_euclid(2), x_.div_euclid(2), [h, w]),
                _ => (y, x_, [h, w]),
            };
            let inside = t >= 0 && (0..h_ as isize).contains(&y) && (0..w_ as isize).contains(&x_);
            if inside { x[((c * all + t as usize) * h + y as usize) * w + x_ as usize].into() } else { 0.0 }
        };
        let (stride, pad) = if self.step.spatial == Spatial::Halve { (2, 0) } else { (1, kh / 2) };
        let [channels, frames, out_h, out_w] = self.shape();
        let mut out = Vec::new();
        for c in 0..channels {
            for t in 0..frames {
                let (o, ends) = match self.step.time {
                    Time::Same => (c, self.past + t),
                    Time::Halve => (c, self.past + 2 * t + 1),
                    Time::Double => (c + t % 2 * channels, self.past + t / 2),
                };
                for y in 0..out_h {
                    for x in 0..out_w {
                        let mut sum = f64::from(bias[o]);
                        for i in 0..self.inputs {
                            for (k, w) in weight[(o * self.inputs + i) * kt * kh * kw..][..kt * kh * kw]
                                .iter()
                                .enumerate()
                            {
                                let (dt, dy, dx) = (k / (kh * kw), k / kw % kh, k % kw);
                                sum += f64::from(*w)
                                    * input(
                                        i,
                                        (ends + dt) as isize - (kt - 1) as isize,
                                        (stride * y + dy) as isize - pad as isize,
                                        (stride * x + dx) as isize - pad as isize,
                                    );
                            }
                        }
                        out.push(sum);
                    }
                }
            }
        }
        out
    }
}

fn cases() -> Vec<Case> {
    let step = |spatial, time| Step { spatial, time };
    let same = Step::default();
    let mut cases = Vec::new();
    for (inputs, outputs) in [(1, 1), (3, 5), (5, 3), (8, 12)] {
        for size in [[1, 1], [3, 7], [10, 33], [2, 40]] {
            for (past, frames) in [(0, 1), (0, 4), (1, 1), (2, 3)] {
                cases.push(Case { inputs, outputs, kernel: [3, 3, 3], past, frames, size, step: same });
            }
            cases.push(Case { inputs, outputs, kernel: [1, 1, 1], past: 0, frames: 2, size, step: same });
            let double = step(Spatial::Double, Time::Same);
            cases.push(Case { inputs, outputs, kernel: [1, 3, 3], past: 0, frames: 2, size, step: double });
            let halve = step(Spatial::Same, Time::Halve);
            cases.push(Case { inputs, outputs, kernel: [3, 1, 1], past: 1, frames: 4, size, step: halve });
            let double = step(Spatial::Same, Time::Double);
            for (past, frames) in [(0, 1), (0, 3), (1, 2), (2, 2)] {
                let outputs = 2 * outputs;
                cases.push(Case { inputs, outputs, kernel: [3, 1, 1], past, frames, size, step: double });
            }
        }
        for size in [[2, 2], [4, 14], [10, 34], [6, 80]] {
            let halve = step(Spatial::Halve, Time::Same);
            cases.push(Case { inputs, outputs, kernel: [1, 3, 3], past: 0, frames: 2, size, step: halve });
        }
    }
    cases
}

/// The tolerance of sums of up to 8 * 27 + 1 products of values up to 1. Each addition rounds by at most 2^-24 of a sum
/// within some 5 times the largest result, so the error is 217 * 6e-8 * 5 at worst; rounding is random, hence its root.
const TOLERANCE: f64 = 5e-6;

#[test]
fn convolutions_are_the_definition() {
    for case in cases() {
        let layer = case.layer();
        let [h, w] = case.size;
        let x = upload(&case.input(), [case.inputs, case.past + case.frames, h, w]);
        let want = case.result();
        for kernel in kernels() {
            let out = conv(kernel, &[&x], case.past, &layer, case.step, &ConvEpilogue::default()).unwrap();
            assert_eq!(out.dims(), case.shape());
            let d = distance(&values(&out), &want);
            assert!(
                d < TOLERANCE,
                "{kernel:?} {}->{} {:?} past {} frames {} {:?} {:?}: {d:.1e}",
                case.inputs,
                case.outputs,
                case.kernel,
                case.past,
                case.frames,
                case.size,
                case.step
            );
        }
    }
}

#[test]
fn parts_are_one_input_to_the_bit() {
    let b = Cpu::new();
    let case = Case {
        inputs: 3,
        outputs: 5,
        kernel: [3, 3, 3],
        past: 2,
        frames: 3,
        size: [9, 19],
        step: Step::default(),
    };
    let layer = case.layer();
    let x = upload(&case.input(), [3, 5, 9, 19]);
    let parts: Vec<_> = [(0, 1), (1, 2), (3, 1), (4, 1)].map(|(s, n)| b.slice(&x, 1, s, n).unwrap()).into();
    let run = |parts: &[&Tensor], past| {
        values(&b.conv(parts, past, &layer, case.step, &ConvEpilogue::default()).unwrap())
    };
    assert_eq!(run(&parts.iter().collect::<Vec<_>>(), 2), run(&[&x], 2));
    // The last frame on its own has the same two frames before it.
    let last = b.slice(&upload(&run(&[&x], 2), [5, 3, 9, 19]), 1, 2, 1).unwrap();
    assert_eq!(run(&parts[1..].iter().collect::<Vec<_>>(), 3), values(&last));
}

#[test]
fn a_residual_is_added_and_then_all_is_normalised() {
    let b = Cpu::new();
    for width in [1, 7, 33] {
        let case = Case {
            inputs: 2,
            outputs: 6,
            kernel: [3, 3, 3],
            past: 0,
            frames: 2,
            size: [5, width],
            step: Step::default(),
        };
        let layer = case.layer();
        let x = upload(&case.input(), [2, 2, 5, width]);
        let residual = upload(&noise(6 * 10 * width, 4), [6, 2, 5, width]);
        let gamma = ChannelNorm(noise(6, 5));
        let plain = conv(Kernel::best(), &[&x], 0, &layer, case.step, &ConvEpilogue::default()).unwrap();
        let sum = b.linear_combination(&[(1.0, &plain), (1.0, &residual)]).unwrap();
        let added = ConvEpilogue { residual: Some(&residual), norm: None };
        assert_eq!(values(&b.conv(&[&x], 0, &layer, case.step, &added).unwrap()), values(&sum));
        let both = ConvEpilogue { residual: Some(&residual), norm: Some(&gamma) };
        let normed = values(&b.conv(&[&x], 0, &layer, case.step, &both).unwrap());
        assert_eq!(normed, values(&b.channel_norm(&sum, &gamma, true).unwrap()));
    }
}

#[test]
fn norms_are_the_definition() {
    let b = Cpu::new();
    for [c, t, h, w] in [[1, 1, 1, 2], [5, 2, 3, 7], [32, 1, 33, 40]] {
        let voxels = t * h * w;
        let mut x = noise(c * voxels, 1);
        // A voxel of zeros has no direction; one of tiny values keeps its own.
        (0..c).for_each(|i| x[i * voxels] = 0.0);
        let gamma = noise(c, 2);
        for silu in [false, true] {
            let mut want = vec![0.0; x.len()];
            for v in 0..voxels {
                let square: f64 = (0..c).map(|i| f64::from(x[i * voxels + v]).powi(2)).sum();
                for i in 0..c {
                    let n = f64::from(x[i * voxels + v]) / square.sqrt().max(1e-12)
                        * (c as f64).sqrt()
                        * f64::from(gamma[i]);
                    want[i * voxels + v] = if silu { n / (1.0 + (-n).exp()) } else { n };
                }
            }
            let gamma = ChannelNorm(gamma.clone());
            let got = values(&b.channel_norm(&upload(&x, [c, t, h, w]), &gamma, silu).unwrap());
            // Some ten operations each round by 2^-24.
            assert!(distance(&got, &want) < 6e-7, "{c} {silu}");
        }
    }
}

#[test]
fn silu_is_the_definition() {
    let mut worst: f64 = 0.0;
    for i in -200_000..=200_000 {
        let x = i as f32 * 5e-4;
        let want = f64::from(x) / (1.0 + (-f64::from(x)).exp());
        if want.abs() > 1e-30 {
            worst = worst.max((f64::from(simd::silu(x)) / want - 1.0).abs());
        }
    }
    // The series is within 1e-7, and there are four roundings.
    assert!(worst < 3.5e-7, "{worst:.1e}");
    assert_eq!(simd::silu(0.0), 0.0);
    assert_eq!(simd::silu(1e30), 1e30);
    assert!(simd::silu(-1e30).abs() < 1e-6 && simd::silu(f32::NAN).is_nan());
}

#[test]
fn attention_stays_within_a_frame() {
    let b = Cpu::new();
    let [c, t, h, w] = [5, 3, 3, 7];
    let data = noise(3 * c * t * h * w, 6);
    let got = values(&b.frame_attention(&upload(&data, [3 * c, t, h, w])).unwrap());
    let at =
        |channel: usize, frame: usize, pixel: usize| f64::from(data[(channel * t + frame) * h * w + pixel]);
    let mut want = vec![0.0; c * t * h * w];
    for frame in 0..t {
        for p in 0..h * w {
            let score = |q: usize| {
                (0..c).map(|i| at(i, frame, p) * at(c + i, frame, q)).sum::<f64>() / (c as f64).sqrt()
            };
            let weights: Vec<f64> = (0..h * w).map(|q| score(q).exp()).collect();
            let sum: f64 = weights.iter().sum();
            for i in 0..c {
                let mixed = weights
                    .iter()
                    .enumerate()
                    .map(|(q, weight)| weight * at(2 * c + i, frame, q))
                    .sum::<f64>();
                want[(i * t + frame) * h * w + p] = mixed / sum;
            }
        }
    }
    assert!(distance(&got, &want) < 1e-6);
}

#[test]
fn what_does_not_fit_is_an_error() {
    let b = Cpu::new();
    let host = |shape: &[usize]| HostTensor { shape: shape.to_vec(), data: noise(shape.iter().product(), 1) };
    assert!(ConvWeights::new(host(&[4, 4]), host(&[4])).is_err());
    assert!(ConvWeights::new(host(&[4, 4, 3, 3]), host(&[3])).is_err());
    assert!(ConvWeights::new(host(&[4, 4, 3, 5, 5]), host(&[4])).is_err());
    let layer = Conv::load(ConvWeights::new(host(&[4, 2, 3, 3, 3]), host(&[4])).unwrap());
    let x = |shape: [usize; 4]| upload(&noise(shape.iter().product(), 1), shape);
    let run = |parts: &[&Tensor], past, step| b.conv(parts, past, &layer, step, &ConvEpilogue::default());
    assert!(run(&[], 0, Step::default()).is_err());
    assert!(run(&[&x([3, 1, 4, 4])], 0, Step::default()).is_err());
    assert!(run(&[&x([2, 1, 4, 4])], 1, Step::default()).is_err());
    assert!(run(&[&x([2, 1, 4, 4]), &x([2, 1, 4, 5])], 0, Step::default()).is_err());
    assert!(run(&[&x([2, 1, 4, 5])], 0, Step { spatial: Spatial::Halve, time: Time::Same }).is_err());
    assert!(run(&[&x([2, 3, 4, 4])], 0, Step { spatial: Spatial::Same, time: Time::Halve }).is_err());
    let (x, other, gamma) = (x([2, 1, 4, 4]), x([4, 2, 4, 4]), ChannelNorm(vec![1.0; 3]));
    for (residual, norm) in [(Some(&other), None), (None, Some(&gamma))] {
        assert!(b.conv(&[&x], 0, &layer, Step::default(), &ConvEpilogue { residual, norm }).is_err());
    }
    assert!(b.channel_norm(&x, &gamma, false).is_err());
    assert!(b.frame_attention(&x).is_err());
}
