//! Every key with its description, for manual pages and messages. The only source is `configs/animd.toml`, which is
//! compiled into the program.

use std::sync::LazyLock;

/// The shipped file: every key commented out, with its default and its description.
pub const SHIPPED: &str = include_str!("../../../../configs/animd.toml");

/// One key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyDoc {
    /// Its section, without brackets.
    pub section: &'static str,
    /// Its name.
    pub key: &'static str,
    /// `text`, `path`, `list`, `whole number`, `number` or `true or false`.
    pub kind: &'static str,
    /// The value in the shipped file as TOML: the default, or an example.
    pub value: &'static str,
    /// Whether [`Self::value`] is the key's default.
    pub is_default: bool,
    /// What it means, as one paragraph.
    pub description: String,
}

static KEYS: LazyLock<Vec<KeyDoc>> = LazyLock::new(|| parse(SHIPPED));

/// Returns all keys, in the order of the shipped file.
pub fn reference() -> &'static [KeyDoc] {
    &KEYS
}

/// Returns the sections whose values variables can give, in the order of the shipped file.
pub fn sections() -> Vec<&'static str> {
    let mut sections: Vec<&str> = reference().iter().map(|doc| doc.section).collect();
    sections.dedup();
    sections.retain(|section| *section != "watch");
    sections
}

/// Returns the one section that has such a key; `None` if there is none or more than one.
pub fn section_of(key: &str) -> Option<&'static str> {
    let mut having = reference().iter().filter(|doc| doc.key == key).map(|doc| doc.section);
    having.next().filter(|_| having.next().is_none())
}

/// Parses the shipped file: a line `#key = value` ends the paragraph above it; `[section]` or `#[[section]]` begins a
/// section.
fn parse(text: &'static str) -> Vec<KeyDoc> {
    let mut docs: Vec<KeyDoc> = Vec::new();
    let (mut section, mut paragraph) = ("", Vec::new());
    for line in text.lines() {
        if let Some(words) = line.strip_prefix("# ") {
            paragraph.push(words);
            continue;
        }
        let bare = line.strip_prefix('#').unwrap_or(line);
        if let Some(rest) = bare.strip_prefix('[') {
            section = rest.trim_start_matches('[').trim_end_matches(']');
        } else if let Some((key, value)) = key_and_value(bare) {
            let description = paragraph.join(" ");
            let is_default = !description.contains("No default");
            docs.push(KeyDoc { section, key, kind: kind(key, value), value, is_default, description });
        }
        paragraph.clear();
    }
    docs
}

fn key_and_value(line: &str) -> Option<(&str, &str)> {
    let (key, value) = line.split_once(" = ")?;
    let is_key = !key.is_empty() && key.bytes().all(|b| b.is_ascii_lowercase() || b == b'_');
    is_key.then_some((key, value))
}

fn kind(key: &str, value: &str) -> &'static str {
    match value.as_bytes() {
        [b'"', b'/', ..] if key != "name" => "path",
        [b'"', ..] => "text",
        [b'[', ..] => "list",
        b"true" | b"false" => "true or false",
        _ if value.contains('.') => "number",
        _ => "whole number",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keys;

    #[test]
    fn every_key_is_described() {
        assert!(reference().iter().all(|doc| doc.description.len() > 20 && doc.description.ends_with('.')));
        let find = |section, key| {
            reference().iter().find(|doc| (doc.section, doc.key) == (section, key)).expect("it is there")
        };
        let attempts = find("queue", "attempts");
        assert_eq!((attempts.kind, attempts.value, attempts.is_default), ("whole number", "3", true));
        assert_eq!((find("watch", "path").kind, find("watch", "path").is_default), ("path", false));
        assert_eq!(find("inbox", "stable_seconds").kind, "number");
        let defaults: Vec<&str> =
            reference().iter().filter(|doc| doc.section == "defaults").map(|doc| doc.key).collect();
        assert_eq!(defaults, keys::SETTINGS);
        assert_eq!(section_of("attempts"), Some("queue"));
        assert_eq!(section_of("stable_seconds"), None, "two sections have it");
        assert!(sections().contains(&"defaults") && !sections().contains(&"watch"));
    }
}
