//! The model's four networks: found at once, loaded when first needed, kept.

use std::collections::HashMap;
use std::path::Path;
use std::time::Instant;

use serde::Serialize;

use crate::backend::{Backend, Keeping};
use crate::dims::Dims;
use crate::model::clip::Clip;
use crate::model::dit::Dit;
use crate::model::t5::T5;
use crate::model::vae::{Colours, Vae};
use crate::plan::{Plan, Setup, gib};
use crate::profile::{AttentionKind, Backend as Kind, Precision, Weights};
use crate::synth::{self, Source};
use crate::text::{self, MAX_TOKENS, Tokenizer};
use crate::weights::{self, Component, WeightSource};
use crate::{Error, Result};

use super::Job;
use super::clock::Clock;
use super::watched::Count;

/// Prompts whose embeddings are kept: the negative prompt and a few users' favourites.
const KEPT_PROMPTS: usize = 16;

/// A model on a backend, ready for one job after the other.
pub struct Pipeline<B: Backend> {
    backend: B,
    /// How it runs the model.
    setup: Setup,
    name: String,
    tokenizer: Tokenizer,
    sources: Sources,
    models: Option<Models<B>>,
    load_seconds: LoadSeconds,
}

/// Where the weights come from.
struct Sources {
    dims: Dims,
    dit: Box<dyn WeightSource + Send>,
    t5: Box<dyn WeightSource + Send>,
    clip: Box<dyn WeightSource + Send>,
    vae: Box<dyn WeightSource + Send>,
    /// Of all four.
    parameters: usize,
}

/// How long each network took to come into memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct LoadSeconds {
    /// The diffusion transformer.
    pub dit: f64,
    /// The text encoder.
    pub t5: f64,
    /// The image encoder.
    pub clip: f64,
    /// The autoencoder.
    pub vae: f64,
}

impl From<weights::Model> for Sources {
    fn from(files: weights::Model) -> Self {
        let parameters = files.parameters();
        Self {
            dims: files.dims(),
            dit: Box::new(files.dit.0),
            t5: Box::new(files.t5.0),
            clip: Box::new(files.clip.0),
            vae: Box::new(files.vae.0),
            parameters,
        }
    }
}

/// The loaded networks.
pub struct Models<B: Backend> {
    /// The diffusion transformer.
    pub dit: Dit<B>,
    /// The text encoder.
    pub t5: T5<B>,
    /// The image encoder.
    pub clip: Clip<B>,
    /// The autoencoder.
    pub vae: Vae<B>,
    texts: HashMap<String, B::Tensor>,
    /// How latents look, once somebody wanted to know.
    colours: Option<Colours>,
}

impl<B: Backend> Pipeline<B> {
    /// Finds and checks the files of the model in `dir`, with the DiT from elsewhere if `dit` says so, or its prepared copy
    /// ([`weights::prepare`]) if the backend runs it in 8 bits and there is one. Reads headers only.
    ///
    /// # Errors
    /// [`Error::Model`] says everything that is wrong with the files.
    pub fn open(backend: B, wanted: &Setup, dir: &Path, dit: Option<&Path>) -> Result<Self> {
        let wanted = &backend.resolve(wanted);
        let prepared = match wanted.precision.dit {
            Weights::Fp8 => weights::find_prepared(dit.unwrap_or(dir)),
            _ => None,
        };
        let mut pipeline = Self::open_original(backend, wanted, dir, prepared.as_deref().or(dit))?;
        pipeline.name = file_name(dit.unwrap_or(dir));
        Ok(pipeline)
    }

    /// [`Self::open`] without looking for a prepared copy, for those who load the DiT in one precision after the other.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn open_original(backend: B, wanted: &Setup, dir: &Path, dit: Option<&Path>) -> Result<Self> {
        let name = file_name(dit.unwrap_or(dir));
        let files = weights::Model::open(dir, dit)?;
        let tokenizer = Tokenizer::open(&files.tokenizer)?;
        Ok(Self::with(backend, wanted, name, tokenizer, files.into()))
    }

    /// A made-up model, without files: what `synth-model` would write with this seed.
    ///
    /// # Errors
    /// None that a sound build has.
    pub fn made_up(backend: B, wanted: &Setup, size: synth::Size, seed: u64) -> Result<Self> {
        let source = |component| Source::new(size, synth::Precision::Bf16, component, seed);
        let all = Component::ALL.map(source);
        let parameters = all.iter().map(Source::parameters).sum();
        let [dit, t5, clip, vae] = all.map(|source| Box::new(source) as Box<dyn WeightSource + Send>);
        let tokenizer = Tokenizer::read(synth::TOKENIZER, "tokenizer.json")?;
        let sources = Sources { dims: size.dims(), dit, t5, clip, vae, parameters };
        Ok(Self::with(backend, wanted, "made-up".into(), tokenizer, sources))
    }

    fn with(backend: B, wanted: &Setup, name: String, tokenizer: Tokenizer, sources: Sources) -> Self {
        let (setup, load_seconds) = (backend.resolve(wanted), LoadSeconds::default());
        Self { backend, setup, name, tokenizer, sources, models: None, load_seconds }
    }

    /// The folder's name.
    pub fn model_name(&self) -> &str {
        &self.name
    }

    /// The sizes of its networks.
    pub fn dims(&self) -> Dims {
        self.sources.dims.clone()
    }

    /// Bytes of a GPU's memory, at most, since this was asked last.
    pub(super) fn peak_gpu(&self) -> u64 {
        self.backend.peak_memory()
    }

    /// `cpu` or `cuda`.
    pub fn backend_name(&self) -> &'static str {
        self.backend.name()
    }

    /// Brings all weights into memory, if they are not there.
    pub(super) fn load(&mut self, clock: &mut Clock<'_>) -> Result<()> {
        if self.models.is_some() {
            return Ok(());
        }
        let (b, setup, count) = (&self.backend, self.setup, Count::new(clock, self.parameters()));
        let loader = |network| b.loader(Keeping::of(&setup, network));
        let (Sources { dims, dit, t5, clip, vae, .. }, seconds) = (&self.sources, &mut self.load_seconds);
        let t5 = timed(&mut seconds.t5, || T5::load(&loader(Component::T5), &count.of(&**t5), &dims.t5))?;
        let clip = timed(&mut seconds.clip, || {
            Clip::load(&loader(Component::Clip), &count.of(&**clip), &dims.clip)
        })?;
        let vae =
            timed(&mut seconds.vae, || Vae::load(&loader(Component::Vae), &count.of(&**vae), &dims.vae))?;
        let dit =
            timed(&mut seconds.dit, || Dit::load(&loader(Component::Dit), &count.of(&**dit), &dims.dit))?;
        self.models = Some(Models { dit, t5, clip, vae, texts: HashMap::new(), colours: None });
        Ok(())
    }

    /// Runs the DiT in another way from now on. If that takes other weights, the one that is loaded goes, and is loaded
    /// anew; the other networks stay.
    ///
    /// # Errors
    /// What the backend reports; then nothing is loaded.
    pub(crate) fn exchange_dit(&mut self, dit: Weights, attention: AttentionKind) -> Result<()> {
        let precision = Precision { dit, ..self.setup.precision };
        let setup = self.backend.resolve(&Setup { precision, attention, ..self.setup });
        let same = setup.precision == self.setup.precision;
        self.setup = setup;
        let Some(models) = self.models.take_if(|_| !same) else { return Ok(()) };
        let Models { dit, t5, clip, vae, texts, colours } = models;
        drop(dit);
        let loader = self.backend.loader(Keeping::of(&self.setup, Component::Dit));
        let Sources { dims, dit, .. } = &self.sources;
        let dit = timed(&mut self.load_seconds.dit, || Dit::load(&loader, &**dit, &dims.dit))?;
        self.models = Some(Models { dit, t5, clip, vae, texts, colours });
        Ok(())
    }

    /// How the backend runs the model.
    pub(crate) fn setup(&self) -> Setup {
        self.setup
    }

    /// How long the networks took that are loaded.
    pub(crate) fn load_seconds(&self) -> LoadSeconds {
        self.load_seconds
    }

    /// What a loaded pipeline works with.
    pub(crate) fn parts(&mut self) -> Result<(&B, &Tokenizer, &mut Models<B>)> {
        let models = self.models.as_mut().ok_or_else(|| Error::Internal("the model is not loaded".into()))?;
        Ok((&self.backend, &self.tokenizer, models))
    }

    /// How the loaded model's latents look.
    pub(super) fn colours(&mut self) -> Result<Colours> {
        let (b, _, models) = self.parts()?;
        if let Some(known) = &models.colours {
            return Ok(known.clone());
        }
        let began = Instant::now();
        let colours = models.colours.insert(models.vae.colours(b)?).clone();
        tracing::debug!("the latents' colours in {:?}", began.elapsed());
        Ok(colours)
    }

    pub(super) fn is_loaded(&self) -> bool {
        self.models.is_some()
    }

    /// What a job will cost.
    pub(super) fn plan(&self, job: &Job) -> Plan {
        Plan::new(&self.sources.dims, &job.request, [job.width(), job.height()], &self.setup)
    }

    /// Of all four networks.
    pub(super) fn parameters(&self) -> usize {
        self.sources.parameters
    }

    /// The blocks of the DiT.
    pub(super) fn blocks(&self) -> usize {
        self.sources.dims.dit.num_layers
    }

    /// Refuses a job that the memory cannot hold, before anything is loaded; what is a GPU's is taken.
    pub(super) fn check_memory(&mut self, job: &Job) -> Result<()> {
        let memory = self.plan(job).memory;
        if self.setup.backend == Kind::Cuda {
            // Embeddings would hold on to memory that a larger job wants in one piece; a GPU makes them in no time.
            if let Some(models) = &mut self.models {
                models.texts.clear();
            }
            return self.backend.reserve(&memory);
        }
        let Some(available) = available_ram() else { return Ok(()) };
        let weights = memory.phases.iter().map(|p| p.weights).max().unwrap_or_default();
        let weights = if self.is_loaded() { 0 } else { weights };
        let activations = memory.phases.iter().map(|p| p.kept + p.activations).max().unwrap_or_default();
        if weights + activations <= available {
            return Ok(());
        }
        Err(Error::Memory(format!(
            "this job needs about {} of memory ({} of weights as f32, {} of activations at {}x{}, {} frames) and {} are \
             free: use a smaller size or fewer frames, a smaller model, or a machine with more",
            gib(weights + activations),
            gib(weights),
            gib(activations),
            job.width(),
            job.height(),
            job.request.frames,
            gib(available)
        )))
    }
}

impl<B: Backend> Models<B> {
    /// The prompt's embedding `[n, text_dim]`, from memory if it was asked for before.
    pub(super) fn text(&mut self, backend: &B, tokenizer: &Tokenizer, prompt: &str) -> Result<B::Tensor> {
        if let Some(known) = self.texts.get(prompt) {
            return Ok(known.clone());
        }
        let tokens = tokenizer.encode(&text::clean(prompt))?;
        if tokens.whole > MAX_TOKENS {
            tracing::warn!("the prompt has {} tokens; the model reads the first {MAX_TOKENS}", tokens.whole);
        }
        let embedding = self.t5.encode(backend, &tokens.ids, None)?;
        if self.texts.len() >= KEPT_PROMPTS {
            self.texts.clear();
        }
        self.texts.insert(prompt.to_owned(), embedding.clone());
        Ok(embedding)
    }
}

/// Notes how long a load took.
fn timed<T>(seconds: &mut f64, load: impl FnOnce() -> Result<T>) -> Result<T> {
    let began = Instant::now();
    let result = load();
    *seconds = began.elapsed().as_secs_f64();
    result
}

fn file_name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

/// A field of a `/proc` file in bytes; the files give kB.
fn proc_bytes(path: &str, field: &str) -> Option<u64> {
    let text = std::fs::read_to_string(path).ok()?;
    let line = text.lines().find_map(|l| l.strip_prefix(field))?;
    line.trim_start_matches(':').trim().trim_end_matches("kB").trim().parse::<u64>().ok().map(|kb| kb * 1024)
}

/// Bytes that the machine could still give.
fn available_ram() -> Option<u64> {
    proc_bytes("/proc/meminfo", "MemAvailable")
}

/// The process's largest resident memory so far, in bytes.
pub(super) fn peak_ram() -> u64 {
    proc_bytes("/proc/self/status", "VmHWM").unwrap_or_default()
}
