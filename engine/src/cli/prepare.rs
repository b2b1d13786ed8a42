//! `animd-engine prepare`.

use std::path::PathBuf;

use animd_engine::progress::{Observer, Progress, Stage};
use animd_engine::{Result, weights};

use super::bar::Bar;
use super::stop::Stop;
use super::{print, print_json};

/// Write the DiT in fp8 beside its own files, for profiles that ask for it: later starts read half as much and round nothing.
///
/// The copy lies in `animd-fp8` in the DiT's folder (beside a single file: `NAME.animd-fp8`), and every profile with `dit = "fp8"`
/// takes it from there, for as long as the files that it was made of do not change. Profiles with `dit = "int8"` do not use it.
/// It takes about 17 GB for the 14B model; removing it loses nothing else.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  animd-engine prepare ~/models/Wan2.1-I2V-14B-480P
  animd-engine prepare ~/models/distilled/dit.safetensors --json       a DiT in a file of its own")]
pub struct Prepare {
    /// The model's folder as downloaded, or a DiT's folder or file
    #[arg(value_name = "MODEL")]
    dit: PathBuf,
    /// Print JSON: folder, before and after (bytes)
    #[arg(long)]
    json: bool,
}

impl Prepare {
    /// Runs the command.
    pub fn run(self) -> Result<()> {
        let bar = Bar::new(self.json, Stop::listen()?);
        let mut wrote = |done: u64, all: u64| {
            let fraction = done as f64 / all.max(1) as f64;
            bar.progress(&Progress { stage: Stage::Write, step: 0, steps: 0, fraction, seconds_left: None });
            bar.check()
        };
        let prepared = weights::prepare(&self.dit, &mut wrote);
        bar.finish();
        let prepared = prepared?;
        if self.json {
            return print_json(&prepared);
        }
        let gb = |bytes: u64| bytes as f64 / 1e9;
        print(&format!(
            "{}: {:.1} GB of {:.1} GB; profiles with an fp8 DiT read it from here",
            prepared.folder.display(),
            gb(prepared.after),
            gb(prepared.before)
        ))
    }
}
