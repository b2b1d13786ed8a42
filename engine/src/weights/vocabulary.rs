//! The tokenizer inside of a model file: a list of pieces with scores, as sentencepiece has it.

use super::stored::Mapped;
use super::{container, gguf, sentencepiece};
use crate::{Error, Result};
use std::path::Path;

/// The tensor in which `ComfyUI`'s text encoders carry the bytes of sentencepiece's own file.
pub(super) const SPIECE_MODEL: &str = "spiece_model";

/// A piece of text that is a token.
#[derive(Clone, Debug, PartialEq)]
pub struct Piece {
    /// The text, with `▁` for a space.
    pub text: String,
    /// The logarithm of the piece's probability.
    pub score: f64,
    /// What the piece is for.
    pub kind: Kind,
}

/// What a piece is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A part of texts.
    Normal,
    /// The token for text that no piece has.
    Unknown,
    /// A token that stands for no text, such as the end.
    Control,
    /// A token that is taken whole wherever it occurs.
    UserDefined,
    /// One byte of a character that no piece has.
    Byte,
}

impl Kind {
    /// Returns the kind that has this number in sentencepiece's files and in GGUF.
    pub(super) fn numbered(kind: u64) -> Self {
        match kind {
            2 => Self::Unknown,
            3 => Self::Control,
            4 => Self::UserDefined,
            6 => Self::Byte,
            _ => Self::Normal,
        }
    }
}

/// A vocabulary, with the rule by which characters are normalised first.
#[derive(Clone, Debug, PartialEq)]
pub struct Vocabulary {
    /// The pieces, in the order of their ids.
    pub pieces: Vec<Piece>,
    /// The compiled table of characters to replace, in sentencepiece's form; empty if there is none.
    pub charsmap: Vec<u8>,
}

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
        // A field of its own kind begins sentencepiece's file: its first piece.
        bytes @ [0x0a, ..] => Some(sentencepiece::read(bytes).map_err(refused)?),
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
