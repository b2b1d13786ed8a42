//! How far a job has come.

use std::fmt;

use serde::{Deserialize, Serialize};

/// The stages of a job, in their order. Each network is loaded just before it is first needed, so a job that finds the
/// weights missing returns to [`Stage::Load`] between the encoders.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Stage {
    /// Weights are loaded into memory.
    Load,
    /// umT5 encodes the prompt.
    Text,
    /// The picture is decoded and fitted, and CLIP encodes it.
    Image,
    /// The VAE encodes the picture.
    VaeEncode,
    /// The sampler loops over the DiT.
    Denoise,
    /// Latents become frames, and each frame goes to the video encoder as soon as it is decoded.
    VaeDecode,
    /// The file is finished, synced and moved into place.
    Write,
}

impl Stage {
    /// All stages, in their order.
    pub const ALL: [Self; 7] =
        [Self::Load, Self::Text, Self::Image, Self::VaeEncode, Self::Denoise, Self::VaeDecode, Self::Write];

    /// Returns the name that everything uses: the ledger, the bus, reports, and what people read. `vae-encode` is one.
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

/// How far a job has come.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Progress {
    /// The current stage.
    pub stage: Stage,
    /// The number of finished denoising steps; 0 before [`Stage::Denoise`].
    pub step: u32,
    /// The number of denoising steps of the whole job.
    pub steps: u32,
    /// The fraction of the whole job that is done, from 0 to 1. It never falls.
    pub fraction: f64,
    /// The expected remaining seconds, once there is enough to estimate them from.
    pub seconds_left: Option<f64>,
}

impl fmt::Display for Progress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&under_way(self.stage.name(), self.step, self.steps))
    }
}

/// Returns what a job does at this moment, for people: `load`, or `denoise 1/4` while the first of four steps is computed.
pub fn under_way(stage: &str, done: u32, steps: u32) -> String {
    if stage == Stage::Denoise.name() && steps > 0 {
        format!("{stage} {}/{steps}", done.saturating_add(1).min(steps))
    } else {
        stage.to_owned()
    }
}

/// The cost of each stage of a job, in one unit: only the ratios matter.
#[derive(Clone, Debug, PartialEq)]
pub struct Costs {
    stages: Vec<(Stage, f64)>,
}

impl Costs {
    /// Makes costs from stages and what each costs. A stage that is left out costs nothing.
    pub fn new(stages: impl IntoIterator<Item = (Stage, f64)>) -> Self {
        Self { stages: stages.into_iter().collect() }
    }

    /// Returns the cost of a stage.
    pub fn of(&self, stage: Stage) -> f64 {
        self.stages.iter().filter(|(known, _)| *known == stage).map(|(_, cost)| cost).sum()
    }

    /// Returns the share of the whole job, from 0 to 1, that a stage is.
    pub fn share(&self, stage: Stage) -> f64 {
        let all: f64 = self.stages.iter().map(|(_, cost)| cost).sum();
        self.of(stage) / all.max(f64::MIN_POSITIVE)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_step_under_way_is_told() {
        let of = |step| under_way("denoise", step, 4);
        assert_eq!([of(0), of(3), of(4)], ["denoise 1/4", "denoise 4/4", "denoise 4/4"]);
        assert_eq!([under_way("load", 0, 4), under_way("denoise", 0, 0)], ["load", "denoise"]);
    }

    #[test]
    fn stages_count_by_what_they_cost() {
        let costs = Costs::new([(Stage::Denoise, 6.0), (Stage::Text, 1.0), (Stage::VaeDecode, 3.0)]);
        let shares =
            [Stage::Load, Stage::Text, Stage::Denoise, Stage::VaeDecode].map(|stage| costs.share(stage));
        assert_eq!(shares, [0.0, 0.1, 0.6, 0.3]);
        assert_eq!(Costs::new([]).share(Stage::Write), 0.0);
    }
}
