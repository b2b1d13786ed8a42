//! The model's four networks: found at once, loaded when first needed, kept.

use std::collections::HashMap;
use std::path::Path;

use crate::backend::Backend;
use crate::model::clip::Clip;
use crate::model::dit::Dit;
use crate::model::t5::T5;
use crate::model::vae::{Colours, Vae};
use crate::text::{self, MAX_TOKENS, Tokenizer};
use crate::weights::{
    ClipConfig, DitConfig, ModelDir, T5Config, VaeConfig, Weights, open_clip, open_dit, open_t5, open_vae,
};
use crate::{Error, Result};

use super::Job;
use super::clock::Clock;

/// Prompts whose embeddings are kept: the negative prompt and a few users' favourites.
const KEPT_PROMPTS: usize = 16;

/// One network's checked files and sizes.
struct Part<C> {
    weights: Weights,
    config: C,
}

impl<C> From<(Weights, C)> for Part<C> {
    fn from((weights, config): (Weights, C)) -> Self {
        Self { weights, config }
    }
}

/// A model on a backend, ready for one job after the other.
pub struct Pipeline<B: Backend> {
    backend: B,
    name: String,
    tokenizer: Tokenizer,
    dit: Part<DitConfig>,
    t5: Part<T5Config>,
    clip: Part<ClipConfig>,
    vae: Part<VaeConfig>,
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
        let dir = ModelDir::open_with(dir, dit)?;
        Ok(Self {
            backend,
            name,
            tokenizer: Tokenizer::open(&dir.tokenizer)?,
            dit: open_dit(&dir.dit)?.into(),
            t5: open_t5(&dir.t5)?.into(),
            clip: open_clip(&dir.clip)?.into(),
            vae: open_vae(&dir.vae)?.into(),
            models: None,
        })
    }

    /// The folder's name.
    pub fn model_name(&self) -> &str {
        &self.name
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
        let (b, total) = (&self.backend, self.parameters() as f64);
        let mut done = 0;
        let mut loaded = |clock: &mut Clock<'_>, parameters: usize| {
            done += parameters;
            clock.part(done as f64 / total);
            clock.observer().check()
        };
        let t5 = T5::load(b, &self.t5.weights, &self.t5.config)?;
        loaded(clock, self.t5.weights.parameters())?;
        let clip = Clip::load(b, &self.clip.weights, &self.clip.config)?;
        loaded(clock, self.clip.weights.parameters())?;
        let vae = Vae::load(b, &self.vae.weights, &self.vae.config)?;
        loaded(clock, self.vae.weights.parameters())?;
        let dit = Dit::load(b, &self.dit.weights, &self.dit.config)?;
        loaded(clock, self.dit.weights.parameters())?;
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
        Ok(models.colours.insert(models.vae.colours(b)?).clone())
    }

    pub(super) fn is_loaded(&self) -> bool {
        self.models.is_some()
    }

    pub(super) fn dit_config(&self) -> &DitConfig {
        &self.dit.config
    }

    pub(super) fn vae_config(&self) -> &VaeConfig {
        &self.vae.config
    }

    pub(super) fn t5_parameters(&self) -> usize {
        self.t5.weights.parameters()
    }

    pub(super) fn clip_parameters(&self) -> usize {
        self.clip.weights.parameters()
    }

    /// Of all four networks.
    pub(super) fn parameters(&self) -> usize {
        self.t5_parameters()
            + self.clip_parameters()
            + self.vae.weights.parameters()
            + self.dit.weights.parameters()
    }

    /// Refuses a job that the machine's memory cannot hold, before anything is loaded.
    pub(super) fn check_memory(&self, job: &Job) -> Result<()> {
        let Some(available) = available_ram() else { return Ok(()) };
        let weights = if self.is_loaded() { 0 } else { 4 * self.parameters() as u64 };
        // The largest moment of the activations: the VAE decoder's full-resolution volumes of four frames, some six of
        // them at once, or the DiT's token rows, about a dozen wide with the FFN's.
        let [t, h, w] = job.latent().map(|n| n as u64);
        let voxels = 4 * (job.width() * job.height()) as u64;
        let vae = 6 * 4 * voxels * self.vae.config.base as u64;
        let dit = 4 * (t * h * w / 4) * (8 * self.dit.config.dim + 2 * self.dit.config.ffn_dim) as u64;
        let activations = vae.max(dit);
        if weights + activations <= available {
            return Ok(());
        }
        let gb = |bytes: u64| bytes as f64 / 1e9;
        Err(Error::Memory(format!(
            "this job needs about {:.1} GB of memory ({:.1} GB of weights as f32, {:.1} GB of activations at {}x{}, {} \
             frames) and {:.1} GB are free: use a smaller size or fewer frames, a smaller model, or a machine with more",
            gb(weights + activations),
            gb(weights),
            gb(activations),
            job.width(),
            job.height(),
            job.request.frames,
            gb(available)
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
