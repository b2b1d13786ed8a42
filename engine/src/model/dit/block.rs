//! A block of the transformer: self-attention, attention to the text and the picture, and the feed-forward.

use std::iter;

use super::prefix::Prefix;
use crate::Result;
use crate::backend::Backend;
use crate::backend::loading::Role;
use crate::backend::sequence::{
    Activation, Affine, Attention, Epilogue, Input, KeyValue, Norm, Projection, SelfAttention,
};
use crate::model::{Checkpoint, LayerNorm, Probe, added, show};
use crate::weights::DitConfig;
use animd_protocol::profile::AttentionKind;

/// The layers of one block.
pub struct Block<B: Backend> {
    /// `[6, dim]`.
    pub modulation: B::Tensor,
    pub qkv: B::Linear,
    pub norm_q: B::Tensor,
    pub norm_k: B::Tensor,
    pub o: B::Linear,
    pub norm3: LayerNorm<B>,
    pub cross: CrossAttention<B>,
    pub ffn: [B::Linear; 2],
}

/// The layers that attend to the text and the picture.
pub struct CrossAttention<B: Backend> {
    pub q: B::Linear,
    pub norm_q: B::Tensor,
    pub text: ContextLayer<B>,
    /// Only models that attend to a picture have it.
    pub image: Option<ContextLayer<B>>,
    pub o: B::Linear,
}

/// The layers that make keys and values of the text or the picture.
pub struct ContextLayer<B: Backend> {
    pub kv: B::Linear,
    pub norm_k: B::Tensor,
}

/// The inputs that all blocks of a forward share.
pub struct Common<'a, B: Backend> {
    pub e0: &'a B::Tensor,
    pub rope: &'a B::Rope,
    pub heads: usize,
    /// The scale of the products of queries and keys.
    pub scale: f64,
    pub eps: f64,
    /// The kind of self-attention.
    pub kind: AttentionKind,
}

/// What a block begins with.
pub enum Start<B: Backend> {
    /// The tokens of the patches, or of the block before.
    Tokens(B::Tensor),
    /// The tokens after the block's own self-attention, which another forward has computed.
    Attended(B::Tensor),
}

/// The keys and values that a block attends to.
pub struct Keys<'a, B: Backend> {
    /// Those of the text and, if the model attends to it, of the picture.
    pub sets: &'a [[B::Tensor; 2]],
    /// How many times the last key of the text counts.
    pub copies: usize,
}

impl<B: Backend> Keys<'_, B> {
    fn sets(&self) -> Vec<KeyValue<'_, B::Tensor>> {
        let copies = iter::once(self.copies).chain(iter::repeat(1));
        self.sets
            .iter()
            .zip(copies)
            .map(|([k, v], copies)| KeyValue { copies, ..KeyValue::new(k, v) })
            .collect()
    }
}

impl<B: Backend> Block<B> {
    /// Loads a block from its part of the checkpoint.
    ///
    /// # Errors
    /// Returns the errors of the checkpoint.
    pub fn load(l: &Checkpoint<'_, B>, config: &DitConfig) -> Result<Self> {
        let linear = |names: &[&str]| l.linear(names, Role::Bulk);
        Ok(Self {
            modulation: Self::modulation(l)?,
            qkv: linear(&["self_attn.q", "self_attn.k", "self_attn.v"])?,
            norm_q: l.vector("self_attn.norm_q.weight")?,
            norm_k: l.vector("self_attn.norm_k.weight")?,
            o: linear(&["self_attn.o"])?,
            norm3: l.norm("norm3", config.eps)?,
            cross: CrossAttention {
                q: linear(&["cross_attn.q"])?,
                norm_q: l.vector("cross_attn.norm_q.weight")?,
                text: ContextLayer {
                    kv: linear(&["cross_attn.k", "cross_attn.v"])?,
                    norm_k: l.vector("cross_attn.norm_k.weight")?,
                },
                image: config.image_dim.map(|_| ContextLayer::of_image(l)).transpose()?,
                o: linear(&["cross_attn.o"])?,
            },
            ffn: [linear(&["ffn.0"])?, linear(&["ffn.2"])?],
        })
    }

    /// Returns the tokens after the block. What it has after its self-attention it offers to `prefix`.
    ///
    /// `probe` sees `self_attn`, `cross_attn` and `ffn`, before gate and residual.
    ///
    /// # Errors
    /// Returns the backend's errors.
    pub fn forward(
        &self,
        b: &B,
        start: Start<B>,
        prefix: &mut Prefix<B>,
        context: &Keys<'_, B>,
        all: &Common<'_, B>,
        probe: &mut Probe<'_, B::Tensor>,
    ) -> Result<B::Tensor> {
        let modulation = b.linear_combination(&[(1.0, &self.modulation), (1.0, all.e0)])?;
        let row = |i| b.slice(&modulation, 0, i, 1);
        let x = match start {
            Start::Tokens(x) => self.self_attention(b, x, &[row(0)?, row(1)?, row(2)?], all, probe)?,
            Start::Attended(x) => x,
        };
        prefix.offer(&x);
        let x = self.cross_attention(b, x, context, all, probe)?;
        self.feed_forward(b, x, &[row(3)?, row(4)?, row(5)?], all, probe)
    }

    fn self_attention(
        &self,
        b: &B,
        x: B::Tensor,
        [shift, scale, gate]: &[B::Tensor; 3],
        all: &Common<'_, B>,
        probe: &mut Probe<'_, B::Tensor>,
    ) -> Result<B::Tensor> {
        let &Common { heads, eps, rope, kind, .. } = all;
        let h = {
            let norms = [Some(&self.norm_q), Some(&self.norm_k), None];
            let projection = Projection { norms, eps, rope: Some(rope) };
            let attention = SelfAttention { layer: &self.qkv, projection, heads, scale: all.scale, kind };
            b.self_attention(modulated(&x, shift, scale, eps), &attention)?
        };
        show_branch(b, &h, &self.o, probe, "self_attn")?;
        let epilogue = Epilogue { gate: Some(gate), ..added(&x) };
        b.linear(Input::Plain(&h), &self.o, &epilogue)
    }

    fn cross_attention(
        &self,
        b: &B,
        x: B::Tensor,
        context: &Keys<'_, B>,
        all: &Common<'_, B>,
        probe: &mut Probe<'_, B::Tensor>,
    ) -> Result<B::Tensor> {
        let &Common { heads, scale, eps, .. } = all;
        let CrossAttention { q, norm_q, o, .. } = &self.cross;
        let h = {
            let projection = Projection { norms: [Some(norm_q)], eps, rope: None };
            let [q] = b.project(self.norm3.of(&x), q, &projection)?;
            let sets = &context.sets();
            b.attention(&Attention { q: &q, sets, heads, scale, kind: AttentionKind::Exact })?
        };
        show_branch(b, &h, o, probe, "cross_attn")?;
        b.linear(Input::Plain(&h), o, &added(&x))
    }

    fn feed_forward(
        &self,
        b: &B,
        x: B::Tensor,
        [shift, scale, gate]: &[B::Tensor; 3],
        all: &Common<'_, B>,
        probe: &mut Probe<'_, B::Tensor>,
    ) -> Result<B::Tensor> {
        let branch = |epilogue: &Epilogue<'_, B::Tensor>| {
            let normed = modulated(&x, shift, scale, all.eps);
            b.feed_forward(normed, self.ffn.each_ref(), Activation::GeluTanh, epilogue)
        };
        if probe.is_some() {
            show(probe, || "ffn".to_owned(), &branch(&Epilogue::default())?);
        }
        branch(&Epilogue { gate: Some(gate), ..added(&x) })
    }
}

impl<B: Backend> ContextLayer<B> {
    /// Loads the layers that make keys and values of the picture.
    fn of_image(l: &Checkpoint<'_, B>) -> Result<Self> {
        Ok(Self {
            kv: l.linear(&["cross_attn.k_img", "cross_attn.v_img"], Role::Bulk)?,
            norm_k: l.vector("cross_attn.norm_k_img.weight")?,
        })
    }

    /// Returns keys and values `[rows, dim]` of an embedded text or picture `[rows, dim]`.
    ///
    /// # Errors
    /// Returns the backend's errors.
    pub fn keys_and_values(&self, b: &B, x: &B::Tensor, eps: f64) -> Result<[B::Tensor; 2]> {
        let projection = Projection { norms: [Some(&self.norm_k), None], eps, rope: None };
        b.project(Input::Plain(x), &self.kv, &projection)
    }
}

/// Returns a layer norm of `x`, modulated by the time.
pub fn modulated<'a, T>(x: &'a T, shift: &'a T, scale: &'a T, eps: f64) -> Input<'a, T> {
    Input::Normed(x, Norm::Layer { affine: Affine::Modulated { shift, scale }, eps })
}

/// Shows a branch's last layer before its gate and residual; the forward itself never has it separately.
fn show_branch<B: Backend>(
    b: &B,
    x: &B::Tensor,
    layer: &B::Linear,
    probe: &mut Probe<'_, B::Tensor>,
    name: &str,
) -> Result<()> {
    if probe.is_some() {
        show(probe, || name.to_owned(), &b.linear(Input::Plain(x), layer, &Epilogue::default())?);
    }
    Ok(())
}
