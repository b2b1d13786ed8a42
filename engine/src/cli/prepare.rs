//! `animd-engine prepare`.

use std::path::PathBuf;

use animd_engine::progress::{Observer, Progress, Stage};
use animd_engine::{Error, Result, weights};
use animd_protocol::profile::Precision;

use super::bar::Bar;
use super::cache::CacheArgs;
use super::stop::Stop;
use super::{print, print_json};

/// Write a copy of the DiT in 8 bits, of both experts of Wan2.2: later starts read half as much and round nothing.
///
/// Every profile with `dit = "int8"` or `dit = "fp8"` takes the copy in its precision, for as long as the files that it was made
/// of do not change. The weights on the GPU are the same as without it; what a `LoRA` changes is made of the DiT's own files. Copies lie together in one folder, which `animd-engine
/// cache` shows, and those that were not used for the longest time are dropped where it would be larger than --cache-gib. A copy
/// takes about 17 GB for the 14B model of Wan2.1, 15 GB for each expert of Wan2.2; dropping it loses nothing else.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  animd-engine prepare ~/models/Wan2.1-I2V-14B-480P                    for this machine's GPU
  animd-engine prepare ~/models/Wan2.1-I2V-14B-480P --precision int8   for any machine's
  animd-engine prepare ~/models/distilled/dit.safetensors --json       a DiT in a file of its own")]
pub struct Prepare {
    /// The model's folder as downloaded, its model file, or a DiT's folder or file
    #[arg(value_name = "MODEL")]
    model: PathBuf,
    /// The precision of the profile that will read the copy, which is `int8` in all that come with animd [default: that of the
    /// profile for this machine's GPU]
    #[arg(long, value_name = "int8|fp8", value_parser = precision)]
    precision: Option<Precision>,
    #[command(flatten)]
    cache: CacheArgs,
    /// Print JSON: an array of objects with folder, before and after (bytes), and expert where there are two
    #[arg(long)]
    json: bool,
}

impl Prepare {
    /// Runs the command.
    pub fn run(self) -> Result<()> {
        let precision = self.precision.map_or_else(precision_here, Ok)?;
        let cache = self.cache.required()?;
        let bar = Bar::new(self.json, Stop::listen()?);
        let mut wrote = |done: u64, all: u64| {
            let fraction = done as f64 / all.max(1) as f64;
            bar.progress(&Progress { stage: Stage::Write, step: 0, steps: 0, fraction, seconds_left: None });
            bar.check()
        };
        let prepared = weights::prepare(&self.model, precision, &cache, &mut wrote);
        bar.finish();
        let prepared = prepared?;
        if self.json {
            return print_json(&prepared);
        }
        let gb = |bytes: u64| bytes as f64 / 1e9;
        let name = if precision == Precision::Int8 { "int8" } else { "fp8" };
        prepared.iter().try_for_each(|copy| {
            print(&format!(
                "{}: {:.1} GB of {:.1} GB; profiles with `dit = \"{name}\"` read it from here",
                copy.folder.display(),
                gb(copy.after),
                gb(copy.before)
            ))
        })
    }
}

/// Reads the name of a precision that copies are prepared in.
fn precision(text: &str) -> std::result::Result<Precision, String> {
    match text {
        "int8" => Ok(Precision::Int8),
        "fp8" => Ok(Precision::Fp8),
        _ => Err("a DiT is prepared in `int8` or `fp8`".into()),
    }
}

/// Returns the precision of the profile that this machine's GPU gets.
///
/// # Errors
/// [`Error::Setting`] if no GPU says it.
fn precision_here() -> Result<Precision> {
    let unknown = |why: &str| {
        Error::Setting(format!(
            "which precision this machine needs is not known: {why}; add `--precision int8`, which \
             the profiles have that come with animd, or `--precision fp8` for one of your own"
        ))
    };
    #[cfg(feature = "cuda")]
    {
        use animd_engine::backend::cuda::{Cuda, Options};
        let card = Cuda::open(0, &Options::default(), 0, 0).and_then(|cuda| cuda.card());
        let card = card.map_err(|e| unknown(&e.to_string()))?;
        let card = card.ok_or_else(|| unknown("there are no kernels for its GPU"))?;
        Ok(super::plan::profile_for(&card, card.memory)?.precision.dit)
    }
    #[cfg(not(feature = "cuda"))]
    Err(unknown("this build has no code for GPUs"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_8_bits_are_prepared() {
        assert_eq!(precision("int8"), Ok(Precision::Int8));
        assert_eq!(precision("fp8"), Ok(Precision::Fp8));
        assert!(precision("bf16").is_err_and(|e| e.contains("`int8` or `fp8`")));
    }
}
