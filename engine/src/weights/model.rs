//! A whole model: in a folder, or in the files that a model file names.

use std::path::{Path, PathBuf};

use super::open::{open_clip, open_dit, open_expert, open_t5, open_vae};
use super::source::Weights;
use super::{Adapter, Cache, Lease, Strength, carried, experts, find, refusals, shards};
use crate::{Error, Result};
use animd_protocol::dims::{ClipConfig, DitConfig, T5Config, VaeConfig};
use animd_protocol::model_file::{LoraEntry, ModelFile, PartPaths};
use animd_protocol::profile::Precision;
use animd_protocol::recipe::{ExpertName, Recipe};

/// A whole model, all of it checked.
pub struct Model {
    /// The DiT; of Wan2.2 the high-noise expert.
    pub dit: (Weights, DitConfig),
    /// The low-noise expert of Wan2.2.
    pub low_noise: Option<(Weights, DitConfig)>,
    /// The `umT5` encoder.
    pub t5: (Weights, T5Config),
    /// The CLIP tower; Wan2.2 has none.
    pub clip: Option<(Weights, ClipConfig)>,
    /// The VAE.
    pub vae: (Weights, VaeConfig),
    /// The file with the tokenizer: its own, or the text encoder's.
    pub tokenizer: PathBuf,
    /// The `LoRA`s that the model file names for the transformers.
    pub loras: Vec<Adapter>,
    /// For each transformer its prepared copy, and what keeps it in the cache.
    pub copies: Vec<Option<(Lease, Weights)>>,
}

/// Returns the file that has the tokenizer of a model: one of its own in the folder, or the text encoder's file if that
/// carries it.
pub(crate) fn tokenizer(folder: &Path, encoder: Option<&Path>) -> Option<PathBuf> {
    find::tokenizer(folder)
        .or_else(|| encoder.filter(|file| carried::is_carried_by(file)).map(Path::to_owned))
}

/// Where the parts of a model are looked for.
pub(crate) struct Places {
    pub dit: PathBuf,
    /// The low-noise transformer of a model that has two; `dit` is the high-noise one then.
    pub low_noise: Option<PathBuf>,
    pub text: PathBuf,
    /// A model of two transformers takes pictures without it.
    pub clip: Option<PathBuf>,
    pub vae: PathBuf,
    /// The tokenizer's own file, if a model file names one.
    tokenizer: Option<PathBuf>,
    /// The `LoRA`s that a model file names.
    loras: Vec<LoraEntry>,
    /// The folder of the model, or of its text encoder.
    folder: PathBuf,
}

/// Returns the model file that a path leads to: `path` itself, or `model.toml` in the folder `path`.
pub(crate) fn model_file(path: &Path) -> Option<PathBuf> {
    let named = path.extension().is_some_and(|e| e.eq_ignore_ascii_case("toml")) && !path.is_dir();
    let inside = path.join("model.toml");
    if named { Some(path.to_owned()) } else { inside.is_file().then_some(inside) }
}

/// Returns the places of a model's transformers: of the one, or of both of Wan2.2. The model is given by its folder or its
/// model file; a transformer's own folder or file is its place.
///
/// # Errors
/// [`Error::Model`] if a model file has a mistake, or if it is not clear which two files belong together.
pub(crate) fn transformers(path: &Path) -> Result<Vec<(Option<ExpertName>, PathBuf)>> {
    let (pair, one) = match model_file(path) {
        Some(file) => {
            let parts = ModelFile::read(&file).map_err(Error::Model)?.parts;
            (parts.high_noise.zip(parts.low_noise).map(<[PathBuf; 2]>::from), parts.dit)
        }
        None => (pair(path)?, Some(path.to_owned())),
    };
    if let Some(pair) = pair {
        return Ok(ExpertName::ALL.into_iter().map(Some).zip(pair).collect());
    }
    let one = one.ok_or_else(|| {
        let path = path.display();
        Error::Model(format!(
            "`{path}` names no transformer in [parts]: `dit`, or `high_noise` and `low_noise`"
        ))
    })?;
    Ok(vec![(None, one)])
}

/// Returns the places of the two transformers of Wan2.2 below a folder, one of which may be missing; `None` for any other folder.
///
/// # Errors
/// The errors of [`experts::pair`].
fn pair(path: &Path) -> Result<Option<[PathBuf; 2]>> {
    if let Some(pair) = experts::pair(path)? {
        return Ok(Some(pair));
    }
    let Some(half) = experts::half(path)? else { return Ok(None) };
    let is_wan22 = half.is_certain || open_expert(&half.places[half.there.index()]).is_ok();
    Ok((is_wan22 && open_dit(path).is_err()).then_some(half.places))
}

/// Returns whether a folder or file holds one of the two transformers of Wan2.2, and nothing says where the other one is.
pub(crate) fn is_lone_expert(path: &Path) -> bool {
    open_dit(path).is_err() && open_expert(path).is_ok()
}

impl Places {
    /// Returns the places that a model's folder has, with the DiT elsewhere if `dit` says so.
    fn of_folder(folder: &Path, dit: Option<&Path>) -> Result<Self> {
        if !folder.exists() {
            return Err(Error::Model(format!(
                "the model folder `{}` does not exist; mount its disk, or name the folder where the model is now",
                folder.display()
            )));
        }
        if !folder.is_dir() {
            return Err(Error::Model(format!(
                "`{}` is a file; name the folder of the model, or a model file (`NAME.toml`)",
                folder.display()
            )));
        }
        // An empty folder, or one for another program, is one problem and not five.
        let files = shards::list(folder)?;
        let pair = pair(dit.unwrap_or(folder))?;
        if dit.is_none()
            && pair.is_none()
            && !files.iter().any(|n| n.starts_with("models_") || n.starts_with("Wan2.1_VAE"))
        {
            open_dit(folder)?;
        }
        let own = || folder.to_owned();
        let (dit, low_noise) = match pair {
            Some([high, low]) => (high, Some(low)),
            None => (dit.unwrap_or(folder).to_owned(), None),
        };
        // Neither both transformers of Wan2.2 nor one of them takes pictures by CLIP.
        let clip = (low_noise.is_none() && !is_lone_expert(&dit)).then(own);
        let (tokenizer, loras) = (None, Vec::new());
        Ok(Self { dit, low_noise, text: own(), clip, vae: own(), tokenizer, loras, folder: own() })
    }

    /// Returns the places that a model file names, with the DiT elsewhere if `dit` says so.
    ///
    /// # Errors
    /// [`Error::Model`] for a file that is no model file, or that lacks a part.
    pub fn of_file(path: &Path, dit: Option<&Path>) -> Result<Self> {
        let refuse = |what: &str| Err(Error::Model(format!("`{}` {what}", path.display())));
        let ModelFile { parts, loras, .. } = ModelFile::read(path).map_err(Error::Model)?;
        let given = match dit {
            Some(dit) => pair(dit)?,
            None => parts.high_noise.zip(parts.low_noise).map(<[PathBuf; 2]>::from),
        };
        let (dit, low_noise) = match (given, dit.map(Path::to_owned).or(parts.dit)) {
            (Some([high, low]), _) => (high, Some(low)),
            (None, Some(dit)) => (dit, None),
            (None, None) => {
                return refuse("names no transformer in [parts]: `dit`, or `high_noise` and `low_noise`");
            }
        };
        let clip = parts.clip.filter(|_| low_noise.is_none());
        if low_noise.is_none() && loras.iter().any(|lora| lora.expert.is_some()) {
            return refuse(
                "gives `expert` in [[lora]], and its model has one transformer; leave `expert` out",
            );
        }
        if clip.is_none() && low_noise.is_none() {
            return refuse("names no `clip` in [parts]; Wan2.1 takes pictures by CLIP");
        }
        let folder = if parts.text.is_dir() { Some(&*parts.text) } else { parts.text.parent() };
        let folder = folder.unwrap_or(Path::new(".")).to_owned();
        let PartPaths { text, vae, tokenizer, .. } = parts;
        Ok(Self { dit, low_noise, text, clip, vae, tokenizer, loras, folder })
    }

    /// Opens the copy of each transformer that is prepared in this precision, where there is one.
    fn prepared(&self, cache: &Cache, precision: Precision) -> Vec<Result<Option<(Lease, Weights)>>> {
        let open = if self.low_noise.is_some() { open_expert } else { open_dit };
        let copy = |dit: &PathBuf| {
            let Some(lease) = cache.find(dit, precision) else { return Ok(None) };
            let (weights, _) = open(lease.folder())?;
            Ok(Some((lease, weights)))
        };
        std::iter::once(&self.dit).chain(&self.low_noise).map(copy).collect()
    }

    /// Returns the file with the tokenizer, given that of the text encoder.
    fn tokenizer(&self, encoder: Option<&Path>) -> Option<PathBuf> {
        match &self.tokenizer {
            Some(named) if named.is_file() => Some(named.clone()),
            Some(named) => find::tokenizer(named),
            None => tokenizer(&self.folder, encoder),
        }
    }
}

impl Model {
    /// Opens a model: its folder as it is downloaded, or the file that names its parts ([`ModelFile`]), or a folder with such
    /// a file, `model.toml`. The DiT can be in a folder or file of its own, which `dit` names. Only headers are read.
    ///
    /// # Errors
    /// One [`Error::Model`] for everything that is wrong: files that are missing, half-copied or of another model.
    pub fn open(path: &Path, dit: Option<&Path>) -> Result<Self> {
        Self::open_with(path, dit, None)
    }

    /// Does what [`Self::open`] does, and opens the copies of the transformers that are prepared in this precision, where the
    /// cache has some.
    ///
    /// # Errors
    /// The errors are those of [`Self::open`].
    pub fn open_prepared(
        path: &Path,
        dit: Option<&Path>,
        cache: &Cache,
        precision: Precision,
    ) -> Result<Self> {
        Self::open_with(path, dit, Some((cache, precision)))
    }

    fn open_with(path: &Path, dit: Option<&Path>, prepared: Option<(&Cache, Precision)>) -> Result<Self> {
        let places = match model_file(path) {
            Some(file) => Places::of_file(&file, dit)?,
            None => Places::of_folder(path, dit)?,
        };
        let mut errors = Vec::new();
        let mut note = |e| errors.push(e);
        let (dit, low_noise) = match &places.low_noise {
            None => (open_dit(&places.dit), None),
            Some(low) => (open_expert(&places.dit), Some(open_expert(low))),
        };
        let dit = dit.map_err(&mut note).ok();
        let low_noise = low_noise.and_then(|low| low.map_err(&mut note).ok());
        let t5 = open_t5(&places.text).map_err(&mut note).ok();
        let clip = places.clip.as_deref().and_then(|clip| open_clip(clip).map_err(&mut note).ok());
        let vae = open_vae(&places.vae).map_err(&mut note).ok();
        let tokenizer = places.tokenizer(t5.as_ref().and_then(|(weights, _)| weights.file()));
        let folder = &*places.folder;
        if tokenizer.is_none() && (t5.is_some() || path.is_dir()) {
            note(Error::Model(format!(
                "`{}` holds no `google/umt5-xxl/tokenizer.json`, and its text encoder carries no tokenizer",
                folder.display()
            )));
        }
        if let Some((_, dit)) = &dit {
            let widths = [
                ("text", Some(dit.text_dim), t5.as_ref().map(|(w, c)| (w, c.dim))),
                ("images", dit.image_dim, clip.as_ref().map(|(w, c)| (w, c.dim))),
            ];
            for (what, want, found) in widths {
                let Some(want) = want else { continue };
                if let Some((weights, have)) = found.filter(|(_, have)| *have != want) {
                    let path = weights.file().map_or(folder, |p| p).display();
                    note(Error::Model(format!(
                        "the DiT takes {what} of width {want}, and `{path}` gives {have}"
                    )));
                }
            }
        }
        if let (Some((_, high)), Some((weights, low))) = (&dit, &low_noise)
            && high != low
        {
            let path = weights.file().map_or(folder, |p| p).display();
            note(Error::Model(format!(
                "the low-noise transformer `{path}` has other sizes than the high-noise one: they are of different models"
            )));
        }
        let transformers = 1 + usize::from(places.low_noise.is_some());
        let mut loras = Vec::new();
        if let Some((_, config)) = &dit {
            for LoraEntry { file, strength, expert } in &places.loras {
                let wanted = match expert {
                    Some(expert) => Strength::Of(*expert, *strength),
                    None => Strength::All(*strength),
                };
                loras.extend(Adapter::open(file, config, transformers, wanted).map_err(&mut note));
            }
        }
        let copies = prepared.map(|(cache, precision)| places.prepared(cache, precision)).unwrap_or_default();
        let copies = copies.into_iter().map(|copy| copy.map_err(&mut note).ok().flatten()).collect();
        refusals::merge(errors)?;
        let (Some(dit), Some(t5), Some(vae), Some(tokenizer)) = (dit, t5, vae, tokenizer) else {
            return Err(Error::Internal("a part of the model is neither found nor missing".to_owned()));
        };
        Ok(Self { dit, low_noise, t5, clip, vae, tokenizer, loras, copies })
    }

    /// Returns the model as a value.
    pub fn recipe(&self) -> Recipe {
        let (dit, t5, vae) = (self.dit.1.clone(), self.t5.1.clone(), self.vae.1.clone());
        match (&self.low_noise, &self.clip) {
            (None, Some((_, clip))) => Recipe::wan21_i2v(dit, t5, clip.clone(), vae),
            (low, _) => {
                let low = low.as_ref().map_or_else(|| dit.clone(), |(_, low)| low.clone());
                Recipe::wan22_i2v([dit, low], t5, vae)
            }
        }
    }

    /// Returns the number of parameters of all networks.
    pub fn parameters(&self) -> usize {
        let always = [&self.dit.0, &self.t5.0, &self.vae.0].into_iter();
        let low = self.low_noise.iter().map(|(weights, _)| weights);
        let clip = self.clip.iter().map(|(weights, _)| weights);
        always.chain(low).chain(clip).map(Weights::parameters).sum()
    }
}
