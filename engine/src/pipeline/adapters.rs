//! The `LoRA`s of a model's transformers, and what differs from those that are loaded.
//!
//! A job's `LoRA`s come after those of the model's own file. All changes are made of the file's own values, so that no job leaves
//! traces in the next; a `DoRA` gives lengths to what the ones before it have left.
//!
//! Merged weights are not kept on disk as prepared copies are. Merging itself costs next to nothing beside loading: for the 13.5 G
//! parameters that a `LoRA` of rank 64 changes, its 0.7 GB are read, and on an H200 the sums take some 0.1 s and the products 0.02 s.
//! What a copy could save is reading. Of files in 8 bits it would be as large as they are: 13.5 GB instead of 14.2 GB, 0.2 s at
//! 3 GB/s. Of files in bf16 it would be half as large: 13.5 GB instead of 27.7 GB, 4.7 s of the first load after a start with files
//! that are not in the page cache, and 0.6 s with files that are. Against that each set with each strength takes 13.5 GB of the
//! 64 GiB that copies may have, so that a few of them push out the copy without `LoRA`s that every start uses; writing one takes
//! longer (7 s at 2 GB/s, beside the job) than any later start saves; and a change between jobs of a loaded model, which is what happens
//! often, reads from the page cache. Whoever always uses the same `LoRA` saves the same by files in 8 bits.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;

use animd_protocol::dims::DitConfig;
use animd_protocol::dims::schema::{self, Expected};
use animd_protocol::lora::LoraChoice;
use animd_protocol::profile::Precision;
use animd_protocol::recipe::BASE;

use super::own_loras::OwnLoras;
use crate::weights::{Adapter, Lora, Merged, RoundedAgain, Strength, WeightSource};
use crate::{Error, Result};

/// The source of a network's weights.
pub(super) type Shared = Arc<dyn WeightSource + Send>;

/// The `LoRA`s of a model's transformers.
pub(super) struct Adapters {
    /// Those of the model's own file.
    own: Vec<Adapter>,
    /// What these are.
    pub(super) identity: OwnLoras,
    /// Those of the current job.
    of_job: Vec<Adapter>,
    pub(super) transformers: Vec<Transformer>,
}

/// One transformer: its weights without any `LoRA`, and what has changed since they were loaded.
pub(super) struct Transformer {
    pub name: String,
    config: DitConfig,
    exact: Shared,
    /// The same weights as the device rounds them.
    prepared: Option<Shared>,
    loras: Vec<(Arc<Lora>, f32)>,
    /// The loaded tensors that are not those of the current `LoRA`s.
    pub stale: BTreeSet<String>,
}

impl Transformer {
    /// Returns the number of parameters that are to be loaded again.
    pub fn stale_parameters(&self) -> usize {
        self.count(|tensor| self.stale.contains(&tensor.name))
    }

    /// Returns the number of all parameters.
    pub fn parameters(&self) -> usize {
        self.count(|_| true)
    }

    fn count(&self, which: impl Fn(&Expected) -> bool) -> usize {
        let tensors = schema::dit(&self.config).into_iter().filter(|tensor| which(tensor));
        tensors.map(|tensor| tensor.shape.iter().product::<usize>()).sum()
    }

    fn merged(&self) -> Merged<Shared> {
        Merged::new(self.exact.clone(), self.loras.clone()).beside(self.prepared.clone())
    }
}

impl Adapters {
    /// Returns the `LoRA`s of a model, given its transformers by their names in the recipe.
    pub fn new(own: Vec<Adapter>, transformers: impl Iterator<Item = (String, DitConfig, Shared)>) -> Self {
        let start = |(name, config, exact)| {
            let (loras, stale) = (Vec::new(), BTreeSet::new());
            Transformer { name, config, exact, prepared: None, loras, stale }
        };
        let (identity, transformers) = (OwnLoras::of(&own), transformers.map(start).collect());
        let mut adapters = Self { own, identity, of_job: Vec::new(), transformers };
        adapters.set(Vec::new());
        adapters
    }

    /// Takes what no `LoRA` changes in a transformer from a copy whose values are rounded as the device has them.
    pub fn prepare(&mut self, transformer: usize, prepared: Shared) {
        if let Some(transformer) = self.transformers.get_mut(transformer) {
            transformer.prepared = Some(prepared);
        }
    }

    /// Returns the weights of each transformer with all changes, by the names of the recipe's networks.
    pub fn sources(&self) -> impl Iterator<Item = (String, Shared)> {
        self.transformers.iter().map(|t| -> (String, Shared) { (t.name.clone(), Arc::new(t.merged())) })
    }

    /// Opens the `LoRA`s that a job chooses, whose files are `files`.
    pub fn open(&self, wanted: &[LoraChoice], files: &[PathBuf]) -> Result<Vec<Adapter>> {
        let open = |(choice, file): (&LoraChoice, &PathBuf)| {
            let strength = Strength::chosen(choice);
            let base = choice.strength_base.unwrap_or_default();
            for known in &self.of_job {
                if let Some(again) = known.again(file, strength)? {
                    return Ok(again.in_base(base));
                }
            }
            let Some(Transformer { config, .. }) = self.transformers.first() else {
                return Err(Error::Internal("the model has no transformer".into()));
            };
            Ok(Adapter::of_job(file, config, self.transformers.len().min(BASE), strength)?.in_base(base))
        };
        wanted.iter().zip(files).map(open).collect()
    }

    /// Returns whether neither the model nor the current job has a `LoRA`.
    pub fn is_empty(&self) -> bool {
        self.own.is_empty() && self.of_job.is_empty()
    }

    /// Adds the high-noise transformer once more, under another name: only what a job says so of is added to its weights.
    pub fn add_base(&mut self, name: &str) {
        let Some(high) = self.transformers.first() else { return };
        let loras = self
            .own
            .iter()
            .chain(&self.of_job)
            .map(|adapter| (adapter.lora().clone(), adapter.strength(BASE)));
        self.transformers.push(Transformer {
            name: name.to_owned(),
            config: high.config.clone(),
            exact: high.exact.clone(),
            prepared: high.prepared.clone(),
            loras: loras.collect(),
            stale: BTreeSet::new(),
        });
    }

    /// Takes away what [`Self::add_base`] has added.
    pub fn remove_base(&mut self) {
        self.transformers.truncate(BASE);
    }

    /// Sets the `LoRA`s of the current job.
    pub fn set(&mut self, of_job: Vec<Adapter>) {
        for (i, transformer) in self.transformers.iter_mut().enumerate() {
            let all = self.own.iter().chain(&of_job);
            let loras: Vec<_> = all.map(|adapter| (adapter.lora().clone(), adapter.strength(i))).collect();
            transformer.stale.extend(transformer.merged().differs(&loras));
            transformer.loras = loras;
        }
        self.of_job = of_job;
    }

    /// Tells the log what it costs that quantised weights are rounded once more, if they are.
    pub fn tell_rounding(&self, precision: Precision) -> Result<()> {
        for transformer in self.transformers.iter().filter(|transformer| !transformer.stale.is_empty()) {
            if let Some(again) = transformer.merged().rounded_again(precision)? {
                let (network, RoundedAgain { name, stored, error }) = (&transformer.name, again);
                tracing::info!(
                    "{network} is stored as {stored}: what LoRAs change is expanded, changed in f32 and rounded to {precision:?} again, \
                     which is {:.1} % off at `{name}`",
                    100.0 * error
                );
            }
        }
        Ok(())
    }

    /// Notes that everything has been loaded as it is to be.
    pub fn loaded(&mut self) {
        self.transformers.iter_mut().for_each(|transformer| transformer.stale.clear());
    }

    /// Returns the number of parameters that are to be loaded again.
    pub fn stale_parameters(&self) -> usize {
        self.transformers.iter().map(Transformer::stale_parameters).sum()
    }
}
