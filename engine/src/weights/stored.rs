//! A tensor in a memory-mapped file.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use super::mapped::{Mapped, open};
use super::{DType, Encoding};
use crate::{Error, Result};

/// Reads a short text beside a model, of at most so many bytes.
pub(crate) fn text_file(path: &Path, limit: u64) -> io::Result<String> {
    let file = open(path)?;
    let length = file.metadata()?;
    if !length.is_file() || length.len() > limit {
        return Err(io::Error::other(format!("it is not a file of at most {limit} bytes")));
    }
    let mut text = String::new();
    file.take(limit).read_to_string(&mut text)?;
    Ok(text)
}

/// Returns the bytes of a file that begins as JSON does and has at most so many of them; `None` for another file.
///
/// # Errors
/// The file cannot be read.
pub fn text_bytes(path: &Path, limit: u64) -> io::Result<Option<Vec<u8>>> {
    let file = open(path)?;
    let meta = file.metadata()?;
    if !meta.is_file() {
        return Err(io::Error::other("it is not a file"));
    }
    let mut bytes = vec![0; 8.min(meta.len() as usize)];
    file.read_exact_at(&mut bytes, 0)?;
    // A tokenizer that is empty or no object is for the reader of JSON to refuse.
    let binary = bytes.contains(&0) || bytes.first() == Some(&0x0a) || bytes.starts_with(b"GGUF");
    if meta.len() > limit || binary || bytes.starts_with(b"PK\x03\x04") {
        return Ok(None);
    }
    bytes.clear();
    file.take(limit).read_to_end(&mut bytes)?;
    Ok(Some(bytes))
}

/// A tensor in its file. The code that makes one has checked that all its bytes are inside the file.
#[derive(Clone)]
pub(crate) struct Stored {
    /// The file.
    pub file: Arc<Mapped>,
    /// How the file stores the tensor's values: plain or packed. The layout says what is scaled with what.
    pub encoding: Encoding,
    /// Extents, outermost first.
    pub shape: Vec<usize>,
    /// Steps between numbers along each axis, in numbers; `None` if the numbers are contiguous.
    pub strides: Option<Vec<usize>>,
    /// The offset of the first number, in bytes.
    pub start: usize,
    /// The bytes that the tensor's numbers take.
    pub size: usize,
}

/// Tensors by their names, as a file or the model has them.
pub(crate) type Tensors = BTreeMap<String, Stored>;

impl Stored {
    /// Returns the number of values.
    pub fn elements(&self) -> usize {
        self.shape.iter().product()
    }

    /// Returns the type of the tensor's numbers, if the values need nothing else.
    pub fn dtype(&self) -> Option<DType> {
        match self.encoding {
            Encoding::Plain(dtype) => Some(dtype),
            _ => None,
        }
    }

    /// Returns the values as they are stored, row-major and contiguous; they are borrowed from the file unless they are
    /// strided.
    pub fn bytes(&self) -> Result<Cow<'_, [u8]>> {
        let outside =
            || Error::Internal(format!("a tensor of `{}` is outside of the file", self.file.path.display()));
        self.file.check()?;
        let Some(strides) = &self.strides else {
            return Ok(Cow::Borrowed(
                self.file.bytes.get(self.start..self.start + self.size).ok_or_else(outside)?,
            ));
        };
        let size = self.size / self.elements().max(1);
        let mut out = Vec::with_capacity(self.size);
        let mut index = vec![0; self.shape.len()];
        for _ in 0..self.elements() {
            let offset: usize = index.iter().zip(strides).map(|(i, s)| i * s).sum();
            let at = self.start + offset * size;
            out.extend_from_slice(self.file.bytes.get(at..at + size).ok_or_else(outside)?);
            for (i, extent) in index.iter_mut().zip(&self.shape).rev() {
                *i += 1;
                if *i < *extent {
                    break;
                }
                *i = 0;
            }
        }
        Ok(Cow::Owned(out))
    }
}
