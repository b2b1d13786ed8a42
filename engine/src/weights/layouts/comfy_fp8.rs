//! `ComfyUI`'s `fp8_scaled` layout from before `comfy_quant`: e4m3 matrices with one scale each, `X.scale_weight`
//! beside `X.weight`; a marker, `scaled_fp8`; and `X.scale_input`, which is for activations and not needed.

use super::{Layout, Role, float_or_scaled_e4m3, has_integers, official};
use crate::weights::Component;
use crate::weights::stored::Tensors;

const MARKER: &str = "scaled_fp8";

pub(super) static LAYOUT: Layout = Layout {
    name: "comfy-fp8",
    title: "ComfyUI fp8_scaled",
    component: |tensors| official::component(tensors).filter(|component| *component == Component::Dit),
    mark,
    role: |name| match name.strip_suffix(".scale_weight") {
        Some(layer) => Role::Scale(format!("{layer}.weight")),
        None if is_unused(name) => Role::Unused,
        None => Role::Weight(name.to_owned()),
    },
    encoding: float_or_scaled_e4m3,
};

fn is_unused(name: &str) -> bool {
    name == MARKER || name.ends_with(".scale_input")
}

/// Returns the name of a scale, or of another tensor that comes with scales. `LightX2V` writes such names beside
/// integers, too.
fn mark(tensors: &Tensors) -> Option<&str> {
    let scale = tensors.keys().find(|name| name.ends_with(".scale_weight"));
    let mark = scale.or_else(|| tensors.keys().find(|name| is_unused(name)));
    mark.filter(|_| !has_integers(tensors)).map(String::as_str)
}
