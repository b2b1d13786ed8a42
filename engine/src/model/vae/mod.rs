//! The causal 3D VAE of Wan2.1: it encodes frames as latents an eighth as large and a quarter as many, and decodes
//! them.
//!
//! Layers and their names are those of the official `wan/modules/vae.py`. A video of 1 + 4n frames has 1 + n latent
//! frames; it is encoded and decoded a latent frame at a time, each layer remembering the frames that its kernel
//! reaches back to.

mod colours;
mod decoder;
mod encoder;
mod layers;
mod tiles;

#[cfg(test)]
mod tests;

use rayon::prelude::*;

use super::{Checkpoint, Probe, show};
use crate::backend::conv::Step;
use crate::backend::loading::{ConvWeights, Group};
use crate::backend::{Backend, Loader};
use crate::progress::Observer;
use crate::weights::{HostTensor, VaeConfig, WeightSource};
use crate::{Error, Result, finite};
use animd_protocol::request::Tiling;

pub use colours::Colours;
use decoder::Decoder;
use encoder::Encoder;
use layers::{Chunk, Memory, each_frame};
use tiles::{Grid, concat};

/// The number of channels of a latent.
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

/// Shows the frames of a chunk to the probe, if there are any.
fn see<T>(probe: &mut Probe<'_, T>, name: &str, chunk: &Chunk<T>) {
    if let (Some(probe), Some(frames)) = (probe, &chunk.frames) {
        probe(name, frames);
    }
}

/// The input of the encoder.
pub enum Footage<'a, T> {
    /// A video `[3, 1 + 4n, h, w]` in -1..1.
    Video(&'a T),
    /// A picture `[3, 1, h, w]` with black (zero) frames after it.
    Picture {
        /// The picture.
        picture: &'a T,
        /// Returns the number of latent frames of the whole input.
        latent_frames: usize,
    },
}

impl<T> Clone for Footage<'_, T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for Footage<'_, T> {}

/// The loaded autoencoder.
pub struct Vae<B: Backend> {
    encoder: Group<B, MeanEncoder<B>>,
    decoder: Group<B, LatentDecoder<B>>,
}

struct MeanEncoder<B: Backend> {
    encoder: Encoder<B>,
    /// The rows of `conv1` that give the mean; those for the variance are not needed.
    mean: B::Conv,
}

struct LatentDecoder<B: Backend> {
    /// `conv2`.
    unpack: B::Conv,
    decoder: Decoder<B>,
}

impl<B: Backend> Vae<B> {
    /// Loads the network from `weights`. The numbers of channels follow from the weights.
    ///
    /// # Errors
    /// Returns `Model` if the latent channels are not [`LATENT_CHANNELS`], and the errors of `weights` and the loader.
    pub fn load(loader: &B::Loader, weights: &dyn WeightSource, config: &VaeConfig) -> Result<Self> {
        if config.z_dim != LATENT_CHANNELS {
            return Err(Error::Model(format!(
                "the VAE has {} latent channels, Wan2.1's has {LATENT_CHANNELS}: give `Wan2.1_VAE.pth`",
                config.z_dim
            )));
        }
        let root = Checkpoint::<B>::new(loader, weights, "");
        Ok(Self { encoder: root.group(MeanEncoder::load)?, decoder: root.group(LatentDecoder::load)? })
    }

    /// Returns normalised latents `[16, 1 + n, h/8, w/8]`. Tiles, if `tiling` asks for them, take less memory and give
    /// other values where they overlap.
    ///
    /// Frames that repeat after a picture are computed once; the result equals that of the whole video to the bit.
    ///
    /// `probe` sees the outputs of `enc.downsamples5`, `enc.downsamples8`, `enc.mid` and `enc.head`, and as `enc.mu`
    /// the means of the latents before normalisation.
    ///
    /// # Errors
    /// Returns `Setting` for other extents, `Canceled`, and the backend's errors.
    pub fn encode(
        &self,
        b: &B,
        footage: Footage<'_, B::Tensor>,
        tiling: Tiling,
        observer: &dyn Observer,
        mut probe: Probe<'_, B::Tensor>,
    ) -> Result<B::Tensor> {
        let (chunks, repeating, size) = match footage {
            Footage::Video(video) => {
                let [_, frames, h, w] = extents(b, video, 3, 8)?;
                (video_chunks(b, video, frames)?, false, [h, w])
            }
            Footage::Picture { picture, latent_frames } => {
                let [_, frames, h, w] = extents(b, picture, 3, 8)?;
                if frames != 1 || latent_frames == 0 {
                    return Err(Error::Setting(format!(
                        "a picture of {frames} frames cannot start a video of {latent_frames} latent frames: both need 1"
                    )));
                }
                (picture_chunks(b, picture, latent_frames, [h, w])?, true, [h, w])
            }
        };
        let grid = Grid::new(size, 1, tiling);
        let MeanEncoder { encoder, mean } = &*self.encoder.enter(b)?;
        let mut latents = vec![Vec::with_capacity(grid.len()); chunks.len()];
        // Tiles are encoded one after the other, so that only one has a memory at a time.
        for i in 0..grid.len() {
            let mut memory = Memory::new(repeating);
            let mut latent = None;
            for (chunk, tiles) in chunks.iter().zip(&mut latents) {
                observer.check()?;
                b.throttle()?;
                let frames = chunk.frames.as_ref().map(|x| grid.cut(b, x, i)).transpose()?;
                let chunk = Chunk { frames, repeats: chunk.repeats };
                // A chunk is one latent frame: a new one, or a repetition of the last one.
                if let Some(x) = encoder.run(b, chunk, &mut memory, &mut probe)?.frames {
                    latent = Some(each_frame(b, &x, mean, Step::default())?);
                }
                let none = || Error::Internal("the first chunk of a video has no frames".into());
                tiles.push(latent.clone().ok_or_else(none)?);
            }
        }
        let latent_grid = grid.scaled(1, 8);
        let latents = latents.into_iter().map(|tiles| latent_grid.join(b, tiles));
        let mu = concat(b, latents.collect::<Result<_>>()?, 1)?;
        show(&mut probe, || "enc.mu".into(), &mu);
        normalize(b, &mu)
    }

    /// Decodes normalised latents `[16, 1 + n, h, w]`. Tiles, if `tiling` asks for them, take less memory and give
    /// other values where they overlap. `sink` gets frames `[3, .., 8h, 8w]`, one and then fours, as soon as they are
    /// decoded; with tiles, when all tiles are decoded. The values are meant to be in -1..1 and may exceed it.
    ///
    /// `probe` sees the outputs of `dec.conv1`, `dec.middle` and `dec.upsamples3`, tile by tile.
    ///
    /// # Errors
    /// Returns `Setting` for other extents, `Canceled`, and the errors of `sink` and the backend.
    pub fn decode(
        &self,
        b: &B,
        latents: &B::Tensor,
        tiling: Tiling,
        observer: &dyn Observer,
        sink: &mut dyn FnMut(B::Tensor) -> Result<()>,
        mut probe: Probe<'_, B::Tensor>,
    ) -> Result<()> {
        let [.., h, w] = extents(b, latents, LATENT_CHANNELS, 1)?;
        let grid = Grid::new([h, w], 8, tiling);
        let decoder = self.decoder.enter(b)?;
        let latents = decoder.unpack(b, latents)?;
        if grid.len() == 1 {
            let mut memory = Memory::new(false);
            return latents.into_iter().try_for_each(|latent| {
                observer.check()?;
                sink(decoder.run(b, latent, &mut memory, &mut probe)?)
            });
        }
        let mut frames = vec![Vec::with_capacity(grid.len()); latents.len()];
        for i in 0..grid.len() {
            let mut memory = Memory::new(false);
            for (latent, tiles) in latents.iter().zip(&mut frames) {
                observer.check()?;
                b.throttle()?;
                let tile = decoder.run(b, grid.cut(b, latent, i)?, &mut memory, &mut probe)?;
                // The copy holds only the values, however the backend has laid out the tile.
                tiles.push(b.linear_combination(&[(1.0, &tile)])?);
            }
        }
        let frame_grid = grid.scaled(8, 1);
        frames.into_iter().try_for_each(|tiles| sink(frame_grid.join(b, tiles)?))
    }
}

/// Returns a video's chunks: its first frame, then fours.
fn video_chunks<B: Backend>(b: &B, video: &B::Tensor, frames: usize) -> Result<Vec<Chunk<B::Tensor>>> {
    if frames % 4 != 1 {
        return Err(Error::Setting(format!(
            "a video of {frames} frames cannot be encoded: use 4n + 1 frames"
        )));
    }
    let chunk = |i| match i {
        0 => Ok(Chunk::new(b.slice(video, 1, 0, 1)?)),
        _ => Ok(Chunk::new(b.slice(video, 1, 4 * i - 3, 4)?)),
    };
    (0..=frames / 4).map(chunk).collect()
}

/// Returns a picture's chunks: the picture itself, then black frames, which repeat.
fn picture_chunks<B: Backend>(
    b: &B,
    picture: &B::Tensor,
    latent_frames: usize,
    [h, w]: [usize; 2],
) -> Result<Vec<Chunk<B::Tensor>>> {
    let black = b.upload(&vec![0.0; 3 * h * w], &[3, 1, h, w])?;
    let chunk = |i| match i {
        0 => Chunk::new(picture.clone()),
        1 => Chunk { frames: Some(black.clone()), repeats: 3 },
        _ => Chunk { frames: None, repeats: 4 },
    };
    Ok((0..latent_frames).map(chunk).collect())
}

impl<B: Backend> MeanEncoder<B> {
    fn load(l: &Checkpoint<'_, B>) -> Result<Self> {
        let first = |mut t: HostTensor| {
            t.data.truncate(t.data.len() / 2);
            t.shape[0] /= 2;
            t
        };
        let mean = ConvWeights::new(first(l.tensor("conv1.weight")?), first(l.tensor("conv1.bias")?))?;
        Ok(Self { encoder: Encoder::load(l)?, mean: l.loader.conv(mean)? })
    }
}

impl<B: Backend> LatentDecoder<B> {
    fn load(l: &Checkpoint<'_, B>) -> Result<Self> {
        Ok(Self { unpack: l.conv("conv2")?, decoder: Decoder::load(l)? })
    }

    /// Returns the decoder's input, frame by frame.
    fn unpack(&self, b: &B, latents: &B::Tensor) -> Result<Vec<B::Tensor>> {
        let latents = per_channel(b, latents, |v, mean, inverse| v / inverse + mean)?;
        let frame = |t| each_frame(b, &b.slice(&latents, 1, t, 1)?, &self.unpack, Step::default());
        (0..b.shape(&latents)[1]).map(frame).collect()
    }

    /// Returns the frames of one latent frame.
    fn run(
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

/// Returns the extents of `x` `[channels, frames, h, w]`, if its channels are right and h and w are multiples of `of`.
fn extents<B: Backend>(b: &B, x: &B::Tensor, channels: usize, of: usize) -> Result<[usize; 4]> {
    let shape = b.shape(x);
    match <[usize; 4]>::try_from(&shape[..]) {
        Ok(e @ [c, t, h, w]) if c == channels && t * h * w > 0 && h % of == 0 && w % of == 0 => Ok(e),
        _ => Err(Error::Setting(format!(
            "the VAE cannot take {shape:?}: give {channels} channels of frames with extents that are multiples of {of}"
        ))),
    }
}

/// Maps values `[16, ..]` with the mean and the inverse standard deviation of their channel.
fn per_channel<B: Backend>(b: &B, x: &B::Tensor, f: impl Fn(f32, f32, f32) -> f32) -> Result<B::Tensor> {
    let mut values = b.download(x)?;
    let each = values.len() / LATENT_CHANNELS;
    for ((values, mean), std) in values.chunks_exact_mut(each).zip(LATENT_MEAN).zip(LATENT_STD) {
        for v in values {
            *v = f(*v, mean, 1.0 / std);
        }
    }
    b.upload(&values, &b.shape(x))
}

/// Normalises the encoder's means to the DiT's latents.
fn normalize<B: Backend>(b: &B, mu: &B::Tensor) -> Result<B::Tensor> {
    per_channel(b, mu, |v, mean, inverse| (v - mean) * inverse)
}

/// Returns the DiT's conditioning `[20, t, h, w]` from the latents `[16, t, h, w]` of the picture and its zero frames.
/// The first four channels are 1 on the given frame and 0 elsewhere.
///
/// # Errors
/// Returns `Setting` for other extents, and the backend's errors.
pub fn condition<B: Backend>(b: &B, latents: &B::Tensor) -> Result<B::Tensor> {
    let [_, t, h, w] = extents(b, latents, LATENT_CHANNELS, 1)?;
    let mut mask = vec![0.0; 4 * t * h * w];
    mask.chunks_exact_mut(t * h * w).for_each(|channel| channel[..h * w].fill(1.0));
    b.concat(&[&b.upload(&mask, &[4, t, h, w])?, latents], 0)
}

/// Converts decoded frames `[3, n, h, w]` to 8-bit RGB `[n, h, w, 3]`: clamped to -1..1, scaled to 0..255, truncated.
///
/// # Errors
/// Returns `Setting` for other extents, and the backend's errors.
pub fn to_u8<B: Backend>(b: &B, frames: &B::Tensor) -> Result<Vec<u8>> {
    let [_, n, h, w] = extents(b, frames, 3, 1)?;
    Ok(interleave(&b.download(frames)?, n * h * w))
}

/// Begins [`to_u8`] and returns a function that waits for the result.
///
/// # Errors
/// Returns the errors of [`to_u8`]. The function returns [`crate::Error::Model`] for values that are not finite.
pub fn fetch_u8<B: Backend>(b: &B, frames: &B::Tensor) -> Result<impl FnOnce() -> Result<Vec<u8>> + use<B>> {
    let [_, n, h, w] = extents(b, frames, 3, 1)?;
    let values = b.fetch(frames)?;
    Ok(move || {
        let values = values()?;
        finite::check_frames(&values)?;
        Ok(interleave(&values, n * h * w))
    })
}

/// The number of pixels that one thread converts at a time.
const PIXELS: usize = 1 << 15;

fn interleave(values: &[f32], pixels: usize) -> Vec<u8> {
    // `as` truncates, and turns NaN into 0.
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
