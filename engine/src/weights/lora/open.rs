//! Opening a `LoRA`: each of its tensors is matched with one of the model's, and nothing is left over.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::path::Path;

use animd_protocol::dims::DitConfig;
use animd_protocol::dims::schema::{self, Expected};
use animd_protocol::recipe::ExpertName;

use super::super::identity::Stamp;
use super::super::stored::{Stored, Tensors};
use super::super::{DType, container, dtype, experts};
use super::keys::{self, Key, Layers, Part};
use super::scale::Scaling;
use super::{Change, Lora, Product};
use crate::{Error, Result};

/// The number of names that an error lists.
const NAMED: usize = 8;

/// The tensors of one product, as they are found.
#[derive(Default)]
struct Pair {
    layer: String,
    down: Option<Stored>,
    up: Option<Stored>,
    alpha: Option<Stored>,
}

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
            return Err(refused(format!("is {kind}, which animd does not read; it reads LoRA")));
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
    let mut pairs: BTreeMap<String, Pair> = BTreeMap::new();
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
        let before = match part {
            Part::Difference => changes.entry(tensor).or_default().difference.replace(stored),
            _ => {
                let pair = pairs.entry(tensor).or_default();
                pair.layer = layer;
                match part {
                    Part::Down => pair.down.replace(stored),
                    Part::Up => pair.up.replace(stored),
                    _ => pair.alpha.replace(stored),
                }
            }
        };
        if before.is_some() {
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
    for (tensor, pair) in pairs {
        let product = product(&tensor, pair, shapes[&*tensor], scaling)?;
        changes.entry(tensor).or_default().product = Some(product);
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

/// Checks that two matrices make up a change of a tensor.
fn product(tensor: &str, pair: Pair, shape: &[usize], scaling: &Scaling) -> Result<Product, String> {
    let (down, up) = match (pair.down, pair.up) {
        (Some(down), Some(up)) => (down, up),
        (Some(_), None) => {
            return Err(format!("has the first matrix of `{tensor}` (A, down) without the second (B, up)"));
        }
        (None, Some(_)) => {
            return Err(format!("has the second matrix of `{tensor}` (B, up) without the first (A, down)"));
        }
        (None, None) => return Err(format!("has an alpha of `{tensor}` without its matrices")),
    };
    let rows = shape.first().copied().unwrap_or(1);
    let cols: usize = shape.get(1..).map_or(1, |rest| rest.iter().product());
    let rank = down.shape.first().copied().unwrap_or(0);
    // A convolution's matrices have extents of 1 behind their own.
    let fits = rank > 0
        && down.elements().checked_div(rank) == Some(cols)
        && up.shape.first() == Some(&rows)
        && up.elements() == rows.saturating_mul(rank);
    if !fits {
        let (down, up) = (&down.shape, &up.shape);
        return Err(format!(
            "changes `{tensor}` by {up:?} times {down:?}, where the model has {shape:?}: it is for another one"
        ));
    }
    let alpha = pair.alpha.map(|stored| number(tensor, &stored)).transpose()?;
    let scale = scaling.of(&pair.layer, alpha, rank);
    if !scale.is_finite() {
        return Err(format!("scales `{tensor}` by {scale}; copy it again"));
    }
    Ok(Product { down, up, rank, scale })
}

/// Returns the only number of a tensor.
fn number(tensor: &str, stored: &Stored) -> Result<f64, String> {
    let dtype = stored.dtype().filter(|_| stored.elements() == 1);
    let dtype = dtype.ok_or_else(|| format!("has an alpha of `{tensor}` that is not one number"))?;
    let bytes = stored.bytes().map_err(|e| e.to_string())?;
    Ok(f64::from(dtype::to_f32(dtype, &bytes)[0]))
}
