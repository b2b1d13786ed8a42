//! Cleans a prompt before it is cut into tokens.

use std::borrow::Cow;
use std::sync::LazyLock;

use regex::Regex;
use unicode_normalization::{UnicodeNormalization, is_nfc_quick};

use super::html;
use super::mojibake::{fix_c1_controls, fix_encoding, is_c1};

/// Cleans a prompt as the model's own code does: it applies `ftfy.fix_text` with its defaults, applies `html.unescape`
/// twice, and reduces each run of white space to one space.
///
/// Cleaning undoes wrong decodings (`cafÃ©`), resolves HTML references, straightens quotes, takes ligatures apart,
/// folds full-width characters to the common ones, removes control characters and terminal escapes, and composes
/// accents (NFC). The results are those of `ftfy` 6.3.1.
pub fn clean(text: &str) -> String {
    let text = fix_text(text);
    let once = html::unescape(&text);
    let twice = html::unescape(&once);
    // Python's `str.strip` also strips the four separators U+001C to U+001F; its `\s` in `regex` does not match them.
    let strip = |c: char| c.is_whitespace() || matches!(c, '\x1c'..='\x1f');
    let mut out = String::with_capacity(twice.len());
    for c in twice.trim_matches(strip).chars() {
        if !c.is_whitespace() {
            out.push(c);
        } else if !out.ends_with(' ') {
            out.push(' ');
        }
    }
    out.trim_matches(strip).to_owned()
}

/// Does what `ftfy.fix_text` does, line by line.
fn fix_text(text: &str) -> String {
    // From the first `<` on, references are assumed to be those of real HTML and are kept.
    let mut unescape = true;
    let mut out = String::with_capacity(text.len());
    for line in text.split_inclusive('\n') {
        unescape &= !line.contains('<');
        out.push_str(&fix_line(line, unescape));
    }
    out
}

/// Applies all fixes, again and again until none of them changes the text.
fn fix_line(line: &str, unescape: bool) -> Cow<'_, str> {
    let mut text = if unescape { html::shorten_nested(line) } else { Cow::Borrowed(line) };
    loop {
        let unescaped = if unescape { html::unescape_sure(&text) } else { Cow::Borrowed(&*text) };
        let decoded = fix_encoding(&unescaped);
        let replaced = replace_characters(&decoded);
        let plain = TERMINAL_ESCAPE.replace_all(&replaced, "");
        let kept = remove_control_characters(&plain);
        let fixed = if is_nfc_quick(kept.chars()) == unicode_normalization::IsNormalized::Yes {
            kept
        } else {
            Cow::Owned(kept.nfc().collect())
        };
        if fixed == text {
            return text;
        }
        text = Cow::Owned(fixed.into_owned());
    }
}

static TERMINAL_ESCAPE: LazyLock<Regex> =
    LazyLock::new(|| Regex::new(r"\x1b\[[\p{Nd};]*[A-Za-z]").expect("a constant, and tests compile it"));

/// Fixes C1 controls, ligatures, widths, quotes and line breaks.
fn replace_characters(text: &str) -> Cow<'_, str> {
    if text.is_ascii() && !text.contains('\r') {
        return Cow::Borrowed(text);
    }
    let windows = if text.contains(is_c1) { Cow::Owned(fix_c1_controls(text)) } else { Cow::Borrowed(text) };
    let mut out = String::with_capacity(windows.len());
    let mut characters = windows.chars().peekable();
    while let Some(c) = characters.next() {
        match c {
            '\r' => {
                characters.next_if_eq(&'\n');
                out.push('\n');
            }
            '\u{2028}' | '\u{2029}' => out.push('\n'),
            '\u{2bc}' | '\u{2018}'..='\u{201b}' => out.push('\''),
            '\u{201c}'..='\u{201f}' => out.push('"'),
            '\u{3000}' => out.push(' '),
            // These are full-width ASCII and signs, and half-width katakana and hangul.
            '\u{ff01}'..='\u{ffef}' => out.extend(std::iter::once(c).nfkc()),
            _ => match ligature(c) {
                Some(letters) => out.push_str(letters),
                None => out.push(c),
            },
        }
    }
    Cow::Owned(out)
}

/// Returns the letters of a Latin ligature or digraph.
fn ligature(c: char) -> Option<&'static str> {
    Some(match c {
        'Ĳ' => "IJ",
        'ĳ' => "ij",
        // The apostrophe is U+02BC, which is straightened like the other quotes.
        'ŉ' => "'n",
        'Ǆ' => "DŽ",
        'ǅ' => "Dž",
        'ǆ' => "dž",
        'Ǉ' => "LJ",
        'ǈ' => "Lj",
        'ǉ' => "lj",
        'Ǌ' => "NJ",
        'ǋ' => "Nj",
        'ǌ' => "nj",
        'Ǳ' => "DZ",
        'ǲ' => "Dz",
        'ǳ' => "dz",
        'ﬀ' => "ff",
        'ﬁ' => "fi",
        'ﬂ' => "fl",
        'ﬃ' => "ffi",
        'ﬄ' => "ffl",
        'ﬅ' => "ſt",
        'ﬆ' => "st",
        _ => return None,
    })
}

/// Removes ASCII controls that are not white space, deprecated Arabic controls, the byte order mark and annotations.
fn remove_control_characters(text: &str) -> Cow<'_, str> {
    let removed = |c: char| {
        matches!(c, '\0'..='\x08' | '\x0b' | '\x0e'..='\x1f' | '\x7f' | '\u{206a}'..='\u{206f}' | '\u{feff}')
            || matches!(c, '\u{fff9}'..='\u{fffc}')
    };
    if text.contains(removed) {
        Cow::Owned(text.chars().filter(|&c| !removed(c)).collect())
    } else {
        Cow::Borrowed(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::goldens::{fixture, json};

    #[test]
    fn the_reference_prompts() {
        let golden = json(&fixture("tiny-a/golden.json"));
        let prompts = golden["tokenizer"]["prompts"].as_array().expect("a list");
        assert!(prompts.len() >= 14);
        for prompt in prompts {
            let (raw, cleaned) = (prompt["raw"].as_str(), prompt["cleaned"].as_str());
            assert_eq!(Some(clean(raw.expect("text")).as_str()), cleaned, "{}", prompt["tag"]);
        }
    }

    // The pairs are a text and what Python (ftfy 6.3.1, html, regex) makes of it. The texts, made by hand and at
    // random, have broken encodings, lossy sequences, references, widths, ligatures, quotes, controls and accents.
    #[test]
    fn what_python_gives() {
        let pairs: Vec<(String, String)> =
            serde_json::from_value(json(&fixture("clean.json"))).expect("pairs");
        assert!(pairs.len() >= 400);
        for (raw, cleaned) in &pairs {
            assert_eq!(clean(raw), *cleaned, "{raw:?}");
        }
    }

    #[test]
    fn references_in_references() {
        for level in ["amp;", "AMP;", "#38;", "#x26;"] {
            for levels in [1, 15, 16, 17, 4000] {
                assert_eq!(clean(&format!("é &{}lt; x", level.repeat(levels))), "é < x");
            }
        }
    }

    #[test]
    fn cleaning_is_for_text_that_needs_it() {
        for text in
            ["", "a", "Une crème brûlée à 5 £, s'il vous plaît", "雾中的山路。", "Αθήνα", "3 × 4 ± 1 °C"]
        {
            assert_eq!(clean(text), text);
        }
    }
}
