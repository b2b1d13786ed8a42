//! From a picture and a request to an H.264 file: the stages, in their order.

mod adapters;
mod branches;
mod clock;
mod computed;
mod exchange;
mod film;
mod frames;
mod handovers;
mod load;
mod models;
mod own_loras;
mod part_store;
mod pictures;
mod rescue;
mod sources;
mod watched;

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use animd_protocol::messages::{Pictures, Report};
use animd_protocol::profile::AttentionKind;
use animd_protocol::recipe::Component;
use animd_protocol::request::Request;
use animd_protocol::step_cache::StepPlan;

use crate::backend::Backend;
use crate::finite::Outputs;
use crate::image::{self, Fitted, Picture};
use crate::model::dit::{Context, Inputs, Time};
use crate::model::vae;
use crate::noise;
use crate::progress::{Costs, Observer, Stage};
use crate::sampler::{self, Guidance, SamplerConfig};
use crate::video::{VideoOptions, VideoWriter};
use crate::{Error, Result};

use branches::Branches;
use clock::Clock;
pub use computed::Computed;
use computed::Unfinished;
pub use film::Film;
pub use frames::Frames;
use handovers::Handovers;
pub(crate) use models::{Models, Parts, proc_bytes};
pub use models::{Pipeline, named as model_file};
use pictures::{Previews, Stills};

/// A job whose picture is fitted and whose request is checked: all refusals that need no model have been made.
pub struct Job {
    /// The request.
    pub request: Request,
    fitted: Fitted,
    clip_pixels: Vec<f32>,
    /// The picture that the video ends at, if there is one.
    last: Option<Last>,
}

/// A picture that a video ends at, fitted to the video's size.
struct Last {
    /// The values [3, height, width], as those of [`Fitted::first_frame`].
    frame: Vec<f32>,
    clip_pixels: Vec<f32>,
}

impl Job {
    /// Fits the picture to the size that the request asks for.
    ///
    /// # Errors
    /// Returns [`Error::Image`] for a picture whose shape fits no size.
    pub fn new(picture: &Picture, request: Request) -> Result<Self> {
        Self::between(picture, None, request)
    }

    /// Fits the picture, and the one that the video ends at, to the size that the request asks for. A request for a loop
    /// that gets no last picture ends at the first one.
    ///
    /// # Errors
    /// Returns [`Error::Image`] for a picture whose shape fits no size, and [`Error::Setting`] if the request says of a last
    /// picture that there is one and none is given, or the other way round.
    pub fn between(picture: &Picture, last: Option<&Picture>, request: Request) -> Result<Self> {
        let fitted = image::fit(picture, &request.size, request.resize)?;
        let last = match ends_at(picture, last, &request)? {
            Some(last) => Some(Last::new(last, picture, &fitted, &request)?),
            None => None,
        };
        Ok(Self { clip_pixels: image::clip_pixels(picture), fitted, last, request })
    }

    /// Returns the width in pixels.
    pub fn width(&self) -> usize {
        self.fitted.width
    }

    /// Returns the height in pixels.
    pub fn height(&self) -> usize {
        self.fitted.height
    }

    /// Returns the number of latent frames, and their height and width.
    pub(crate) fn latent(&self) -> [usize; 3] {
        [self.request.latent_frames(), self.fitted.height / 8, self.fitted.width / 8]
    }
}

/// Returns the picture that a video ends at: `last`, or in a loop the `first` one.
///
/// # Errors
/// Returns [`Error::Setting`] if the request says of a last picture that there is one and none is given, or the other way
/// round.
fn ends_at<'a>(
    first: &'a Picture,
    last: Option<&'a Picture>,
    request: &Request,
) -> Result<Option<&'a Picture>> {
    let last = last.or(request.looped.then_some(first));
    if request.has_last_frame() == last.is_some() {
        return Ok(last);
    }
    let (said, given) = match last {
        Some(_) => ("names none", "one is"),
        None => ("names one", "none is"),
    };
    Err(Error::Setting(format!(
        "the request {said} in `last`, and {given} given: give the picture and its name together"
    )))
}

impl Last {
    /// Fits the last picture as the first one was; one of another size is resized to cover the frame and cropped to its
    /// centre.
    fn new(last: &Picture, first: &Picture, fitted: &Fitted, request: &Request) -> Result<Self> {
        if (last.width, last.height) == (first.width, first.height) {
            let frame = image::fit(last, &request.size, request.resize)?.first_frame;
            return Ok(Self { frame, clip_pixels: image::clip_pixels(last) });
        }
        let covering = image::centre(last.width, last.height, fitted.width as u32, fitted.height as u32);
        let cropped = last.cropped(covering);
        let whole = image::Crop { top: 0, left: 0, width: cropped.width, height: cropped.height };
        let frame = image::bicubic_antialiased(&cropped, whole, fitted.height, fitted.width);
        Ok(Self { frame, clip_pixels: image::clip_pixels(&cropped) })
    }
}

/// What becomes of a job's frames beside the video.
#[derive(Clone, Copy, Default)]
struct Framing<'a> {
    /// Whether the film has the first frame already, as the last one of the part before.
    continues: bool,
    /// The file for the last frame, lossless, from which the next part starts.
    last_frame: Option<&'a Path>,
}

/// The inputs that the sampler's steps need from earlier stages.
struct Conditioning<B: Backend> {
    /// The mask and the picture's latents, `[20, t, h, w]`.
    y: B::Tensor,
    embeddings: Embeddings<B>,
    /// What the networks have computed, to be checked.
    outputs: Outputs,
}

/// How the forwards of a job are computed.
#[derive(Clone, Copy)]
struct Manner {
    /// The kind of self-attention.
    attention: AttentionKind,
    /// Whether the branches of a step share what they have in common.
    share_prefix: bool,
}

/// What the sampler's steps give.
struct Denoised<B: Backend> {
    /// The last step's latents, `[16, t, h, w]`.
    latents: B::Tensor,
    /// The forwards that were computed.
    plan: StepPlan,
    /// What the networks have computed, to be checked.
    outputs: Outputs,
}

/// What an expert makes its contexts of.
struct Embeddings<B: Backend> {
    /// The prompt.
    positive: B::Tensor,
    /// The negative prompt; `None` without guidance.
    negative: Option<B::Tensor>,
    /// The picture, for models that attend to one.
    picture: Option<B::Tensor>,
}

/// What one expert needs for its steps. It is made when its first step begins, so that the weights of one expert at a time are
/// needed.
struct Turn<B: Backend> {
    expert: usize,
    /// The context of the prompt and, with guidance in this expert's steps, that of the negative prompt.
    contexts: Vec<Context<B>>,
    /// The time of each of the expert's steps, by the steps' indices.
    times: BTreeMap<usize, Time<B>>,
}

impl<B: Backend> Turn<B> {
    fn begin(
        parts: &Parts<'_, B>,
        request: &Request,
        embeddings: &Embeddings<B>,
        expert: usize,
        steps: impl Iterator<Item = (usize, f64)>,
    ) -> Result<Self> {
        let &Parts { backend, recipe, ref models, .. } = parts;
        let dit = models.expert(expert)?;
        let texts = std::iter::once(&embeddings.positive).chain(&embeddings.negative);
        let texts = texts.take(recipe.branches(expert, request));
        let contexts = texts.map(|text| dit.context(backend, text, embeddings.picture.as_ref()));
        let times = steps.map(|(step, timestep)| Ok((step, dit.time(backend, timestep)?)));
        Ok(Self { expert, contexts: contexts.collect::<Result<_>>()?, times: times.collect::<Result<_>>()? })
    }
}

impl<B: Backend> Pipeline<B> {
    /// Reserves the memory that `job` needs, as each job does before it begins.
    ///
    /// # Errors
    /// Returns [`Error::Memory`] if there is not enough memory, and [`Error::Setting`] for a job that the model does not
    /// support.
    pub(crate) fn reserve_for(&mut self, job: &Job) -> Result<()> {
        self.begin();
        self.check(job)
    }

    /// Reserves the memory that `job` needs, and loads the weights.
    ///
    /// # Errors
    /// Returns [`Error::Memory`] if there is not enough memory, [`Error::Canceled`], and errors of the model or the
    /// backend.
    pub(crate) fn prepare(&mut self, job: &Job, observer: &dyn Observer) -> Result<()> {
        self.reserve_for(job)?;
        let mut clock = Clock::start(observer, job.request.total_steps(), self.costs(job));
        self.load_all(&mut clock)
    }

    /// Makes the video of `job` and writes it to `out`, complete and synced, with the `pictures` beside it. An error
    /// leaves no file but the preview, which the caller removes.
    ///
    /// Where a GPU's memory does not suffice although the plan says so, the job begins again, once, with fewer weights
    /// there at a time.
    ///
    /// # Errors
    /// Returns [`Error::Canceled`] soon after the observer says so; otherwise the error of the stage that failed.
    pub fn run(
        &mut self,
        job: &Job,
        out: &Path,
        pictures: &Pictures,
        observer: &dyn Observer,
    ) -> Result<Report> {
        self.compute(job, out, pictures, Framing::default(), observer)?.save(observer)
    }

    /// Computes all frames of a video or of a part of one, which go to the encoder one after the other.
    fn compute(
        &mut self,
        job: &Job,
        out: &Path,
        pictures: &Pictures,
        framing: Framing<'_>,
        observer: &dyn Observer,
    ) -> Result<Computed> {
        self.begin();
        match self.compute_once(job, out, pictures, framing, observer) {
            Err(Error::Memory(shortage)) if self.makes_do_with_less(job, &shortage) => {
                self.compute_once(job, out, pictures, framing, observer)
            }
            result => result,
        }
    }

    fn compute_once(
        &mut self,
        job: &Job,
        out: &Path,
        pictures: &Pictures,
        framing: Framing<'_>,
        observer: &dyn Observer,
    ) -> Result<Computed> {
        let request = &job.request;
        let (width, height) = (job.width(), job.height());
        self.check(job)?;
        self.sources.adapters.identity.check()?;
        // The peak of an earlier job that failed must not count for this one.
        self.peak_gpu();
        let mut clock = Clock::start(observer, request.total_steps(), self.costs(job));
        let mut writer = VideoWriter::create(
            out,
            &VideoOptions {
                width: width as u32,
                height: height as u32,
                fps: request.fps,
                quality: request.quality,
                metadata: None,
            },
        )?;

        let remarks = self.recipe().remarks(request).into_iter().chain(exchange::remark(request));
        let mut notes: Vec<String> = remarks.collect();
        let tile = self.plan(job).tile;
        let preview = pictures.preview.as_deref();
        let Denoised { latents, plan, mut outputs } =
            self.latents(job, tile, preview, &mut notes, &mut clock)?;
        // The hashes of the model's own LoRAs, which are in the metadata, were computed beside all of this.
        writer.describe(&self.metadata(request, observer)?)?;
        let parts = self.parts()?;
        let (forwards_computed, forwards_skipped) = plan.forwards();

        clock.stage(Stage::VaeDecode)?;
        let (mut frames, mut last_frame) = (0, Vec::new());
        let mut stills = Stills::new(pictures, width, height, request.frames);
        {
            let mut begun = false;
            let mut write = |done: f64, rgb: &[u8]| {
                // What the last step computed has arrived by now.
                outputs.check()?;
                clock.part(done);
                let frame = width * height * 3;
                if framing.last_frame.is_some() && rgb.len() >= frame {
                    last_frame = rgb[rgb.len() - frame..].to_vec();
                }
                let known = if framing.continues && !begun { frame.min(rgb.len()) } else { 0 };
                begun |= !rgb.is_empty();
                let rgb = &rgb[known..];
                frames += (rgb.len() / frame) as u32;
                stills.see(rgb);
                writer.write(rgb)?;
                clock.observer().check()
            };
            notes.extend(parts.rescue(tile, observer)?.decode(&latents, &mut write)?);
        }
        for note in notes {
            self.note(note);
        }
        clock.stage(Stage::Write)?;
        let last_frame = framing.last_frame.map(|path| {
            (path.to_owned(), Picture { width: width as u32, height: height as u32, rgb: last_frame })
        });
        let steps = clock.steps(&plan.computed_steps());
        let (seconds, began, progress) = clock.leave();
        let report = Report {
            width: width as u32,
            height: height as u32,
            frames,
            seed: request.seed,
            forwards_computed,
            forwards_skipped,
            seconds,
            steps,
            peak_gpu_bytes: self.peak_gpu(),
            model_loras: self.sources.adapters.identity.get(observer)?.to_vec(),
            notes: self.take_notes(),
            ..Report::default()
        };
        Ok(Computed::new(report, progress, Unfinished { writer, stills, last_frame, began }))
    }

    /// Computes the latents of a job: all stages before the decoder, with previews if there is a file for them.
    fn latents(
        &mut self,
        job: &Job,
        tile: Option<usize>,
        preview: Option<&Path>,
        notes: &mut Vec<String>,
        clock: &mut Clock<'_>,
    ) -> Result<Denoised<B>> {
        clock.stage(Stage::Load)?;
        let sampler = self.recipe().sampler(&job.request)?;
        let manner = Manner { attention: self.setup().attention, share_prefix: self.plan(job).share_prefix };
        let ahead = self.read_ahead();
        let mut conditioning = self.condition(job, tile, notes, clock)?;
        let colours = preview.is_some().then(|| self.colours()).transpose()?;
        let mut previews = Previews::new(preview, colours);
        self.load(Component::Dit, clock)?;
        drop(ahead);
        self.sources.adapters.identity.check()?;
        let parts = self.parts()?;
        clock.stage(Stage::Denoise)?;
        let (latents, plan) =
            denoise(&parts, job, &sampler, manner, &mut conditioning, &mut previews, clock)?;
        // The decoder needs the memory of all else that the steps have read.
        Ok(Denoised { latents, plan, outputs: conditioning.outputs })
    }

    /// Computes the embeddings of text and picture, and the picture's latents. Each network is loaded before its work.
    fn condition(
        &mut self,
        job: &Job,
        tile: Option<usize>,
        notes: &mut Vec<String>,
        clock: &mut Clock<'_>,
    ) -> Result<Conditioning<B>> {
        let (request, mut outputs) = (&job.request, Outputs::default());
        self.load(Component::T5, clock)?;
        clock.stage(Stage::Text)?;
        let Parts { backend, tokenizer, recipe, models, .. } = self.parts()?;
        let positive = models.text(backend, tokenizer, &request.prompt)?;
        let negative = match recipe.uses_guidance(request) {
            true => Some(models.text(backend, tokenizer, &request.negative_prompt)?),
            false => None,
        };
        for text in std::iter::once(&positive).chain(&negative) {
            outputs.watch(backend, Component::T5, None, text)?;
        }

        self.load(Component::Clip, clock)?;
        let Parts { backend, recipe, models, .. } = self.parts()?;
        let picture = match models.image_encoder() {
            Some(encoder) => {
                clock.stage(Stage::Image)?;
                let mut picture = encoder.encode(backend, &job.clip_pixels, None)?;
                if let Some(last) = job.last.as_ref().filter(|_| recipe.needs_last_frame()) {
                    let last = encoder.encode(backend, &last.clip_pixels, None)?;
                    picture = backend.concat(&[&picture, &last], 0)?;
                }
                outputs.watch(backend, Component::Clip, None, &picture)?;
                Some(picture)
            }
            None => None,
        };
        let embeddings = Embeddings { positive, negative, picture };

        self.load(Component::Vae, clock)?;
        clock.stage(Stage::VaeEncode)?;
        let parts = self.parts()?;
        let backend = parts.backend;
        let Fitted { width, height, first_frame } = &job.fitted;
        let first = backend.upload(first_frame, &[3, 1, *height, *width])?;
        let last = job.last.as_ref().map(|last| backend.upload(&last.frame, &[3, 1, *height, *width]));
        let last = last.transpose()?;
        let rescue = parts.rescue(tile, clock.observer())?;
        let (latents, note) = rescue.encode(&first, last.as_ref(), request.latent_frames())?;
        notes.extend(note);
        outputs.watch(backend, Component::Vae, None, &latents)?;
        Ok(Conditioning { y: vae::condition(backend, &latents, last.is_some())?, embeddings, outputs })
    }

    /// Returns the settings that made the video, for its metadata; waits for the hashes of the model's own `LoRA`s.
    fn metadata(&mut self, request: &Request, observer: &dyn Observer) -> Result<String> {
        let mut metadata = serde_json::json!({
            "program": "animd",
            "version": env!("CARGO_PKG_VERSION"),
            "model": self.model_name(),
            "family": self.recipe().family,
            "backend": self.backend_name(),
            "conditioning": request.conditioning(),
            "request": request,
        });
        if let Some(about) = self.about() {
            metadata["about"] = about.into();
        }
        let own = self.sources.adapters.identity.get(observer)?;
        if !own.is_empty() {
            metadata["model_loras"] = serde_json::json!(own);
        }
        if !request.lora.is_empty() {
            metadata["loras"] = exchange::facts(request);
        }
        let parts = request.parts();
        if parts.len() > 1 {
            metadata["parts"] = serde_json::json!(parts);
        }
        serde_json::to_string(&metadata).map_err(|e| Error::Internal(e.to_string()))
    }

    /// Returns how long the work may go without asking its observer: the slowest of one block of the DiT, four frames
    /// of the VAE and one network's weights, on a machine with 1 GFLOP/s that reads 10 MB/s, and one minute more.
    pub fn patience(&self, job: &Job) -> Duration {
        let work = self.plan(job).work;
        let block = work.forward.flops() / self.blocks() as f64;
        let frames = (work.vae_decode + work.vae_encode) / job.request.latent_frames() as f64;
        let computing = block.max(frames).max(work.text).max(work.clip) / 1e9;
        let reading = 4.0 * self.parameters() as f64 / 1e7;
        Duration::from_secs_f64(60.0 + computing.max(reading))
    }

    /// Returns the cost of each stage, for the progress.
    fn costs(&self, job: &Job) -> Costs {
        // A parameter costs about as much to load as a few dozen operations.
        self.plan(job).work.costs(30.0 * self.to_load() as f64)
    }
}

/// Runs the sampler's loop over the DiT, from noise to latents.
fn denoise<B: Backend>(
    parts: &Parts<'_, B>,
    job: &Job,
    sampler: &SamplerConfig,
    manner: Manner,
    conditioning: &mut Conditioning<B>,
    previews: &mut Previews<'_>,
    clock: &mut Clock<'_>,
) -> Result<(B::Tensor, StepPlan)> {
    let &Parts { backend, recipe, ref models, .. } = parts;
    let Manner { attention, share_prefix } = manner;
    let Conditioning { y, embeddings, outputs } = conditioning;
    let request = &job.request;
    let [t, h, w] = job.latent();
    let shape = [recipe.vae.config.z_dim, t, h, w];
    let mut generator = noise::Generator::new(request);
    let first = backend.upload(&generator.randn(shape.iter().product()), &shape)?;
    let experts = recipe.step_experts(request);
    let timesteps = sampler.timesteps();
    // All experts have the same positions.
    let grid = models.expert(*experts.first().unwrap_or(&0))?.grid(backend, t, h, w)?;
    let plan = StepPlan::new(recipe, request, |modulation| {
        let embedded = |(&expert, &t): (&usize, &f64)| {
            let time = models.expert(expert)?.time(backend, t)?;
            Ok::<_, Error>(if modulation { time.e0_host } else { time.e_host })
        };
        experts.iter().zip(timesteps).map(embedded).collect()
    })?;

    let observer = clock.observer();
    let mut branches = Branches::new(backend, observer, plan.skips(), share_prefix);
    let handovers = Handovers::new(&experts, &plan);
    let mut turn: Option<Turn<B>> = None;
    let mut velocity = |step: usize, x: &B::Tensor, _: f64| -> Result<B::Tensor> {
        let expert = experts[step];
        if turn.as_ref().is_none_or(|turn| turn.expert != expert) {
            // Their memory is needed for those of the next expert.
            drop(turn.take());
            let steps = timesteps.iter().copied().enumerate().filter(|(step, _)| experts[*step] == expert);
            turn = Some(Turn::begin(parts, request, embeddings, expert, steps)?);
        }
        let Some(Turn { contexts, times, .. }) = &turn else {
            return Err(Error::Internal("no expert has its turn".into()));
        };
        let dit = models.expert(expert)?;
        let time = times.get(&step).ok_or_else(|| Error::Internal(format!("step {step} has no time")))?;
        let inputs = contexts.iter().map(|context| Inputs { x, y, time, context, grid: &grid, attention });
        let mut begins = |branch| match handovers.after(step, branch) {
            Some(next) => models.expert(next).map(|next| next.comes_next(backend)),
            None => Ok(()),
        };
        let mut velocities = branches.velocities(dit, inputs, &plan.compute[step], &mut begins, None)?;
        let velocity = match &velocities[..] {
            [positive, negative] => {
                let guidance = Guidance { scale: recipe.guidance(expert, request) };
                guidance.apply(backend, positive, negative)?
            }
            _ => velocities.remove(0),
        };
        // Earlier outputs are looked at while the device still works on this step.
        outputs.check()?;
        outputs.watch(backend, Component::Dit, Some(step as u32 + 1), &velocity)?;
        previews.offer(backend, x, &velocity, sampler.sigmas()[step], observer)?;
        Ok(velocity)
    };
    let mut renoise = || generator.randn(shape.iter().product());
    let latents = sampler::run(backend, sampler, first, &mut velocity, &mut renoise, &mut |step, _| {
        clock.step(step as u32 + 1);
        Ok(())
    })?;
    Ok((latents, plan))
}
