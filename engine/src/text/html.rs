//! HTML character references, by the rules of Python's `html.unescape` and by `ftfy`'s stricter ones.

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::LazyLock;

use htmlize::ENTITIES;
use regex::{Captures, Regex};

use super::codepages::{CP1252, PAGES};

/// Replaces all character references of HTML5, with or without a semicolon, as Python's `html.unescape` does: a name is
/// cut to the longest one known, and a number that is no character is removed.
pub(super) fn unescape(text: &str) -> Cow<'_, str> {
    replace_references(text, |rest| {
        if let Some((number, length)) = numeric(rest) {
            return Some((character(number).map(String::from).unwrap_or_default(), length));
        }
        // A name ends before any of these characters, or after 32 characters.
        let name = rest.char_indices().skip(1).take(32);
        let ends = |c| matches!(c, '\t' | '\n' | '\x0c' | ' ' | '<' | '&' | '#' | ';');
        let mut length = name.take_while(|&(_, c)| !ends(c)).last().map_or(1, |(i, c)| i + c.len_utf8());
        if length > 1 && rest[length..].starts_with(';') {
            length += 1;
        }
        (3..=length).rev().find_map(|cut| Some((entity(rest.get(..cut)?)?.to_owned(), cut)))
    })
}

/// Replaces only what is surely meant as a reference: it ends with a semicolon, and its full name is known, or is known
/// in small letters where it is written in capitals.
pub(super) fn unescape_sure(text: &str) -> Cow<'_, str> {
    replace_references(text, |rest| {
        let body = if rest[1..].starts_with('#') { 2 } else { 1 };
        let name = rest[body..].bytes().take_while(u8::is_ascii_alphanumeric).count();
        let length = body + name + 1;
        if !(1..=24).contains(&name) || rest.as_bytes().get(length - 1) != Some(&b';') {
            return None;
        }
        let whole = &rest[..length];
        if body == 1 {
            let known = entity(whole).map(str::to_owned);
            return Some((known.or_else(|| CAPITALS.get(whole).cloned())?, length));
        }
        let (number, end) = numeric(whole)?;
        let c = character(number).filter(|_| end == length);
        match c {
            Some(';') => None,
            Some(c) => Some((c.into(), length)),
            None if end == length => Some((String::new(), length)),
            None => None,
        }
    })
}

/// Shortens `&amp;amp;amp;...` to sixteen levels.
///
/// [`unescape_sure`] takes one level off at a time, with all other fixes in between. After sixteen rounds those fixes
/// have settled as they would after thousands, which would take seconds.
pub(super) fn shorten_nested(text: &str) -> Cow<'_, str> {
    const LEVELS: usize = 16;
    static NESTED: LazyLock<Regex> = LazyLock::new(|| {
        let level = "(?:(?:amp|AMP|#0{0,16}38|#[xX]0{0,16}26);)";
        Regex::new(&format!("&{level}{{{LEVELS},}}")).expect("a constant, and tests compile it")
    });
    NESTED.replace_all(text, |found: &Captures| {
        let levels: Vec<&str> = found[0][1..].split_inclusive(';').collect();
        format!("&{}", levels[levels.len() - LEVELS..].concat())
    })
}

/// The names in capitals that mean the capitals of what the small letters mean: `&EACUTE;` is `É`.
static CAPITALS: LazyLock<HashMap<String, String>> = LazyLock::new(|| {
    let mut names = HashMap::new();
    for (name, value) in ENTITIES.entries() {
        let (Ok(name), Ok(value)) = (str::from_utf8(name), str::from_utf8(value)) else { continue };
        let capitals = name.to_ascii_uppercase();
        let small = name.to_ascii_lowercase() == name && name.ends_with(';');
        if small && unescape(&capitals) == capitals {
            names.insert(capitals, value.to_uppercase());
        }
    }
    names
});

fn entity(reference: &str) -> Option<&'static str> {
    ENTITIES.get(reference.as_bytes()).and_then(|value| str::from_utf8(value).ok())
}

/// Calls `replacement` at every `&`; it returns the text to put there, and how many bytes that replaces.
fn replace_references(text: &str, replacement: impl Fn(&str) -> Option<(String, usize)>) -> Cow<'_, str> {
    let mut out = String::new();
    let (mut copied, mut at) = (0, 0);
    while let Some(ampersand) = text[at..].find('&') {
        at += ampersand;
        if let Some((value, length)) = replacement(&text[at..]) {
            out.push_str(&text[copied..at]);
            out.push_str(&value);
            at += length;
            copied = at;
        } else {
            at += 1;
        }
    }
    if copied == 0 {
        return Cow::Borrowed(text);
    }
    out.push_str(&text[copied..]);
    Cow::Owned(out)
}

/// Returns the number of a reference like `&#233;` or `&#xe9`, and the reference's length in bytes.
fn numeric(rest: &str) -> Option<(u32, usize)> {
    let digits = rest.strip_prefix("&#")?;
    let (digits, radix, start) = match digits.strip_prefix(['x', 'X']) {
        Some(digits) => (digits, 16, 3),
        None => (digits, 10, 2),
    };
    let count = digits.chars().take_while(|c| c.is_digit(radix)).count();
    if count == 0 {
        return None;
    }
    // A number too large for 32 bits is not a character either.
    let number = u32::from_str_radix(&digits[..count], radix).unwrap_or(u32::MAX);
    Some((number, start + count + usize::from(digits[count..].starts_with(';'))))
}

/// Returns the character of a numeric reference, or `None` for control characters and other code points that are no
/// characters.
fn character(number: u32) -> Option<char> {
    match number {
        0 => Some('\u{fffd}'),
        // Browsers read the C1 controls as windows-1252.
        0x80..=0x9f => Some(PAGES[CP1252].upper(number as u8)),
        0x01..=0x08 | 0x0b | 0x0e..=0x1f | 0x7f | 0xfdd0..=0xfdef => None,
        _ if number <= 0x10_ffff && number & 0xfffe == 0xfffe => None,
        _ => Some(char::from_u32(number).unwrap_or('\u{fffd}')),
    }
}
