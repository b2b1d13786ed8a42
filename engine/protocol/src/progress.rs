//! How far a job is.

use serde::{Deserialize, Serialize};

/// The stages of a job, in their order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Stage {
    /// Weights come into memory.
    Load,
    /// The prompt goes through umT5.
    Text,
    /// The picture is decoded, fitted, and goes through CLIP.
    Image,
    /// The picture goes through the VAE encoder.
    VaeEncode,
    /// The sampler loops over the DiT.
    Denoise,
    /// Latents become frames; frames go to the video encoder as they come.
    VaeDecode,
    /// The file is finished, synced and put in place.
    Write,
}

impl Stage {
    /// All stages, in their order.
    pub const ALL: [Self; 7] =
        [Self::Load, Self::Text, Self::Image, Self::VaeEncode, Self::Denoise, Self::VaeDecode, Self::Write];

    /// The name in the ledger, on the bus and in reports: `vae-encode`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Load => "load",
            Self::Text => "text",
            Self::Image => "image",
            Self::VaeEncode => "vae-encode",
            Self::Denoise => "denoise",
            Self::VaeDecode => "vae-decode",
            Self::Write => "write",
        }
    }
}

/// Where a job stands.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Progress {
    /// The stage under way.
    pub stage: Stage,
    /// Denoising steps that are done; 0 before [`Stage::Denoise`].
    pub step: u32,
    /// Denoising steps of the whole job.
    pub steps: u32,
    /// 0 to 1 over the whole job, never falling.
    pub fraction: f64,
    /// Seconds that the rest is expected to take, once there is something to expect it from.
    pub seconds_left: Option<f64>,
}

/// What each stage of a job costs, in one unit: only the ratios matter.
#[derive(Clone, Debug, PartialEq)]
pub struct Costs {
    stages: Vec<(Stage, f64)>,
}

impl Costs {
    /// Stages with their costs; a stage that is not among them costs nothing.
    pub fn new(stages: impl IntoIterator<Item = (Stage, f64)>) -> Self {
        Self { stages: stages.into_iter().collect() }
    }

    /// What a stage costs.
    pub fn of(&self, stage: Stage) -> f64 {
        self.stages.iter().filter(|(known, _)| *known == stage).map(|(_, cost)| cost).sum()
    }

    /// How much of the whole job is done, from 0 to 1, when `part` of a stage and all stages before it are.
    pub fn fraction(&self, stage: Stage, part: f64) -> f64 {
        let sum = |stages: &[Stage]| stages.iter().map(|&stage| self.of(stage)).sum::<f64>();
        let before =
            Stage::ALL.iter().position(|&other| other == stage).map_or(0.0, |i| sum(&Stage::ALL[..i]));
        (before + part.min(1.0) * self.of(stage)) / sum(&Stage::ALL).max(f64::MIN_POSITIVE)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stages_count_by_what_they_cost() {
        let costs = Costs::new([(Stage::Denoise, 6.0), (Stage::Text, 1.0), (Stage::VaeDecode, 3.0)]);
        assert_eq!(costs.fraction(Stage::Load, 1.0), 0.0);
        assert_eq!(costs.fraction(Stage::Text, 0.5), 0.05);
        assert_eq!(costs.fraction(Stage::Denoise, 0.5), 0.4);
        assert_eq!(costs.fraction(Stage::Denoise, 7.0), 0.7);
        assert_eq!(costs.fraction(Stage::Write, 0.0), 1.0);
        assert_eq!(Costs::new([]).fraction(Stage::Write, 1.0), 0.0);
    }
}
