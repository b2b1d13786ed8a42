//! A mistake in a text that a person wrote, with its place.

use std::ops::Range;

/// A mistake in a file of settings.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Mistake {
    /// What is wrong, with which value, and what to do.
    pub message: String,
    /// The range of bytes of the text that has the error, where it is known.
    pub span: Option<Range<usize>>,
}

impl From<toml::de::Error> for Mistake {
    fn from(e: toml::de::Error) -> Self {
        Self { message: e.message().lines().next().unwrap_or_default().to_owned(), span: e.span() }
    }
}

impl Mistake {
    /// Returns the line of `text` that has the error, counted from 1.
    pub fn line(&self, text: &str) -> Option<usize> {
        let start = self.span.as_ref()?.start.min(text.len());
        Some(text.as_bytes()[..start].split(|b| *b == b'\n').count())
    }
}
