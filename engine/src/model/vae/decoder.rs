//! `Decoder3d`: latent frames to frames, a chunk at a time.

use super::layers::{CausalConv, Chunk, Head, Memory, Middle, Resample, ResidualBlock};
use super::{Checkpoint, Probe, see};
use crate::Result;
use crate::backend::Backend;

enum Layer<B: Backend> {
    Block(ResidualBlock<B>),
    Up(Resample<B>),
}

pub(super) struct Decoder<B: Backend> {
    conv1: CausalConv<B>,
    middle: Middle<B>,
    upsamples: Vec<Layer<B>>,
    head: Head<B>,
}

impl<B: Backend> Decoder<B> {
    pub fn load(l: &Checkpoint<'_, B>) -> Result<Self> {
        let upsamples = (0..15).map(|i| {
            let name = format!("decoder.upsamples.{i}");
            Ok(match i {
                3 | 7 | 11 => Layer::Up(Resample::load(l, &name, i != 11)?),
                _ => Layer::Block(ResidualBlock::load(l, &name)?),
            })
        });
        Ok(Self {
            conv1: CausalConv::load(l, "decoder.conv1")?,
            middle: Middle::load(l, "decoder.middle")?,
            upsamples: upsamples.collect::<Result<_>>()?,
            head: Head::load(l, "decoder.head")?,
        })
    }

    /// Decodes latent frames to frames eight times as large: one for a video's first latent frame, four for every
    /// other.
    pub fn run(
        &self,
        b: &B,
        latents: Chunk<B::Tensor>,
        memory: &mut Memory<B::Tensor>,
        probe: &mut Probe<'_, B::Tensor>,
    ) -> Result<Chunk<B::Tensor>> {
        memory.rewind();
        let x = self.conv1.run(b, latents, memory)?;
        see(probe, "dec.conv1", &x);
        let mut x = self.middle.run(b, x, memory)?;
        see(probe, "dec.middle", &x);
        for (i, layer) in self.upsamples.iter().enumerate() {
            x = match layer {
                Layer::Block(block) => block.run(b, x, memory)?,
                Layer::Up(resample) => resample.up(b, x, memory)?,
            };
            if i == 3 {
                see(probe, "dec.upsamples3", &x);
            }
        }
        self.head.run(b, x, memory)
    }
}
