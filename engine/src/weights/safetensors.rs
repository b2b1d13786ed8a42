//! The safetensors format: eight bytes of header length, a JSON header, then the tensors without gaps
//! (<https://github.com/huggingface/safetensors>).

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::stored::{Mapped, Stored, Tensors};
use super::{DType, Encoding};
use crate::{Error, Result};

/// The longest header that the format allows.
const MAX_HEADER: usize = 100_000_000;

/// A tensor as the header describes it.
#[derive(Deserialize)]
struct Info {
    dtype: String,
    shape: Vec<usize>,
    data_offsets: (usize, usize),
}

/// Returns the beginning of a file of these tensors, which follow each other in this order: name, type and shape of
/// each.
pub(crate) fn header<'a>(tensors: impl Iterator<Item = (&'a str, DType, &'a [usize])>) -> Vec<u8> {
    let mut entries = Map::new();
    entries.insert("__metadata__".to_owned(), json!({"format": "pt"}));
    let mut end = 0;
    for (name, dtype, shape) in tensors {
        let from = end;
        end += dtype.bytes(shape.iter().product());
        let info = json!({"dtype": dtype.name(), "shape": shape, "data_offsets": [from, end]});
        entries.insert(name.to_owned(), info);
    }
    let mut text = Value::Object(entries).to_string();
    // The tensors begin at a multiple of eight bytes.
    text.extend(std::iter::repeat_n(' ', text.len().next_multiple_of(8) - text.len()));
    let mut bytes = (text.len() as u64).to_le_bytes().to_vec();
    bytes.extend(text.into_bytes());
    bytes
}

/// Returns the tensors of a safetensors file.
///
/// # Errors
/// [`Error::Model`] if the header is broken, or if the file is not as long as the header says.
pub(crate) fn read(file: &Arc<Mapped>) -> Result<Tensors> {
    let broken = |what: String| Error::Model(format!("`{}` is not usable: {what}", file.path.display()));
    let total = file.bytes.len();
    let Some(length) = file.bytes.first_chunk::<8>().map(|b| u64::from_le_bytes(*b)) else {
        return Err(broken(format!("its {total} bytes are too few for a safetensors header; copy it again")));
    };
    let header = usize::try_from(length).unwrap_or(usize::MAX);
    if header > MAX_HEADER {
        return Err(broken(format!("its safetensors header claims {length} bytes; copy it again")));
    }
    let data = 8 + header;
    let Some(text) = file.bytes.get(8..data) else {
        return Err(broken(format!(
            "it ends within its header, after {total} of {data} bytes; copy it again"
        )));
    };
    let entries: BTreeMap<String, Value> = serde_json::from_slice(text)
        .map_err(|e| broken(format!("its safetensors header is not JSON: {e}")))?;
    let mut infos = Vec::with_capacity(entries.len());
    for (name, value) in entries {
        if name != "__metadata__" {
            let info: Info = serde_json::from_value(value)
                .map_err(|e| broken(format!("its header describes `{name}` wrongly: {e}")))?;
            let Some(dtype) = DType::from_name(&info.dtype) else {
                let dtype = info.dtype.escape_debug();
                return Err(broken(format!(
                    "its header gives `{name}` the type `{dtype}`, which animd does not know"
                )));
            };
            infos.push((name, dtype, info));
        }
    }
    infos.sort_by_key(|(_, _, info)| info.data_offsets);
    let mut end = 0;
    for (name, dtype, info) in &infos {
        let (from, to) = info.data_offsets;
        if from != end || to < from {
            return Err(broken(format!("its header has `{name}` at bytes {from} to {to}, not from {end}")));
        }
        let elements = info.shape.iter().try_fold(1usize, |n, &extent| n.checked_mul(extent));
        let bytes = elements.and_then(|n| Encoding::Plain(*dtype).row_bytes(n));
        if bytes != Some(to - from) {
            let Info { dtype, shape, .. } = info;
            return Err(broken(format!("its header gives `{name}`, {dtype} {shape:?}, {} bytes", to - from)));
        }
        end = to;
    }
    let expected = data.saturating_add(end);
    if total != expected {
        let how = if total < expected { "is only partly there" } else { "is longer than its header says" };
        return Err(broken(format!("it {how}, {total} of {expected} bytes; copy it again")));
    }
    let stored = |dtype, Info { shape, data_offsets: (from, to), .. }: Info| Stored {
        file: Arc::clone(file),
        encoding: Encoding::Plain(dtype),
        shape,
        strides: None,
        start: data + from,
        size: to - from,
    };
    Ok(infos.into_iter().map(|(name, dtype, info)| (name, stored(dtype, info))).collect())
}
