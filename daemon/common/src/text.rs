//! The one gate for text. Input is decoded, and refused with a sentence where it is not text. Output for the bus, JSON
//! or a page is a [`Text`], which holds nothing that these cannot carry.
//!
//! No D-Bus string may hold U+0000; a bus cuts a program off that sends one. Other control characters are no text
//! either: they move a terminal's cursor and break lines of tables.

use std::borrow::Cow;
use std::ffi::OsStr;
use std::fmt;
use std::ops::Deref;
use std::os::unix::ffi::OsStrExt;

use animd_protocol::request::{Request, Settings};
use zbus::{Signature, Type, Variant};

/// Text without control characters other than the line feed and the tab, which the bus, JSON and pages carry unchanged.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Text(String);

impl Text {
    /// Returns the text itself.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Each character that no text holds becomes U+FFFD, and the line ends of other systems become line feeds.
impl From<String> for Text {
    fn from(text: String) -> Self {
        if text.chars().all(is_text) {
            return Self(text);
        }
        let unix = unix_lines(&text);
        Self(unix.chars().map(|c| if is_text(c) { c } else { char::REPLACEMENT_CHARACTER }).collect())
    }
}

impl From<&str> for Text {
    fn from(text: &str) -> Self {
        text.to_owned().into()
    }
}

impl From<Text> for String {
    fn from(text: Text) -> Self {
        text.0
    }
}

impl From<Text> for Variant<'_> {
    fn from(text: Text) -> Self {
        text.0.into()
    }
}

impl Type for Text {
    const SIGNATURE: &'static Signature = &Signature::Str;
}

impl Deref for Text {
    type Target = str;

    fn deref(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Text {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

fn is_text(c: char) -> bool {
    !c.is_control() || c == '\n' || c == '\t'
}

/// Returns whether a character turns the direction of the text after it, so that a terminal shows it in another order.
pub fn turns_text(c: char) -> bool {
    matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// Returns text for a terminal, whose order nothing in it turns: such characters are written as JSON escapes them, which means
/// the same where the text is JSON.
pub fn harmless(text: &str) -> Cow<'_, str> {
    if !text.contains(turns_text) {
        return text.into();
    }
    let escaped = |c: char| if turns_text(c) { format!("\\u{:04x}", u32::from(c)) } else { c.into() };
    text.chars().map(escaped).collect::<String>().into()
}

/// Returns the text with line feeds for the line ends of Windows and of old Macs.
fn unix_lines(text: &str) -> String {
    text.replace("\r\n", "\n").replace('\r', "\n")
}

/// Why bytes or characters are not text, as the end of a sentence whose beginning names their place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NoText {
    /// The line, from 1 on, where one can be named.
    pub line: Option<usize>,
    /// What is wrong, and what to do.
    pub why: String,
}

impl NoText {
    fn whole(why: impl Into<String>) -> Self {
        Self { line: None, why: why.into() }
    }

    /// Returns the sentence: `photo.txt:2: it is ...`.
    pub fn of(&self, file: &str) -> String {
        match self.line {
            Some(line) => format!("{file}:{line}: {}", self.why),
            None => format!("{file}: {}", self.why),
        }
    }
}

/// Returns the text of a small file that a person wrote: UTF-8, with or without a byte-order mark, or UTF-16 with
/// one, as Windows programs save it.
///
/// # Errors
/// [`NoText`] for everything else, and for text with U+0000.
pub fn decode(bytes: Vec<u8>) -> Result<String, NoText> {
    let text = match *bytes {
        [0xff, 0xfe, 0, 0, ..] | [0, 0, 0xfe, 0xff, ..] => {
            return Err(NoText::whole("it is UTF-32; save it as UTF-8"));
        }
        [0xff, 0xfe, ref units @ ..] => utf_16(units, u16::from_le_bytes)?,
        [0xfe, 0xff, ref units @ ..] => utf_16(units, u16::from_be_bytes)?,
        _ if looks_like_utf_16(&bytes) => {
            return Err(NoText::whole("it looks like UTF-16 without a byte-order mark; save it as UTF-8"));
        }
        _ => {
            let mut text = String::from_utf8(bytes).map_err(|e| {
                let valid = &e.as_bytes()[..e.utf8_error().valid_up_to()];
                NoText { line: Some(line_of(valid)), why: "it is not valid UTF-8; save it as UTF-8".into() }
            })?;
            if text.starts_with('\u{feff}') {
                text.drain(..'\u{feff}'.len_utf8());
            }
            text
        }
    };
    match text.find('\0') {
        Some(at) => Err(NoText {
            line: Some(line_of(&text.as_bytes()[..at])),
            why: "it has a zero byte (U+0000), which no text has; save it as plain text in UTF-8".into(),
        }),
        None => Ok(text),
    }
}

fn utf_16(bytes: &[u8], unit: fn([u8; 2]) -> u16) -> Result<String, NoText> {
    let damaged =
        || NoText::whole("it begins as UTF-16, and what follows is not valid UTF-16; save it as UTF-8");
    let (units, rest) = bytes.as_chunks::<2>();
    let units: Vec<u16> = units.iter().copied().map(unit).collect();
    if !rest.is_empty() {
        return Err(damaged());
    }
    String::from_utf16(&units).map_err(|_| damaged())
}

/// Returns whether every other byte is zero, or most are, and none of the others: Latin letters in UTF-16.
fn looks_like_utf_16(bytes: &[u8]) -> bool {
    let zeros = |first: usize| bytes.iter().skip(first).step_by(2).filter(|byte| **byte == 0).count();
    let (even, odd) = (zeros(0), zeros(1));
    even.min(odd) == 0 && even.max(odd) * 4 > bytes.len()
}

fn line_of(before: &[u8]) -> usize {
    before.split(|byte| *byte == b'\n').count()
}

/// Returns a prompt with line feeds for its line ends. U+0080 to U+009F stay: they are quotes and dashes of
/// Windows-1252 that went through Latin-1, and the model's own cleaning repairs them.
///
/// # Errors
/// [`NoText`] for any other control character but a tab.
pub fn prompt(text: &str) -> Result<String, NoText> {
    let text = unix_lines(text);
    let refused = |c: char| !is_text(c) && !('\u{80}'..='\u{9f}').contains(&c);
    let Some((at, c)) = text.char_indices().find(|(_, c)| refused(*c)) else { return Ok(text) };
    let remedy = match c {
        // Half of a letter in UTF-16.
        '\0' => "type the text anew, or save its file as UTF-8",
        _ => "remove it",
    };
    let why = format!("it has the control character U+{:04X}; {remedy}", u32::from(c));
    Err(NoText { line: Some(line_of(&text.as_bytes()[..at])), why })
}

/// Returns settings from outside with their prompts checked by [`prompt`].
///
/// # Errors
/// A sentence that names the key.
pub fn settings(mut settings: Settings) -> Result<Settings, String> {
    let prompts = [("prompt", &mut settings.prompt), ("negative_prompt", &mut settings.negative_prompt)];
    for (key, text) in prompts {
        let Some(text) = text else { continue };
        *text = prompt(text).map_err(|e| match e.line {
            Some(line) if text.contains('\n') => format!("`{key}`, line {line}: {}", e.why),
            _ => format!("`{key}`: {}", e.why),
        })?;
    }
    Ok(settings)
}

/// Returns a request that was stored by a version without this gate, with U+0000 removed. The model's cleaning of
/// prompts drops U+0000 as well, so the video stays the same.
pub fn old_request(mut request: Request) -> Request {
    for text in [&mut request.prompt, &mut request.negative_prompt] {
        text.retain(|c| c != '\0');
    }
    request
}

/// What is wrong with a name or a path that has U+0000, as the end of a sentence.
const ZERO: &str = "it has a zero byte (U+0000), which no name and no path has; remove it";

/// Refuses a name, a path or a key with U+0000. Everything else is escaped where it is shown.
///
/// # Errors
/// The end of a sentence that begins with what it is.
pub fn without_zero(text: impl AsRef<OsStr>) -> Result<(), &'static str> {
    match text.as_ref().as_bytes().contains(&0) {
        true => Err(ZERO),
        false => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn utf_16_le(text: &str) -> Vec<u8> {
        text.encode_utf16().flat_map(u16::to_le_bytes).collect()
    }

    #[test]
    fn text_of_windows_programs_is_read() {
        let text = "leaves fall\r\n葉 🍂";
        for bytes in [
            text.as_bytes().to_vec(),
            [b"\xef\xbb\xbf", text.as_bytes()].concat(),
            [&b"\xff\xfe"[..], &utf_16_le(text)].concat(),
            [0xfe, 0xff].into_iter().chain(text.encode_utf16().flat_map(u16::to_be_bytes)).collect(),
        ] {
            assert_eq!(decode(bytes).as_deref(), Ok(text));
        }
        assert_eq!(decode(Vec::new()).as_deref(), Ok(""));
        assert_eq!(decode(b"\xff\xfe".to_vec()).as_deref(), Ok(""));
    }

    #[test]
    fn what_is_no_text_is_refused_with_a_remedy() {
        let refused = |bytes: &[u8]| decode(bytes.to_vec()).expect_err("no text").of("photo.txt");
        let big: Vec<u8> = "leaves fall\r\n".encode_utf16().flat_map(u16::to_be_bytes).collect();
        for bytes in [&utf_16_le("leaves fall\r\n")[..], &utf_16_le("ab"), &utf_16_le("été 葉 falls"), &big]
        {
            assert_eq!(
                refused(bytes),
                "photo.txt: it looks like UTF-16 without a byte-order mark; save it as UTF-8"
            );
        }
        assert_eq!(
            refused(b"one\ntwo\0three four"),
            "photo.txt:2: it has a zero byte (U+0000), which no text has; save it as plain text in UTF-8"
        );
        assert_eq!(refused(b"one\ntwo \xff"), "photo.txt:2: it is not valid UTF-8; save it as UTF-8");
        assert_eq!(
            refused(b"\xff\xfea\0\0\0"),
            "photo.txt:1: it has a zero byte (U+0000), which no text has; save it as plain text in UTF-8"
        );
        assert_eq!(refused(b"\xff\xfe\0\0a\0\0\0"), "photo.txt: it is UTF-32; save it as UTF-8");
        for damaged in [&b"\xff\xfea"[..], b"\xff\xfe\0\xd8a\0", b"\xfe\xff\xdc\0"] {
            assert!(refused(damaged).contains("what follows is not valid UTF-16"), "{damaged:?}");
        }
    }

    #[test]
    fn prompts_have_no_control_characters_but_line_ends_and_tabs() {
        assert_eq!(prompt("one\r\ntwo\rthree\n\tfour\n").as_deref(), Ok("one\ntwo\nthree\n\tfour\n"));
        // Nothing else is touched: quotes, spaces and what is not assigned are for the model's own cleaning.
        let odd = "\u{feff}“葉” \u{a0}\u{ad}\u{200b}\u{2028}\u{202e}\u{fffd}\u{ffff}\u{e000}\u{10ffff}";
        assert_eq!(prompt(odd).as_deref(), Ok(odd));
        assert_eq!(prompt("a child\u{92}s kite").as_deref(), Ok("a child\u{92}s kite"));
        for c in (0..0x20).chain(0x7f..0x80).filter_map(char::from_u32) {
            let refused = prompt(&format!("one\r\nt{c}wo"));
            assert_eq!(refused.is_err(), !"\t\n\r".contains(c), "{c:?}");
            if let Err(e) = refused {
                assert_eq!(e.line, Some(2));
                assert!(e.why.starts_with(&format!("it has the control character U+{:04X}; ", u32::from(c))));
            }
        }
        let refused = |toml: &str| settings(toml::from_str(toml).expect("TOML")).expect_err("no text");
        assert_eq!(
            refused("prompt = \"a\\u0007\""),
            "`prompt`: it has the control character U+0007; remove it"
        );
        assert_eq!(
            refused("negative_prompt = \"a\\nb\\u0000\""),
            "`negative_prompt`, line 2: it has the control character U+0000; type the text anew, or save its file as UTF-8"
        );
    }

    #[test]
    fn whatever_it_is_made_of_text_can_be_carried() {
        let text = Text::from("a\0b\x1b[2Jc\u{85}d\x7fe\r\nf\tg\rh");
        assert_eq!(text.as_str(), "a\u{fffd}b\u{fffd}[2Jc\u{fffd}d\u{fffd}e\nf\tg\nh");
        assert_eq!(Text::from("größe, 葉"), Text("größe, 葉".into()));
    }

    #[test]
    fn a_row_with_a_zero_byte_stays_the_same_job() {
        let request = Settings { prompt: Some("l\0e\0a\0f\0 \x1b".into()), ..Settings::default() };
        let request = request.resolve(|| 0).expect("a request");
        assert_eq!(old_request(request).prompt, "leaf \x1b");
    }

    #[test]
    fn nothing_turns_the_text_of_a_terminal() {
        let name = "a\u{202e}gnp.exe \u{2067}x\u{2069} \u{200f}שלום e\u{301}";
        assert_eq!(harmless(name), "a\\u202egnp.exe \\u2067x\\u2069 \u{200f}שלום e\u{301}");
        let json = serde_json::json!({"name": name});
        assert_eq!(serde_json::from_str::<serde_json::Value>(&harmless(&json.to_string())).ok(), Some(json));
    }
}
