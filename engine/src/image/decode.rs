//! Decodes picture files to pixels.

use std::fs::OpenOptions;
use std::io::{Cursor, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use image::error::{ImageError, LimitErrorKind};
use image::{DynamicImage, ImageDecoder, ImageFormat, ImageReader, Limits};
use rustix::fs::OFlags;

use crate::{Error, Result};

/// The largest file, in bytes.
const MAX_FILE: u64 = 256 << 20;
/// The longest side, in pixels.
const MAX_SIDE: u32 = 32768;
/// The most pixels.
const MAX_PIXELS: u64 = 1 << 28;
/// The most memory, in bytes, that a decoder can take for itself: four channels of 16 bits for the most pixels, twice.
const MAX_MEMORY: u64 = 2 * 8 * MAX_PIXELS;

/// A picture, upright, without transparency.
#[derive(Clone, PartialEq, Eq)]
pub struct Picture {
    /// The width in pixels.
    pub width: u32,
    /// The height in pixels.
    pub height: u32,
    /// Red, green and blue of each pixel, row by row from the top: 3 * width * height bytes.
    pub rgb: Vec<u8>,
}

impl std::fmt::Debug for Picture {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Picture({}x{})", self.width, self.height)
    }
}

/// Reads a picture from a file: see [`decode_bytes`].
///
/// # Errors
/// [`Error::File`] if the file cannot be read, [`Error::Image`] if it is not a supported image.
pub fn decode(path: &Path) -> Result<Picture> {
    let read = || Error::file("read", path);
    // If the file is a pipe, opening it must not wait for a writer.
    let nonblocking = OFlags::NONBLOCK.bits().cast_signed();
    let file = OpenOptions::new().read(true).custom_flags(nonblocking).open(path).map_err(read())?;
    let metadata = file.metadata().map_err(read())?;
    let name = path.display().to_string();
    if metadata.is_dir() {
        return Err(Error::Image(format!("`{name}` is a folder, not a picture; name a file in it")));
    }
    if !metadata.is_file() {
        return Err(Error::Image(format!("`{name}` is not a regular file; save the picture to a file")));
    }
    check_length(metadata.len(), &name)?;
    let mut bytes = Vec::new();
    // The file can grow meanwhile; reading one byte more than allowed is enough to notice.
    file.take(MAX_FILE + 1).read_to_end(&mut bytes).map_err(read())?;
    decode_bytes(&bytes, &name)
}

/// Decodes PNG, JPEG, GIF (its first frame), WebP (its first frame), BMP or TIFF (its first page), recognised by
/// content.
///
/// EXIF's orientation is honoured. Transparent pixels are laid on white. Grey, palettes, 16 bits (rounded to 8) and
/// CMYK become red, green and blue. Colour profiles are not applied: the numbers are taken as sRGB, as the model's own
/// code takes them. Sides, pixels and length are checked before anything is decoded. `name` is for messages.
///
/// # Errors
/// [`Error::Image`], which says what is wrong and what to do.
pub fn decode_bytes(bytes: &[u8], name: &str) -> Result<Picture> {
    check_length(bytes.len() as u64, name)?;
    let format = format(bytes, name)?;
    let broken = |e: ImageError| refusal(&e, format, name);
    let reader = ImageReader::with_format(Cursor::new(bytes), format);
    let mut decoder = reader.into_decoder().map_err(broken)?;
    let (width, height) = decoder.dimensions();
    check_sides(width, height, name)?;
    if format == ImageFormat::Jpeg && !jpeg_is_whole(bytes) {
        return Err(cut_off(format, name));
    }
    let mut limits = Limits::no_limits();
    limits.max_alloc = Some(MAX_MEMORY);
    decoder.set_limits(limits).map_err(broken)?;
    // A picture with broken metadata is still a picture.
    let orientation = decoder.orientation().unwrap_or(image::metadata::Orientation::NoTransforms);
    let mut image = DynamicImage::from_decoder(decoder).map_err(broken)?;
    image.apply_orientation(orientation);
    let (width, height) = (image.width(), image.height());
    Ok(Picture { width, height, rgb: on_white(image) })
}

/// Returns the pixels laid on white, without their transparency.
fn on_white(image: DynamicImage) -> Vec<u8> {
    if !image.color().has_alpha() {
        return image.into_rgb8().into_raw();
    }
    let blend = |value: u8, alpha: u8| {
        let (value, alpha) = (u32::from(value), u32::from(alpha));
        ((value * alpha + 255 * (255 - alpha) + 127) / 255) as u8
    };
    image
        .into_rgba8()
        .pixels()
        .flat_map(|pixel| {
            let [r, g, b, a] = pixel.0;
            [blend(r, a), blend(g, a), blend(b, a)]
        })
        .collect()
}

fn check_length(length: u64, name: &str) -> Result<()> {
    if length == 0 {
        return Err(Error::Image(format!("`{name}` is empty; save the picture again")));
    }
    if length > MAX_FILE {
        return Err(Error::Image(format!(
            "`{name}` has {} MiB; a picture file may have {} at most; save the picture smaller, or as JPEG",
            length.div_ceil(1 << 20),
            MAX_FILE >> 20
        )));
    }
    Ok(())
}

fn check_sides(width: u32, height: u32, name: &str) -> Result<()> {
    if width == 0 || height == 0 {
        return Err(Error::Image(format!(
            "`{name}` says that it has {width}x{height} pixels; save the picture again"
        )));
    }
    if width > MAX_SIDE || height > MAX_SIDE {
        return Err(Error::Image(format!(
            "`{name}` has {width}x{height} pixels; a side may have {MAX_SIDE} at most; make the picture smaller"
        )));
    }
    let pixels = u64::from(width) * u64::from(height);
    if pixels > MAX_PIXELS {
        return Err(Error::Image(format!(
            "`{name}` has {width}x{height} = {} million pixels; {} million are the most; make the picture smaller",
            pixels.div_ceil(1_000_000),
            MAX_PIXELS / 1_000_000
        )));
    }
    Ok(())
}

/// Returns the format, recognised by the file's first bytes.
fn format(bytes: &[u8], name: &str) -> Result<ImageFormat> {
    use ImageFormat::{Bmp, Gif, Jpeg, Png, Tiff, WebP};

    let convert = |kind: &str| {
        Err(Error::Image(format!("`{name}` is {kind}, which animd does not read; convert it to PNG or JPEG")))
    };
    match image::guess_format(bytes) {
        Ok(format @ (Png | Jpeg | Gif | WebP | Bmp | Tiff)) => return Ok(format),
        Ok(ImageFormat::Avif) => return convert("an AVIF picture"),
        _ => {}
    }
    // ISO media files begin with `ftyp` and a brand.
    if bytes.get(4..8) == Some(b"ftyp") {
        return match bytes.get(8..12).unwrap_or_default() {
            b"avif" | b"avis" => convert("an AVIF picture"),
            b"heic" | b"heix" | b"heim" | b"heis" | b"hevc" | b"hevx" | b"mif1" | b"msf1" => {
                convert("a HEIC picture")
            }
            b"jxl " => convert("a JPEG XL picture"),
            _ => convert("a video or another media file"),
        };
    }
    let known: [(&[u8], &str); 9] = [
        (b"%PDF", "a PDF document"),
        (b"\xff\x0a", "a JPEG XL picture"),
        (b"\0\0\0\x0cJXL ", "a JPEG XL picture"),
        (b"\0\0\0\x0cjP  ", "a JPEG 2000 picture"),
        (b"8BPS", "a Photoshop document"),
        (b"qoif", "a QOI picture"),
        (b"v/1\x01", "an OpenEXR picture"),
        (b"\0\0\x01\0", "an icon"),
        (b"\x1a\x45\xdf\xa3", "a video"),
    ];
    if let Some((_, kind)) = known.iter().find(|(magic, _)| bytes.starts_with(magic)) {
        return convert(kind);
    }
    let start = String::from_utf8_lossy(&bytes[..bytes.len().min(4096)]);
    let start = start.trim_start_matches('\u{feff}').trim_start();
    if start.starts_with('<') && start.contains("<svg") {
        return convert("an SVG drawing");
    }
    Err(Error::Image(format!("`{name}` is not a supported image; use a PNG, JPEG, GIF, WebP, BMP or TIFF")))
}

/// Returns whether a JPEG's segments and scans are complete up to its end marker. The decoder would fill up a cut file
/// with grey.
fn jpeg_is_whole(bytes: &[u8]) -> bool {
    let mut at = 2;
    loop {
        // This skips to the next marker: over padding before one, and over the scan that follows a header.
        let Some(marker) = bytes.get(at..).and_then(|rest| {
            rest.windows(2).position(|pair| pair[0] == 0xff && !matches!(pair[1], 0 | 0xff | 0xd0..=0xd7))
        }) else {
            return false;
        };
        at += marker;
        if bytes[at + 1] == 0xd9 {
            return true;
        }
        // Any other marker has a length that counts itself.
        let Some(&[high, low]) = bytes.get(at + 2..at + 4) else { return false };
        at += 2 + usize::from(u16::from_be_bytes([high, low])).max(2);
    }
}

fn cut_off(format: ImageFormat, name: &str) -> Error {
    Error::Image(format!("`{name}` is a {} that ends too early; copy or download it again", label(format)))
}

fn label(format: ImageFormat) -> &'static str {
    match format {
        ImageFormat::Png => "PNG",
        ImageFormat::Jpeg => "JPEG",
        ImageFormat::Gif => "GIF",
        ImageFormat::WebP => "WebP",
        ImageFormat::Bmp => "BMP",
        _ => "TIFF",
    }
}

fn refusal(error: &ImageError, format: ImageFormat, name: &str) -> Error {
    let format_name = label(format);
    match error {
        ImageError::IoError(e) if e.kind() == std::io::ErrorKind::UnexpectedEof => cut_off(format, name),
        ImageError::Limits(e) if matches!(e.kind(), LimitErrorKind::InsufficientMemory) => {
            Error::Image(format!(
                "`{name}` is a {format_name} that takes more than {} GiB to decode; make the picture smaller",
                MAX_MEMORY >> 30
            ))
        }
        ImageError::Unsupported(e) => Error::Image(format!(
            "`{name}` is a {format_name} of a kind that animd does not read ({e}); convert it to PNG or JPEG"
        )),
        e => Error::Image(format!("`{name}` is a broken {format_name} ({e}); copy or save it again")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fixture(name: &str) -> Vec<u8> {
        std::fs::read(format!("{}/../tests/fixtures/images/{name}", env!("CARGO_MANIFEST_DIR")))
            .expect("it is there")
    }

    fn picture(name: &str) -> Picture {
        decode_bytes(&fixture(name), name).expect("a picture")
    }

    fn message(bytes: &[u8]) -> String {
        let error = decode_bytes(bytes, "x").expect_err("no picture");
        assert_eq!(error.code().name(), "invalid-image");
        error.to_string()
    }

    /// Returns the mean difference of two pictures' numbers.
    fn distance(a: &Picture, b: &Picture) -> f64 {
        assert_eq!((a.width, a.height, a.rgb.len()), (b.width, b.height, b.rgb.len()));
        let sum: u64 = a.rgb.iter().zip(&b.rgb).map(|(a, b)| u64::from(a.abs_diff(*b))).sum();
        sum as f64 / a.rgb.len() as f64
    }

    // All fixtures show one picture of 52x36, written by Pillow 13.
    #[test]
    fn every_format() {
        let original = picture("lossless.webp");
        assert_eq!((original.width, original.height), (52, 36));
        for name in ["rgb.bmp", "rgb.tiff", "cmyk.tiff"] {
            assert_eq!(picture(name).rgb, original.rgb, "{name}");
        }
        // The bound is what compression leaves; the negative would be 80 away.
        for (name, most) in
            [("rgb.jpg", 6.0), ("progressive.jpg", 6.0), ("cmyk.jpg", 2.0), ("lossy.webp", 12.0)]
        {
            let distance = distance(&picture(name), &original);
            assert!(distance < most, "{name} is {distance} away");
        }
        assert_eq!(picture("rgb.jpg").rgb, picture("progressive.jpg").rgb);
    }

    #[test]
    fn the_first_frame_of_a_film() {
        // The file has sixteen colours; its second frame is the negative.
        assert!(distance(&picture("animated.gif"), &picture("lossless.webp")) < 20.0);
    }

    #[test]
    fn exif_turns_the_picture_upright() {
        let (flat, upright) = (picture("rgb.jpg"), picture("rotated.jpg"));
        assert_eq!((upright.width, upright.height), (36, 52));
        for y in 0..52 {
            for x in 0..36 {
                let (to, from) = (3 * (y * 36 + x), 3 * ((35 - x) * 52 + y));
                assert_eq!(upright.rgb[to..to + 3], flat.rgb[from..from + 3], "at {x},{y}");
            }
        }
    }

    #[test]
    fn transparency_lies_on_white() {
        let (blended, original) = (picture("alpha.png"), picture("lossless.webp"));
        for (i, (got, value)) in blended.rgb.iter().zip(&original.rgb).enumerate() {
            let alpha = ((i / 3 % 52) * 5).min(255) as f64 / 255.0;
            let exact = f64::from(*value) * alpha + 255.0 * (1.0 - alpha);
            assert!((f64::from(*got) - exact).abs() <= 0.5, "number {i}: {got} for {exact}");
        }
        // One of the palette's colours is transparent.
        let palette = picture("palette.png");
        let white = palette.rgb.chunks(3).filter(|pixel| *pixel == [255; 3]).count();
        assert!((1..52 * 36 / 4).contains(&white), "{white} pixels are white");
    }

    #[test]
    fn grey_of_any_depth() {
        for (i, pixel) in picture("grey16.png").rgb.chunks(3).enumerate() {
            assert_eq!(pixel, [((i * 35 * 255 + 32767) / 65535) as u8; 3]);
        }
        for name in ["grey.jpg", "bits.png"] {
            let picture = picture(name);
            assert!(picture.rgb.chunks(3).all(|pixel| pixel[0] == pixel[1] && pixel[1] == pixel[2]));
            assert!(name != "bits.png" || picture.rgb.iter().all(|&value| value == 0 || value == 255));
        }
    }

    #[test]
    fn a_part_of_a_file_is_refused_or_whole() {
        let names = ["rgb.jpg", "progressive.jpg", "cmyk.jpg", "alpha.png", "grey16.png", "animated.gif"];
        for name in names.into_iter().chain(["lossless.webp", "lossy.webp", "rgb.bmp", "rgb.tiff"]) {
            let (bytes, whole) = (fixture(name), picture(name));
            for length in (0..bytes.len()).step_by(7) {
                if let Ok(part) = decode_bytes(&bytes[..length], name) {
                    assert_eq!(part, whole, "{name} to byte {length}");
                }
            }
            let half = message(&bytes[..bytes.len() / 2]);
            assert!(half.contains("again"), "{half}");
        }
        assert!(message(&fixture("rgb.jpg")[..900]).contains("ends too early"));
        assert!(message(&fixture("alpha.png")[..900]).contains("ends too early"));
    }

    #[test]
    fn damage_is_no_panic() {
        let mut random = crate::noise::cpu(1);
        for name in
            ["rgb.jpg", "progressive.jpg", "alpha.png", "animated.gif", "lossy.webp", "rgb.bmp", "rgb.tiff"]
        {
            let bytes = fixture(name);
            for _ in 0..200 {
                let mut damaged = bytes.clone();
                for draw in random.rand(6).chunks(2) {
                    damaged[(draw[0] * bytes.len() as f32) as usize] = (draw[1] * 256.0) as u8;
                }
                let _ = decode_bytes(&damaged, name);
            }
        }
    }

    #[test]
    fn what_is_no_picture_is_refused_by_name() {
        let known: [(&[u8], &str); 9] = [
            (
                b"\0\0\0\x18ftypheic\0\0\0\0mif1heic",
                "a HEIC picture, which animd does not read; convert it to PNG or JPEG",
            ),
            (b"\0\0\0\x1cftypavif\0\0\0\0mif1avif", "an AVIF picture"),
            (b"\0\0\0\x18ftypisom\0\0\0\0", "a video"),
            (b"%PDF-1.7\n", "a PDF document"),
            (b"<?xml version='1.0'?>\n<svg xmlns='http://www.w3.org/2000/svg'/>", "an SVG drawing"),
            (b"\xef\xbb\xbf\n <svg/>", "an SVG drawing"),
            (b"hello\n", "not a supported image"),
            (b"\xff", "not a supported image"),
            (b"", "is empty"),
        ];
        for (bytes, part) in known {
            assert!(message(bytes).contains(part), "{}", message(bytes));
        }
    }

    #[test]
    fn a_bomb_is_refused_by_its_header() {
        let bmp = |width: u32, height: u32| {
            let mut bytes = b"BM\x36\0\0\0\0\0\0\0\x36\0\0\0\x28\0\0\0".to_vec();
            bytes.extend(width.to_le_bytes());
            bytes.extend(height.to_le_bytes());
            bytes.extend([1, 0, 24, 0]);
            bytes.extend([0; 24]);
            message(&bytes)
        };
        assert!(bmp(30000, 30000).contains("900 million pixels"), "{}", bmp(30000, 30000));
        assert!(bmp(40000, 10).contains("40000x10 pixels; a side may have 32768"), "{}", bmp(40000, 10));
        assert!(bmp(0, 10).contains("0x10"), "{}", bmp(0, 10));
    }

    #[test]
    fn what_is_no_file_is_refused() {
        let folder = tempfile::tempdir().expect("a folder");
        let message = |path: &Path| decode(path).expect_err("no picture").to_string();
        assert!(message(folder.path()).contains("is a folder"));
        assert!(message(&folder.path().join("none.png")).starts_with("cannot read `"));
        let pipe = folder.path().join("pipe");
        rustix::fs::mknodat(rustix::fs::CWD, &pipe, rustix::fs::FileType::Fifo, rustix::fs::Mode::RUSR, 0)
            .expect("a pipe");
        assert!(message(&pipe).contains("not a regular file"));
        let large = folder.path().join("large.png");
        std::fs::File::create(&large).and_then(|file| file.set_len(MAX_FILE + 1)).expect("a sparse file");
        assert!(message(&large).contains("has 257 MiB; a picture file may have 256"), "{}", message(&large));
    }

    #[test]
    fn one_pixel() {
        let mut one = Vec::new();
        image::RgbImage::from_pixel(1, 1, image::Rgb([1, 2, 3]))
            .write_to(&mut Cursor::new(&mut one), ImageFormat::Png)
            .expect("it encodes");
        assert_eq!(decode_bytes(&one, "one").expect("a picture").rgb, [1, 2, 3]);
    }
}
