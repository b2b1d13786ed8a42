//! Reads a model file, whatever its format is.

use std::path::{Path, PathBuf};

use super::content::Content;
use super::mapped::Mapped;
use super::{gguf, refusals, safetensors, torch};
use crate::{Error, Result};

/// Returns what a file holds, whatever its format is.
pub(super) fn read_file(path: &Path) -> Result<Content> {
    if let Some(what) = refusals::unfinished(path) {
        return Err(Error::Model(format!("`{}` {what}", path.display())));
    }
    let file = Mapped::open(path)?;
    match &file.bytes[..] {
        // The length of a header can look like the beginning of any other kind of file, so this is asked first.
        bytes if safetensors::begins(bytes) => safetensors::read(&file),
        [b'P', b'K', ..] => Ok(Content { tensors: torch::read(&file)?, ..Content::default() }),
        bytes if bytes.starts_with(gguf::MAGIC) => gguf::read(&file),
        bytes => match refusals::container(bytes, path) {
            Some(what) => Err(Error::Model(format!("`{}` is {what}", path.display()))),
            None => safetensors::read(&file),
        },
    }
}

/// Returns what several files hold, which must have no name in common. One error names all broken files.
pub(super) fn read_files(files: &[PathBuf]) -> Result<Content> {
    let mut all = Content::default();
    let mut errors = Vec::new();
    for path in files {
        match read_file(path) {
            Ok(Content { tensors, described, architecture, .. }) => {
                for (name, stored) in tensors {
                    if let Some(other) = all.tensors.get(&name) {
                        let other = other.file.path.display();
                        errors.push(Error::Model(format!(
                            "`{name}` is in `{other}` and in `{}`",
                            path.display()
                        )));
                    } else {
                        all.tensors.insert(name, stored);
                    }
                }
                all.described.extend(described);
                all.architecture = all.architecture.or(architecture);
            }
            Err(e) => errors.push(e),
        }
    }
    refusals::merge(errors)?;
    Ok(all)
}
