//! `LightX2V`'s 8-bit DiT, which is also how animd writes its prepared copy: the blocks' matrices are e4m3, and each has a
//! scale for each row, `X.weight_scale` `[rows, 1]` beside `X.weight`.

use super::{Layout, Role, float_or_scaled_e4m3, has_integers, official};
use crate::weights::Component;
use crate::weights::stored::Tensors;

/// The suffix of a scale's name, after the name of its weight.
const SUFFIX: &str = "_scale";

pub(super) static LAYOUT: Layout = Layout {
    name: "lightx2v-fp8",
    title: "LightX2V fp8",
    component: |tensors| official::component(tensors).filter(|component| *component == Component::Dit),
    mark,
    role: |name| match weight_of(name) {
        Some(weight) => Role::Scale(weight.to_owned()),
        None => Role::Weight(name.to_owned()),
    },
    encoding: float_or_scaled_e4m3,
};

/// Returns the name of a weight's scale.
pub(in crate::weights) fn scale_name(weight: &str) -> String {
    format!("{weight}{SUFFIX}")
}

/// Returns the name of the weight that a scale is for.
fn weight_of(scale: &str) -> Option<&str> {
    scale.strip_suffix(SUFFIX).filter(|name| name.ends_with(".weight"))
}

/// Returns the name of a scale. Other formats have scales of this name, too; a tensor or the weights' type shows that
/// they are other formats.
fn mark(tensors: &Tensors) -> Option<&str> {
    let other = tensors.keys().any(|name| {
        name.ends_with(".comfy_quant")
            || name.ends_with(".weight_global_scale")
            || name.ends_with(".weight_scale_2")
    });
    let scale = tensors.keys().find(|name| weight_of(name).is_some());
    scale.filter(|_| !other && !has_integers(tensors)).map(String::as_str)
}
