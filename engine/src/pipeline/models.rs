//! The model's networks: found at once, loaded when first needed, and kept.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use animd_protocol::model_file::ModelFile;
use animd_protocol::plan::{Plan, Setup, gib, refusal};
use animd_protocol::profile::{AttentionKind, Backend as Kind, Place, Precision, Precisions};
use animd_protocol::recipe::{BASE_NETWORK, Recipe};
use animd_protocol::request::Request;

use crate::backend::Backend;
use crate::model::clip::Clip;
use crate::model::dit::Dit;
use crate::model::t5::T5;
use crate::model::vae::{Colours, Vae};
use crate::progress::Observer;
use crate::synth::{self, Source};
use crate::text::{self, MAX_TOKENS, Tokenizer};
use crate::weights::{self, Cache, DType, WeightSource};
use crate::{Error, Result};

use super::Job;
use super::adapters::Shared;
use super::rescue::Rescue;
use super::sources::{LoadSeconds, Sources};

/// The number of prompts whose embeddings are kept: the negative prompt and a few users' favourites.
const KEPT_PROMPTS: usize = 16;

/// A model on a backend, ready to run one job after the other.
pub struct Pipeline<B: Backend> {
    pub(super) backend: B,
    /// How the backend runs the model.
    pub(super) setup: Setup,
    name: String,
    /// What the model's file says that it is.
    about: Option<String>,
    tokenizer: Tokenizer,
    pub(super) sources: Sources,
    pub(super) models: Models<B>,
    /// Where the plan of the current job keeps each network, by its name in the recipe.
    pub(super) places: BTreeMap<String, Place>,
    /// The budget of the current job where there is less memory than the setup counts on.
    budget: Option<u64>,
    /// The budget of a job that begins again because its memory did not suffice.
    ceiling: Option<u64>,
    /// What there is to say about the current job's memory.
    notes: Vec<String>,
    pub(super) load_seconds: LoadSeconds,
}

/// The networks that are loaded: each is loaded when it is first needed, and kept.
pub struct Models<B: Backend> {
    /// The diffusion transformers, in the recipe's order.
    pub(super) experts: Vec<Dit<B>>,
    pub(super) text_encoder: Option<T5<B>>,
    pub(super) image_encoder: Option<Clip<B>>,
    pub(super) vae: Option<Vae<B>>,
    texts: HashMap<String, B::Tensor>,
    /// The colours of latents, fitted when first needed.
    colours: Option<Colours>,
}

impl<B: Backend> Default for Models<B> {
    fn default() -> Self {
        let (experts, texts, colours) = (Vec::new(), HashMap::new(), None);
        Self { experts, text_encoder: None, image_encoder: None, vae: None, texts, colours }
    }
}

/// The parts that a loaded pipeline works with.
pub struct Parts<'a, B: Backend> {
    pub backend: &'a B,
    pub tokenizer: &'a Tokenizer,
    pub recipe: &'a Recipe,
    pub models: &'a mut Models<B>,
    /// The source of the VAE's weights.
    vae: &'a dyn WeightSource,
}

impl<B: Backend> Parts<'_, B> {
    /// Returns the VAE, which finds a way where there is too little memory.
    ///
    /// # Errors
    /// Returns [`Error::Internal`] if the VAE is not loaded.
    pub(super) fn rescue<'a>(
        &'a self,
        tile: Option<usize>,
        observer: &'a dyn Observer,
    ) -> Result<Rescue<'a, B>> {
        let (backend, config, vae) = (self.backend, &self.recipe.vae.config, self.models.vae()?);
        Ok(Rescue { backend, vae, config, weights: self.vae, tile, observer })
    }
}

impl<B: Backend> Pipeline<B> {
    /// Finds and checks the files of a model, given by its folder or its model file. The DiT comes from `dit` if that is
    /// given. Only headers are read.
    ///
    /// If the backend runs the DiT in 8 bits and the cache has a copy prepared in that precision ([`weights::prepare`]),
    /// the copy is used instead of everything that no `LoRA` changes. Callers that load the DiT in several precisions give
    /// no cache.
    ///
    /// # Errors
    /// Returns [`Error::Model`], which lists everything that is wrong with the files.
    pub fn open(
        backend: B,
        wanted: &Setup,
        model: &Path,
        dit: Option<&Path>,
        cache: Option<&Cache>,
    ) -> Result<Self> {
        let named = named(model)?;
        let about = named.as_ref().filter(|_| dit.is_none()).and_then(|named| named.about.clone());
        let name = name_of(model, dit, named);
        let precision = backend.resolve(wanted).precision.dit;
        let files = match cache {
            Some(cache) => weights::Model::open_prepared(model, dit, cache, precision)?,
            None => weights::Model::open(model, dit)?,
        };
        let tokenizer = Tokenizer::open(&files.tokenizer)?;
        let mut pipeline = Self::with(backend, wanted, name, tokenizer, files.into());
        pipeline.about = about;
        Ok(pipeline)
    }

    /// Returns a made-up model without files: what `synth-model` would write with this seed.
    ///
    /// # Errors
    /// There are none in a sound build.
    pub fn made_up(backend: B, wanted: &Setup, model: impl Into<Recipe>, seed: u64) -> Result<Self> {
        let recipe = model.into();
        let made_up = synth::networks(&recipe, seed).map(|(part, seed)| -> (Shared, usize) {
            let source = Source::new(&part, DType::Bf16, seed);
            let parameters = source.parameters();
            (Arc::new(source), parameters)
        });
        let made_up = made_up.collect::<Vec<_>>();
        let tokenizer = Tokenizer::read(synth::TOKENIZER, "tokenizer.json")?;
        Ok(Self::with(
            backend,
            wanted,
            "made-up".into(),
            tokenizer,
            Sources::new(recipe, made_up, Vec::new()),
        ))
    }

    fn with(backend: B, wanted: &Setup, name: String, tokenizer: Tokenizer, sources: Sources) -> Self {
        let (setup, load_seconds) = (backend.resolve(wanted), LoadSeconds::default());
        let (places, budget, ceiling, notes) = (BTreeMap::new(), None, None, Vec::new());
        Self {
            backend,
            setup,
            name,
            about: None,
            tokenizer,
            sources,
            models: Models::default(),
            places,
            budget,
            ceiling,
            notes,
            load_seconds,
        }
    }

    /// Returns the name that a model file gives the model, or else that of the folder, repository or file that it is in.
    pub fn model_name(&self) -> &str {
        &self.name
    }

    /// Returns what the model's file says that the model is.
    pub(super) fn about(&self) -> Option<&str> {
        self.about.as_deref()
    }

    /// Returns the model's recipe, with the transformers that the current job needs.
    pub fn recipe(&self) -> &Recipe {
        &self.sources.recipe
    }

    /// Returns the peak use of a GPU's memory in bytes since the last call.
    pub(super) fn peak_gpu(&self) -> u64 {
        self.backend.peak_memory()
    }

    /// Returns `cpu` or `cuda`.
    pub fn backend_name(&self) -> &'static str {
        self.backend.name()
    }

    /// Changes how the DiT runs from now on. If that takes other weights, the loaded ones are dropped; the next
    /// [`Self::prepare`] or [`Self::run`] loads them anew. The other networks stay.
    pub(crate) fn exchange_dit(&mut self, dit: Precision, attention: AttentionKind) {
        let precision = Precisions { dit, ..self.setup.precision };
        let setup = self.backend.resolve(&Setup { precision, attention, ..self.setup });
        let same = setup.precision == self.setup.precision;
        self.setup = setup;
        if !same {
            self.models.experts.clear();
        }
    }

    /// Returns how the backend runs the model.
    pub(crate) fn setup(&self) -> Setup {
        self.setup
    }

    /// Returns how long the loaded networks took to load.
    pub(crate) fn load_seconds(&self) -> &LoadSeconds {
        &self.load_seconds
    }

    /// Returns the parts that the pipeline works with, as far as they are loaded.
    pub(crate) fn parts(&mut self) -> Result<Parts<'_, B>> {
        let Self { backend, tokenizer, sources, models, .. } = self;
        let vae = &**sources.of(&sources.recipe.vae)?;
        Ok(Parts { backend, tokenizer, recipe: &sources.recipe, models, vae })
    }

    /// Returns the colours of the model's latents, whose VAE is loaded.
    pub(super) fn colours(&mut self) -> Result<Colours> {
        let Parts { backend, models, .. } = self.parts()?;
        if let Some(known) = &models.colours {
            return Ok(known.clone());
        }
        let began = Instant::now();
        let colours = models.vae()?.colours(backend)?;
        models.colours = Some(colours.clone());
        tracing::debug!("the latents' colours in {:?}", began.elapsed());
        Ok(colours)
    }

    /// Returns the plan of a job.
    pub(super) fn plan(&self, job: &Job) -> Plan {
        let setup = Setup { budget: self.budget.or(self.setup.budget), ..self.setup };
        Plan::new(&self.sources.recipe, &job.request, [job.width(), job.height()], &setup)
    }

    /// Returns the number of parameters of all networks.
    pub(super) fn parameters(&self) -> usize {
        self.sources.all_parameters()
    }

    /// Returns the number of the DiT's blocks; with several experts, that of the one with the fewest.
    pub(super) fn blocks(&self) -> usize {
        let experts = self.sources.recipe.experts.iter();
        experts.map(|expert| expert.network.config.num_layers).min().unwrap_or(1)
    }

    /// Reserves a GPU's memory as the plan of `job` says, or as another plan does for the memory that there is.
    fn reserve(&mut self, job: &Job) -> Result<()> {
        self.budget = self.ceiling;
        let mut memory = self.plan(job).memory;
        if let Some(room) = self.backend.room()
            && memory.total() > room.saturating_add(memory.context)
        {
            self.budget = Some(room + memory.context);
            let anew = self.plan(job).memory;
            if anew.fits() {
                // A plan that only keeps fewer tokens costs next to nothing.
                if !anew.holds_the_same(&memory) {
                    self.note(format!(
                        "the GPU has {} for weights and work, and {} were planned: the job is planned anew, with fewer \
                         weights on the GPU at a time",
                        gib(room),
                        gib(memory.total() - memory.context)
                    ));
                }
                memory = anew;
            } else {
                self.budget = self.ceiling;
            }
        }
        let places = memory.networks.iter().map(|network| (network.name.clone(), network.placement.place));
        let places: BTreeMap<_, _> = places.collect();
        // Weights that were loaded to stay cannot leave the device; others can be there all the time.
        let leaves = |name: &str| {
            let [before, now] = [&self.places, &places].map(|places| places.get(name));
            before == Some(&Place::Device) && now.is_some_and(|now| *now != Place::Device)
        };
        let missing: Vec<&str> = self.missing().map(|part| part.name).collect();
        let mut loaded = self.sources.recipe.networks().filter(|part| !missing.contains(&part.name));
        if loaded.any(|part| leaves(part.name)) {
            self.models = Models::default();
        }
        let missing: Vec<String> = self.missing().map(|part| part.name.to_owned()).collect();
        self.places.extend(places.into_iter().filter(|(name, _)| missing.contains(name)));
        self.backend.reserve(&memory)
    }

    /// Forgets what was said of earlier jobs' memory.
    pub(super) fn begin(&mut self) {
        self.ceiling = None;
        self.take_notes();
    }

    /// Returns whether a job that had too little memory can begin again with less of it, and prepares for that.
    pub(super) fn makes_do_with_less(&mut self, job: &Job, shortage: &str) -> bool {
        let Some(room) = self.backend.room() else { return false };
        let context = self.plan(job).memory.context;
        // What stays free is for what the plan did not count.
        self.ceiling = Some(room - room / 8 + context);
        self.budget = self.ceiling;
        let fits = self.plan(job).memory.fits();
        if fits {
            if !self.is_loaded() {
                // What is there was loaded for the plan that took too much.
                self.models = Models::default();
            }
            self.note(format!("the job begins again, with fewer weights on the GPU at a time: {shortage}"));
        } else {
            (self.ceiling, self.budget) = (None, None);
        }
        fits
    }

    /// Tells the log, and the job's report, something about memory.
    pub(super) fn note(&mut self, text: String) {
        tracing::warn!("{text}");
        self.notes.push(text);
    }

    /// Returns what there is to say about memory since the last call.
    pub(super) fn take_notes(&mut self) -> Vec<String> {
        let mut notes = std::mem::take(&mut self.notes);
        notes.append(&mut self.backend.notes());
        notes
    }

    /// Refuses a job that the model or the memory does not support, before anything is loaded, and reserves a GPU's
    /// memory.
    pub(super) fn check(&mut self, job: &Job) -> Result<()> {
        self.sources.recipe.check(&job.request)?;
        self.set_transformers(&job.request)?;
        self.refuse(job, self.setup.budget)?;
        if self.setup.backend == Kind::Cuda {
            // Cached embeddings could split memory that a larger job needs in one piece; a GPU recomputes them quickly.
            self.models.texts.clear();
            return self.reserve(job);
        }
        let memory = self.plan(job).memory;
        let Some(available) = available_ram() else { return Ok(()) };
        // Weights that are loaded are available no more, and need not be.
        let missing: Vec<&str> = self.missing().map(|part| part.name).collect();
        let loaded = memory.networks.iter().filter(|network| !missing.contains(&&*network.name));
        let available = available + loaded.map(|network| network.bytes).sum::<u64>();
        let budget = self.setup.budget.map_or(available, |budget| budget.min(available));
        // The job's plan keeps what has room, as the one that is not refused does.
        self.budget = Some(budget);
        self.refuse(job, Some(budget))
    }

    /// Chooses the transformers of a job: with one for steps without `LoRA`s if the job begins with such steps. One that is loaded and
    /// not needed makes room.
    fn set_transformers(&mut self, request: &Request) -> Result<()> {
        if request.steps_base() > 0 && self.sources.adapters.is_empty() {
            return Err(Error::Setting(
                "`steps_base` is for steps without the LoRAs, and neither the job nor the model's file has one: set `steps_base` \
                 to 0, or name in `lora` what the other steps are to have"
                    .into(),
            ));
        }
        self.sources.set_job(request);
        let needed = self.sources.recipe.experts.len();
        if self.models.experts.len() > needed {
            self.models.experts.truncate(needed);
            let place = self.places.remove(BASE_NETWORK);
            if place.is_some_and(|place| place != Place::Device) {
                // Transformers that take turns have one memory, which none of them can leave alone.
                tracing::info!(
                    "the transformers are loaded anew, because two of them take turns from now on"
                );
                self.models.experts.clear();
            }
        }
        Ok(())
    }

    /// Refuses a job that fits no plan within so many bytes of working memory.
    fn refuse(&self, job: &Job, budget: Option<u64>) -> Result<()> {
        let setup = Setup { budget, ..self.setup };
        match refusal(&self.sources.recipe, &job.request, [job.width(), job.height()], &setup) {
            Some(refused) => Err(Error::Memory(refused.to_string())),
            None => Ok(()),
        }
    }
}

impl<B: Backend> Models<B> {
    /// Returns the transformer that computes the steps of an expert.
    ///
    /// # Errors
    /// Returns [`Error::Internal`] for an expert that the recipe does not have, or that is not loaded.
    pub fn expert(&self, index: usize) -> Result<&Dit<B>> {
        self.experts.get(index).ok_or_else(|| Error::Internal(format!("there is no expert {index}")))
    }

    /// Returns the text encoder.
    ///
    /// # Errors
    /// Returns [`Error::Internal`] if it is not loaded.
    pub fn text_encoder(&self) -> Result<&T5<B>> {
        self.text_encoder.as_ref().ok_or_else(|| Error::Internal("the text encoder is not loaded".into()))
    }

    /// Returns the image encoder, if the model has one and it is loaded.
    pub fn image_encoder(&self) -> Option<&Clip<B>> {
        self.image_encoder.as_ref()
    }

    /// Returns the autoencoder.
    ///
    /// # Errors
    /// Returns [`Error::Internal`] if it is not loaded.
    pub fn vae(&self) -> Result<&Vae<B>> {
        self.vae.as_ref().ok_or_else(|| Error::Internal("the VAE is not loaded".into()))
    }

    /// Returns the prompt's embedding `[n, text_dim]`, from the cache if it was asked for before.
    pub(super) fn text(&mut self, backend: &B, tokenizer: &Tokenizer, prompt: &str) -> Result<B::Tensor> {
        if let Some(known) = self.texts.get(prompt) {
            return Ok(known.clone());
        }
        let tokens = tokenizer.encode(&text::clean(prompt))?;
        if tokens.whole > MAX_TOKENS {
            tracing::warn!("the prompt has {} tokens; the model reads the first {MAX_TOKENS}", tokens.whole);
        }
        let embedding = self.text_encoder()?.encode(backend, &tokens.ids, None)?;
        if self.texts.len() >= KEPT_PROMPTS {
            self.texts.clear();
        }
        self.texts.insert(prompt.to_owned(), embedding.clone());
        Ok(embedding)
    }
}

/// Returns the content of the model file that a path leads to, if it leads to one.
///
/// # Errors
/// Returns [`Error::Model`] with every mistake in the file.
pub fn named(model: &Path) -> Result<Option<ModelFile>> {
    weights::model_file(model).map(|file| ModelFile::read(&file).map_err(Error::Model)).transpose()
}

/// Returns the name of a model: that of its model file, or else that of the folder, repository or file that has the DiT.
fn name_of(model: &Path, dit: Option<&Path>, named: Option<ModelFile>) -> String {
    match (dit, named) {
        (None, Some(named)) => named.name,
        _ => weights::title(dit.unwrap_or(model)),
    }
}

/// Returns a field of a `/proc` file in bytes; the files give kB.
pub(crate) fn proc_bytes(path: &str, field: &str) -> Option<u64> {
    let text = std::fs::read_to_string(path).ok()?;
    let line = text.lines().find_map(|l| l.strip_prefix(field))?;
    line.trim_start_matches(':').trim().trim_end_matches("kB").trim().parse::<u64>().ok().map(|kb| kb * 1024)
}

/// Returns the bytes of memory that the machine has available.
pub(super) fn available_ram() -> Option<u64> {
    proc_bytes("/proc/meminfo", "MemAvailable")
}

/// Returns the process's peak resident memory in bytes.
pub(super) fn peak_ram() -> u64 {
    proc_bytes("/proc/self/status", "VmHWM").unwrap_or_default()
}

#[cfg(test)]
mod tests;
