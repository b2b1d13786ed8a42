//! The sizes of the networks, and the tensors that follow from them.

pub mod schema;

use serde::{Deserialize, Serialize};

/// Sizes of the diffusion transformer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DitConfig {
    /// Width of a token; 5120 for 14B.
    pub dim: usize,
    /// Width of the feed-forward layer.
    pub ffn_dim: usize,
    /// Width of the timestep's sinusoid.
    pub freq_dim: usize,
    /// Channels in: 16 of noise, 4 of mask, 16 of image latent.
    pub in_dim: usize,
    /// Channels out.
    pub out_dim: usize,
    /// Attention heads, of 128 channels each.
    pub num_heads: usize,
    /// Blocks.
    pub num_layers: usize,
    /// Epsilon of the layer and RMS norms.
    pub eps: f64,
    /// Rows of the text context, padding included.
    pub text_len: usize,
    /// Width of a text token.
    pub text_dim: usize,
    /// Width of an image token; none where the transformer attends to text alone.
    pub image_dim: Option<usize>,
    /// Learned positions of the image tokens, those of the first picture and then of the last one: 514. None in models that
    /// see one picture.
    #[serde(default)]
    pub image_positions: Option<usize>,
}

/// Sizes of the `umT5` encoder.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct T5Config {
    /// Width of a token.
    pub dim: usize,
    /// Rows of the embedding; a few more than the tokenizer has tokens.
    pub rows: usize,
    /// Attention heads.
    pub heads: usize,
    /// Width of all heads together.
    pub inner: usize,
    /// Width of the feed-forward layer.
    pub ffn_dim: usize,
    /// Layers.
    pub layers: usize,
    /// Buckets of the relative position bias.
    pub buckets: usize,
}

/// Sizes of the CLIP vision tower.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClipConfig {
    /// Width of a token.
    pub dim: usize,
    /// Side of a patch in pixels.
    pub patch: usize,
    /// Side of the picture in pixels.
    pub image_size: usize,
    /// Attention heads, of 80 channels each.
    pub heads: usize,
    /// Width of the feed-forward layer.
    pub mlp_dim: usize,
    /// Layers in the file; the engine runs all but the last.
    pub layers: usize,
}

/// Sizes of the causal VAE.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VaeConfig {
    /// Channels at full resolution; 96 in the released model.
    pub base: usize,
    /// Latent channels, 16.
    pub z_dim: usize,
    /// Channels of the four resolutions, finest first, as multiples of `base`: 1, 2, 4, 4.
    pub multipliers: Vec<usize>,
}

impl VaeConfig {
    /// Returns the sizes by name.
    pub fn sizes(&self) -> Vec<(&'static str, usize)> {
        vec![
            ("base", self.base),
            ("z_dim", self.z_dim),
            ("top", self.channels().last().copied().unwrap_or(0)),
        ]
    }

    /// Returns the channels of the four resolutions, finest first.
    pub fn channels(&self) -> Vec<usize> {
        self.multipliers.iter().map(|m| m * self.base).collect()
    }
}

impl DitConfig {
    /// Returns the sizes by their names in `config.json`.
    pub fn sizes(&self) -> Vec<(&'static str, usize)> {
        let sizes = [
            ("dim", self.dim),
            ("ffn_dim", self.ffn_dim),
            ("freq_dim", self.freq_dim),
            ("in_dim", self.in_dim),
            ("out_dim", self.out_dim),
            ("num_heads", self.num_heads),
            ("num_layers", self.num_layers),
            ("text_len", self.text_len),
            ("text_dim", self.text_dim),
        ];
        let image = self.image_dim.map(|dim| ("image_dim", dim));
        let positions = self.image_positions.map(|rows| ("image_positions", rows));
        sizes.into_iter().chain(image).chain(positions).collect()
    }
}

impl T5Config {
    /// Returns the sizes by name.
    pub fn sizes(&self) -> Vec<(&'static str, usize)> {
        vec![
            ("dim", self.dim),
            ("rows", self.rows),
            ("heads", self.heads),
            ("inner", self.inner),
            ("ffn_dim", self.ffn_dim),
            ("layers", self.layers),
        ]
    }
}

impl ClipConfig {
    /// Returns the number of tokens: the patches of a picture, and the class token.
    pub fn tokens(&self) -> usize {
        self.image_size.checked_div(self.patch).map_or(0, |side| side.pow(2) + 1)
    }

    /// Returns the sizes by name.
    pub fn sizes(&self) -> Vec<(&'static str, usize)> {
        vec![
            ("dim", self.dim),
            ("patch", self.patch),
            ("image_size", self.image_size),
            ("heads", self.heads),
            ("mlp_dim", self.mlp_dim),
            ("layers", self.layers),
        ]
    }
}
