//! The tokenizer that a GGUF file of a text encoder carries among its keys.

use super::header::{Header, List, Value};
use crate::weights::vocabulary::{Kind, Piece, Vocabulary};

/// The number of the type of piece that fills the vocabulary up to the rows of the embedding.
const UNUSED: u64 = 5;

/// Returns whether a GGUF file has a vocabulary.
pub(in crate::weights) fn has_vocabulary(file: &[u8]) -> bool {
    Header::read(file).is_ok_and(|header| header.keys.contains_key("tokenizer.ggml.tokens"))
}

/// Returns the vocabulary in a GGUF file, if there is one.
///
/// # Errors
/// A clause for a sentence about the file.
pub(in crate::weights) fn vocabulary(file: &[u8]) -> Result<Option<Vocabulary>, String> {
    let header = Header::read(file)?;
    let key = |name: &str| format!("tokenizer.ggml.{name}");
    let Some(model) = header.text(&key("model"))? else { return Ok(None) };
    if model != "t5" {
        return Err(format!("its tokenizer is of the kind `{model}`, and umT5's is of the kind `t5`"));
    }
    let list = |name: &str| {
        header.list(&key(name))?.ok_or_else(|| format!("it has a tokenizer without `tokenizer.ggml.{name}`"))
    };
    let (tokens, scores) = (list("tokens")?.items()?, list("scores")?.items()?);
    let kinds = list("token_type")?.items()?;
    if scores.len() != tokens.len() || kinds.len() != tokens.len() {
        return Err("its tokenizer has not as many scores and types as tokens; copy it again".to_owned());
    }
    let mut pieces = Vec::with_capacity(tokens.len());
    for ((token, score), kind) in tokens.into_iter().zip(scores).zip(kinds) {
        let (Value::Text(text), Value::Float(score)) = (token, score) else {
            return Err("its tokenizer has a token that is no text; copy it again".to_owned());
        };
        let kind = match kind {
            Value::Unsigned(kind) => Some(kind),
            Value::Signed(kind) => u64::try_from(kind).ok(),
            _ => None,
        };
        let text = std::str::from_utf8(text)
            .map_err(|_| "its tokenizer has a token that is not UTF-8; copy it again")?
            .to_owned();
        pieces.push((Piece { text, score, kind: kind.map_or(Kind::Normal, Kind::numbered) }, kind));
    }
    // What fills the embedding up is no piece: the ids after the last real one belong to others.
    while pieces.last().is_some_and(|(piece, kind)| *kind == Some(UNUSED) && piece.text.starts_with("[PAD")) {
        pieces.pop();
    }
    let charsmap = header.list(&key("precompiled_charsmap"))?.and_then(List::bytes).unwrap_or_default();
    Ok(Some(Vocabulary {
        pieces: pieces.into_iter().map(|(piece, _)| piece).collect(),
        charsmap: charsmap.to_vec(),
    }))
}
