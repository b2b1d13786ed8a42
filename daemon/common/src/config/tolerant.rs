//! Reads a TOML file as far as it can be read, so that all its mistakes are known at once.

use std::ops::Range;

use serde::de::DeserializeOwned;
use toml::Spanned;
use toml::de::{DeArray, DeTable, DeValue, Error};

use super::check::plain;
use crate::keys;

/// What could be read of a file.
pub struct Tolerated<'a, T> {
    /// The value without what is wrong; `None` if nothing could be read.
    pub value: Option<T>,
    /// The values that the type takes.
    pub tree: Spanned<DeTable<'a>>,
    /// Where each of these values stands. A key is `section.key`, or `section.N.key` in a list.
    pub spans: Vec<(String, Range<usize>)>,
    /// The place of each mistake, in bytes, and a sentence about it, in the order in which they were found.
    pub mistakes: Vec<(Option<usize>, String)>,
}

/// Reads a file's text as a `T`. Whatever a `T` does not take is removed, to find what else is wrong. `section_of` names
/// the section that a key belongs in which stands in a wrong place.
///
/// # Errors
/// The error of the TOML reader for a file that is not TOML.
pub fn read<T: DeserializeOwned>(
    text: &str,
    section_of: impl Fn(&str) -> Option<&'static str>,
) -> Result<Tolerated<'_, T>, Error> {
    let mut tree = DeTable::parse(text)?;
    let mut spans = all_spans(tree.get_ref());
    let mut mistakes = Vec::new();
    // Only these errors know their line.
    let value = loop {
        let e = match T::deserialize(toml::Deserializer::from(tree.clone())) {
            Ok(value) => break Some(value),
            Err(e) => e,
        };
        let at = e.span().map(|span| span.start);
        let key = at.and_then(|at| spans.iter().find(|(_, span)| span.contains(&at)));
        mistakes.push((at, explain(e.message(), key.map(|(key, _)| plain(key)).as_deref(), &section_of)));
        if !at.is_some_and(|at| remove(tree.get_mut(), at)) {
            break None;
        }
        // An item of a list that is removed gives its number to the next one.
        spans = all_spans(tree.get_ref());
    };
    Ok(Tolerated { value, tree, spans, mistakes })
}

/// Removes the entry whose key or value stands at this byte, or the item of a list that begins there, and returns whether
/// there was one.
fn remove(tree: &mut DeTable<'_>, at: usize) -> bool {
    let below = tree.iter_mut().any(|(_, value)| match value.get_mut() {
        DeValue::Table(inner) => remove(inner, at),
        DeValue::Array(items) => remove_item(items, at),
        _ => false,
    });
    if below {
        return true;
    }
    let mut entries = tree.iter();
    let here = entries.find(|(key, value)| key.span().contains(&at) || value.span().contains(&at));
    let here = here.map(|(key, _)| key.get_ref().to_string());
    here.is_some_and(|key| tree.remove(key.as_str()).is_some())
}

/// As [`remove`], for a list.
fn remove_item(items: &mut DeArray<'_>, at: usize) -> bool {
    let below = items.iter_mut().any(|item| match item.get_mut() {
        DeValue::Table(inner) => remove(inner, at),
        _ => false,
    });
    let Some(wrong) = items.iter().position(|item| !below && item.span().contains(&at)) else { return below };
    let others = items.iter().enumerate().filter(|(n, _)| *n != wrong);
    *items = others.map(|(_, item)| item.clone()).collect();
    true
}

/// Returns where all values of a file stand in its text.
fn all_spans(tree: &DeTable<'_>) -> Vec<(String, Range<usize>)> {
    let mut spans = Vec::new();
    for (key, value) in tree {
        if !matches!(value.get_ref(), DeValue::Table(_) | DeValue::Array(_)) {
            spans.push((key.get_ref().to_string(), value.span()));
        }
        leaves(key.get_ref(), value.get_ref(), &mut spans);
    }
    spans
}

/// Collects where the values below `value` stand in the text.
fn leaves(key: &str, value: &DeValue<'_>, found: &mut Vec<(String, Range<usize>)>) {
    let mut below = |inner: &str, value: &Spanned<DeValue<'_>>| {
        let key = format!("{key}.{inner}");
        if !matches!(value.get_ref(), DeValue::Table(_)) {
            found.push((key.clone(), value.span()));
        }
        leaves(&key, value.get_ref(), found);
    };
    match value {
        DeValue::Table(table) => table.iter().for_each(|(inner, value)| below(inner.get_ref(), value)),
        DeValue::Array(items) => {
            items.iter().enumerate().for_each(|(n, value)| below(&n.to_string(), value));
        }
        _ => {}
    }
}

/// Returns the message of the TOML reader in plain words; `key` is the key that the message is about, if there is one.
pub fn explain(
    message: &str,
    key: Option<&str>,
    section_of: impl Fn(&str) -> Option<&'static str>,
) -> String {
    if let Some(rest) = message.strip_prefix("unknown field `")
        && let Some((wrong, _)) = rest.split_once("`, expected ")
        && let Some(section) = section_of(wrong)
    {
        return format!("unknown key `{wrong}` here; it belongs in [{section}]");
    }
    if let Some(missing) = message.strip_prefix("missing field ") {
        return format!("{missing} is missing, and must be given");
    }
    let found_type = message.strip_prefix("invalid type: ").or(message.strip_prefix("invalid value: "));
    let Some((found, expected)) = found_type.and_then(|rest| rest.rsplit_once(", expected ")) else {
        return keys::with_hint(message);
    };
    let wanted = match expected {
        "u32" | "u64" => "a whole number, 0 or more",
        "f64" => "a number",
        "a boolean" => "true or false",
        "a string" | "path string" => "text in quotes",
        _ if expected.starts_with("struct ") => "a section",
        "a sequence" => "a list",
        other => other,
    };
    let found = match found {
        "map" => "a section".to_owned(),
        "sequence" => "a list".to_owned(),
        found => {
            let kinds = ["integer ", "floating point ", "boolean ", "string "];
            keys::one_line(kinds.iter().find_map(|kind| found.strip_prefix(kind)).unwrap_or(found), 100)
        }
    };
    match key {
        Some(key) => format!("{key} must be {wanted}, not {found}"),
        None => format!("here must be {wanted}, not {found}"),
    }
}
