//! Pictures: they are decoded, fitted to the video's size, prepared for the VAE and for CLIP, and written.

mod decode;
mod resize;
mod size;
mod write;

use animd_protocol::request::{Resize, Size};

use crate::Result;

pub use decode::{Picture, decode, decode_bytes};
pub use resize::{bicubic, bicubic_antialiased, clip_pixels};
pub use size::{Adaptive, Crop, adaptive, centre, diffusers_example, official};

/// A picture in the video's size, which becomes the video's first frame.
#[derive(Clone, Debug, PartialEq)]
pub struct Fitted {
    /// The width in pixels, a multiple of 16.
    pub height: usize,
    /// The height in pixels, a multiple of 16.
    pub width: usize,
    /// The values [3, height, width], red first, from -1 to 1; at edges the bicubic filter overshoots that a little.
    pub first_frame: Vec<f32>,
}

impl Fitted {
    /// Returns the height of the latent.
    pub fn latent_height(&self) -> usize {
        self.height / LATENT
    }

    /// Returns the width of the latent.
    pub fn latent_width(&self) -> usize {
        self.width / LATENT
    }
}

/// The pixels that a latent pixel covers along each side.
const LATENT: usize = 8;

/// Fits a picture to a size.
///
/// For an area by the official rule, the picture is stretched by the few pixels that its sides lack to whole tokens,
/// with a plain bicubic filter, as the model's own code does. By the adaptive rule it is cropped, filtered with
/// antialiasing to the bucket, and then to the latent's size as `LightX2V` does. For an exact size it is cropped to
/// that shape and filtered with antialiasing, which also serves to enlarge; `resize` has no effect there.
///
/// # Errors
/// [`crate::Error::Image`] if the picture is so narrow that the video would have no height or width.
pub fn fit(picture: &Picture, size: &Size, resize: Resize) -> Result<Fitted> {
    let (width, height) = (picture.width, picture.height);
    let (height, width, first_frame) = match (*size, resize) {
        (Size::Exact { width: to_width, height: to_height }, _) => {
            let crop = centre(width, height, to_width, to_height);
            let (to_height, to_width) = (to_height as usize, to_width as usize);
            (to_height, to_width, bicubic_antialiased(picture, crop, to_height, to_width))
        }
        (_, Resize::Official) => {
            let (lat_h, lat_w) = official(width, height, size.area())?;
            let (to_height, to_width) = (lat_h as usize * LATENT, lat_w as usize * LATENT);
            (to_height, to_width, bicubic(picture, to_height, to_width))
        }
        (_, Resize::Adaptive) => {
            let rule = adaptive(width, height, *size)?;
            let (bucket_height, bucket_width) = (rule.bucket_height as usize, rule.bucket_width as usize);
            let bucket = bicubic_antialiased(picture, rule.crop, bucket_height, bucket_width);
            let (to_height, to_width) = (rule.lat_h as usize * LATENT, rule.lat_w as usize * LATENT);
            let frame = resize::bicubic_planes(&bucket, [bucket_height, bucket_width], to_height, to_width);
            (to_height, to_width, frame)
        }
    };
    Ok(Fitted { height, width, first_frame })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn picture(width: u32, height: u32) -> Picture {
        // The picture has fine stripes to the left of white, which show the effects of filters and crops.
        let pixel = |i: u32| if i % width < width / 2 { (i % 2 * 255) as u8 } else { 255 };
        let rgb = (0..width * height).flat_map(|i| [pixel(i), pixel(i), 0]).collect();
        Picture { width, height, rgb }
    }

    #[test]
    fn an_exact_size_is_met() {
        let size: Size = "64x32".parse().expect("a size");
        for (width, height) in [(64, 32), (640, 480), (31, 90), (1, 1), (1, 500), (500, 1)] {
            let fitted = fit(&picture(width, height), &size, Resize::Adaptive).expect("it fits");
            assert_eq!((fitted.height, fitted.width), (32, 64));
            assert_eq!(fitted.first_frame.len(), 3 * 32 * 64);
            assert!(fitted.first_frame.iter().all(|x| x.is_finite()));
            assert!(
                fitted.first_frame[2 * 32 * 64..].iter().all(|&x| (x + 1.0).abs() < 1e-5),
                "blue stays -1"
            );
        }
        let same = fit(&picture(64, 32), &size, Resize::Official).expect("it fits");
        assert_eq!(same.first_frame[..2], [-1.0, 1.0]);
        // Where the picture is shrunk, stripes of one pixel must become grey, not another pattern.
        let small = fit(&picture(640, 320), &size, Resize::Official).expect("it fits");
        assert!(small.first_frame[64 * 5 + 5..][..20].iter().all(|x| x.abs() < 0.05));
    }

    #[test]
    fn an_area_keeps_or_crops_the_shape() {
        let fitted = fit(&picture(832, 480), &Size::P480, Resize::Official).expect("it fits");
        assert_eq!((fitted.latent_height(), fitted.latent_width()), (58, 104));
        let fitted = fit(&picture(90, 100), &Size::P480, Resize::Adaptive).expect("it fits");
        assert_eq!((fitted.latent_height(), fitted.latent_width()), (60, 60));
        let narrow = fit(&picture(1, 10000), &Size::P480, Resize::Official).expect_err("it is too narrow");
        assert_eq!(narrow.code().name(), "invalid-image");
    }
}
