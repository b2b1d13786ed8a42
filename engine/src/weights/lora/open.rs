//! Opening a `LoRA`: each of its tensors is matched with one of the model's, and nothing is left over.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::path::Path;

use animd_protocol::dims::DitConfig;
use animd_protocol::dims::schema::{self, Expected};
use animd_protocol::recipe::ExpertName;

use super::super::identity::Stamp;
use super::super::stored::Tensors;
use super::super::{DType, container, experts};
use super::keys::{self, Key, Layers, Part};
use super::pieces::Pieces;
use super::scale::Scaling;
use super::{Change, Lora};
use crate::{Error, Result};

/// The number of names that an error lists.
const NAMED: usize = 8;

impl Lora {
    /// Opens a `LoRA` for a diffusion transformer of these sizes. Only the header and the numbers that scale are read.
    ///
    /// # Errors
    /// [`Error::Model`] if the file is no `LoRA`, of a kind that animd does not read, or for another model: if any of
    /// its tensors does not fit one of the model's.
    pub fn open(path: &Path, model: &DitConfig) -> Result<Self> {
        let stamp = Stamp::of(&fs::metadata(path).map_err(Error::file("read", path))?);
        let content = container::read_file(path)?;
        let refused = |what: String| Error::Model(format!("`{}` {what}", path.display()));
        if let Some(kind) = content.tensors.keys().find_map(|name| keys::other_kind(name)) {
            return Err(refused(format!(
                "is {kind}, which animd does not read; it reads LoRA, LoHa, LoKr and DoRA"
            )));
        }
        let scaling = Scaling::read(path, content.adapter.as_deref())?;
        let expert = trained_for(content.timesteps.as_deref()).or_else(|| named_for(path));
        let changes = changes(content.tensors, &schema::dit(model), &scaling).map_err(refused)?;
        Ok(Self { path: path.to_owned(), stamp, expert, changes })
    }
}

/// Returns the transformer that a range of timesteps, `LEAST,GREATEST`, belongs to. Those of Wan2.2 hand over at 900; trainers
/// choose ranges that lie a little to either side of that.
fn trained_for(range: Option<&str>) -> Option<ExpertName> {
    let (least, greatest) = range?.split_once(',')?;
    let (least, greatest) = (least.trim().parse::<f64>().ok()?, greatest.trim().parse::<f64>().ok()?);
    match (least >= 800.0, greatest <= 950.0) {
        (true, false) => Some(ExpertName::HighNoise),
        (false, true) => Some(ExpertName::LowNoise),
        _ => None,
    }
}

/// Returns the transformer that the name of a file, or of the folder that it lies in, says that it is for.
fn named_for(path: &Path) -> Option<ExpertName> {
    let of = |name: Option<&OsStr>| experts::told(&name?.to_string_lossy());
    of(path.file_name()).or_else(|| of(path.parent()?.file_name()))
}

fn changes(
    tensors: Tensors,
    model: &[Expected],
    scaling: &Scaling,
) -> Result<BTreeMap<String, Change>, String> {
    let (layers, shapes) = (Layers::of(model), shapes(model));
    let all = tensors.len();
    let mut changes: BTreeMap<String, Change> = BTreeMap::new();
    let mut pieces: BTreeMap<String, Pieces> = BTreeMap::new();
    let mut unknown = Vec::new();
    let twice = |name: &str| format!("has two changes of one kind for one tensor (`{name}`)");
    for (name, stored) in tensors {
        let found = layers.key(&name).filter(|key| shapes.contains_key(&*key.tensor));
        let Some(Key { tensor, part, layer }) = found else {
            unknown.push(format!("`{}`", name.escape_debug()));
            continue;
        };
        if !stored.dtype().is_some_and(DType::is_plain_float) {
            return Err(format!("has `{name}` in {}, not in F32, F16 or BF16", stored.encoding));
        }
        let is_first = match part {
            Part::Difference => changes.entry(tensor).or_default().difference.replace(stored).is_none(),
            part => {
                let pieces = pieces.entry(tensor).or_default();
                pieces.layer = layer;
                pieces.put(part, stored)
            }
        };
        if !is_first {
            return Err(twice(&name));
        }
    }
    if !unknown.is_empty() {
        let more = unknown.len().saturating_sub(NAMED);
        let list = unknown[..unknown.len().min(NAMED)].join(", ");
        let list = if more > 0 { format!("{list} and {more} more") } else { list };
        return Err(match unknown.len() == all {
            true => format!("has no layer of this model, so it is for another one: {list}"),
            false => format!(
                "has tensors for layers that this model does not have, so it is for another one: {list}"
            ),
        });
    }
    for (tensor, pieces) in pieces {
        let (product, magnitude) = pieces.product(&tensor, shapes[&*tensor], scaling)?;
        if scaling.is_dora() && magnitude.is_none() {
            return Err(format!(
                "is DoRA by its configuration, and has no lengths for `{tensor}`; copy it again"
            ));
        }
        let change = changes.entry(tensor).or_default();
        (change.product, change.magnitude) = (Some(product), magnitude);
    }
    for (tensor, change) in &changes {
        let elements: usize = shapes[&**tensor].iter().product();
        if let Some(difference) = change.difference.as_ref().filter(|d| d.elements() != elements) {
            let (ours, theirs) = (shapes[&**tensor], &difference.shape);
            return Err(format!(
                "changes `{tensor}` by {theirs:?}, where the model has {ours:?}: it is for another one"
            ));
        }
    }
    if changes.is_empty() {
        return Err("has no tensors; copy it again".to_owned());
    }
    Ok(changes)
}

fn shapes(model: &[Expected]) -> BTreeMap<&str, &[usize]> {
    model.iter().map(|expected| (&*expected.name, &*expected.shape)).collect()
}
