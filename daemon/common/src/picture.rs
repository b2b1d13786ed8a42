//! Reads a picture's format and size from its header before anything is queued.
//!
//! Nothing is decoded and nothing large is read. A file that the engine certainly cannot use is refused here, with the
//! engine's own message; where a header is odd but not provably wrong, the engine decides.

pub mod cut;
mod tiff;

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use animd_protocol::ErrorCode;

use crate::{Error, Result};
use tiff::Tiff;

/// The largest picture file, in bytes.
pub const MAX_BYTES: u64 = 256 << 20;
/// The longest side that the engine takes, in pixels.
const MAX_SIDE: u32 = 32768;
/// The most pixels that the engine takes.
const MAX_PIXELS: u64 = 1 << 28;
/// The most reads for one picture, of a few bytes each.
const MAX_READS: u32 = 4096;
/// The number of bytes at the start that must identify the format.
const START: usize = 4096;

/// The formats that the engine decodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// Portable Network Graphics.
    Png,
    /// JPEG, baseline and progressive.
    Jpeg,
    /// The first frame of a GIF.
    Gif,
    /// The first frame of a WebP.
    WebP,
    /// A Windows bitmap.
    Bmp,
    /// The first page of a TIFF.
    Tiff,
}

impl Format {
    fn name(self) -> &'static str {
        match self {
            Self::Png => "PNG",
            Self::Jpeg => "JPEG",
            Self::Gif => "GIF",
            Self::WebP => "WebP",
            Self::Bmp => "BMP",
            Self::Tiff => "TIFF",
        }
    }
}

/// What a picture's header says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// The format by the first bytes, whatever the file's name ends in.
    pub format: Format,
    /// Width and height in pixels as they are stored; `None` where only the engine can tell.
    pub size: Option<(u32, u32)>,
}

/// Reads a file's header, whatever its descriptor's offset. `what` is for messages: ``the picture `a.png` ``. Blocks.
///
/// # Errors
/// [`Error::Refused`] with code `invalid-image` says what it is instead, or what is wrong with it, and what to do.
pub fn read(file: &File, what: &str) -> Result<Header> {
    header(Source { read_at: &|buffer, at| file.read_at(buffer, at), left: MAX_READS }, what)
}

/// Reads the header of a file that is in memory.
///
/// # Errors
/// The errors of [`read`].
pub fn of_bytes(bytes: &[u8], what: &str) -> Result<Header> {
    let read_at = |buffer: &mut [u8], at: u64| {
        let rest = usize::try_from(at).ok().and_then(|at| bytes.get(at..)).unwrap_or_default();
        let n = rest.len().min(buffer.len());
        buffer[..n].copy_from_slice(&rest[..n]);
        Ok(n)
    };
    header(Source { read_at: &read_at, left: MAX_READS }, what)
}

/// Why a header gives no size.
enum Trouble {
    /// The file ends before the size.
    Early,
    /// The header does not follow the format's definition, or is too long to be followed here.
    Odd,
    /// It is a picture of this kind, which the engine does not read.
    Foreign(&'static str),
    Io(io::Error),
}

type Size = Result<(u32, u32), Trouble>;

/// A file that is read by position, because a caller's descriptor shares its offset with the caller.
struct Source<'a> {
    read_at: &'a dyn Fn(&mut [u8], u64) -> io::Result<usize>,
    left: u32,
}

impl Source<'_> {
    /// Fills `buffer` from position `at` as far as the file goes; returns the number of bytes.
    fn fill(&mut self, buffer: &mut [u8], at: u64) -> Result<usize, Trouble> {
        let mut filled = 0;
        while filled < buffer.len() {
            self.left = self.left.checked_sub(1).ok_or(Trouble::Odd)?;
            match (self.read_at)(&mut buffer[filled..], at.saturating_add(filled as u64)) {
                Ok(0) => break,
                Ok(n) => filled += n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(Trouble::Io(e)),
            }
        }
        Ok(filled)
    }

    fn get<const N: usize>(&mut self, at: u64) -> Result<[u8; N], Trouble> {
        let mut bytes = [0; N];
        if self.fill(&mut bytes, at)? == N { Ok(bytes) } else { Err(Trouble::Early) }
    }

    fn le16(&mut self, at: u64) -> Result<u32, Trouble> {
        Ok(u16::from_le_bytes(self.get(at)?).into())
    }
}

fn header(mut source: Source<'_>, what: &str) -> Result<Header> {
    let refuse = |text: String| Err(Error::refused(ErrorCode::InvalidImage, format!("{what} {text}")));
    let mut start = [0; START];
    let length = match source.fill(&mut start, 0) {
        Ok(length) => length,
        Err(Trouble::Io(e)) => return Err(Error::file("read", what)(e)),
        Err(_) => 0,
    };
    let start = &start[..length];
    if start.is_empty() {
        return refuse("is empty; save the picture again".into());
    }
    let Some(format) = format(start) else {
        return refuse(match foreign(start) {
            Some(kind) => not_read(kind),
            None => "is not a supported image; use a PNG, JPEG, GIF, WebP, BMP or TIFF".into(),
        });
    };
    let size = match format {
        Format::Png => png(&mut source),
        Format::Jpeg => jpeg(&mut source),
        Format::Gif => gif(&mut source),
        Format::WebP => webp(&mut source),
        Format::Bmp => bmp(&mut source),
        Format::Tiff => Tiff::open(&mut source).and_then(|tiff| tiff.size(&mut source)),
    };
    let (width, height) = match size {
        Ok(size) => size,
        Err(Trouble::Odd) => return Ok(Header { format, size: None }),
        Err(Trouble::Foreign(kind)) => return refuse(not_read(kind)),
        Err(Trouble::Early) => {
            let name = format.name();
            return refuse(format!("is a {name} that ends too early; copy or download it again"));
        }
        Err(Trouble::Io(e)) => return Err(Error::file("read", what)(e)),
    };
    let pixels = u64::from(width) * u64::from(height);
    if pixels == 0 {
        return refuse(format!("says that it has {width}x{height} pixels; save the picture again"));
    }
    if width > MAX_SIDE || height > MAX_SIDE {
        return refuse(format!(
            "has {width}x{height} pixels; a side may have {MAX_SIDE} at most; make the picture smaller"
        ));
    }
    if pixels > MAX_PIXELS {
        return refuse(format!(
            "has {width}x{height} = {} million pixels; {} million are the most; make the picture smaller",
            pixels.div_ceil(1_000_000),
            MAX_PIXELS / 1_000_000
        ));
    }
    Ok(Header { format, size: Some((width, height)) })
}

fn not_read(kind: &str) -> String {
    format!("is {kind}, which animd does not read; convert it to PNG or JPEG")
}

/// How files of most formats begin.
const MAGICS: [(&[u8], Format); 7] = [
    (b"\x89PNG\r\n\x1a\n", Format::Png),
    (b"\xff\xd8\xff", Format::Jpeg),
    (b"GIF87a", Format::Gif),
    (b"GIF89a", Format::Gif),
    (b"BM", Format::Bmp),
    (b"II*\0", Format::Tiff),
    (b"MM\0*", Format::Tiff),
];

fn format(start: &[u8]) -> Option<Format> {
    if start.starts_with(b"RIFF") && start.get(8..12) == Some(b"WEBP") {
        return Some(Format::WebP);
    }
    MAGICS.into_iter().find(|(magic, _)| start.starts_with(magic)).map(|(_, format)| format)
}

/// The name of the many formats of cameras.
const RAW: &str = "a camera's raw picture";

/// Returns the name of a format that people take for a picture and that the engine does not read.
fn foreign(start: &[u8]) -> Option<&'static str> {
    // ISO media files: `ftyp` and a brand.
    if start.get(4..8) == Some(b"ftyp") {
        return Some(match start.get(8..12).unwrap_or_default() {
            b"avif" | b"avis" => "an AVIF picture",
            b"heic" | b"heix" | b"heim" | b"heis" | b"hevc" | b"hevx" | b"mif1" | b"msf1" => "a HEIC picture",
            b"jxl " => "a JPEG XL picture",
            b"crx " => RAW,
            _ => "a video or another media file",
        });
    }
    let known: [(&[u8], &str); 21] = [
        (b"IIRO", RAW),
        (b"IIRS", RAW),
        (b"MMOR", RAW),
        (b"IIU\0", RAW),
        (b"II\x1a\0\0\0HEAPCCDR", RAW),
        (b"FUJIFILMCCD-RAW", RAW),
        (b"FOVb", RAW),
        (b"\0MRM", RAW),
        (b"II+\0", "a TIFF for more than 4 GiB"),
        (b"MM\0+", "a TIFF for more than 4 GiB"),
        (b"%PDF", "a PDF document"),
        (b"\xff\x0a", "a JPEG XL picture"),
        (b"\0\0\0\x0cJXL ", "a JPEG XL picture"),
        (b"\0\0\0\x0cjP  ", "a JPEG 2000 picture"),
        (b"8BPS", "a Photoshop document"),
        (b"gimp xcf", "a GIMP document"),
        (b"qoif", "a QOI picture"),
        (b"v/1\x01", "an OpenEXR picture"),
        (b"\0\0\x01\0", "an icon"),
        (b"\x1a\x45\xdf\xa3", "a video"),
        (b"PK\x03\x04", "a ZIP archive"),
    ];
    if let Some((_, kind)) = known.iter().find(|(magic, _)| start.starts_with(magic)) {
        return Some(kind);
    }
    let text = String::from_utf8_lossy(start);
    let text = text.trim_start_matches('\u{feff}').trim_start();
    (text.starts_with('<') && text.contains("<svg")).then_some("an SVG drawing")
}

/// Reads a PNG's size from its first chunk, IHDR.
fn png(source: &mut Source<'_>) -> Size {
    if source.get(12)? != *b"IHDR" {
        return Err(Trouble::Odd);
    }
    Ok((u32::from_be_bytes(source.get(16)?), u32::from_be_bytes(source.get(20)?)))
}

/// Reads a GIF's size from its logical screen.
fn gif(source: &mut Source<'_>) -> Size {
    Ok((source.le16(6)?, source.le16(8)?))
}

/// Reads a JPEG's size from its frame header, behind any number of segments.
fn jpeg(source: &mut Source<'_>) -> Size {
    let mut at = 2;
    loop {
        let segment = Segment::find(source, at)?;
        match segment.marker {
            // The frames that the engine's decoder knows; it passes over others, which are lossless or arithmetic.
            0xc0..=0xc2 => {
                let [h1, h2, w1, w2] = source.get(segment.at + 5)?;
                return Ok((u16::from_be_bytes([w1, w2]).into(), u16::from_be_bytes([h1, h2]).into()));
            }
            // A scan or the end comes before any frame.
            0xd9 | 0xda => return Err(Trouble::Odd),
            _ => at = segment.end,
        }
    }
}

/// A segment of a JPEG's head.
struct Segment {
    marker: u8,
    /// The position of the marker.
    at: u64,
    /// The position behind the segment.
    end: u64,
}

impl Segment {
    /// Finds the segment that begins at `at`, or behind padding and other bytes that belong to none.
    ///
    /// # Errors
    /// [`Trouble::Odd`] where decoders disagree on what follows: a zero behind a padding byte, and a marker that has no length
    /// by the standard and no business in the head.
    fn find(source: &mut Source<'_>, mut at: u64) -> Result<Self, Trouble> {
        loop {
            let [mark, marker] = source.get(at)?;
            match (mark, marker) {
                (0xff, 0x00 | 0x01 | 0xd0..=0xd8) => return Err(Trouble::Odd),
                (0xff, 0xd9) => return Ok(Self { marker, at, end: at + 2 }),
                (0xff, 0x02..=0xfe) => {
                    let length = u64::from(u16::from_be_bytes(source.get(at + 2)?).max(2));
                    return Ok(Self { marker, at, end: at + 2 + length });
                }
                _ => at += 1,
            }
        }
    }
}

/// Reads a WebP's size from its first chunk: lossy, lossless or extended.
fn webp(source: &mut Source<'_>) -> Size {
    match &source.get(12)? {
        b"VP8 " => {
            if source.get(23)? != [0x9d, 0x01, 0x2a] {
                return Err(Trouble::Odd);
            }
            // The upper two bits ask for scaling, which no decoder does.
            Ok((source.le16(26)? & 0x3fff, source.le16(28)? & 0x3fff))
        }
        b"VP8L" => {
            let bits = u32::from_le_bytes(source.get(21)?);
            Ok(((bits & 0x3fff) + 1, (bits >> 14 & 0x3fff) + 1))
        }
        b"VP8X" => {
            let side = |[a, b, c]: [u8; 3]| u32::from_le_bytes([a, b, c, 0]) + 1;
            Ok((side(source.get(24)?), side(source.get(27)?)))
        }
        _ => Err(Trouble::Odd),
    }
}

/// Reads a bitmap's size. A header of 12 bytes has sides of 16 bits; in others a negative height means rows from the
/// top.
fn bmp(source: &mut Source<'_>) -> Size {
    match u32::from_le_bytes(source.get(14)?) {
        12 => Ok((source.le16(18)?, source.le16(20)?)),
        _ => Ok((
            i32::from_le_bytes(source.get(18)?).unsigned_abs(),
            i32::from_le_bytes(source.get(22)?).unsigned_abs(),
        )),
    }
}

/// The smallest complete picture, for tests: one grey pixel.
pub const TINY: &[u8] = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\0\0\x01\0\0\0\x01\x08\0\0\0\0:~\x9bU\
\0\0\0\nIDATx\xdach\0\0\0\x82\0\x81\xdaE\x08;\0\0\0\0IEND\xaeB`\x82";

#[cfg(test)]
mod tests {
    use super::*;

    fn fixture(name: &str) -> Vec<u8> {
        std::fs::read(format!("{}/../../tests/fixtures/images/{name}", env!("CARGO_MANIFEST_DIR")))
            .expect("it is there")
    }

    fn refusal(bytes: &[u8]) -> String {
        let error = of_bytes(bytes, "it").expect_err("refused");
        assert_eq!(error.code().name(), "invalid-image");
        error.to_string()
    }

    // All fixtures show one picture of 52x36.
    #[test]
    fn every_format_gives_its_size() -> Result<()> {
        for (name, format) in [
            ("alpha.png", Format::Png),
            ("palette.png", Format::Png),
            ("rgb.jpg", Format::Jpeg),
            ("progressive.jpg", Format::Jpeg),
            ("rotated.jpg", Format::Jpeg),
            ("cmyk.jpg", Format::Jpeg),
            ("animated.gif", Format::Gif),
            ("lossy.webp", Format::WebP),
            ("lossless.webp", Format::WebP),
            ("rgb.bmp", Format::Bmp),
            ("rgb.tiff", Format::Tiff),
            ("cmyk.tiff", Format::Tiff),
        ] {
            assert_eq!(of_bytes(&fixture(name), name)?, Header { format, size: Some((52, 36)) }, "{name}");
        }
        assert_eq!(of_bytes(TINY, "it")?.size, Some((1, 1)));
        Ok(())
    }

    #[test]
    fn odd_headers_that_the_engine_reads_are_read() -> Result<()> {
        let size = |bytes: &[u8]| of_bytes(bytes, "it").map(|header| header.size);
        // Rows from the top.
        let mut bmp = fixture("rgb.bmp");
        bmp[22..26].copy_from_slice(&(-36_i32).to_le_bytes());
        assert_eq!(size(&bmp)?, Some((52, 36)));
        // A header of OS/2.
        let bmp = b"BM\0\0\0\0\0\0\0\0\x1a\0\0\0\x0c\0\0\0\x34\0\x24\0\x01\0\x18\0";
        assert_eq!(size(bmp)?, Some((52, 36)));
        // Padding before a marker, and a byte behind a segment that belongs to none.
        let jpeg = |more: &[u8]| {
            let mut jpeg = fixture("rgb.jpg");
            jpeg.splice(2..2, more.iter().copied());
            jpeg
        };
        assert_eq!(size(&jpeg(&[0xff, 0xff, 0xff, 0xfe, 0, 2, b'x']))?, Some((52, 36)));
        // The engine's decoder gives these markers a length, and the standard gives them none.
        for marker in [0x00, 0x01, 0xd0, 0xd3, 0xd8] {
            assert_eq!(size(&jpeg(&[0xff, marker, 0, 4, 1, 2]))?, None, "{marker:x}");
        }
        // The decoder passes over frames that it does not know.
        let lossless = [0xff, 0xc3, 0, 17, 8, 0xff, 0xff, 0xff, 0xff, 3, 1, 0x22, 0, 2, 0x11, 1, 3, 0x11, 1];
        assert_eq!(size(&jpeg(&lossless))?, Some((52, 36)));
        // Bits that ask for scaling.
        let mut webp = fixture("lossy.webp");
        webp[27] |= 0x40;
        assert_eq!(size(&webp)?, Some((52, 36)));
        // Segments without end are left to the engine.
        let long = [&b"\xff\xd8"[..], &b"\xff\xe1\0\x02".repeat(5000)].concat();
        assert_eq!(size(&long)?, None);
        Ok(())
    }

    /// Returns a TIFF of one directory with these fields of one long each, and another directory below it.
    fn tiff_of(fields: &[(u16, u32)], below: Option<&[(u16, u32)]>) -> Vec<u8> {
        let count = fields.len() + usize::from(below.is_some());
        let end = 8 + 2 + 12 * count + 4;
        let mut all: Vec<(u16, u32)> = fields.to_vec();
        all.extend(below.map(|_| (330, end as u32)));
        let directory = |fields: &[(u16, u32)]| {
            let mut bytes = (fields.len() as u16).to_le_bytes().to_vec();
            for (tag, value) in fields {
                bytes.extend_from_slice(&tag.to_le_bytes());
                bytes.extend_from_slice(&[4, 0, 1, 0, 0, 0]);
                bytes.extend_from_slice(&value.to_le_bytes());
            }
            bytes.extend_from_slice(&[0; 4]);
            bytes
        };
        let mut bytes = b"II*\0\x08\0\0\0".to_vec();
        bytes.extend(directory(&all));
        bytes.extend(below.map(directory).unwrap_or_default());
        bytes
    }

    #[test]
    fn a_cameras_raw_picture_is_refused_whatever_it_calls_itself() {
        let size = [(256, 40), (257, 24)];
        let with = |more: &[(u16, u32)], below| tiff_of(&[more, &size].concat(), below);
        assert_eq!(of_bytes(&with(&[], None), "it").ok().and_then(|h| h.size), Some((40, 24)));
        assert_eq!(of_bytes(&with(&[], Some(&[(262, 2)])), "it").ok().and_then(|h| h.size), Some((40, 24)));
        let raw = "it is a camera's raw picture, which animd does not read; convert it to PNG or JPEG";
        for bytes in [
            // DNG, Nikon and Sony, Pentax, a linear DNG, and a thumbnail of a camera's.
            with(&[(50_706, 4)], None),
            with(&[(254, 1), (271, 0)], Some(&[(262, 32_803)])),
            with(&[(262, 32_803)], None),
            with(&[], Some(&[(262, 34_892)])),
            with(&[(254, 1), (271, 0)], Some(&[])),
            b"II*\0\x10\0\0\0CR\x02\0\0\0\0\0\0\0".to_vec(),
            b"FUJIFILMCCD-RAW 0201".to_vec(),
            b"IIRO\x08\0\0\0".to_vec(),
            b"IIU\0\x18\0\0\0".to_vec(),
        ] {
            assert_eq!(refusal(&bytes), raw, "{bytes:?}");
        }
        let thumbnail = refusal(&with(&[(254, 1)], None));
        assert!(thumbnail.contains("a TIFF whose first page is a thumbnail"), "{thumbnail}");
    }

    #[test]
    fn what_is_no_picture_is_refused_by_name() {
        for (bytes, sentence) in [
            (
                &b"\0\0\0\x18ftypheic\0\0\0\0mif1heic"[..],
                "it is a HEIC picture, which animd does not read; convert it to PNG or JPEG",
            ),
            (b"\0\0\0\x1cftypavif\0\0\0\0mif1avif", "it is an AVIF picture"),
            (b"<?xml version='1.0'?>\n<svg xmlns='http://www.w3.org/2000/svg'/>", "it is an SVG drawing"),
            (b"hello\n", "it is not a supported image; use a PNG"),
            (b"", "it is empty"),
            (&TINY[..20], "it is a PNG that ends too early; copy or download it again"),
            (&fixture("rgb.jpg")[..100], "it is a JPEG that ends too early"),
            (&fixture("rgb.tiff")[..100], "it is a TIFF that ends too early"),
        ] {
            let text = refusal(bytes);
            assert!(text.starts_with(sentence), "{text}");
        }
    }

    #[test]
    fn a_bomb_is_refused_by_its_header() {
        let bmp = |width: u32, height: u32| {
            let mut bytes = fixture("rgb.bmp");
            bytes[18..22].copy_from_slice(&width.to_le_bytes());
            bytes[22..26].copy_from_slice(&height.to_le_bytes());
            refusal(&bytes)
        };
        assert!(bmp(30000, 30000).contains("900 million pixels"), "{}", bmp(30000, 30000));
        assert!(bmp(40000, 10).contains("40000x10 pixels; a side may have 32768"), "{}", bmp(40000, 10));
        assert!(bmp(0, 10).contains("0x10"), "{}", bmp(0, 10));
    }

    #[test]
    fn a_descriptor_is_read_whatever_its_offset() -> Result<()> {
        use std::io::{Seek as _, SeekFrom, Write as _};
        let mut file = tempfile::tempfile().map_err(Error::file("make", "a file"))?;
        file.write_all(TINY)
            .and_then(|()| file.seek(SeekFrom::Start(7)))
            .map_err(Error::file("write", "it"))?;
        assert_eq!(read(&file, "it")?.size, Some((1, 1)));
        assert_eq!(file.stream_position().ok(), Some(7));
        Ok(())
    }
}
