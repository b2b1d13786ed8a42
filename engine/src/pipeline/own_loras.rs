//! The identity of the `LoRA`s that a model's own file names: each one's name, its strengths, and the hash of its file.

use std::path::Path;
use std::thread::{self, JoinHandle};

use animd_protocol::lora::ModelLora;
use animd_protocol::lora_files;

use crate::verify::hash_of;
use crate::weights::Adapter;
use crate::{Error, Result};

/// The identities, which a thread finds out from the opening of the model on; the first job needs them.
pub(super) enum OwnLoras {
    Hashing(JoinHandle<Result<Vec<ModelLora>>>),
    /// They are known, or the sentence is that says why they cannot be.
    Known(Result<Vec<ModelLora>, String>),
}

impl OwnLoras {
    /// Begins to hash the files of these.
    pub fn of(adapters: &[Adapter]) -> Self {
        if adapters.is_empty() {
            return Self::Known(Ok(Vec::new()));
        }
        let adapters = adapters.to_vec();
        Self::Hashing(thread::spawn(move || adapters.iter().map(identity).collect()))
    }

    /// Returns the identities, in the order in which the `LoRA`s are added; waits for the hashes.
    ///
    /// # Errors
    /// [`Error::Model`] if a file cannot be read, or was written while it was.
    pub fn get(&mut self) -> Result<&[ModelLora]> {
        if let Self::Hashing(_) = self {
            let hashing = std::mem::replace(self, Self::Known(Ok(Vec::new())));
            if let Self::Hashing(thread) = hashing {
                let found =
                    thread.join().map_err(|_| "the hashes of its LoRAs could not be computed".to_owned());
                *self = Self::Known(found.and_then(|found| found.map_err(|e| e.to_string())));
            }
        }
        match self {
            Self::Known(Ok(known)) => Ok(known),
            Self::Known(Err(why)) => Err(Error::Model(why.clone())),
            Self::Hashing(_) => Err(Error::Internal("the hashes of LoRAs are still computed".into())),
        }
    }
}

fn identity(adapter: &Adapter) -> Result<ModelLora> {
    let path = adapter.lora().path();
    // The shortest number that is this one in f32: what the model file says, and not its last bits in f64.
    let strength = |transformer| adapter.strength(transformer).to_string().parse().unwrap_or_default();
    Ok(ModelLora {
        name: name(path),
        strength: strength(0),
        strength_low: (adapter.strengths().len() > 1).then(|| strength(1)),
        sha256: hash_of(path)?,
    })
}

fn name(path: &Path) -> String {
    let whole = || path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    lora_files::name_of(path).map_or_else(whole, str::to_owned)
}
