//! The names of the `umT5` encoder's tensors.

use super::{DIFFUSERS, Naming, OFFICIAL as RELEASED, Place, any, numbered};
use crate::weights::Component;
use crate::weights::stored::Tensors;

/// The embedding of the vocabulary, of which a prompt takes a few rows.
pub const EMBEDDING: &str = "token_embedding.weight";

pub(super) static OFFICIAL: Naming = Naming {
    component: Component::T5,
    layout: RELEASED,
    recognises: |tensors| any(tensors, |n| n.ends_with("pos_embedding.embedding.weight")),
    place: |name| Place::whole(name),
};

pub(super) static TRANSFORMERS: Naming = Naming {
    component: Component::T5,
    layout: DIFFUSERS,
    recognises: |tensors| biases_everywhere(tensors, "encoder.block.", "relative_attention_bias.weight"),
    place: |name| match name {
        // The tokenizer, and the embedding a second time.
        "spiece_model" | "encoder.embed_tokens.weight" => Place::Unused,
        "shared.weight" => Place::whole(EMBEDDING),
        "encoder.final_layer_norm.weight" => Place::whole("norm.weight"),
        _ => in_block(name, "encoder.block.", &TRANSFORMERS_LAYERS),
    },
};

pub(super) static GGML: Naming = Naming {
    component: Component::T5,
    layout: DIFFUSERS,
    recognises: |tensors| biases_everywhere(tensors, "enc.blk.", "attn_rel_b.weight"),
    place: |name| match name {
        "token_embd.weight" => Place::whole(EMBEDDING),
        "enc.output_norm.weight" => Place::whole("norm.weight"),
        _ => in_block(name, "enc.blk.", &GGML_LAYERS),
    },
};

const TRANSFORMERS_LAYERS: [(&str, &str); 10] = [
    ("layer.0.layer_norm", "norm1"),
    ("layer.0.SelfAttention.q", "attn.q"),
    ("layer.0.SelfAttention.k", "attn.k"),
    ("layer.0.SelfAttention.v", "attn.v"),
    ("layer.0.SelfAttention.o", "attn.o"),
    ("layer.0.SelfAttention.relative_attention_bias", "pos_embedding.embedding"),
    ("layer.1.layer_norm", "norm2"),
    ("layer.1.DenseReluDense.wi_0", "ffn.gate.0"),
    ("layer.1.DenseReluDense.wi_1", "ffn.fc1"),
    ("layer.1.DenseReluDense.wo", "ffn.fc2"),
];

const GGML_LAYERS: [(&str, &str); 10] = [
    ("attn_norm", "norm1"),
    ("attn_q", "attn.q"),
    ("attn_k", "attn.k"),
    ("attn_v", "attn.v"),
    ("attn_o", "attn.o"),
    ("attn_rel_b", "pos_embedding.embedding"),
    ("ffn_norm", "norm2"),
    ("ffn_gate", "ffn.gate.0"),
    ("ffn_up", "ffn.fc1"),
    ("ffn_down", "ffn.fc2"),
];

fn in_block(name: &str, blocks: &str, layers: &[(&str, &str)]) -> Place {
    let ours = || {
        let (number, rest) = numbered(name, blocks)?;
        let layer = rest.strip_suffix(".weight")?;
        let (_, ours) = layers.iter().find(|(theirs, _)| *theirs == layer)?;
        Some(format!("blocks.{number}.{ours}.weight"))
    };
    Place::whole(ours().unwrap_or_else(|| name.to_owned()))
}

/// Returns the number of blocks under a prefix, and of those among them that have a relative bias.
pub(in crate::weights) fn biases(tensors: &Tensors, blocks: &str, bias: &str) -> [usize; 2] {
    let mut seen = std::collections::BTreeMap::new();
    for (number, rest) in tensors.keys().filter_map(|name| numbered(name, blocks)) {
        *seen.entry(number).or_insert(false) |= rest.ends_with(bias);
    }
    [seen.len(), seen.values().filter(|has| **has).count()]
}

/// Returns whether every block has a relative bias of its own, as `umT5` has, where T5 has one in the first block only.
fn biases_everywhere(tensors: &Tensors, blocks: &str, bias: &str) -> bool {
    let [all, with] = biases(tensors, blocks, bias);
    all > 0 && all == with
}
