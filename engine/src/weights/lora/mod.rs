//! `LoRA`s: small files that change a model (Hu et al., "Low-rank adaptation of large language models", 2021). `LoHa`, `LoKr` and
//! `DoRA` are read too.
//!
//! A [`Lora`] has been matched with the model that it is for: each of its tensors changes one of the model's, or the
//! file is refused. An [`Adapter`] says how strongly each of the model's transformers is changed, and [`Merged`] is a
//! transformer with the changes.

mod adapter;
mod again;
mod keys;
#[cfg(test)]
pub(crate) mod made_up;
mod magnitude;
mod merge;
mod open;
mod pieces;
mod product;
mod scale;

pub use adapter::{Adapter, Strength};
pub use again::RoundedAgain;
pub use merge::Merged;
pub use product::LowRank;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use animd_protocol::recipe::ExpertName;

use super::identity::Stamp;
use super::stored::Stored;
use crate::Result;
use magnitude::Magnitude;
use product::Product;

/// The changes that a file makes to a model's tensors.
pub struct Lora {
    path: PathBuf,
    /// The file as it was when it was opened.
    stamp: Stamp,
    /// The transformer that the file says it is for, in a model that has two.
    expert: Option<ExpertName>,
    /// The changes of each tensor, by its official name.
    changes: BTreeMap<String, Change>,
}

/// What is added to a tensor.
#[derive(Default)]
struct Change {
    /// A matrix that is made of smaller ones.
    product: Option<Product>,
    /// The lengths that the rows or columns of the matrix have after the product is added.
    magnitude: Option<Magnitude>,
    /// A tensor of the same size, which is added as it is.
    difference: Option<Stored>,
}

impl Change {
    /// Returns the change as a matrix of low rank, times a strength, if it is nothing else.
    fn low_rank(&self, strength: f32) -> Result<Option<LowRank>> {
        match self {
            Self { product: Some(product), magnitude: None, difference: None } => product.low_rank(strength),
            _ => Ok(None),
        }
    }
}

impl Lora {
    /// Returns the file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the transformer that the file says it is for, in a model that has two.
    pub fn expert(&self) -> Option<ExpertName> {
        self.expert
    }

    /// Returns whether the file is still what it was when it was opened.
    fn is_current(&self) -> bool {
        fs::metadata(&self.path).is_ok_and(|meta| Stamp::of(&meta) == self.stamp)
    }

    /// Returns the official names of the tensors that change, in order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.changes.keys().map(String::as_str)
    }
}

#[cfg(test)]
mod tests;
