//! Checks and times of causal convolutions.

use std::sync::Arc;

use animd_kernels::cuda::cudarc::driver::CudaStream;
use animd_kernels::cuda::{
    Card, Conv, ConvEpilogue, ConvLayer, Element, Spatial, Time, Volume, fold_for_doubling,
};
use half::bf16;

use super::bench::{BF16_ROUNDING, Input, Output, by_rows, verdict};
use super::norms::normed;
use super::{Result, address, median, normal};

#[derive(Clone, Copy, Debug, PartialEq)]
enum Follows {
    Nothing,
    Residual,
    Norm,
}

struct Case {
    /// Frames of each part.
    parts: &'static [usize],
    past: usize,
    size: [usize; 2],
    channels: usize,
    outputs: usize,
    kernel: [usize; 3],
    spatial: Spatial,
    time: Time,
    follows: Follows,
    element: Element,
}

const PLAIN: Case = Case {
    parts: &[3],
    past: 0,
    size: [9, 21],
    channels: 16,
    outputs: 96,
    kernel: [3, 3, 3],
    spatial: Spatial::Same,
    time: Time::Same,
    follows: Follows::Nothing,
    element: Element::Bf16,
};

pub fn check(card: &Card, quick: bool) -> Result<bool> {
    let conv = Conv::load(card)?;
    let stream = card.default_stream();
    let cases = [
        PLAIN,
        Case { parts: &[1], size: [1, 1], ..PLAIN },
        Case { channels: 96, follows: Follows::Norm, ..PLAIN },
        Case { channels: 96, follows: Follows::Residual, parts: &[1, 1, 2], past: 2, ..PLAIN },
        Case { channels: 48, parts: &[1, 1, 1, 1, 1, 1, 1, 1], past: 1, ..PLAIN },
        Case { channels: 192, outputs: 192, follows: Follows::Norm, parts: &[2, 1], past: 2, ..PLAIN },
        Case { channels: 192, outputs: 384, follows: Follows::Residual, size: [30, 52], ..PLAIN },
        Case { channels: 64, outputs: 384, follows: Follows::Residual, parts: &[2, 2], past: 1, ..PLAIN },
        Case { channels: 384, outputs: 1152, kernel: [1, 1, 1], ..PLAIN },
        Case { channels: 96, outputs: 4, element: Element::F32, ..PLAIN },
        Case { channels: 384, outputs: 16, ..PLAIN },
        Case { channels: 32, outputs: 32, kernel: [1, 1, 1], follows: Follows::Residual, ..PLAIN },
        Case { channels: 48, element: Element::F32, ..PLAIN },
        Case { channels: 72, outputs: 256, follows: Follows::Residual, element: Element::F32, ..PLAIN },
        // More tiles than a GPU has blocks.
        Case { channels: 96, parts: &[2, 8], past: 2, size: [66, 130], follows: Follows::Residual, ..PLAIN },
        Case { channels: 96, kernel: [1, 3, 3], spatial: Spatial::Halve, size: [18, 34], ..PLAIN },
        Case {
            channels: 192,
            outputs: 192,
            kernel: [1, 3, 3],
            spatial: Spatial::Halve,
            size: [60, 104],
            ..PLAIN
        },
        Case { channels: 384, outputs: 192, kernel: [1, 3, 3], spatial: Spatial::Double, ..PLAIN },
        Case {
            channels: 192,
            outputs: 96,
            kernel: [1, 3, 3],
            spatial: Spatial::Double,
            size: [31, 17],
            ..PLAIN
        },
        Case {
            channels: 192,
            outputs: 192,
            kernel: [3, 1, 1],
            time: Time::Halve,
            parts: &[1, 4],
            past: 1,
            ..PLAIN
        },
        Case {
            channels: 384,
            outputs: 768,
            kernel: [3, 1, 1],
            time: Time::Double,
            parts: &[1, 2],
            past: 1,
            ..PLAIN
        },
    ];
    let mut good = true;
    println!("\nconvolutions                                                      error    worst    limit");
    for case in &cases {
        if quick && case.work() > 1_000_000_000 {
            continue;
        }
        good &= case.run(&conv, &stream)?;
    }
    Ok(good)
}

impl Case {
    /// Returns about how many products the case takes.
    fn work(&self) -> usize {
        let voxels = self.parts.iter().sum::<usize>() * self.size[0] * self.size[1];
        voxels * self.channels * self.outputs * self.kernel.iter().product::<usize>()
    }

    #[expect(clippy::too_many_lines, reason = "inputs, two runs and the reference share all their extents")]
    fn run(&self, conv: &Conv, stream: &Arc<CudaStream>) -> Result<bool> {
        let &Case { past, size: [h, w], channels, outputs, kernel: [kt, kh, kw], .. } = self;
        let pixels = h * w;
        let parts = self
            .parts
            .iter()
            .enumerate()
            .map(|(i, frames)| {
                Input::random(stream, [frames * pixels, channels, 0], Element::Bf16, 60 + i as u64)
            })
            .collect::<Result<Vec<_>>>()?;
        let volumes: Vec<Volume> = parts
            .iter()
            .zip(self.parts)
            .map(|(x, &frames)| Volume { address: x.at(stream), frames, height: h, width: w, channels })
            .collect();
        let taps = kt * kh * kw;
        let factor = 1.0 / ((taps * channels) as f32).sqrt();
        // Multiples of a power of 2, so that folding is exact and the reference may use what was not folded.
        let weight: Vec<f32> = normal(outputs * taps * channels, 70)
            .into_iter()
            .map(|x| bf16::from_f32((x * 16.0).round().clamp(-60.0, 60.0) / 16.0 * exact(factor)).to_f32())
            .collect();
        let folded = if self.spatial == Spatial::Double {
            fold_for_doubling(&weight, channels)
        } else {
            weight.clone()
        };
        let on_gpu = Input::new(stream, &folded, channels, 0, Element::Bf16)?;
        let bias = Input::random(stream, [1, outputs, 0], Element::F32, 71)?;
        let gamma = Input::random(stream, [1, outputs, 0], Element::F32, 72)?;

        let frames: usize = self.parts.iter().sum();
        let new = frames - past;
        let (oh, ow) = match self.spatial {
            Spatial::Same => (h, w),
            Spatial::Halve => (h / 2, w / 2),
            Spatial::Double => (2 * h, 2 * w),
        };
        let (of, oc) = match self.time {
            Time::Same => (new, outputs),
            Time::Halve => (new / 2, outputs),
            Time::Double => (2 * new, outputs / 2),
        };
        let voxels = of * oh * ow;
        let residual = Input::random(stream, [voxels, oc, 0], self.element, 73)?;
        let layer = ConvLayer {
            weight: on_gpu.at(stream),
            bias: bias.at(stream),
            outputs,
            channels,
            kernel: self.kernel,
        };
        let epilogue = ConvEpilogue {
            residual: (self.follows == Follows::Residual).then(|| residual.at(stream)),
            norm: (self.follows == Follows::Norm).then(|| gamma.at(stream)),
        };
        let run = || -> Result<Vec<f64>> {
            let to = Output::new(stream, [voxels, oc, 0], self.element)?;
            let address = to.rows(stream).address;
            // SAFETY: the buffers have these sizes and live until the output has been read.
            unsafe {
                conv.run(
                    stream,
                    &volumes,
                    past,
                    &layer,
                    self.spatial,
                    self.time,
                    &epilogue,
                    address,
                    self.element,
                )?;
            };
            to.read(stream)
        };
        let (given, again) = (run()?, run()?);

        let input: Vec<f64> = parts.iter().flat_map(|x| &x.values).copied().collect();
        let wanted = by_rows(voxels, oc, |voxel, out| {
            let (t, y, x) = (voxel / (oh * ow), voxel / ow % oh, voxel % ow);
            let (end, shift) = match self.time {
                Time::Same => (past + t + 1, 0),
                Time::Halve => (past + 2 * t + 2, 0),
                Time::Double => (past + t / 2 + 1, t % 2 * oc),
            };
            for (o, out) in out.iter_mut().enumerate() {
                *out = bias.values[shift + o];
            }
            for tap in 0..taps {
                let frame = (end + tap / (kh * kw)).checked_sub(kt);
                let pixel = |at: usize, tap: usize, extent: usize, size: usize| match self.spatial {
                    Spatial::Same => (at + tap).checked_sub(extent / 2).filter(|&i| i < size),
                    Spatial::Halve => Some(2 * at + tap).filter(|&i| i < size),
                    Spatial::Double => {
                        (at + tap).checked_sub(extent / 2).map(|i| i / 2).filter(|&i| i < size)
                    }
                };
                let (row, column) = (pixel(y, tap / kw % kh, kh, h), pixel(x, tap % kw, kw, w));
                let (Some(frame), Some(row), Some(column)) = (frame, row, column) else { continue };
                let from = &input[((frame * h + row) * w + column) * channels..][..channels];
                for (o, out) in out.iter_mut().enumerate() {
                    let weight = &weight[((shift + o) * taps + tap) * channels..][..channels];
                    *out += from.iter().zip(weight).map(|(a, b)| a * f64::from(*b)).sum::<f64>();
                }
            }
            match self.follows {
                Follows::Nothing => {}
                Follows::Residual => {
                    out.iter_mut().zip(&residual.values[voxel * oc..]).for_each(|(o, r)| *o += r);
                }
                Follows::Norm => {
                    let x = out.to_vec();
                    normed(&x, &gamma.values, true, out);
                }
            }
        });
        let limit = if self.element == Element::F32 { 1e-4 } else { BF16_ROUNDING + 1e-4 };
        let name = format!(
            "{channels} to {outputs}, {:?}, past {past} of {:?}, {h}x{w}, {:?}/{:?}, {:?}",
            self.kernel, self.parts, self.spatial, self.time, self.follows
        );
        Ok(verdict(&name, &given, &again, &wanted, limit))
    }
}

/// Returns the nearest power of 2 below.
fn exact(x: f32) -> f32 {
    x.log2().floor().exp2()
}

/// Prints milliseconds and TFLOP/s on the model's shapes, 8 frames of 480P.
pub fn time(card: &Card) -> Result<()> {
    let conv = Conv::load(card)?;
    let stream = card.default_stream();
    println!("\nconvolutions 3x3x3, 8 frames after 2         ms  TFLOP/s");
    let most = 10 * 480 * 832 * 96;
    let some: Vec<u16> = normal(1 << 22, 1).iter().map(|x| bf16::from_f32(*x).to_bits()).collect();
    let bits: Vec<u16> = some.iter().copied().cycle().take(most).collect();
    let (input, output) = (stream.clone_htod(&bits)?, stream.alloc_zeros::<u16>(most)?);
    let bias = stream.clone_htod(&vec![1.0f32; 1024])?;
    let (input, output, bias) =
        (address(&input, &stream), address(&output, &stream), address(&bias, &stream));
    for (height, width, channels, outputs) in [
        (480, 832, 96, 96),
        (240, 416, 192, 192),
        (120, 208, 384, 384),
        (60, 104, 384, 384),
        (480, 832, 96, 4),
    ] {
        let volume = Volume { address: input, frames: 10, height, width, channels };
        let layer = ConvLayer { weight: input, bias, outputs, channels, kernel: [3, 3, 3] };
        let norms = if Conv::fuses_norm(outputs) { &[None, Some(bias)][..] } else { &[None] };
        for &norm in norms {
            let epilogue = ConvEpilogue { norm, residual: None };
            let element = Element::Bf16;
            // SAFETY: the buffers have these sizes and outlive the waits in `median`.
            let ms = median(&stream, || unsafe {
                let (spatial, time) = (Spatial::Same, Time::Same);
                conv.run(&stream, &[volume], 2, &layer, spatial, time, &epilogue, output, element)
            })?;
            let flop = 2.0 * (8 * height * width * 27 * channels * outputs) as f64;
            let name = format!(
                "{channels} to {outputs} at {height}x{width}{}",
                if norm.is_some() { ", norm" } else { "" }
            );
            println!("{name:36}{ms:9.3}{:9.0}", flop / f64::from(ms) / 1e9);
        }
    }
    Ok(())
}
