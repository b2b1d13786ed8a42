//! The names of the two diffusion transformers of families that have two.

use serde::{Deserialize, Serialize};

/// Which of a family's two diffusion transformers something is for: files, a `LoRA`, a setting.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ExpertName {
    /// The one that computes the first steps, which have the most noise.
    HighNoise,
    /// The one that computes the other steps.
    LowNoise,
}

/// The place in [`crate::recipe::Recipe::experts`], behind both, of the high-noise transformer without `LoRAs`. The recipe of a
/// job has it if the job begins with steps of it.
pub const BASE: usize = 2;
/// The name of its network in a recipe, for tables.
pub const BASE_NETWORK: &str = "DiT, base";

impl ExpertName {
    /// Both, in the order of their steps.
    pub const ALL: [Self; 2] = [Self::HighNoise, Self::LowNoise];

    /// Returns the place of the transformer in [`crate::recipe::Recipe::experts`] of a family with two.
    pub fn index(self) -> usize {
        match self {
            Self::HighNoise => 0,
            Self::LowNoise => 1,
        }
    }

    /// Returns the name in model files, in JSON and, with `-` for `_`, in options.
    pub const fn name(self) -> &'static str {
        match self {
            Self::HighNoise => "high_noise",
            Self::LowNoise => "low_noise",
        }
    }

    /// Returns the name in sentences.
    pub const fn words(self) -> &'static str {
        match self {
            Self::HighNoise => "high-noise",
            Self::LowNoise => "low-noise",
        }
    }

    /// Returns the name of the transformer's network in a recipe, for tables.
    pub fn network(self) -> &'static str {
        match self {
            Self::HighNoise => "DiT, high",
            Self::LowNoise => "DiT, low",
        }
    }
}
