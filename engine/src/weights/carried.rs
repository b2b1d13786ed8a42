//! The tokenizer that a text encoder's file carries, or that lies in sentencepiece's own file.

use std::path::Path;

use super::mapped::Mapped;
use super::vocabulary::Vocabulary;
use super::{container, gguf, safetensors, sentencepiece};
use crate::{Error, Result};

/// The tensor in which `ComfyUI`'s text encoders carry the bytes of sentencepiece's own file.
const SPIECE_MODEL: &str = "spiece_model";

/// Returns whether a text encoder's file carries a tokenizer.
pub(super) fn is_carried_by(path: &Path) -> bool {
    let Ok(file) = Mapped::open(path) else { return false };
    if file.bytes.starts_with(gguf::MAGIC) {
        return gguf::has_vocabulary(&file.bytes);
    }
    container::read_file(path).is_ok_and(|content| content.tensors.contains_key(SPIECE_MODEL))
}

/// Returns the vocabulary of a file: sentencepiece's own (`spiece.model`), or a text encoder that carries its tokenizer
/// (GGUF, or `ComfyUI`'s `spiece_model`). What the file is follows from its content.
///
/// # Errors
/// [`Error::Model`] if the file has no tokenizer or a broken one.
pub fn read_vocabulary(path: &Path) -> Result<Vocabulary> {
    let refused = |what: String| Error::Model(format!("`{}` is not usable: {what}", path.display()));
    let file = Mapped::open(path)?;
    let vocabulary = match &file.bytes[..] {
        bytes if bytes.starts_with(gguf::MAGIC) => gguf::vocabulary(bytes).map_err(refused)?,
        // sentencepiece's file begins with its first piece.
        bytes @ [0x0a, ..] if !safetensors::begins(bytes) => {
            Some(sentencepiece::read(bytes).map_err(refused)?)
        }
        _ => match container::read_file(path)?.tensors.get(SPIECE_MODEL) {
            Some(stored) => Some(sentencepiece::read(&stored.bytes()?).map_err(refused)?),
            None => None,
        },
    };
    vocabulary.ok_or_else(|| {
        Error::Model(format!(
            "`{}` carries no tokenizer; put `tokenizer.json` or `spiece.model` of umT5 beside the model",
            path.display()
        ))
    })
}
