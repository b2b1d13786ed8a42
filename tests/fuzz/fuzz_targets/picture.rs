//! Fuzzes the service's reading of picture headers, and compares the result with the engine's decoders.
#![no_main]

use std::io::Cursor;

use animd_common::picture;
use image::{ImageDecoder as _, ImageFormat, ImageReader};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let header = picture::of_bytes(data, "the picture");
    match &header {
        Ok(header) => {
            if let Some((width, height)) = header.size {
                assert!(width > 0 && height > 0 && u64::from(width) * u64::from(height) <= 1 << 28);
            }
        }
        Err(e) => {
            let e = e.to_string();
            assert!(e.starts_with("the picture ") && !e.chars().any(char::is_control), "{e:?}");
        }
    }
    // A picture that the engine can read must not be refused by the service, and must have the size that the service
    // reads.
    if let Some(engine) = engine(data) {
        let ours = header.expect("the engine reads it").size;
        assert!(ours.is_none_or(|ours| ours == engine) || frames(data) > 1, "{ours:?} for {engine:?}");
    }
});

/// Returns the size by the engine's decoder, if the engine takes a picture of this size.
fn engine(data: &[u8]) -> Option<(u32, u32)> {
    use ImageFormat::{Bmp, Gif, Jpeg, Png, Tiff, WebP};
    let format = image::guess_format(data).ok()?;
    let size = match format {
        Png | Jpeg | Gif | WebP | Bmp | Tiff => {
            ImageReader::with_format(Cursor::new(data), format).into_decoder().ok()?.dimensions()
        }
        _ => return None,
    };
    let taken = size.0.clamp(1, 32768) == size.0 && size.1.clamp(1, 32768) == size.1;
    (taken && u64::from(size.0) * u64::from(size.1) <= 1 << 28).then_some(size)
}

/// Returns how many frame headers a JPEG seems to have. Of two, the service takes the first, and the engine's decoder
/// the first of a kind that it knows.
fn frames(data: &[u8]) -> usize {
    let says = |marker: u8| (0xc0..=0xcf).contains(&marker) && ![0xc4, 0xc8, 0xcc].contains(&marker);
    data.windows(2).filter(|pair| pair[0] == 0xff && says(pair[1])).count()
}
