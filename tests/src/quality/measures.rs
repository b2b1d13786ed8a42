//! How far a video and its latents are from others: PSNR, SSIM and the relative L2 norm.

use animd_engine::pipeline::Frames;
use serde::Serialize;

/// The PSNR of equal frames, in dB; without a limit it would be infinite.
pub const EQUAL: f64 = 100.0;
/// The window of SSIM, as its authors have it (Wang et al. 2004): a Gaussian of 11 pixels.
const WINDOW: usize = 11;
/// The standard deviation of the window, in pixels.
const DEVIATION: f64 = 1.5;
/// The constants of SSIM for values up to 255.
const C1: f64 = (0.01 * 255.0) * (0.01 * 255.0);
const C2: f64 = (0.03 * 255.0) * (0.03 * 255.0);

/// How far one video is from the exact one.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Measures {
    /// PSNR over all frames, in dB.
    pub psnr: f64,
    /// The mean SSIM of the frames' brightness.
    pub ssim: f64,
    /// The L2 norm of the difference of the last latents, relative to that of the exact ones.
    pub latents: f64,
    /// By how many dB the video is nearer to the true motion than the exact one is.
    pub nearer: f64,
}

impl Measures {
    /// Compares the frames of a video of `size` width and height with the exact ones.
    pub fn new(exact: &Frames, approximate: &Frames, [width, height]: [usize; 2], nearer: f64) -> Self {
        let brightness = |frames: &Frames| -> Vec<f64> {
            let weighted =
                |p: &[u8]| 0.2126 * f64::from(p[0]) + 0.7152 * f64::from(p[1]) + 0.0722 * f64::from(p[2]);
            frames.rgb.chunks_exact(3).map(weighted).collect()
        };
        let (a, b) = (brightness(exact), brightness(approximate));
        let frames = a.chunks_exact(width * height).zip(b.chunks_exact(width * height));
        let each: Vec<f64> = frames.map(|(a, b)| ssim(a, b, width)).collect();
        Self {
            psnr: psnr(exact.rgb.iter().zip(&approximate.rgb)),
            ssim: each.iter().sum::<f64>() / each.len() as f64,
            latents: relative_l2(&exact.latents, &approximate.latents),
            nearer,
        }
    }
}

/// Returns the PSNR of pairs of values, in dB, at most [`EQUAL`].
pub fn psnr<'a>(pairs: impl Iterator<Item = (&'a u8, &'a u8)>) -> f64 {
    let (mut squares, mut count) = (0.0, 0.0);
    for (a, b) in pairs {
        squares += f64::from(a.abs_diff(*b)).powi(2);
        count += 1.0;
    }
    (10.0 * (255.0 * 255.0 * count / squares).log10()).min(EQUAL)
}

/// Returns the L2 norm of the difference, relative to that of `exact`.
pub fn relative_l2(exact: &[f32], approximate: &[f32]) -> f64 {
    let squares = |values: &mut dyn Iterator<Item = f64>| values.map(|value| value * value).sum::<f64>();
    let difference = squares(&mut exact.iter().zip(approximate).map(|(a, b)| f64::from(*a) - f64::from(*b)));
    (difference / squares(&mut exact.iter().map(|a| f64::from(*a)))).sqrt()
}

/// Returns the mean SSIM of two frames of values up to 255, `[height, width]`, wherever the window has all its pixels.
pub fn ssim(a: &[f64], b: &[f64], width: usize) -> f64 {
    let product = |x: &[f64], y: &[f64]| -> Vec<f64> { x.iter().zip(y).map(|(x, y)| x * y).collect() };
    let window = window();
    let [mean_a, mean_b, aa, bb, ab] =
        [a, b, &product(a, a), &product(b, b), &product(a, b)].map(|values| blurred(values, width, &window));
    let each = mean_a.iter().zip(&mean_b).zip(aa.iter().zip(&bb).zip(&ab));
    let each = each.map(|((ma, mb), ((aa, bb), ab))| {
        let (va, vb, covariance) = (aa - ma * ma, bb - mb * mb, ab - ma * mb);
        (2.0 * ma * mb + C1) * (2.0 * covariance + C2) / ((ma * ma + mb * mb + C1) * (va + vb + C2))
    });
    each.sum::<f64>() / mean_a.len() as f64
}

/// Returns the window's weights along one axis, whose sum is 1.
fn window() -> [f64; WINDOW] {
    let weights: [f64; WINDOW] = std::array::from_fn(|i| {
        let away = i as f64 - (WINDOW / 2) as f64;
        (-away * away / (2.0 * DEVIATION * DEVIATION)).exp()
    });
    let sum: f64 = weights.iter().sum();
    weights.map(|weight| weight / sum)
}

/// Returns the weighted means in the window, of which the frame has `WINDOW - 1` fewer along each axis.
fn blurred(values: &[f64], width: usize, window: &[f64; WINDOW]) -> Vec<f64> {
    let weigh =
        |at: &dyn Fn(usize) -> f64| window.iter().enumerate().map(|(i, weight)| weight * at(i)).sum::<f64>();
    let out = width + 1 - WINDOW;
    let rows: Vec<f64> =
        values.chunks_exact(width).flat_map(|row| (0..out).map(move |x| weigh(&|i| row[x + i]))).collect();
    let height = values.len() / width + 1 - WINDOW;
    (0..height * out).map(|at| weigh(&|i| rows[at + i * out])).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const WIDTH: usize = 24;
    const HEIGHT: usize = 16;

    fn frame(value: impl Fn(usize, usize) -> f64) -> Vec<f64> {
        (0..WIDTH * HEIGHT).map(|at| value(at % WIDTH, at / WIDTH)).collect()
    }

    #[test]
    fn psnr_and_l2_are_what_their_formulas_give() {
        assert_eq!(psnr([1, 2].iter().zip(&[1, 2])), EQUAL);
        assert!((psnr([0, 0].iter().zip(&[255, 255]))).abs() < 1e-12);
        // A mean square of 50.
        assert!((psnr([10, 20].iter().zip(&[20, 20])) - 10.0 * (65025.0_f64 / 50.0).log10()).abs() < 1e-12);
        assert_eq!(relative_l2(&[3.0, 4.0], &[3.0, 4.0]), 0.0);
        assert!((relative_l2(&[3.0, 4.0], &[0.0, 8.0]) - 1.0).abs() < 1e-12);
    }

    #[test]
    fn ssim_is_one_for_equal_frames_and_falls_with_brightness_contrast_and_structure() {
        let noise = |x: usize, y: usize| ((x * 37 + y * 101) % 64) as f64;
        let a = frame(|x, y| 100.0 + noise(x, y));
        assert!((ssim(&a, &a, WIDTH) - 1.0).abs() < 1e-12);
        // Flat frames have brightness alone.
        let flat = ssim(&frame(|_, _| 100.0), &frame(|_, _| 110.0), WIDTH);
        assert!(
            (flat - (2.0 * 100.0 * 110.0 + C1) / (100.0_f64.powi(2) + 110.0_f64.powi(2) + C1)).abs() < 1e-9
        );
        // Of stripes that are the other way round, the window sees the same mean, the same variance and its negative. The window
        // does not weigh dark and bright pixels quite alike: the means are apart by less than 0.01.
        let stripes = |sign: f64| frame(move |x, _| 128.0 + sign * if x % 2 == 0 { 20.0 } else { -20.0 });
        let other_way = ssim(&stripes(1.0), &stripes(-1.0), WIDTH);
        assert!((other_way - (C2 - 800.0) / (C2 + 800.0)).abs() < 1e-3, "{other_way}");
        let blurred = frame(|x, y| 100.0 + f64::midpoint(noise(x, y), noise(x + 1, y)));
        let shifted = frame(|x, y| 100.0 + noise(x + 3, y));
        let [blurred, shifted] = [blurred, shifted].map(|b| ssim(&a, &b, WIDTH));
        assert!(shifted < blurred && blurred < 1.0, "{shifted}, {blurred}");
    }
}
