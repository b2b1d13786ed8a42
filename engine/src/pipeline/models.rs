//! The model's four networks: found at once, loaded when first needed, kept.

use std::collections::HashMap;
use std::path::Path;
use std::time::Instant;

use crate::backend::Backend;
use crate::dims::Dims;
use crate::model::clip::Clip;
use crate::model::dit::Dit;
use crate::model::t5::T5;
use crate::model::vae::{Colours, Vae};
use crate::plan::{Plan, gib};
use crate::profile::Backend as Kind;
use crate::text::{self, MAX_TOKENS, Tokenizer};
use crate::weights::{self, Component};
use crate::{Error, Result};

use super::Job;
use super::clock::Clock;
use super::watched::Count;

/// Prompts whose embeddings are kept: the negative prompt and a few users' favourites.
const KEPT_PROMPTS: usize = 16;

/// A model on a backend, ready for one job after the other.
pub struct Pipeline<B: Backend> {
    backend: B,
    name: String,
    tokenizer: Tokenizer,
    files: weights::Model,
    models: Option<Models<B>>,
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
    /// Finds and checks the files of the model in `dir`, with the DiT from elsewhere if `dit` says so. Reads headers only.
    ///
    /// # Errors
    /// [`Error::Model`] says everything that is wrong with the files.
    pub fn open(backend: B, dir: &Path, dit: Option<&Path>) -> Result<Self> {
        let name = dit.unwrap_or(dir).file_name().unwrap_or_default().to_string_lossy().into_owned();
        let files = weights::Model::open(dir, dit)?;
        Ok(Self { backend, name, tokenizer: Tokenizer::open(&files.tokenizer)?, files, models: None })
    }

    /// The folder's name.
    pub fn model_name(&self) -> &str {
        &self.name
    }

    /// The sizes of its networks.
    pub fn dims(&self) -> Dims {
        self.files.dims()
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
        let (b, files) = (&self.backend, &self.files);
        let count = Count::new(clock, self.parameters());
        let t5 = T5::load(&b.loading(Component::T5), &count.of(&files.t5.0), &files.t5.1)?;
        let clip = Clip::load(&b.loading(Component::Clip), &count.of(&files.clip.0), &files.clip.1)?;
        let vae = Vae::load(&b.loading(Component::Vae), &count.of(&files.vae.0), &files.vae.1)?;
        let dit = Dit::load(&b.loading(Component::Dit), &count.of(&files.dit.0), &files.dit.1)?;
        self.models = Some(Models { dit, t5, clip, vae, texts: HashMap::new(), colours: None });
        Ok(())
    }

    /// What a loaded pipeline works with.
    pub(super) fn parts(&mut self) -> Result<(&B, &Tokenizer, &mut Models<B>)> {
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
        let setup = self.backend.setup();
        Plan::new(&self.dims(), &job.request, [job.width(), job.height()], &setup)
    }

    /// Of all four networks.
    pub(super) fn parameters(&self) -> usize {
        self.files.parameters()
    }

    /// The blocks of the DiT.
    pub(super) fn blocks(&self) -> usize {
        self.files.dit.1.num_layers
    }

    /// Refuses a job that the memory cannot hold, before anything is loaded; what is a GPU's is taken.
    pub(super) fn check_memory(&self, job: &Job) -> Result<()> {
        let memory = self.plan(job).memory;
        if self.backend.setup().backend == Kind::Cuda {
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
