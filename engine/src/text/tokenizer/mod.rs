//! umT5's tokenizer.

mod build;

use std::panic::{self, AssertUnwindSafe};
use std::path::Path;

use crate::weights::{self, Vocabulary};
use crate::{Error, Result};

/// The longest `tokenizer.json` that is read; umT5's has 17 MB.
const MAX_JSON: u64 = 128 << 20;
/// The longest prompt in tokens, the final `</s>` included.
pub const MAX_TOKENS: usize = 512;

/// The token that ends a text.
const END: &str = "</s>";
/// The token that [`Tokens::padded`] fills with.
const PAD: &str = "<pad>";

/// umT5's tokenizer, which the file `tokenizer.json` or sentencepiece's vocabulary defines completely.
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    end: u32,
    pad: u32,
}

/// A prompt in tokens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tokens {
    /// The ids of 1 to [`MAX_TOKENS`] tokens, without padding; the last is `</s>`.
    pub ids: Vec<u32>,
    /// The number of tokens of the whole prompt; above [`MAX_TOKENS`] the prompt lost its end.
    pub whole: usize,
    pad: u32,
}

impl Tokens {
    /// Returns the ids, padded to `length`.
    pub fn padded(&self, length: usize) -> Vec<u32> {
        let mut ids = self.ids.clone();
        ids.resize(length.max(ids.len()), self.pad);
        ids
    }
}

impl Tokenizer {
    /// Opens `tokenizer.json`, or the folder that contains it; or a file with sentencepiece's vocabulary: its own
    /// (`spiece.model`), or a text encoder that carries it. What a file is follows from its first bytes.
    ///
    /// # Errors
    /// [`Error::File`] if the file is missing, [`Error::Model`] if it is not a tokenizer or lacks `</s>` or `<pad>`.
    pub fn open(path: &Path) -> Result<Self> {
        let file = if path.is_dir() { path.join("tokenizer.json") } else { path.to_owned() };
        let name = file.display().to_string();
        match weights::text_bytes(&file, MAX_JSON) {
            Ok(Some(bytes)) => Self::read(bytes, &name),
            Ok(None) => Self::of_vocabulary(&weights::read_vocabulary(&file)?, &name),
            Err(e) => Err(Error::file("read", &file)(e)),
        }
    }

    /// Returns the tokenizer of a vocabulary; errors call it `name`.
    ///
    /// # Errors
    /// [`Error::Model`] if the vocabulary is not one of umT5's kind, or lacks `</s>` or `<pad>`.
    pub fn of_vocabulary(vocabulary: &Vocabulary, name: &str) -> Result<Self> {
        let inner = guarded(|| build::tokenizer(vocabulary)).map_err(|what| broken(name, &what))?;
        Self::with(inner, name)
    }

    /// Reads the content of a `tokenizer.json`; errors call it `name`.
    ///
    /// # Errors
    /// [`Error::Model`] if it is not a tokenizer or lacks `</s>` or `<pad>`.
    pub fn read(bytes: impl AsRef<[u8]>, name: &str) -> Result<Self> {
        let read = || tokenizers::Tokenizer::from_bytes(bytes).map_err(|e| e.to_string());
        Self::with(guarded(read).map_err(|what| broken(name, &what))?, name)
    }

    fn with(mut inner: tokenizers::Tokenizer, name: &str) -> Result<Self> {
        // The file can ask for cutting and for padding; animd does both itself, with the model's own lengths.
        inner.with_padding(None);
        inner.with_truncation(None).map_err(|e| broken(name, &e.to_string()))?;
        let id = |token: &str| {
            inner.token_to_id(token).ok_or_else(|| broken(name, &format!("it has no token `{token}`")))
        };
        let (end, pad) = (id(END)?, id(PAD)?);
        Ok(Self { inner, end, pad })
    }

    /// Returns the number of tokens that it knows.
    pub fn size(&self) -> usize {
        self.inner.get_vocab_size(true)
    }

    /// Returns whether the tokens that pad and end a text have umT5's numbers, 0 and 1. Other models' tokenizers have the
    /// same tokens under other numbers.
    pub fn is_numbered_as_umt5(&self) -> bool {
        (self.pad, self.end) == (0, 1)
    }

    /// Cuts a text that [`clean`](super::clean) has cleaned into tokens, and ends them with `</s>`.
    ///
    /// # Errors
    /// [`Error::Model`] if the tokenizer has no token for a part of the text, not even the one for unknown text.
    pub fn encode(&self, cleaned: &str) -> Result<Tokens> {
        let encode = || self.inner.encode_fast(cleaned, false).map_err(|e| e.to_string());
        let encoding = guarded(encode)
            .map_err(|e| Error::Model(format!("the tokenizer cannot cut the prompt into tokens: {e}")))?;
        let mut ids = encoding.get_ids().to_vec();
        let whole = ids.len() + 1;
        ids.truncate(MAX_TOKENS - 1);
        ids.push(self.end);
        Ok(Tokens { ids, whole, pad: self.pad })
    }
}

fn broken(name: &str, what: &str) -> Error {
    Error::Model(format!("`{name}` is not umT5's tokenizer: {what}; fetch the file again"))
}

/// Returns what `f` returns. The library trusts the tables in a tokenizer's file and panics if they lead nowhere, which
/// is an error of the file.
fn guarded<T>(f: impl FnOnce() -> Result<T, String>) -> Result<T, String> {
    panic::catch_unwind(AssertUnwindSafe(f)).unwrap_or_else(|_| Err("its tables lead nowhere".to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::goldens::{Golden, fixture};

    #[test]
    fn the_reference_ids() {
        let tokenizer =
            Tokenizer::open(&fixture("tiny-a/official/google/umt5-xxl")).expect("the tokenizer opens");
        let golden = Golden::open();
        let prompts = golden.json["tokenizer"]["prompts"].as_array().expect("a list");
        for (i, prompt) in prompts.iter().enumerate() {
            let tokens = tokenizer.encode(prompt["cleaned"].as_str().expect("text")).expect("it has tokens");
            let expected: Vec<u32> = golden.values(&format!("tok.{i}.ids"));
            assert_eq!(tokens.padded(512), expected, "{}", prompt["tag"]);
            assert_eq!(Some(tokens.ids.len() as u64), prompt["len"].as_u64());
            assert_eq!(Some(tokens.whole as u64), prompt["untruncated_len"].as_u64());
        }
    }

    #[test]
    fn the_longest_prompt_is_not_truncated() {
        let tokenizer =
            Tokenizer::open(&fixture("tiny-a/official/google/umt5-xxl/tokenizer.json")).expect("it opens");
        let mut text = String::from("a");
        while tokenizer.encode(&text).expect("it has tokens").ids.len() < MAX_TOKENS {
            text.push_str(" </s>");
        }
        assert_eq!(tokenizer.encode(&text).expect("it has tokens").whole, MAX_TOKENS);
        let longer = tokenizer.encode(&(text + " </s>")).expect("it has tokens");
        assert_eq!((longer.whole, longer.ids.len()), (MAX_TOKENS + 1, MAX_TOKENS));
    }

    #[test]
    fn a_damaged_file_does_not_panic() {
        let path = fixture("tiny-a/official/google/umt5-xxl/tokenizer.json");
        let whole = std::fs::read(path).expect("the file");
        let map = whole.windows(7).position(|w| w == b"charsma").expect("a table of characters");
        // The beginning and the end of the file, and the first entries of the table.
        let places = (0..600)
            .step_by(23)
            .chain((map..map + 3000).step_by(97))
            .chain((1..2000).step_by(61).map(|i| whole.len() - i));
        let mut refused = 0;
        for (n, place) in places.enumerate() {
            let mut file = whole.clone();
            file[place] = [b'A', b'0', b'"', b'/', 0xff][n % 5];
            match Tokenizer::read(&file, "x").and_then(|t| t.encode("A cat \u{ff26}\u{fb01} \u{1f642}")) {
                Ok(tokens) => assert!(!tokens.ids.is_empty()),
                Err(Error::Model(_)) => refused += 1,
                Err(e) => panic!("not an error about a model: {e:?}"),
            }
        }
        assert!(refused > 10, "{refused}");
    }

    #[test]
    fn no_tokenizer_is_a_sentence() {
        let folder = tempfile::tempdir().expect("a folder");
        let message = |path: &Path| Tokenizer::open(path).err().expect("it fails").to_string();
        let missing = message(folder.path());
        assert!(missing.starts_with("cannot read `") && missing.contains("tokenizer.json"), "{missing}");
        let broken = folder.path().join("tokenizer.json");
        for text in ["", "{\"version\":", "[]", "{}"] {
            std::fs::write(&broken, text).expect("it can be written");
            let message = message(&broken);
            assert!(message.contains("is not umT5's tokenizer") && message.contains("fetch"), "{message}");
        }
    }
}
