//! The GGUF format, versions 2 and 3: keys with values, a list of tensors, then the tensors themselves
//! (<https://github.com/ggml-org/ggml/blob/master/docs/gguf.md>).

mod blocks;
mod header;
mod vocabulary;

use std::sync::Arc;

use self::header::{Header, Info};
use super::content::Content;
use super::mapped::Mapped;
use super::stored::Stored;
use super::{DType, Encoding};
use crate::{Error, Result};

#[cfg(all(test, feature = "cuda"))]
pub(crate) use blocks::PACKINGS;
pub(super) use vocabulary::{has_vocabulary, vocabulary};

/// The first bytes of a file.
pub(super) const MAGIC: &[u8] = b"GGUF";
/// The key of the name of the model's family.
const ARCHITECTURE: &str = "general.architecture";
/// The key of the multiple at which tensors begin.
const ALIGNMENT: &str = "general.alignment";
/// The beginning of the keys that give a tensor other extents than its entry, for tensors of more than four axes.
const SHAPE_OF: &str = "comfy.gguf.orig_shape.";

/// Returns the encoding that has this number in GGUF files.
fn encoding(kind: u32) -> Option<Encoding> {
    Some(match kind {
        0 => Encoding::Plain(DType::F32),
        1 => Encoding::Plain(DType::F16),
        30 => Encoding::Plain(DType::Bf16),
        2 => Encoding::Packed(&blocks::Q4_0),
        3 => Encoding::Packed(&blocks::Q4_1),
        6 => Encoding::Packed(&blocks::Q5_0),
        7 => Encoding::Packed(&blocks::Q5_1),
        8 => Encoding::Packed(&blocks::Q8_0),
        10 => Encoding::Packed(&blocks::Q2_K),
        11 => Encoding::Packed(&blocks::Q3_K),
        12 => Encoding::Packed(&blocks::Q4_K),
        13 => Encoding::Packed(&blocks::Q5_K),
        14 => Encoding::Packed(&blocks::Q6_K),
        _ => return None,
    })
}

/// Returns the tensors of a GGUF file.
///
/// # Errors
/// [`Error::Model`] if the header is broken or describes tensors that the file does not have, or types that animd does
/// not read.
pub(super) fn read(file: &Arc<Mapped>) -> Result<Content> {
    content(file).map_err(|what| Error::Model(format!("`{}` is not usable: {what}", file.path.display())))
}

fn content(file: &Arc<Mapped>) -> Result<Content, String> {
    let header = Header::read(&file.bytes)?;
    let alignment = match header.number(ALIGNMENT)? {
        None => 32,
        Some(n) if n.is_power_of_two() && n <= 1 << 20 => n,
        Some(n) => return Err(format!("its header has {n} as `{ALIGNMENT}`; copy it again")),
    };
    let data = header.end.next_multiple_of(alignment as usize);
    let mut content = Content {
        architecture: Some(header.text(ARCHITECTURE)?.unwrap_or_default().to_owned()),
        ..Content::default()
    };
    for (name, info) in &header.tensors {
        let shape = match header.shape(&format!("{SHAPE_OF}{name}"))? {
            Some(shape) if elements(&shape) == elements(&info.shape) => shape,
            Some(shape) => {
                let all = &info.shape;
                return Err(format!("its header has `{name}` as {all:?} and as {shape:?}; copy it again"));
            }
            None => info.shape.clone(),
        };
        let stored = place(file, name, info, data)?;
        content.tensors.insert(name.clone(), Stored { shape, ..stored });
    }
    Ok(content)
}

fn elements(shape: &[usize]) -> Option<usize> {
    shape.iter().try_fold(1usize, |n, extent| n.checked_mul(*extent))
}

/// Returns where a tensor lies, after checking that the file has all of it.
fn place(file: &Arc<Mapped>, name: &str, info: &Info, data: usize) -> Result<Stored, String> {
    let Some(encoding) = encoding(info.kind) else {
        return Err(format!(
            "its tensor `{name}` is of GGUF's type {}; animd reads F32, F16, BF16, Q8_0, Q6_K, Q5_K, Q4_K, Q3_K, \
             Q2_K, Q5_1, Q5_0, Q4_1 and Q4_0",
            info.kind
        ));
    };
    let shape = &info.shape;
    let (cols, rows) = shape.split_last().map_or((1, Some(1)), |(cols, outer)| (*cols, elements(outer)));
    let size = encoding.row_bytes(cols).and_then(|row| row.checked_mul(rows?)).ok_or_else(|| {
        format!(
            "its header gives `{name}` {shape:?}, which are not whole blocks of {encoding}; copy it again"
        )
    })?;
    let start = usize::try_from(info.offset).ok().and_then(|offset| data.checked_add(offset));
    let end = start.and_then(|start| start.checked_add(size));
    match (start, end) {
        (Some(start), Some(end)) if end <= file.bytes.len() => {
            Ok(Stored { file: Arc::clone(file), encoding, shape: shape.clone(), strides: None, start, size })
        }
        (_, end) => Err(format!(
            "it is only partly there: its tensor `{name}` ends at byte {} of {}; copy it again",
            end.map_or_else(|| "(none)".to_owned(), |end| end.to_string()),
            file.bytes.len()
        )),
    }
}
