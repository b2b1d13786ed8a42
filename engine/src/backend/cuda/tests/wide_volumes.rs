//! Volumes in f32 on both backends: convolutions as products of sums of two bf16 numbers, and norms.

use super::{Both, Options, Pair, noise, open};
use crate::backend::TensorOps;
use crate::backend::conv::{ConvEpilogue, ConvOps, Spatial, Step, Time};
use crate::profile::{self, Weights};
use crate::weights::HostTensor;

/// Products of sums of two bf16 numbers: 2^-16, and the sums of f32.
const SPLIT: f64 = 3e-5;
/// The quick exponentials and quotients of `SiLU`.
const F32: f64 = 1e-5;

struct Case {
    io: [usize; 2],
    kernel: [usize; 3],
    /// Frames of each part.
    parts: &'static [usize],
    past: usize,
    size: [usize; 2],
    step: Step,
}

const PLAIN: Case = Case {
    io: [16, 32],
    kernel: [3, 3, 3],
    parts: &[1, 1, 2],
    past: 2,
    size: [5, 6],
    step: Step { spatial: Spatial::Same, time: Time::Same },
};

impl Case {
    fn run(&self, both: &Both<'_>) {
        let Self { io: [inputs, outputs], kernel: [kt, kh, kw], past, size: [h, w], step, .. } = *self;
        let weight = |seed| HostTensor {
            shape: vec![outputs, inputs, kt, kh, kw],
            data: noise(outputs * inputs * kt * kh * kw, seed),
        };
        let bias = |n: usize, seed| HostTensor { shape: vec![n], data: noise(n, seed) };
        let on_cpu = both.cpu.load_conv(weight(1), bias(outputs, 2)).unwrap();
        let on_cuda = both.cuda.load_conv(weight(1), bias(outputs, 2)).unwrap();
        let parts: Vec<Pair> =
            self.parts.iter().zip(3..).map(|(n, seed)| both.noise(&[inputs, *n, h, w], seed)).collect();
        let run = |residual: Option<&Pair>, norm: Option<&Pair>| Pair {
            cpu: both
                .cpu
                .conv(
                    &parts.iter().map(|p| &p.cpu).collect::<Vec<_>>(),
                    past,
                    &on_cpu,
                    step,
                    &ConvEpilogue { residual: residual.map(|r| &r.cpu), norm: norm.map(|n| &n.cpu) },
                )
                .unwrap(),
            cuda: both
                .cuda
                .conv(
                    &parts.iter().map(|p| &p.cuda).collect::<Vec<_>>(),
                    past,
                    &on_cuda,
                    step,
                    &ConvEpilogue { residual: residual.map(|r| &r.cuda), norm: norm.map(|n| &n.cuda) },
                )
                .unwrap(),
        };
        let name = format!("f32 conv {inputs} to {outputs}, {:?}, {:?}, {step:?}", self.kernel, self.parts);
        let plain = run(None, None);
        both.compare(&name, &plain, SPLIT);
        let shape = both.cpu.shape(&plain.cpu);
        if step.time != Time::Double && shape[0] % 8 == 0 {
            let (residual, gamma) = (both.noise(&shape, 9), both.noise(&[shape[0]], 10));
            both.compare("  with a residual", &run(Some(&residual), None), SPLIT);
            both.compare("  with a norm", &run(None, Some(&gamma)), 2.0 * SPLIT);
            both.compare("  with both", &run(Some(&residual), Some(&gamma)), 2.0 * SPLIT);
        }
        // What one convolution wrote is what another one reads.
        let again = || HostTensor { shape: vec![24, shape[0], 1, 1], data: noise(24 * shape[0], 11) };
        let end = ConvEpilogue { residual: None, norm: None };
        let cpu = both.cpu.load_conv(again(), bias(24, 12)).unwrap();
        let cuda = both.cuda.load_conv(again(), bias(24, 12)).unwrap();
        let then = Pair {
            cpu: both.cpu.conv(&[&plain.cpu], 0, &cpu, Step::default(), &end).unwrap(),
            cuda: both
                .cuda
                .conv(&[&plain.cuda], 0, &cuda, Step::default(), &ConvEpilogue::default())
                .unwrap(),
        };
        both.compare("  and another", &then, 2.0 * SPLIT);
    }
}

#[test]
fn f32_volumes() {
    let precision = profile::Precision { vae: Weights::Fp32, ..Options::BF16.precision };
    let Some(cuda) = open(&Options { precision, ..Options::BF16 }) else { return };
    let both = Both::new(&cuda);
    let step = |spatial, time| Step { spatial, time };
    PLAIN.run(&both);
    Case { io: [3, 8], parts: &[1], past: 0, size: [3, 7], ..PLAIN }.run(&both);
    Case { io: [8, 3], size: [9, 10], ..PLAIN }.run(&both);
    Case { io: [24, 192], size: [4, 5], ..PLAIN }.run(&both);
    Case { io: [16, 24], kernel: [1, 1, 1], past: 0, ..PLAIN }.run(&both);
    let double = step(Spatial::Double, Time::Same);
    Case { io: [24, 96], kernel: [1, 3, 3], past: 0, step: double, ..PLAIN }.run(&both);
    let halve = step(Spatial::Halve, Time::Same);
    Case { io: [8, 16], kernel: [1, 3, 3], past: 0, size: [4, 6], step: halve, ..PLAIN }.run(&both);
    let later = step(Spatial::Same, Time::Halve);
    Case { kernel: [3, 1, 1], parts: &[1, 4], past: 1, step: later, ..PLAIN }.run(&both);
    let twice = step(Spatial::Same, Time::Double);
    Case { io: [32, 64], kernel: [3, 1, 1], step: twice, ..PLAIN }.run(&both);
    Case { io: [8, 128], kernel: [3, 1, 1], step: twice, ..PLAIN }.run(&both);
    for channels in [8, 32, 96] {
        let (x, gamma) = (both.noise(&[channels, 2, 3, 5], 1), both.noise(&[channels], 2));
        let y = Pair {
            cpu: both.cpu.channel_norm(&x.cpu, &gamma.cpu, true).unwrap(),
            cuda: cuda.channel_norm(&x.cuda, &gamma.cuda, true).unwrap(),
        };
        both.compare(&format!("f32 channel norm {channels}"), &y, F32);
    }
}
