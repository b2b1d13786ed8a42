//! `animd-engine synth-model`.

use std::path::PathBuf;

use animd_engine::progress::{Observer, Progress, Stage};
use animd_engine::weights::{Component, DType};
use animd_engine::{Result, synth};

use super::bar::Bar;
use super::print;
use super::stop::Stop;

/// Write a model of random weights in the official layout: it makes noise, but at the real model's cost.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  animd-engine synth-model /tmp/tiny --size tiny                 12 MB, runs on any CPU
  animd-engine synth-model /data/full --size full                46 GB, the 14B model's exact shapes
  animd-engine synth-model /data/dit --size full --only dit      the DiT alone
  animd-engine synth-model /data/two --size full --family wan22 --layers 4    Wan2.2's two transformers, of four blocks each
  animd-engine synth-model /data/q4 --size full --format q4_k    a DiT as GGUF, to measure how fast it is loaded")]
pub struct SynthModel {
    /// The folder to make; it must not exist, or be empty
    dir: PathBuf,
    /// How large
    #[arg(long, value_enum)]
    size: synth::Size,
    /// Which family of models it belongs to
    #[arg(long, value_enum, default_value = "wan21")]
    family: synth::Family,
    /// The type of the DiT's weights
    #[arg(long, value_enum, default_value = "bf16")]
    dtype: Type,
    /// One component only
    #[arg(long, value_enum)]
    only: Option<Only>,
    /// Write the DiT alone in this format, each transformer as one file
    #[arg(long, value_enum, conflicts_with_all = ["dtype", "only"])]
    format: Option<synth::Format>,
    /// Give the DiT so many blocks instead of the size's own
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1000))]
    layers: Option<u16>,
    /// The number that the weights are drawn from
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum Type {
    /// Half the size of the released one; the same values
    Bf16,
    /// As released
    F32,
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum Only {
    /// The diffusion transformer
    Dit,
    /// The `umT5` text encoder
    T5,
    /// The CLIP vision tower
    Clip,
    /// The causal video VAE
    Vae,
}

impl SynthModel {
    /// Runs the command.
    pub fn run(self) -> Result<()> {
        let dtype = match self.dtype {
            Type::Bf16 => DType::Bf16,
            Type::F32 => DType::F32,
        };
        let only = self.only.map(|only| match only {
            Only::Dit => Component::Dit,
            Only::T5 => Component::T5,
            Only::Clip => Component::Clip,
            Only::Vae => Component::Vae,
        });
        let bar = Bar::new(false, Stop::listen()?);
        let mut total = 0;
        let mut wrote = |done: u64, all: u64| {
            total = all;
            let fraction = done as f64 / all as f64;
            bar.progress(&Progress { stage: Stage::Write, step: 0, steps: 0, fraction, seconds_left: None });
            bar.check()
        };
        let mut recipe = self.size.recipe_of(self.family);
        if let Some(layers) = self.layers {
            synth::cut(&mut recipe, layers.into());
        }
        let result = match self.format {
            Some(format) => synth::synth_dit(&self.dir, recipe, format, self.seed, &mut wrote).map(drop),
            None => synth::synth_model(&self.dir, recipe, dtype, only, self.seed, &mut wrote),
        };
        bar.finish();
        result?;
        print(&format!("{}: {:.1} MB", self.dir.display(), total as f64 / 1e6))
    }
}
