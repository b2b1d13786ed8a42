//! What a model file holds: tensors, and a few words about them.

use std::collections::BTreeMap;

use serde_json::Value;

use super::stored::Tensors;

/// What model files hold.
#[derive(Default)]
pub(super) struct Content {
    /// The tensors, by the files' own names.
    pub tensors: Tensors,
    /// What `ComfyUI` says in a header about quantised layers, by the names of the layers.
    pub described: BTreeMap<String, Value>,
    /// What a header says about a `LoRA`'s scale.
    pub adapter: Option<String>,
    /// What a header says about a training that was confined to some timesteps: the least and the greatest.
    pub timesteps: Option<String>,
    /// The architecture that a GGUF file names; empty if it names none.
    pub architecture: Option<String>,
}
