//! The model as it was released, in safetensors or torch files: F32, F16 or BF16 under the official names.

use super::{Layout, Role, float_or_scaled_e4m3};
use crate::weights::Component;
use crate::weights::stored::Tensors;

pub(super) static LAYOUT: Layout = Layout {
    name: "official",
    title: "official",
    component,
    mark: |_| None,
    role: |name| Role::Weight(name.to_owned()),
    // Some converters write 8-bit floats without scales; such files cannot be read.
    encoding: float_or_scaled_e4m3,
};

/// Returns the component that tensors belong to, by official names that only it has.
pub(super) fn component(tensors: &Tensors) -> Option<Component> {
    let any = |of_it: fn(&str) -> bool| tensors.keys().any(|name| of_it(name));
    if any(|n| n.ends_with("self_attn.q.weight") || n.ends_with("time_projection.1.weight")) {
        Some(Component::Dit)
    } else if any(|n| n.ends_with("pos_embedding.embedding.weight")) {
        Some(Component::T5)
    } else if any(|n| n.starts_with("visual.")) {
        Some(Component::Clip)
    } else if any(|n| n.starts_with("decoder.upsamples.") && !n.contains(".upsamples.0.upsamples.")) {
        Some(Component::Vae)
    } else {
        None
    }
}
