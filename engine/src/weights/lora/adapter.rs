//! A `LoRA` on a model: how strongly it changes each of the model's transformers.

use std::path::Path;
use std::sync::Arc;

use animd_protocol::dims::DitConfig;
use animd_protocol::lora::LoraChoice;
use animd_protocol::recipe::ExpertName;

use super::super::experts::told;
use super::super::mapped::comes_with_a_job;
use super::Lora;
use crate::{Error, Result};

/// A `LoRA` and how strongly each of a model's transformers is changed by it.
#[derive(Clone)]
pub struct Adapter {
    lora: Arc<Lora>,
    /// One for each transformer, in the order of their steps; 0 leaves it as it is.
    strengths: Vec<f32>,
    /// For the transformer of the first steps of a job that begins without `LoRA`s.
    base: f32,
}

/// How strongly somebody wants a `LoRA`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Strength {
    /// For the transformer that the file says it is for, or else its name; in a model of two, a file that says nothing is
    /// refused.
    AsTold(f64, Option<ExpertName>),
    /// For the transformer that the file says it is for, or else for all.
    All(f64),
    /// For one transformer of a model that has two.
    Of(ExpertName, f64),
    /// For each transformer of a model that has two, the one of the noisy steps first.
    Each([f64; 2]),
}

impl Adapter {
    /// Opens a `LoRA` for a model with so many transformers of these sizes. Only the header and the numbers that scale are
    /// read.
    ///
    /// # Errors
    /// The errors of [`Lora::open`], and [`Error::Model`] if it is not clear which transformers it is for.
    pub fn open(path: &Path, model: &DitConfig, transformers: usize, wanted: Strength) -> Result<Self> {
        let lora = Arc::new(Lora::open(path, model)?);
        let strengths = wanted.of(&lora, transformers)?;
        Ok(Self { lora, strengths, base: 0.0 })
    }

    /// Opens a `LoRA` as [`Self::open`] does, for a job: what becomes of its file is not the model's fault.
    ///
    /// # Errors
    /// Those of [`Self::open`].
    pub fn of_job(path: &Path, model: &DitConfig, transformers: usize, wanted: Strength) -> Result<Self> {
        let adapter = Self::open(path, model, transformers, wanted)?;
        comes_with_a_job(path);
        Ok(adapter)
    }

    /// Returns the same `LoRA` with a strength for the first steps of a job that begins without `LoRA`s.
    #[must_use]
    pub fn in_base(self, strength: f64) -> Self {
        Self { base: strength as f32, ..self }
    }

    /// Returns the same `LoRA` with other strengths, if its file is still what it was when it was opened.
    ///
    /// # Errors
    /// [`Error::Model`] if it is not clear which transformers it is for.
    pub fn again(&self, path: &Path, wanted: Strength) -> Result<Option<Self>> {
        if self.lora.path != path || !self.lora.is_current() {
            return Ok(None);
        }
        let strengths = wanted.of(&self.lora, self.strengths.len())?;
        Ok(Some(Self { lora: self.lora.clone(), strengths, base: 0.0 }))
    }

    /// Returns the file's changes.
    pub fn lora(&self) -> &Arc<Lora> {
        &self.lora
    }

    /// Returns how strongly each transformer is changed, in the order of their steps.
    pub fn strengths(&self) -> &[f32] {
        &self.strengths
    }

    /// Returns how strongly one transformer is changed; behind those of the model comes the one of the first steps of a job that
    /// begins without `LoRA`s.
    pub fn strength(&self, transformer: usize) -> f32 {
        self.strengths.get(transformer).copied().unwrap_or(self.base)
    }
}

impl Strength {
    /// Returns how strongly a job wants a `LoRA` that it chooses.
    pub fn chosen(choice: &LoraChoice) -> Self {
        match choice.strength_low {
            Some(low) => Self::Each([choice.strength, low]),
            None => Self::AsTold(choice.strength, told(&choice.name)),
        }
    }

    /// Returns the strength for each of so many transformers.
    fn of(self, lora: &Lora, transformers: usize) -> Result<Vec<f32>> {
        let refused = |what: &str| Err(Error::Model(format!("the LoRA `{}` {what}", lora.path.display())));
        let one = |expert: ExpertName, strength: f64| {
            let mut all = vec![0.0; transformers];
            all[expert.index()] = strength;
            all
        };
        let strengths = match (self, transformers, lora.expert) {
            (Self::AsTold(strength, _) | Self::All(strength), 0 | 1, _) => vec![strength],
            (Self::Of(..) | Self::Each(_), 0 | 1, _) => {
                return refused(
                    "has a strength for one of two transformers, and the model has one; give one strength and no expert",
                );
            }
            (Self::AsTold(strength, _) | Self::All(strength), _, Some(expert))
            | (Self::AsTold(strength, Some(expert)), _, None)
            | (Self::Of(expert, strength), ..) => one(expert, strength),
            (Self::AsTold(_, None), _, None) => {
                return refused(
                    "does not say which of the model's two transformers it is for; give two strengths, the high-noise one's \
                     first, as `NAME:1:1` for both or `NAME:1:0` for the first",
                );
            }
            (Self::All(strength), ..) => vec![strength; transformers],
            (Self::Each(both), ..) => both.to_vec(),
        };
        Ok(strengths.into_iter().map(|strength| strength as f32).collect())
    }
}
