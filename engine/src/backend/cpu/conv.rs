//! Convolutions of video volumes on the CPU, with no intermediate result but a few padded rows.
//!
//! A task computes a band of rows of all frames. It copies the rows that the band needs, padded with zeros (and
//! doubled, or split into even and odd columns), so that every kernel element reads a row at a constant offset; then
//! [`simd::dot`] sums up whole rows in registers.

mod simd;
#[cfg(test)]
mod tests;

use std::ops::Deref;

use candle_core::{CpuStorage, Layout, Storage, Tensor};
use rayon::prelude::*;

use super::{Cpu, tensor, with_values};
use crate::backend::conv::{ConvEpilogue, ConvOps, ConvShape, Spatial, Step, Time, frame_attention_sizes};
use crate::backend::loading::ConvWeights;
use crate::weights::HostTensor;
use crate::{Error, Result};

use simd::{BLOCK, Kernel, LANES};

/// The number of voxels that one task of a norm handles: all their channels stay in the cache between the two passes.
const NORM_GRAIN: usize = 1 << 10;

/// The number of scores that attention holds at once.
const SCORES: usize = 1 << 22;

/// A convolution's weight, rearranged for [`simd::dot`].
pub struct Conv {
    shape: ConvShape,
    /// The weights, `[outputs / BLOCK, kt, inputs, kh * kw, BLOCK]`, padded with zeros.
    weight: Vec<f32>,
    /// The bias, padded to whole blocks.
    bias: Vec<f32>,
}

impl Conv {
    pub(super) fn load(weights: ConvWeights) -> Self {
        let ConvWeights { shape, weight, bias: mut filled } = weights;
        let ConvShape { outputs, inputs, kernel: [kt, kh, kw] } = shape;
        let taps = kh * kw;
        let blocks = outputs.div_ceil(BLOCK);
        let mut rearranged = vec![0.0; blocks * BLOCK * inputs * kt * taps];
        for o in 0..outputs {
            for i in 0..inputs {
                for t in 0..kt {
                    for tap in 0..taps {
                        let to = (((o / BLOCK * kt + t) * inputs + i) * taps + tap) * BLOCK + o % BLOCK;
                        rearranged[to] = weight[((o * inputs + i) * kt + t) * taps + tap];
                    }
                }
            }
        }
        filled.resize(blocks * BLOCK, 0.0);
        Self { shape, weight: rearranged, bias: filled }
    }
}

/// The gamma `[channels]` of a norm over channels.
pub struct ChannelNorm(Vec<f32>);

impl ChannelNorm {
    pub(super) fn load(gamma: HostTensor) -> Self {
        Self(gamma.data)
    }

    /// Returns the factors, if they are for so many channels.
    fn of(&self, channels: usize) -> Result<&[f32]> {
        if self.0.len() != channels {
            return Err(Error::Internal(format!(
                "a norm of {} does not fit {channels} channels",
                self.0.len()
            )));
        }
        Ok(&self.0)
    }
}

impl ConvOps for Cpu {
    type Conv = Conv;
    type ChannelNorm = ChannelNorm;

    fn conv(
        &self,
        parts: &[&Tensor],
        past: usize,
        layer: &Conv,
        step: Step,
        epilogue: &ConvEpilogue<'_, Self>,
    ) -> Result<Tensor> {
        conv(Kernel::best(), parts, past, layer, step, epilogue)
    }

    fn channel_norm(&self, x: &Tensor, norm: &ChannelNorm, silu: bool) -> Result<Tensor> {
        let [channels, ..] = extents(x)?;
        let voxels = x.elem_count() / channels.max(1);
        let gamma = norm.of(channels)?;
        let mut out = vec![0.0; x.elem_count()];
        with_values(x, |x| {
            let kernel = Kernel::best();
            let shared = Shared::new(&mut out);
            (0..voxels.div_ceil(NORM_GRAIN)).into_par_iter().for_each_init(Vec::new, |scale, task| {
                let start = task * NORM_GRAIN;
                let len = NORM_GRAIN.min(voxels - start);
                let channel = |c: usize| &x[c * voxels + start..][..len];
                scale.clear();
                scale.resize(len, 0.0);
                for c in 0..channels {
                    kernel.add_squares(channel(c), scale);
                }
                norm_factors(scale, channels);
                for (c, &gamma) in gamma.iter().enumerate() {
                    // SAFETY: tasks cover disjoint voxels, and one task one channel after the other.
                    let out = unsafe { shared.slice(c * voxels + start, len) };
                    out.copy_from_slice(channel(c));
                    kernel.normalize(out, scale, gamma, silu);
                }
            });
            Ok(())
        })?;
        tensor(out, x.dims())
    }

    fn frame_attention(&self, qkv: &Tensor) -> Result<Tensor> {
        let shape @ [.., height, width] = extents(qkv)?;
        let [channels, frames, pixels] = frame_attention_sizes(shape)?;
        let scale = 1.0 / (channels as f64).sqrt();
        let mut out = Vec::with_capacity(frames);
        for frame in 0..frames {
            let one = qkv.narrow(1, frame, 1)?.contiguous()?.reshape((3, channels, pixels))?;
            let q = (one.get(0)?.t()?.contiguous()? * scale)?;
            let (k, v) = (one.get(1)?, one.get(2)?);
            let v = v.t()?.contiguous()?;
            let rows = (SCORES / pixels).clamp(1, pixels);
            let blocks = (0..pixels).step_by(rows).map(|start| {
                let scores = q.narrow(0, start, rows.min(pixels - start))?.matmul(&k)?;
                let mut weights = with_values(&scores, |s| Ok(s.to_vec()))?;
                weights.par_chunks_mut(pixels).for_each(softmax);
                Ok(tensor(weights, scores.dims())?.matmul(&v)?)
            });
            let blocks = blocks.collect::<Result<Vec<_>>>()?;
            out.push(Tensor::cat(&blocks, 0)?.t()?.contiguous()?.reshape((channels, 1, height, width))?);
        }
        Ok(Tensor::cat(&out, 1)?.contiguous()?)
    }
}

/// Returns the extents of a volume.
fn extents(x: &Tensor) -> Result<[usize; 4]> {
    <[usize; 4]>::try_from(x.dims()).map_err(|_| {
        Error::Internal(format!("{:?} is no volume of channels, frames, height, width", x.dims()))
    })
}

/// Turns sums of squares into the factors that make the norm sqrt(channels).
fn norm_factors(squares: &mut [f32], channels: usize) {
    let root = (channels as f32).sqrt();
    for s in squares {
        *s = root / s.sqrt().max(1e-12);
    }
}

fn softmax(row: &mut [f32]) {
    let max = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let mut sum = 0.0;
    for v in row.iter_mut() {
        *v = (*v - max).exp();
        sum += *v;
    }
    for v in row {
        *v /= sum;
    }
}

/// A buffer in which tasks write disjoint ranges.
struct Shared<'a> {
    start: *mut f32,
    len: usize,
    buffer: std::marker::PhantomData<&'a mut [f32]>,
}

// SAFETY: it is only written through `slice`, whose callers keep the ranges apart.
unsafe impl Sync for Shared<'_> {}

impl<'a> Shared<'a> {
    fn new(buffer: &'a mut [f32]) -> Self {
        Self { start: buffer.as_mut_ptr(), len: buffer.len(), buffer: std::marker::PhantomData }
    }

    /// # Safety
    /// No two slices that are alive at the same time may overlap.
    #[expect(clippy::mut_from_ref, reason = "that is its purpose")]
    unsafe fn slice(&self, start: usize, len: usize) -> &mut [f32] {
        assert!(start <= self.len && len <= self.len - start);
        // SAFETY: within the buffer, which is borrowed for 'a; exclusive by the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(start), len) }
    }
}

/// Returns the values of tensors that are held.
fn held_values<'a, G: Deref<Target = Storage>>(held: &'a [(G, &Layout)]) -> Result<Vec<&'a [f32]>> {
    let values = held.iter().map(|(storage, layout)| match (&**storage, layout.contiguous_offsets()) {
        (Storage::Cpu(CpuStorage::F32(values)), Some((start, end))) => Ok(&values[start..end]),
        _ => Err(Error::Internal("a volume is not f32, contiguous and in host memory".into())),
    });
    values.collect()
}

/// A frame of an input volume: the offset of its first channel, and the distance between channels.
#[derive(Clone, Copy)]
struct Frame<'a> {
    values: &'a [f32],
    stride: usize,
}

/// The input of a convolution and the arrangement of its padded rows.
struct Source<'a> {
    frames: Vec<Frame<'a>>,
    spatial: Spatial,
    inputs: usize,
    height: usize,
    width: usize,
    /// The zeros above and to the left; below and to the right there are as many, except when halving.
    pad: usize,
    /// The length of a padded row; for `Halve` that of both its halves together.
    row: usize,
}

impl Source<'_> {
    /// Returns the number of padded rows that `rows` rows of the result need.
    fn rows_for(&self, rows: usize, kernel_height: usize) -> usize {
        match self.spatial {
            Spatial::Halve => 2 * rows - 2 + kernel_height,
            Spatial::Same | Spatial::Double => rows + kernel_height - 1,
        }
    }

    /// Writes the padded rows of the result's rows from `first` on: `[frames, inputs, rows, row]`.
    fn pad_rows(&self, first: usize, rows: usize, padded: &mut [f32]) {
        for (f, frame) in self.frames.iter().enumerate() {
            for c in 0..self.inputs {
                for r in 0..rows {
                    let to = &mut padded[((f * self.inputs + c) * rows + r) * self.row..][..self.row];
                    let from = match self.spatial {
                        Spatial::Same => (first + r).checked_sub(self.pad),
                        Spatial::Halve => Some(2 * first + r),
                        Spatial::Double => (first + r).checked_sub(self.pad).map(|y| y / 2),
                    };
                    match from.filter(|&y| y < self.height) {
                        Some(y) => {
                            self.pad_row(
                                &frame.values[c * frame.stride + y * self.width..][..self.width],
                                to,
                            );
                        }
                        None => to.fill(0.0),
                    }
                }
            }
        }
    }

    fn pad_row(&self, from: &[f32], to: &mut [f32]) {
        let (left, to) = to.split_at_mut(self.pad);
        left.fill(0.0);
        match self.spatial {
            Spatial::Same => {
                let (middle, right) = to.split_at_mut(from.len());
                middle.copy_from_slice(from);
                right.fill(0.0);
            }
            Spatial::Double => {
                let (middle, right) = to.split_at_mut(2 * from.len());
                for (pair, &v) in middle.chunks_exact_mut(2).zip(from) {
                    pair.fill(v);
                }
                right.fill(0.0);
            }
            Spatial::Halve => {
                let (even, odd) = to.split_at_mut(self.row / 2);
                for ((even, odd), pair) in even.iter_mut().zip(odd.iter_mut()).zip(from.chunks_exact(2)) {
                    (*even, *odd) = (pair[0], pair[1]);
                }
                even[from.len() / 2..].fill(0.0);
                odd[from.len() / 2..].fill(0.0);
            }
        }
    }
}

/// Computes [`ConvOps::conv`].
fn conv(
    kernel: Kernel,
    parts: &[&Tensor],
    past: usize,
    layer: &Conv,
    step: Step,
    epilogue: &ConvEpilogue<'_, Cpu>,
) -> Result<Tensor> {
    let volumes: Vec<_> = parts.iter().map(|part| extents(part)).collect::<Result<_>>()?;
    let shape = layer.shape.result(&volumes, past, step)?;
    let [channels, _, out_height, out_width] = shape;
    let gamma = epilogue.norm.map(|norm| norm.of(channels)).transpose()?;
    let doubled = step.time == Time::Double && epilogue.norm.is_some();
    if doubled || epilogue.residual.is_some_and(|r| r.dims() != shape) {
        return Err(Error::Internal(format!("what follows a convolution does not fit its result {shape:?}")));
    }

    let volumes_held: Vec<_> = parts.iter().map(|part| part.storage_and_layout()).collect();
    let [inputs, _, height, width] = volumes[0];
    let mut frames = Vec::new();
    for (values, part) in held_values(&volumes_held)?.into_iter().zip(parts) {
        let (count, plane) = (part.dims()[1], height * width);
        frames.extend((0..count).map(|t| Frame { values: &values[t * plane..], stride: count * plane }));
    }
    let held: Vec<_> = epilogue.residual.into_iter().map(Tensor::storage_and_layout).collect();
    let residual = held_values(&held)?.first().copied();

    let [_, kh, kw] = layer.shape.kernel;
    // Rows of the result are computed in whole vectors.
    let computed = out_width.next_multiple_of(LANES);
    let halve = step.spatial == Spatial::Halve;
    let row = if halve { 2 * (computed + LANES) } else { computed + kw - 1 };
    let pad = if halve { 0 } else { kw / 2 };
    let offset = |y: usize, x: usize| y * row + if halve { x % 2 * (row / 2) + x / 2 } else { x };
    let work = Work {
        kernel,
        layer,
        time: step.time,
        past,
        shape,
        computed,
        source: Source { frames, spatial: step.spatial, inputs, height, width, pad, row },
        offsets: (0..kh * kw).map(|tap| offset(tap / kw, tap % kw)).collect(),
        residual,
        gamma,
    };
    // Bands of few rows share less of the padding; bands of many rows give too few tasks.
    let band = (out_height / (4 * rayon::current_num_threads())).clamp(1, 8);
    let mut out = vec![0.0; shape.iter().product()];
    let shared = Shared::new(&mut out);
    (0..out_height.div_ceil(band)).into_par_iter().for_each_init(Vec::new, |padded, task| {
        work.band(task * band, band.min(out_height - task * band), padded, &shared);
    });
    tensor(out, &shape)
}

/// One convolution, ready to run.
struct Work<'a> {
    kernel: Kernel,
    layer: &'a Conv,
    time: Time,
    past: usize,
    /// The extents of the result.
    shape: [usize; 4],
    /// The length of a computed row, at least that of the result's.
    computed: usize,
    source: Source<'a>,
    /// The offset of each element of the kernel, relative to the first one of its frame and channel.
    offsets: Vec<usize>,
    residual: Option<&'a [f32]>,
    gamma: Option<&'a [f32]>,
}

impl Work<'_> {
    /// Computes a band of rows of all frames of the result.
    fn band(&self, first: usize, rows: usize, padded: &mut Vec<f32>, out: &Shared<'_>) {
        let [kt, kh, _] = self.layer.shape.kernel;
        let source = &self.source;
        let padded_rows = source.rows_for(rows, kh);
        let plane = padded_rows * source.row;
        padded.resize(source.frames.len() * source.inputs * plane, 0.0);
        source.pad_rows(first, padded_rows, padded);

        let row_step = if source.spatial == Spatial::Halve { 2 } else { 1 };
        let (stride, steps) = match self.time {
            Time::Same => (1, self.shape[1]),
            Time::Halve => (2, self.shape[1]),
            Time::Double => (1, self.shape[1] / 2),
        };
        let mut sums = vec![0.0; self.layer.bias.len() * self.computed];
        for step in 0..steps {
            let end = self.past + (step + 1) * stride; // the kernel ends before this frame
            let skipped = kt.saturating_sub(end); // elements of the kernel over the zeros before all frames
            let frame = (end + skipped - kt) * source.inputs * plane;
            for r in 0..rows {
                let input = simd::Input {
                    values: padded,
                    start: frame + r * row_step * source.row,
                    channels: (kt - skipped) * source.inputs,
                    stride: plane,
                    offsets: &self.offsets,
                };
                let skipped = skipped * source.inputs * self.offsets.len() * BLOCK;
                self.kernel.dot(&input, &self.layer.weight, skipped, &self.layer.bias, &mut sums);
                self.finish(step, first + r, &mut sums, out);
            }
        }
    }

    /// Applies the epilogue to all channels of a row, and writes them.
    fn finish(&self, step: usize, y: usize, sums: &mut [f32], out: &Shared<'_>) {
        let [channels, frames, height, width] = self.shape;
        let place = |o: usize| {
            let (c, t) = match self.time {
                Time::Double => (o % channels, 2 * step + o / channels),
                Time::Same | Time::Halve => (o, step),
            };
            ((c * frames + t) * height + y) * width
        };
        let rows = sums.chunks_exact_mut(self.computed).take(self.layer.shape.outputs);
        let mut rows: Vec<&mut [f32]> = rows.map(|row| &mut row[..width]).collect();
        if let Some(residual) = self.residual {
            for (o, row) in rows.iter_mut().enumerate() {
                row.iter_mut().zip(&residual[place(o)..]).for_each(|(s, r)| *s += r);
            }
        }
        if let Some(gamma) = self.gamma {
            let mut factors = vec![0.0; width];
            for row in &rows {
                self.kernel.add_squares(row, &mut factors);
            }
            norm_factors(&mut factors, channels);
            for (row, &gamma) in rows.iter_mut().zip(gamma) {
                self.kernel.normalize(row, &factors, gamma, true);
            }
        }
        for (o, row) in rows.iter().enumerate() {
            // SAFETY: each channel, frame and row of the result is written once.
            unsafe { out.slice(place(o), width) }.copy_from_slice(row);
        }
    }
}
