//! Makes a tokenizer of sentencepiece's vocabulary: the same as the released `tokenizer.json`, which was made of it.

use tokenizers::models::unigram::Unigram;
use tokenizers::normalizers::{NormalizerWrapper, Precompiled, Replace, Sequence, Strip};
use tokenizers::pre_tokenizers::metaspace::{Metaspace, PrependScheme};
use tokenizers::{AddedToken, Tokenizer};

use crate::weights::{PieceKind, Vocabulary};

/// The tokens `<extra_id_0>` and so on that umT5 has behind its pieces, the last of them first.
const EXTRA: usize = 300;
/// The character that stands for a space.
const SPACE: char = '\u{2581}';

/// Returns the tokenizer of a vocabulary, or what is wrong with it.
pub(super) fn tokenizer(vocabulary: &Vocabulary) -> Result<Tokenizer, String> {
    let Vocabulary { pieces, charsmap } = vocabulary;
    let unknown = pieces.iter().position(|piece| piece.kind == PieceKind::Unknown);
    let unknown = unknown.ok_or("it has no token for unknown text")?;
    let bytes = pieces.iter().any(|piece| piece.kind == PieceKind::Byte);
    let extra = |i: usize| format!("<extra_id_{}>", EXTRA - 1 - i);
    let scored = pieces.iter().map(|piece| (piece.text.clone(), piece.score));
    let scored: Vec<(String, f64)> = scored.chain((0..EXTRA).map(|i| (extra(i), 0.0))).collect();
    if let Some((text, score)) = scored.iter().find(|(_, score)| !score.is_finite()) {
        return Err(format!("its token `{}` has the score {score}", text.escape_debug()));
    }
    let said = |e: Box<dyn std::error::Error + Send + Sync>| e.to_string();
    let mut tokenizer = Tokenizer::new(Unigram::from(scored, Some(unknown), bytes).map_err(said)?);

    let mut normalizers: Vec<NormalizerWrapper> = Vec::new();
    if !charsmap.is_empty() {
        let map =
            Precompiled::from(charsmap).map_err(|e| format!("its table of characters is broken: {e}"))?;
        normalizers.push(map.into());
    }
    normalizers.push(Strip::new(false, true).into());
    let spaces = tokenizers::normalizers::replace::ReplacePattern::Regex(" {2,}".to_owned());
    normalizers.push(Replace::new(spaces, SPACE.to_string()).map_err(said)?.into());
    tokenizer.with_normalizer(Some(Sequence::new(normalizers))).map_err(said)?;
    tokenizer.with_pre_tokenizer(Some(Metaspace::new(SPACE, PrependScheme::Always, true)));

    let whole = |text: String, special| AddedToken::from(text, special).normalized(false);
    let special = pieces.iter().filter(|p| matches!(p.kind, PieceKind::Control | PieceKind::Unknown));
    let special = special.map(|piece| piece.text.clone()).chain((0..EXTRA).map(extra));
    tokenizer.add_special_tokens(special.map(|text| whole(text, true))).map_err(said)?;
    let users = pieces.iter().filter(|piece| piece.kind == PieceKind::UserDefined);
    tokenizer.add_tokens(users.map(|piece| whole(piece.text.clone(), false))).map_err(said)?;
    Ok(tokenizer)
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::super::Tokenizer;
    use crate::goldens::{Golden, fixture};
    use crate::weights::{Piece, PieceKind, Vocabulary};

    /// Returns the bytes that a text of base64 stands for.
    fn base64(text: &str) -> Vec<u8> {
        let digit = |byte: u8| match byte {
            b'A'..=b'Z' => byte - b'A',
            b'a'..=b'z' => byte - b'a' + 26,
            b'0'..=b'9' => byte - b'0' + 52,
            b'+' => 62,
            _ => 63,
        };
        let mut bytes = Vec::new();
        for four in text.trim_end_matches('=').as_bytes().chunks(4) {
            let number =
                four.iter().fold(0u32, |n, b| n << 6 | u32::from(digit(*b))) << (6 * (4 - four.len()));
            bytes.extend_from_slice(&number.to_be_bytes()[1..four.len()]);
        }
        bytes
    }

    /// Returns the vocabulary of which a `tokenizer.json` was made.
    fn vocabulary(json: &Value) -> Vocabulary {
        let list = json["model"]["vocab"].as_array().expect("a vocabulary");
        let piece = |(id, item): (usize, &Value)| {
            let text = item[0].as_str().expect("text").to_owned();
            let kind = match id {
                3 => PieceKind::Unknown,
                0..3 => PieceKind::Control,
                _ if text.starts_with("<0x") => PieceKind::Byte,
                _ => PieceKind::Normal,
            };
            Piece { text, score: item[1].as_f64().expect("a score"), kind }
        };
        let pieces =
            list.iter().enumerate().map(piece).filter(|p| !p.text.starts_with("<extra_id_")).collect();
        let map = json["normalizer"]["normalizers"][0]["precompiled_charsmap"].as_str().expect("a table");
        Vocabulary { pieces, charsmap: base64(map) }
    }

    #[test]
    fn a_vocabulary_gives_the_tokens_of_the_released_file() {
        let path = fixture("tiny-a/official/google/umt5-xxl/tokenizer.json");
        let json: Value = serde_json::from_slice(&std::fs::read(&path).expect("the file")).expect("JSON");
        let released = Tokenizer::open(&path).expect("the tokenizer opens");
        let built = Tokenizer::of_vocabulary(&vocabulary(&json), "the test's").expect("a tokenizer");
        let golden = Golden::open();
        let prompts = golden.json["tokenizer"]["prompts"].as_array().expect("a list");
        let prompts = prompts.iter().map(|prompt| prompt["cleaned"].as_str().expect("text"));
        let others = [
            "  two  spaces   and three ",
            "\u{ff26}\u{ff55}\u{ff4c}\u{ff4c}\u{3000}width \u{fb01}ne \u{bd}",
            "a </s> b <pad> c <extra_id_7> d<unk>",
            "\u{1f642} \u{65e5}\u{672c}",
            "",
        ];
        for text in prompts.chain(others) {
            let (a, b) = (built.encode(text).expect("tokens"), released.encode(text).expect("tokens"));
            assert_eq!(a, b, "{text:?}");
        }
        // The table of characters matters: without it, full-width letters stay as they are.
        let without = Vocabulary { charsmap: Vec::new(), ..vocabulary(&json) };
        let without = Tokenizer::of_vocabulary(&without, "the test's").expect("a tokenizer");
        assert_ne!(without.encode(others[1]).expect("tokens"), released.encode(others[1]).expect("tokens"));
    }

    #[test]
    fn a_vocabulary_that_cannot_be_one_is_refused() {
        let piece = |text: &str, score, kind| Piece { text: text.to_owned(), score, kind };
        let unknown = piece("<unk>", 0.0, PieceKind::Unknown);
        let all = [
            piece("<pad>", 0.0, PieceKind::Control),
            piece("</s>", 0.0, PieceKind::Control),
            unknown.clone(),
        ];
        for (pieces, charsmap, text) in [
            (vec![], vec![], "no token for unknown text"),
            (vec![unknown.clone()], vec![], "it has no token `</s>`"),
            (vec![unknown, piece("a", f64::NAN, PieceKind::Normal)], vec![], "the score NaN"),
            (all.to_vec(), vec![1, 2, 3], "table"),
            (all.to_vec(), vec![255; 12], "table"),
        ] {
            let error =
                Tokenizer::of_vocabulary(&Vocabulary { pieces, charsmap }, "x").err().expect("refused");
            assert!(error.to_string().contains(text), "{error}");
        }
        // A table whose entries lead out of it is an error when it is used.
        let charsmap = [&4u32.to_le_bytes()[..], &0xffff_fc00u32.to_le_bytes(), b"a\0"].concat();
        let tokenizer = Tokenizer::of_vocabulary(&Vocabulary { pieces: all.to_vec(), charsmap }, "x");
        if let Ok(tokenizer) = tokenizer {
            let _ = tokenizer.encode("some text");
        }
    }
}
