//! The model's networks: found at once, loaded when first needed, and kept.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use animd_protocol::model_file::ModelFile;
use animd_protocol::plan::{Plan, Setup, gib, refusal};
use animd_protocol::profile::{AttentionKind, Backend as Kind, Place, Precision, Precisions};
use animd_protocol::recipe::{Component, Network, Recipe};

use crate::backend::{Backend, Keeping, Loader};
use crate::model::clip::Clip;
use crate::model::dit::Dit;
use crate::model::t5::T5;
use crate::model::vae::{Colours, Vae};
use crate::progress::Observer;
use crate::synth::{self, Source};
use crate::text::{self, MAX_TOKENS, Tokenizer};
use crate::weights::{self, Adapter, Cache, DType, Lease, ReadAhead, WeightSource};
use crate::{Error, Result};

use super::Job;
use super::adapters::{Adapters, Shared};
use super::clock::Clock;
use super::rescue::Rescue;
use super::watched::Count;

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
    pub(super) models: Option<Models<B>>,
    /// Where the plan of the current job keeps each network, by its name in the recipe.
    places: BTreeMap<String, Place>,
    /// The budget of the current job where there is less memory than the setup counts on.
    budget: Option<u64>,
    /// The budget of a job that begins again because its memory did not suffice.
    ceiling: Option<u64>,
    /// What there is to say about the current job's memory.
    notes: Vec<String>,
    load_seconds: LoadSeconds,
}

/// The source of the weights.
pub(super) struct Sources {
    recipe: Recipe,
    /// The source of each network's weights, by the names of the recipe's networks.
    pub(super) weights: BTreeMap<String, Shared>,
    /// The changes of the transformers, which are in `weights`, too.
    pub(super) adapters: Adapters,
    /// The number of parameters of all networks.
    parameters: usize,
    /// Keeps the prepared copies that weights come from in their cache.
    leases: Vec<Lease>,
}

impl Sources {
    /// Returns the sources of a recipe's networks, where each has its weights in `weights`.
    fn new(recipe: Recipe, weights: BTreeMap<String, Shared>, own: Vec<Adapter>, parameters: usize) -> Self {
        let transformers = recipe.experts.iter().filter_map(|expert| {
            let Network { name, config } = &expert.network;
            Some((name.clone(), config.clone(), weights.get(name)?.clone()))
        });
        let adapters = Adapters::new(own, transformers);
        let mut sources = Self { recipe, weights, adapters, parameters, leases: Vec::new() };
        sources.weights.extend(sources.adapters.sources());
        sources
    }

    fn of<C>(&self, network: &Network<C>) -> Result<&Shared> {
        match self.weights.get(&network.name) {
            Some(weights) => Ok(weights),
            None => Err(Error::Internal(format!("nobody knows where the weights of {} are", network.name))),
        }
    }
}

impl Sources {
    /// Starts to read the files of the networks that are about to be loaded, in the order of loading: the transformers', and
    /// before them, for `all` networks, the others'. Networks that are read each time that they are used are left out.
    fn read_ahead(&self, all: bool, places: &BTreeMap<String, Place>) -> ReadAhead {
        let (mut experts, mut others) = (Vec::new(), Vec::new());
        for part in self.recipe.networks().filter(|part| places.get(part.name) != Some(&Place::Disk)) {
            let Some(weights) = self.weights.get(part.name) else { continue };
            if part.component() == Component::Dit { &mut experts } else { &mut others }
                .push(weights.places());
        }
        others.retain(|_| all);
        others.append(&mut experts);
        ReadAhead::start(&others, available_ram())
    }
}

impl From<weights::Model> for Sources {
    fn from(files: weights::Model) -> Self {
        let (recipe, parameters) = (files.recipe(), files.parameters());
        // These are in the order of the recipe's networks.
        let dits = std::iter::once(files.dit.0).chain(files.low_noise.map(|(weights, _)| weights));
        let clip = files.clip.map(|(weights, _)| weights);
        let all = dits.chain([files.t5.0]).chain(clip).chain([files.vae.0]);
        let all = all.map(|weights| -> Shared { Arc::new(weights) });
        let weights = recipe.networks().map(|part| part.name.to_owned()).zip(all).collect();
        let mut sources = Self::new(recipe, weights, files.loras, parameters);
        for (transformer, copy) in files.copies.into_iter().enumerate() {
            let Some((lease, weights)) = copy else { continue };
            sources.adapters.prepare(transformer, Arc::new(weights));
            sources.leases.push(lease);
        }
        sources.weights.extend(sources.adapters.sources());
        sources
    }
}

/// The seconds that each network took to load, in the order of loading.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct LoadSeconds(Vec<(String, f64)>);

impl LoadSeconds {
    /// Returns the networks with their seconds.
    pub fn networks(&self) -> &[(String, f64)] {
        &self.0
    }

    fn note(&mut self, name: &str, seconds: f64) {
        match self.0.iter_mut().find(|(known, _)| known == name) {
            Some((_, noted)) => *noted = seconds,
            None => self.0.push((name.to_owned(), seconds)),
        }
    }
}

/// The loaded networks.
pub struct Models<B: Backend> {
    /// The diffusion transformers, in the recipe's order.
    pub(super) experts: Vec<Dit<B>>,
    /// The text encoder.
    pub text_encoder: T5<B>,
    /// The image encoder, if the recipe has one.
    image_encoder: Option<Clip<B>>,
    /// The autoencoder.
    pub vae: Vae<B>,
    texts: HashMap<String, B::Tensor>,
    /// The colours of latents, fitted when first needed.
    colours: Option<Colours>,
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
    pub(super) fn rescue<'a>(&'a self, tile: Option<usize>, observer: &'a dyn Observer) -> Rescue<'a, B> {
        let (backend, config) = (self.backend, &self.recipe.vae.config);
        Rescue { backend, vae: &self.models.vae, config, weights: self.vae, tile, observer }
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
    pub fn made_up(backend: B, wanted: &Setup, size: synth::Size, seed: u64) -> Result<Self> {
        let (recipe, mut weights, mut parameters) = (size.recipe(), BTreeMap::new(), 0);
        for part in recipe.networks() {
            let source = Source::new(&part, DType::Bf16, seed);
            parameters += source.parameters();
            let source: Shared = Arc::new(source);
            weights.insert(part.name.to_owned(), source);
        }
        let tokenizer = Tokenizer::read(synth::TOKENIZER, "tokenizer.json")?;
        let sources = Sources::new(recipe, weights, Vec::new(), parameters);
        Ok(Self::with(backend, wanted, "made-up".into(), tokenizer, sources))
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
            models: None,
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

    /// Returns the model's recipe.
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

    /// Loads all weights that are not loaded.
    pub(super) fn load(&mut self, clock: &mut Clock<'_>) -> Result<()> {
        self.exchange_loras(clock)?;
        let missing = self.models.as_ref().is_none_or(|models| models.experts.is_empty());
        if !missing {
            return Ok(());
        }
        let Self { backend, setup, sources, places, load_seconds, .. } = self;
        let (recipe, count) = (&sources.recipe, Count::new(clock, sources.parameters));
        let _ahead = sources.read_ahead(self.models.is_none(), places);
        let mut loading = Loading { backend, setup, places, sources, seconds: load_seconds };
        let mut models = match self.models.take() {
            Some(models) => models,
            None => {
                let network = &recipe.text_encoder;
                let weights = count.of(&**sources.of(network)?);
                let text_encoder = loading
                    .load(Component::T5, network, |loader, config| T5::load(loader, &weights, config))?;
                let image_encoder = match &recipe.conditioning.image_encoder {
                    Some(network) => {
                        let weights = count.of(&**sources.of(network)?);
                        let load = |loader: &B::Loader, config: &_| Clip::load(loader, &weights, config);
                        Some(loading.load(Component::Clip, network, load)?)
                    }
                    None => None,
                };
                let network = &recipe.vae;
                let weights = count.of(&**sources.of(network)?);
                let load = |loader: &B::Loader, config: &_| Vae::load(loader, &weights, config);
                let vae = loading.load(Component::Vae, network, load)?;
                let (experts, texts) = (Vec::new(), HashMap::new());
                Models { experts, text_encoder, image_encoder, vae, texts, colours: None }
            }
        };
        for expert in &recipe.experts {
            let weights = count.of(&**sources.of(&expert.network)?);
            let load = |loader: &B::Loader, config: &_| Dit::load(loader, &weights, config);
            models.experts.push(loading.load(Component::Dit, &expert.network, load)?);
        }
        self.models = Some(models);
        self.sources.adapters.loaded();
        Ok(())
    }

    /// Changes how the DiT runs from now on. If that takes other weights, the loaded ones are dropped; the next
    /// [`Self::prepare`] or [`Self::run`] loads them anew. The other networks stay.
    pub(crate) fn exchange_dit(&mut self, dit: Precision, attention: AttentionKind) {
        let precision = Precisions { dit, ..self.setup.precision };
        let setup = self.backend.resolve(&Setup { precision, attention, ..self.setup });
        let same = setup.precision == self.setup.precision;
        self.setup = setup;
        if let Some(models) = self.models.as_mut().filter(|_| !same) {
            models.experts.clear();
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

    /// Returns the parts that a loaded pipeline works with.
    pub(crate) fn parts(&mut self) -> Result<Parts<'_, B>> {
        let models = self.models.as_mut().ok_or_else(|| Error::Internal("the model is not loaded".into()))?;
        let Self { backend, tokenizer, sources, .. } = self;
        let vae = &**sources.of(&sources.recipe.vae)?;
        Ok(Parts { backend, tokenizer, recipe: &sources.recipe, models, vae })
    }

    /// Returns the colours of the loaded model's latents.
    pub(super) fn colours(&mut self) -> Result<Colours> {
        let Parts { backend, models, .. } = self.parts()?;
        if let Some(known) = &models.colours {
            return Ok(known.clone());
        }
        let began = Instant::now();
        let colours = models.colours.insert(models.vae.colours(backend)?).clone();
        tracing::debug!("the latents' colours in {:?}", began.elapsed());
        Ok(colours)
    }

    pub(super) fn is_loaded(&self) -> bool {
        self.models.as_ref().is_some_and(|models| !models.experts.is_empty())
    }

    /// Returns the plan of a job.
    pub(super) fn plan(&self, job: &Job) -> Plan {
        let setup = Setup { budget: self.budget.or(self.setup.budget), ..self.setup };
        Plan::new(&self.sources.recipe, &job.request, [job.width(), job.height()], &setup)
    }

    /// Returns the number of parameters of all networks.
    pub(super) fn parameters(&self) -> usize {
        self.sources.parameters
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
                self.note(format!(
                    "the GPU has {} for weights and work, and {} were planned: the job is planned anew, with fewer weights \
                     on the GPU at a time",
                    gib(room),
                    gib(memory.total() - memory.context)
                ));
                memory = anew;
            } else {
                self.budget = self.ceiling;
            }
        }
        let places = memory.networks.iter().map(|network| (network.name.clone(), network.placement.place));
        let places: BTreeMap<_, _> = places.collect();
        // Weights that were loaded to stay cannot leave the device; others can be there all the time.
        let leaves = |(name, before): (&String, &Place)| {
            *before == Place::Device && places.get(name).is_some_and(|now| *now != Place::Device)
        };
        if self.is_loaded() && self.places.iter().any(leaves) {
            self.models = None;
        }
        match &self.models {
            None => self.places = places,
            Some(models) if models.experts.is_empty() => {
                let experts = self.sources.recipe.experts.iter().map(|expert| &expert.network.name);
                let moved = experts.filter_map(|name| Some((name.clone(), *places.get(name)?)));
                self.places.extend(moved);
            }
            Some(_) => {}
        }
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
        self.refuse(job, self.setup.budget)?;
        if self.setup.backend == Kind::Cuda {
            // Cached embeddings could split memory that a larger job needs in one piece; a GPU recomputes them quickly.
            if let Some(models) = &mut self.models {
                models.texts.clear();
            }
            return self.reserve(job);
        }
        let memory = self.plan(job).memory;
        let Some(available) = available_ram() else { return Ok(()) };
        // Weights that are loaded are available no more, and need not be.
        let available = available + if self.is_loaded() { memory.weights_to_take() } else { 0 };
        let budget = self.setup.budget.map_or(available, |budget| budget.min(available));
        self.refuse(job, Some(budget))
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
    /// Returns [`Error::Internal`] for an expert that the recipe does not have.
    pub fn expert(&self, index: usize) -> Result<&Dit<B>> {
        self.experts.get(index).ok_or_else(|| Error::Internal(format!("there is no expert {index}")))
    }

    /// Returns the image encoder, if the model has one.
    pub fn image_encoder(&self) -> Option<&Clip<B>> {
        self.image_encoder.as_ref()
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
        let embedding = self.text_encoder.encode(backend, &tokens.ids, None)?;
        if self.texts.len() >= KEPT_PROMPTS {
            self.texts.clear();
        }
        self.texts.insert(prompt.to_owned(), embedding.clone());
        Ok(embedding)
    }
}

/// Loads one network after the other, and notes how long each takes.
struct Loading<'a, B> {
    backend: &'a B,
    setup: &'a Setup,
    places: &'a BTreeMap<String, Place>,
    sources: &'a Sources,
    seconds: &'a mut LoadSeconds,
}

impl<B: Backend> Loading<'_, B> {
    fn load<C, N>(
        &mut self,
        component: Component,
        network: &Network<C>,
        load: impl FnOnce(&B::Loader, &C) -> Result<N>,
    ) -> Result<N> {
        let began = Instant::now();
        let mut keeping = Keeping::of(self.setup, component);
        if let Some(place) = self.places.get(&network.name) {
            keeping.place = *place;
        }
        let loader =
            self.backend.loader_of(&network.name, keeping).reading(self.sources.of(network)?.clone());
        let loaded = load(&loader, &network.config);
        self.seconds.note(&network.name, began.elapsed().as_secs_f64());
        loaded
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
