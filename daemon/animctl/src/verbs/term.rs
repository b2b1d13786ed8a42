//! The terminal: its width, whether it has colours and more than ASCII, and text that fits it.

use std::io::IsTerminal;

/// The width of a line where there is no terminal to ask.
pub const WIDTH: usize = 80;

/// The colours that words have; on a terminal without colours none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Color {
    Green,
    Red,
    Yellow,
    Blue,
}

/// Returns how many columns a line on standard output has.
pub fn width() -> usize {
    let asked = rustix::termios::tcgetwinsize(std::io::stdout()).ok().map(|size| usize::from(size.ws_col));
    asked.filter(|columns| *columns >= 40).unwrap_or(WIDTH)
}

fn is_set(name: &str) -> bool {
    std::env::var_os(name).is_some_and(|value| !value.is_empty())
}

/// Returns whether the terminal can only append lines.
pub fn is_dumb() -> bool {
    std::env::var_os("TERM").is_none_or(|term| term.is_empty() || term == "dumb")
}

/// Returns whether standard output shows colours.
pub fn has_color() -> bool {
    std::io::stdout().is_terminal() && allows_color()
}

/// Returns whether colours are wanted where there is a terminal.
pub fn allows_color() -> bool {
    !is_dumb() && !is_set("NO_COLOR")
}

/// Returns whether the locale's characters are UTF-8, so that the terminal shows more than ASCII.
pub fn has_utf8() -> bool {
    is_utf8(|name| std::env::var(name).ok())
}

fn is_utf8(var: impl Fn(&str) -> Option<String>) -> bool {
    let locale = ["LC_ALL", "LC_CTYPE", "LANG"].into_iter().filter_map(var).find(|value| !value.is_empty());
    let locale = locale.unwrap_or_default().to_ascii_lowercase();
    locale.contains("utf-8") || locale.contains("utf8")
}

/// Returns a text in a colour, where standard output shows colours.
pub fn paint(text: &str, color: Option<Color>) -> String {
    let Some(color) = color.filter(|_| has_color()) else { return text.to_owned() };
    let code = match color {
        Color::Red => 31,
        Color::Green => 32,
        Color::Yellow => 33,
        Color::Blue => 34,
    };
    format!("\x1b[{code}m{text}\x1b[0m")
}

/// Returns how many columns a text takes. Chinese, Japanese and Korean characters and most pictures take two.
pub fn columns(text: &str) -> usize {
    text.chars().map(column).sum()
}

fn column(c: char) -> usize {
    match u32::from(c) {
        0x0300..=0x036f | 0x200b..=0x200f | 0xfe00..=0xfe0f => 0,
        0x1100..=0x115f
        | 0x2e80..=0xa4cf
        | 0xac00..=0xd7a3
        | 0xf900..=0xfaff
        | 0xfe30..=0xfe6f
        | 0xff00..=0xff60
        | 0xffe0..=0xffe6
        | 0x1f300..=0x1faff
        | 0x20000..=0x3fffd => 2,
        _ => 1,
    }
}

/// Returns a text cut to so many columns, with three dots where something is missing.
pub fn shorten(text: &str, most: usize) -> String {
    if columns(text) <= most {
        return text.to_owned();
    }
    let dots = ".".repeat(most.min(3));
    let mut left = most - dots.len();
    let fits = |c: &char| {
        let fits = column(*c) <= left;
        left = left.saturating_sub(if fits { column(*c) } else { left });
        fits
    };
    let cut: String = text.chars().take_while(fits).collect();
    format!("{}{dots}", cut.trim_end())
}

/// Returns a text in lines of at most so many columns, broken between words, and within a word that is longer.
pub fn wrap(text: &str, most: usize) -> Vec<String> {
    let most = most.max(1);
    let mut lines = Vec::new();
    for paragraph in text.lines() {
        let mut line = String::new();
        for word in paragraph.split(' ') {
            if !line.is_empty() && columns(&line) + 1 + columns(word) > most {
                lines.push(std::mem::take(&mut line));
            }
            if !line.is_empty() {
                line.push(' ');
            }
            for c in word.chars() {
                if columns(&line) + column(c) > most {
                    lines.push(std::mem::take(&mut line));
                }
                line.push(c);
            }
        }
        lines.push(line);
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_fits_its_columns() {
        assert_eq!(shorten("a long name.png", 10), "a long...");
        assert_eq!(shorten("short", 10), "short");
        assert_eq!((shorten("二三四五六", 7), columns("二三é")), ("二三...".to_owned(), 5));
        assert_eq!(shorten("abc", 2), "..");
        assert_eq!(wrap("one two three", 8), ["one two", "three"]);
        assert_eq!(wrap("/a/very/long/path x", 8), ["/a/very/", "long/pat", "h x"]);
        assert_eq!(wrap("a\n\nb", 8), ["a", "", "b"]);
        assert_eq!(wrap("", 8), Vec::<String>::new());
        for text in ["二二二 二二二二二二二二 a", "xxxxxxxxxxxxxxxxxxxxxxxxxxx y zz"] {
            assert!(wrap(text, 7).iter().all(|line| columns(line) <= 7), "{text}");
        }
    }

    #[test]
    fn the_locale_says_what_characters_there_are() {
        let of = |vars: &[(&str, &str)]| {
            is_utf8(|name| vars.iter().find(|(n, _)| *n == name).map(|(_, v)| (*v).to_owned()))
        };
        assert!(of(&[("LANG", "de_DE.UTF-8")]) && of(&[("LC_ALL", "C.utf8"), ("LANG", "C")]));
        assert!(!of(&[("LC_ALL", "C"), ("LANG", "de_DE.UTF-8")]) && !of(&[]));
    }
}
