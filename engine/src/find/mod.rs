//! Finds model files: in folders, in `ComfyUI`'s trees, in the cache of the Hugging Face hub, or named one by one. What a file
//! is follows from what is in it. Parts that fit together make models.
//!
//! A search goes in four steps, each in a file of its own: [`walk`] gathers files, [`candidates`] looks into them, [`pairs`] puts
//! transformers together, and [`fit`] adds the other parts. Then [`loras`] says which `LoRA`s go with the models. It reads headers only, follows links, and its time and number of
//! files are bounded.

mod candidates;
mod comfy;
mod fit;
mod hub;
mod loras;
mod missing;
mod names;
mod pairs;
#[cfg(test)]
mod tests;
mod walk;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use animd_protocol::findings::{Findings, PartKind, PassedOver};

use crate::{Error, Result};
use candidates::Candidate;
pub use loras::{Usable, by_names, lora_named};
use walk::Walk;

/// A file or folder that was named for one part of the model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Named {
    /// The part's key in a model file.
    pub key: &'static str,
    /// Where it is.
    pub path: PathBuf,
}

/// The kinds that a part of this key may be.
fn kinds(key: &str) -> &'static [PartKind] {
    match key {
        "dit" => &[PartKind::Dit],
        pairs::HIGH | pairs::LOW => &[PartKind::Expert],
        "text" => &[PartKind::Text],
        "clip" => &[PartKind::Clip],
        "vae" => &[PartKind::Vae],
        "tokenizer" => &[PartKind::Tokenizer, PartKind::Text],
        _ => &[],
    }
}

/// Searches files and folders for models. What is `named` for a part is taken for it. `LoRA`s are matched with what is found, and
/// with the models that were `known` before, each given by its folder or model file.
///
/// # Errors
/// [`Error::Model`] if what is named for a part is not that part. Everything else that cannot be used is in the findings.
pub fn find(paths: &[PathBuf], named: &[Named], known: &[PathBuf]) -> Result<Findings> {
    let mut walk = Walk::new();
    for Named { key, path } in named {
        walk.root(path, Some(key));
    }
    for path in paths {
        walk.root(path, None);
    }
    let candidates = candidates::look(&mut walk);
    for one in named {
        check(one, &candidates, &walk.passed_over)?;
    }
    let folder = fetch_folder(paths);
    let (transformers, unclear) = pairs::transformers(&candidates);
    let mut models: Vec<_> =
        transformers.into_iter().filter_map(|one| fit::model(one, &candidates, &folder)).collect();
    let mut counts = BTreeMap::<String, usize>::new();
    for model in &mut models {
        let count = counts.entry(model.name.clone()).or_default();
        *count += 1;
        if *count > 1 {
            model.name = format!("{}-{count}", model.name);
        }
    }
    let loras = loras::all(&candidates, &models, known);
    let mut notes = walk.notes;
    let uses_known = loras.iter().any(|lora| !lora.models.is_empty());
    if models.is_empty() && unclear.is_empty() && !uses_known {
        notes.push(match missing::transformer(&folder) {
            Some(fetch) => format!("no transformer was found; this fetches one: {}", fetch.command),
            None => "no transformer was found".to_owned(),
        });
    }
    notes.sort();
    notes.dedup();
    let mut passed_over = walk.passed_over;
    passed_over.sort_by(|a, b| (a.other_model, &a.path).cmp(&(b.other_model, &b.path)));
    let parts = candidates.iter().filter(|one| one.part.kind != PartKind::Lora);
    let mut parts: Vec<_> = parts.map(|one| one.part.clone()).collect();
    parts.sort_by(|a, b| (a.kind, &a.path).cmp(&(b.kind, &b.path)));
    let unclear = unclear.into_iter().map(|one| one.part.path.clone()).collect();
    Ok(Findings { models, loras, parts, unclear, passed_over, notes })
}

/// Checks that what was named for a part is one such part.
fn check(named: &Named, candidates: &[Candidate], passed_over: &[PassedOver]) -> Result<()> {
    let Named { key, path } = named;
    let kinds = kinds(key);
    let of_key: Vec<&Candidate> = candidates.iter().filter(|one| one.key == Some(*key)).collect();
    let count = of_key.iter().filter(|one| kinds.contains(&one.part.kind)).count();
    let wanted = kinds.first().map_or("part", |kind| kind.title());
    let path = path.display();
    let why = match (count, &of_key[..]) {
        (1, _) => return Ok(()),
        (0, [one]) => {
            let hint = match (*key, one.part.kind) {
                ("dit", PartKind::Expert) => "; name both, as the high-noise and the low-noise one",
                _ => "",
            };
            format!("`{path}` is a {}, and not a {wanted}{hint}", one.part.kind.title())
        }
        (0, _) => match passed_over.iter().find(|passed| passed.path.starts_with(&named.path)) {
            Some(passed) => passed.why.clone(),
            None => format!("`{path}` holds no {wanted}"),
        },
        (count, _) => format!("`{path}` holds {count} of the kind {wanted}; name the file"),
    };
    Err(Error::Model(why))
}

/// Returns the folder that missing files could be fetched to: the first one that was searched, unless the hub's cache, which has
/// an order of its own.
fn fetch_folder(paths: &[PathBuf]) -> PathBuf {
    let is_cache = |path: &Path| {
        path.iter().any(|name| name.to_string_lossy().starts_with("models--"))
            || path.join("version.txt").exists()
    };
    let own = paths.iter().find(|path| path.is_dir() && !is_cache(path));
    own.cloned().unwrap_or_else(|| "models".into())
}
