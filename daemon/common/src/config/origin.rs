//! Where each value comes from, so that an error can name the place.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use crate::files::show;

/// Where a value stands.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Place {
    /// The value is the default and stands nowhere.
    #[default]
    BuiltIn,
    /// In a file.
    File {
        /// The file.
        path: PathBuf,
        /// The line, counted from 1.
        line: usize,
        /// The column in characters, counted from 1.
        column: usize,
    },
    /// In a variable of the environment.
    Variable(String),
    /// In an option of the command line.
    Option(String),
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::BuiltIn => f.write_str("built in"),
            Self::File { path, line, column } => write!(f, "{}:{line}:{column}", show(path)),
            Self::Variable(name) => write!(f, "variable {}", show(name)),
            Self::Option(name) => write!(f, "option {name}"),
        }
    }
}

impl Place {
    /// Returns the place of a byte in a file's text.
    pub fn in_file(path: &Path, text: &str, at: usize) -> Self {
        let before = &text.as_bytes()[..at.min(text.len())];
        let start = before.iter().rposition(|b| *b == b'\n').map_or(0, |newline| newline + 1);
        // Counts the bytes that begin a character.
        let characters = before[start..].iter().filter(|b| **b & 0xc0 != 0x80).count();
        let line = before.split(|b| *b == b'\n').count();
        Self::File { path: path.to_owned(), line, column: characters + 1 }
    }

    /// Returns a sentence about a value that stands here.
    pub fn say(&self, sentence: &str) -> String {
        match self {
            Self::BuiltIn => sentence.to_owned(),
            place => format!("{place}: {sentence}"),
        }
    }
}

/// The places of all values that are not built in, by `section.key`; of watched folders, by `watch.N.key`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Origins(BTreeMap<String, Place>);

impl Origins {
    /// Returns where a value comes from.
    pub fn of(&self, key: &str) -> &Place {
        self.0.get(key).unwrap_or(&Place::BuiltIn)
    }

    /// Sets where a value comes from, in place of an earlier entry.
    pub fn set(&mut self, key: String, place: Place) {
        self.0.insert(key, place);
    }

    /// Returns a sentence about a value, with the value's place.
    pub fn say(&self, key: &str, sentence: &str) -> String {
        self.of(key).say(sentence)
    }
}
