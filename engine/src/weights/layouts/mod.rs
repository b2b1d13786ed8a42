//! The component that a file holds, by the names of its tensors.

use super::Component;

/// The component that tensors belong to, by names that only it has.
pub(super) fn classify<'a>(names: &(impl Iterator<Item = &'a String> + Clone)) -> Option<Component> {
    let any = |of_it: fn(&str) -> bool| names.clone().any(|n| of_it(n));
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
