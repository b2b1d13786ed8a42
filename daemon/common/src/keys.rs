//! Error messages about wrong keys: the file, the line, and the nearest right key.

use std::path::Path;

use animd_protocol::request::Settings;

use crate::files::show;
use crate::text;

/// Every key of [`Settings`].
pub const SETTINGS: [&str; 17] = [
    "prompt",
    "negative_prompt",
    "seed",
    "size",
    "resize",
    "frames",
    "fps",
    "quality",
    "sampler",
    "steps",
    "shift",
    "guidance",
    "step_cache",
    "step_cache_threshold",
    "noise",
    "noise_multiprocessors",
    "tiling",
];

/// The longest wrong word that is compared with the right ones, in bytes: the work grows with it.
const MAX_WORD: usize = 64;
/// The longest sentence about a wrong value, in characters; it may repeat what a caller wrote.
const MAX_SENTENCE: usize = 400;

/// Returns the key most like `wrong`, if one is like it at all.
pub fn nearest<'a>(wrong: &str, keys: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    if wrong.len() > MAX_WORD {
        return None;
    }
    keys.into_iter()
        .map(|key| (distance(wrong, key), key))
        .min()
        .filter(|(d, key)| *d <= key.len().max(3) / 2)
        .map(|(_, key)| key)
}

/// Returns "; did you mean `x`?", or an empty string if no key is similar.
pub fn hint<'a>(wrong: &str, keys: impl IntoIterator<Item = &'a str>) -> String {
    nearest(wrong, keys).map(|key| format!("; did you mean `{key}`?")).unwrap_or_default()
}

/// Returns the Levenshtein distance, with hyphens and underscores treated as equal.
fn distance(a: &str, b: &str) -> usize {
    let fold = |s: &str| s.to_lowercase().replace('-', "_").chars().collect::<Vec<_>>();
    let (a, b) = (fold(a), fold(b));
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.iter().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let next = (diagonal + usize::from(x != y)).min(row[j] + 1).min(row[j + 1] + 1);
            diagonal = std::mem::replace(&mut row[j + 1], next);
        }
    }
    row[b.len()]
}

/// Returns an error of the TOML reader as one sentence: file, line, what is wrong, and the nearest right key.
pub fn explain(file: &Path, text: &str, error: &toml::de::Error) -> String {
    let line =
        error.span().map(|span| text.as_bytes()[..span.start.min(text.len())].split(|b| *b == b'\n').count());
    let place = line.map_or_else(|| show(file), |line| format!("{}:{line}", show(file)));
    format!("{place}: {}", with_hint(error.message()))
}

/// Returns serde's message about an unknown field or variant with the nearest right one in place of the whole list, as
/// one line of limited length.
pub fn with_hint(message: &str) -> String {
    for (start, what) in [("unknown field `", "key"), ("unknown variant `", "value")] {
        let Some(rest) = message.strip_prefix(start) else { continue };
        let Some((wrong, rest)) = rest.split_once("`, expected ") else { continue };
        let known: Vec<&str> = rest.split('`').skip(1).step_by(2).collect();
        let hint = match nearest(wrong, known.iter().copied()) {
            Some(key) => format!("; did you mean `{key}`?"),
            None => format!("; known are {}", known.join(", ")),
        };
        return format!("unknown {what} `{}`{hint}", one_line(wrong, MAX_WORD));
    }
    one_line(message, MAX_SENTENCE)
}

/// Returns a text on one line, cut after so many characters.
pub fn one_line(text: &str, most: usize) -> String {
    match text.char_indices().nth(most) {
        Some((end, _)) => format!("{}…", show(&text[..end])),
        None => show(text),
    }
}

/// Reads [`Settings`] from the text of a sidecar or of a JSON object; `file` is named in the error.
pub fn settings_from_toml(file: &Path, toml: &str) -> Result<Settings, String> {
    let settings = toml::from_str(toml).map_err(|e| explain(file, toml, &e))?;
    text::settings(settings).map_err(|e| format!("{}: {e}", show(file)))
}

/// Reads [`Settings`] from the text of a sidecar that is a JSON object; `file` is named in the error.
pub fn settings_from_json(file: &Path, json: &str) -> Result<Settings, String> {
    let settings = serde_json::from_str(json).map_err(|e| {
        let said = e.to_string();
        // The line is named in front of the sentence.
        let what = said.rsplit_once(" at line ").map_or(&*said, |(what, _)| what);
        format!("{}:{}: {}", show(file), e.line().max(1), with_hint(what))
    })?;
    text::settings(settings).map_err(|e| format!("{}: {e}", show(file)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_of_settings_is_complete() {
        let error = toml::from_str::<Settings>("nonsense = 1").expect_err("no such key").message().to_owned();
        let known: Vec<&str> = error.split('`').skip(3).step_by(2).collect();
        assert_eq!(known, SETTINGS);
    }

    #[test]
    fn a_wrong_key_is_named_with_its_line_and_the_right_one() {
        let text = "prompt = \"a\"\n\nsteeps = 5\n";
        let error = settings_from_toml(Path::new("photo.toml"), text).expect_err("no such key");
        assert_eq!(error, "photo.toml:3: unknown key `steeps`; did you mean `steps`?");
        assert_eq!(nearest("negative-prompt", SETTINGS), Some("negative_prompt"));
        assert_eq!(nearest("zzzzzzzz", SETTINGS), None);
    }

    #[test]
    fn whatever_is_wrong_the_error_is_one_short_line() {
        for text in ["\"a\\nb\\u0007\" = 1".to_owned(), format!("{} = 1", "a".repeat(100_000))] {
            let error = settings_from_toml(Path::new("photo.toml"), &text).expect_err("no such key");
            assert!(error.len() < 500 && !error.contains(char::is_control), "{error:?}");
            assert!(error.contains("; known are prompt, "), "{error:?}");
        }
        let text = format!("size = \"{}\\n\"", "a".repeat(100_000));
        let error = settings_from_toml(Path::new("photo.toml"), &text).expect_err("no such size");
        assert!(error.len() < 500 && !error.contains(char::is_control), "{error:?}");
    }
}
