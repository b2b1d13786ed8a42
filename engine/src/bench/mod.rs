//! Measures the model on a machine: the seconds of each stage and of a job, for one way to run it after the other.
//!
//! A stage is measured warm, alone, from the call until its result can be read; its inputs are noise of fixed seeds.
//! Its time does not depend on the weights' values, so the weights can be made up.

mod compare;
mod load;
mod measure;
mod outputs;
mod rows;
mod swap;
mod table;

use std::path::PathBuf;
use std::time::Instant;

use animd_protocol::messages::Pictures;
use animd_protocol::plan::{Plan, Setup};
use animd_protocol::profile::{self, AttentionKind, Precision};
use animd_protocol::recipe::Recipe;
use animd_protocol::request::{Request, Settings, Size, StepCache, Tiling};
use animd_protocol::step_cache::StepPlan;
use serde::Serialize;

use crate::backend::Backend;
use crate::image::Picture;
use crate::pipeline::{Job, Models, Parts, Pipeline};
use crate::progress::Observer;
use crate::{Error, Result, video};

pub use compare::{Cards, Compared, Comparison};
pub use load::{Loaded, Loads, load};
use measure::{Around, EXPERT, Measured};
use outputs::Outputs;
pub use rows::Row;
pub use swap::{Swap, Swaps, swap};

/// The seed of made-up weights and of all inputs.
pub const SEED: u64 = 1;

/// The steps of 40 that are computed with `TeaCache` at 480p, by the times that `LightX2V` publishes.
const TEACACHE: (usize, usize) = (22, 40);

/// The choice of what to measure.
#[derive(Clone, Debug)]
pub struct Options {
    /// The rows to measure, in order.
    pub rows: Vec<Row>,
    /// The video's size: `480p` is exactly 832x480, `720p` 1280x720.
    pub size: Size,
    /// The number of frames of the video.
    pub frames: u32,
    /// Whether the VAE works on tiles.
    pub tiling: Tiling,
    /// The number of runs of each stage, after one that warms up.
    pub runs: usize,
    /// Whether to make each row's video, too.
    pub whole: bool,
    /// The folder for results, for comparisons.
    pub outputs: Option<PathBuf>,
    /// Whether the weights are made up; `TeaCache` then has nothing to decide by.
    pub made_up: bool,
    /// The device that computes, by its own name.
    pub device: String,
    /// The cards to predict times for.
    pub cards: Cards,
}

/// The seconds of several runs.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Seconds {
    /// The median.
    pub median: f64,
    /// The seconds of all runs, in order.
    pub all: Vec<f64>,
}

impl Seconds {
    fn of(all: Vec<f64>) -> Self {
        let mut sorted = all.clone();
        sorted.sort_by(f64::total_cmp);
        let middle = sorted.len() / 2;
        let median = match sorted.len() {
            0 => f64::NAN,
            n if n % 2 == 0 => f64::midpoint(sorted[middle - 1], sorted[middle]),
            _ => sorted[middle],
        };
        Self { median, all }
    }
}

/// The result of the measurements.
#[derive(Clone, Debug, Serialize)]
pub struct Outcome {
    /// animd's version.
    pub version: &'static str,
    /// The device that computes, by its own name.
    pub device: String,
    /// The backend: `cpu` or `cuda`.
    pub backend: &'static str,
    /// The model folder's name, or `made-up`.
    pub model: String,
    /// The video's width in pixels.
    pub width: usize,
    /// The video's height in pixels.
    pub height: usize,
    /// The video's number of frames.
    pub frames: u32,
    /// The number of the DiT's tokens.
    pub tokens: usize,
    /// The number of runs of each stage.
    pub runs: usize,
    /// Whether the VAE worked on tiles.
    pub tiling: Tiling,
    /// The rows that could be measured.
    pub rows: Vec<Measurement>,
    /// The same rows beside what is predicted, if the card's rates are known.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub comparisons: Vec<Comparison>,
    /// The card that the device stood in for, by its name. Its figures are predictions.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pretended: Option<String>,
    /// Notes that explain the table.
    pub notes: Vec<String>,
}

impl Outcome {
    /// Returns this outcome with the rows of another one, of another model on the same device, behind its own.
    #[must_use]
    pub fn and(mut self, mut other: Self) -> Self {
        self.rows.append(&mut other.rows);
        self.comparisons.append(&mut other.comparisons);
        other.notes.retain(|note| !self.notes.contains(note));
        self.notes.append(&mut other.notes);
        self
    }
}

/// The figures of one row, in seconds and bytes.
#[derive(Clone, Debug, Serialize)]
pub struct Measurement {
    /// The row's name.
    pub row: Row,
    /// The precision in which the DiT was computed.
    pub weights: Precision,
    /// The kind of self-attention.
    pub attention: AttentionKind,
    /// Loading all networks into memory; this includes making made-up weights.
    pub load: f64,
    /// umT5, one prompt of 512 tokens.
    pub text: Seconds,
    /// CLIP, of one picture, or of both that the model takes.
    pub image: Seconds,
    /// The context of one branch's text and picture in all blocks, which a job computes once.
    pub context: Seconds,
    /// The VAE's encoder.
    pub vae_encode: Seconds,
    /// A forward of the DiT that is computed.
    pub forward: Seconds,
    /// A forward that a step cache saves.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub forward_skipped: Option<Seconds>,
    /// The number of forwards that a job computes.
    pub computed: u32,
    /// The number of forwards that a job saves.
    pub skipped: u32,
    /// The VAE's decoder.
    pub vae_decode: Seconds,
    /// The decoder with the video encoder beside it, until the file is complete.
    pub vae_decode_and_write: Seconds,
    /// A whole job from the request to the file: the sum of its stages, with the forwards at their medians.
    pub job: f64,
    /// A real job from the request to the file.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub job_measured: Option<f64>,
    /// The seconds by which the first step of the second expert's turn takes longer than its other steps, in a real job.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exchange_measured: Option<f64>,
    /// The most bytes of a GPU's memory in use at once in any stage alone, with all networks loaded; 0 without a GPU.
    pub peak_bytes: u64,
    /// The most bytes of a GPU's memory in use at once in a real job.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub peak_bytes_measured: Option<u64>,
    /// The most bytes of working memory that a job is planned to take.
    pub planned_bytes: u64,
}

/// Measures all rows; `say` receives messages about the progress.
///
/// # Errors
/// [`Error::Memory`] if no row fits; [`Error::Canceled`]; any error that the model or the backend reports.
pub fn run<B: Backend>(
    pipeline: &mut Pipeline<B>,
    options: &Options,
    observer: &dyn Observer,
    say: &dyn Fn(&str),
) -> Result<Outcome> {
    let mut bench = Bench::new(pipeline, options, observer, say)?;
    let (mut rows, mut misfits) = (Vec::new(), Vec::new());
    // The wider weights come first: memory that holds them also holds the narrower ones.
    for weights in [Precision::Bf16, Precision::Fp8, Precision::Int8] {
        for attention in [AttentionKind::Exact, AttentionKind::EightBit] {
            let alike = |row: &&Row| row.weights() == weights && row.attention() == attention;
            let group: Vec<Row> = options.rows.iter().filter(alike).copied().collect();
            if group.is_empty() {
                continue;
            }
            match bench.group(&group, weights, attention) {
                Ok(measured) => rows.extend(measured),
                Err(e @ Error::Memory(_)) => {
                    let names: Vec<_> = group.iter().map(|row| row.name()).collect();
                    misfits.push(format!("{}: {e}", names.join(", ")));
                }
                Err(e) => return Err(e),
            }
        }
    }
    if rows.is_empty() {
        return Err(Error::Memory(misfits.join("; ")));
    }
    bench.notes.append(&mut misfits);
    let place = |of: Row| options.rows.iter().position(|row| *row == of);
    rows.sort_by_key(|m: &Measurement| place(m.row));
    let Bench { pipeline, job, notes, mut comparisons, .. } = bench;
    comparisons.sort_by_key(|comparison| place(comparison.row));
    Ok(Outcome {
        version: env!("CARGO_PKG_VERSION"),
        device: options.device.clone(),
        backend: pipeline.backend_name(),
        model: pipeline.model_name().to_owned(),
        width: job.width(),
        height: job.height(),
        frames: options.frames,
        tokens: job.latent().iter().product::<usize>() / 4,
        runs: options.runs,
        tiling: options.tiling,
        rows,
        comparisons,
        pretended: options.cards.pretended.as_ref().map(|card| card.name.clone()),
        notes,
    })
}

/// A benchmark in progress.
struct Bench<'a, B: Backend> {
    pipeline: &'a mut Pipeline<B>,
    options: &'a Options,
    observer: &'a dyn Observer,
    say: &'a dyn Fn(&str),
    picture: Picture,
    /// The job of the row that takes the most memory.
    job: Job,
    outputs: Outputs,
    around: Option<Around>,
    comparisons: Vec<Comparison>,
    notes: Vec<String>,
}

impl<'a, B: Backend> Bench<'a, B> {
    fn new(
        pipeline: &'a mut Pipeline<B>,
        options: &'a Options,
        observer: &'a dyn Observer,
        say: &'a dyn Fn(&str),
    ) -> Result<Self> {
        let [width, height] = match options.size {
            Size::P480 => [832, 480],
            Size::P720 => [1280, 720],
            Size::Exact { width, height } => [width, height],
        };
        let rgb = measure::stand_in(width as usize, height as usize, 0);
        let picture = Picture { width, height, rgb };
        let largest = options.rows.iter().copied().max_by_key(|row| row.memory());
        let largest = largest.ok_or_else(|| Error::Internal("there is nothing to measure".into()))?;
        let job = Job::new(&picture, request(options, &picture, largest, pipeline.recipe())?)?;
        let mut notes = Vec::new();
        if pipeline.setup().backend == profile::Backend::Cpu {
            notes.push("the CPU computes in float32 in every row".into());
        }
        if options.made_up {
            notes.push("load: made-up weights are made, not read from a disk".into());
        }
        let outputs = Outputs::into(options.outputs.clone())?;
        let (around, comparisons) = (None, Vec::new());
        Ok(Self { pipeline, options, observer, say, picture, job, outputs, around, comparisons, notes })
    }

    /// Measures rows that have the same forward.
    fn group(
        &mut self,
        rows: &[Row],
        weights: Precision,
        attention: AttentionKind,
    ) -> Result<Vec<Measurement>> {
        let &mut Self { options, observer, say, .. } = self;
        let runs = options.runs;
        let names: Vec<_> = rows.iter().map(|row| row.name()).collect();
        say(&format!("{}: loading", names.join(", ")));
        self.pipeline.exchange_dit(weights, attention);
        let setup = self.pipeline.setup();
        self.pipeline.prepare(&self.job, observer)?;
        let load = self.pipeline.load_seconds().networks();
        let loaded: Vec<_> = load.iter().map(|(name, seconds)| format!("{name} {seconds:.1} s")).collect();
        say(&format!("in memory: {}", loaded.join(", ")));
        let load = load.iter().map(|(_, seconds)| seconds).sum();
        let Parts { backend: b, recipe, models, .. } = self.pipeline.parts()?;
        let models = &*models;
        b.peak_memory();
        let resident = b.peak_memory();
        if self.around.is_none() {
            say("measuring umT5, CLIP and the VAE");
            let size = [self.job.width(), self.job.height()];
            let tile = Plan::new(recipe, &self.job.request, size, &setup).tile;
            let around = measure::around(b, recipe, models, &self.job, tile, runs, &self.outputs, observer)?;
            if !around.written {
                self.notes.push("no ffmpeg with libx264 here: jobs are without the file".into());
            }
            self.around = Some(around);
        }
        let around = self.around.as_ref().ok_or_else(|| Error::Internal("stages were lost".into()))?;

        say(&format!("measuring the forward of {}", names.join(", ")));
        let (context, inputs) =
            measure::inputs(b, recipe, models, &self.job, EXPERT, setup.attention, runs, observer)?;
        let forward = measure::forward(b, models, &inputs, runs, observer)?;
        say(&format!("{:.3} s", forward.seconds.median));
        let caching = rows.iter().any(|row| row.settings().step_cache != Some(StepCache::None));
        let cached = match caching {
            true => Some(measure::cached(b, models, &inputs, runs, observer)?),
            false => None,
        };
        drop(inputs);
        measure::velocities(b, recipe, models, &self.job, setup.attention, rows[0], &self.outputs, observer)?;

        let figures = Figures {
            recipe,
            load,
            resident,
            around,
            context: &context,
            forward: &forward,
            cached: cached.as_ref(),
        };
        let mut measured = Vec::new();
        for &row in rows {
            let request = request(options, &self.picture, row, recipe)?;
            let compute = match (row, options.made_up) {
                (Row::Fp8Teacache, true) => {
                    let (computed, all) = TEACACHE;
                    self.notes.push(format!(
                        "{}: on made-up weights TeaCache has nothing to decide by; {} of {} forwards are computed, as \
                         LightX2V's published times say",
                        row.name(),
                        2 * computed,
                        2 * all
                    ));
                    (0..request.steps as usize).map(|i| vec![i * computed % all < computed; 2]).collect()
                }
                _ => plan(b, recipe, models, &request)?.compute,
            };
            let size = [self.job.width(), self.job.height()];
            let planned = Plan::new(recipe, &request, size, &setup);
            let most = planned.memory.peak().0;
            let figures = figures.row(&setup, row, &request, &StepPlan { compute }, most);
            if options.cards.here.is_some() || options.cards.pretended.is_some() {
                let branches = if planned.guidance { 2.0 } else { 1.0 };
                self.comparisons.push(Comparison::new(
                    &options.cards,
                    recipe,
                    &planned,
                    &setup,
                    &figures,
                    branches,
                ));
            }
            measured.push(figures);
        }
        if options.whole {
            for row in &mut measured {
                match self.whole(row.row) {
                    Ok(None) => {}
                    Ok(Some(Whole { seconds, peak, exchange })) => {
                        (row.job_measured, row.peak_bytes_measured) = (Some(seconds), Some(peak));
                        row.exchange_measured = exchange;
                    }
                    Err(e @ Error::Memory(_)) => {
                        self.notes.push(format!("the real job of {}: {e}", row.row.name()));
                    }
                    Err(e) => return Err(e),
                }
            }
        }
        Ok(measured)
    }

    /// Runs a real job, from the request to the file; `None` where there is nothing to measure.
    fn whole(&mut self, row: Row) -> Result<Option<Whole>> {
        if row == Row::Fp8Teacache && self.options.made_up {
            return Ok(None);
        }
        if video::check_encoder().is_err() {
            return Ok(None);
        }
        (self.say)(&format!("a whole job of {}", row.name()));
        let request = request(self.options, &self.picture, row, self.pipeline.recipe())?;
        let experts = self.pipeline.recipe().step_experts(&request);
        let began = Instant::now();
        let job = Job::new(&self.picture, request)?;
        let out = std::env::temp_dir().join(format!("animd-bench-{}-{}.mp4", std::process::id(), row.name()));
        let result = self.pipeline.run(&job, &out, &Pictures::default(), self.observer);
        let seconds = began.elapsed().as_secs_f64();
        // After an error there is no file.
        let _ = std::fs::remove_file(&out);
        let report = result?;
        let steps: Vec<f64> = report.steps.iter().map(|(seconds, _)| *seconds).collect();
        (self.say)(&format!("{seconds:.2} s, of them {:.2} s of denoising", steps.iter().sum::<f64>()));
        Ok(Some(Whole { seconds, peak: report.peak_gpu_bytes, exchange: exchange(&experts, &steps) }))
    }
}

/// What a real job took.
struct Whole {
    seconds: f64,
    /// The most bytes of a GPU's memory in use.
    peak: u64,
    exchange: Option<f64>,
}

/// Returns the seconds by which the first step of the second expert takes longer than the median of its other ones; `None` if
/// there are none.
fn exchange(experts: &[usize], steps: &[f64]) -> Option<f64> {
    let first = experts.iter().position(|expert| *expert > 0)?;
    let (began, others) = steps.get(first..)?.split_first()?;
    (!others.is_empty()).then(|| began - Seconds::of(others.to_vec()).median)
}

/// The figures that rows with the same forward share.
struct Figures<'a> {
    recipe: &'a Recipe,
    load: f64,
    /// The bytes of the GPU's memory that the weights take.
    resident: u64,
    around: &'a Around,
    context: &'a Measured,
    forward: &'a Measured,
    /// A forward that keeps its residual, and one that is saved by that residual.
    cached: Option<&'a [Measured; 2]>,
}

impl Figures<'_> {
    fn row(
        &self,
        setup: &Setup,
        row: Row,
        request: &Request,
        plan: &StepPlan,
        planned_bytes: u64,
    ) -> Measurement {
        let &Self { load, resident, around, context, .. } = self;
        let guidance = self.recipe.uses_guidance(request);
        let (computed, skipped) = plan.forwards();
        let cached = self.cached.filter(|_| request.step_cache != StepCache::None);
        let forward = cached.map_or(self.forward, |[computed, _]| computed);
        let saved = cached.map(|[_, saved]| saved);
        let median = |m: &Measured| m.seconds.median;
        let branches = if guidance { 2.0 } else { 1.0 };
        let job = branches * (median(&around.text) + median(context))
            + median(&around.image)
            + median(&around.encode)
            + f64::from(computed) * median(forward)
            + f64::from(skipped) * saved.map_or(0.0, median)
            + median(&around.write);
        let stages =
            [&around.text, &around.image, &around.encode, &around.decode, &around.write, context, forward];
        let most = stages.into_iter().map(|stage| stage.memory).max().unwrap_or_default();
        let seconds = |m: &Measured| m.seconds.clone();
        Measurement {
            row,
            weights: setup.precision.dit,
            attention: setup.attention,
            load,
            text: seconds(&around.text),
            image: seconds(&around.image),
            context: seconds(context),
            vae_encode: seconds(&around.encode),
            forward: seconds(forward),
            forward_skipped: saved.map(seconds),
            computed,
            skipped,
            vae_decode: seconds(&around.decode),
            vae_decode_and_write: seconds(&around.write),
            job,
            job_measured: None,
            exchange_measured: None,
            peak_bytes: resident + most,
            peak_bytes_measured: None,
            planned_bytes,
        }
    }
}

/// Returns the request of a row's job.
fn request(options: &Options, picture: &Picture, row: Row, recipe: &Recipe) -> Result<Request> {
    let size = Size::Exact { width: picture.width, height: picture.height };
    let settings = Settings {
        prompt: Some("a boat on a lake, moved by the wind".into()),
        seed: Some(SEED),
        size: Some(size),
        frames: Some(options.frames),
        tiling: Some(options.tiling),
        // A model that makes videos between two pictures gets the one twice: what is computed is the same.
        looped: recipe.needs_last_frame().then_some(true),
        ..row.settings()
    };
    Ok(settings.resolve_for(&recipe.defaults, || SEED)?)
}

/// Returns the plan of which steps of a job are computed.
fn plan<B: Backend>(b: &B, recipe: &Recipe, models: &Models<B>, request: &Request) -> Result<StepPlan> {
    StepPlan::new(recipe, request, |modulation| {
        let sampler = recipe.sampler(request)?;
        let embedded = |(expert, t)| {
            let time = models.expert(expert)?.time(b, t)?;
            Ok(if modulation { time.e0_host } else { time.e_host })
        };
        recipe.step_experts(request).into_iter().zip(sampler.timesteps().to_vec()).map(embedded).collect()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_turns_first_step_is_compared_with_its_others() {
        assert_eq!(exchange(&[0, 0, 1, 1, 1, 1], &[2.0, 2.0, 3.0, 1.0, 9.0, 1.5]), Some(1.5));
        assert_eq!(exchange(&[0, 1], &[2.0, 3.0]), None, "it has no other step");
        assert_eq!(exchange(&[0, 0], &[2.0, 3.0]), None);
    }
}
