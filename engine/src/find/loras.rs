//! Which `LoRA`s go with which models: each is matched with the transformer of each model, tensor by tensor.

use std::path::{Path, PathBuf};

use animd_protocol::findings::{FoundLora, FoundModel, PartKind};
use animd_protocol::lora::LoraChoice;
use animd_protocol::lora_files;
use animd_protocol::recipe::ExpertName;
use rayon::prelude::*;

use super::candidates::Candidate;
use super::pairs::{HIGH, LOW};
use crate::weights::{self, Adapter, DitConfig, Lora, Strength, open_dit, open_expert};
use crate::{Error, Result};

/// The models whose transformers have these sizes: a `LoRA` fits all of them or none.
struct Fitting {
    config: DitConfig,
    is_pair: bool,
    names: Vec<String>,
}

/// Returns what there is to say about each `LoRA` among the candidates, beside the models that were found and those that were
/// `known` before: a folder or a model file each, which stands for its name.
pub(super) fn all(candidates: &[Candidate], models: &[FoundModel], known: &[PathBuf]) -> Vec<FoundLora> {
    let files: Vec<&Candidate> = candidates.iter().filter(|one| one.part.kind == PartKind::Lora).collect();
    if files.is_empty() {
        return Vec::new();
    }
    let mut fitting: Vec<Fitting> = Vec::new();
    let transformers =
        models.iter().filter_map(transformer).chain(known.iter().filter_map(|path| known_as(path)));
    for (name, is_pair, path) in transformers {
        let opened = if is_pair { open_expert(&path) } else { open_dit(&path) };
        // What is wrong with a model is told where the model itself is opened.
        let Ok((_, config)) = opened else { continue };
        match fitting.iter_mut().find(|one| one.is_pair == is_pair && one.config == config) {
            Some(one) => one.names.push(name),
            None => fitting.push(Fitting { config, is_pair, names: vec![name] }),
        }
    }
    let mut found: Vec<FoundLora> = files.par_iter().map(|file| look(file, &fitting)).collect();
    found.sort_by(|a, b| {
        (a.models.is_empty(), &a.name, &a.path).cmp(&(b.models.is_empty(), &b.name, &b.path))
    });
    pair(&mut found, &fitting);
    found
}

/// Returns the name of a found model, whether it has two transformers, and the place of the first one that was found.
fn transformer(model: &FoundModel) -> Option<(String, bool, PathBuf)> {
    let one = model.part("dit");
    let two = || model.part(HIGH).or_else(|| model.part(LOW));
    let chosen = one.or_else(two)?;
    Some((model.name.clone(), one.is_none(), chosen.part.path.clone()))
}

/// Returns the same for a model that was known before, whose name is that of its folder or model file.
fn known_as(path: &Path) -> Option<(String, bool, PathBuf)> {
    let name = if path.is_dir() { path.file_name() } else { path.file_stem() };
    let (expert, place) = weights::transformers(path).ok()?.into_iter().next()?;
    Some((name?.to_string_lossy().into_owned(), expert.is_some(), place))
}

/// Matches a file with the models.
fn look(file: &Candidate, fitting: &[Fitting]) -> FoundLora {
    let path = &file.part.path;
    let name = lora_files::name_of(path);
    let mut found = FoundLora {
        name: name.unwrap_or_default().to_owned(),
        path: path.clone(),
        bytes: file.part.bytes,
        models: Vec::new(),
        noise: None,
        partner: None,
        called_distilled: name.is_some_and(weights::says_distilled),
        why: None,
    };
    let shown = path.display();
    let Some(name) = name else {
        found.why = Some(format!("`{shown}` has no ending of a LoRA; call it `NAME.safetensors`"));
        return found;
    };
    if let Err(why) = LoraChoice::check_name(name) {
        found.why = Some(format!("`{shown}` must be renamed before a job can choose it: {why}"));
        return found;
    }
    for Fitting { config, names, .. } in fitting {
        match Lora::open(path, config) {
            Ok(lora) => {
                found.noise = lora.expert();
                found.models.extend_from_slice(names);
            }
            Err(e) => found.why = found.why.or_else(|| Some(e.to_string())),
        }
    }
    if !found.models.is_empty() {
        found.why = None;
    }
    found
}

/// Tells each of two files for the two transformers of one model about the other one: their names differ in the word for
/// that and in nothing else.
fn pair(found: &mut [FoundLora], fitting: &[Fitting]) {
    let pairs: Vec<&String> = fitting.iter().filter(|one| one.is_pair).flat_map(|one| &one.names).collect();
    let patterns: Vec<String> = found.iter().map(|one| weights::pattern(&one.path)).collect();
    let fits = |one: &FoundLora, noise| {
        one.noise == Some(noise) && one.models.iter().any(|model| pairs.contains(&model))
    };
    let of = |noise: ExpertName, pattern: &String, found: &[FoundLora]| -> Vec<usize> {
        (0..found.len()).filter(|n| fits(&found[*n], noise) && patterns[*n] == *pattern).collect()
    };
    for pattern in &patterns {
        let [high, low] = ExpertName::ALL.map(|noise| of(noise, pattern, found));
        if let ([high], [low]) = (&high[..], &low[..]) {
            (found[*high].partner, found[*low].partner) =
                (Some(found[*low].name.clone()), Some(found[*high].name.clone()));
            for n in [*high, *low] {
                found[n].models.retain(|model| pairs.contains(&model));
            }
        }
    }
}

/// A `LoRA` that a model can be used with.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Usable {
    /// The name by which it was chosen.
    pub name: String,
    /// The file that the name stands for.
    pub path: PathBuf,
    /// The number of the model's tensors that it changes.
    pub tensors: usize,
    /// Whether a job must give it two strengths, because nothing says for which of the model's two transformers it is.
    pub needs_two_strengths: bool,
}

/// Returns the file of the `LoRA` of this name in these folders and files, which are looked into in their order.
///
/// # Errors
/// [`Error::Setting`] for a name that stands for no file.
pub fn lora_named(places: &[PathBuf], name: &str) -> Result<PathBuf> {
    lora_files::find(places, name).map_err(|why| {
        let hint = if places.is_empty() { "; give one with `--lora-folder`" } else { "" };
        Error::Setting(format!("{why}{hint}"))
    })
}

/// Opens `LoRA`s in these folders and files, each given as a job of the model would: by its name, perhaps with strengths. The
/// model's own folders of `LoRA`s come after them.
///
/// # Errors
/// [`Error::Setting`] for a name that stands for no file; [`Error::Model`] for a file that is not for the model, or not with
/// these strengths.
pub fn by_names(model: &Path, names: &[String], places: &[PathBuf]) -> Result<Vec<Usable>> {
    let places = [places, &lora_files::folders_of(model)].concat();
    let transformers = weights::transformers(model)?;
    let Some((expert, place)) = transformers.first() else {
        return Err(Error::Internal("a model without a transformer".into()));
    };
    let (_, config) = if expert.is_some() { open_expert(place)? } else { open_dit(place)? };
    let open = |name: &String| {
        let choice: LoraChoice = name.parse()?;
        let path = lora_named(&places, &choice.name)?;
        let strength = Strength::chosen(&choice);
        let lora = Lora::open(&path, &config)?;
        let is_unclear = lora.expert().is_none() && matches!(strength, Strength::AsTold(_, None));
        let needs_two_strengths = transformers.len() > 1 && is_unclear;
        if !needs_two_strengths {
            Adapter::open(&path, &config, transformers.len(), strength)?;
        }
        Ok(Usable { name: choice.name, path, tensors: lora.names().count(), needs_two_strengths })
    };
    names.iter().map(open).collect()
}
