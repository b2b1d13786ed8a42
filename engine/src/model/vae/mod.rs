//! The causal 3D VAE of Wan2.1: frames to latents an eighth as large and a quarter as many, and back.
//!
//! Layers and their names are those of the official `wan/modules/vae.py`. A video of 1 + 4n frames has 1 + n latent
//! frames; it is encoded and decoded a latent frame at a time, each layer remembering the frames that its kernel reaches
//! back to.

mod colours;
mod decoder;
mod encoder;
mod layers;
mod tiles;

#[cfg(test)]
mod tests;

use rayon::prelude::*;

use super::Probe;
use crate::backend::ConvOps;
use crate::backend::conv::Step;
use crate::progress::Observer;
use crate::weights::{HostTensor, VaeConfig, WeightSource};
use crate::{Error, Result};

pub use colours::Colours;
use decoder::Decoder;
use encoder::Encoder;
use layers::{Chunk, Memory, each_frame, load_conv};
use tiles::{Grid, concat};

/// Channels of a latent.
pub const LATENT_CHANNELS: usize = 16;

/// The mean of each latent channel over the training videos.
pub const LATENT_MEAN: [f32; LATENT_CHANNELS] = [
    -0.7571, -0.7089, -0.9113, 0.1075, -0.1745, 0.9653, -0.1517, 1.5508, 0.4134, -0.0715, 0.5517, -0.3632,
    -0.1922, -0.9497, 0.2503, -0.2921,
];

/// The standard deviation of each latent channel over the training videos.
pub const LATENT_STD: [f32; LATENT_CHANNELS] = [
    2.8184, 1.4541, 2.3275, 2.6558, 1.2196, 1.7708, 2.6052, 2.0743, 3.2687, 2.1526, 2.8652, 1.5579, 1.6382,
    1.1253, 2.8251, 1.9160,
];

/// Shows the frames of a chunk to the probe, if there is one and there are some.
fn see<T>(probe: &mut Probe<'_, T>, name: &str, chunk: &Chunk<T>) {
    if let (Some(probe), Some(frames)) = (probe, &chunk.frames) {
        probe(name, frames);
    }
}

/// The loaded autoencoder.
pub struct Vae<B: ConvOps> {
    encoder: Encoder<B>,
    /// `conv1`'s rows of the mean; the variance's are of no use.
    mean: B::Conv,
    /// `conv2`.
    unpack: B::Conv,
    decoder: Decoder<B>,
}

impl<B: ConvOps> Vae<B> {
    /// Takes the weights to the device. Channels follow from the weights.
    ///
    /// # Errors
    /// `Model` for another number of latent channels than [`LATENT_CHANNELS`]; what `weights` or the backend reports.
    pub fn load(b: &B, weights: &dyn WeightSource, config: &VaeConfig) -> Result<Self> {
        if config.z_dim != LATENT_CHANNELS {
            return Err(Error::Model(format!(
                "the VAE has {} latent channels, Wan2.1's has {LATENT_CHANNELS}: give `Wan2.1_VAE.pth`",
                config.z_dim
            )));
        }
        let first = |mut t: HostTensor| {
            t.data.truncate(t.data.len() / 2);
            t.shape[0] /= 2;
            t
        };
        Ok(Self {
            encoder: Encoder::load(b, weights)?,
            mean: b
                .load_conv(first(weights.tensor("conv1.weight")?), first(weights.tensor("conv1.bias")?))?,
            unpack: load_conv(b, weights, "conv2")?.0,
            decoder: Decoder::load(b, weights)?,
        })
    }

    /// Normalised latents `[16, 1 + n, h/8, w/8]` of a video `[3, 1 + 4n, h, w]` in -1..1.
    ///
    /// # Errors
    /// `Setting` for extents that are not so; `Canceled`; what the backend reports.
    pub fn encode(&self, b: &B, video: &B::Tensor, observer: &dyn Observer) -> Result<B::Tensor> {
        normalize(b, &self.encode_mu(b, video, observer, None)?)
    }

    /// Normalised latents of a picture `[3, 1, h, w]` with black (zero) frames after it, `latent_frames` in all.
    ///
    /// What repeats is computed once; the result is that of [`Vae::encode`] to the bit.
    ///
    /// # Errors
    /// As [`Vae::encode`].
    pub fn encode_picture(
        &self,
        b: &B,
        picture: &B::Tensor,
        latent_frames: usize,
        observer: &dyn Observer,
    ) -> Result<B::Tensor> {
        let [.., h, w] = extents(b, picture, 3, 8)?;
        self.encode_picture_in(b, picture, latent_frames, observer, &Grid::whole(h, w))
    }

    /// [`Vae::encode_picture`] tile by tile: less memory, other values where tiles overlap.
    ///
    /// # Errors
    /// As [`Vae::encode`].
    pub fn encode_picture_tiled(
        &self,
        b: &B,
        picture: &B::Tensor,
        latent_frames: usize,
        observer: &dyn Observer,
    ) -> Result<B::Tensor> {
        let [.., h, w] = extents(b, picture, 3, 8)?;
        self.encode_picture_in(b, picture, latent_frames, observer, &Grid::new(h, w, 1))
    }

    fn encode_picture_in(
        &self,
        b: &B,
        picture: &B::Tensor,
        latent_frames: usize,
        observer: &dyn Observer,
        grid: &Grid,
    ) -> Result<B::Tensor> {
        let [_, frames, h, w] = extents(b, picture, 3, 8)?;
        if frames != 1 || latent_frames == 0 {
            return Err(Error::Setting(format!(
                "a picture of {frames} frames cannot start a video of {latent_frames} latent frames: both need 1"
            )));
        }
        let black = b.upload(&vec![0.0; 3 * h * w], &[3, 1, h, w])?;
        let chunks = (0..latent_frames).map(|i| {
            Ok(match i {
                0 => Chunk::new(picture.clone()),
                1 => Chunk { frames: Some(black.clone()), repeats: 3 },
                _ => Chunk { frames: None, repeats: 4 },
            })
        });
        normalize(b, &self.encode_chunks(b, chunks, true, grid, observer, None)?)
    }

    /// The means of the latents, before normalisation, of a video as in [`Vae::encode`]. `probe` sees the outputs of
    /// `enc.downsamples5`, `enc.downsamples8`, `enc.mid` and `enc.head`.
    ///
    /// # Errors
    /// As [`Vae::encode`].
    pub fn encode_mu(
        &self,
        b: &B,
        video: &B::Tensor,
        observer: &dyn Observer,
        probe: Probe<'_, B::Tensor>,
    ) -> Result<B::Tensor> {
        let [_, _, h, w] = extents(b, video, 3, 8)?;
        self.encode_video(b, video, &Grid::whole(h, w), observer, probe)
    }

    /// [`Vae::encode`] tile by tile: less memory, other values where tiles overlap.
    ///
    /// # Errors
    /// As [`Vae::encode`].
    pub fn encode_tiled(&self, b: &B, video: &B::Tensor, observer: &dyn Observer) -> Result<B::Tensor> {
        let [_, _, h, w] = extents(b, video, 3, 8)?;
        normalize(b, &self.encode_video(b, video, &Grid::new(h, w, 1), observer, None)?)
    }

    fn encode_video(
        &self,
        b: &B,
        video: &B::Tensor,
        grid: &Grid,
        observer: &dyn Observer,
        probe: Probe<'_, B::Tensor>,
    ) -> Result<B::Tensor> {
        let [_, frames, ..] = extents(b, video, 3, 8)?;
        if frames % 4 != 1 {
            return Err(Error::Setting(format!(
                "a video of {frames} frames cannot be encoded: use 4n + 1 frames"
            )));
        }
        let chunks = (0..=frames / 4).map(|i| match i {
            0 => Ok(Chunk::new(b.slice(video, 1, 0, 1)?)),
            _ => Ok(Chunk::new(b.slice(video, 1, 4 * i - 3, 4)?)),
        });
        self.encode_chunks(b, chunks, false, grid, observer, probe)
    }

    /// Encodes one tile after the other, so that only one has a memory at a time.
    fn encode_chunks(
        &self,
        b: &B,
        chunks: impl Iterator<Item = Result<Chunk<B::Tensor>>>,
        repeating: bool,
        grid: &Grid,
        observer: &dyn Observer,
        mut probe: Probe<'_, B::Tensor>,
    ) -> Result<B::Tensor> {
        let chunks = chunks.collect::<Result<Vec<_>>>()?;
        let mut latents = vec![Vec::with_capacity(grid.len()); chunks.len()];
        for i in 0..grid.len() {
            let mut memory = Memory::new(repeating);
            let mut latent = None;
            for (chunk, tiles) in chunks.iter().zip(&mut latents) {
                observer.check()?;
                b.throttle()?;
                let frames = chunk.frames.as_ref().map(|x| grid.cut(b, x, i)).transpose()?;
                let chunk = Chunk { frames, repeats: chunk.repeats };
                // A chunk is one latent frame: a new one, or the last one again.
                if let Some(x) = self.encoder.run(b, chunk, &mut memory, &mut probe)?.frames {
                    latent = Some(each_frame(b, &x, &self.mean, Step::default())?);
                }
                let none = || Error::Internal("the first chunk of a video has no frames".into());
                tiles.push(latent.clone().ok_or_else(none)?);
            }
        }
        let latent_grid = grid.scaled(1, 8);
        let latents = latents.into_iter().map(|tiles| latent_grid.join(b, tiles));
        concat(b, &latents.collect::<Result<Vec<_>>>()?, 1)
    }

    /// Decodes normalised latents `[16, 1 + n, h, w]`; `sink` gets frames `[3, .., 8h, 8w]` as soon as they are there,
    /// one and then fours. They are meant to be in -1..1 and may exceed it.
    ///
    /// # Errors
    /// `Setting` for other extents; what `sink` or the backend reports.
    pub fn decode(
        &self,
        b: &B,
        latents: &B::Tensor,
        sink: &mut dyn FnMut(B::Tensor) -> Result<()>,
    ) -> Result<()> {
        self.decode_probed(b, latents, sink, None)
    }

    /// [`Vae::decode`] tile by tile: less memory, other values where tiles overlap. `sink` gets its first frames when all
    /// tiles are decoded.
    ///
    /// # Errors
    /// As [`Vae::decode`]; `Canceled`.
    pub fn decode_tiled(
        &self,
        b: &B,
        latents: &B::Tensor,
        observer: &dyn Observer,
        sink: &mut dyn FnMut(B::Tensor) -> Result<()>,
    ) -> Result<()> {
        let [.., h, w] = extents(b, latents, LATENT_CHANNELS, 1)?;
        let grid = Grid::new(h, w, 8);
        if grid.len() == 1 {
            return self.decode(b, latents, sink);
        }
        let latents = self.unpack(b, latents)?;
        let mut frames = vec![Vec::with_capacity(grid.len()); latents.len()];
        for i in 0..grid.len() {
            let mut memory = Memory::new(false);
            for (latent, tiles) in latents.iter().zip(&mut frames) {
                observer.check()?;
                b.throttle()?;
                let tile = self.decode_chunk(b, grid.cut(b, latent, i)?, &mut memory, &mut None)?;
                // As many values as there are, however the backend lays them out.
                tiles.push(b.linear_combination(&[(1.0, &tile)])?);
            }
        }
        let frame_grid = grid.scaled(8, 1);
        frames.into_iter().try_for_each(|tiles| sink(frame_grid.join(b, tiles)?))
    }

    /// [`Vae::decode`]; `probe` sees the outputs of `dec.conv1`, `dec.middle` and `dec.upsamples3`.
    ///
    /// # Errors
    /// As [`Vae::decode`].
    pub fn decode_probed(
        &self,
        b: &B,
        latents: &B::Tensor,
        sink: &mut dyn FnMut(B::Tensor) -> Result<()>,
        mut probe: Probe<'_, B::Tensor>,
    ) -> Result<()> {
        extents(b, latents, LATENT_CHANNELS, 1)?;
        let mut memory = Memory::new(false);
        for latent in self.unpack(b, latents)? {
            sink(self.decode_chunk(b, latent, &mut memory, &mut probe)?)?;
        }
        Ok(())
    }

    /// What the decoder takes, frame by frame.
    fn unpack(&self, b: &B, latents: &B::Tensor) -> Result<Vec<B::Tensor>> {
        let latents = per_channel(b, latents, |v, mean, inverse| v / inverse + mean)?;
        let frame = |t| each_frame(b, &b.slice(&latents, 1, t, 1)?, &self.unpack, Step::default());
        (0..b.shape(&latents)[1]).map(frame).collect()
    }

    /// The frames of one latent frame.
    fn decode_chunk(
        &self,
        b: &B,
        latent: B::Tensor,
        memory: &mut Memory<B::Tensor>,
        probe: &mut Probe<'_, B::Tensor>,
    ) -> Result<B::Tensor> {
        let frames = self.decoder.run(b, Chunk::new(latent), memory, probe)?.frames;
        frames.ok_or_else(|| Error::Internal("the decoder gave no frames".into()))
    }
}

/// The extents of `x` `[channels, frames, h, w]`, if its channels are right and h and w are multiples of `of`.
fn extents<B: ConvOps>(b: &B, x: &B::Tensor, channels: usize, of: usize) -> Result<[usize; 4]> {
    let shape = b.shape(x);
    match <[usize; 4]>::try_from(&shape[..]) {
        Ok(e @ [c, t, h, w]) if c == channels && t * h * w > 0 && h % of == 0 && w % of == 0 => Ok(e),
        _ => Err(Error::Setting(format!(
            "the VAE cannot take {shape:?}: give {channels} channels of frames with extents that are multiples of {of}"
        ))),
    }
}

/// Maps values `[16, ..]` with the mean and the inverse standard deviation of their channel.
fn per_channel<B: ConvOps>(b: &B, x: &B::Tensor, f: impl Fn(f32, f32, f32) -> f32) -> Result<B::Tensor> {
    let mut values = b.download(x)?;
    let each = values.len() / LATENT_CHANNELS;
    for ((values, mean), std) in values.chunks_exact_mut(each).zip(LATENT_MEAN).zip(LATENT_STD) {
        for v in values {
            *v = f(*v, mean, 1.0 / std);
        }
    }
    b.upload(&values, &b.shape(x))
}

/// From the encoder's means to the DiT's latents.
fn normalize<B: ConvOps>(b: &B, mu: &B::Tensor) -> Result<B::Tensor> {
    per_channel(b, mu, |v, mean, inverse| (v - mean) * inverse)
}

/// The DiT's conditioning `[20, t, h, w]` from the latents `[16, t, h, w]` of the picture and its zero frames: first four
/// channels that are 1 on the given frame and 0 elsewhere.
///
/// # Errors
/// `Setting` for other extents; what the backend reports.
pub fn condition<B: ConvOps>(b: &B, latents: &B::Tensor) -> Result<B::Tensor> {
    let [_, t, h, w] = extents(b, latents, LATENT_CHANNELS, 1)?;
    let mut mask = vec![0.0; 4 * t * h * w];
    mask.chunks_exact_mut(t * h * w).for_each(|channel| channel[..h * w].fill(1.0));
    b.concat(&[&b.upload(&mask, &[4, t, h, w])?, latents], 0)
}

/// Decoded frames `[3, n, h, w]` to 8-bit RGB `[n, h, w, 3]`: clamped to -1..1, scaled to 0..255, cut off.
///
/// # Errors
/// `Setting` for other extents; what the backend reports.
pub fn to_u8<B: ConvOps>(b: &B, frames: &B::Tensor) -> Result<Vec<u8>> {
    fetch_u8(b, frames)?()
}

/// [`to_u8`], begun: what is returned waits for it.
///
/// # Errors
/// As [`to_u8`].
pub fn fetch_u8<B: ConvOps>(b: &B, frames: &B::Tensor) -> Result<impl FnOnce() -> Result<Vec<u8>> + use<B>> {
    let [_, n, h, w] = extents(b, frames, 3, 1)?;
    let values = b.fetch(frames)?;
    Ok(move || Ok(interleave(&values()?, n * h * w)))
}

/// Pixels that one thread converts at a time.
const PIXELS: usize = 1 << 15;

fn interleave(values: &[f32], pixels: usize) -> Vec<u8> {
    // `as` cuts off the fraction, and makes 0 of what is not a number.
    let byte = |v: f32| ((v.clamp(-1.0, 1.0) + 1.0) * 0.5 * 255.0) as u8;
    let mut bytes = vec![0; values.len()];
    bytes.par_chunks_mut(3 * PIXELS).enumerate().for_each(|(chunk, bytes)| {
        for (i, pixel) in (chunk * PIXELS..).zip(bytes.chunks_exact_mut(3)) {
            for (c, to) in pixel.iter_mut().enumerate() {
                *to = byte(values[c * pixels + i]);
            }
        }
    });
    bytes
}
