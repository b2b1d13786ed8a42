//! The layouts: the conventions by which a file names and encodes its tensors.
//!
//! One file may mix encodings, so each weight is encoded as its own type and the tensors beside it say; see
//! [`encode`]. A layout is what a file as a whole is called. It is recognised by what is in a file, never by the name
//! of the file.

mod comfy_quant;
mod encode;
mod layer;

use std::collections::BTreeMap;
use std::fmt;

use serde::{Serialize, Serializer};

pub(super) use self::comfy_quant::ROTATED_INT8;
pub(super) use self::layer::DESCRIPTION_SUFFIX;
use self::layer::{Beside, Layer, Layers};
use super::coded::Coded;
use super::content::Content;
use super::names::{self, Naming, Place};
use super::stored::{Stored, Tensors};
use super::{Component, DType, Encoding, Granularity};

/// The suffix of a scale's name, after the name of its weight, in files with a scale for each row. animd writes its
/// prepared copies in this way, too.
pub(super) const SCALE_SUFFIX: &str = "_scale";

/// A way of naming and encoding a model's tensors.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Layout {
    /// The layout's name for programs.
    name: &'static str,
    /// The layout's name in sentences.
    title: &'static str,
}

impl Layout {
    const GGUF: Self = Self::of(("gguf", "GGUF"));
    const COMFY_QUANT: Self = Self::of(("comfy-quant", "ComfyUI quantised"));
    const COMFY_FP8: Self = Self::of(("comfy-fp8", "ComfyUI fp8_scaled"));
    const LIGHTX2V_FP8: Self = Self::of(("lightx2v-fp8", "LightX2V fp8"));
    const LIGHTX2V_INT8: Self = Self::of(("lightx2v-int8", "LightX2V int8"));
    const LIGHTX2V_NVFP4: Self = Self::of(("lightx2v-nvfp4", "LightX2V NVFP4"));
    const LIGHTX2V_MXFP8: Self = Self::of(("lightx2v-mxfp8", "LightX2V MXFP8"));
    const TURBO: Self = Self::of(("turbodiffusion", "TurboDiffusion int8"));
    const FP8_CAST: Self = Self::of(("fp8-cast", "fp8 without scales"));

    const fn of((name, title): (&'static str, &'static str)) -> Self {
        Self { name, title }
    }

    /// Returns the layout's name for programs: `official`, `lightx2v-fp8`, `gguf`.
    pub fn name(self) -> &'static str {
        self.name
    }

    /// Returns the layout's name in sentences.
    pub fn title(self) -> &'static str {
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

/// How a tensor is coded, or what keeps it from being read.
type Encoded = Result<Coded, Vec<Misfit>>;

/// A tensor of the model as its layout describes it.
pub(super) struct Described {
    /// The extents of the tensor in the model, outermost first.
    pub shape: Vec<usize>,
    /// The tensor's parts, one after the other along the first axis; most tensors have one.
    pub parts: Vec<Coded>,
    /// What keeps the tensor from being read.
    pub misfits: Vec<Misfit>,
}

/// The tensors that files hold of a component.
pub(super) struct Contents {
    /// The tensors, by their official names.
    pub tensors: BTreeMap<String, Described>,
    /// Scales of tensors that are missing, by the files' names of those tensors.
    pub orphans: Tensors,
}

impl Contents {
    /// Returns all tensors and scales of the files that the engine needs.
    pub fn stored(&self) -> impl Iterator<Item = &Stored> {
        let tensors = self.tensors.values();
        tensors.flat_map(|tensor| tensor.parts.iter().flat_map(Coded::parts)).chain(self.orphans.values())
    }
}

/// Brings a file's tensors to their official names, each with its encoding.
///
/// # Errors
/// A clause for a sentence about the file: its marks contradict each other, or it is for another way of computing.
pub(super) fn describe(naming: &Naming, content: Content) -> Result<(Layout, Contents), String> {
    let Content { tensors, described, architecture, .. } = content;
    let tensors = if naming.component == Component::Dit { without_sparse_branch(tensors)? } else { tensors };
    let described =
        described.into_iter().map(|(name, value)| (names::without_prefix(&name).to_owned(), value)).collect();
    let layers = layer::gather(&tensors, described);
    let marks = Marks::of(&layers);
    marks.check(&layers)?;
    let scaled = marks.any();
    let mut contents = Contents { tensors: BTreeMap::new(), orphans: Tensors::new() };
    // Parts of a tensor come in the order of their names, and are put in the order of their indices.
    let mut parts: BTreeMap<String, BTreeMap<usize, Described>> = BTreeMap::new();
    let mut expected: BTreeMap<String, usize> = BTreeMap::new();
    for layer in &layers.all {
        let tensor = Described::of(encode::encode(layer, scaled), layer);
        match naming.place(&layer.weight) {
            Place::Unused => {}
            Place::Whole { name, ones } => {
                let tensor = tensor.reshaped(naming.component, &name, ones);
                if contents.tensors.insert(name.clone(), tensor).is_some() {
                    return Err(format!("has two tensors for `{name}`; use a file as one program wrote it"));
                }
            }
            Place::Part { name, index, of } => {
                expected.insert(name.clone(), of);
                parts.entry(name).or_default().insert(index, tensor);
            }
        }
    }
    for (name, parts) in parts {
        // A tensor that lacks a part is too short, which the check of its shape says.
        let whole = parts.into_values().reduce(Described::followed_by);
        if let Some(whole) = whole {
            contents.tensors.insert(name, whole);
        }
    }
    let layout = match architecture {
        Some(_) => Layout::GGUF,
        None => marks.layout(&contents).unwrap_or(Layout::of(naming.layout)),
    };
    contents.orphans = layers.orphans;
    Ok((layout, contents))
}

impl Described {
    fn of(encoded: Encoded, layer: &Layer) -> Self {
        match encoded {
            Ok(coded) => Self { shape: coded.shape.clone(), parts: vec![coded], misfits: Vec::new() },
            Err(misfits) => {
                let coded = Coded::plain(layer.stored.clone());
                Self { shape: coded.shape.clone(), parts: vec![coded], misfits }
            }
        }
    }

    /// Returns the tensor with the extents that the model gives it, where a program only writes them differently.
    fn reshaped(mut self, component: Component, name: &str, ones: usize) -> Self {
        if ones > 0 {
            self.shape.splice(0..0, std::iter::repeat_n(1, ones));
        }
        // A convolution of patches of 1x2x2 can be stored as the matrix that it is.
        if component == Component::Dit
            && name == "patch_embedding.weight"
            && let [rows, cols] = self.shape[..]
            && cols.is_multiple_of(4)
        {
            self.shape = vec![rows, cols / 4, 1, 2, 2];
        }
        self
    }

    fn followed_by(mut self, next: Self) -> Self {
        match (self.shape.split_first_mut(), next.shape.split_first()) {
            (Some((rows, cols)), Some((more, others))) if cols == others => {
                *rows = rows.saturating_add(*more);
            }
            _ => self.misfits.push(Misfit::Misshapen(format!(
                "parts of one tensor are {:?} and {:?}",
                self.shape, next.shape
            ))),
        }
        self.parts.extend(next.parts);
        self.misfits.extend(next.misfits);
        self
    }

    /// Returns the encoding that all parts have, if they have the same one.
    pub fn encoding(&self) -> Option<Encoding> {
        let first = self.parts.first()?.encoding;
        self.parts.iter().all(|part| part.encoding == first).then_some(first)
    }
}

/// A tensor of a file that only one program writes, by the program.
struct Marks {
    comfy_quant: Option<String>,
    comfy_fp8: Option<String>,
    lightx2v: Option<String>,
    turbo: Option<String>,
}

impl Marks {
    fn of(layers: &Layers) -> Self {
        let mut marks =
            Self { comfy_quant: None, comfy_fp8: layers.old_mark.clone(), lightx2v: None, turbo: None };
        // A scale is a better mark than the marker of the whole file.
        let mut scale = None;
        for layer in &layers.all {
            let name = |purpose| layer.beside.get(&purpose).map(|(name, _)| name.clone());
            let described = name(Beside::ComfyQuant).or_else(|| {
                layer.described.is_some().then(|| format!("the description of {}", layer.weight))
            });
            let note = |mark: &mut Option<String>, name: Option<String>| *mark = mark.take().or(name);
            if described.is_none() {
                note(&mut marks.lightx2v, name(Beside::WeightScale).or_else(|| name(Beside::WeightScale2)));
            }
            note(&mut marks.lightx2v, name(Beside::WeightGlobalScale));
            note(&mut marks.comfy_quant, described);
            note(&mut scale, name(Beside::ScaleWeight));
            note(&mut marks.turbo, name(Beside::SquareScale));
        }
        marks.comfy_fp8 = scale.or(marks.comfy_fp8);
        marks
    }

    fn all(&self) -> [(&Option<String>, &'static str); 4] {
        [
            (&self.lightx2v, "LightX2V"),
            (&self.comfy_fp8, Layout::COMFY_FP8.title),
            (&self.comfy_quant, Layout::COMFY_QUANT.title),
            (&self.turbo, Layout::TURBO.title),
        ]
    }

    /// Returns whether any program's way of scaling is there.
    fn any(&self) -> bool {
        self.all().iter().any(|(mark, _)| mark.is_some())
    }

    /// Checks that only one program wrote the file.
    fn check(&self, layers: &Layers) -> Result<(), String> {
        // A matrix with two scales says most plainly what is wrong.
        for layer in &layers.all {
            if let (Some((one, _)), Some((other, _))) =
                (layer.beside.get(&Beside::WeightScale), layer.beside.get(&Beside::ScaleWeight))
            {
                return Err(contradiction((one, "LightX2V"), (other, Layout::COMFY_FP8.title)));
            }
        }
        let all = self.all();
        let mut found = all.iter().filter_map(|(mark, title)| Some((mark.as_deref()?, *title)));
        match (found.next(), found.next()) {
            (Some(one), Some(other)) => Err(contradiction(one, other)),
            _ => Ok(()),
        }
    }

    /// Returns the layout that the marks and the encodings show, if the file is quantised.
    fn layout(&self, contents: &Contents) -> Option<Layout> {
        let encodings =
            || contents.tensors.values().flat_map(|tensor| &tensor.parts).map(|part| part.encoding);
        let scaled = |wanted: DType, cols: Option<usize>| {
            encodings().any(|encoding| {
                let Encoding::Scaled { dtype, by } = encoding else { return false };
                let of_blocks = match by {
                    Granularity::Block { cols, .. } => Some(cols),
                    _ => None,
                };
                dtype == wanted && (cols.is_none() || of_blocks == cols)
            })
        };
        let cast = |encoding| matches!(encoding, Encoding::Plain(DType::F8E4m3 | DType::F8E5m2));
        if self.comfy_quant.is_some() {
            Some(Layout::COMFY_QUANT)
        } else if self.comfy_fp8.is_some() {
            Some(Layout::COMFY_FP8)
        } else if self.turbo.is_some() {
            Some(Layout::TURBO)
        } else if self.lightx2v.is_none() {
            encodings().any(cast).then_some(Layout::FP8_CAST)
        } else if scaled(DType::F4E2m1, None) {
            Some(Layout::LIGHTX2V_NVFP4)
        } else if scaled(DType::F8E4m3, Some(32)) {
            Some(Layout::LIGHTX2V_MXFP8)
        } else if scaled(DType::I8, None) {
            Some(Layout::LIGHTX2V_INT8)
        } else {
            Some(Layout::LIGHTX2V_FP8)
        }
    }
}

/// Describes a file that has the marks of more than one program.
fn contradiction((one, by_one): (&str, &str), (other, by_other): (&str, &str)) -> String {
    format!(
        "has the marks of two layouts, `{one}` of {by_one} and `{other}` of {by_other}, so that it is not clear which \
         scales apply, nor in which order 4-bit numbers lie; use a file as one program wrote it"
    )
}

/// The projection that sparse-linear attention adds to softmax attention.
const SPARSE_BRANCH: &str = ".attn_op.local_attn.proj_l.";

/// Removes the tensors of the linear branch of sparse-linear attention, if they are zero and thus have no effect.
fn without_sparse_branch(mut tensors: Tensors) -> Result<Tensors, String> {
    let branch: Vec<String> = tensors.keys().filter(|name| name.contains(SPARSE_BRANCH)).cloned().collect();
    for name in branch {
        let Some(stored) = tensors.remove(&name) else { continue };
        let bytes = stored.bytes().map_err(|e| e.to_string())?;
        if bytes.iter().any(|byte| *byte != 0) {
            return Err(format!(
                "was trained with sparse-linear attention (`{name}`), which animd does not compute; use the model \
                 that it was made of"
            ));
        }
    }
    Ok(tensors)
}

/// Returns the problem of a tensor that must be a plain float and is not.
fn not_a_float(name: &str, stored: &Stored) -> Misfit {
    Misfit::Mistyped(format!("`{name}` is {}, not F32, F16 or BF16", stored.encoding))
}
