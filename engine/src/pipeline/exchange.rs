//! The exchange of `LoRA`s between jobs, while the transformers stay loaded.
//!
//! What differs from the job before is known by the names of the tensors, and only these are read, changed and loaded again.

use std::path::PathBuf;
use std::time::Instant;

use animd_protocol::lora::LoraChoice;
use animd_protocol::profile::Place;
use animd_protocol::recipe::Component;
use animd_protocol::request::{MAX_DISTILL_STEPS, Request, Sampler};
use serde_json::{Value, json};

use super::clock::Clock;
use super::models::{Pipeline, available_ram};
use super::sources::Sources;
use super::watched::Count;
use crate::backend::{Backend, Keeping, Loader};
use crate::progress::Stage;
use crate::weights::{ReadAhead, says_distilled};
use crate::{Error, Result};

/// Returns a request's `LoRA`s for a video's metadata: names, strengths, hashes.
pub(super) fn facts(request: &Request) -> Value {
    let one = |choice: &LoraChoice| {
        let mut facts = json!({"name": choice.name, "strength": choice.strength});
        for (key, strength) in
            [("strength_low", choice.strength_low), ("strength_base", choice.strength_base)]
        {
            if let Some(strength) = strength {
                facts[key] = strength.into();
            }
        }
        if let Some(hash) = &choice.sha256 {
            facts["sha256"] = hash.as_str().into();
        }
        facts
    };
    request.lora.iter().map(one).collect()
}

/// Returns a sentence for a `LoRA` whose name says that it distils the model to a few steps, in a request for many. No file
/// says so itself, and names are no proof.
pub(super) fn remark(request: &Request) -> Option<String> {
    if request.sampler != Sampler::Unipc || request.steps <= MAX_DISTILL_STEPS {
        return None;
    }
    let distils = |choice: &&LoraChoice| says_distilled(&choice.name);
    let LoraChoice { name, .. } = request.lora.iter().find(distils)?;
    Some(format!(
        "the LoRA `{name}` is called as one that distils the model to a few steps, and the video has {} steps of `unipc`: if it is \
         one, ask for `sampler = distill`, or write that into `{name}.toml` beside the file, as `distilled = true` in [sampling]",
        request.steps
    ))
}

impl<B: Backend> Pipeline<B> {
    /// Returns the number of parameters that are loaded before the next job computes.
    pub(crate) fn to_load(&self) -> usize {
        match self.is_loaded() {
            true => self.sources.adapters.stale_parameters(),
            false => self.parameters_to_load(),
        }
    }

    /// Chooses the `LoRA`s of the jobs that follow, with the file of each. They are opened now; the weights that change are
    /// loaded with the next job.
    ///
    /// # Errors
    /// Returns [`Error::Model`] for a file that is no `LoRA`, of a kind that is not read, or for another model, with the
    /// names that fit no layer.
    pub fn adapt(&mut self, wanted: &[LoraChoice], files: &[PathBuf]) -> Result<()> {
        if wanted.len() != files.len() {
            let (wanted, files) = (wanted.len(), files.len());
            return Err(Error::Internal(format!("{wanted} LoRAs are chosen and {files} files given")));
        }
        let Sources { adapters, weights, .. } = &mut self.sources;
        let opened = adapters.open(wanted, files)?;
        for adapter in &opened {
            let (tensors, strengths) = (adapter.lora().names().count(), adapter.strengths());
            tracing::info!(tensors, ?strengths, "a LoRA is added");
            tracing::debug!("it is `{}`", adapter.lora().path().display());
        }
        adapters.set(opened);
        weights.extend(adapters.sources());
        adapters.tell_rounding(self.setup.precision.dit)
    }

    /// Loads what differs between the loaded transformers and those with the current `LoRA`s. Transformers that cannot be
    /// changed where they are, are dropped.
    pub(super) fn exchange_loras(&mut self, clock: &mut Clock<'_>) -> Result<()> {
        let Self { backend, setup, sources, models, .. } = self;
        let parameters = sources.adapters.stale_parameters();
        if parameters == 0 || models.experts.is_empty() {
            return Ok(());
        }
        clock.stage(Stage::Load)?;
        let began = Instant::now();
        let count = Count::new(clock, 0, parameters);
        // Weights that do not stay are left as they are, so nothing is loaded to another place.
        let keeping = Keeping { place: Place::Device, ..Keeping::of(setup, Component::Dit) };
        for (i, transformer) in sources.adapters.transformers.iter_mut().enumerate() {
            let Some(dit) = models.experts.get_mut(i).filter(|_| !transformer.stale.is_empty()) else {
                continue;
            };
            let source = sources.weights[&transformer.name].clone();
            // Of files that are needed in part, reading ahead would read too much.
            let mostly = 2 * transformer.stale_parameters() > transformer.parameters();
            let _ahead = mostly.then(|| ReadAhead::start(&[source.places()], available_ram()));
            let loader = backend.loader_of(&transformer.name, keeping).reading(source.clone());
            if !dit.load_again(&loader, &count.of(&*source), &transformer.stale)? {
                tracing::info!(
                    "the transformers are loaded anew: {} does not stay on the device",
                    transformer.name
                );
                models.experts.clear();
                return Ok(());
            }
            transformer.stale.clear();
        }
        tracing::info!(parameters, seconds = began.elapsed().as_secs_f64(), "the LoRAs are exchanged");
        Ok(())
    }
}

#[cfg(test)]
mod tests;
