//! Model files: from any layout on disk to the model's own (official) tensor names.
//!
//! A [`Weights`] is one component (DiT, `umT5`, CLIP or VAE) whose tensors have all been checked by name, shape and type;
//! it hands them out one at a time, straight from the memory-mapped file. Where a weight then lives and what precision
//! it gets is the backend's business, not this module's.

mod check;
mod config;
mod container;
mod dtype;
pub mod e4m3;
mod find;
mod layouts;
mod matrix;
mod model;
mod open;
mod prepare;
mod refusals;
pub(crate) mod safetensors;
mod stored;
mod summary;
#[cfg(test)]
mod tests;
mod torch;

use serde::{Deserialize, Serialize};

use crate::Result;

pub use crate::dims::{ClipConfig, DitConfig, T5Config, VaeConfig};
pub use dtype::DType;
pub use matrix::{HostTensor, Matrix, Scale};
pub use model::Model;
pub use open::{Weights, open_clip, open_dit, open_t5, open_vae};
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
