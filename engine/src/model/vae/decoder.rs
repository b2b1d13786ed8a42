//! `Decoder3d`: latent frames to frames, a chunk at a time.

use super::layers::{CausalConv, Chunk, Head, Memory, Middle, Resample, ResidualBlock};
use super::{Checkpoint, Probe, see, tiles};
use crate::Result;
use crate::backend::Backend;
use animd_protocol::tiles::{Halo, Tile};

/// The blocks at one resolution.
type Blocks<B> = [ResidualBlock<B>; 3];
/// A doubling and the blocks after it.
type Up<B> = (Resample<B>, Blocks<B>);

pub(super) struct Decoder<B: Backend> {
    conv1: CausalConv<B>,
    middle: Middle<B>,
    blocks: Blocks<B>,
    ups: [Up<B>; 3],
    head: Head<B>,
}

impl<B: Backend> Decoder<B> {
    pub fn load(l: &Checkpoint<'_, B>) -> Result<Self> {
        let block = |i: usize| ResidualBlock::load(l, &format!("decoder.upsamples.{i}"));
        let blocks = |i: usize| -> Result<Blocks<B>> { Ok([block(i)?, block(i + 1)?, block(i + 2)?]) };
        let up = |i: usize, with_time: bool| -> Result<Up<B>> {
            Ok((Resample::load(l, &format!("decoder.upsamples.{i}"), with_time)?, blocks(i + 1)?))
        };
        Ok(Self {
            conv1: CausalConv::load(l, "decoder.conv1")?,
            middle: Middle::load(l, "decoder.middle")?,
            blocks: blocks(0)?,
            ups: [up(3, true)?, up(7, true)?, up(11, false)?],
            head: Head::load(l, "decoder.head")?,
        })
    }

    /// Runs the layers at the latent's resolution on a chunk of whole latent frames, and returns as many frames of
    /// features.
    pub fn features(
        &self,
        b: &B,
        latents: Chunk<B::Tensor>,
        memory: &mut Memory<B::Tensor>,
        probe: &mut Probe<'_, B::Tensor>,
    ) -> Result<Chunk<B::Tensor>> {
        memory.rewind();
        let x = self.conv1.run(b, latents, memory)?;
        see(probe, "dec.conv1", &x);
        let x = self.middle.run(b, x, memory)?;
        see(probe, "dec.middle", &x);
        self.blocks.iter().try_fold(x, |x, block| block.run(b, x, memory))
    }

    /// Runs the other layers on one tile of a chunk of whole frames of features. The result is the tile of frames eight
    /// times as large: one for a video's first latent frame, four for every other.
    pub fn frames(
        &self,
        b: &B,
        features: &B::Tensor,
        tile: &Tile,
        memory: &mut Memory<B::Tensor>,
        probe: &mut Probe<'_, B::Tensor>,
    ) -> Result<Chunk<B::Tensor>> {
        memory.rewind();
        let mut have = tile.frame();
        let mut x = Chunk::new(features.clone());
        for (step, (up, blocks)) in self.ups.iter().enumerate() {
            let want = tile.area(1 << step, Halo::DECODER[step]);
            x = x.map(|x| tiles::crop(b, &x, &have, &want))?;
            have = want.doubled();
            x = up.up(b, x, memory)?;
            if step == 0 {
                see(probe, "dec.upsamples3", &x);
            }
            x = blocks.iter().try_fold(x, |x, block| block.run(b, x, memory))?;
        }
        let frames = self.head.run(b, x, memory)?;
        frames.map(|x| tiles::view(b, &x, &have, &tile.area(8, Halo::NONE)))
    }
}
