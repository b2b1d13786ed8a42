//! A tensor in a memory-mapped file, and how its bytes become numbers.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use memmap2::Mmap;

use super::DType;
use super::dtype::to_f32;
use crate::{Error, Result};

/// A model file in the address space.
pub(crate) struct Mapped {
    /// Where it is.
    pub path: PathBuf,
    /// Its content; pages come into memory as they are touched.
    pub bytes: Mmap,
}

impl Mapped {
    /// Maps a file that is not empty.
    pub fn open(path: &Path) -> Result<Arc<Self>> {
        let file = File::open(path).map_err(Error::file("open", path))?;
        let meta = file.metadata().map_err(Error::file("read", path))?;
        if !meta.is_file() {
            return Err(Error::Model(format!("`{}` is not a file", path.display())));
        }
        if meta.len() == 0 {
            return Err(Error::Model(format!("`{}` is empty; copy it again", path.display())));
        }
        // SAFETY: the mapping is private and read-only. Model files are not written while they are in use; should
        // somebody truncate one nevertheless, the kernel ends the process and the daemon starts a new engine.
        let bytes = unsafe { Mmap::map(&file) }.map_err(Error::file("map", path))?;
        Ok(Arc::new(Self { path: path.to_owned(), bytes }))
    }
}

/// What a file says its values are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Element {
    /// A float that the engine can read.
    Float(DType),
    /// Something else, by the file format's own name.
    Other(String),
}

impl fmt::Display for Element {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Float(dtype) => f.write_str(dtype.name()),
            Self::Other(name) => f.write_str(name),
        }
    }
}

/// A tensor where it lies. Whoever makes one has checked that all its elements are inside the file.
#[derive(Clone)]
pub(crate) struct Stored {
    /// The file.
    pub file: Arc<Mapped>,
    /// Its type.
    pub element: Element,
    /// Extents, outermost first.
    pub shape: Vec<usize>,
    /// Steps between elements along each axis, in elements; `None` if they lie one after the other.
    pub strides: Option<Vec<usize>>,
    /// The first element's first byte.
    pub start: usize,
}

/// Tensors by their names, as a file or the model has them.
pub(crate) type Tensors = BTreeMap<String, Stored>;

impl Stored {
    /// How many values there are.
    pub fn elements(&self) -> usize {
        self.shape.iter().product()
    }

    /// Bytes that the values take; none for a foreign type.
    pub fn size(&self) -> usize {
        match self.element {
            Element::Float(dtype) => self.elements() * dtype.size(),
            Element::Other(_) => 0,
        }
    }

    /// The values, row-major, one after the other; borrowed from the file unless they are strided.
    pub fn bytes(&self) -> Result<(DType, Cow<'_, [u8]>)> {
        let Element::Float(dtype) = self.element else {
            return Err(Error::Internal(format!("a tensor of type {} was asked for", self.element)));
        };
        let size = dtype.size();
        let outside =
            || Error::Internal(format!("a tensor of `{}` is outside of the file", self.file.path.display()));
        let Some(strides) = &self.strides else {
            let end = self.start + self.elements() * size;
            return Ok((dtype, Cow::Borrowed(self.file.bytes.get(self.start..end).ok_or_else(outside)?)));
        };
        let mut out = Vec::with_capacity(self.elements() * size);
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
        Ok((dtype, Cow::Owned(out)))
    }

    /// The values as f32.
    pub fn to_f32(&self) -> Result<Vec<f32>> {
        let (dtype, bytes) = self.bytes()?;
        Ok(to_f32(dtype, &bytes))
    }
}
