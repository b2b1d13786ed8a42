//! The ways to run a job that can be measured, by name.

use animd_protocol::profile::{AttentionKind, Precision};
use animd_protocol::request::{Sampler, Settings, StepCache};
use serde::{Deserialize, Serialize};

use crate::synth::Family;

/// A way to run a job. Rows are of Wan2.1 where they say nothing else.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Row {
    /// The DiT in bf16, attention too; 40 steps with guidance, as in the next five
    Bf16Exact,
    /// The DiT in bf16, self-attention in 8 bits
    #[value(name = "bf16-8bit")]
    #[serde(rename = "bf16-8bit")]
    Bf16EightBit,
    /// The DiT's matrices in fp8, attention in bf16
    Fp8Exact,
    /// The DiT's matrices in fp8, self-attention in 8 bits, as in the next three
    Fp8,
    /// With a step cache that computes 44 of 80 forwards
    Fp8Teacache,
    /// With `MagCache`
    Fp8Magcache,
    /// The four steps of a step-distilled model, without guidance
    Distill,
    /// The DiT's matrices in int8, self-attention in 8 bits; 40 steps with guidance
    Int8,
    /// The DiT's matrices in int8, self-attention in 8 bits, with `MagCache`
    Int8Magcache,
    /// The four steps of a step-distilled model in int8
    Int8Distill,
    /// The two transformers of Wan2.2 in bf16, attention too; 40 steps with guidance, as in the next three
    Wan22Bf16Exact,
    /// The two transformers of Wan2.2 with matrices in fp8, attention in bf16
    Wan22Fp8Exact,
    /// The two transformers of Wan2.2, with matrices in fp8 and self-attention in 8 bits
    Wan22Fp8,
    /// The two transformers of Wan2.2, with matrices in int8 and self-attention in 8 bits
    Wan22Int8,
    /// The four steps of a step-distilled Wan2.2 in fp8, two by each transformer
    Wan22Distill,
    /// The four steps of a step-distilled Wan2.2 in int8, two by each transformer
    Wan22Int8Distill,
}

impl Row {
    /// The rows that are measured by default.
    const USUAL: [Self; 6] =
        [Self::Bf16Exact, Self::Bf16EightBit, Self::Fp8, Self::Fp8Teacache, Self::Fp8Magcache, Self::Distill];

    /// The rows that are measured by default where a profile has the DiT in int8.
    const USUAL_IN_INT8: [Self; 3] = [Self::Int8, Self::Int8Magcache, Self::Int8Distill];

    /// Returns the rows that are measured by default with a model of this family, where a profile has the DiT in this precision.
    pub fn usual(family: Family, dit: Precision) -> Vec<Self> {
        match (family, dit) {
            (Family::Wan21 | Family::Flf2v, Precision::Int8) => Self::USUAL_IN_INT8.to_vec(),
            (Family::Wan21 | Family::Flf2v, _) => Self::USUAL.to_vec(),
            (Family::Wan22, Precision::Int8) => vec![Self::Wan22Int8, Self::Wan22Int8Distill],
            (Family::Wan22, _) => vec![Self::Wan22Bf16Exact, Self::Wan22Fp8, Self::Wan22Distill],
        }
    }

    /// Returns the row's name in options, tables and JSON.
    pub fn name(self) -> &'static str {
        match self {
            Self::Bf16Exact => "bf16-exact",
            Self::Bf16EightBit => "bf16-8bit",
            Self::Fp8Exact => "fp8-exact",
            Self::Fp8 => "fp8",
            Self::Fp8Teacache => "fp8-teacache",
            Self::Fp8Magcache => "fp8-magcache",
            Self::Distill => "distill",
            Self::Int8 => "int8",
            Self::Int8Magcache => "int8-magcache",
            Self::Int8Distill => "int8-distill",
            Self::Wan22Bf16Exact => "wan22-bf16-exact",
            Self::Wan22Fp8Exact => "wan22-fp8-exact",
            Self::Wan22Fp8 => "wan22-fp8",
            Self::Wan22Int8 => "wan22-int8",
            Self::Wan22Distill => "wan22-distill",
            Self::Wan22Int8Distill => "wan22-int8-distill",
        }
    }

    /// Returns the family of the models that the row is of.
    pub fn family(self) -> Family {
        match self {
            Self::Wan22Bf16Exact
            | Self::Wan22Fp8Exact
            | Self::Wan22Fp8
            | Self::Wan22Int8
            | Self::Wan22Distill
            | Self::Wan22Int8Distill => Family::Wan22,
            _ => Family::Wan21,
        }
    }

    /// Returns the precision of the DiT's large matrices.
    pub fn weights(self) -> Precision {
        match self {
            Self::Bf16Exact | Self::Bf16EightBit | Self::Wan22Bf16Exact => Precision::Bf16,
            Self::Fp8Exact
            | Self::Fp8
            | Self::Fp8Teacache
            | Self::Fp8Magcache
            | Self::Distill
            | Self::Wan22Fp8Exact
            | Self::Wan22Fp8
            | Self::Wan22Distill => Precision::Fp8,
            Self::Int8
            | Self::Int8Magcache
            | Self::Int8Distill
            | Self::Wan22Int8
            | Self::Wan22Int8Distill => Precision::Int8,
        }
    }

    /// Returns the kind of self-attention.
    pub fn attention(self) -> AttentionKind {
        match self {
            Self::Bf16Exact | Self::Fp8Exact | Self::Wan22Bf16Exact | Self::Wan22Fp8Exact => {
                AttentionKind::Exact
            }
            _ => AttentionKind::EightBit,
        }
    }

    /// Returns by how much more memory than other rows' the row's job takes: with residuals to keep, with two prompts.
    pub fn memory(self) -> impl Ord {
        let Settings { sampler, step_cache, .. } = self.settings();
        (step_cache != Some(StepCache::None), sampler == Some(Sampler::Unipc))
    }

    /// Returns the settings of the row's job, apart from size, frames and tiling.
    pub fn settings(self) -> Settings {
        let (sampler, step_cache) = match self {
            Self::Distill | Self::Int8Distill | Self::Wan22Distill | Self::Wan22Int8Distill => {
                (Sampler::Distill, StepCache::None)
            }
            Self::Fp8Teacache => (Sampler::Unipc, StepCache::Teacache),
            Self::Fp8Magcache | Self::Int8Magcache => (Sampler::Unipc, StepCache::Magcache),
            _ => (Sampler::Unipc, StepCache::None),
        };
        Settings { sampler: Some(sampler), step_cache: Some(step_cache), ..Settings::default() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::ValueEnum;

    #[test]
    fn usual_rows_are_of_their_family() {
        for family in [Family::Wan21, Family::Wan22] {
            for dit in [Precision::Bf16, Precision::Fp8, Precision::Int8] {
                let rows = Row::usual(family, dit);
                assert!(!rows.is_empty() && rows.iter().all(|row| row.family() == family), "{rows:?}");
                assert!(dit != Precision::Int8 || rows.iter().all(|row| row.weights() == dit), "{rows:?}");
            }
        }
    }

    #[test]
    fn a_row_has_one_name() {
        for row in Row::value_variants() {
            assert_eq!(row.to_possible_value().map(|v| v.get_name().to_owned()).as_deref(), Some(row.name()));
            assert_eq!(serde_json::to_value(row).unwrap(), row.name());
            row.settings().resolve(|| 1).unwrap();
        }
    }
}
