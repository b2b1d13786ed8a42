//! Finds the files of a folder that hold a component.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::container::read_file;
use super::{Component, layouts, refusals};
use crate::{Error, Result};

/// Returns the names of a folder's files, sorted.
pub(super) fn list(folder: &Path) -> Result<Vec<String>> {
    let entries = fs::read_dir(folder).map_err(Error::file("read", folder))?;
    let mut names = Vec::new();
    for entry in entries {
        let name = entry.map_err(Error::file("read", folder))?.file_name();
        if let Ok(name) = name.into_string()
            && !name.starts_with('.')
        {
            names.push(name);
        }
    }
    names.sort();
    Ok(names)
}

fn has_extension(name: &str, extensions: &[&str]) -> bool {
    Path::new(name).extension().is_some_and(|e| extensions.iter().any(|x| e.eq_ignore_ascii_case(x)))
}

/// Returns the files of a DiT: `path` itself, or the files in the folder `path`.
///
/// # Errors
/// [`Error::Model`] if there are no files, if a file of the index is missing, or if the folder is laid out for other
/// programs.
pub(super) fn dit_files(path: &Path) -> Result<Vec<PathBuf>> {
    if path.is_file() {
        return Ok(vec![path.to_owned()]);
    }
    let names = list(path)?;
    let shown = path.display();
    if let Some(index) = index_file(path, &names)? {
        let files = indexed_files(&path.join(&index))?;
        let missing: Vec<_> = files.iter().filter(|f| !names.contains(f)).map(|f| format!("`{f}`")).collect();
        if missing.is_empty() {
            return Ok(files.iter().map(|f| path.join(f)).collect());
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
        return Ok(vec![path.join(single)]);
    }
    if let Some(files) = numbered_files(path, &names)? {
        return Ok(files);
    }
    if names.iter().any(|n| n == "non_block.safetensors") {
        let part = |n: &&String| {
            *n == "non_block.safetensors" || n.starts_with("block_") && has_extension(n, &["safetensors"])
        };
        return Ok(names.iter().filter(part).map(|n| path.join(n)).collect());
    }
    scan(path, &names, Component::Dit, &["safetensors"])?
        .map(|file| vec![file])
        .ok_or_else(|| Error::Model(refusals::folder(path, &names)))
}

#[derive(Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

/// Returns the name of the folder's index; the official name comes first.
fn index_file(path: &Path, names: &[String]) -> Result<Option<String>> {
    let official = "diffusion_pytorch_model.safetensors.index.json";
    let indices: Vec<&String> = names.iter().filter(|n| n.ends_with(".safetensors.index.json")).collect();
    match indices[..] {
        [] => Ok(None),
        [one] => Ok(Some(one.clone())),
        _ if indices.iter().any(|n| *n == official) => Ok(Some(official.to_owned())),
        [first, second, ..] => Err(Error::Model(format!(
            "`{}` has more than one index: `{first}`, `{second}`; keep one model in a folder",
            path.display()
        ))),
    }
}

/// Returns the files that an index names.
fn indexed_files(path: &Path) -> Result<BTreeSet<String>> {
    let text = fs::read_to_string(path).map_err(Error::file("read", path))?;
    let broken = |what: String| {
        Error::Model(format!("`{}` is not an index of tensors: {what}; copy it again", path.display()))
    };
    let index: Index = serde_json::from_str(&text).map_err(|e| broken(e.to_string()))?;
    let files: BTreeSet<String> = index.weight_map.into_values().collect();
    // An index can only name files of its own folder.
    if let Some(file) = files.iter().find(|f| Path::new(f).file_name().is_none_or(|n| n != f.as_str())) {
        return Err(broken(format!("`{}` is not the name of a file beside it", file.escape_debug())));
    }
    if files.is_empty() {
        return Err(broken("it names no file".to_owned()));
    }
    Ok(files)
}

/// Returns all files called `NAME-00001-of-00007.safetensors`, if there are any.
fn numbered_files(path: &Path, names: &[String]) -> Result<Option<Vec<PathBuf>>> {
    let parse = |name: &String| {
        let (rest, total) = name.strip_suffix(".safetensors")?.rsplit_once("-of-")?;
        let (base, number) = rest.rsplit_once('-')?;
        Some((base.to_owned(), number.parse::<usize>().ok()?, total.parse::<usize>().ok()?))
    };
    let parsed: Vec<_> = names.iter().filter_map(|n| parse(n).map(|p| (n, p))).collect();
    let Some((_, (base, _, total))) = parsed.first().cloned() else {
        return Ok(None);
    };
    let files: Vec<_> = parsed.iter().filter(|(_, (b, _, t))| (b, t) == (&base, &total)).collect();
    if files.len() != total {
        return Err(Error::Model(format!(
            "`{}` has {} of the {total} files `{base}-*-of-{total:05}.safetensors`; copy the others too",
            path.display(),
            files.len()
        )));
    }
    Ok(Some(files.iter().map(|(n, _)| path.join(n)).collect()))
}

/// Looks through a folder's files for the one that holds a component.
fn scan(
    folder: &Path,
    names: &[String],
    component: Component,
    extensions: &[&str],
) -> Result<Option<PathBuf>> {
    let mut found = Vec::new();
    let mut broken = None;
    for name in names.iter().filter(|n| has_extension(n, extensions)) {
        let path = folder.join(name);
        match read_file(&path) {
            Ok(tensors) if layouts::component(&tensors) == Some(component) => found.push(path),
            Ok(_) => {}
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

/// Returns the one file of an encoder or the VAE: `path` itself, or the file in the folder `path`.
pub(super) fn component_file(path: &Path, component: Component) -> Result<PathBuf> {
    if path.is_file() {
        return Ok(path.to_owned());
    }
    let (prefix, official) = match component {
        Component::T5 => ("models_t5_umt5-xxl-enc-", "models_t5_umt5-xxl-enc-bf16.pth"),
        Component::Clip => ("models_clip_", "models_clip_open-clip-xlm-roberta-large-vit-huge-14.pth"),
        Component::Vae => ("Wan2.1_VAE", "Wan2.1_VAE.pth"),
        Component::Dit => return Err(Error::Internal("a DiT is not one file".to_owned())),
    };
    let names = list(path)?;
    if names.iter().any(|n| n == official) {
        return Ok(path.join(official));
    }
    let extensions = ["pth", "safetensors"];
    if let Some(name) = names.iter().find(|n| n.starts_with(prefix) && has_extension(n, &extensions)) {
        return Ok(path.join(name));
    }
    match scan(path, &names, component, &extensions) {
        Ok(Some(file)) => Ok(file),
        Ok(None) | Err(Error::File { .. }) => Err(Error::Model(format!(
            "`{}` holds no {}: `{official}` is missing",
            path.display(),
            component.title()
        ))),
        Err(e) => Err(Error::Model(format!(
            "`{}` holds no {}: `{official}` is missing, and {e}",
            path.display(),
            component.title()
        ))),
    }
}
