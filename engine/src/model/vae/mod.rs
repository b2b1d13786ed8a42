//! The causal 3D VAE of Wan2.1: it encodes frames as latents an eighth as large and a quarter as many, and decodes
//! them.
//!
//! Layers and their names are those of the official `wan/modules/vae.py`. A video of 1 + 4n frames has 1 + n latent
//! frames; it is encoded and decoded a latent frame at a time, each layer remembering the frames that its kernel
//! reaches back to.
//!
//! Both networks have two parts. The layers at the latent's resolution, with their attention, run over whole frames. The
//! others reach a few pixels each and run tile by tile, each tile with a halo as wide as they reach; a frame that is not
//! divided is one tile. A tile is done for the whole video before the next one begins: otherwise the remembered frames
//! of all tiles would have to be kept, which take more memory than anything else (4 GiB at 1280x720 in bf16). The
//! features between the parts are kept for all latent frames instead (0.2 GiB), and so are the frames of the finished
//! tiles, by whoever takes them.

mod colours;
mod decoder;
mod encoder;
mod frames;
mod layers;
mod tiles;

#[cfg(test)]
mod tests;

use super::{Checkpoint, Probe, show};
use crate::backend::conv::Step;
use crate::backend::loading::{ConvWeights, Group};
use crate::backend::{Backend, Loader};
use crate::progress::Observer;
use crate::weights::{HostTensor, VaeConfig, WeightSource};
use crate::{Error, Result};
use animd_protocol::tiles::{Grid, Halo};

pub use colours::Colours;
use decoder::Decoder;
use encoder::Encoder;
pub use frames::{Piece, Rendered};
use layers::{Chunk, Memory, concat, each_frame};

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
    /// A picture `[3, 1, h, w]` with black (zero) frames after it and, if there is one, a last picture at the end.
    Picture {
        /// The picture.
        picture: &'a T,
        /// The picture that is the last frame, `[3, 1, h, w]`.
        last: Option<&'a T>,
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

    /// Returns normalised latents `[16, 1 + n, h/8, w/8]`. Tiles with sides of at most `tile` latent pixels take less
    /// memory and give the same values.
    ///
    /// Frames that repeat after a picture are computed once; the result equals that of the whole video to the bit.
    ///
    /// `probe` sees the outputs of `enc.downsamples5` and `enc.downsamples8`, tile by tile, of `enc.mid` and `enc.head`,
    /// and as `enc.mu` the means of the latents before normalisation.
    ///
    /// # Errors
    /// Returns `Setting` for other extents, `Canceled`, and the backend's errors.
    pub fn encode(
        &self,
        b: &B,
        footage: Footage<'_, B::Tensor>,
        tile: Option<usize>,
        observer: &dyn Observer,
        mut probe: Probe<'_, B::Tensor>,
    ) -> Result<B::Tensor> {
        let (chunks, repeating, [h, w]) = match footage {
            Footage::Video(video) => {
                let [_, frames, h, w] = extents(b, video, 3, 8)?;
                (video_chunks(b, video, frames)?, false, [h, w])
            }
            Footage::Picture { picture, last, latent_frames } => {
                let [_, frames, h, w] = extents(b, picture, 3, 8)?;
                if frames != 1 || latent_frames == 0 {
                    return Err(Error::Setting(format!(
                        "a picture of {frames} frames cannot start a video of {latent_frames} latent frames: both need 1"
                    )));
                }
                if let Some(last) = last
                    && (b.shape(last) != b.shape(picture) || latent_frames < 2)
                {
                    return Err(Error::Setting(format!(
                        "a last picture of {:?} cannot end a video of {latent_frames} latent frames that starts with one of \
                         {:?}: both must be equal in size, and the video needs 5 frames or more",
                        b.shape(last),
                        b.shape(picture)
                    )));
                }
                (picture_chunks(b, picture, last, latent_frames, [h, w])?, true, [h, w])
            }
        };
        let grid = Grid::new([h / 8, w / 8], tile);
        let MeanEncoder { encoder, mean } = &*self.encoder.enter(b)?;
        let mut features: Vec<_> = chunks.iter().map(|_| Vec::new()).collect();
        for tile in grid.tiles() {
            let mut memory = Memory::new(repeating);
            for (chunk, tiles) in chunks.iter().zip(&mut features) {
                observer.check()?;
                b.throttle()?;
                tiles.push(encoder.features(b, chunk, &tile, &mut memory, &mut probe)?);
            }
        }
        let features = features.into_iter().map(|tiles| tiles::join(b, &grid, tiles));
        let mut memory = Memory::new(repeating);
        let (mut latents, mut latent) = (Vec::with_capacity(chunks.len()), None);
        for chunk in features.collect::<Result<Vec<_>>>()? {
            observer.check()?;
            // A chunk is one latent frame: a new one, or a repetition of the last one.
            if let Some(x) = encoder.moments(b, chunk, &mut memory, &mut probe)?.frames {
                latent = Some(each_frame(b, &x, mean, Step::default())?);
            }
            let none = || Error::Internal("the first chunk of a video has no frames".into());
            latents.push(latent.clone().ok_or_else(none)?);
        }
        let mu = concat(b, latents, 1)?;
        show(&mut probe, || "enc.mu".into(), &mu);
        normalize(b, &mu)
    }

    /// Decodes normalised latents `[16, 1 + n, h, w]`. Tiles with sides of at most `tile` latent pixels take less memory
    /// and give the same values. `sink` gets the frames of each tile as soon as they are decoded, one and then fours:
    /// those of the first tile, then those of the next one.
    ///
    /// `probe` sees the outputs of `dec.conv1` and `dec.middle` and, tile by tile, of `dec.upsamples3`.
    ///
    /// # Errors
    /// Returns `Setting` for other extents, `Canceled`, and the errors of `sink` and the backend.
    pub fn decode(
        &self,
        b: &B,
        latents: &B::Tensor,
        tile: Option<usize>,
        observer: &dyn Observer,
        sink: &mut dyn FnMut(Piece<B::Tensor>) -> Result<()>,
        mut probe: Probe<'_, B::Tensor>,
    ) -> Result<()> {
        let [_, count, h, w] = extents(b, latents, LATENT_CHANNELS, 1)?;
        let LatentDecoder { unpack, decoder } = &*self.decoder.enter(b)?;
        let none = || Error::Internal("the decoder gave no frames".into());
        let latents = per_channel(b, latents, |v, mean, inverse| v / inverse + mean)?;
        let (mut features, mut memory) = (Vec::with_capacity(count), Memory::new(false));
        for t in 0..count {
            observer.check()?;
            b.throttle()?;
            let latent = each_frame(b, &b.slice(&latents, 1, t, 1)?, unpack, Step::default())?;
            let x = decoder.features(b, Chunk::new(latent), &mut memory, &mut probe)?;
            features.push(x.frames.ok_or_else(none)?);
        }
        drop((latents, memory));
        for tile in Grid::new([h, w], tile).tiles() {
            let (mut memory, mut first) = (Memory::new(false), 0);
            let area = tile.area(8, Halo::NONE);
            for x in &features {
                observer.check()?;
                b.throttle()?;
                let frames = decoder.frames(b, x, &tile, &mut memory, &mut probe)?.frames.ok_or_else(none)?;
                let count = b.shape(&frames)[1];
                sink(Piece { frames, first, area: area.clone() })?;
                first += count;
            }
        }
        Ok(())
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

/// Returns a picture's chunks: the picture itself, then black frames, which repeat; the last frame may be a picture again.
fn picture_chunks<B: Backend>(
    b: &B,
    picture: &B::Tensor,
    last: Option<&B::Tensor>,
    latent_frames: usize,
    [h, w]: [usize; 2],
) -> Result<Vec<Chunk<B::Tensor>>> {
    let black = b.upload(&vec![0.0; 3 * h * w], &[3, 1, h, w])?;
    let end = last.map(|last| b.concat(&[&black, &black, &black, last], 1)).transpose()?;
    let chunk = |i| match (i, &end) {
        (0, _) => Chunk::new(picture.clone()),
        (i, Some(end)) if i + 1 == latent_frames => Chunk::new(end.clone()),
        (1, _) => Chunk { frames: Some(black.clone()), repeats: 3 },
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
/// The first four channels, one for each frame that a latent frame stands for, are 1 on given frames and 0 elsewhere:
/// the first latent frame is given as a whole and, with a last picture, the last frame of the last one.
///
/// # Errors
/// Returns `Setting` for other extents, and the backend's errors.
pub fn condition<B: Backend>(b: &B, latents: &B::Tensor, last: bool) -> Result<B::Tensor> {
    let [_, t, h, w] = extents(b, latents, LATENT_CHANNELS, 1)?;
    let mut mask = vec![0.0; 4 * t * h * w];
    mask.chunks_exact_mut(t * h * w).for_each(|channel| channel[..h * w].fill(1.0));
    if last {
        mask[(4 * t - 1) * h * w..].fill(1.0);
    }
    b.concat(&[&b.upload(&mask, &[4, t, h, w])?, latents], 0)
}
