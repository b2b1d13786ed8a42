//! A tensor in a memory-mapped file.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use memmap2::Mmap;

use super::{DType, Encoding};
use crate::{Error, Result};

/// A memory-mapped model file.
pub(crate) struct Mapped {
    /// The file's path.
    pub path: PathBuf,
    /// The file's content; the kernel loads pages as they are touched.
    pub bytes: Mmap,
}

impl Mapped {
    /// Maps a file, which must not be empty.
    pub fn open(path: &Path) -> Result<Arc<Self>> {
        let file = File::open(path).map_err(Error::file("open", path))?;
        let meta = file.metadata().map_err(Error::file("read", path))?;
        if !meta.is_file() {
            return Err(Error::Model(format!("`{}` is not a file", path.display())));
        }
        if meta.len() == 0 {
            return Err(Error::Model(format!("`{}` is empty; copy it again", path.display())));
        }
        // SAFETY: the mapping is private and read-only. Model files are not written while they are in use; if a file is
        // truncated nevertheless, the kernel ends the process and the daemon starts a new engine.
        let bytes = unsafe { Mmap::map(&file) }.map_err(Error::file("map", path))?;
        Ok(Arc::new(Self { path: path.to_owned(), bytes }))
    }
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
