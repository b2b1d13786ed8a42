//! Computes the size of a picture's video.

use animd_protocol::request::{MAX_SIDE, Size};

use crate::{Error, Result};

use super::LATENT;

/// A part of a picture, in pixels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Crop {
    /// The first row.
    pub top: u32,
    /// The first column.
    pub left: u32,
    /// The number of rows.
    pub height: u32,
    /// The number of columns.
    pub width: u32,
}

/// The sizes that `LightX2V`'s `adaptive` rule gives for a picture.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Adaptive {
    /// The width, in pixels, that the crop is filtered to.
    pub bucket_height: u32,
    /// The height, in pixels, that the crop is filtered to.
    pub bucket_width: u32,
    /// The part of the picture that is kept.
    pub crop: Crop,
    /// The latent's height.
    pub lat_h: u32,
    /// The latent's width.
    pub lat_w: u32,
}

/// Returns the latent's height and width, both even, by the official rule (Wan2.1, `image2video.py`), for a picture of
/// `width` by `height` pixels and about `area` pixels of video.
///
/// # Errors
/// [`Error::Image`] if the picture is so narrow that a side is under 16 pixels or over [`MAX_SIDE`].
pub fn official(width: u32, height: u32, area: u32) -> Result<(u32, u32)> {
    let aspect = f64::from(height) / f64::from(width);
    let area = f64::from(area);
    // In double precision and in this order; 832x480 gives 58 rows, not 60, because its own root falls just short.
    let latent = |pixels: f64| ((pixels.sqrt() / 8.0).floor() / 2.0).floor() * 2.0;
    let (lat_h, lat_w) = (latent(area * aspect), latent(area / aspect));
    let most = f64::from(MAX_SIDE) / LATENT as f64;
    if !(2.0..=most).contains(&lat_h) || !(2.0..=most).contains(&lat_w) {
        return Err(Error::Image(format!(
            "a picture of {width}x{height} is too narrow: its video would have {}x{} pixels, where each side must have \
             16 to {MAX_SIDE}; crop the picture, or give an exact size",
            lat_w * 8.0,
            lat_h * 8.0
        )));
    }
    Ok((lat_h as u32, lat_w as u32))
}

/// Applies `LightX2V`'s rule `resize_mode: adaptive`: the nearest of three shapes, and the picture's centre in that
/// shape.
///
/// # Errors
/// [`Error::Setting`] for an exact size, which has no buckets.
pub fn adaptive(width: u32, height: u32, size: Size) -> Result<Adaptive> {
    /// Height by width, and the bucket (height, width) for 480p and for 720p.
    const SHAPES: [(f64, [(u32, u32); 2]); 3] = [
        (0.667, [(480, 832), (720, 1280)]),
        (1.5, [(832, 480), (1280, 720)]),
        (1.0, [(480, 480), (960, 960)]),
    ];
    let column = match size {
        Size::P480 => 0,
        Size::P720 => 1,
        Size::Exact { .. } => {
            return Err(Error::Setting(format!(
                "the adaptive rule knows the sizes `480p` and `720p`, not `{size}`; leave `resize` out"
            )));
        }
    };
    let aspect = f64::from(height) / f64::from(width);
    let mut shape = SHAPES[0];
    for other in SHAPES {
        if (other.0 - aspect).abs() < (shape.0 - aspect).abs() {
            shape = other;
        }
    }
    let (bucket_height, bucket_width) = shape.1[column];
    let target = f64::from(bucket_height) / f64::from(bucket_width);
    let (mut rows, mut columns) = (height, width);
    // A picture that nearly has the shape is stretched to it; otherwise the excess is cut off, in double precision.
    if (aspect - target).abs() >= 0.01 {
        if aspect > target {
            rows = ((target * f64::from(width)) as u32).clamp(1, height);
        } else {
            columns = ((f64::from(height) / target) as u32).clamp(1, width);
        }
    }
    let crop = Crop { top: (height - rows) / 2, left: (width - columns) / 2, height: rows, width: columns };
    let even = |side: u32| (side / 16).max(1) * 2;
    Ok(Adaptive { bucket_height, bucket_width, crop, lat_h: even(bucket_height), lat_w: even(bucket_width) })
}

/// Returns the largest part at the picture's centre that has the shape of `to_width` by `to_height`, to the pixel.
pub fn centre(width: u32, height: u32, to_width: u32, to_height: u32) -> Crop {
    let [w, h, to_w, to_h] = [width, height, to_width, to_height].map(u64::from);
    // The side is rounded and is never 0; the side that is not cut keeps its length.
    let rows = ((2 * w * to_h + to_w) / (2 * to_w)).clamp(1, h) as u32;
    let columns = ((2 * h * to_w + to_h) / (2 * to_h)).clamp(1, w) as u32;
    Crop { top: (height - rows) / 2, left: (width - columns) / 2, height: rows, width: columns }
}

/// Returns the height and width in pixels by the rule of diffusers' documentation: rounded, then cut to a multiple of
/// 16.
///
/// No option of animd selects this rule; it is here because the reference records it beside the other two.
pub fn diffusers_example(width: u32, height: u32, area: u32) -> (u32, u32) {
    let aspect = f64::from(height) / f64::from(width);
    let side = |pixels: f64| pixels.sqrt().round_ties_even() as u32 / 16 * 16;
    (side(f64::from(area) * aspect), side(f64::from(area) / aspect))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::goldens::{fixture, json};

    #[test]
    fn the_reference_sizes() {
        let golden = json(&fixture("tiny-a/golden.json"));
        let rules = golden["image_rules"].as_array().expect("a list");
        assert!(rules.len() >= 13);
        for rule in rules {
            let wh: [u32; 2] = ["w", "h"].map(|side| rule[side].as_u64().expect("a number") as u32);
            for size in [Size::P480, Size::P720] {
                let expected = &rule[size.to_string()];
                let (lat_h, lat_w) = official(wh[0], wh[1], size.area()).expect("it fits");
                assert_eq!(serde_json::json!([lat_h, lat_w]), expected["official_lat_hw"], "{wh:?}");
                assert_eq!(serde_json::json!([lat_h * 8, lat_w * 8]), expected["official_hw"], "{wh:?}");
                let (h, w) = diffusers_example(wh[0], wh[1], size.area());
                assert_eq!(serde_json::json!([h, w]), expected["diffusers_example_hw"], "{wh:?}");
                let Adaptive { bucket_height, bucket_width, crop, lat_h, lat_w } =
                    adaptive(wh[0], wh[1], size).expect("it fits");
                let edges = [crop.top, crop.top + crop.height, crop.left, crop.left + crop.width];
                let got = serde_json::json!({
                    "bucket_hw": [bucket_height, bucket_width], "crop_y0y1x0x1": edges, "lat_hw": [lat_h, lat_w]
                });
                assert_eq!(got, expected["lightx2v_adaptive"], "{wh:?}");
            }
        }
    }

    #[test]
    fn extreme_shapes_are_refused_in_words() {
        for (width, height) in [(1, 10000), (10000, 1), (16, 30000), (32768, 40)] {
            let message =
                official(width, height, Size::P480.area()).expect_err("it is too narrow").to_string();
            assert!(message.contains(&format!("{width}x{height}")) && message.contains("crop"), "{message}");
        }
        assert_eq!(official(1, 1, 16 * 16).expect("16x16 is a video"), (2, 2));
        assert!(official(1, 1, 16 * 16 - 1).is_err());
    }

    #[test]
    fn the_centre_has_the_shape() {
        let whole = |width, height| Crop { top: 0, left: 0, height, width };
        assert_eq!(centre(1664, 960, 832, 480), whole(1664, 960));
        assert_eq!(centre(3, 2, 480, 320), whole(3, 2));
        assert_eq!(centre(100, 100, 64, 32), Crop { top: 25, left: 0, height: 50, width: 100 });
        assert_eq!(centre(1000, 10, 16, 32), Crop { top: 0, left: 497, height: 10, width: 5 });
        assert_eq!(centre(1, 32768, 16384, 16), Crop { top: 16383, left: 0, height: 1, width: 1 });
    }

    #[test]
    fn any_shape_has_a_crop() {
        for width in [1, 2, 3, 479, 32768] {
            for height in [1, 2, 3, 479, 32768] {
                let Crop { top, left, height: rows, width: columns } =
                    adaptive(width, height, Size::P720).expect("it fits").crop;
                assert!(rows >= 1 && columns >= 1 && top + rows <= height && left + columns <= width);
            }
        }
        assert!(adaptive(10, 10, Size::Exact { width: 64, height: 64 }).is_err());
    }
}
