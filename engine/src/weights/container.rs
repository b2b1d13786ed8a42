//! The tensors of a model file, whatever its format is.

use std::path::{Path, PathBuf};

use super::stored::{Mapped, Tensors};
use super::{refusals, safetensors, torch};
use crate::{Error, Result};

/// Returns the tensors of a file, whatever its format is.
pub(super) fn read_file(path: &Path) -> Result<Tensors> {
    let file = Mapped::open(path)?;
    match &file.bytes[..] {
        [b'P', b'K', ..] => torch::read(&file),
        bytes => match refusals::container(bytes, path) {
            Some(what) => Err(Error::Model(format!("`{}` is {what}", path.display()))),
            None => safetensors::read(&file),
        },
    }
}

/// Returns the tensors of several files, which must have no name in common. One error names all broken files.
pub(super) fn read_files(files: &[PathBuf]) -> Result<Tensors> {
    let mut all = Tensors::new();
    let mut errors = Vec::new();
    for path in files {
        match read_file(path) {
            Ok(tensors) => {
                for (name, stored) in tensors {
                    if let Some(other) = all.get(&name) {
                        let other = other.file.path.display();
                        errors.push(Error::Model(format!(
                            "`{name}` is in `{other}` and in `{}`",
                            path.display()
                        )));
                    } else {
                        all.insert(name, stored);
                    }
                }
            }
            Err(e) => errors.push(e),
        }
    }
    refusals::merge(errors)?;
    Ok(all)
}
