//! Whole folders, as programs keep them.

use animd_engine::weights::Model;
use anyhow::{Context as _, Result};

use super::wrong::says;
use super::{Checks, Entry};

impl Checks {
    /// Opens a folder as a model. One that holds a model gives the forward of each of its transformers; one that holds
    /// several, or half of one, is refused with the reason.
    pub(super) fn folder(&mut self, index: usize) -> Result<()> {
        let entry = &self.entries[index];
        let id = entry.id.clone();
        let expected = entry.forwards();
        let refusal: &[&str] =
            if entry.family.as_deref() == Some("comfyui") { &["both hold a"] } else { &["Wan2.2"] };
        let found = self.files.get(&entry.path)?;
        let opened = Model::open(&found.path, None);
        let Some(expected) = expected else {
            let refused = opened.err().map(|e| e.to_string()).context("it should have been refused")?;
            says(self, &id, &refused, refusal);
            return Ok(());
        };
        let model = opened?;
        let transformers: Vec<_> = std::iter::once(&model.dit).chain(&model.low_noise).collect();
        self.fact(&format!("{id}: transformers"), transformers.len() == expected.len());
        for (forward, (source, config)) in expected.iter().zip(transformers) {
            self.forward(forward, &format!("{id}: {forward}"), source, config)?;
        }
        self.fact(&format!("{id}: tokenizer"), animd_engine::text::Tokenizer::open(&model.tokenizer).is_ok());
        Ok(())
    }
}

impl Entry {
    /// Returns the names of the forwards of a folder's transformers, the high-noise one first, or `None` for a folder
    /// that holds no whole model, or more than one.
    fn forwards(&self) -> Option<Vec<String>> {
        let named = || {
            Some(self.dit.as_ref()?.as_str()?.split(", ").map(|dit| format!("{dit}.out")).collect::<Vec<_>>())
        };
        match (self.model.as_deref()?, &self.forward, &self.forward_high, &self.forward_low) {
            ("2.1", Some(forward), ..) => Some(vec![forward.clone()]),
            ("2.1", None, ..) => named(),
            ("2.2", _, Some(high), Some(low)) => Some(vec![high.clone(), low.clone()]),
            ("2.2", ..) => named().filter(|pair| pair.len() == 2),
            _ => None,
        }
    }
}
