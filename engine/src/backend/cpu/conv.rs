//! Video volumes on the CPU: convolution without any intermediate but a few padded rows.
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

use super::{Cpu, slice, tensor};
use crate::backend::conv::{ConvEpilogue, ConvOps, Spatial, Step, Time};
use crate::weights::HostTensor;
use crate::{Error, Result};

use simd::{BLOCK, Kernel, LANES};

/// Voxels that one task of a norm handles: all channels of these stay in the cache between the two passes.
const NORM_GRAIN: usize = 1 << 10;

/// Scores that attention holds at once.
const SCORES: usize = 1 << 22;

/// A convolution's weight, rearranged for [`simd::dot`].
pub struct Conv {
    outputs: usize,
    inputs: usize,
    /// Extents of the kernel over time, height, width.
    kernel: [usize; 3],
    /// `[outputs / BLOCK, kt, inputs, kh * kw, BLOCK]`, filled up with zeros.
    weight: Vec<f32>,
    /// Filled up to whole blocks.
    bias: Vec<f32>,
}

impl ConvOps for Cpu {
    type Conv = Conv;

    fn load_conv(&self, weight: HostTensor, bias: HostTensor) -> Result<Conv> {
        let (outputs, inputs, kernel) = match *weight.shape {
            [o, i, kt, kh, kw] => (o, i, [kt, kh, kw]),
            [o, i, kh, kw] => (o, i, [1, kh, kw]),
            _ => return Err(Error::Internal(format!("{:?} is no convolution's weight", weight.shape))),
        };
        let [kt, kh, kw] = kernel;
        let taps = kh * kw;
        if !matches!([kh, kw], [1, 1] | [3, 3])
            || !matches!(kt, 1 | 3)
            || weight.data.len() != outputs * inputs * kt * taps
            || bias.data.len() != outputs
            || outputs * inputs == 0
        {
            return Err(Error::Internal(format!(
                "a convolution's weight {:?} and bias {:?} do not go together",
                weight.shape, bias.shape
            )));
        }
        let blocks = outputs.div_ceil(BLOCK);
        let mut rearranged = vec![0.0; blocks * BLOCK * inputs * kt * taps];
        for o in 0..outputs {
            for i in 0..inputs {
                for t in 0..kt {
                    for tap in 0..taps {
                        let to = (((o / BLOCK * kt + t) * inputs + i) * taps + tap) * BLOCK + o % BLOCK;
                        rearranged[to] = weight.data[((o * inputs + i) * kt + t) * taps + tap];
                    }
                }
            }
        }
        let mut filled = bias.data;
        filled.resize(blocks * BLOCK, 0.0);
        Ok(Conv { outputs, inputs, kernel, weight: rearranged, bias: filled })
    }

    fn conv(
        &self,
        parts: &[&Tensor],
        past: usize,
        layer: &Conv,
        step: Step,
        epilogue: &ConvEpilogue<'_, Tensor>,
    ) -> Result<Tensor> {
        conv(Kernel::best(), parts, past, layer, step, epilogue)
    }

    fn channel_norm(&self, x: &Tensor, gamma: &Tensor, silu: bool) -> Result<Tensor> {
        let [channels, ..] = extents(x)?;
        let voxels = x.elem_count() / channels.max(1);
        check_gamma(gamma, channels)?;
        let mut out = vec![0.0; x.elem_count()];
        slice(x, |x| {
            slice(gamma, |gamma| {
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
            })
        })?;
        tensor(out, x.dims())
    }

    fn frame_attention(&self, qkv: &Tensor) -> Result<Tensor> {
        let [channels, frames, height, width] = extents(qkv)?;
        let (channels, pixels) = (channels / 3, height * width);
        if qkv.dims()[0] != 3 * channels || channels * pixels == 0 {
            return Err(Error::Internal(format!("{:?} is no query, key and value", qkv.dims())));
        }
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
                let mut weights = slice(&scores, |s| Ok(s.to_vec()))?;
                weights.par_chunks_mut(pixels).for_each(softmax);
                Ok(tensor(weights, scores.dims())?.matmul(&v)?)
            });
            let blocks = blocks.collect::<Result<Vec<_>>>()?;
            out.push(Tensor::cat(&blocks, 0)?.t()?.contiguous()?.reshape((channels, 1, height, width))?);
        }
        Ok(Tensor::cat(&out, 1)?.contiguous()?)
    }

    fn fade(&self, before: &Tensor, after: &Tensor, axis: usize, extent: usize) -> Result<Tensor> {
        let (left, right) = (extents(before)?, extents(after)?);
        let others_differ = (0..4).any(|i| i != axis && left[i] != right[i]);
        if axis > 3 || others_differ || extent > left[axis] || extent > right[axis] {
            return Err(Error::Internal(format!(
                "cannot fade {left:?} into {right:?} over {extent} along {axis}"
            )));
        }
        let inner: usize = right[axis + 1..].iter().product();
        let outer: usize = right[..axis].iter().product();
        let mut out = slice(after, |after| Ok(after.to_vec()))?;
        slice(before, |before| {
            for o in 0..outer {
                let from = &before[((o + 1) * left[axis] - extent) * inner..][..extent * inner];
                let to = &mut out[o * right[axis] * inner..][..extent * inner];
                for (i, (from, to)) in from.chunks_exact(inner).zip(to.chunks_exact_mut(inner)).enumerate() {
                    let share = i as f64 / extent as f64;
                    let (old, new) = ((1.0 - share) as f32, share as f32);
                    from.iter().zip(to).for_each(|(from, to)| *to = from * old + *to * new);
                }
            }
            Ok(())
        })?;
        tensor(out, after.dims())
    }
}

/// The extents of a volume.
fn extents(x: &Tensor) -> Result<[usize; 4]> {
    <[usize; 4]>::try_from(x.dims()).map_err(|_| {
        Error::Internal(format!("{:?} is no volume of channels, frames, height, width", x.dims()))
    })
}

fn check_gamma(gamma: &Tensor, channels: usize) -> Result<()> {
    if gamma.elem_count() == channels {
        return Ok(());
    }
    Err(Error::Internal(format!("a norm of {:?} does not fit {channels} channels", gamma.dims())))
}

/// From sums of squares to the factors that make the norm sqrt(channels).
fn norm_factors(squares: &mut [f32], channels: usize) {
    let root = (channels as f32).sqrt();
    squares.iter_mut().for_each(|s| *s = root / s.sqrt().max(1e-12));
}

fn softmax(row: &mut [f32]) {
    let max = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let mut sum = 0.0;
    for v in row.iter_mut() {
        *v = (*v - max).exp();
        sum += *v;
    }
    row.iter_mut().for_each(|v| *v /= sum);
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
    /// No two slices that are alive at one time overlap.
    #[expect(clippy::mut_from_ref, reason = "that is its purpose")]
    unsafe fn slice(&self, start: usize, len: usize) -> &mut [f32] {
        assert!(start <= self.len && len <= self.len - start);
        // SAFETY: within the buffer, which is borrowed for 'a; exclusive by the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(start), len) }
    }
}

/// The values of tensors that are held.
fn held_values<'a, G: Deref<Target = Storage>>(held: &'a [(G, &Layout)]) -> Result<Vec<&'a [f32]>> {
    let values = held.iter().map(|(storage, layout)| match (&**storage, layout.contiguous_offsets()) {
        (Storage::Cpu(CpuStorage::F32(values)), Some((start, end))) => Ok(&values[start..end]),
        _ => Err(Error::Internal("a volume is not f32, contiguous and in host memory".into())),
    });
    values.collect()
}

/// A frame of an input volume: where its first channel starts, and how far the channels lie apart.
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
    /// Zeros above and to the left, as many as below and to the right unless halving.
    pad: usize,
    /// Length of a padded row; for `Halve` of both its halves together.
    row: usize,
}

impl Source<'_> {
    /// Padded rows below each other that `rows` rows of the result need.
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
                            self.pad_row(&frame.values[c * frame.stride + y * self.width..][..self.width], to)
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

/// See [`ConvOps::conv`].
fn conv(
    kernel: Kernel,
    parts: &[&Tensor],
    past: usize,
    layer: &Conv,
    step: Step,
    epilogue: &ConvEpilogue<'_, Tensor>,
) -> Result<Tensor> {
    let [kt, kh, kw] = layer.kernel;
    let Some(&last) = parts.last() else {
        return Err(Error::Internal("a convolution over no frames".into()));
    };
    let [inputs, _, height, width] = extents(last)?;
    let frames = parts.iter().map(|p| Ok(extents(p)?[1])).sum::<Result<usize>>()?;
    let new = frames.saturating_sub(past);
    let fits =
        parts.iter().all(|p| matches!(*p.dims(), [i, _, h, w] if [i, h, w] == [inputs, height, width]));
    let even = height % 2 == 0 && width % 2 == 0 && kh == 3;
    if !fits
        || inputs != layer.inputs
        || new == 0
        || height * width == 0
        || (step.time == Time::Halve && new % 2 != 0)
        || (step.time == Time::Double && (epilogue.norm.is_some() || layer.outputs % 2 != 0))
        || (step.spatial == Spatial::Halve && !even)
    {
        return Err(Error::Internal(format!(
            "{inputs} channels of {frames} frames, {past} of them past, {height}x{width}, do not fit a convolution of \
             {} to {} channels, {kt}x{kh}x{kw}, {step:?}",
            layer.inputs, layer.outputs
        )));
    }
    let (out_height, out_width) = match step.spatial {
        Spatial::Same => (height, width),
        Spatial::Halve => (height / 2, width / 2),
        Spatial::Double => (2 * height, 2 * width),
    };
    let (stride, steps) = if step.time == Time::Halve { (2, new / 2) } else { (1, new) };
    let (channels, out_frames) = match step.time {
        Time::Double => (layer.outputs / 2, 2 * steps),
        Time::Same | Time::Halve => (layer.outputs, steps),
    };
    let shape = [channels, out_frames, out_height, out_width];
    if let Some(gamma) = epilogue.norm {
        check_gamma(gamma, channels)?;
    }
    if epilogue.residual.is_some_and(|r| r.dims() != shape) {
        return Err(Error::Internal(format!("a residual is not of the result's shape {shape:?}")));
    }

    let held: Vec<_> = parts.iter().map(|part| part.storage_and_layout()).collect();
    let mut source_frames = Vec::with_capacity(frames);
    for (values, part) in held_values(&held)?.into_iter().zip(parts) {
        let plane = height * width;
        let stride = part.dims()[1] * plane;
        source_frames.extend((0..part.dims()[1]).map(|t| Frame { values: &values[t * plane..], stride }));
    }
    let extras = epilogue.residual.into_iter().chain(epilogue.norm);
    let extras: Vec<_> = extras.map(Tensor::storage_and_layout).collect();
    let mut extras = held_values(&extras)?.into_iter();
    let residual = epilogue.residual.and_then(|_| extras.next());
    let gamma = epilogue.norm.and_then(|_| extras.next());

    // Rows of the result are computed in whole vectors.
    let computed = out_width.next_multiple_of(LANES);
    let source = Source {
        frames: source_frames,
        spatial: step.spatial,
        inputs,
        height,
        width,
        pad: if step.spatial == Spatial::Halve { 0 } else { kw / 2 },
        row: if step.spatial == Spatial::Halve { 2 * (computed + LANES) } else { computed + kw - 1 },
    };
    // Few rows share less of the padding; many are too few tasks.
    let band = (out_height / (4 * rayon::current_num_threads())).clamp(1, 8);
    let mut out = vec![0.0; shape.iter().product()];
    let shared = Shared::new(&mut out);
    (0..out_height.div_ceil(band)).into_par_iter().for_each_init(Vec::new, |padded, task| {
        let first = task * band;
        let rows = band.min(out_height - first);
        let padded_rows = source.rows_for(rows, kh);
        padded.resize(frames * inputs * padded_rows * source.row, 0.0);
        source.pad_rows(first, padded_rows, padded);
        let offsets: Vec<usize> = (0..kh * kw)
            .map(|tap| {
                let (y, x) = (tap / kw, tap % kw);
                let x = if step.spatial == Spatial::Halve { x % 2 * (source.row / 2) + x / 2 } else { x };
                y * source.row + x
            })
            .collect();
        let plane = padded_rows * source.row;
        let mut sums = vec![0.0; layer.bias.len() * computed];
        let mut factors = vec![0.0; out_width];
        for t in 0..steps {
            let end = past + t * stride + stride; // the kernel ends before this frame
            let skipped = kt.saturating_sub(end); // elements of the kernel over the zeros before all frames
            let frame = (end + skipped - kt) * inputs * plane;
            for r in 0..rows {
                let row_step = if step.spatial == Spatial::Halve { 2 } else { 1 };
                let input = simd::Input {
                    values: padded,
                    start: frame + r * row_step * source.row,
                    channels: (kt - skipped) * inputs,
                    stride: plane,
                    offsets: &offsets,
                };
                let skipped = skipped * inputs * offsets.len() * BLOCK;
                kernel.dot(&input, &layer.weight, skipped, &layer.bias, &mut sums);
                let place = |o: usize| {
                    let (c, f) = match step.time {
                        Time::Double => (o % channels, 2 * t + o / channels),
                        Time::Same | Time::Halve => (o, t),
                    };
                    ((c * out_frames + f) * out_height + first + r) * out_width
                };
                let sums = sums.chunks_exact_mut(computed).take(layer.outputs);
                let mut sums: Vec<&mut [f32]> = sums.map(|row| &mut row[..out_width]).collect();
                if let Some(residual) = residual {
                    for (o, row) in sums.iter_mut().enumerate() {
                        let residual = &residual[place(o)..][..out_width];
                        row.iter_mut().zip(residual).for_each(|(s, r)| *s += r);
                    }
                }
                if let Some(gamma) = gamma {
                    factors.fill(0.0);
                    sums.iter().for_each(|row| kernel.add_squares(row, &mut factors));
                    norm_factors(&mut factors, channels);
                    sums.iter_mut().zip(gamma).for_each(|(row, &g)| kernel.normalize(row, &factors, g, true));
                }
                for (o, row) in sums.iter().enumerate() {
                    // SAFETY: each channel, frame and row of the result is written once.
                    unsafe { shared.slice(place(o), out_width) }.copy_from_slice(row);
                }
            }
        }
    });
    tensor(out, &shape)
}
