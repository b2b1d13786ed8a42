//! Model files: from any layout on disk to the model's own (official) tensor names.
//!
//! A [`Weights`] is one component (DiT, `umT5`, CLIP or VAE) whose tensors have all been checked by name, shape and type;
//! it hands them out one at a time, straight from the memory-mapped file. Where a weight then lives and what precision
//! it gets is the backend's business, not this module's.

mod config;
pub mod e4m3;
mod find;
mod open;
mod prepare;
pub(crate) mod safetensors;
mod stored;
mod summary;
#[cfg(test)]
mod tests;
mod torch;

use std::borrow::Cow;

use serde::{Deserialize, Serialize};

use crate::Result;

pub use crate::dims::{ClipConfig, DitConfig, T5Config, VaeConfig};
pub use open::{Model, Weights, open_clip, open_dit, open_t5, open_vae};
pub use prepare::{FOLDER as PREPARED, Prepared, find_prepared, prepare};
pub use summary::Summary;

/// The parts of the model.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, clap::ValueEnum,
)]
#[serde(rename_all = "kebab-case")]
pub enum Component {
    /// The diffusion transformer.
    Dit,
    /// The `umT5` text encoder.
    T5,
    /// The CLIP vision tower.
    Clip,
    /// The causal video VAE.
    Vae,
}

impl Component {
    /// All parts.
    pub const ALL: [Self; 4] = [Self::Dit, Self::T5, Self::Clip, Self::Vae];

    /// Its name in sentences.
    pub fn title(self) -> &'static str {
        match self {
            Self::Dit => "DiT",
            Self::T5 => "umT5 encoder",
            Self::Clip => "CLIP vision tower",
            Self::Vae => "VAE",
        }
    }
}

/// Whose way of naming and quantising the tensors a file follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Layout {
    /// As released: F32, F16 or BF16.
    Official,
    /// `LightX2V`: 8-bit matrices with a scale for each row, `X.weight_scale`.
    Lightx2vFp8,
    /// `ComfyUI`: 8-bit matrices with one scale each, `X.scale_weight`.
    ComfyFp8,
}

/// The types that tensors have in model files.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DType {
    /// 32-bit float.
    F32,
    /// 16-bit float.
    F16,
    /// Brain float.
    Bf16,
    /// 8-bit float, 4 bits of exponent, 3 of mantissa, no infinities (`float8_e4m3fn`).
    F8E4m3,
}

/// A tensor in host memory as f32, row-major.
#[derive(Clone, Debug, PartialEq)]
pub struct HostTensor {
    /// Extents, outermost first; empty for a scalar.
    pub shape: Vec<usize>,
    /// As many values as the extents' product.
    pub data: Vec<f32>,
}

/// What turns the stored values of a quantised matrix into its real ones.
#[derive(Clone, Debug, PartialEq)]
pub enum Scale {
    /// One factor for each row (output channel).
    PerRow(Vec<f32>),
    /// One factor for the whole matrix.
    PerTensor(f32),
}

/// A weight matrix `[rows, cols]` (out, in) as it is stored, row-major: the bytes are those of the file wherever the
/// file allows it.
#[derive(Clone, Debug)]
pub struct Matrix<'a> {
    /// Output features.
    pub rows: usize,
    /// Input features.
    pub cols: usize,
    /// The type of the stored values.
    pub dtype: DType,
    /// `rows * cols` little-endian values.
    pub bytes: Cow<'a, [u8]>,
    /// For a quantised matrix; real value = stored value * scale.
    pub scale: Option<Scale>,
}

/// The checked tensors of one component, under their official names.
pub trait WeightSource: Sync {
    /// Any tensor, as f32; a quantised matrix is dequantised.
    ///
    /// # Errors
    /// `Internal` for a name that the component's schema does not have; `File` or `Model` if the file cannot be read.
    fn tensor(&self, name: &str) -> Result<HostTensor>;

    /// A weight as it is stored: the first axis gives the rows, the others together the columns.
    ///
    /// # Errors
    /// As [`WeightSource::tensor`].
    fn matrix(&self, name: &str) -> Result<Matrix<'_>>;
}
