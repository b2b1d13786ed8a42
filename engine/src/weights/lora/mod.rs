//! `LoRA`s: small files that change a model (Hu et al., "Low-rank adaptation of large language models", 2021).
//!
//! A [`Lora`] has been matched with the model that it is for: each of its tensors changes one of the model's, or the
//! file is refused. [`Merged`] is the model with the changes.

mod keys;
mod merge;
mod open;
mod scale;

pub use merge::Merged;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::stored::Stored;

/// The changes that a file makes to a model's tensors.
pub struct Lora {
    path: PathBuf,
    /// The changes of each tensor, by its official name.
    changes: BTreeMap<String, Change>,
}

/// What is added to a tensor.
#[derive(Default)]
struct Change {
    /// A product of two small matrices, times a scale.
    product: Option<Product>,
    /// A tensor of the same size, which is added as it is.
    difference: Option<Stored>,
}

/// `scale * up * down`, `[rows, rank]` and `[rank, cols]`.
struct Product {
    down: Stored,
    up: Stored,
    rank: usize,
    scale: f32,
}

impl Lora {
    /// Returns the file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the official names of the tensors that change, in order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.changes.keys().map(String::as_str)
    }
}

#[cfg(test)]
mod tests;
