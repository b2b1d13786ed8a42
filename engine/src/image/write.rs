//! Writes pixels to JPEG and PNG files.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;

use image::ExtendedColorType;
use image::ImageEncoder;
use image::codecs::jpeg::JpegEncoder;
use image::codecs::png::PngEncoder;

use super::{Crop, Picture, bicubic_antialiased};
use crate::{Error, Result};

impl Picture {
    /// Returns a part of the picture.
    #[must_use]
    pub fn cropped(&self, crop: Crop) -> Self {
        let row = |y: u32| {
            let start = 3 * (y as usize * self.width as usize + crop.left as usize);
            &self.rgb[start..][..3 * crop.width as usize]
        };
        let rgb = (crop.top..crop.top + crop.height).flat_map(row).copied().collect();
        Self { width: crop.width, height: crop.height, rgb }
    }

    /// Writes the picture as a PNG, without loss, and syncs it. An existing file is replaced; half a file may be left.
    ///
    /// # Errors
    /// [`Error::File`] if the file system refuses; [`Error::Output`] if the picture is too large for a PNG.
    pub fn write_png(&self, path: &Path) -> Result<()> {
        let failed = || Error::file("write", path);
        let file = File::create(path).map_err(failed())?;
        let mut out = BufWriter::new(&file);
        let encoder = PngEncoder::new(&mut out);
        match encoder.write_image(&self.rgb, self.width, self.height, ExtendedColorType::Rgb8) {
            Err(image::ImageError::IoError(e)) => return Err(failed()(e)),
            encoded => encoded.map_err(|e| Error::Output(format!("`{}`: {e}", path.display())))?,
        }
        out.flush().map_err(failed())?;
        drop(out);
        file.sync_all().map_err(failed())
    }

    /// Returns the picture filtered to another size.
    #[must_use]
    pub fn resized(&self, width: u32, height: u32) -> Self {
        let all = Crop { top: 0, left: 0, height: self.height, width: self.width };
        let planes = bicubic_antialiased(self, all, height as usize, width as usize);
        let pixels = width as usize * height as usize;
        let byte = |v: f32| ((v + 1.0) * 127.5).round().clamp(0.0, 255.0) as u8;
        let rgb = (0..pixels).flat_map(|i| [0, 1, 2].map(|c| byte(planes[c * pixels + i]))).collect();
        Self { width, height, rgb }
    }

    /// Returns the picture with at most `side` pixels along each side; it keeps its shape and is never enlarged.
    #[must_use]
    pub fn fitted_into(&self, side: u32) -> Self {
        let longer = self.width.max(self.height);
        if longer <= side {
            return self.clone();
        }
        let scaled = |n: u32| (n * side + longer / 2) / longer;
        self.resized(scaled(self.width).max(1), scaled(self.height).max(1))
    }

    /// Writes the picture as a JPEG of a quality from 1 to 100. An existing file is replaced, and no reader sees half a
    /// file.
    ///
    /// # Errors
    /// [`Error::File`] if the file system refuses; [`Error::Output`] if the picture is too large for a JPEG.
    pub fn write_jpeg(&self, path: &Path, quality: u8) -> Result<()> {
        let part = crate::video::part_path(path)?;
        let written = self.encode_jpeg(&part, quality).and_then(|()| {
            std::fs::rename(&part, path).map_err(Error::file("rename the finished picture to", path))
        });
        if written.is_err() {
            let _ = std::fs::remove_file(&part);
        }
        written
    }

    fn encode_jpeg(&self, part: &Path, quality: u8) -> Result<()> {
        let failed = || Error::file("write", part);
        let file = File::options().write(true).create_new(true).open(part).map_err(failed())?;
        let mut out = BufWriter::new(file);
        let mut encoder = JpegEncoder::new_with_quality(&mut out, quality);
        match encoder.encode(&self.rgb, self.width, self.height, ExtendedColorType::Rgb8) {
            Err(image::ImageError::IoError(e)) => return Err(failed()(e)),
            encoded => encoded.map_err(|e| Error::Output(format!("`{}`: {e}", part.display())))?,
        }
        out.flush().map_err(failed())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::decode;

    /// Returns a picture that is red to the left and blue to the right.
    fn picture(width: u32, height: u32) -> Picture {
        let pixel = |i| if i % width < width / 2 { [250, 10, 10] } else { [10, 10, 250] };
        Picture { width, height, rgb: (0..width * height).flat_map(pixel).collect() }
    }

    #[test]
    fn what_is_written_is_read_again() -> Result<()> {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("a.jpg");
        // The second one replaces the first.
        for (width, height) in [(7, 3), (64, 48)] {
            picture(width, height).write_jpeg(&path, 90)?;
            let read = decode(&path)?;
            assert_eq!((read.width, read.height), (width, height));
            assert!(read.rgb[0] > 200 && read.rgb[2] < 60, "{:?}", &read.rgb[..3]);
        }
        assert_eq!(std::fs::read_dir(folder.path()).expect("readable").count(), 1);
        let gone = picture(2, 2).write_jpeg(&folder.path().join("gone/a.jpg"), 90);
        assert!(gone.is_err_and(|e| e.code().name() == "file" && e.to_string().contains("gone")));
        Ok(())
    }

    #[test]
    fn a_thumbnail_keeps_the_shape() {
        for ((width, height), want) in [
            ((832, 480), (512, 295)),
            ((480, 832), (295, 512)),
            ((512, 300), (512, 300)),
            ((64, 48), (64, 48)),
            ((16384, 16), (512, 1)),
        ] {
            let small = picture(width, height).fitted_into(512);
            assert_eq!((small.width, small.height), want);
            assert_eq!(small.rgb.len() as u32, 3 * want.0 * want.1);
            assert_eq!(small.rgb[..3], [250, 10, 10]);
        }
    }
}
