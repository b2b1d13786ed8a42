//! The number of floating-point operations of a job. An addition and a multiplication count as two.

use serde::Serialize;

use super::vae;
use crate::dims::{ClipConfig, DitConfig, T5Config};
use crate::progress::{Costs, Stage};
use crate::recipe::Recipe;

/// The operations of one forward of the DiT.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Forward {
    /// Operations of the linear layers.
    pub linear: f64,
    /// Operations of both products of self-attention.
    pub self_attention: f64,
    /// Operations of both products of cross-attention, with the text and with the picture.
    pub cross_attention: f64,
    /// The number of exponentials in self-attention's softmax. They are not among the operations above.
    pub exponentials: f64,
}

impl Forward {
    /// Returns the sum of all operations.
    pub fn flops(&self) -> f64 {
        self.linear + self.self_attention + self.cross_attention
    }
}

/// The operations of a whole job.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Work {
    /// umT5 on all prompts, and what the DiT computes once from them and from the picture. This is an upper bound: each
    /// prompt counts as if it had as many tokens as the model reads.
    pub text: f64,
    /// The image encoder, CLIP; 0 without one.
    pub clip: f64,
    /// The VAE's encoder, where frames that repeat are computed once.
    pub vae_encode: f64,
    /// One forward of the DiT; with several experts, of the most expensive one.
    pub forward: Forward,
    /// All forwards of the DiT.
    pub denoise: f64,
    /// The VAE's decoder on the whole video.
    pub vae_decode: f64,
}

impl Work {
    /// Counts a job with latents of `[t, h, w]`, `branches` prompts, for each expert its computed `forwards`, and the VAE
    /// in tiles of a side.
    pub fn new(
        recipe: &Recipe,
        latent: [usize; 3],
        branches: u32,
        forwards: &[u32],
        tile: Option<usize>,
    ) -> Self {
        let (tokens, image_tokens) = (latent.iter().product::<usize>() / 4, recipe.image_tokens());
        let experts = || recipe.experts.iter().map(|expert| &expert.network.config);
        let forward = |c| forward(c, tokens, image_tokens);
        let largest = experts().map(forward).max_by(|a, b| a.flops().total_cmp(&b.flops()));
        let rows = experts().map(|c| c.text_len).max().unwrap_or_default();
        let pictures = if recipe.needs_last_frame() { 2.0 } else { 1.0 };
        let context: f64 = experts().map(|c| context(c, image_tokens)).sum();
        Self {
            text: f64::from(branches) * (text(&recipe.text_encoder.config, rows) + context),
            clip: recipe.conditioning.image_encoder.as_ref().map_or(0.0, |n| pictures * clip(&n.config)),
            vae_encode: vae::encoder(&recipe.vae.config, latent, tile, vae::Volumes::F32, false).flops,
            forward: largest.unwrap_or_default(),
            denoise: experts().zip(forwards).map(|(c, n)| f64::from(*n) * forward(c).flops()).sum(),
            vae_decode: vae::decoder(&recipe.vae.config, latent, tile, vae::Volumes::F32).flops,
        }
    }

    /// Counts a job of which only the number of computed forwards is known: each costs the mean over the experts.
    pub fn of_forwards(recipe: &Recipe, latent: [usize; 3], branches: u32, forwards: u32) -> Self {
        let experts = recipe.experts.len();
        let all = Self::new(recipe, latent, branches, &vec![forwards; experts], None);
        Self { denoise: all.denoise / experts.max(1) as f64, ..all }
    }

    /// Returns the sum of all operations.
    pub fn flops(&self) -> f64 {
        self.text + self.clip + self.vae_encode + self.denoise + self.vae_decode
    }

    /// Returns the cost of each stage of a job, where loading the weights costs `load`.
    pub fn costs(&self, load: f64) -> Costs {
        Costs::new([
            (Stage::Load, load),
            (Stage::Text, self.text),
            (Stage::Image, self.clip),
            (Stage::VaeEncode, self.vae_encode),
            (Stage::Denoise, self.denoise),
            (Stage::VaeDecode, self.vae_decode),
            (Stage::Write, 0.01 * self.vae_decode),
        ])
    }
}

/// Returns the operations of a linear layer on `rows` rows.
fn linear(rows: usize, from: usize, to: usize) -> f64 {
    2.0 * rows as f64 * from as f64 * to as f64
}

/// Returns the operations of both products of attention.
fn attention(rows: usize, keys: usize, width: usize) -> f64 {
    4.0 * rows as f64 * keys as f64 * width as f64
}

fn forward(c: &DitConfig, tokens: usize, image_tokens: usize) -> Forward {
    let layers = c.num_layers as f64;
    // The block's own layers are q, k, v and o of self-attention, and q and o of cross-attention. The k and v of
    // cross-attention belong to the context.
    let block = 6.0 * linear(tokens, c.dim, c.dim) + 2.0 * linear(tokens, c.dim, c.ffn_dim);
    let ends = linear(tokens, 4 * c.in_dim, c.dim) + linear(tokens, c.dim, 4 * c.out_dim);
    Forward {
        linear: layers * block + ends,
        self_attention: layers * attention(tokens, tokens, c.dim),
        cross_attention: layers * attention(tokens, c.text_len + image_tokens, c.dim),
        exponentials: layers * (tokens as f64).powi(2) * c.num_heads as f64,
    }
}

/// Returns the operations of the embeddings of text and picture, and of the keys and values of all blocks.
fn context(c: &DitConfig, image_tokens: usize) -> f64 {
    let text = linear(c.text_len, c.text_dim, c.dim) + linear(c.text_len, c.dim, c.dim);
    let image =
        c.image_dim.map_or(0.0, |from| linear(image_tokens, from, from) + linear(image_tokens, from, c.dim));
    text + image + c.num_layers as f64 * 2.0 * linear(c.text_len + image_tokens, c.dim, c.dim)
}

fn text(c: &T5Config, tokens: usize) -> f64 {
    let layer = 4.0 * linear(tokens, c.dim, c.inner)
        + 3.0 * linear(tokens, c.dim, c.ffn_dim)
        + attention(tokens, tokens, c.inner);
    c.layers as f64 * layer
}

fn clip(c: &ClipConfig) -> f64 {
    let tokens = c.tokens();
    let layer = 4.0 * linear(tokens, c.dim, c.dim)
        + 2.0 * linear(tokens, c.dim, c.mlp_dim)
        + attention(tokens, tokens, c.dim);
    linear(tokens, 3 * c.patch * c.patch, c.dim) + c.layers.saturating_sub(1) as f64 * layer
}
