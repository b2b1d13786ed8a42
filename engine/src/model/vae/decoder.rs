//! `Decoder3d`: latent frames to frames, a chunk at a time.

use super::layers::{CausalConv, Chunk, Head, Memory, Middle, Resample, ResidualBlock};
use super::{Probe, see};
use crate::Result;
use crate::backend::ConvOps;
use crate::weights::WeightSource;

enum Layer<B: ConvOps> {
    Block(ResidualBlock<B>),
    Up(Resample<B>),
}

pub(super) struct Decoder<B: ConvOps> {
    conv1: CausalConv<B>,
    middle: Middle<B>,
    upsamples: Vec<Layer<B>>,
    head: Head<B>,
}

impl<B: ConvOps> Decoder<B> {
    pub fn load(b: &B, weights: &dyn WeightSource) -> Result<Self> {
        let upsamples = (0..15).map(|i| {
            let name = format!("decoder.upsamples.{i}");
            Ok(match i {
                3 | 7 | 11 => Layer::Up(Resample::load(b, weights, &name, i != 11)?),
                _ => Layer::Block(ResidualBlock::load(b, weights, &name)?),
            })
        });
        Ok(Self {
            conv1: CausalConv::load(b, weights, "decoder.conv1")?,
            middle: Middle::load(b, weights, "decoder.middle")?,
            upsamples: upsamples.collect::<Result<_>>()?,
            head: Head::load(b, weights, "decoder.head")?,
        })
    }

    /// Latent frames to frames eight times as large: one for a video's first, four for every other.
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
