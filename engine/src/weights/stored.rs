//! A tensor in a memory-mapped file.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use memmap2::Mmap;

use super::{DType, Encoding};
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

/// A tensor where it lies. Whoever makes one has checked that all its bytes are inside the file.
#[derive(Clone)]
pub(crate) struct Stored {
    /// The file.
    pub file: Arc<Mapped>,
    /// How the file says that its values lie: plain or packed. What is scaled with what, a layout says.
    pub encoding: Encoding,
    /// Extents, outermost first.
    pub shape: Vec<usize>,
    /// Steps between numbers along each axis, in numbers; `None` if they lie one after the other.
    pub strides: Option<Vec<usize>>,
    /// The first number's first byte.
    pub start: usize,
    /// Bytes that its numbers take.
    pub size: usize,
}

/// Tensors by their names, as a file or the model has them.
pub(crate) type Tensors = BTreeMap<String, Stored>;

impl Stored {
    /// How many values there are.
    pub fn elements(&self) -> usize {
        self.shape.iter().product()
    }

    /// What its numbers are, if nothing else is needed to know its values.
    pub fn dtype(&self) -> Option<DType> {
        match self.encoding {
            Encoding::Plain(dtype) => Some(dtype),
            _ => None,
        }
    }

    /// The values as they are stored, row-major, one after the other; borrowed from the file unless they are strided.
    pub fn bytes(&self) -> Result<Cow<'_, [u8]>> {
        let outside =
            || Error::Internal(format!("a tensor of `{}` is outside of the file", self.file.path.display()));
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
