//! The operations on volumes, for the VAE.

use super::linear::bias;
use super::{ATTENTION, BF16, Both, Check, IN_BF16, Options, Pair, ROUNDED, SPLIT, noise};
use crate::Result;
use crate::backend::conv::{ConvEpilogue, ConvOps, Spatial, Step, Time};
use crate::backend::cpu::Cpu;
use crate::backend::cuda::Cuda;
use crate::backend::loading::ConvWeights;
use crate::backend::{Backend, Keeping, Loader, TensorOps};
use crate::weights::HostTensor;

/// The tolerance of the fast exponentials and quotients of `SiLU` in f32.
const QUICK: f64 = 1e-5;

pub(super) fn check(check: &Check) -> Result<()> {
    let cuda = check.open(&Options::default())?;
    let both = Both::new(check, &cuda, IN_BF16);
    convolutions(&both)?;
    parts(&both)?;
    for channels in [8, 32, 96] {
        let (x, norm) = (both.noise(&[channels, 2, 3, 5], 1)?, NormLayer::load(&both, channels, 2)?);
        for silu in [false, true] {
            let y = Pair {
                cpu: both.cpu.channel_norm(&x.cpu, &norm.cpu, silu)?,
                cuda: cuda.channel_norm(&x.cuda, &norm.cuda, silu)?,
            };
            let after = if silu { ", silu" } else { "" };
            both.compare("channel norm", format!("{channels} channels{after}"), &y, BF16)?;
        }
        let qkv = both.noise(&[3 * channels, 3, 5, 7], 3)?;
        let y = Pair { cpu: both.cpu.frame_attention(&qkv.cpu)?, cuda: cuda.frame_attention(&qkv.cuda)? };
        both.compare("frame attention", format!("{channels} channels"), &y, ATTENTION)?;
    }
    wide(&Both::new(check, &cuda, Keeping::F32))
}

/// A convolution on both backends.
struct ConvLayer {
    cpu: <Cpu as ConvOps>::Conv,
    cuda: <Cuda as ConvOps>::Conv,
}

impl ConvLayer {
    fn load(both: &Both<'_>, weight: HostTensor, bias: HostTensor) -> Result<Self> {
        let weights = ConvWeights::new(weight, bias)?;
        Ok(Self {
            cpu: both.cpu.loader(Keeping::F32).conv(weights.clone())?,
            cuda: both.cuda.loader(both.keeping).conv(weights)?,
        })
    }
}

/// A norm over channels on both backends.
struct NormLayer {
    cpu: <Cpu as ConvOps>::ChannelNorm,
    cuda: <Cuda as ConvOps>::ChannelNorm,
}

impl NormLayer {
    fn load(both: &Both<'_>, channels: usize, seed: u64) -> Result<Self> {
        let gamma = bias(channels, seed);
        Ok(Self {
            cpu: both.cpu.loader(Keeping::F32).channel_norm(gamma.clone())?,
            cuda: both.cuda.loader(both.keeping).channel_norm(gamma)?,
        })
    }
}

/// The names of a convolution's cases (alone, with a residual, with a norm, with both, after another one), and their
/// tolerances.
struct Form {
    names: [&'static str; 5],
    plain: f64,
    norm: f64,
    after: f64,
}

const NARROW: Form = Form {
    names: [
        "convolution",
        "convolution, residual",
        "convolution, norm",
        "convolution, residual, norm",
        "convolution after another",
    ],
    plain: BF16,
    norm: 2.0 * BF16,
    after: 1.5 * BF16,
};

const WIDE: Form = Form {
    names: [
        "convolution, f32",
        "convolution, f32, residual",
        "convolution, f32, norm",
        "convolution, f32, both",
        "convolution, f32, after another",
    ],
    plain: SPLIT,
    norm: 2.0 * SPLIT,
    after: 2.0 * SPLIT,
};

/// Checks the VAE in f32: products of sums of two bf16 numbers.
fn wide(both: &Both<'_>) -> Result<()> {
    let conv = |io, kernel, parts: &[usize], past, size, step| {
        convolution(both, &WIDE, &Case { io, kernel, parts, past, size, step })
    };
    let (same, three) = (Step::default(), &[1, 1, 2]);
    let step = |spatial, time| Step { spatial, time };
    conv([16, 32], [3, 3, 3], three, 2, [5, 6], same)?;
    conv([3, 8], [3, 3, 3], &[1], 0, [3, 7], same)?;
    conv([8, 3], [3, 3, 3], three, 2, [9, 10], same)?;
    conv([24, 192], [3, 3, 3], three, 2, [4, 5], same)?;
    conv([16, 24], [1, 1, 1], three, 0, [5, 6], same)?;
    conv([24, 96], [1, 3, 3], three, 0, [5, 6], step(Spatial::Double, Time::Same))?;
    conv([8, 16], [1, 3, 3], three, 0, [4, 6], step(Spatial::Halve, Time::Same))?;
    conv([16, 32], [3, 1, 1], &[1, 4], 1, [5, 6], step(Spatial::Same, Time::Halve))?;
    for io in [[32, 64], [8, 128]] {
        conv(io, [3, 1, 1], three, 2, [5, 6], step(Spatial::Same, Time::Double))?;
    }
    for channels in [8, 32, 96] {
        let (x, norm) = (both.noise(&[channels, 2, 3, 5], 1)?, NormLayer::load(both, channels, 2)?);
        let y = Pair {
            cpu: both.cpu.channel_norm(&x.cpu, &norm.cpu, true)?,
            cuda: both.cuda.channel_norm(&x.cuda, &norm.cuda, true)?,
        };
        both.compare("channel norm, f32", format!("{channels} channels, silu"), &y, QUICK)?;
    }
    Ok(())
}

fn convolutions(both: &Both<'_>) -> Result<()> {
    let conv = |io, kernel, parts: &[usize], past, size, step| {
        convolution(both, &NARROW, &Case { io, kernel, parts, past, size, step })
    };
    let same = Step::default();
    let step = |spatial, time| Step { spatial, time };
    for (io, size) in [([3, 8], [3, 7]), ([8, 3], [9, 10]), ([16, 32], [5, 6]), ([24, 96], [4, 4])] {
        conv(io, [3, 3, 3], &[1], 0, size, same)?;
        conv(io, [3, 3, 3], &[1, 1, 2], 2, size, same)?;
        conv(io, [1, 1, 1], &[2], 0, size, same)?;
        conv(io, [1, 3, 3], &[2], 0, size, step(Spatial::Double, Time::Same))?;
        conv(io, [3, 1, 1], &[1, 4], 1, size, step(Spatial::Same, Time::Halve))?;
    }
    conv([16, 192], [3, 3, 3], &[2], 0, [4, 5], same)?;
    conv([8, 16], [1, 3, 3], &[2], 0, [4, 6], step(Spatial::Halve, Time::Same))?;
    let double = step(Spatial::Same, Time::Double);
    conv([32, 64], [3, 1, 1], &[2], 0, [3, 5], double)?;
    conv([32, 64], [3, 1, 1], &[2, 1], 2, [3, 5], double)?;
    conv([8, 128], [3, 1, 1], &[1, 2], 1, [3, 5], double)?;
    // Nine parts are more than a launch takes.
    conv([8, 16], [3, 3, 3], &[1; 9], 2, [3, 4], same)
}

struct Case<'a> {
    /// The channels in and out.
    io: [usize; 2],
    kernel: [usize; 3],
    /// The number of frames of each part.
    parts: &'a [usize],
    past: usize,
    size: [usize; 2],
    step: Step,
}

/// Checks a convolution alone, with each epilogue, and before another one.
fn convolution(both: &Both<'_>, form: &Form, case: &Case<'_>) -> Result<()> {
    let &Form { names, plain: of_plain, norm: of_norm, after: of_after } = form;
    let (cpu, cuda) = (&both.cpu, both.cuda);
    let &Case { io: [inputs, outputs], kernel: [kt, kh, kw], past, size: [h, w], step, .. } = case;
    let shape = match kt {
        1 => vec![outputs, inputs, kh, kw],
        _ => vec![outputs, inputs, kt, kh, kw],
    };
    let weight = HostTensor { data: noise(shape.iter().product(), 1), shape };
    let layer = ConvLayer::load(both, weight, bias(outputs, 2))?;
    let parts = case.parts.iter().zip(3..).map(|(&frames, seed)| both.noise(&[inputs, frames, h, w], seed));
    let parts = parts.collect::<Result<Vec<_>>>()?;
    let (of_cpu, of_cuda): (Vec<_>, Vec<_>) = parts.iter().map(|p| (&p.cpu, &p.cuda)).unzip();
    let run = |residual: Option<&Pair>, norm: Option<&NormLayer>| -> Result<Pair> {
        let after = ConvEpilogue { residual: residual.map(|r| &r.cpu), norm: norm.map(|n| &n.cpu) };
        let on_cpu = cpu.conv(&of_cpu, past, &layer.cpu, step, &after)?;
        let after = ConvEpilogue { residual: residual.map(|r| &r.cuda), norm: norm.map(|n| &n.cuda) };
        Ok(Pair { cpu: on_cpu, cuda: cuda.conv(&of_cuda, past, &layer.cuda, step, &after)? })
    };
    let name = format!(
        "{inputs} to {outputs}, {kt}x{kh}x{kw}, {h}x{w}, {:?} in space, {:?} in time",
        step.spatial, step.time
    );
    let plain = run(None, None)?;
    both.compare(names[0], &name[..], &plain, of_plain)?;
    let shape = cpu.shape(&plain.cpu);
    if step.time != Time::Double && shape[0] % 8 == 0 {
        let (residual, norm) = (both.noise(&shape, 9)?, NormLayer::load(both, shape[0], 10)?);
        both.compare(names[1], &name[..], &run(Some(&residual), None)?, of_plain)?;
        both.compare(names[2], &name[..], &run(None, Some(&norm))?, of_norm)?;
        let all = run(Some(&residual), Some(&norm))?;
        both.compare(names[3], &name[..], &all, of_norm)?;
    }
    // A convolution reads the result of another one.
    let again = HostTensor { shape: vec![8, shape[0], 1, 1], data: noise(8 * shape[0], 20) };
    let layer = ConvLayer::load(both, again, bias(8, 21))?;
    let then = Pair {
        cpu: cpu.conv(&[&plain.cpu], 0, &layer.cpu, Step::default(), &ConvEpilogue::default())?,
        cuda: cuda.conv(&[&plain.cuda], 0, &layer.cuda, Step::default(), &ConvEpilogue::default())?,
    };
    both.compare(names[4], name, &then, of_after)
}

/// Checks that parts of volumes as a convolution leaves them, in f32 and in bf16, are volumes.
fn parts(both: &Both<'_>) -> Result<()> {
    let (cpu, cuda) = (&both.cpu, both.cuda);
    let through = |x: &<Cuda as TensorOps>::Tensor, channels: usize| {
        let mut data = vec![0.0; channels * channels];
        (0..channels).for_each(|i| data[i * channels + i] = 1.0);
        let weight = HostTensor { shape: vec![channels, channels, 1, 1], data };
        let bias = HostTensor { shape: vec![channels], data: vec![0.0; channels] };
        let layer = ConvLayer::load(both, weight, bias)?.cuda;
        cuda.conv(&[x], 0, &layer, Step::default(), &ConvEpilogue::default())
    };
    for channels in [3, 16, 24] {
        let x = both.noise(&[channels, 3, 4, 6], 1)?;
        let x = Pair { cuda: through(&x.cuda, channels)?, cpu: x.cpu };
        for (axis, start, len) in [(0, 1, 2), (1, 1, 2), (1, 2, 1), (2, 1, 3), (3, 2, 3)] {
            let case = format!("{channels} channels, axis {axis}");
            let part = both.slice(&x, axis, start, len)?;
            both.compare("slice, volume", &case[..], &part, ROUNDED)?;
            both.compare("concat, volume", &case[..], &both.concat(&[&part, &x], axis)?, ROUNDED)?;
            let again = through(&part.cuda, cpu.shape(&part.cpu)[0])?;
            both.compare(
                "convolution",
                format!("a part of {case}"),
                &Pair { cuda: again, cpu: part.cpu },
                ROUNDED,
            )?;
        }
    }
    Ok(())
}
