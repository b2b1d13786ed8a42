//! Error messages about wrong keys: the file, the line, and the nearest right key.

use std::path::Path;

use animd_protocol::given::{self, Given};
use animd_protocol::request::Settings;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use crate::files::show;
use crate::text;

/// Every key of [`Settings`].
pub use animd_protocol::given::NAMES as SETTINGS;
pub use animd_protocol::nearest::nearest;

/// The longest wrong word that an error repeats, in characters.
const MAX_SHOWN: usize = 64;
/// The longest sentence about a wrong value, in characters; it may repeat what a caller wrote.
const MAX_SENTENCE: usize = 400;

/// Returns "; did you mean `x`?", or an empty string if no key is similar.
pub fn hint<'a>(wrong: &str, keys: impl IntoIterator<Item = &'a str>) -> String {
    nearest(wrong, keys).map(|key| format!("; did you mean `{key}`?")).unwrap_or_default()
}

/// Returns an error of the TOML reader as one sentence: file, line, what is wrong, and the nearest right key.
pub fn explain(file: &Path, text: &str, error: &toml::de::Error) -> String {
    let place = match error.span() {
        Some(span) => format!("{}:{}", show(file), line(text, span.start)),
        None => show(file),
    };
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
        return format!("unknown {what} `{}`{hint}", one_line(wrong, MAX_SHOWN));
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

/// Reads [`Settings`] from the text of a sidecar; `file` is named in the error.
///
/// # Errors
/// Returns one sentence for each mistake, with its line, all on one line.
pub fn settings_from_toml(file: &Path, toml: &str) -> Result<Settings, String> {
    let tree = DeTable::parse(toml).map_err(|e| explain(file, toml, &e))?;
    let mut entries: Vec<_> = tree.get_ref().iter().collect();
    entries.sort_by_key(|(key, _)| key.span().start);
    let mut settings = Settings::default();
    let mut mistakes: Vec<String> = Vec::new();
    for (key, value) in entries {
        if let Err(e) = given::set(&mut settings, key.get_ref(), &given(value.get_ref())) {
            mistakes.push(format!("{}:{}: {e}", show(file), line(toml, key.span().start)));
        }
    }
    match text::settings(settings) {
        Ok(settings) if mistakes.is_empty() => return Ok(settings),
        Ok(_) => {}
        Err(e) => mistakes.push(format!("{}: {e}", show(file))),
    }
    Err(mistakes.join("; "))
}

/// Returns the line of a byte, counted from 1.
pub fn line(text: &str, at: usize) -> usize {
    text.as_bytes()[..at.min(text.len())].split(|byte| *byte == b'\n').count()
}

/// Returns a value of a TOML file as what a person gave.
pub fn given<'a>(value: &'a DeValue<'_>) -> Given<'a> {
    match value {
        DeValue::String(text) => Given::Text(text.as_ref().into()),
        DeValue::Integer(number) => i128::from_str_radix(number.as_str(), number.radix())
            .map_or(Given::Other("a number without end"), Given::Whole),
        DeValue::Float(number) => {
            number.as_str().parse().map_or(Given::Other("a number without end"), Given::Real)
        }
        DeValue::Boolean(truth) => Given::Truth(*truth),
        DeValue::Datetime(_) => Given::Other("a date"),
        DeValue::Array(items) => texts(items).map_or(Given::Other("a list"), Given::Texts),
        DeValue::Table(_) => Given::Other("a section"),
    }
}

/// Returns the texts of a list that has nothing else.
fn texts(items: &[Spanned<DeValue<'_>>]) -> Option<Vec<String>> {
    let text = |item: &Spanned<DeValue<'_>>| match item.get_ref() {
        DeValue::String(text) => Some(text.as_ref().to_owned()),
        _ => None,
    };
    items.iter().map(text).collect()
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
    fn all_mistakes_of_a_file_are_told_at_once() {
        let text = "seed = -1\nsampler = \"eular\"\nprompt = \"a\"\nsteps = 2.5\nsteeps = 1\nfps = [1]\n";
        let error = settings_from_toml(Path::new("photo.toml"), text).expect_err("five mistakes");
        assert_eq!(
            error,
            "photo.toml:1: `seed` must be a whole number from 0 to 9223372036854775807, not -1; leave it out to have one \
             drawn; photo.toml:2: `sampler` must be `unipc`, `distill` or `distill-renoise`, not `eular`; photo.toml:4: \
             `steps` must be a whole number from 1 to 1000, not 2.5; photo.toml:5: unknown key `steeps`; did you mean \
             `steps`?; photo.toml:6: `fps` must be a whole number from 1 to 240, not a list"
        );
        let whole = "steps = 4.0\nseed = 0x10\nguidance = 3\n";
        let read = settings_from_toml(Path::new("photo.toml"), whole).expect("valid settings");
        assert_eq!((read.steps, read.seed, read.guidance), (Some(4), Some(16), Some(3.0)));
    }

    #[test]
    fn whatever_is_wrong_the_error_is_one_short_line() {
        for text in ["\"a\\nb\\u0007\" = 1".to_owned(), format!("{} = 1", "a".repeat(100_000))] {
            let error = settings_from_toml(Path::new("photo.toml"), &text).expect_err("no such key");
            assert!(error.len() < 500 && !error.contains(char::is_control), "{error:?}");
            assert!(error.contains("; known are model, lora, prompt, "), "{error:?}");
        }
        let text = format!("size = \"{}\\n\"", "a".repeat(100_000));
        let error = settings_from_toml(Path::new("photo.toml"), &text).expect_err("no such size");
        assert!(error.len() < 500 && !error.contains(char::is_control), "{error:?}");
    }
}
