//! Finds the files of a folder that hold a component.

use std::path::{Path, PathBuf};

use super::container::{read_file, read_files};
use super::shards::{self, index_file, indexed_files, list, numbered_files};
use super::stored::text_file;
use super::{Component, refusals};
use crate::{Error, Result};

fn has_extension(name: &str, extensions: &[&str]) -> bool {
    Path::new(name).extension().is_some_and(|e| extensions.iter().any(|x| e.eq_ignore_ascii_case(x)))
}

/// Folders in which programs keep a component below a model's folder, besides the folder itself.
pub(super) fn below(component: Component) -> Vec<PathBuf> {
    // The folders of diffusers, of `ComfyUI`, and of `LightX2V`.
    let (diffusers, comfy): (&str, &[&str]) = match component {
        Component::Dit => ("transformer", &["diffusion_models", "unet", "checkpoints"]),
        Component::T5 => ("text_encoder", &["text_encoders", "clip"]),
        Component::Clip => ("image_encoder", &["clip_vision"]),
        Component::Vae => ("vae", &["vae"]),
    };
    let lightx2v = ["original", "fp8", "int8", "distill_models", "distill_fp8", "distill_int8"];
    let comfy = ["", "models", "split_files"]
        .into_iter()
        .flat_map(|parent| comfy.iter().map(move |name| Path::new(parent).join(name)));
    std::iter::once(PathBuf::from(diffusers)).chain(comfy).chain(lightx2v.map(PathBuf::from)).collect()
}

/// Returns the files of a component: `path` itself, with its shards if it is one or their index; or the files in the folder
/// `path`, or where programs keep the component below it.
///
/// # Errors
/// [`Error::Model`] if there are no files, if a file of an index is missing, or if it is not clear which file is meant.
pub(super) fn files(path: &Path, component: Component) -> Result<Vec<PathBuf>> {
    if !path.is_dir() {
        return shards::of_file(path);
    }
    let path = &snapshot(path)?;
    let names = list(path)?;
    let mut broken = None;
    let two = names.iter().any(|n| ["transformer_2", "high_noise_model", "low_noise_model"].contains(&&**n));
    let below = if two && component == Component::Dit { Vec::new() } else { below(component) };
    for folder in std::iter::once(path.clone()).chain(below.iter().map(|name| path.join(name))) {
        if !folder.is_dir() {
            continue;
        }
        match in_folder(&folder, component) {
            Ok(Some(files)) => return Ok(files),
            Ok(None) => {}
            Err(e) => broken = broken.or(Some(e)),
        }
    }
    let Some(official) = official(component) else {
        return Err(broken.unwrap_or_else(|| Error::Model(refusals::folder(path, &names))));
    };
    let (shown, title) = (path.display(), component.title());
    let missing = format!("`{shown}` holds no {title}: `{official}` is missing");
    Err(Error::Model(match broken {
        None | Some(Error::File { .. }) => missing,
        Some(e) => format!("{missing}, and {e}"),
    }))
}

/// Returns whether there are files of a component at a path, whole or not.
pub(crate) fn is_there(path: &Path, component: Component) -> bool {
    if !path.is_dir() {
        let read = read_file(path).ok();
        return read.and_then(|c| super::names::find(&c.tensors).map(|n| n.component)) == Some(component);
    }
    // An index names files, although some of them may be missing.
    let indexed = || {
        let names = list(path).ok()?;
        Some(component == Component::Dit && !matches!(index_file(path, &names), Ok(None)))
    };
    files(path, component).is_ok() || indexed() == Some(true)
}

/// Returns the folder that holds the files of a repository in the cache of the Hugging Face hub; any other folder as it
/// is.
pub(crate) fn snapshot(path: &Path) -> Result<PathBuf> {
    let snapshots = path.join("snapshots");
    if !snapshots.is_dir() || !path.join("refs").is_dir() {
        return Ok(path.to_owned());
    }
    if let Ok(commit) = text_file(&path.join("refs").join("main"), 1 << 10) {
        let folder = snapshots.join(commit.trim());
        if folder.parent() == Some(&snapshots) && folder.is_dir() {
            return Ok(folder);
        }
    }
    let commits = list(&snapshots)?;
    match &commits[..] {
        [one] => Ok(snapshots.join(one)),
        _ => Err(Error::Model(format!(
            "`{}` has {} snapshots and does not say which is the newest; name one of them",
            path.display(),
            commits.len()
        ))),
    }
}

/// Returns the files in a folder that are the shards of one part, by their index or their numbers, if there are such files.
pub(super) fn shards_in(folder: &Path) -> Result<Option<Vec<PathBuf>>> {
    let names = list(folder)?;
    if let Some(index) = index_file(folder, &names)? {
        let files = indexed_files(&folder.join(index))?;
        if files.iter().all(|file| names.contains(file)) {
            return Ok(Some(files.iter().map(|file| folder.join(file)).collect()));
        }
    }
    match numbered_files(folder, &names)? {
        Some(files) => Ok(Some(files)),
        None if names.iter().any(|name| name == "non_block.safetensors") => dit_files(folder, &names),
        None => Ok(None),
    }
}

/// Returns the name of a model in a folder or file. In the cache of the Hugging Face hub that is the name of the
/// repository, because its snapshots are called after commits.
pub(crate) fn title(path: &Path) -> String {
    let name = |path: &Path| Some(path.file_name()?.to_string_lossy().into_owned());
    let real = path.canonicalize().unwrap_or_else(|_| path.to_owned());
    let snapshots = real.parent().filter(|parent| parent.ends_with("snapshots"));
    let repository = snapshots.and_then(Path::parent).unwrap_or(&real);
    let repository =
        name(repository).and_then(|name| Some(name.strip_prefix("models--")?.replace("--", "/")));
    let repository = repository.and_then(|name| name.rsplit('/').next().map(str::to_owned));
    repository.or_else(|| name(path)).or_else(|| name(&real)).unwrap_or_default()
}

/// Returns the name under which an encoder or the VAE was released.
fn official(component: Component) -> Option<&'static str> {
    match component {
        Component::T5 => Some("models_t5_umt5-xxl-enc-bf16.pth"),
        Component::Clip => Some("models_clip_open-clip-xlm-roberta-large-vit-huge-14.pth"),
        Component::Vae => Some("Wan2.1_VAE.pth"),
        Component::Dit => None,
    }
}

/// Returns the files in a folder that hold a component, if there are any.
fn in_folder(folder: &Path, component: Component) -> Result<Option<Vec<PathBuf>>> {
    let names = list(folder)?;
    if component == Component::Dit {
        return dit_files(folder, &names);
    }
    if let Some(official) = official(component)
        && names.iter().any(|n| n == official)
    {
        return Ok(Some(vec![folder.join(official)]));
    }
    let several = match index_file(folder, &names) {
        Ok(Some(index)) => {
            let files = indexed_files(&folder.join(&index))?;
            files.iter().all(|f| names.contains(f)).then(|| files.iter().map(|f| folder.join(f)).collect())
        }
        Ok(None) => numbered_files(folder, &names)?,
        Err(_) => None,
    };
    if let Some(files) = several
        && let Ok(content) = read_files(&files)
        && super::names::find(&content.tensors).is_some_and(|naming| naming.component == component)
    {
        return Ok(Some(files));
    }
    Ok(scan(folder, &names, component)?.map(|file| vec![file]))
}

/// Returns the files in a folder that hold a DiT, if there are any.
fn dit_files(path: &Path, names: &[String]) -> Result<Option<Vec<PathBuf>>> {
    let shown = path.display();
    if let Some(index) = index_file(path, names)? {
        let files = indexed_files(&path.join(&index))?;
        let missing: Vec<_> = files.iter().filter(|f| !names.contains(f)).map(|f| format!("`{f}`")).collect();
        if missing.is_empty() {
            return Ok(Some(files.iter().map(|f| path.join(f)).collect()));
        }
        if missing.len() < files.len() || !names.iter().any(|n| has_extension(n, &["safetensors"])) {
            let list = missing.join(", ");
            let (missing, all) = (missing.len(), files.len());
            return Err(Error::Model(format!(
                "`{shown}` lacks {missing} of the {all} files that `{index}` names: {list}; copy them too"
            )));
        }
    }
    let single = "diffusion_pytorch_model.safetensors";
    if names.iter().any(|n| n == single) {
        return Ok(Some(vec![path.join(single)]));
    }
    if let Some(files) = numbered_files(path, names)? {
        return Ok(Some(files));
    }
    if names.iter().any(|n| n == "non_block.safetensors") {
        let part = |n: &&String| {
            *n == "non_block.safetensors" || n.starts_with("block_") && has_extension(n, &["safetensors"])
        };
        return Ok(Some(names.iter().filter(part).map(|n| path.join(n)).collect()));
    }
    Ok(scan(path, names, Component::Dit)?.map(|file| vec![file]))
}

/// Returns the file of the text encoder's tokenizer below a model's folder, if there is one.
pub(super) fn tokenizer(path: &Path) -> Option<PathBuf> {
    let path = snapshot(path).ok()?;
    let folders = ["google/umt5-xxl", "tokenizer", ""];
    let files = ["tokenizer.json", "spiece.model"];
    folders
        .iter()
        .flat_map(|folder| files.map(|file| path.join(folder).join(file)))
        .find(|candidate| candidate.is_file())
}

/// Endings of model files' names. A file with another one is read only if it is named itself.
const EXTENSIONS: [&str; 5] = ["safetensors", "sft", "pth", "pt", "gguf"];

/// Returns whether a file's name is one of a model file.
pub(crate) fn is_model(name: &str) -> bool {
    has_extension(name, &EXTENSIONS)
}

/// Looks through a folder's files for the one that holds a component.
fn scan(folder: &Path, names: &[String], component: Component) -> Result<Option<PathBuf>> {
    let mut found = Vec::new();
    let mut broken = None;
    for name in names.iter().filter(|n| is_model(n)) {
        let path = folder.join(name);
        let content = read_file(&path).and_then(|content| {
            let twice = |name| Error::Model(format!("`{}` has `{name}` twice", path.display()));
            super::names::without_prefixes(content.tensors).map_err(twice)
        });
        match content {
            Ok(tensors) => {
                if super::names::find(&tensors).is_some_and(|naming| naming.component == component) {
                    found.push(path);
                }
            }
            Err(e) => broken = broken.or(Some(e)),
        }
    }
    match (&found[..], broken) {
        ([one], _) => Ok(Some(one.clone())),
        ([], Some(e)) => Err(e),
        ([], None) => Ok(None),
        ([a, b, ..], _) => Err(Error::Model(format!(
            "`{}` and `{}` both hold a {}; name the file or keep one model in a folder",
            a.display(),
            b.display(),
            component.title()
        ))),
    }
}
