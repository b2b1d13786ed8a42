//! Colours of latents without decoding them, by the linear map that comes nearest to this decoder.
//!
//! The map is fitted to the results of the loaded decoder, so it suits whatever weights are loaded.

use super::{LATENT_CHANNELS, Piece, Vae};
use crate::backend::Backend;
use crate::noise;
use crate::progress::Quiet;
use crate::{Error, Result};

/// The latent pixels along each side of the sample that is decoded for the fit.
const SIDE: usize = 32;
/// The latent pixels along each side of a patch of one value: real latents change slowly from pixel to pixel, too.
const PATCH: usize = 2;
/// The pixels of a latent pixel along each side.
const PIXELS: usize = 8;
/// The number of unknowns: the latent channels and a constant.
const UNKNOWNS: usize = LATENT_CHANNELS + 1;

/// The channels of a latent pixel, and the mean colour that the decoder makes of it, from -1 to 1.
pub(super) type Sample = ([f32; LATENT_CHANNELS], [f32; 3]);

/// Red, green and blue of a latent pixel, each a weighted sum of its channels and a constant.
#[derive(Clone, Debug, PartialEq)]
pub struct Colours([[f32; UNKNOWNS]; 3]);

impl<B: Backend> Vae<B> {
    /// Fits the map by least squares to one small decode of fixed noise, 8 x 8 pixels to a latent pixel.
    ///
    /// # Errors
    /// Returns the backend's errors.
    pub fn colours(&self, b: &B) -> Result<Colours> {
        Colours::fit(&self.colour_samples(b, 0)?)
    }

    /// Decodes one small sample of noise.
    pub(super) fn colour_samples(&self, b: &B, seed: u64) -> Result<Vec<Sample>> {
        const PATCHES: usize = SIDE / PATCH;
        let noise = noise::cpu(seed).randn(LATENT_CHANNELS * PATCHES * PATCHES);
        let at = |c: usize, y: usize, x: usize| noise[(c * PATCHES + y / PATCH) * PATCHES + x / PATCH];
        let volume: Vec<f32> = (0..LATENT_CHANNELS)
            .flat_map(|c| (0..SIDE).flat_map(move |y| (0..SIDE).map(move |x| (c, y, x))))
            .map(|(c, y, x)| at(c, y, x))
            .collect();
        // The sample has the same frame twice, because a video's first frame is decoded differently from all others.
        let frame = b.upload(&volume, &[LATENT_CHANNELS, 1, SIDE, SIDE])?;
        let mut last = None;
        let mut sink = |piece: Piece<B::Tensor>| {
            last = Some(piece.frames);
            Ok(())
        };
        self.decode(b, &b.concat(&[&frame, &frame], 1)?, None, &Quiet, &mut sink, None)?;
        let last = last.ok_or_else(|| Error::Internal("the decoder gave no frames".into()))?;
        let frames = b.shape(&last)[1];
        let decoded = b.download(&last)?;

        let width = SIDE * PIXELS;
        let mean = |c: usize, y: usize, x: usize| {
            let rows = (0..frames)
                .flat_map(|t| (0..PIXELS).map(move |i| ((c * frames + t) * width + y * PIXELS + i) * width));
            let sum: f32 =
                rows.flat_map(|row| &decoded[row + x * PIXELS..][..PIXELS]).map(|v| v.clamp(-1.0, 1.0)).sum();
            sum / (frames * PIXELS * PIXELS) as f32
        };
        let places = (0..SIDE).flat_map(|y| (0..SIDE).map(move |x| (y, x)));
        let sample = |(y, x)| (std::array::from_fn(|c| at(c, y, x)), std::array::from_fn(|c| mean(c, y, x)));
        Ok(places.map(sample).collect())
    }
}

impl Colours {
    /// Solves the least-squares problem.
    fn fit(samples: &[Sample]) -> Result<Self> {
        // These are the normal equations, with the three colours as right-hand sides beside the matrix.
        let mut rows = [[0.0f64; UNKNOWNS + 3]; UNKNOWNS];
        for (latent, pixel) in samples {
            let terms: Vec<f64> = latent.iter().map(|v| f64::from(*v)).chain([1.0]).collect();
            let all: Vec<f64> = terms.iter().copied().chain(pixel.iter().map(|v| f64::from(*v))).collect();
            for (row, term) in rows.iter_mut().zip(&terms) {
                row.iter_mut().zip(&all).for_each(|(sum, v)| *sum += term * v);
            }
        }
        // This is Gauss-Jordan elimination. The matrix is positive definite, so no pivoting is needed.
        for i in 0..UNKNOWNS {
            let pivot = rows[i][i];
            if pivot.is_nan() || pivot <= 0.0 {
                return Err(Error::Internal("the decoder's answers to noise are no numbers".into()));
            }
            rows[i].iter_mut().for_each(|v| *v /= pivot);
            let solved = rows[i];
            for (_, row) in rows.iter_mut().enumerate().filter(|(j, _)| *j != i) {
                let factor = row[i];
                row.iter_mut().zip(&solved).for_each(|(v, s)| *v -= factor * s);
            }
        }
        Ok(Self(std::array::from_fn(|c| std::array::from_fn(|i| rows[i][UNKNOWNS + c] as f32))))
    }

    /// Returns the colour of a latent pixel, about -1 to 1; `latent` gives its channels.
    pub fn of(&self, latent: impl Fn(usize) -> f32) -> [f32; 3] {
        self.0.map(|weights| {
            (0..LATENT_CHANNELS).map(|c| weights[c] * latent(c)).sum::<f32>() + weights[LATENT_CHANNELS]
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_linear_decoder_is_found_exactly() -> Result<()> {
        let noise = noise::cpu(7).randn(LATENT_CHANNELS * 64);
        let latents: Vec<[f32; LATENT_CHANNELS]> = noise.as_chunks().0.to_vec();
        let truth =
            Colours(std::array::from_fn(|c| std::array::from_fn(|i| (c * 17 + i) as f32 / 50.0 - 0.4)));
        let samples: Vec<Sample> =
            latents.into_iter().map(|latent| (latent, truth.of(|c| latent[c]))).collect();
        let found = Colours::fit(&samples)?;
        for (found, truth) in found.0.iter().flatten().zip(truth.0.iter().flatten()) {
            assert!((found - truth).abs() < 1e-5, "{found} is not {truth}");
        }
        // Fewer samples than unknowns do not determine the map.
        assert!(Colours::fit(&samples[..1]).is_err());
        Ok(())
    }
}
