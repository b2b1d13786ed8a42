//! `LoRA`s: known tensors and the forward of the model with the changes, and those that are refused.

use animd_engine::weights::{Lora, Merged, WeightSource as _, open_dit};
use anyhow::{Context as _, Result, bail};

use super::Checks;
use super::wrong::says;

/// The transformer, in f32, that the expected results of `LoRA`s are for.
const BASE: &str = "official-fp32";

/// Kinds that lists name as ones to be refused unless they are read, and that are. The lists have no values for them.
const READ: [&str; 3] = ["DoRA", "LoHa", "LoKr"];

impl Checks {
    /// Checks the merged model, or that another kind of adapter is refused by its name.
    pub(super) fn lora(&mut self, index: usize) -> Result<()> {
        let entry = &self.entries[index];
        let (id, forward) = (entry.id.clone(), entry.forward.clone());
        let (count, refuse) = (entry.merged_tensors, entry.refuse.clone());
        // The base of Wan2.2's is only there in bf16, so that their results are not compared.
        let other = entry.model.as_deref().is_some_and(|model| model != "2.1");
        let base = match other {
            true => format!("official-{}", entry.model.clone().unwrap_or_default()),
            false => BASE.to_owned(),
        };
        let base = &self.entries[self.find(&base)?];
        let (found, base) = (self.files.get(&entry.path)?, self.files.get(&base.path)?);
        let (weights, config) = match other {
            true => animd_engine::weights::open_expert(&base.path)?,
            false => open_dit(&base.path)?,
        };
        let opened = Lora::open(&found.path, &config);
        if let Some(why) = refuse {
            // The list's sentence begins with the name of the kind.
            let kind = why.split([' ', ':']).next().unwrap_or_default();
            match opened {
                Err(refusal) => says(self, &id, &refusal.to_string(), &[kind]),
                Ok(lora) if READ.contains(&kind) => {
                    let names: Vec<String> = lora.names().map(str::to_owned).collect();
                    let before =
                        names.iter().map(|name| weights.tensor(name)).collect::<Result<Vec<_>, _>>()?;
                    let merged = Merged::new(weights, vec![(lora, 1.0)]);
                    let after =
                        names.iter().map(|name| merged.tensor(name)).collect::<Result<Vec<_>, _>>()?;
                    self.fact(
                        &format!("{id}: {kind} changes {} tensors", names.len()),
                        before.iter().zip(&after).all(|(before, after)| before != after),
                    );
                }
                Ok(_) => bail!("it should have been refused"),
            }
            return Ok(());
        }
        let lora = opened?;
        self.fact(
            &format!("{id}: changes {} tensors", lora.names().count()),
            Some(lora.names().count()) == count,
        );
        if other {
            return Ok(());
        }
        let merged = Merged::new(weights, vec![(lora, 1.0)]);
        self.values(index, &merged)?;
        if let Some(forward) = forward {
            self.forward(&forward, &forward, &merged, &config)?;
        }
        Ok(())
    }

    /// Returns the words with which a `LoRA` is refused for the model that the others are for.
    pub(super) fn refusal_of_lora(&self, path: &std::path::Path) -> Result<String> {
        let base = self.files.get(&self.entries[self.find(BASE)?].path)?;
        let (_, config) = open_dit(&base.path)?;
        Lora::open(path, &config).err().map(|e| e.to_string()).context("it should have been refused")
    }
}
