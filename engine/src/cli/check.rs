//! `animd-engine check`.

use std::path::PathBuf;

use animd_engine::backend::Backend;
use animd_engine::check::{self, Options, Report, Verdict};
use animd_engine::progress::{Observer, Progress, Stage};
use animd_engine::{Error, Result};
use animd_protocol::profile::Profile;

use super::backend::{self, Chosen};
use super::bar::Bar;
use super::stop::Stop;
use super::verify::known_hashes;
use super::{print, print_json, profile};

/// Where a model is checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum On {
    /// The CPU alone, in f32: slow with a large model
    Cpu,
    /// The first GPU, in the precision of the card's profile
    Cuda,
}

/// Check a model by what it computes: on your own files, with your own card.
///
/// It denoises videos made of a bundled photograph, leaves out one block after the other, compares prompts, encodes and
/// decodes a video, compares a few blocks and the whole VAE on the GPU with the CPU, and says what 8 bits cost each layer. A
/// file that was read in the wrong format, is damaged, or does not belong to the others stands out. A layer of another size than those
/// around it is doubted. It sees neither a layer whose error is small, such as q and k in each other's place, nor a damaged image encoder
/// for certain. It takes minutes.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  animd-engine check ~/models/Wan2.1-I2V-14B-480P
  animd-engine check ~/models/Wan2.1-I2V-14B-480P --report check.json     to send to others
The report has no pictures, prompts, names of users or paths.
Exit status: 1 if something is wrong; what is doubtful is said, and is no error.")]
pub struct Check {
    /// The model's folder, or a model file (`NAME.toml`)
    #[arg(value_name = "MODEL")]
    model: PathBuf,
    /// Take the DiT from this folder or file instead
    #[arg(long, value_name = "PATH")]
    dit: Option<PathBuf>,
    /// What computes [default: cuda, if a GPU can be used]
    #[arg(long, value_name = "cuda|cpu", value_enum)]
    device: Option<On>,
    /// The name of a profile, or a profile's file, for the GPU [default: the card's own]
    #[arg(long, value_name = "NAME-OR-FILE")]
    profile: Option<String>,
    /// Frames of the videos, 4n+1: fewer are faster, and say less [default: 81; with a large model on the CPU 5]
    #[arg(long, value_name = "N")]
    frames: Option<u32>,
    /// Write all figures as JSON into this file, too
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,
    /// The list of hashes that `verify` has written [default: that of `verify`]
    #[arg(long, value_name = "FILE")]
    hashes: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

impl Check {
    /// Runs the command.
    pub fn run(self) -> Result<()> {
        let profile = self.place()?;
        let stop = Stop::listen()?;
        let report = match backend::choose(profile.as_ref())? {
            Chosen::Cpu(b) => self.with(&b, profile.as_ref(), "the CPU".into(), stop)?,
            #[cfg(feature = "cuda")]
            Chosen::Cuda(b) => {
                let name = b.gpu_name()?;
                self.with(&b, profile.as_ref(), name, stop)?
            }
        };
        if let Some(path) = &self.report {
            let text = serde_json::to_string_pretty(&report).map_err(|e| Error::Internal(e.to_string()))?;
            std::fs::write(path, text + "\n").map_err(Error::file("write", path))?;
        }
        if self.json {
            print_json(&report)?;
        } else {
            print(&report.to_string())?;
        }
        if report.verdict == Verdict::Wrong { Err(Error::Model(report.sentence)) } else { Ok(()) }
    }

    /// Returns the profile of what computes; `None` for the CPU.
    fn place(&self) -> Result<Option<Profile>> {
        match (self.device, &self.profile) {
            (Some(On::Cpu), _) => Ok(None),
            (Some(On::Cuda), None) => card_profile().map(Some),
            (on, Some(name)) => {
                let profile = profile::open(name)?;
                if on == Some(On::Cuda) && !profile.on_gpu() {
                    return Err(Error::Setting(format!(
                        "the profile `{}` is for the CPU, and `--device cuda` asks for a GPU; leave one of them out",
                        profile.name
                    )));
                }
                Ok(Some(profile))
            }
            (None, None) => Ok(card_profile()
                .inspect_err(|e| {
                    if !self.json {
                        eprintln!("the CPU computes: {e}");
                    }
                })
                .ok()),
        }
    }

    fn with<B: Backend>(
        &self,
        backend: &B,
        profile: Option<&Profile>,
        device: String,
        stop: Stop,
    ) -> Result<Report> {
        let bar = Bar::new(self.json, stop);
        let told = |words: &str, fraction: f64| {
            let stage = if words == "loading" || words == "tensors" { Stage::Load } else { Stage::Denoise };
            bar.progress(&Progress { stage, step: 0, steps: 0, fraction, seconds_left: None });
        };
        let hashes = self.hashes.clone().or_else(known_hashes);
        let (model, dit, hashes) = (&*self.model, self.dit.as_deref(), hashes.as_deref());
        let options = Options { model, dit, hashes, device, frames: self.frames };
        let report = check::check(backend, &backend::setup(profile), &options, &bar, &told);
        bar.finish();
        report
    }
}

/// Returns the profile of this machine's card.
#[cfg(feature = "cuda")]
fn card_profile() -> Result<Profile> {
    use animd_engine::backend::cuda::{Cuda, Options};
    let card = Cuda::open(0, &Options::default(), 0, 0)?.card()?;
    let card = card.ok_or_else(|| {
        Error::Device("there are no kernels for this GPU; `--device cpu` takes the CPU".into())
    })?;
    super::plan::profile_for(&card, card.memory)
}

/// Returns the profile of this machine's card.
#[cfg(not(feature = "cuda"))]
fn card_profile() -> Result<Profile> {
    Err(Error::Device("this build has no code for NVIDIA GPUs; `--device cpu` takes the CPU".into()))
}
