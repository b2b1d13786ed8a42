//! `Encoder3d`: it turns frames into the features of the moments, a chunk at a time.

use super::layers::{CausalConv, Chunk, Head, Memory, Middle, Resample, ResidualBlock};
use super::{Checkpoint, Probe, see, tiles};
use crate::Result;
use crate::backend::Backend;
use animd_protocol::tiles::{Halo, Tile};

/// The blocks at one resolution.
type Blocks<B> = [ResidualBlock<B>; 2];
/// A halving and the blocks before it.
type Down<B> = (Blocks<B>, Resample<B>);

pub(super) struct Encoder<B: Backend> {
    conv1: CausalConv<B>,
    downs: [Down<B>; 3],
    blocks: Blocks<B>,
    middle: Middle<B>,
    head: Head<B>,
}

impl<B: Backend> Encoder<B> {
    pub fn load(l: &Checkpoint<'_, B>) -> Result<Self> {
        let block = |i: usize| ResidualBlock::load(l, &format!("encoder.downsamples.{i}"));
        let blocks = |i: usize| -> Result<Blocks<B>> { Ok([block(i)?, block(i + 1)?]) };
        let down = |i: usize, with_time: bool| -> Result<Down<B>> {
            Ok((blocks(i - 2)?, Resample::load(l, &format!("encoder.downsamples.{i}"), with_time)?))
        };
        Ok(Self {
            conv1: CausalConv::load(l, "encoder.conv1")?,
            downs: [down(2, false)?, down(5, true)?, down(8, true)?],
            blocks: blocks(9)?,
            middle: Middle::load(l, "encoder.middle")?,
            head: Head::load(l, "encoder.head")?,
        })
    }

    /// Runs the layers above the latent's resolution on one tile of whole frames: the first frame of a video, alone or
    /// with whole fours, and later fours. The result is the tile of features, a quarter as many, an eighth as large.
    pub fn features(
        &self,
        b: &B,
        frames: &Chunk<B::Tensor>,
        tile: &Tile,
        memory: &mut Memory<B::Tensor>,
        probe: &mut Probe<'_, B::Tensor>,
    ) -> Result<Chunk<B::Tensor>> {
        memory.rewind();
        let [input, halves @ ..] = Halo::ENCODER;
        let mut have = tile.area(8, input);
        let whole = tile.frame().doubled().doubled().doubled();
        let mut x = frames.as_ref().map(|x| tiles::crop(b, x, &whole, &have))?;
        x = self.conv1.run(b, x, memory)?;
        for (step, ((blocks, down), halo)) in self.downs.iter().zip(halves).enumerate() {
            x = blocks.iter().try_fold(x, |x, block| block.run(b, x, memory))?;
            let want = tile.area(8 >> step, halo);
            x = x.map(|x| tiles::crop(b, &x, &have, &want))?;
            have = want.halved();
            x = down.down(b, x, memory)?;
            match step {
                1 => see(probe, "enc.downsamples5", &x),
                2 => see(probe, "enc.downsamples8", &x),
                _ => {}
            }
        }
        x.map(|x| tiles::crop(b, &x, &have, &tile.area(1, Halo::NONE)))
    }

    /// Runs the other layers on a chunk of whole frames of features.
    pub fn moments(
        &self,
        b: &B,
        features: Chunk<B::Tensor>,
        memory: &mut Memory<B::Tensor>,
        probe: &mut Probe<'_, B::Tensor>,
    ) -> Result<Chunk<B::Tensor>> {
        memory.rewind();
        let x = self.blocks.iter().try_fold(features, |x, block| block.run(b, x, memory))?;
        let x = self.middle.run(b, x, memory)?;
        see(probe, "enc.mid", &x);
        let x = self.head.run(b, x, memory)?;
        see(probe, "enc.head", &x);
        Ok(x)
    }
}
