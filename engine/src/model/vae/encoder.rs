//! `Encoder3d`: it turns frames into the features of the moments, a chunk at a time.

use super::layers::{CausalConv, Chunk, Head, Memory, Middle, Resample, ResidualBlock};
use super::{Checkpoint, Probe, see};
use crate::Result;
use crate::backend::Backend;

enum Layer<B: Backend> {
    Block(ResidualBlock<B>),
    Down(Resample<B>),
}

pub(super) struct Encoder<B: Backend> {
    conv1: CausalConv<B>,
    downsamples: Vec<Layer<B>>,
    middle: Middle<B>,
    head: Head<B>,
}

impl<B: Backend> Encoder<B> {
    pub fn load(l: &Checkpoint<'_, B>) -> Result<Self> {
        let downsamples = (0..11).map(|i| {
            let name = format!("encoder.downsamples.{i}");
            Ok(match i {
                2 | 5 | 8 => Layer::Down(Resample::load(l, &name, i != 2)?),
                _ => Layer::Block(ResidualBlock::load(l, &name)?),
            })
        });
        Ok(Self {
            conv1: CausalConv::load(l, "encoder.conv1")?,
            downsamples: downsamples.collect::<Result<_>>()?,
            middle: Middle::load(l, "encoder.middle")?,
            head: Head::load(l, "encoder.head")?,
        })
    }

    /// Encodes the first frame of a video, alone or with whole fours, and later fours: a quarter as many frames, an
    /// eighth as large.
    pub fn run(
        &self,
        b: &B,
        frames: Chunk<B::Tensor>,
        memory: &mut Memory<B::Tensor>,
        probe: &mut Probe<'_, B::Tensor>,
    ) -> Result<Chunk<B::Tensor>> {
        memory.rewind();
        let mut x = self.conv1.run(b, frames, memory)?;
        for (i, layer) in self.downsamples.iter().enumerate() {
            x = match layer {
                Layer::Block(block) => block.run(b, x, memory)?,
                Layer::Down(resample) => resample.down(b, x, memory)?,
            };
            match i {
                5 => see(probe, "enc.downsamples5", &x),
                8 => see(probe, "enc.downsamples8", &x),
                _ => {}
            }
        }
        let x = self.middle.run(b, x, memory)?;
        see(probe, "enc.mid", &x);
        let x = self.head.run(b, x, memory)?;
        see(probe, "enc.head", &x);
        Ok(x)
    }
}
