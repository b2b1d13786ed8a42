//! Whole folders, as programs keep them.

use animd_engine::weights::Model;
use anyhow::{Context as _, Result};

use super::Checks;
use super::dit::blind;
use super::wrong::says;

impl Checks {
    /// Opens a folder as a model. One with a Wan2.1 model gives the forward of its transformer, one with a whole Wan2.2 model
    /// those of both; any other is refused with the reason.
    pub(super) fn folder(&mut self, index: usize) -> Result<()> {
        let entry = &self.entries[index];
        let id = entry.id.clone();
        let found = self.files.get(&entry.path)?;
        let opened = Model::open(&found.path, None);
        if let Some(forwards) = entry.experts() {
            let model = opened?;
            let low = model.low_noise.context("it should have two transformers")?;
            for (forward, (weights, config)) in forwards.iter().zip([model.dit, low]) {
                let (weights, config) = blind(weights, &config, &self.goldens)?;
                self.forward(forward, &format!("{id}: {forward}"), &weights, &config)?;
            }
            self.fact(
                &format!("{id}: tokenizer"),
                animd_engine::text::Tokenizer::open(&model.tokenizer).is_ok(),
            );
            return Ok(());
        }
        if entry.model.as_deref() != Some("2.1") {
            // One of two transformers, or models side by side.
            let words: &[&str] = match entry.family.as_deref() {
                Some("comfyui") => &["both hold a"],
                _ => &["Wan2.2"],
            };
            let refusal = opened.err().map(|e| e.to_string()).context("it should have been refused")?;
            says(self, &id, &refusal, words);
            return Ok(());
        }
        let model = opened?;
        let forward = entry
            .forward
            .clone()
            .or_else(|| Some(format!("{}.out", entry.dit.as_ref()?.as_str()?)))
            .context("a folder whose transformer is not named")?;
        self.forward(&forward, &format!("{id}: {forward}"), &model.dit.0, &model.dit.1)?;
        self.fact(&format!("{id}: tokenizer"), animd_engine::text::Tokenizer::open(&model.tokenizer).is_ok());
        Ok(())
    }
}
