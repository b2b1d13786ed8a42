//! The CLIP vision tower (ViT-H/14): a picture becomes the 257 image tokens that the `DiT` attends to.
//!
//! Dosovitskiy et al., "An image is worth 16x16 words" (2021); Radford et al., "Learning transferable visual models
//! from natural language supervision" (2021). The `DiT` was trained on what the last layer but one gives, without the
//! norm that follows the last.

use super::{Loader, Norm, Probe, columns, show};
use crate::backend::SequenceOps;
use crate::backend::sequence::{Activation, Attention, Epilogue, Role};
use crate::weights::{ClipConfig, WeightSource};
use crate::{Error, Result};

const EPS: f64 = 1e-5;
const CHANNELS: usize = 3;

/// The vision tower.
pub struct Clip<B: SequenceOps> {
    patch_embedding: B::Linear,
    /// The class token with its position, `[1, dim]`.
    class: B::Tensor,
    /// The patches' positions, `[patches, dim]`.
    positions: B::Tensor,
    pre_norm: Norm<B>,
    blocks: Vec<Block<B>>,
    config: ClipConfig,
}

struct Block<B: SequenceOps> {
    norm1: Norm<B>,
    qkv: B::Linear,
    proj: B::Linear,
    norm2: Norm<B>,
    up: B::Linear,
    down: B::Linear,
}

impl<B: SequenceOps> Clip<B> {
    /// Takes all layers but the last to the backend, tensor by tensor.
    pub fn load(backend: &B, weights: &dyn WeightSource, config: &ClipConfig) -> Result<Self> {
        let root = Loader::new(backend, weights, "visual.");
        let patches = (config.image_size / config.patch).pow(2);
        let mut positions = root.host("pos_embedding", &[patches + 1, config.dim])?;
        let mut class = root.host("cls_embedding", &[1, config.dim])?;
        class.data.iter_mut().zip(positions.data.drain(..config.dim)).for_each(|(c, p)| *c += p);
        positions.shape[0] = patches;
        let block = |i| {
            let l = root.below(&format!("transformer.{i}"));
            let linear = |name| l.linear(&[name], Role::Bulk);
            Ok(Block {
                norm1: l.norm("norm1", EPS)?,
                qkv: linear("attn.to_qkv")?,
                proj: linear("attn.proj")?,
                norm2: l.norm("norm2", EPS)?,
                up: linear("mlp.0")?,
                down: linear("mlp.2")?,
            })
        };
        Ok(Self {
            patch_embedding: root.linear_without_bias(&["patch_embedding"], Role::Sensitive)?,
            class: backend.load(class)?,
            positions: backend.load(positions)?,
            pre_norm: root.norm("pre_norm", EPS)?,
            blocks: (0..config.layers.saturating_sub(1)).map(block).collect::<Result<_>>()?,
            config: config.clone(),
        })
    }

    /// A normalised picture `[3, image_size, image_size]` to `[patches + 1, dim]`, the class token first.
    ///
    /// `probe` sees `after_pre_norm` and `out`.
    pub fn encode(&self, b: &B, pixels: &[f32], mut probe: Probe<'_, B::Tensor>) -> Result<B::Tensor> {
        let patches = self.patches(pixels)?;
        let patches =
            b.upload(&patches, &[b.shape(&self.positions)[0], patches.len() / b.shape(&self.positions)[0]])?;
        let positions = Epilogue { residual: Some(&self.positions), ..Epilogue::default() };
        let patches = b.linear(&patches, &self.patch_embedding, &positions)?;
        let mut x = self.pre_norm.apply(b, &b.concat(&[&self.class, &patches], 0)?)?;
        show(&mut probe, || "after_pre_norm".into(), &x);
        for block in &self.blocks {
            x = block.forward(b, &x, self.config.heads)?;
        }
        show(&mut probe, || "out".into(), &x);
        Ok(x)
    }

    /// Pixels in the order patch, channel, row, column.
    fn patches(&self, pixels: &[f32]) -> Result<Vec<f32>> {
        let ClipConfig { image_size: side, patch, .. } = self.config;
        if pixels.len() != CHANNELS * side * side {
            return Err(Error::Internal(format!(
                "a picture of {} values for [3, {side}, {side}]",
                pixels.len()
            )));
        }
        let mut patches = Vec::with_capacity(pixels.len());
        for (top, left) in
            (0..side / patch).flat_map(|y| (0..side / patch).map(move |x| (y * patch, x * patch)))
        {
            for (channel, row) in (0..CHANNELS).flat_map(|c| (0..patch).map(move |y| (c, top + y))) {
                patches.extend_from_slice(&pixels[(channel * side + row) * side + left..][..patch]);
            }
        }
        Ok(patches)
    }
}

impl<B: SequenceOps> Block<B> {
    fn forward(&self, b: &B, x: &B::Tensor, heads: usize) -> Result<B::Tensor> {
        let h = self.norm1.apply(b, x)?;
        let [q, k, v] = columns(b, &b.linear(&h, &self.qkv, &Epilogue::default())?)?;
        let scale = (b.shape(x)[1] as f64 / heads as f64).powf(-0.5);
        let h = b.attention(&Attention { q: &q, k: &k, v: &v, heads, scale, bias: None, residual: None })?;
        let x = b.linear(&h, &self.proj, &Epilogue { residual: Some(x), ..Epilogue::default() })?;

        let h = self.norm2.apply(b, &x)?;
        let h =
            b.linear(&h, &self.up, &Epilogue { activation: Activation::GeluErf, ..Epilogue::default() })?;
        b.linear(&h, &self.down, &Epilogue { residual: Some(&x), ..Epilogue::default() })
    }
}
