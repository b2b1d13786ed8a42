//! A tokenizer's vocabulary: a list of pieces with scores, as sentencepiece has it.

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
