//! Operations on token sequences.

use animd_kernels::cuda::Element;

use super::Cuda;
use super::error::kernel;
use super::linear::Linear;
use super::norms::Rope;
use super::raw_heads::RawHeads;
use super::tensor::Tensor;
use crate::backend::SequenceOps;
use crate::backend::sequence::{
    Activation, Attention, Epilogue, Input, Norm, Projection, SelfAttention, part_width, rope_pairs,
};
use crate::{Error, Result};

impl SequenceOps for Cuda {
    type Linear = Linear;
    type Rope = Rope;

    fn linear(
        &self,
        x: Input<'_, Tensor>,
        layer: &Linear,
        epilogue: &Epilogue<'_, Tensor>,
    ) -> Result<Tensor> {
        layer.forward(&self.gpu, x, epilogue)
    }

    fn gated_linear(
        &self,
        x: Input<'_, Tensor>,
        gate: &Linear,
        up: &Linear,
        activation: Activation,
    ) -> Result<Tensor> {
        Linear::gated(&self.gpu, x, [gate, up], activation)
    }

    fn feed_forward(
        &self,
        x: Input<'_, Tensor>,
        [up, down]: [&Linear; 2],
        activation: Activation,
        epilogue: &Epilogue<'_, Tensor>,
    ) -> Result<Tensor> {
        Linear::feed_forward(&self.gpu, x, [up, down], activation, epilogue)
    }

    fn project<const N: usize>(
        &self,
        x: Input<'_, Tensor>,
        layer: &Linear,
        projection: &Projection<'_, Self, N>,
    ) -> Result<[Tensor; N]> {
        let y = layer.forward(&self.gpu, x, &Epilogue::default())?;
        let &Projection { norms, eps, rope } = projection;
        let width = part_width(y.matrix()?, N, rope.map(Rope::shape))?;
        let mut parts: [Tensor; N] = std::array::from_fn(|i| y.slice(1, i * width, width));
        let normed = parts.iter_mut().zip(norms).filter_map(|(part, norm)| norm.map(|norm| (part, norm)));
        self.gpu.norm_parts(&mut normed.collect::<Vec<_>>(), eps, rope)?;
        Ok(parts)
    }

    fn norm(&self, x: &Tensor, norm: &Norm<'_, Tensor>) -> Result<Tensor> {
        self.gpu.norm(x, norm, Element::F32)
    }

    fn load_rope(&self, cos: &[f64], sin: &[f64], tokens: usize) -> Result<Rope> {
        let pairs = rope_pairs(cos, sin, tokens)?;
        let table = |values: &[f64]| {
            let values: Vec<f32> = values.iter().map(|v| *v as f32).collect();
            self.gpu.upload(&self.gpu.work, &values, &[tokens, pairs])
        };
        Ok(Rope { cosines: table(cos)?, sines: table(sin)? })
    }

    fn attention(&self, attention: &Attention<'_, Tensor>) -> Result<Tensor> {
        self.gpu.attend(attention)
    }

    fn self_attention(&self, x: Input<'_, Tensor>, attention: &SelfAttention<'_, Self>) -> Result<Tensor> {
        match RawHeads::of(&self.gpu, &x, attention) {
            Some(raw) => raw.attend(&self.gpu, x),
            None => attention.in_two_steps(self, x),
        }
    }

    fn patchify(&self, x: &Tensor) -> Result<Tensor> {
        let [channels, frames, height, width] = x.shape[..] else {
            return Err(Error::Internal(format!("{:?} is no latent", x.shape)));
        };
        if !height.is_multiple_of(2) || !width.is_multiple_of(2) || channels * frames * height * width == 0 {
            return Err(Error::Internal(format!("{:?} cannot be divided into patches", x.shape)));
        }
        let gpu = &self.gpu;
        let x = gpu.dense(x, Element::F32)?;
        let tokens = gpu.matrix([frames * height * width / 4, 4 * channels], Element::F32)?;
        // SAFETY: the tensors have these extents; the order of the stream keeps them.
        kernel(unsafe {
            let (from, grid) = ((x.address, channels), [frames, height, width]);
            gpu.volumes.patchify(&gpu.stream, from, None, grid, tokens.rows())
        })?;
        Ok(tokens)
    }

    fn unpatchify(&self, x: &Tensor, grid: [usize; 3]) -> Result<Tensor> {
        let ([tokens, features], [frames, height, width]) = (x.matrix()?, grid);
        let even = height.is_multiple_of(2) && width.is_multiple_of(2);
        if !even || 4 * tokens != frames * height * width || !features.is_multiple_of(4) || tokens == 0 {
            return Err(Error::Internal(format!("[{tokens}, {features}] are no patches of {grid:?}")));
        }
        let gpu = &self.gpu;
        let x = gpu.rows(x, Element::F32)?;
        let channels = features / 4;
        let y = gpu.row_major(&[channels, frames, height, width], Element::F32)?;
        // SAFETY: the tensors have these extents; the order of the stream keeps them.
        kernel(unsafe { gpu.volumes.unpatchify(&gpu.stream, x.rows(), y.address, channels, grid) })?;
        Ok(y)
    }
}
