//! Loading some weights of a loaded network again: a `LoRA` changes a part of them.

use std::collections::BTreeSet;

use super::block::{Block, ContextLayer, CrossAttention};
use super::{Around, Dit, ImageEmbedding, image_positions};
use crate::Result;
use crate::backend::loading::Role;
use crate::backend::{Backend, Loader};
use crate::model::{Checkpoint, LayerNorm};
use crate::weights::{DitConfig, HostTensor, WeightSource};

impl<B: Backend> Dit<B> {
    /// Loads the tensors of these names again, and returns whether it could: weights that come and go cannot be changed where
    /// they wait. After an error the network has old and new weights; loading the same ones once more makes it whole.
    ///
    /// # Errors
    /// Returns the errors of `weights` and the loader.
    pub fn load_again(
        &mut self,
        loader: &B::Loader,
        weights: &dyn WeightSource,
        stale: &BTreeSet<String>,
    ) -> Result<bool> {
        let Self { around, blocks, config } = self;
        let root = Checkpoint::<B>::new(loader, weights, "");
        match around.resident_mut() {
            Some(around) => around.load_again(&Again { root: &root, stale }, config)?,
            None => return Ok(false),
        }
        for (i, block) in blocks.iter_mut().enumerate() {
            let root = &root.below(&format!("blocks.{i}"));
            match block.resident_mut() {
                Some(block) => block.load_again(&Again { root, stale })?,
                None => return Ok(false),
            }
        }
        Ok(true)
    }
}

/// A part of a checkpoint, of which some tensors are stale on the device.
struct Again<'a, B: Backend> {
    root: &'a Checkpoint<'a, B>,
    stale: &'a BTreeSet<String>,
}

impl<B: Backend> Again<'_, B> {
    fn is_stale(&self, name: &str) -> bool {
        self.stale.contains(&format!("{}{name}", self.root.prefix))
    }

    fn linear(&self, layer: &mut B::Linear, names: &[&str], role: Role) -> Result<()> {
        let changed =
            |name: &&str| ["weight", "bias"].iter().any(|end| self.is_stale(&format!("{name}.{end}")));
        if names.iter().any(changed) {
            self.root.loader.replace(layer, &self.root.linear_weights(names, true)?, role)?;
        }
        Ok(())
    }

    fn vector(&self, vector: &mut B::Tensor, name: &str) -> Result<()> {
        if self.is_stale(name) {
            *vector = self.root.vector(name)?;
        }
        Ok(())
    }

    fn norm(&self, norm: &mut LayerNorm<B>, name: &str) -> Result<()> {
        self.vector(&mut norm.weight, &format!("{name}.weight"))?;
        self.vector(&mut norm.bias, &format!("{name}.bias"))
    }
}

impl<B: Backend> Around<B> {
    fn load_again(&mut self, again: &Again<'_, B>, config: &DitConfig) -> Result<()> {
        let Self { patch_embedding, text, image, time, time_projection, head, head_modulation } = self;
        let ([text_up, text_down], [time_up, time_down]) = (text, time);
        for (layer, name) in [
            (patch_embedding, "patch_embedding"),
            (text_up, "text_embedding.0"),
            (text_down, "text_embedding.2"),
            (time_up, "time_embedding.0"),
            (time_down, "time_embedding.2"),
            (time_projection, "time_projection.1"),
            (head, "head.head"),
        ] {
            again.linear(layer, &[name], Role::Sensitive)?;
        }
        if again.is_stale("head.modulation") {
            *head_modulation = Self::head_modulation(again.root, config)?;
        }
        match image {
            Some(image) => image.load_again(again, config),
            None => Ok(()),
        }
    }

    /// Loads the head's shift and scale, `[1, dim]` each.
    pub(super) fn head_modulation(root: &Checkpoint<'_, B>, config: &DitConfig) -> Result<[B::Tensor; 2]> {
        let modulation = root.host("head.modulation", &[2, config.dim])?.data;
        let half = |i: usize| {
            let data = modulation[i * config.dim..][..config.dim].to_vec();
            root.loader.tensor(HostTensor { shape: vec![1, config.dim], data })
        };
        Ok([half(0)?, half(1)?])
    }
}

impl<B: Backend> ImageEmbedding<B> {
    fn load_again(&mut self, again: &Again<'_, B>, config: &DitConfig) -> Result<()> {
        let Self { norms: [first, last], layers: [up, down], positions } = self;
        again.norm(first, "img_emb.proj.0")?;
        again.linear(up, &["img_emb.proj.1"], Role::Sensitive)?;
        again.linear(down, &["img_emb.proj.3"], Role::Sensitive)?;
        again.norm(last, "img_emb.proj.4")?;
        if again.is_stale("img_emb.emb_pos") {
            *positions = image_positions(again.root, config)?;
        }
        Ok(())
    }
}

impl<B: Backend> Block<B> {
    fn load_again(&mut self, again: &Again<'_, B>) -> Result<()> {
        let Self { modulation, qkv, norm_q, norm_k, o, norm3, cross, ffn: [up, down] } = self;
        if again.is_stale("modulation") {
            *modulation = Self::modulation(again.root)?;
        }
        again.linear(qkv, &["self_attn.q", "self_attn.k", "self_attn.v"], Role::Bulk)?;
        again.vector(norm_q, "self_attn.norm_q.weight")?;
        again.vector(norm_k, "self_attn.norm_k.weight")?;
        again.linear(o, &["self_attn.o"], Role::Bulk)?;
        again.norm(norm3, "norm3")?;
        let CrossAttention { q, norm_q, text, image, o } = cross;
        again.linear(q, &["cross_attn.q"], Role::Bulk)?;
        again.vector(norm_q, "cross_attn.norm_q.weight")?;
        text.load_again(again, ["cross_attn.k", "cross_attn.v"], "cross_attn.norm_k.weight")?;
        if let Some(image) = image {
            image.load_again(
                again,
                ["cross_attn.k_img", "cross_attn.v_img"],
                "cross_attn.norm_k_img.weight",
            )?;
        }
        again.linear(o, &["cross_attn.o"], Role::Bulk)?;
        again.linear(up, &["ffn.0"], Role::Bulk)?;
        again.linear(down, &["ffn.2"], Role::Bulk)
    }

    /// Loads what is added to the time's modulation, `[6, dim]`.
    pub(super) fn modulation(l: &Checkpoint<'_, B>) -> Result<B::Tensor> {
        let HostTensor { data, .. } = l.tensor("modulation")?;
        l.loader.tensor(HostTensor { shape: vec![6, data.len() / 6], data })
    }
}

impl<B: Backend> ContextLayer<B> {
    fn load_again(&mut self, again: &Again<'_, B>, layers: [&str; 2], norm: &str) -> Result<()> {
        again.linear(&mut self.kv, &layers, Role::Bulk)?;
        again.vector(&mut self.norm_k, norm)
    }
}
