//! The layouts: the conventions by which a file names and encodes its tensors.
//!
//! Each layout is a value in a file of its own: it says which tensors mark it, what its tensors are called, and how
//! each is encoded. To add a layout, write its file and name it in [`LAYOUTS`]. A layout is recognised by what is in a
//! file, never by the name of the file.

mod comfy_fp8;
pub(super) mod lightx2v_fp8;
mod official;

use std::collections::BTreeMap;
use std::{fmt, iter};

use serde::{Serialize, Serializer};

use super::stored::{Stored, Tensors};
use super::{Component, DType, Encoding, Granularity};

/// All layouts that animd can read.
static LAYOUTS: [&Layout; 3] = [&official::LAYOUT, &lightx2v_fp8::LAYOUT, &comfy_fp8::LAYOUT];

/// A way of naming and encoding a model's tensors.
pub struct Layout {
    /// The layout's name for programs.
    name: &'static str,
    /// The layout's name in sentences.
    title: &'static str,
    /// Returns the component that a file's tensors belong to, by names that only this component has in this layout.
    component: fn(&Tensors) -> Option<Component>,
    /// Returns a tensor that only this layout has. The official layout has no such mark: it is what is left.
    mark: fn(&Tensors) -> Option<&str>,
    /// Returns what a tensor is, by its name; no two names give the same weight or scale.
    role: fn(&str) -> Role,
    /// Returns how a tensor with this scale, if it has one, is encoded; or what keeps it from being read.
    encoding: fn(&str, &Stored, Option<&Stored>) -> Encoded,
}

impl Layout {
    /// Returns the layout's name for programs: `official`, `lightx2v-fp8`, `comfy-fp8`.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// Returns the layout's name in sentences.
    pub fn title(&self) -> &'static str {
        self.title
    }
}

impl fmt::Debug for Layout {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name)
    }
}

impl Serialize for Layout {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name)
    }
}

/// The role that a tensor of a file has in the model.
enum Role {
    /// The weight of this official name.
    Weight(String),
    /// The scale of the weight of this official name.
    Scale(String),
    /// Nothing that the engine needs.
    Unused,
}

/// The reason that a tensor cannot be read, in words.
#[derive(Clone, Debug)]
pub(super) enum Misfit {
    /// Something that the tensor needs is missing.
    Missing(String),
    /// The tensor has the wrong shape.
    Misshapen(String),
    /// The tensor has the wrong type.
    Mistyped(String),
}

/// The encoding of a tensor, or what keeps it from being read.
type Encoded = Result<Encoding, Vec<Misfit>>;

/// A tensor as its layout describes it.
pub(super) struct Described {
    /// Where the tensor lies.
    pub stored: Stored,
    /// Where the tensor's scale lies, if the scale is a tensor of its own.
    pub scale: Option<Stored>,
    /// How the tensor is encoded, if it can be read.
    pub encoding: Encoded,
}

impl Described {
    /// Returns the tensor's extents in the model, outermost first.
    pub fn shape(&self) -> &[usize] {
        &self.stored.shape
    }
}

/// The tensors and scales that files hold of a component.
pub(super) struct Contents {
    /// The tensors, by their official names.
    pub tensors: BTreeMap<String, Described>,
    /// Scales of tensors that are missing, by the official names of those tensors.
    pub orphans: Tensors,
}

impl Contents {
    /// Returns all tensors and scales of the files that the engine needs.
    pub fn stored(&self) -> impl Iterator<Item = &Stored> {
        let tensors = self.tensors.values();
        tensors
            .flat_map(|tensor| iter::once(&tensor.stored).chain(&tensor.scale))
            .chain(self.orphans.values())
    }
}

/// Returns the component that a file's tensors belong to, by their names in any layout.
pub(super) fn component(tensors: &Tensors) -> Option<Component> {
    LAYOUTS.iter().find_map(|layout| (layout.component)(tensors))
}

/// Returns the layouts whose marks a component's files have, each with the tensor that is its mark. Two or more such
/// layouts contradict each other.
pub(super) fn marked(component: Component, tensors: &Tensors) -> Vec<(&'static Layout, &str)> {
    let of_component = LAYOUTS.iter().filter(|layout| (layout.component)(tensors) == Some(component));
    of_component.filter_map(|layout| Some((*layout, (layout.mark)(tensors)?))).collect()
}

/// Returns the layout of files without marks.
pub(super) fn unmarked() -> &'static Layout {
    &official::LAYOUT
}

/// Removes the prefix that the names of a DiT's tensors may have in any layout.
///
/// # Errors
/// The error is a name that is there both with the prefix and without it.
pub(super) fn without_prefix(tensors: Tensors) -> Result<Tensors, String> {
    let mut all = Tensors::new();
    for (name, stored) in tensors {
        let short = ["model.diffusion_model.", "diffusion_model."].iter().find_map(|p| name.strip_prefix(p));
        let short = short.map_or_else(|| name.clone(), str::to_owned);
        if all.insert(short.clone(), stored).is_some() {
            return Err(short);
        }
    }
    Ok(all)
}

/// Brings a file's tensors to their official names, each with its scale and its encoding.
pub(super) fn describe(layout: &Layout, tensors: Tensors) -> Contents {
    let (mut weights, mut scales) = (Tensors::new(), Tensors::new());
    for (name, stored) in tensors {
        match (layout.role)(&name) {
            Role::Weight(name) => _ = weights.insert(name, stored),
            Role::Scale(of) => _ = scales.insert(of, stored),
            Role::Unused => {}
        }
    }
    let describe = |(name, stored): (String, Stored)| {
        let scale = scales.remove(&name);
        let encoding = (layout.encoding)(&name, &stored, scale.as_ref());
        (name, Described { stored, scale, encoding })
    };
    Contents { tensors: weights.into_iter().map(describe).collect(), orphans: scales }
}

/// Returns the encoding of a tensor that is either a plain float or e4m3 with a scale. The scale's shape says what it
/// is for: the whole tensor, or each row.
fn float_or_scaled_e4m3(name: &str, stored: &Stored, scale: Option<&Stored>) -> Encoded {
    match (stored.dtype(), scale) {
        (Some(dtype), None) if dtype.is_plain_float() => Ok(Encoding::Plain(dtype)),
        (Some(dtype), Some(_)) if dtype.is_plain_float() => Err(vec![Misfit::Mistyped(format!(
            "`{name}` is {}, not F8_E4M3 as its scale says",
            dtype.name()
        ))]),
        (Some(DType::F8E4m3), None) => Err(vec![Misfit::Missing(format!("the scale of `{name}`"))]),
        (Some(dtype @ DType::F8E4m3), Some(scale)) => {
            let rows = stored.shape.first().copied().unwrap_or(0);
            let mut misfits = Vec::new();
            if ![&[][..], &[1], &[rows], &[rows, 1]].contains(&&scale.shape[..]) {
                misfits.push(Misfit::Misshapen(format!(
                    "the scale of `{name}` is {:?}, not [{rows}, 1]",
                    scale.shape
                )));
            }
            if !scale.dtype().is_some_and(DType::is_plain_float) {
                let found = scale.encoding;
                misfits.push(Misfit::Mistyped(format!("the scale of `{name}` is {found}, not F32")));
            }
            let by = match scale.shape[..] {
                [] | [1] => Granularity::Tensor,
                _ => Granularity::Row,
            };
            if misfits.is_empty() { Ok(Encoding::Scaled { dtype, by }) } else { Err(misfits) }
        }
        _ => Err(vec![not_a_float(name, stored)]),
    }
}

/// Returns the problem of a tensor that must be a plain float and is not.
pub(super) fn not_a_float(name: &str, stored: &Stored) -> Misfit {
    Misfit::Mistyped(format!("`{name}` is {}, not F32, F16 or BF16", stored.encoding))
}

/// Returns whether a file has tensors of integers. Files in 8-bit and 4-bit formats have them; no layout of floats
/// does.
pub(super) fn has_integers(tensors: &Tensors) -> bool {
    tensors.iter().any(|(name, stored)| match stored.dtype() {
        Some(DType::I8) => true,
        Some(DType::U8) => name.ends_with(".weight"),
        _ => false,
    })
}
