//! The `LoRAs` that jobs can choose: those in the service's folders, and what `animctl model add` has added.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use animd_common::config::Config;
use animd_common::files::show;
use animd_protocol::findings::FoundLora;
use animd_protocol::lora_files;
use animd_protocol::sources::quoted;
use serde::Deserialize;

use super::super::dropin;
use super::super::exit::{Failure, Result};
use super::loras::{ID, place_of};
use crate::doctor::sandbox::Sandbox;

/// Returns the names of all `LoRAs` that jobs of the configured model can choose, with the file of each as it lies on this machine.
pub fn list(config: &Config, sandbox: &Sandbox) -> BTreeMap<String, PathBuf> {
    let mut all = BTreeMap::new();
    // What comes first outranks the rest.
    for place in config.lora_places(None).iter().rev() {
        let outside = sandbox.outside(place).0;
        let single = sandbox.files_in(place);
        match lora_files::name_of(place) {
            Some(name) if outside.is_file() => _ = all.insert(name.to_owned(), outside),
            _ if single.is_empty() => all.extend(lora_files::list(&[outside])),
            _ => all.extend(
                single
                    .into_iter()
                    .filter_map(|(name, file)| Some((lora_files::name_of(&name)?.to_owned(), file))),
            ),
        }
    }
    all
}

/// A place that was added before.
pub struct Added {
    /// The file of the configuration that adds it.
    pub file: PathBuf,
    /// The drop-in that shows it to the installed service, below the root; it need not exist.
    pub drop_in: PathBuf,
    /// Where it lies.
    pub path: PathBuf,
}

/// Returns the place that `animctl model add` has added in this folder of configuration files and that a word means: the name of a
/// `LoRA`, or the place's path.
///
/// # Errors
/// A sentence if the word names a `LoRA` in a folder that was added as a whole.
pub fn added(word: &str, folder: &Path, sandbox: &Sandbox) -> Result<Option<Added>> {
    #[derive(Deserialize)]
    struct File {
        lora: Section,
    }
    #[derive(Deserialize)]
    struct Section {
        added: Vec<PathBuf>,
    }
    let meant = std::path::absolute(word).unwrap_or_else(|_| word.into());
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let (file, name) = (entry.path(), entry.file_name());
        let id = name.to_str().and_then(|name| name.strip_prefix("animctl-")?.strip_suffix(".toml"));
        let Some(id) = id.filter(|id| id.starts_with(ID)) else { continue };
        let text = fs::read_to_string(&file).map_err(Failure::file("read", &file))?;
        let Some(inside) =
            toml::from_str(&text).ok().and_then(|file: File| file.lora.added.into_iter().next())
        else {
            continue;
        };
        let path = sandbox.outside(&inside).0;
        if path == meant || inside == meant || lora_files::name_of(&inside) == Some(word) {
            let drop_in = dropin::drop_in(id);
            return Ok(Some(Added { file, drop_in, path }));
        }
        if path.is_dir() && lora_files::list(std::slice::from_ref(&path)).contains_key(word) {
            let shown = show(&path);
            return Err(Failure::new(format!(
                "the LoRA `{word}` is in `{shown}`, which was added as a whole; take the file out of it, or remove all with \
                 `animctl model remove {}`",
                quoted(&shown)
            )));
        }
    }
    Ok(None)
}

/// Returns what `animctl model add` would add for these, without what jobs can choose from already.
pub fn unknown<'a>(
    loras: impl Iterator<Item = &'a FoundLora>,
    searched: &[PathBuf],
    config: &Config,
    sandbox: &Sandbox,
) -> BTreeSet<PathBuf> {
    let real = |path: &Path| fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    let known: Vec<PathBuf> =
        config.lora_places(None).iter().map(|place| real(&sandbox.outside(place).0)).collect();
    let is_new = |lora: &&FoundLora| !known.iter().any(|place| real(&lora.path).starts_with(place));
    loras.filter(is_new).map(|lora| place_of(&lora.path, searched)).collect()
}
