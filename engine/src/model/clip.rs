//! The CLIP vision tower (ViT-H/14): a picture becomes the 257 image tokens that the `DiT` attends to.
//!
//! Dosovitskiy et al., "An image is worth 16x16 words" (2021); Radford et al., "Learning transferable visual models
//! from natural language supervision" (2021). The `DiT` was trained on the output of the last layer but one, without
//! the norm that follows the last.

use super::{Checkpoint, LayerNorm, Probe, added, show};
use crate::backend::loading::{Group, Role};
use crate::backend::sequence::{Activation, Attention, Input, KeyValue, Projection};
use crate::backend::{Backend, Loader};
use crate::weights::{ClipConfig, WeightSource};
use crate::{Error, Result};
use animd_protocol::profile::AttentionKind;

const EPS: f64 = 1e-5;
const CHANNELS: usize = 3;

/// The vision tower.
pub struct Clip<B: Backend> {
    stem: Group<B, Stem<B>>,
    blocks: Vec<Group<B, Block<B>>>,
    config: ClipConfig,
}

/// The layers that make tokens of a picture.
struct Stem<B: Backend> {
    patch_embedding: B::Linear,
    /// The class token plus its position, `[1, dim]`.
    class: B::Tensor,
    /// The patches' positions, `[patches, dim]`.
    positions: B::Tensor,
    pre_norm: LayerNorm<B>,
}

struct Block<B: Backend> {
    norm1: LayerNorm<B>,
    qkv: B::Linear,
    proj: B::Linear,
    norm2: LayerNorm<B>,
    up: B::Linear,
    down: B::Linear,
}

impl<B: Backend> Clip<B> {
    /// Loads all layers but the last from `weights`, tensor by tensor.
    ///
    /// # Errors
    /// Returns the errors of `weights` and the loader.
    pub fn load(loader: &B::Loader, weights: &dyn WeightSource, config: &ClipConfig) -> Result<Self> {
        let root = Checkpoint::<B>::new(loader, weights, "visual.");
        let blocks = (0..config.layers.saturating_sub(1))
            .map(|i| root.below(&format!("transformer.{i}")).reread(Block::load));
        Ok(Self {
            stem: root.around(|root| Stem::load(root, config))?,
            blocks: blocks.collect::<Result<_>>()?,
            config: config.clone(),
        })
    }

    /// Encodes a normalised picture `[3, image_size, image_size]` as `[patches + 1, dim]`, the class token first.
    ///
    /// `probe` sees `after_pre_norm` and `out`.
    ///
    /// # Errors
    /// Returns [`Error::Internal`] for a picture of another size, and the backend's errors.
    pub fn encode(&self, b: &B, pixels: &[f32], mut probe: Probe<'_, B::Tensor>) -> Result<B::Tensor> {
        let mut x = self.stem.enter(b)?.embed(b, &self.patches(pixels)?)?;
        show(&mut probe, || "after_pre_norm".into(), &x);
        for block in &self.blocks {
            x = block.enter(b)?.forward(b, &x, self.config.heads)?;
        }
        show(&mut probe, || "out".into(), &x);
        Ok(x)
    }

    /// Returns the pixels in the order patch, channel, row, column.
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

impl<B: Backend> Stem<B> {
    fn load(root: &Checkpoint<'_, B>, config: &ClipConfig) -> Result<Self> {
        let patches = (config.image_size / config.patch).pow(2);
        let mut positions = root.host("pos_embedding", &[patches + 1, config.dim])?;
        let mut class = root.host("cls_embedding", &[1, config.dim])?;
        class.data.iter_mut().zip(positions.data.drain(..config.dim)).for_each(|(c, p)| *c += p);
        positions.shape[0] = patches;
        Ok(Self {
            patch_embedding: root.linear_without_bias(&["patch_embedding"], Role::Sensitive)?,
            class: root.loader.tensor(class)?,
            positions: root.loader.tensor(positions)?,
            pre_norm: root.norm("pre_norm", EPS)?,
        })
    }

    /// Returns the tokens of pixels that are ordered patch by patch.
    fn embed(&self, b: &B, pixels: &[f32]) -> Result<B::Tensor> {
        let patches = b.shape(&self.positions)[0];
        let x = b.upload(pixels, &[patches, pixels.len() / patches])?;
        let x = b.linear(Input::Plain(&x), &self.patch_embedding, &added(&self.positions))?;
        b.norm(&b.concat(&[&self.class, &x], 0)?, &self.pre_norm.norm())
    }
}

impl<B: Backend> Block<B> {
    fn load(l: &Checkpoint<'_, B>) -> Result<Self> {
        let linear = |name| l.linear(&[name], Role::Bulk);
        Ok(Self {
            norm1: l.norm("norm1", EPS)?,
            qkv: linear("attn.to_qkv")?,
            proj: linear("attn.proj")?,
            norm2: l.norm("norm2", EPS)?,
            up: linear("mlp.0")?,
            down: linear("mlp.2")?,
        })
    }

    fn forward(&self, b: &B, x: &B::Tensor, heads: usize) -> Result<B::Tensor> {
        let [q, k, v] = b.project(self.norm1.of(x), &self.qkv, &Projection::PLAIN)?;
        let scale = (b.shape(x)[1] as f64 / heads as f64).powf(-0.5);
        let (sets, kind) = (&[KeyValue::new(&k, &v)], AttentionKind::Exact);
        let h = b.attention(&Attention { q: &q, sets, heads, scale, kind })?;
        let x = b.linear(Input::Plain(&h), &self.proj, &added(x))?;

        b.feed_forward(self.norm2.of(&x), [&self.up, &self.down], Activation::GeluErf, &added(&x))
    }
}
