//! `animd-engine synth-model`.

use std::path::PathBuf;

use animd_engine::{Result, synth};

use super::bar::Bar;
use super::print;
use super::stop::Stop;

/// Write a model of random weights in the official layout: it makes noise, but at the real model's cost.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  animd-engine synth-model /tmp/tiny --size tiny                 18 MB, runs on any CPU
  animd-engine synth-model /data/full --size full                46 GB, the 14B model's exact shapes
  animd-engine synth-model /data/dit --size full --only dit      the DiT alone")]
pub struct SynthModel {
    /// The folder to make; it must not exist, or be empty
    dir: PathBuf,
    /// How large
    #[arg(long, value_enum)]
    size: synth::Size,
    /// The type of the DiT's weights
    #[arg(long, value_enum, default_value = "bf16")]
    dtype: synth::Dtype,
    /// One component only
    #[arg(long, value_enum)]
    only: Option<synth::Component>,
    /// The number that the weights are drawn from
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

impl SynthModel {
    /// Runs it.
    pub fn run(self) -> Result<()> {
        let bar = Bar::new(false, Stop::listen()?);
        let bytes = synth::synth_model(&self.dir, self.size, self.dtype, self.only, self.seed, &bar);
        bar.finish();
        print(&format!("{}: {:.1} MB", self.dir.display(), bytes? as f64 / 1e6))
    }
}
