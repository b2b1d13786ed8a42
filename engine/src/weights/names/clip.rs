//! The names of the CLIP vision tower's tensors.

use super::{DIFFUSERS, Naming, OFFICIAL as RELEASED, Place, any, numbered};
use crate::weights::Component;

pub(super) static OFFICIAL: Naming = Naming {
    component: Component::Clip,
    layout: RELEASED,
    recognises: |tensors| any(tensors, |n| n.starts_with("visual.")),
    place: |name| Place::whole(name),
};

pub(super) static TRANSFORMERS: Naming = Naming {
    component: Component::Clip,
    layout: DIFFUSERS,
    recognises: |tensors| any(tensors, |n| n == "vision_model.embeddings.class_embedding"),
    place,
};

/// The layers within a block, but for the three that are one in the official file.
const LAYERS: [(&str, &str); 5] = [
    ("layer_norm1.", "norm1."),
    ("self_attn.out_proj.", "attn.proj."),
    ("layer_norm2.", "norm2."),
    ("mlp.fc1.", "mlp.0."),
    ("mlp.fc2.", "mlp.2."),
];

fn place(name: &str) -> Place {
    match name {
        "vision_model.embeddings.class_embedding" => {
            Place::Whole { name: "visual.cls_embedding".to_owned(), ones: 2 }
        }
        "vision_model.embeddings.position_embedding.weight" => {
            Place::Whole { name: "visual.pos_embedding".to_owned(), ones: 1 }
        }
        "vision_model.embeddings.patch_embedding.weight" => Place::whole("visual.patch_embedding.weight"),
        "vision_model.pre_layrnorm.weight" => Place::whole("visual.pre_norm.weight"),
        "vision_model.pre_layrnorm.bias" => Place::whole("visual.pre_norm.bias"),
        _ if is_unused(name) => Place::Unused,
        _ => in_block(name).unwrap_or_else(|| Place::whole(name)),
    }
}

/// Returns whether a tensor belongs to a part that the engine does not run: the last norm, the projection, the text
/// tower.
fn is_unused(name: &str) -> bool {
    ["vision_model.post_layernorm.", "visual_projection.", "text_model.", "text_projection."]
        .iter()
        .any(|prefix| name.starts_with(prefix))
        || ["logit_scale", "vision_model.embeddings.position_ids"].contains(&name)
}

fn in_block(name: &str) -> Option<Place> {
    let (number, rest) = numbered(name, "vision_model.encoder.layers.")?;
    let block = format!("visual.transformer.{number}");
    for (index, part) in ["q", "k", "v"].into_iter().enumerate() {
        if let Some(end) = rest.strip_prefix(&format!("self_attn.{part}_proj.")) {
            return Some(Place::Part { name: format!("{block}.attn.to_qkv.{end}"), index, of: 3 });
        }
    }
    LAYERS.iter().find_map(|(theirs, ours)| {
        Some(Place::whole(format!("{block}.{ours}{}", rest.strip_prefix(theirs)?)))
    })
}
