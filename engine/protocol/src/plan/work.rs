//! How many floating-point operations a job takes; an addition and a multiplication are two.

use serde::Serialize;

use super::vae;
use crate::dims::{ClipConfig, Dims, DitConfig, T5Config};

/// One forward of the DiT.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Forward {
    /// The linear layers.
    pub linear: f64,
    /// Both products of self-attention.
    pub self_attention: f64,
    /// Both products of cross-attention, with the text and with the picture.
    pub cross_attention: f64,
    /// Exponentials of self-attention's softmax; not operations of the kind above.
    pub exponentials: f64,
}

impl Forward {
    /// All of it.
    pub fn flops(&self) -> f64 {
        self.linear + self.self_attention + self.cross_attention
    }
}

/// What a whole job computes.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Work {
    /// umT5 on all prompts, and what the DiT makes of them and of the picture once, if each prompt has as many tokens as
    /// the model reads: the most that it can be.
    pub text: f64,
    /// CLIP.
    pub clip: f64,
    /// The VAE's encoder, of which what repeats is computed once.
    pub vae_encode: f64,
    /// One forward of the DiT.
    pub forward: Forward,
    /// All forwards.
    pub denoise: f64,
    /// The VAE's decoder, whole.
    pub vae_decode: f64,
}

impl Work {
    /// Of a job with latents of `[t, h, w]`, `branches` prompts and `forwards` computed forwards.
    pub fn new(dims: &Dims, latent: [usize; 3], branches: u32, forwards: u32) -> Self {
        let forward = forward(&dims.dit, latent.iter().product::<usize>() / 4, image_tokens(&dims.clip));
        Self {
            text: f64::from(branches)
                * (text(&dims.t5, dims.dit.text_len) + context(&dims.dit, image_tokens(&dims.clip))),
            clip: clip(&dims.clip),
            vae_encode: vae::encoder(&dims.vae, latent, false).flops(),
            forward,
            denoise: f64::from(forwards) * forward.flops(),
            vae_decode: vae::decoder(&dims.vae, latent, false).flops(),
        }
    }

    /// All of it.
    pub fn flops(&self) -> f64 {
        self.text + self.clip + self.vae_encode + self.denoise + self.vae_decode
    }
}

/// The patches of CLIP's picture and the class token.
pub(super) fn image_tokens(c: &ClipConfig) -> usize {
    c.image_size.checked_div(c.patch).map_or(0, |side| side.pow(2) + 1)
}

/// A linear layer on `rows` rows.
fn linear(rows: usize, from: usize, to: usize) -> f64 {
    2.0 * rows as f64 * from as f64 * to as f64
}

/// Both products of attention.
fn attention(rows: usize, keys: usize, width: usize) -> f64 {
    4.0 * rows as f64 * keys as f64 * width as f64
}

fn forward(c: &DitConfig, tokens: usize, image_tokens: usize) -> Forward {
    let layers = c.num_layers as f64;
    // q, k, v and o of self-attention, q and o of cross-attention; its k and v are the context's.
    let block = 6.0 * linear(tokens, c.dim, c.dim) + 2.0 * linear(tokens, c.dim, c.ffn_dim);
    let ends = linear(tokens, 4 * c.in_dim, c.dim) + linear(tokens, c.dim, 4 * c.out_dim);
    Forward {
        linear: layers * block + ends,
        self_attention: layers * attention(tokens, tokens, c.dim),
        cross_attention: layers * attention(tokens, c.text_len + image_tokens, c.dim),
        exponentials: layers * (tokens as f64).powi(2) * c.num_heads as f64,
    }
}

/// The embeddings of text and picture, and keys and values of all blocks.
fn context(c: &DitConfig, image_tokens: usize) -> f64 {
    let text = linear(c.text_len, c.text_dim, c.dim) + linear(c.text_len, c.dim, c.dim);
    let image = linear(image_tokens, c.image_dim, c.image_dim) + linear(image_tokens, c.image_dim, c.dim);
    text + image + c.num_layers as f64 * 2.0 * linear(c.text_len + image_tokens, c.dim, c.dim)
}

fn text(c: &T5Config, tokens: usize) -> f64 {
    let layer = 4.0 * linear(tokens, c.dim, c.inner)
        + 3.0 * linear(tokens, c.dim, c.ffn_dim)
        + attention(tokens, tokens, c.inner);
    c.layers as f64 * layer
}

fn clip(c: &ClipConfig) -> f64 {
    let tokens = image_tokens(c);
    let layer = 4.0 * linear(tokens, c.dim, c.dim)
        + 2.0 * linear(tokens, c.dim, c.mlp_dim)
        + attention(tokens, tokens, c.dim);
    linear(tokens, 3 * c.patch * c.patch, c.dim) + c.layers.saturating_sub(1) as f64 * layer
}
