//! Bicubic filters, as `torch.nn.functional.interpolate` computes them in single precision.

use std::sync::LazyLock;

use rayon::prelude::*;

use super::{Crop, Picture};

/// The cubic's parameter in the plain filter.
const A_PLAIN: f32 = -0.75;
/// The cubic's parameter in the filter with antialiasing (Keys 1981).
const A_ANTIALIASED: f32 = -0.5;

/// The side of CLIP's input.
const CLIP_SIDE: usize = 224;
/// The mean of CLIP's training pictures, for red, green and blue.
const CLIP_MEAN: [f32; 3] = [0.48145466, 0.4578275, 0.40821073];
/// The standard deviation of CLIP's training pictures, for red, green and blue.
const CLIP_STD: [f32; 3] = [0.26862954, 0.2613026, 0.2757771];

/// Converts a byte to a number from -1 to 1: divided by 255, less a half, over a half.
static UNIT: LazyLock<[f32; 256]> = LazyLock::new(|| std::array::from_fn(|i| (i as f32 / 255.0 - 0.5) / 0.5));

/// Returns the whole picture from -1 to 1, filtered to [3, height, width] as `interpolate(mode="bicubic")` does: with
/// four taps a side however much it shrinks, and without keeping its shape.
pub fn bicubic(picture: &Picture, height: usize, width: usize) -> Vec<f32> {
    let source = [picture.height as usize, picture.width as usize];
    let (row_bytes, unit) = (3 * source[1], &*UNIT);
    plain(source, height, width, |channel, y, x| {
        unit[usize::from(picture.rgb[row_bytes * y + 3 * x + channel])]
    })
}

/// Filters [3, h, w] single-precision numbers in the same way.
pub(super) fn bicubic_planes(planes: &[f32], source: [usize; 2], height: usize, width: usize) -> Vec<f32> {
    let [h, w] = source;
    plain(source, height, width, |channel, y, x| planes[(channel * h + y) * w + x])
}

/// Returns a part of the picture from -1 to 1, filtered to [3, height, width] as `interpolate(mode="bicubic",
/// antialias=True)` does: the more it shrinks, the more taps there are.
pub fn bicubic_antialiased(picture: &Picture, crop: Crop, height: usize, width: usize) -> Vec<f32> {
    let rows = crop.height as usize;
    let columns: Vec<Taps> = (0..width).map(|x| Taps::antialiased(x, crop.width as usize, width)).collect();
    let lines: Vec<Taps> = (0..height).map(|y| Taps::antialiased(y, rows, height)).collect();
    // Rows are filtered first, to [rows, 3, width].
    let mut narrow = vec![0.0; rows * 3 * width];
    narrow.par_chunks_mut(3 * width).enumerate().for_each(|(y, out)| {
        let start = 3 * ((crop.top as usize + y) * picture.width as usize + crop.left as usize);
        let row = &picture.rgb[start..][..3 * crop.width as usize];
        for (channel, out) in out.chunks_mut(width).enumerate() {
            for (value, taps) in out.iter_mut().zip(&columns) {
                *value = taps.sum(|x| UNIT[usize::from(row[3 * x + channel])]);
            }
        }
    });
    let mut out = vec![0.0; 3 * height * width];
    out.par_chunks_mut(width).enumerate().for_each(|(i, out)| {
        let (channel, taps) = (i / height, &lines[i % height]);
        for (x, value) in out.iter_mut().enumerate() {
            *value = taps.sum(|y| narrow[(3 * y + channel) * width + x]);
        }
    });
    out
}

/// Returns CLIP's input, [3, 224, 224]: the whole picture, filtered without keeping its shape, and normalised.
pub fn clip_pixels(picture: &Picture) -> Vec<f32> {
    let mut pixels = bicubic(picture, CLIP_SIDE, CLIP_SIDE);
    for (channel, plane) in pixels.chunks_mut(CLIP_SIDE * CLIP_SIDE).enumerate() {
        for value in plane {
            *value = (*value * 0.5 + 0.5 - CLIP_MEAN[channel]) / CLIP_STD[channel];
        }
    }
    pixels
}

/// Filters with four taps across, then four down.
fn plain(
    source: [usize; 2],
    height: usize,
    width: usize,
    pixel: impl Fn(usize, usize, usize) -> f32 + Sync,
) -> Vec<f32> {
    let columns: Vec<Cubic> = (0..width).map(|x| Cubic::new(x, source[1], width)).collect();
    let mut out = vec![0.0; 3 * height * width];
    out.par_chunks_mut(width).enumerate().for_each(|(i, out)| {
        let (channel, row) = (i / height, Cubic::new(i % height, source[0], height));
        for (value, column) in out.iter_mut().zip(&columns) {
            *value = row.sum(|y| column.sum(|x| pixel(channel, y, x)));
        }
    });
    out
}

/// The four neighbours of a place in the source, and their weights.
struct Cubic {
    indices: [usize; 4],
    weights: [f32; 4],
}

impl Cubic {
    /// Returns the taps of element `i` of `to` that are made of `from`.
    fn new(i: usize, from: usize, to: usize) -> Self {
        let scale = from as f32 / to as f32;
        // Fused, as PyTorch's vectorised build does it: of thousands of pixels the last bit is half a thousandth.
        let place = scale.mul_add(i as f32 + 0.5, -0.5);
        let first = place.floor();
        let t = place - first;
        let weights =
            [cubic(t + 1.0, A_PLAIN), cubic(t, A_PLAIN), cubic(1.0 - t, A_PLAIN), cubic(2.0 - t, A_PLAIN)];
        // Beyond the edge, the edge is repeated.
        let last = from as i64 - 1;
        Self { indices: [-1, 0, 1, 2].map(|tap| (first as i64 + tap).clamp(0, last) as usize), weights }
    }

    fn sum(&self, value: impl Fn(usize) -> f32) -> f32 {
        self.indices.iter().zip(&self.weights).map(|(&i, weight)| weight * value(i)).sum()
    }
}

/// Neighbouring elements of the source and their weights, which add up to 1.
struct Taps {
    start: usize,
    weights: Vec<f32>,
}

impl Taps {
    /// Returns the taps of element `i` of `to` that are made of `from`.
    fn antialiased(i: usize, from: usize, to: usize) -> Self {
        let scale = from as f32 / to as f32;
        let stretch = scale.max(1.0);
        let support = 2.0 * stretch;
        let centre = scale * (i as f32 + 0.5);
        let start = ((centre - support + 0.5) as i64).max(0) as usize;
        let end = ((centre + support + 0.5) as usize).min(from);
        let narrow = 1.0 / stretch;
        let weight = |tap: usize| cubic((tap as f32 - centre + 0.5) * narrow, A_ANTIALIASED);
        let mut weights: Vec<f32> = (start..end).map(weight).collect();
        let total: f32 = weights.iter().sum();
        for weight in &mut weights {
            *weight /= total;
        }
        Self { start, weights }
    }

    fn sum(&self, value: impl Fn(usize) -> f32) -> f32 {
        self.weights.iter().enumerate().map(|(i, weight)| weight * value(self.start + i)).sum()
    }
}

/// Returns the cubic convolution kernel with parameter `a` at a distance `x`.
fn cubic(x: f32, a: f32) -> f32 {
    let x = x.abs();
    if x <= 1.0 {
        ((a + 2.0) * x - (a + 3.0)) * x * x + 1.0
    } else if x < 2.0 {
        ((a * x - 5.0 * a) * x + 8.0 * a) * x - 4.0 * a
    } else {
        0.0
    }
}

#[cfg(test)]
mod tests {
    use super::super::{adaptive, decode, fit, official};
    use super::*;
    use crate::goldens::{Golden, fixture};
    use animd_protocol::request::{Resize, Size};

    /// Both sides add sixteen products in single precision, in another order: 16 * 2^-24 of values up to 2.5.
    const TOLERANCE: f32 = 2.4e-6;

    fn close(name: &str, got: &[f32], tolerance: f32) {
        Golden::read(&fixture("tiny-a/golden")).compare_each(
            name,
            got.iter().map(|v| f64::from(*v)),
            tolerance.into(),
        );
    }

    /// Returns every `step`th row and column of each plane.
    fn every(step: usize, planes: &[f32], height: usize, width: usize) -> Vec<f32> {
        let rows = (0..3).flat_map(|plane| (0..height).step_by(step).map(move |y| plane * height + y));
        rows.flat_map(|row| planes[row * width..][..width].iter().step_by(step).copied()).collect()
    }

    #[test]
    fn the_reference_frames() {
        let first = decode(&fixture("tiny-a/input0.png")).expect("a picture");
        let (lat_h, lat_w) = official(first.width, first.height, 64 * 104).expect("it fits");
        close("vae.enc.first_frame", &bicubic(&first, lat_h as usize * 8, lat_w as usize * 8), TOLERANCE);
        let second = decode(&fixture("tiny-a/input1.png")).expect("a picture");
        let (lat_h, lat_w) = official(second.width, second.height, 64 * 104).expect("it fits");
        close("img.1.official_small", &bicubic(&second, lat_h as usize * 8, lat_w as usize * 8), TOLERANCE);
        for (name, resize) in
            [("img.1.official_480p_16", Resize::Official), ("img.1.lightx2v_480p_16", Resize::Adaptive)]
        {
            let fitted = fit(&second, &Size::P480, resize).expect("it fits");
            close(name, &every(16, &fitted.first_frame, fitted.height, fitted.width), TOLERANCE);
        }
    }

    #[test]
    fn the_reference_clip_pixels() {
        // Halved, then divided by a deviation of 0.26.
        let tolerance = TOLERANCE * 0.5 / 0.26;
        let first = clip_pixels(&decode(&fixture("tiny-a/input0.png")).expect("a picture"));
        close("clip.0.pixel_values", &first, tolerance);
        let second = clip_pixels(&decode(&fixture("tiny-a/input1.png")).expect("a picture"));
        close("clip.1.pixel_values_7", &every(7, &second, CLIP_SIDE, CLIP_SIDE), tolerance);
    }

    #[test]
    fn a_crop_is_as_if_cut_out_before() {
        let picture = decode(&fixture("tiny-a/input1.png")).expect("a picture");
        let crop = adaptive(picture.width, picture.height, Size::P720).expect("it fits").crop;
        assert_ne!((crop.width, crop.height), (picture.width, picture.height));
        let rows = picture.rgb.chunks_exact(3 * picture.width as usize).skip(crop.top as usize);
        let cut: Vec<u8> = rows
            .take(crop.height as usize)
            .flat_map(|row| &row[3 * crop.left as usize..][..3 * crop.width as usize])
            .copied()
            .collect();
        let cut = Picture { width: crop.width, height: crop.height, rgb: cut };
        let whole = Crop { top: 0, left: 0, height: crop.height, width: crop.width };
        assert_eq!(bicubic_antialiased(&picture, crop, 72, 128), bicubic_antialiased(&cut, whole, 72, 128));
    }
}
