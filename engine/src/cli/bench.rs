//! `animd-engine bench`.

use std::path::PathBuf;

use animd_engine::backend::Backend;
use animd_engine::bench::{self, Options, Row, SEED};
use animd_engine::pipeline::Pipeline;
use animd_engine::progress::{Observer, Progress};
use animd_engine::{Error, Result, synth};
use animd_protocol::profile::Profile;
use animd_protocol::request::{Size, Tiling};

use super::backend::{self, Chosen};
use super::stop::Stop;
use super::{print, print_json, profile};

/// The profile that is used if none is given: everything on the device.
const PROFILE: &str = if cfg!(feature = "cuda") { "h200" } else { "cpu" };

/// Say how long each stage of a video takes on this machine.
///
/// Without a model's folder the weights are made up: what comes out is noise, how long it takes is real. Each stage is
/// measured alone and warm; `job` is the sum of a job's stages, with the forwards of the DiT by their median. `+ file` is
/// the decoder with the video encoder beside it.
#[derive(clap::Args)]
// A later option outranks an earlier one, so that scripts can have defaults.
#[command(args_override_self = true)]
#[command(after_help = "\
Examples:
  animd-engine bench                                      the 14B model at 480p, before it is downloaded
  animd-engine bench --size 720p --rows fp8,distill --json
  animd-engine bench --synthetic tiny --size 320x192 --frames 9
  animd-engine bench -m ~/models/Wan2.1-I2V-14B-480P --rows fp8-teacache --whole")]
pub struct Bench {
    /// Take this model's weights, with the folder as downloaded
    #[arg(short, long, value_name = "DIR")]
    model: Option<PathBuf>,
    /// Take the DiT from this folder or file instead
    #[arg(long, value_name = "PATH", requires = "model")]
    dit: Option<PathBuf>,
    /// Make weights up, of a model of this size [default: full, without a model's folder]
    #[arg(long, value_name = "SIZE", value_enum, num_args = 0..=1, default_missing_value = "full", conflicts_with = "model")]
    synthetic: Option<synth::Size>,
    /// The name of a profile, or a profile's file; rows say themselves how the DiT is computed
    #[arg(long, value_name = "NAME-OR-FILE", default_value = PROFILE)]
    profile: String,
    /// What to measure [default: all but `fp8-exact`]
    #[arg(long, value_name = "NAMES", value_enum, value_delimiter = ',')]
    rows: Vec<Row>,
    /// `480p`, here exactly 832x480, `720p`, 1280x720, or `WIDTHxHEIGHT`
    #[arg(long, value_name = "SIZE", default_value = "480p")]
    size: Size,
    /// Frames of the video, 4n+1
    #[arg(long, value_name = "N", default_value_t = 81)]
    frames: u32,
    /// Whether the VAE works on tiles [default: as the profile says]
    #[arg(long, value_name = "HOW", value_parser = animd_options::tiling())]
    tiling: Option<Tiling>,
    /// Runs of each stage, after one that warms up
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=1000))]
    runs: u16,
    /// Make each row's video, too, from the picture to the file
    #[arg(long)]
    whole: bool,
    /// Write what the networks give into this folder, for comparisons with other implementations
    #[arg(long, value_name = "DIR", hide = true)]
    outputs: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

impl Bench {
    /// Runs the command.
    pub fn run(self) -> Result<()> {
        let profile = profile::open(&self.profile)?;
        let stop = Stop::listen()?;
        let chosen = backend::choose(Some(&profile)).map_err(|e| match e {
            Error::Device(text) => Error::Device(format!("{text}; `--profile cpu` measures the processor")),
            e => e,
        })?;
        let outcome = match chosen {
            Chosen::Cpu(b) => self.with(b, &profile, "the CPU".into(), stop)?,
            #[cfg(feature = "cuda")]
            Chosen::Cuda(b) => {
                let name = b.gpu_name()?;
                self.with(b, &profile, name, stop)?
            }
        };
        if self.json { print_json(&outcome) } else { print(outcome.to_string().trim_end()) }
    }

    fn with<B: Backend>(
        &self,
        backend: B,
        profile: &Profile,
        device: String,
        stop: Stop,
    ) -> Result<bench::Outcome> {
        let setup = backend::setup(Some(profile));
        let mut pipeline = match &self.model {
            Some(folder) => Pipeline::open_original(backend, &setup, folder, self.dit.as_deref())?,
            None => Pipeline::made_up(backend, &setup, self.synthetic.unwrap_or(synth::Size::Full), SEED)?,
        };
        let options = Options {
            rows: if self.rows.is_empty() { Row::USUAL.to_vec() } else { self.rows.clone() },
            size: self.size,
            frames: self.frames,
            tiling: self.tiling.or(profile.settings.tiling).unwrap_or_default(),
            runs: self.runs.into(),
            whole: self.whole,
            outputs: self.outputs.clone(),
            made_up: self.model.is_none(),
            device,
        };
        bench::run(&mut pipeline, &options, &Watch(stop), &|text| eprintln!("{text}"))
    }
}

/// Stops the work on a signal; the bench prints its progress itself.
struct Watch(Stop);

impl Observer for Watch {
    fn progress(&self, _: &Progress) {}

    fn canceled(&self) -> bool {
        self.0.asked()
    }
}
