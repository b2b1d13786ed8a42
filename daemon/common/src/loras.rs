//! What a file beside a `LoRA` says of it, in words that can be printed.

use std::path::Path;

use animd_protocol::lora_files;
use animd_protocol::model_file::Sampling;

use crate::files::show;

/// Returns how a model with this `LoRA` is sampled, if a file beside it says so, as [`lora_files::sampling`] does.
///
/// # Errors
/// A sentence with every mistake in the file.
pub fn sampling(lora: &Path) -> Result<Option<Sampling>, String> {
    lora_files::sampling(lora).map_err(|e| show(&e))
}
