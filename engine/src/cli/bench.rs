//! `animd-engine bench`.

use std::fmt::Display;
use std::path::PathBuf;

use animd_engine::backend::Backend;
use animd_engine::bench::{self, Cards, Options, Row, SEED};
use animd_engine::pipeline::Pipeline;
use animd_engine::progress::{Observer, Progress};
use animd_engine::synth::{self, Family};
use animd_engine::{Error, Result};
use animd_protocol::plan::cards::Card;
use animd_protocol::plan::gib;
use animd_protocol::profile::{Precision, Profile};
use animd_protocol::recipe::Recipe;
use animd_protocol::request::{Size, Tiling};
use clap::ValueEnum;
use serde::Serialize;

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
  animd-engine bench --size 720p --rows int8,int8-distill --json
  animd-engine bench --synthetic tiny --size 320x192 --frames 9
  animd-engine bench -m ~/models/Wan2.1-I2V-14B-480P --rows fp8-teacache --whole
  animd-engine bench --rows wan22-fp8,wan22-distill --whole     Wan2.2's two transformers
  animd-engine bench --report rtx4090.json                measured beside predicted, to send to others
  animd-engine bench --load ~/models/dit.gguf             how fast files are loaded, beside the disk's own speed
  animd-engine bench -m ~/models/wan --swap               how fast LoRAs are exchanged between jobs
  animd-engine bench --pretend rtx4090                    its kernels, memory and bus on a larger card")]
pub struct Bench {
    /// Take this model's weights, with the folder as downloaded
    #[arg(short, long, value_name = "DIR")]
    model: Option<PathBuf>,
    /// Take the DiT from this folder or file instead
    #[arg(long, value_name = "PATH", requires = "model")]
    dit: Option<PathBuf>,
    /// Measure only how each network of this model's folder, or a DiT's file, is loaded: from the disk, whose cache is
    /// emptied of the files before
    #[arg(long, value_name = "PATH", conflicts_with_all = ["model", "synthetic", "pretend", "rows", "whole", "outputs"])]
    load: Option<PathBuf>,
    #[allow(clippy::doc_markdown, reason = "the words are the help of the option")]
    /// Measure only how LoRAs are exchanged while the model stays loaded: those of these files, or one that is made up and changes
    /// every large matrix
    #[arg(long, value_name = "FILE", num_args = 0.., requires = "model", conflicts_with_all = ["load", "pretend", "rows", "whole", "outputs"])]
    swap: Option<Vec<PathBuf>>,
    /// Make weights up, of a model of this size [default: full, without a model's folder]
    #[arg(long, value_name = "SIZE", value_enum, num_args = 0..=1, default_missing_value = "full", conflicts_with = "model")]
    synthetic: Option<synth::Size>,
    /// The name of a profile, or a profile's file; rows say themselves how the DiT is computed [default: the card's own]
    #[arg(long, value_name = "NAME-OR-FILE")]
    profile: Option<String>,
    /// Run the kernels of a smaller card, held to its memory and its bus's rate. It is not that card: what it would take
    /// is predicted beside what is measured
    #[arg(long, value_name = "GPU", value_parser = super::plan::card)]
    pretend: Option<Card>,
    /// Write all figures as JSON into this file, too
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,
    /// What to measure [default: `int8,int8-magcache,int8-distill`; with a profile in another precision those of Wan2.1 in bf16 and
    /// fp8, but `fp8-exact`; with a model of Wan2.2 its own rows, but `wan22-fp8-exact`]
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
        let profile = match (&self.profile, &self.pretend) {
            (Some(name), _) => profile::open(name)?,
            (None, Some(card)) => super::plan::profile_for(card, card.memory)?,
            (None, None) => profile::open(PROFILE)?,
        };
        let stop = Stop::listen()?;
        let chosen = backend::choose_as(Some(&profile), self.pretend.as_ref()).map_err(|e| match e {
            Error::Device(text) => Error::Device(format!("{text}; `--profile cpu` measures the processor")),
            e => e,
        })?;
        if let Some(path) = &self.load {
            let setup = backend::setup(Some(&profile));
            let loads = match chosen {
                Chosen::Cpu(b) => bench::load(&b, &setup, path)?,
                #[cfg(feature = "cuda")]
                Chosen::Cuda(b) => bench::load(&b, &setup, path)?,
            };
            return self.show(&loads);
        }
        if let Some((files, model)) = self.swap.as_ref().zip(self.model.as_deref()) {
            let (setup, dit) = (backend::setup(Some(&profile)), self.dit.as_deref());
            let swaps = match chosen {
                Chosen::Cpu(b) => bench::swap(b, &setup, model, dit, files, &Watch(stop))?,
                #[cfg(feature = "cuda")]
                Chosen::Cuda(b) => bench::swap(b, &setup, model, dit, files, &Watch(stop))?,
            };
            return self.show(&swaps);
        }
        let outcome = match chosen {
            Chosen::Cpu(_) if self.pretend.is_some() => {
                return Err(Error::Device(
                    "the CPU cannot stand in for a card; leave `--pretend` out".into(),
                ));
            }
            Chosen::Cpu(b) => self.with(&b, &profile, "the CPU", &Cards::default(), &stop)?,
            #[cfg(feature = "cuda")]
            Chosen::Cuda(b) => {
                let (name, here) = (b.gpu_name()?, b.card()?);
                let own = here.as_ref().filter(|_| self.profile.is_none() && self.pretend.is_none());
                let profile = own.map_or(Ok(profile), |card| super::plan::profile_for(card, card.memory))?;
                let cards = self.cards(here)?;
                self.with(&b, &profile, &name, &cards, &stop)?
            }
        };
        self.show(&outcome)
    }

    /// Prints figures, as a table or as JSON, and writes them into the report's file.
    fn show(&self, figures: &(impl Serialize + Display)) -> Result<()> {
        if let Some(path) = &self.report {
            let text = serde_json::to_string_pretty(figures).map_err(|e| Error::Internal(e.to_string()))?;
            std::fs::write(path, text + "\n").map_err(Error::file("write", path))?;
        }
        if self.json { print_json(figures) } else { print(figures.to_string().trim_end()) }
    }

    /// Returns the cards to predict times for, of which `here` is the one that measures.
    #[cfg(feature = "cuda")]
    fn cards(&self, here: Option<Card>) -> Result<Cards> {
        let Some(pretended) = &self.pretend else { return Ok(Cards { here, pretended: None }) };
        if let Some(here) = here.as_ref().filter(|here| here.memory < pretended.memory) {
            return Err(Error::Setting(format!(
                "`{}` has {}, and this GPU {}: take a card that is smaller than this one",
                pretended.name,
                gib(pretended.memory),
                gib(here.memory)
            )));
        }
        let kernels = backend::kernels_of(pretended);
        let here = here.and_then(|here| here.with_kernels_of(kernels));
        Ok(Cards { here, pretended: Some(pretended.clone()) })
    }

    fn with<B: Backend>(
        &self,
        backend: &B,
        profile: &Profile,
        device: &str,
        cards: &Cards,
        stop: &Stop,
    ) -> Result<bench::Outcome> {
        let mut setup = backend::setup(Some(profile));
        let mut notes = Vec::new();
        if let Some(card) = &self.pretend {
            let budget = card.memory.saturating_sub(setup.reserve);
            setup.budget = Some(setup.budget.map_or(budget, |own| own.min(budget)));
            let (major, minor) = backend::kernels_of(card);
            notes.push(format!(
                "this is not `{}`: {device} runs the kernels of compute capability {major}.{minor} within {} of memory, and weights come at {:.0} GB/s; what `{}` would take is predicted",
                card.name,
                gib(budget),
                card.copy_rate / 1e9,
                card.name
            ));
        }
        let mut outcome: Option<bench::Outcome> = None;
        let mut measure = |pipeline: &mut Pipeline<B>, rows| {
            let options = self.options(rows, profile, device.to_owned(), cards.clone());
            let watch = Watch(stop.clone());
            let measured = bench::run(pipeline, &options, &watch, &|text| eprintln!("{text}"))?;
            outcome = Some(match outcome.take() {
                Some(before) => before.and(measured),
                None => measured,
            });
            Ok::<(), Error>(())
        };
        match &self.model {
            Some(folder) => {
                let mut pipeline =
                    Pipeline::open(backend.clone(), &setup, folder, self.dit.as_deref(), None)?;
                let family = family_of(pipeline.recipe());
                let rows = chosen(&self.rows, family, setup.precision.dit);
                check_rows(&rows, family).map_err(|why| {
                    Error::Setting(format!(
                        "`{}` is a model of {}, {why}",
                        folder.display(),
                        pipeline.recipe().family
                    ))
                })?;
                measure(&mut pipeline, rows)?;
            }
            None => {
                let all = chosen(&self.rows, Family::Wan21, setup.precision.dit);
                for family in [Family::Wan21, Family::Wan22] {
                    let rows: Vec<Row> = all.iter().filter(|row| row.family() == family).copied().collect();
                    if rows.is_empty() {
                        continue;
                    }
                    let size = self.synthetic.unwrap_or(synth::Size::Full);
                    let mut pipeline =
                        Pipeline::made_up(backend.clone(), &setup, size.recipe_of(family), SEED)?;
                    measure(&mut pipeline, rows)?;
                }
            }
        }
        let mut outcome = outcome.ok_or_else(|| Error::Internal("no rows were measured".into()))?;
        notes.append(&mut outcome.notes);
        Ok(bench::Outcome { notes, ..outcome })
    }

    fn options(&self, rows: Vec<Row>, profile: &Profile, device: String, cards: Cards) -> Options {
        Options {
            rows,
            size: self.size,
            frames: self.frames,
            tiling: self.tiling.or(profile.settings.tiling).unwrap_or_default(),
            runs: self.runs.into(),
            whole: self.whole,
            outputs: self.outputs.clone(),
            made_up: self.model.is_none(),
            device,
            cards,
        }
    }
}

/// Returns the rows that were asked for, or else the usual ones of a family where the DiT is in this precision.
fn chosen(asked: &[Row], family: Family, dit: Precision) -> Vec<Row> {
    if asked.is_empty() { Row::usual(family, dit) } else { asked.to_vec() }
}

/// Returns the family whose rows measure a model of this recipe: by its number of transformers.
fn family_of(recipe: &Recipe) -> Family {
    if recipe.experts.len() == Family::Wan22.experts() { Family::Wan22 } else { Family::Wan21 }
}

/// Refuses rows of another family than the model's. The error is the end of a sentence about the model.
fn check_rows(rows: &[Row], family: Family) -> std::result::Result<(), String> {
    let names = |rows: &[Row]| rows.iter().map(|row| row.name()).collect::<Vec<_>>().join(", ");
    let others: Vec<Row> = rows.iter().filter(|row| row.family() != family).copied().collect();
    if others.is_empty() {
        return Ok(());
    }
    let own: Vec<Row> = Row::value_variants().iter().filter(|row| row.family() == family).copied().collect();
    Err(format!(
        "whose number of transformers is another one than these rows are for: {}; choose `--rows` of {}",
        names(&others),
        names(&own)
    ))
}

/// Stops the work on a signal; the bench prints its progress itself.
struct Watch(Stop);

impl Observer for Watch {
    fn progress(&self, _: &Progress) {}

    fn canceled(&self) -> bool {
        self.0.asked()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_model_is_measured_by_rows_of_its_family() {
        let family = |family| family_of(&synth::Size::Tiny.recipe_of(family));
        assert_eq!(
            [Family::Wan21, Family::Flf2v, Family::Wan22].map(family),
            [Family::Wan21, Family::Wan21, Family::Wan22]
        );
        for family in [Family::Wan21, Family::Wan22] {
            for dit in [Precision::Bf16, Precision::Int8] {
                assert_eq!(check_rows(&chosen(&[], family, dit), family), Ok(()));
            }
        }
        assert_eq!(chosen(&[Row::Fp8], Family::Wan22, Precision::Int8), [Row::Fp8]);
        let refused = check_rows(&[Row::Fp8, Row::Wan22Fp8], Family::Wan22).expect_err("one is of Wan2.1");
        assert!(refused.contains("are for: fp8; choose `--rows` of wan22-bf16-exact, "), "{refused}");
        let refused = check_rows(&[Row::Wan22Fp8], Family::Wan21).expect_err("it is of Wan2.2");
        assert!(refused.contains("are for: wan22-fp8; ") && refused.contains(", int8-distill"), "{refused}");
    }
}
