//! Whether a component has the tensors that it should have, and only those.

use std::collections::BTreeMap;
use std::fmt;

use super::stored::{Element, Tensors};
use super::{Component, DType};
use crate::dims::schema::Expected;

/// How a component's files differ from what they should be.
#[derive(Clone, Debug, Default)]
pub(crate) struct Problems {
    /// Contradictions about sizes.
    pub sizes: Vec<String>,
    pub missing: Vec<String>,
    pub extra: Vec<String>,
    pub misshapen: Vec<String>,
    pub mistyped: Vec<String>,
}

/// How many of a kind an error names before it only counts them.
const NAMED: usize = 20;

impl Problems {
    pub fn is_empty(&self) -> bool {
        let lists = [&self.sizes, &self.missing, &self.extra, &self.misshapen, &self.mistyped];
        lists.iter().all(|list| list.is_empty())
    }
}

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kinds = [
            (&self.sizes, ""),
            (&self.missing, "missing"),
            (&self.extra, "not of this model"),
            (&self.misshapen, "of the wrong shape"),
            (&self.mistyped, "of the wrong type"),
        ];
        let mut separator = "";
        for (list, kind) in kinds.into_iter().filter(|(list, _)| !list.is_empty()) {
            f.write_str(separator)?;
            separator = "; ";
            if !kind.is_empty() {
                write!(f, "{} {kind}: ", list.len())?;
            }
            f.write_str(&list[..list.len().min(NAMED)].join(", "))?;
            if list.len() > NAMED {
                write!(f, " and {} more", list.len() - NAMED)?;
            }
        }
        Ok(())
    }
}

/// Compares a component's tensors with the list of what should be there.
pub(super) fn compare(
    component: Component,
    tensors: &Tensors,
    scales: &Tensors,
    expected: &[Expected],
) -> Problems {
    let mut problems = Problems::default();
    let by_name: BTreeMap<&str, &Expected> = expected.iter().map(|e| (e.name.as_str(), e)).collect();
    for want in expected {
        let Expected { name, shape, quantisable } = want;
        let Some(have) = tensors.get(name) else {
            problems.missing.push(format!("`{name}`"));
            continue;
        };
        let fits =
            have.shape.len() == shape.len() && have.shape.iter().zip(shape).all(|(h, w)| h == w || *w == 0);
        if !fits {
            problems.misshapen.push(format!("`{name}` is {:?}, not {}", have.shape, show_shape(shape)));
        }
        match (&have.element, scales.get(name)) {
            (Element::Float(DType::F8E4m3), Some(scale)) if *quantisable => {
                let rows = have.shape.first().copied().unwrap_or(0);
                if ![&[][..], &[1], &[rows], &[rows, 1]].contains(&&scale.shape[..]) {
                    problems
                        .misshapen
                        .push(format!("the scale of `{name}` is {:?}, not [{rows}, 1]", scale.shape));
                }
                if !matches!(scale.element, Element::Float(DType::F32 | DType::F16 | DType::Bf16)) {
                    problems.mistyped.push(format!("the scale of `{name}` is {}, not F32", scale.element));
                }
            }
            (Element::Float(DType::F8E4m3), None) if *quantisable => {
                problems.missing.push(format!("the scale of `{name}`"));
            }
            (Element::Float(DType::F32 | DType::F16 | DType::Bf16), None) => {}
            (Element::Float(DType::F32 | DType::F16 | DType::Bf16), Some(_)) => {
                problems
                    .mistyped
                    .push(format!("`{name}` is {}, not F8_E4M3 as its scale says", have.element));
            }
            (element, _) => problems.mistyped.push(format!("`{name}` is {element}, not F32, F16 or BF16")),
        }
    }
    let unknown = |name: &&String| !by_name.contains_key(name.as_str()) && !ignorable(component, name);
    problems.extra.extend(tensors.keys().filter(unknown).map(|name| format!("`{name}`")));
    let orphan = |name: &&String| !tensors.contains_key(name.as_str());
    problems.extra.extend(scales.keys().filter(orphan).map(|name| format!("the scale of `{name}`")));
    problems
}

/// Whether a component's file may hold a tensor that the engine has no use for.
pub(super) fn ignorable(component: Component, name: &str) -> bool {
    match component {
        // The text tower, the last norm and the projection of a whole CLIP checkpoint.
        Component::Clip => {
            name.starts_with("textual.")
                || name.starts_with("visual.post_norm.")
                || ["log_scale", "visual.head"].contains(&name)
        }
        Component::Dit | Component::T5 | Component::Vae => false,
    }
}

fn show_shape(shape: &[usize]) -> String {
    let extents: Vec<String> =
        shape.iter().map(|e| if *e == 0 { "?".to_owned() } else { e.to_string() }).collect();
    format!("[{}]", extents.join(", "))
}
