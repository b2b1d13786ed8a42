//! The safetensors format: eight bytes of header length, a JSON header, then the tensors without gaps
//! (<https://github.com/huggingface/safetensors>).

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use serde::de::{Error as _, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::{Map, Value, json};

use super::content::Content;
use super::mapped::Mapped;
use super::stored::Stored;
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

/// The most tensors and the longest name, so that a header cannot ask for much more memory than it has bytes.
const MAX_TENSORS: usize = 65_536;
const MAX_NAME: usize = 512;

/// A header: the tensors, and what it says about them.
struct Entries {
    tensors: Vec<(String, Info)>,
    metadata: Metadata,
}

/// The part of a header's metadata that matters here.
#[derive(Default, Deserialize)]
struct Metadata {
    /// How `ComfyUI` says that layers are quantised.
    #[serde(rename = "_quantization_metadata")]
    quantisation: Option<String>,
    /// How diffusers says that a `LoRA` is scaled.
    #[serde(rename = "lora_adapter_metadata")]
    adapter: Option<String>,
    /// How trainers say which timesteps they trained for, as Stability AI's model metadata standard has it.
    #[serde(rename = "modelspec.timestep_range")]
    timesteps: Option<Value>,
}

impl<'de> Deserialize<'de> for Entries {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Header;

        impl<'de> Visitor<'de> for Header {
            type Value = Entries;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a map of tensors")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Entries, A::Error> {
                let mut entries = Entries { tensors: Vec::new(), metadata: Metadata::default() };
                while let Some(name) = map.next_key::<String>()? {
                    if name == "__metadata__" {
                        entries.metadata = map.next_value::<Option<Metadata>>()?.unwrap_or_default();
                        continue;
                    }
                    if name.len() > MAX_NAME {
                        return Err(A::Error::custom(format!("a name longer than {MAX_NAME} bytes")));
                    }
                    if entries.tensors.len() == MAX_TENSORS {
                        return Err(A::Error::custom(format!("more than {MAX_TENSORS} tensors")));
                    }
                    let info = map.next_value().map_err(|e| A::Error::custom(format!("`{name}`: {e}")))?;
                    entries.tensors.push((name, info));
                }
                Ok(entries)
            }
        }

        deserializer.deserialize_map(Header)
    }
}

/// Returns what a header's text says about quantised layers, by the layers' names.
fn described(text: &str) -> Result<BTreeMap<String, Value>, String> {
    #[derive(Deserialize)]
    struct Quantisation {
        layers: BTreeMap<String, Value>,
    }
    serde_json::from_str::<Quantisation>(text)
        .map(|quantisation| quantisation.layers)
        .map_err(|e| format!("its header has a `_quantization_metadata` that cannot be read: {e}"))
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

/// Returns whether bytes are the beginning of a safetensors file: the length of a header, and the header's first
/// character.
pub(super) fn begins(bytes: &[u8]) -> bool {
    let length = bytes.first_chunk::<8>().map(|b| u64::from_le_bytes(*b));
    length.is_some_and(|length| length <= MAX_HEADER as u64) && bytes.get(8) == Some(&b'{')
}

/// Returns the tensors of a safetensors file, and what its header says about their quantisation.
///
/// # Errors
/// [`Error::Model`] if the header is broken, or if the file is not as long as the header says.
pub(super) fn read(file: &Arc<Mapped>) -> Result<Content> {
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
    let Entries { tensors: entries, metadata } = serde_json::from_slice(text)
        .map_err(|e| broken(format!("its safetensors header is not JSON as the format has it: {e}")))?;
    let mut infos = Vec::with_capacity(entries.len());
    for (name, info) in entries {
        let Some(dtype) = DType::from_name(&info.dtype) else {
            let dtype = info.dtype.escape_debug();
            return Err(broken(format!(
                "its header gives `{name}` the type `{dtype}`, which animd does not know"
            )));
        };
        infos.push((name, dtype, info));
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
    let mut content = Content::default();
    for (name, dtype, info) in infos {
        if content.tensors.contains_key(&name) {
            return Err(broken(format!("its header has `{name}` twice; copy it again")));
        }
        content.tensors.insert(name, stored(dtype, info));
    }
    content.adapter = metadata.adapter;
    content.timesteps = metadata.timesteps.as_ref().and_then(Value::as_str).map(str::to_owned);
    if let Some(text) = metadata.quantisation {
        content.described = described(&text).map_err(broken)?;
    }
    Ok(content)
}
