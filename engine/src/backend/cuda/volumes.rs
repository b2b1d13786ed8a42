//! Convolutions over video volumes with their channels innermost, in bf16, or of f32 as sums of two bf16 numbers.

use animd_kernels::cuda::{self, AnyAttentionArguments, Batches, ConvLayer, Element, Rows, Volume};

use super::Cuda;
use super::error::kernel;
use super::gpu::Gpu;
use super::tensor::{Tensor, padded};
use crate::backend::TensorOps;
use crate::backend::conv::{ConvEpilogue, ConvOps, ConvShape, Spatial, Step, Time, frame_attention_sizes};
use crate::{Error, Result};

/// A convolution's weight and bias on the GPU.
pub struct Conv {
    pub(super) shape: ConvShape,
    /// The weight, `[padded outputs, kt, kh, kw, padded inputs]` bf16, or three times as many inputs.
    pub(super) weight: Tensor,
    /// The weight for upsampling, where a pixel becomes four; for kernels over a single frame.
    pub(super) folded: Option<Tensor>,
    /// The bias, `[padded outputs]`.
    pub(super) bias: Tensor,
    /// Whether volumes are f32, and inputs and weights are sums of two bf16 numbers.
    pub(super) split: bool,
}

/// A norm over channels on the GPU.
pub struct ChannelNorm {
    /// The factors, `[channels]`.
    pub(super) gamma: Tensor,
    /// The type of the volumes that it norms.
    pub(super) element: Element,
}

impl Conv {
    /// Returns the norm as the kernels take it.
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
    type ChannelNorm = ChannelNorm;

    fn conv(
        &self,
        parts: &[&Tensor],
        past: usize,
        layer: &Conv,
        step: Step,
        epilogue: &ConvEpilogue<'_, Self>,
    ) -> Result<Tensor> {
        let gpu = &self.gpu;
        if epilogue.norm.is_some() && step.time == Time::Double {
            return Err(Error::Internal("a norm cannot follow a convolution that doubles the frames".into()));
        }
        let kind = if layer.split { Element::F32 } else { Element::Bf16 };
        let mut volumes = match parts.len() {
            ..=cuda::Conv::PARTS => {
                parts.iter().map(|part| gpu.volume(part, kind)).collect::<Result<Vec<_>>>()?
            }
            _ => vec![gpu.volume(&self.concat(parts, 1)?, kind)?],
        };
        volumes.retain(|volume| volume.shape[1] > 0);
        let extents = volumes.iter().map(Tensor::extents).collect::<Option<Vec<_>>>().unwrap_or_default();
        let extents = layer.shape.result(&extents, past, step)?;
        let [channels, frames, height, width] = extents;
        // A layer with few output channels ends the network.
        let few = padded(layer.shape.outputs) <= cuda::Conv::FEW
            && epilogue.residual.is_none()
            && epilogue.norm.is_none()
            && step.time != Time::Double;
        let element = if few { Element::F32 } else { kind };
        if epilogue.residual.is_some_and(|r| r.shape != extents) {
            return Err(Error::Internal(format!("a residual that is not {extents:?}")));
        }
        let residual = epilogue.residual.map(|residual| gpu.volume(residual, kind)).transpose()?;
        let gamma = epilogue.norm.map(|norm| gpu.vector(&norm.gamma, channels)).transpose()?;
        let fused = !layer.split && residual.is_none() && cuda::Conv::fuses_norm(channels);
        if layer.split {
            volumes = volumes.iter().map(|volume| gpu.split_volume(volume)).collect::<Result<_>>()?;
        }
        let y = gpu.channels_last(extents, element)?;
        let parts: Vec<Volume> = volumes.iter().map(Tensor::volume).collect();
        let kernels = layer.layer(step.spatial)?;
        let last = cuda::ConvEpilogue {
            residual: residual.as_ref().map(|residual| residual.address),
            norm: gamma.as_ref().filter(|_| fused).map(|gamma| gamma.address),
        };
        let run = |kernels: &ConvLayer, time, to: &Tensor| {
            let (to, spatial) = (to.address, step.spatial);
            // SAFETY: the tensors have these extents; the order of the stream keeps them.
            kernel(unsafe {
                gpu.conv.run(&gpu.stream, &parts, past, kernels, spatial, time, &last, to, element)
            })
        };
        match step.time {
            Time::Double if !cuda::Conv::doubles_frames(kernels.outputs) => {
                // The kernel cannot tell the halves of so few channels apart: each half is computed alone, then they
                // are interleaved.
                if !channels.is_multiple_of(8) || last.residual.is_some() {
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
                    run(&one, Time::Same, &part)?;
                    for frame in 0..frames / 2 {
                        gpu.copy(&part.slice(1, frame, 1), &y.slice(1, 2 * frame + half, 1))?;
                    }
                }
            }
            time => run(&kernels, time, &y)?,
        }
        if let Some(gamma) = gamma.filter(|_| !fused) {
            gpu.normalize(&y, &gamma, &y, true)?;
        }
        Ok(y)
    }

    fn channel_norm(&self, x: &Tensor, norm: &ChannelNorm, silu: bool) -> Result<Tensor> {
        let gpu = &self.gpu;
        let x = gpu.volume(x, norm.element)?;
        let extents = x.extents().unwrap_or_default();
        let gamma = gpu.vector(&norm.gamma, extents[0])?;
        let y = gpu.channels_last(extents, x.element)?;
        gpu.normalize(&x, &gamma, &y, silu)?;
        Ok(y)
    }

    fn frame_attention(&self, qkv: &Tensor) -> Result<Tensor> {
        let gpu = &self.gpu;
        let qkv = gpu.volume(qkv, Element::Bf16)?;
        let shape @ [all, _, height, width] = qkv.extents().unwrap_or_default();
        let [channels, frames, pixels] = frame_attention_sizes(shape)?;
        if !channels.is_multiple_of(8) {
            return Err(Error::Internal(format!(
                "attention of {channels} channels: the GPU takes multiples of 8"
            )));
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
            copies: 1,
        };
        // SAFETY: the tensors have these extents; the order of the stream keeps them.
        kernel(unsafe { gpu.any_attention.run(&gpu.stream, &arguments) })?;
        Ok(y)
    }
}

impl Gpu {
    /// Returns an f32 volume as a bf16 one of three times as many channels, in the order of its weights.
    fn split_volume(&self, x: &Tensor) -> Result<Tensor> {
        let [channels, frames, height, width] = x.extents().unwrap_or_default();
        let (columns, voxels) = (padded(channels), frames * height * width);
        let split = self.channels_last([3 * columns, frames, height, width], Element::Bf16)?;
        let from = Rows::dense(x.address, voxels, columns);
        let to = Rows::dense(split.address, voxels, 3 * columns);
        // SAFETY: the tensors have these extents; the order of the stream keeps them.
        kernel(unsafe { self.norms.split(&self.stream, from, to, false, columns) })?;
        Ok(split)
    }

    /// Computes the VAE's norm.
    fn normalize(&self, x: &Tensor, gamma: &Tensor, y: &Tensor, silu: bool) -> Result<()> {
        let [channels, frames, height, width] = x.extents().unwrap_or_default();
        if !channels.is_multiple_of(8) {
            return Err(Error::Internal(format!(
                "a norm over {channels} channels: the GPU takes multiples of 8"
            )));
        }
        let voxels = frames * height * width;
        // SAFETY: the tensors have these extents; the order of the stream keeps them.
        kernel(unsafe {
            let (x, gamma, y, element) = (x.address, gamma.address, y.address, y.element);
            self.volumes.channel_norm(&self.stream, x, gamma, y, element, [voxels, channels], silu)
        })
    }
}
