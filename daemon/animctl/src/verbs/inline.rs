//! Pictures in terminals that show them: kitty's graphics protocol and iTerm2's inline images.

use std::fmt::Write as _;
use std::io::{self, IsTerminal, Write as _};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use image::ImageFormat;

/// Rows of the terminal that a picture takes.
const ROWS: u32 = 12;
/// The most columns.
const COLUMNS: u32 = 60;
/// The longest piece of a picture that kitty takes at a time.
const CHUNK: usize = 4096;
/// The largest picture that is shown, in pixels: previews are small.
const MAX_PIXELS: u32 = 1 << 21;

/// A protocol for pictures in a terminal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// Sends pixels in escape codes; for kitty, Ghostty and Konsole.
    Kitty,
    /// Sends the file itself in an escape code; for iTerm2 and `WezTerm`.
    Iterm,
}

impl Protocol {
    /// Returns the protocol by the variables that terminals set; `None` in a multiplexer, which does not pass pictures
    /// on.
    fn detect(var: impl Fn(&str) -> Option<String>) -> Option<Self> {
        let is = |name: &str, value: &str| var(name).is_some_and(|v| v == value);
        if var("TMUX").is_some() || var("STY").is_some() || is("TERM", "dumb") {
            return None;
        }
        let kitty = var("KITTY_WINDOW_ID").is_some()
            || var("KONSOLE_VERSION").is_some()
            || is("TERM", "xterm-kitty")
            || is("TERM", "xterm-ghostty")
            || is("TERM_PROGRAM", "ghostty");
        let iterm = ["iTerm.app", "WezTerm"].iter().any(|name| is("TERM_PROGRAM", name))
            || is("LC_TERMINAL", "iTerm2");
        match (kitty, iterm) {
            (true, _) => Some(Self::Kitty),
            (_, true) => Some(Self::Iterm),
            _ => None,
        }
    }
}

/// A place on the terminal for one picture after another.
pub struct Screen {
    protocol: Protocol,
    /// Whether a picture is already shown, above the cursor.
    shown: bool,
}

impl Screen {
    /// Returns the protocol of the terminal that standard error is; `None` where it is none, or one without pictures.
    pub fn of_terminal() -> Option<Self> {
        let protocol = Protocol::detect(|name| std::env::var(name).ok())?;
        io::stderr().is_terminal().then_some(Self { protocol, shown: false })
    }

    /// Shows a JPEG in place of the previous one; does nothing if it cannot be decoded.
    pub fn show(&mut self, jpeg: &[u8]) {
        let Some(text) = draw(self.protocol, jpeg) else { return };
        let mut codes = String::new();
        if self.shown {
            _ = write!(codes, "\x1b[{ROWS}A\r");
        } else {
            // Makes room first, so that drawing does not scroll.
            codes.push_str(&"\n".repeat(ROWS as usize));
            _ = write!(codes, "\x1b[{ROWS}A\r");
            self.shown = true;
        }
        _ = write!(codes, "\x1b7{text}\x1b8\x1b[{ROWS}B\r");
        let mut terminal = io::stderr().lock();
        _ = terminal.write_all(codes.as_bytes()).and_then(|()| terminal.flush());
    }
}

/// Returns the escape codes for a picture at the cursor.
fn draw(protocol: Protocol, jpeg: &[u8]) -> Option<String> {
    let picture = image::load_from_memory_with_format(jpeg, ImageFormat::Jpeg).ok()?.into_rgb8();
    let (width, height) = picture.dimensions();
    if width == 0 || height == 0 || width.saturating_mul(height) > MAX_PIXELS {
        return None;
    }
    // A cell is about twice as high as it is wide.
    let columns = (2 * ROWS * width / height).clamp(1, COLUMNS);
    Some(match protocol {
        Protocol::Iterm => format!(
            "\x1b]1337;File=inline=1;size={};width={columns};height={ROWS};preserveAspectRatio=1:{}\x07",
            jpeg.len(),
            BASE64_STANDARD.encode(jpeg)
        ),
        Protocol::Kitty => {
            let data = BASE64_STANDARD.encode(picture.as_raw());
            let mut codes = String::new();
            let count = data.len().div_ceil(CHUNK);
            for (n, chunk) in data.as_bytes().chunks(CHUNK).enumerate() {
                // The same id and placement replace the previous picture.
                let head = match n {
                    0 => format!("a=T,q=2,C=1,i=9471,p=1,f=24,s={width},v={height},c={columns},r={ROWS},"),
                    _ => String::new(),
                };
                let more = u8::from(n + 1 < count);
                // Base64 is ASCII.
                _ = write!(codes, "\x1b_G{head}m={more};{}\x1b\\", String::from_utf8_lossy(chunk));
            }
            codes
        }
    })
}

#[cfg(test)]
mod tests {
    use image::{ExtendedColorType, codecs::jpeg::JpegEncoder};

    use super::*;

    fn detect(vars: &[(&str, &str)]) -> Option<Protocol> {
        Protocol::detect(|name| vars.iter().find(|(n, _)| *n == name).map(|(_, v)| (*v).to_owned()))
    }

    #[test]
    fn only_terminals_that_show_pictures_get_them() {
        assert_eq!(detect(&[("TERM", "xterm-kitty")]), Some(Protocol::Kitty));
        assert_eq!(detect(&[("TERM_PROGRAM", "WezTerm")]), Some(Protocol::Iterm));
        assert_eq!(detect(&[("TERM", "xterm-256color")]), None);
        assert_eq!(detect(&[("TERM", "xterm-kitty"), ("TMUX", "/tmp/x")]), None);
    }

    #[test]
    fn a_picture_is_sent_whole() -> Result<(), Box<dyn std::error::Error>> {
        let mut jpeg = Vec::new();
        JpegEncoder::new(&mut jpeg).encode(&[128; 64 * 32 * 3], 64, 32, ExtendedColorType::Rgb8)?;
        let kitty = draw(Protocol::Kitty, &jpeg).ok_or("no picture")?;
        assert!(kitty.starts_with("\x1b_Ga=T,") && kitty.contains("s=64,v=32,c=48,"), "{kitty:?}");
        let parts: Vec<&str> = kitty.split("\x1b\\").filter(|part| !part.is_empty()).collect();
        assert_eq!(parts.len(), 2, "8192 characters in pieces of 4096");
        assert!(parts[0].contains("m=1;") && parts[1].starts_with("\x1b_Gm=0;"));
        let data: String =
            parts.iter().filter_map(|part| part.split_once(';')).map(|(_, data)| data).collect();
        assert_eq!(BASE64_STANDARD.decode(data)?.len(), 64 * 32 * 3);
        let iterm = draw(Protocol::Iterm, &jpeg).ok_or("no picture")?;
        assert!(iterm.starts_with("\x1b]1337;File=inline=1;") && iterm.ends_with('\x07'));
        assert_eq!(draw(Protocol::Kitty, b"no picture"), None);
        Ok(())
    }
}
