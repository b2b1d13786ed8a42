//! What a file beside a `LoRA` says of it: how a model with the `LoRA` is sampled.
//!
//! `four-steps.toml` beside `four-steps.safetensors` has the section `[sampling]` of a model file. A `LoRA` that distils a model
//! to a few steps says nothing of that itself.

use std::path::Path;

use animd_protocol::model_file::{self, Sampling};

use crate::files::show;

/// Returns how a model with this `LoRA` is sampled, if a file beside it says so.
///
/// # Errors
/// A sentence with every mistake in the file.
pub fn sampling(lora: &Path) -> Result<Option<Sampling>, String> {
    let beside = lora.with_extension("toml");
    match beside.is_file() {
        true => model_file::sampling_of(&beside).map(Some).map_err(|e| show(&e)),
        false => Ok(None),
    }
}
