//! Whether a picture ends before its own end, as one does that is still being written or was copied in part.
//!
//! Nothing is decoded: each format says where it ends, or with what. Where that cannot be told in a few reads, the engine
//! decides.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use super::tiff::Tiff;
use super::{Format, MAGICS, Segment, Source, Trouble, format};

/// The most reads for one picture: a PNG of 256 MiB has 32,768 pieces of the usual size.
const READS: u32 = 1 << 16;
/// The number of bytes at a file's end that are searched for the end of a JPEG.
const TAIL: u64 = 64 << 10;
/// The number of bytes at the start that must identify the format.
const START: usize = 16;

/// What a file's head and end say of the picture in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The picture ends too early.
    Early,
    /// The picture is there to its end.
    Complete,
    /// It cannot be told: the file is odd, or no picture.
    Unknown,
}

/// Returns what a file says of its own end. Blocks.
///
/// # Errors
/// What reading says.
pub fn end(file: &File) -> io::Result<End> {
    let length = file.metadata()?.len();
    let read_at = |buffer: &mut [u8], at: u64| file.read_at(buffer, at);
    end_of(&mut Source { read_at: &read_at, left: READS }, length)
}

fn end_of(source: &mut Source<'_>, length: u64) -> io::Result<End> {
    match whole(source, length) {
        Ok(Some(true)) => Ok(End::Complete),
        Ok(Some(false)) | Err(Trouble::Early) => Ok(End::Early),
        Ok(None) | Err(Trouble::Odd | Trouble::Foreign(_)) => Ok(End::Unknown),
        Err(Trouble::Io(e)) => Err(e),
    }
}

/// Returns whether the picture is complete; `None` for a file that does not say it.
fn whole(source: &mut Source<'_>, length: u64) -> Result<Option<bool>, Trouble> {
    let mut start = [0; START];
    let read = source.fill(&mut start, 0)?;
    let start = &start[..read];
    let whole = match format(start) {
        Some(Format::Png) => png(source, length),
        Some(Format::Jpeg) => jpeg(source, length),
        Some(Format::Gif) => gif(source, length),
        Some(Format::WebP) => {
            let rest = u32::from_le_bytes(source.get(4)?);
            Ok(u64::from(rest) + 8 <= length)
        }
        Some(Format::Bmp) => {
            let whole = u32::from_le_bytes(source.get(2)?);
            // Some programs leave the length open.
            if whole == 0 {
                return Ok(None);
            }
            Ok(u64::from(whole) <= length)
        }
        Some(Format::Tiff) => Tiff::open(source)?.ends_within(source, length),
        // A few bytes that a picture could begin with.
        None => {
            let begins = |magic: &[u8]| magic.len() > read && magic.starts_with(start);
            let begun = MAGICS.iter().any(|(magic, _)| begins(magic)) || begins(b"RIFF") || is_riff(start);
            return Ok(begun.then_some(false));
        }
    };
    whole.map(Some)
}

/// Returns whether this is the beginning of a WebP, without the name of the format.
fn is_riff(start: &[u8]) -> bool {
    start.starts_with(b"RIFF") && start.len() < 12
}

/// A PNG ends with the chunk IEND.
fn png(source: &mut Source<'_>, length: u64) -> Result<bool, Trouble> {
    let mut at = 8_u64;
    loop {
        let [a, b, c, d, kind @ ..] = source.get::<8>(at)?;
        let end = at.saturating_add(12 + u64::from(u32::from_be_bytes([a, b, c, d])));
        if end > length {
            return Ok(false);
        }
        if kind == *b"IEND" {
            return Ok(true);
        }
        at = end;
    }
}

/// A JPEG ends with a marker, behind the last scan. A thumbnail in its head has an end of its own, and some cameras put
/// a video behind the picture.
fn jpeg(source: &mut Source<'_>, length: u64) -> Result<bool, Trouble> {
    let mut at = 2;
    let scan = loop {
        let segment = Segment::find(source, at)?;
        match segment.marker {
            0xda => break segment.at,
            0xd9 => return Ok(true),
            _ => at = segment.end,
        }
    };
    let from = scan.max(length.saturating_sub(TAIL));
    let mut tail = vec![0; usize::try_from(length.saturating_sub(from)).unwrap_or_default()];
    let read = source.fill(&mut tail, from)?;
    Ok(tail[..read].windows(2).any(|pair| pair == [0xff, 0xd9]))
}

/// A GIF ends with a semicolon; some programs put zeros behind it.
fn gif(source: &mut Source<'_>, length: u64) -> Result<bool, Trouble> {
    let mut tail = [0; 256];
    let from = length.saturating_sub(tail.len() as u64);
    let read = source.fill(&mut tail, from)?;
    Ok(tail[..read].iter().rfind(|byte| **byte != 0) == Some(&b';'))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::picture::TINY;

    fn end_at(bytes: &[u8], length: usize) -> End {
        let bytes = &bytes[..length];
        let read_at = |buffer: &mut [u8], at: u64| {
            let rest = usize::try_from(at).ok().and_then(|at| bytes.get(at..)).unwrap_or_default();
            let n = rest.len().min(buffer.len());
            buffer[..n].copy_from_slice(&rest[..n]);
            Ok(n)
        };
        end_of(&mut Source { read_at: &read_at, left: READS }, length as u64).expect("readable")
    }

    #[test]
    fn every_format_knows_its_end() {
        for name in [
            "alpha.png",
            "palette.png",
            "rgb.jpg",
            "progressive.jpg",
            "rotated.jpg",
            "cmyk.jpg",
            "animated.gif",
            "lossy.webp",
            "lossless.webp",
            "rgb.bmp",
            "rgb.tiff",
            "cmyk.tiff",
        ] {
            let path = format!("{}/../../tests/fixtures/images/{name}", env!("CARGO_MANIFEST_DIR"));
            let bytes = std::fs::read(path).expect("it is there");
            assert_eq!(end_at(&bytes, bytes.len()), End::Complete, "{name}");
            for part in [1, 2, 5, 9, bytes.len() / 3, bytes.len() / 2, bytes.len() - 20] {
                assert_eq!(end_at(&bytes, part), End::Early, "{name}: {part} of {}", bytes.len());
            }
        }
        assert_eq!((end_at(TINY, TINY.len()), end_at(TINY, TINY.len() - 1)), (End::Complete, End::Early));
    }

    #[test]
    fn what_follows_a_picture_does_not_matter_and_what_is_none_is_not_cut() {
        for (bytes, end) in [
            (&[TINY, b"more"].concat()[..], End::Complete),
            (b"not a picture", End::Unknown),
            (b"%PDF-1.7", End::Unknown),
            (b"\0", End::Unknown),
            (b"II", End::Early),
            // A bitmap that leaves its length open.
            (b"BM\0\0\0\0\0\0\0\0\x1a\0\0\0\x0c\0\0\0\x34\0\x24\0\x01\0\x18\0", End::Unknown),
        ] {
            assert_eq!(end_at(bytes, bytes.len()), end, "{bytes:?}");
        }
    }
}
