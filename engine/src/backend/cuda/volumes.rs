//! Video volumes: convolutions over volumes with their channels innermost, in bf16, or of f32 as sums of two bf16 numbers.

use animd_kernels::cuda::{
    self, AnyAttentionArguments, Batches, ConvEnding, ConvLayer, Element, Rows, Volume, fold_for_doubling,
};
use half::bf16;
use rayon::prelude::*;

use super::tensor::{Tensor, View, filled_up, padded};
use super::{Cuda, Gpu, kernel, take};
use crate::backend::conv::{ConvEpilogue, ConvOps, ConvShape, Spatial, Step, Time};
use crate::profile::Weights;
use crate::weights::HostTensor;
use crate::{Error, Result};

/// Parts of one launch.
const PARTS: usize = 8;
/// Up to so many channels are written as f32: they leave the network.
const FEW: usize = 16;
/// Channels that one tile of the kernel has, which frames doubled in time must be multiples of.
const HALF: usize = 64;

/// A convolution's weight and bias on the GPU.
pub struct Conv {
    shape: ConvShape,
    /// `[padded outputs, kt, kh, kw, padded inputs]` bf16, or three times as many inputs.
    weight: View,
    /// For pixels that become four; of kernels over a single frame.
    folded: Option<View>,
    /// `[padded outputs]`.
    bias: View,
    /// f32 volumes come and go; inputs and weights are sums of two bf16 numbers.
    split: bool,
}

impl Conv {
    /// As the kernels take it.
    fn layer(&self, spatial: Spatial) -> Result<ConvLayer> {
        let weight = match spatial {
            Spatial::Double => self.folded.as_ref().ok_or_else(|| {
                Error::Internal(format!("a kernel of {:?} cannot double the pixels", self.shape.kernel))
            })?,
            _ => &self.weight,
        };
        Ok(ConvLayer {
            weight: weight.address,
            bias: self.bias.address,
            outputs: padded(self.shape.outputs),
            channels: padded(self.shape.inputs) * if self.split { 3 } else { 1 },
            kernel: self.shape.kernel,
        })
    }
}

impl ConvOps for Cuda {
    type Conv = Conv;

    fn load_conv(&self, weight: HostTensor, bias: HostTensor) -> Result<Conv> {
        let shape = ConvShape::of(&weight, &bias)?;
        let ConvShape { outputs, inputs, kernel } = shape;
        let taps: usize = kernel.iter().product();
        let (channels, rows) = (padded(inputs), padded(outputs));
        let mut rearranged = vec![0.0; rows * taps * channels];
        for (o, from) in weight.data.chunks_exact(inputs * taps).enumerate() {
            for (i, from) in from.chunks_exact(taps).enumerate() {
                for (tap, value) in from.iter().enumerate() {
                    rearranged[(o * taps + tap) * channels + i] = *value;
                }
            }
        }
        let mut filled = bias.data;
        filled.resize(rows, 0.0);
        let gpu = &self.gpu;
        let split = self.in_f32();
        let load = |values: &[f32]| -> Result<View> {
            let rounded = match split {
                true => split_channels(values, channels),
                false => values.iter().map(|v| bf16::from_f32(*v).to_bits()).collect(),
            };
            let view = take(&gpu.weights, rounded.len(), Element::Bf16, &[rounded.len()])?;
            gpu.send(&rounded, view.address)?;
            Ok(view)
        };
        let doubling = kernel == [1, 3, 3];
        let folded = doubling.then(|| load(&fold_for_doubling(&rearranged, channels))).transpose()?;
        let (weight, bias) = (load(&rearranged)?, gpu.upload_to(&gpu.weights, &filled, &[rows])?);
        Ok(Conv { shape, weight, folded, bias, split })
    }

    fn conv(
        &self,
        parts: &[&Tensor],
        past: usize,
        layer: &Conv,
        step: Step,
        epilogue: &ConvEpilogue<'_, Tensor>,
    ) -> Result<Tensor> {
        let gpu = &self.gpu;
        if epilogue.norm.is_some() && step.time == Time::Double {
            return Err(Error::Internal("a norm cannot follow a convolution that doubles the frames".into()));
        }
        let kind = if layer.split { Element::F32 } else { Element::Bf16 };
        let whole;
        let mut volumes = match parts.len() {
            ..=PARTS => parts.iter().map(|part| gpu.volume(part, kind)).collect::<Result<Vec<_>>>()?,
            _ => {
                whole = crate::backend::TensorOps::concat(self, parts, 1)?;
                vec![gpu.volume(&whole, kind)?]
            }
        };
        volumes.retain(|view| view.shape[1] > 0);
        let extents = volumes.iter().map(View::extents).collect::<Option<Vec<_>>>().unwrap_or_default();
        let extents = layer.shape.result(&extents, past, step)?;
        let [channels, frames, height, width] = extents;
        let few = padded(layer.shape.outputs) <= FEW
            && epilogue.residual.is_none()
            && epilogue.norm.is_none()
            && step.time != Time::Double;
        let element = if few { Element::F32 } else { kind };
        if epilogue.residual.is_some_and(|r| r.extents() != extents) {
            return Err(Error::Internal(format!("a residual that is not {extents:?}")));
        }
        let residual = epilogue.residual.map(|residual| gpu.volume(residual, kind)).transpose()?;
        let gamma = epilogue.norm.map(|gamma| gpu.vector(gamma, channels)).transpose()?;
        let fused = !layer.split && residual.is_none() && cuda::Conv::fuses_norm(channels);
        if layer.split {
            volumes = volumes.iter().map(|volume| gpu.split(volume)).collect::<Result<_>>()?;
        }
        let y = gpu.channels_last(extents, element)?;
        let parts: Vec<Volume> = volumes.iter().map(View::volume).collect();
        let kernels = layer.layer(step.spatial)?;
        let spatial = match step.spatial {
            Spatial::Same => cuda::Spatial::Same,
            Spatial::Halve => cuda::Spatial::Halve,
            Spatial::Double => cuda::Spatial::Double,
        };
        let ending = ConvEnding {
            residual: residual.as_ref().map(|residual| residual.address),
            norm: gamma.as_ref().filter(|_| fused).map(|gamma| gamma.address),
        };
        let run = |kernels: &ConvLayer, time, to: &View| {
            // SAFETY: the views have these extents and keep their memory; pieces are given back in the order of the
            // stream.
            kernel(unsafe {
                gpu.conv.run(&gpu.stream, &parts, past, kernels, spatial, time, &ending, to.address, element)
            })
        };
        match step.time {
            Time::Same => run(&kernels, cuda::Time::Same, &y)?,
            Time::Halve => run(&kernels, cuda::Time::Halve, &y)?,
            Time::Double if channels.is_multiple_of(HALF) => run(&kernels, cuda::Time::Double, &y)?,
            Time::Double => {
                // Too few channels for the kernel to tell the halves apart: each on its own, then frame by frame.
                if !channels.is_multiple_of(8) || ending.residual.is_some() {
                    return Err(Error::Internal(format!("{channels} channels cannot be doubled in time")));
                }
                let weights = kernels.channels * layer.shape.kernel.iter().product::<usize>();
                for half in 0..2 {
                    let one = ConvLayer {
                        weight: kernels.weight + (2 * half * channels * weights) as u64,
                        bias: kernels.bias + (4 * half * channels) as u64,
                        outputs: channels,
                        ..kernels
                    };
                    let part = gpu.channels_last([channels, frames / 2, height, width], element)?;
                    run(&one, cuda::Time::Same, &part)?;
                    for frame in 0..frames / 2 {
                        gpu.copy(&part.slice(1, frame, 1), &y.slice(1, 2 * frame + half, 1))?;
                    }
                }
            }
        }
        if let Some(gamma) = gamma.filter(|_| !fused) {
            gpu.normalize(&y, &gamma, &y, true)?;
        }
        Ok(y.into())
    }

    fn channel_norm(&self, x: &Tensor, gamma: &Tensor, silu: bool) -> Result<Tensor> {
        let gpu = &self.gpu;
        let x = gpu.volume(x, if self.in_f32() { Element::F32 } else { Element::Bf16 })?;
        let extents = x.extents().unwrap_or_default();
        let gamma = gpu.vector(gamma, extents[0])?;
        let y = gpu.channels_last(extents, x.element)?;
        gpu.normalize(&x, &gamma, &y, silu)?;
        Ok(y.into())
    }

    fn frame_attention(&self, qkv: &Tensor) -> Result<Tensor> {
        let gpu = &self.gpu;
        let qkv = gpu.volume(qkv, Element::Bf16)?;
        let [all, frames, height, width] = qkv.extents().unwrap_or_default();
        let (channels, pixels) = (all / 3, height * width);
        if all != 3 * channels || !channels.is_multiple_of(8) || channels * pixels == 0 {
            return Err(Error::Internal(format!("{:?} is no query, key and value", qkv.shape)));
        }
        let y = gpu.channels_last([channels, frames, height, width], Element::Bf16)?;
        let part = |i: usize| Batches {
            rows: Rows { address: qkv.address + (2 * i * channels) as u64, rows: pixels, stride: all },
            step: pixels * all,
        };
        let arguments = AnyAttentionArguments {
            q: part(0),
            k: part(1),
            v: part(2),
            bias: None,
            residual: None,
            output: Batches { rows: Rows::dense(y.address, pixels, channels), step: pixels * channels },
            heads: 1,
            width: channels,
            batches: frames,
            scale: (1.0 / (channels as f64).sqrt()) as f32,
        };
        // SAFETY: the views have these extents and keep their memory; pieces are given back in the order of the stream.
        kernel(unsafe { gpu.any_attention.run(&gpu.stream, &arguments) })?;
        Ok(y.into())
    }

    fn fade(&self, before: &Tensor, after: &Tensor, axis: usize, extent: usize) -> Result<Tensor> {
        let (left, right) = (before.extents().to_vec(), after.extents().to_vec());
        let others_differ = left.len() != 4
            || right.len() != 4
            || (0..4).any(|i| i != axis && left[i] != right[i])
            || axis > 3;
        if others_differ || extent > left[axis] || extent > right[axis] {
            return Err(Error::Internal(format!(
                "cannot fade {left:?} into {right:?} over {extent} along {axis}"
            )));
        }
        let gpu = &self.gpu;
        let before = gpu.dense(before, Element::F32)?;
        let faded = gpu.row_major(&right, Element::F32)?;
        gpu.copy(&gpu.dense(after, Element::F32)?, &faded)?;
        let (outer, inner): (usize, usize) =
            (right[..axis].iter().product(), right[axis + 1..].iter().product());
        if extent * outer * inner == 0 {
            return Ok(faded.into());
        }
        let from = before.address + (4 * (left[axis] - extent) * inner) as u64;
        let (left, right) = (left[axis] * inner, right[axis] * inner);
        // SAFETY: the views have these extents and keep their memory; pieces are given back in the order of the stream.
        kernel(unsafe {
            gpu.volumes.fade(&gpu.stream, (from, left), (faded.address, right), [outer, extent, inner])
        })?;
        Ok(faded.into())
    }
}

/// Weights of so many channels each as sums of two bf16 numbers: high, high, low.
fn split_channels(values: &[f32], channels: usize) -> Vec<u16> {
    let mut wide = vec![0; 3 * values.len()];
    wide.par_chunks_mut(3 * channels).zip(values.par_chunks(channels)).for_each(|(to, from)| {
        for (i, value) in from.iter().enumerate() {
            let high = bf16::from_f32(*value);
            let low = bf16::from_f32(value - high.to_f32());
            to[i] = high.to_bits();
            to[channels + i] = high.to_bits();
            to[2 * channels + i] = low.to_bits();
        }
    });
    wide
}

impl Cuda {
    /// Whether volumes are in f32.
    fn in_f32(&self) -> bool {
        self.precision.vae == Weights::Fp32
    }
}

impl Gpu {
    /// A tensor as a volume of this type with its channels innermost.
    fn volume(&self, tensor: &Tensor, element: Element) -> Result<View> {
        let view = self.view(tensor)?;
        let Some(extents @ [channels, frames, height, width]) = view.extents() else {
            return Err(Error::Internal(format!(
                "{:?} is no volume of channels, frames, height, width",
                view.shape
            )));
        };
        if view.is_channels_last() && view.element == element {
            return Ok(view);
        }
        if view.strides[0] == 1 && channels > 1 {
            return self.volume_like(&view).and_then(|volume| self.converted(volume, element));
        }
        if element == Element::F32 {
            let volume = self.empty_volume(extents, element)?;
            self.copy(&view, &volume)?;
            return Ok(volume);
        }
        let dense = self.dense(tensor, Element::F32)?;
        let volume = self.channels_last(extents, element)?;
        let voxels = frames * height * width;
        if voxels > 0 {
            let rows = Rows::dense(volume.address, voxels, padded(channels));
            // SAFETY: the views have these extents; the order of the stream keeps them.
            kernel(unsafe { self.volumes.channels_last(&self.stream, dense.address, channels, rows) })?;
        }
        Ok(volume)
    }

    /// A volume in another type, filled up as it is.
    fn converted(&self, view: View, element: Element) -> Result<View> {
        if view.element == element {
            return Ok(view);
        }
        let extents = view.extents().unwrap_or_default();
        let volume = self.channels_last(extents, element)?;
        let elements = filled_up(extents);
        if elements > 0 {
            let term = cuda::Term { address: view.address, element: view.element, factor: 1.0 };
            // SAFETY: both have as many elements; the order of the stream keeps them.
            kernel(unsafe {
                self.volumes.combine(&self.stream, &[term], volume.address, element, elements)
            })?;
        }
        Ok(volume)
    }

    /// An f32 volume as a bf16 one of three times as many channels, as [`split_channels`]' weights want them.
    fn split(&self, view: &View) -> Result<View> {
        let [channels, frames, height, width] = view.extents().unwrap_or_default();
        let (columns, voxels) = (padded(channels), frames * height * width);
        let split = self.channels_last([3 * columns, frames, height, width], Element::Bf16)?;
        let from = Rows::dense(view.address, voxels, columns);
        let to = Rows::dense(split.address, voxels, 3 * columns);
        // SAFETY: the views have these extents; the order of the stream keeps them.
        kernel(unsafe { self.norms.split(&self.stream, from, to, false, columns) })?;
        Ok(split)
    }

    /// Memory for a volume with its channels innermost, zeros after them.
    pub(super) fn empty_volume(&self, extents: [usize; 4], element: Element) -> Result<View> {
        let volume = self.channels_last(extents, element)?;
        if padded(extents[0]) != extents[0] {
            self.clear(volume.address, filled_up(extents) * element.bytes())?;
        }
        Ok(volume)
    }

    /// A view's elements as a volume of the same type with its channels innermost, if it is not one.
    pub(super) fn volume_like(&self, view: &View) -> Result<View> {
        if view.is_channels_last() {
            return Ok(view.clone());
        }
        let volume = self.empty_volume(view.extents().unwrap_or_default(), view.element)?;
        self.copy(view, &volume)?;
        Ok(volume)
    }

    /// The VAE's norm.
    fn normalize(&self, x: &View, gamma: &View, y: &View, silu: bool) -> Result<()> {
        let [channels, frames, height, width] = x.extents().unwrap_or_default();
        if !channels.is_multiple_of(8) {
            return Err(Error::Internal(format!(
                "a norm over {channels} channels: the GPU takes multiples of 8"
            )));
        }
        let voxels = frames * height * width;
        // SAFETY: the views have these extents; the order of the stream keeps them.
        kernel(unsafe {
            let (x, gamma, y, element) = (x.address, gamma.address, y.address, y.element);
            self.volumes.channel_norm(&self.stream, x, gamma, y, element, [voxels, channels], silu)
        })
    }
}
