//! Detects and repairs text that was read in the wrong encoding.
//!
//! The rules are those of `ftfy` 6.3.1 (copyright Robyn Speer, Apache-2.0, <https://ftfy.readthedocs.io>), which cleaned the
//! prompts that the model was trained with; the code is animd's own.

use std::borrow::Cow;
use std::sync::LazyLock;

use regex::{Regex, bytes};

use super::codepages::{CP1252, PAGES};

/// Undoes all layers of wrong decoding that it finds.
pub(super) fn fix_encoding(text: &str) -> Cow<'_, str> {
    let mut text = Cow::Borrowed(text);
    while let Some(fixed) = fix_one_layer(&text).filter(|fixed| *fixed != text) {
        text = Cow::Owned(fixed);
    }
    text
}

/// Reads C1 controls as windows-1252, as browsers do.
pub(super) fn fix_c1_controls(text: &str) -> String {
    text.chars().map(|c| if is_c1(c) { PAGES[CP1252].upper(c as u8) } else { c }).collect()
}

/// Returns whether this is one of the C1 control characters.
pub(super) fn is_c1(c: char) -> bool {
    matches!(c, '\u{80}'..='\u{9f}')
}

fn fix_one_layer(text: &str) -> Option<String> {
    if text.is_ascii() || !is_bad(text) {
        return None;
    }
    // If encoding the text in a single-byte encoding gives UTF-8, then the text was UTF-8 that was read in that
    // encoding.
    for page in PAGES.iter() {
        let Some(mut bytes) = page.encode(text) else { continue };
        if !page.mac && ALTERED_UTF8.is_match(&bytes) {
            bytes = restore_byte_a0(&bytes);
        }
        if page.sloppy {
            bytes = LOSSY_UTF8.replace_all(&bytes, "\u{fffd}".as_bytes()).into_owned();
        }
        if let Some(fixed) = decode_utf8_variants(bytes) {
            return Some(fixed);
        }
    }
    let fixed = decode_inconsistent_utf8(text);
    if fixed != text {
        return Some(fixed);
    }
    // C1 controls are left. Those without a meaning in windows-1252 stay, so both of ftfy's ways agree.
    text.chars().any(is_c1).then(|| fix_c1_controls(text))
}

/// Decodes UTF-8 and the variants that occur: surrogate pairs as two sequences of three bytes, U+0000 as two bytes.
fn decode_utf8_variants(bytes: Vec<u8>) -> Option<String> {
    if !bytes.contains(&0xed) && !bytes.contains(&0xc0) {
        return String::from_utf8(bytes).ok();
    }
    let mut out = String::new();
    let mut rest = &bytes[..];
    while let Some(special) = rest.windows(2).position(|w| w[0] == 0xc0 || (w[0] == 0xed && w[1] >= 0xa0)) {
        out.push_str(str::from_utf8(&rest[..special]).ok()?);
        rest = &rest[special..];
        // A newline at the end of the text counts as a last byte: the original matches `$`, which allows a newline
        // there.
        let (c, length) = match *rest {
            [0xc0, 0x80, ..] | [0xc0, b'\n'] => ('\0', 2),
            [0xed, b @ 0xa0..=0xaf, c @ 0x80..=0xbf, 0xed, e @ 0xb0..=0xbf, f, ref end @ ..]
                if matches!(f, 0x80..=0xbf) || (f == b'\n' && end.is_empty()) =>
            {
                let bits = [(b & 0x0f, 16), (c & 0x3f, 10), (e & 0x0f, 6), (f & 0x3f, 0)];
                let offset: u32 = bits.iter().map(|&(bits, shift)| u32::from(bits) << shift).sum();
                (char::from_u32(0x10000 + offset)?, 6)
            }
            _ => return None,
        };
        out.push(c);
        rest = &rest[length..];
    }
    out.push_str(str::from_utf8(rest).ok()?);
    Some(out)
}

/// Matches UTF-8 sequences with a space where a no-break space (0xA0) belongs, but only those that give likely
/// characters.
static ALTERED_UTF8: LazyLock<bytes::Regex> = LazyLock::new(|| {
    bytes_regex(&[
        r"[\xc2\xc3\xc5\xce\xd0\xd9] ",
        r"[\xe2\xe3] [\x80-\x84\x86-\x9f\xa1-\xbf]",
        r"[\xe0-\xe3][\x80-\x84\x86-\x9f\xa1-\xbf] ",
        r"\xf0 [\x80-\xbf]{2}",
        r"\xf0[\x80-\xbf] [\x80-\xbf]",
        r"\xf0[\x80-\xbf]{2} ",
    ])
});

/// Matches UTF-8 and CESU-8 sequences with a lost byte: 0x1A stands for U+FFFD, and `?` can stand for it once.
static LOSSY_UTF8: LazyLock<bytes::Regex> = LazyLock::new(|| {
    bytes_regex(&[
        r"[\xc2-\xdf]\x1a",
        r"[\xc2\xc3]\?",
        r"\xed[\xa0-\xaf][\x1a?]\xed[\xb0-\xbf][\x1a?\x80-\xbf]",
        r"\xed[\xa0-\xaf][\x1a?\x80-\xbf]\xed[\xb0-\xbf][\x1a?]",
        r"[\xe0-\xef][\x1a?][\x1a\x80-\xbf]",
        r"[\xe0-\xef][\x1a\x80-\xbf][\x1a?]",
        r"[\xf0-\xf4][\x1a?][\x1a\x80-\xbf]{2}",
        r"[\xf0-\xf4][\x1a\x80-\xbf][\x1a?][\x1a\x80-\xbf]",
        r"[\xf0-\xf4][\x1a\x80-\xbf]{2}[\x1a?]",
        r"\x1a",
    ])
});

fn bytes_regex(alternatives: &[&str]) -> bytes::Regex {
    let pattern = format!("(?-u:{})", alternatives.join("|"));
    bytes::Regex::new(&pattern).expect("the patterns are constants, and tests compile them")
}

/// Puts 0xA0 where a space has taken its place in a UTF-8 sequence.
fn restore_byte_a0(bytes: &[u8]) -> Vec<u8> {
    // `Ã ` is mostly the word `à`, whose own space was lost, except at the beginning of Portuguese `àquele`, `àquilo`,
    // `às`.
    let mut spaced = Vec::with_capacity(bytes.len());
    for (i, &byte) in bytes.iter().enumerate() {
        spaced.push(byte);
        let joined: [&[u8]; 5] = [b" ", b"quele", b"quela", b"quilo", b"s "];
        if let [0xc3, b' ', next @ ..] = &bytes[i..]
            && !joined.iter().any(|word| next.starts_with(word))
        {
            spaced.push(0xa0);
        }
    }
    let restore =
        |found: &bytes::Captures| found[0].iter().map(|&b| if b == b' ' { 0xa0 } else { b }).collect();
    let restore: &dyn Fn(&bytes::Captures) -> Vec<u8> = &restore;
    ALTERED_UTF8.replace_all(&spaced, restore).into_owned()
}

/// The parts that a character can play in UTF-8 that was read in a single-byte encoding.
mod clue {
    pub const FIRST_OF_2: u8 = 1;
    pub const FIRST_OF_3: u8 = 2;
    pub const FIRST_OF_4: u8 = 4;
    pub const CONTINUATION: u8 = 8;
    /// A continuation that is not common punctuation.
    pub const STRICT: u8 = 16;
}

/// Characters and their clues, sorted: all characters that Latin-1 and the six Windows encodings give for these bytes.
static CLUES: LazyLock<Vec<(char, u8)>> = LazyLock::new(|| {
    // Unassigned Windows bytes are C1 controls here as they are in Latin-1, so they add nothing.
    let mut clues = std::collections::BTreeMap::<char, u8>::new();
    for page in &PAGES[..=6] {
        for byte in 0x80..=0xf3 {
            let c = page.upper(byte);
            *clues.entry(c).or_default() |= match byte {
                0x80..=0xbf if matches!(c, '\u{2010}'..='\u{201f}' | '•' | '…') => clue::CONTINUATION,
                0x80..=0xbf => clue::CONTINUATION | clue::STRICT,
                0xc2..=0xdf => clue::FIRST_OF_2,
                0xe0..=0xef => clue::FIRST_OF_3,
                // U+10000 to U+3FFFF, and the tag characters.
                0xf0 | 0xf3 => clue::FIRST_OF_4,
                _ => 0,
            };
        }
    }
    // The space may have been a no-break space.
    clues.insert(' ', clue::CONTINUATION);
    clues.into_iter().collect()
});

fn clues(c: char) -> u8 {
    CLUES.binary_search_by_key(&c, |entry| entry.0).map_or(0, |i| CLUES[i].1)
}

/// Returns the length in bytes of a run of what looks like UTF-8 sequences at the start of the text.
fn utf8_run(text: &str) -> usize {
    let mut length = 0;
    loop {
        let mut characters = text[length..].char_indices();
        let Some((_, first)) = characters.next() else { return length };
        let first = clues(first);
        let mut continuations = 0;
        let mut ends = [0; 4];
        for (i, c) in characters.take(3) {
            if clues(c) & clue::CONTINUATION == 0 {
                break;
            }
            continuations += 1;
            ends[continuations] = i + c.len_utf8();
        }
        let kinds = [(clue::FIRST_OF_2, 1), (clue::FIRST_OF_3, 2), (clue::FIRST_OF_4, 3)];
        match kinds.iter().find(|&&(kind, needed)| first & kind != 0 && continuations >= needed) {
            Some(&(_, needed)) => length += ends[needed],
            None => return length,
        }
    }
}

/// Fixes each run of broken UTF-8 in other text separately.
fn decode_inconsistent_utf8(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    let mut after_continuation = false;
    while let Some(c) = rest.chars().next() {
        // A run after a continuation would be the end of a larger broken run.
        let run = if after_continuation { 0 } else { utf8_run(rest) };
        let (piece, after) = rest.split_at(run.max(c.len_utf8()));
        // The run must be shorter than the text, so that the recursion ends.
        if run > 0 && piece.len() < text.len() && is_bad(piece) {
            out.push_str(&fix_encoding(piece));
        } else {
            out.push_str(piece);
        }
        after_continuation = piece.chars().next_back().is_some_and(|c| clues(c) & clue::STRICT != 0);
        rest = after;
    }
    out
}

/// Returns whether the text has neighbouring characters that hardly ever meet except in text read in the wrong
/// encoding.
fn is_bad(text: &str) -> bool {
    BADNESS.is_match(text)
}

static BADNESS: LazyLock<Regex> = LazyLock::new(|| {
    let rules: Vec<String> = RULES.iter().map(|rule| expand_categories(rule)).collect();
    Regex::new(&rules.join("|")).expect("the patterns are constants, and tests compile them")
});

/// Turns each `<LU:xy>` of a rule into a class of the categories `L` and `U` and the characters `x` and `y`.
fn expand_categories(rule: &str) -> String {
    let mut out = String::new();
    let mut class = None::<bool>;
    for c in rule.chars() {
        match (c, class) {
            ('<', None) => {
                out.push('[');
                class = Some(true);
            }
            ('>', Some(_)) => {
                out.push(']');
                class = None;
            }
            (':', Some(true)) => class = Some(false),
            (name, Some(true)) => {
                out.extend(
                    CATEGORIES.iter().filter(|category| category.0 == name).map(|category| category.1),
                );
            }
            (c, _) => out.push(c),
        }
    }
    out
}

/// The characters that UTF-8 in a wrong encoding shows, by their other uses.
const CATEGORIES: [(char, &str); 14] = [
    // Common anywhere.
    ('c', "\u{a0}\u{ad}´·–—―’…"),
    // C1 controls.
    ('C', "\u{80}-\u{9f}"),
    // Hardly used otherwise.
    ('b', "¤¦¨ª¬¯¸ºƒˆˇ˘˛˜†‡‰⌐◊\u{fffd}"),
    // Law.
    ('w', "§¶"),
    // Currency.
    ('m', "¢£¥₧€"),
    // Punctuation that starts something.
    ('s', "¡©«¿΄΅‘‚“„•‹\u{f8ff}"),
    // Punctuation that ends something.
    ('e', "®»˝”›™"),
    // Numbers and mathematics.
    ('n', "±²³µ¹¼½¾×÷⁄№∂∆∏∑√∞∩∫≈≠≡≤≥"),
    // Faces made of letters.
    ('k', "°Ò-ÖÙ-Üò-öø-üŌŐŪŲ"),
    // Accented capitals.
    ('U', "À-ÑØÜÝĀĂĄĆČĎĐĒĖĘĚĞĢĪİĶĹĻĽŁŃŅŇŒŘŚŞŠŢŤŮŰŸŹŻŽҐ"),
    // Accented small letters.
    ('L', "ß-ñüāăąćčďđēėęěğģīįķĺļľłœŕśşšťźżžґﬁﬂ"),
    // Capitals that end words in Greek, Cyrillic and Icelandic.
    ('A', "ÞΆΈΉΊΌΎΏΑ-ΫЁ-Я"),
    // Small letters that end words, likewise.
    ('a', "ά-ωа-џ"),
    // Box drawing, except for the single line, which faces have.
    ('x', "│┌┐┘├┤┬┼═-╬▀▄█▌▐-▓"),
];

/// The rules that give wrong encodings away.
const RULES: [&str; 37] = [
    "<C>",
    // Unlikely pairs, and some pairs that are unlikely before a third character.
    "<bLUxsemnw><b>",
    "[A-Za-z]<aA><b>",
    "<b><LUxsemnw>",
    "<Laxemn><U>",
    "<xemn><L>",
    "<Lxe><m>",
    r"[\s\x1c-\x1f]<U><m>",
    "<Ux><nw>",
    "<LUxme><s><n>",
    "<LUmnxw><e><s>",
    "<mnx><s>",
    "[a-z]<U><sm>",
    "<x><k>",
    "<LUmnsew><x>",
    "<x><e>",
    r"<LU><se>[\p{L}\p{N}_]",
    "[Œœ][^A-Za-z]",
    "<U>°",
    // Windows-1252: Latin-1 letters, Arabic, South Asian scripts.
    "[ÂÃÎÐ]<se:€œŠš¢£Ÿž\u{a0}\u{ad}®©°·»–—´>",
    "×[²³]",
    "(?:[ØÙ]<cmbns:ŸŠ®°µ»>){2}",
    "à[²µ¹¼½¾]",
    // MacRoman.
    "√[±∂†≠®™´≤≥¥µø]",
    "≈[°¢]",
    "‚Ä[ìîïòôúùû†°¢π]",
    "‚[âó][àä°ê]",
    // Windows-1251: U+2000 on; Latin-1 and Cyrillic; twice wrong.
    "вЂ",
    "[ВГРС]<Cbsem:°µ>[ВГРС]",
    "ГўВЂВ.[A-Za-z ]",
    // `à`, `á` and the no-break space in windows-1252, and after a no-break space has become a space.
    "Ã[\u{a0}¡]",
    r"[a-z][\s\x1c-\x1f]?[ÃÂ] ",
    "^[ÃÂ] ",
    "<e:a-z.,?!>Â<se: >",
    // Windows-1253.
    "β€[™\u{a0}Ά\u{ad}®°]",
    "[ΒΓΞΟ]<Cbsem:°>[ΒΓΞΟ]",
    // Windows-1257.
    "ā€",
];
