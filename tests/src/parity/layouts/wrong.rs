//! Files that cannot be used: each is refused, in words that say why.

use std::path::Path;

use animd_engine::weights::{WeightSource, Weights, open_clip, open_dit, open_t5, open_vae};
use anyhow::{Context as _, Result};

use super::Checks;

/// Words that the refusal of an entry must have, by the ends of its name.
const WORDS: [(&str, &[&str]); 37] = [
    ("scales-missing", &["missing: the scale of `blocks.0.self_attn.", "missing"]),
    ("scales-twice", &["weight_scale`", "scale_weight`", "not clear which scales"]),
    ("scale-shape", &["the scale of `blocks.0.ffn.0.weight` is ["]),
    ("scale-nan", &["NaN among the scales of `blocks.0.ffn.2.weight`"]),
    ("nvfp4-both", &["weight_global_scale", "order"]),
    ("nvfp4-no-global", &["tensor scale (`weight_scale_2`)"]),
    ("fp8-as-u8", &["is U8 beside a scale"]),
    ("comfy-w4a4", &["`convrot_w4a4`", "blocks.0.self_attn.q"]),
    ("marker-lies", &["`blocks.0.self_attn.q.weight` is BF16, not F8_E4M3"]),
    ("wrong-truncated", &["only partly there", "bytes"]),
    ("header-lies", &["blocks.0.ffn.0.weight", "bytes"]),
    ("offsets", &["bytes"]),
    ("header-length", &["header"]),
    ("lfs", &["git lfs pull"]),
    ("html", &["web page"]),
    ("empty", &["empty"]),
    ("aria2", &["aria2"]),
    ("missing-shard", &["lacks", "safetensors"]),
    ("gguf-truncated", &["only partly there"]),
    ("gguf-llama", &["`llama`"]),
    ("gguf-flux", &["`flux`"]),
    ("gguf-5d", &["missing: `patch_embedding.weight`"]),
    ("lora-1.3b", &["it is for another one"]),
    ("1.3b", &["text-to-video"]),
    ("t2v", &["t2v"]),
    ("vace", &["VACE"]),
    ("fun-control", &["Fun Control"]),
    ("ti2v-5b", &["TI2V-5B"]),
    ("animate", &["Animate"]),
    ("wrong-flux", &["FLUX"]),
    ("high-low-mixed", &["Wan2.2", "no image embedding", "the other one"]),
    ("lora-as-model", &["LoRA"]),
    ("vae-2.2", &["Wan2.2", "48"]),
    ("t5-v1.1", &["T5 v1.1", "umT5"]),
    ("lora-flux", &["has no layer of this model"]),
    ("lora-half", &["without the second (B, up)"]),
    ("lora-deeper", &["for layers that this model does not have"]),
];

/// Opens a file as one component and reads all of it; returns the words of its refusal.
fn refusal(path: &Path, id: &str) -> Result<String> {
    let opened: animd_engine::Result<Weights> = match id {
        _ if id.contains("-vae") => open_vae(path).map(|(weights, _)| weights),
        _ if id.contains("-t5") => open_t5(path).map(|(weights, _)| weights),
        _ if id.contains("-clip") => open_clip(path).map(|(weights, _)| weights),
        _ => open_dit(path).map(|(weights, _)| weights),
    };
    let read = opened.and_then(|weights| {
        for name in weights.names() {
            weights.tensor(name)?;
        }
        Ok(())
    });
    read.err().map(|e| e.to_string()).context("it should have been refused")
}

/// Notes whether a refusal has the words that it must have.
pub(super) fn says(checks: &mut Checks, id: &str, refusal: &str, words: &[&str]) {
    let all = words.iter().all(|word| refusal.contains(word));
    let name = if all { format!("{id}: refused") } else { format!("{id}: lacks {words:?}: {refusal}") };
    checks.fact(&name, all);
}

impl Checks {
    /// Checks that a file is refused with its reason.
    pub(super) fn wrong(&mut self, index: usize) -> Result<()> {
        let entry = &self.entries[index];
        let id = entry.id.clone();
        let found = self.files.get(&entry.path)?;
        // The suite is older than animd's support of this model.
        if id.ends_with("-flf2v") {
            let (_, config) = open_dit(&found.path)?;
            self.fact(&format!("{id}: is read"), config.image_positions == Some(514));
            return Ok(());
        }
        let refusal = match id.contains("-lora-") && !id.ends_with("-as-model") {
            true => self.refusal_of_lora(&found.path)?,
            false => refusal(&found.path, &id)?,
        };
        let words = WORDS.iter().find(|(end, _)| id.ends_with(end)).map_or(&[][..], |(_, words)| words);
        says(self, &id, &refusal, words);
        Ok(())
    }
}
