//! Which file a `LoRA`'s name stands for: one that the administrator has allowed, or one in a folder that is allowed.
//!
//! A name is never a path, and a link is followed only where it leads to a file of the same folder, so that nobody can have a
//! file opened by its name that nobody has allowed.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use crate::model_file::{self, ModelFile, PartPaths, Sampling};
use crate::nearest::nearest;

/// The name of the folders that programs keep `LoRAs` in, beside a model's other files.
const FOLDER: &str = "loras";
/// Endings of the names of files that can be `LoRAs`.
const ENDINGS: [&str; 4] = ["safetensors", "sft", "pth", "pt"];
/// How far a model's folders of `LoRAs` may lie above its files: `models/loras` beside `models/diffusion_models/wan/FILE`.
const ABOVE: usize = 3;
/// How deep folders in folders are looked into.
const DEPTH: usize = 4;
/// The most entries of a folder that are looked at.
const ENTRIES: usize = 20_000;
/// The most names that a sentence lists.
const LISTED: usize = 12;

/// Returns the folders called `loras` that belong to a model: in the model's folder, or beside the files that its model file
/// names and above them.
pub fn folders_of(model: &Path) -> Vec<PathBuf> {
    let inside = model.join("model.toml");
    let file = if model.is_dir() { inside.is_file().then_some(inside) } else { Some(model.to_owned()) };
    // A file that cannot be read is told when the model is opened.
    let parts = file.and_then(|file| ModelFile::read(&file).ok()).map(|file| file.parts);
    let parts: Vec<PathBuf> =
        parts.iter().flat_map(PartPaths::named).map(|(_, path)| path.to_owned()).collect();
    let above = parts.iter().flat_map(|part| part.ancestors().take(1 + ABOVE));
    let candidates = std::iter::once(model).chain(above).map(|folder| folder.join(FOLDER));
    let mut folders: Vec<PathBuf> = Vec::new();
    for folder in candidates.filter(|folder| folder.is_dir()) {
        if !folders.contains(&folder) {
            folders.push(folder);
        }
    }
    folders
}

/// Returns the file that a name stands for, looked for in one place after the other, each a folder or a single file: its links
/// are followed.
///
/// # Errors
/// A sentence with the nearest name, or with the names that there are; or with two files of this name in one folder.
pub fn find(folders: &[PathBuf], name: &str) -> Result<PathBuf, String> {
    for folder in folders {
        let all = files(folder);
        let mut found: Vec<&(String, PathBuf)> = all.iter().filter(|(file, _)| file == name).collect();
        if found.is_empty() {
            found = all.iter().filter(|(file, _)| stem(file) == name).collect();
        }
        match &found[..] {
            [] => {}
            [(_, path)] => return Ok(path.clone()),
            [(_, one), (_, other), ..] => {
                return Err(format!(
                    "two LoRAs are called `{name}`: `{}` and `{}`; rename one, or give the name with its ending",
                    one.display(),
                    other.display()
                ));
            }
        }
    }
    let known = list(folders);
    let names = || known.keys().map(String::as_str);
    Err(match nearest(name, names()) {
        Some(near) => format!("no LoRA is called `{name}`; did you mean `{near}`?"),
        None if folders.is_empty() => {
            format!(
                "no LoRA is called `{name}`; no folder of LoRAs is given, and the model has none of its own"
            )
        }
        None if known.is_empty() => {
            let places: Vec<String> =
                folders.iter().map(|folder| format!("`{}`", folder.display())).collect();
            format!("no LoRA is called `{name}`; there are none in {}", places.join(", "))
        }
        None => {
            let more = if known.len() > LISTED { " ..." } else { "" };
            let names: Vec<&str> = names().take(LISTED).collect();
            format!("no LoRA is called `{name}`; known are {}{more}", names.join(", "))
        }
    })
}

/// Returns how a model with this `LoRA` is sampled, if a file beside it says so: `four-steps.toml` beside
/// `four-steps.safetensors` has the section `[sampling]` of a model file. A `LoRA` that distils a model to a few steps says nothing of
/// that itself.
///
/// # Errors
/// A sentence with every mistake in the file.
pub fn sampling(lora: &Path) -> Result<Option<Sampling>, String> {
    let beside = lora.with_extension("toml");
    beside.is_file().then(|| model_file::sampling_of(&beside)).transpose()
}

/// Returns the names of all `LoRAs`, without endings, and the file of each.
pub fn list(folders: &[PathBuf]) -> BTreeMap<String, PathBuf> {
    // A folder that is looked into first outranks the others.
    let all = folders.iter().rev().flat_map(|folder| files(folder));
    all.map(|(file, path)| (stem(&file).to_owned(), path)).collect()
}

/// Returns the name by which jobs choose a file: its own, without the ending. `None` for a file that has no ending of a `LoRA`.
pub fn name_of(file: &Path) -> Option<&str> {
    let name = file.file_name()?.to_str()?;
    Some(stem(name)).filter(|stem| *stem != name)
}

/// Returns a file's name without the ending.
fn stem(file: &str) -> &str {
    let split =
        file.rsplit_once('.').filter(|(_, end)| ENDINGS.iter().any(|known| known.eq_ignore_ascii_case(end)));
    split.map_or(file, |(stem, _)| stem)
}

/// Returns the names and the real paths of the files of a folder, and of the folders in it, that can be `LoRAs`. A file stands
/// for itself: who has allowed it by its own path has allowed what its link leads to.
fn files(folder: &Path) -> Vec<(String, PathBuf)> {
    let Ok(root) = folder.canonicalize() else { return Vec::new() };
    if root.is_file() {
        let name = name_of(folder).and(folder.file_name()).and_then(|name| name.to_str());
        return name.map(|name| (name.to_owned(), root)).into_iter().collect();
    }
    let (mut found, mut looked) = (Vec::new(), 0);
    let mut waiting = vec![(root.clone(), 0)];
    while let Some((dir, depth)) = waiting.pop() {
        for entry in fs::read_dir(&dir).into_iter().flatten().flatten() {
            looked += 1;
            if looked > ENTRIES {
                return found;
            }
            let (Ok(kind), Some(name)) = (entry.file_type(), entry.file_name().to_str().map(str::to_owned))
            else {
                continue;
            };
            if name.starts_with('.') {
                continue;
            }
            if kind.is_dir() && depth < DEPTH {
                waiting.push((entry.path(), depth + 1));
            } else if stem(&name) != name
                && let Ok(path) = entry.path().canonicalize()
                && path.starts_with(&root)
                && path.is_file()
            {
                found.push((name, path));
            }
        }
    }
    found.sort();
    found
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    type Tested = Result<(), Box<dyn std::error::Error>>;

    #[test]
    fn names_stand_for_files_of_the_folders_and_nothing_else() -> Tested {
        let dir = tempfile::tempdir()?;
        let root = dir.path().canonicalize()?;
        let folders = [root.join("own"), root.join("shared"), root.join("gone")];
        fs::create_dir_all(root.join("own/wan/styles"))?;
        fs::create_dir_all(root.join("shared"))?;
        for name in [
            "own/detail.safetensors",
            "own/wan/styles/Oil Paint.safetensors",
            "own/notes.txt",
            "own/.hidden.safetensors",
            "shared/detail.safetensors",
            "shared/both.pt",
            "shared/both.safetensors",
            "secret.safetensors",
        ] {
            fs::write(root.join(name), name)?;
        }
        symlink(root.join("secret.safetensors"), root.join("own/leak.safetensors"))?;
        symlink(&root, root.join("own/up"))?;
        symlink("detail.safetensors", root.join("own/alias.safetensors"))?;
        symlink(root.join("secret.safetensors"), root.join("allowed.safetensors"))?;
        let find_in = find;
        let find = |name: &str| find_in(&folders, name);
        assert_eq!(find("detail"), Ok(root.join("own/detail.safetensors")));
        assert_eq!(find("detail.safetensors"), Ok(root.join("own/detail.safetensors")));
        assert_eq!(find("Oil Paint"), Ok(root.join("own/wan/styles/Oil Paint.safetensors")));
        assert_eq!(find("alias"), Ok(root.join("own/detail.safetensors")));
        assert_eq!(find("both.pt"), Ok(root.join("shared/both.pt")));
        assert!(find("both").is_err_and(|e| e.contains("two LoRAs are called `both`")));
        for wrong in
            ["leak", "secret", "../secret", "own/detail", "notes.txt", "notes", ".hidden", "/etc/passwd"]
        {
            assert!(find(wrong).is_err(), "{wrong}");
        }
        assert_eq!(find("detial"), Err("no LoRA is called `detial`; did you mean `detail`?".into()));
        assert!(find("zzzzzzzz").is_err_and(|e| e.ends_with("known are Oil Paint, alias, both, detail")));
        // A file that is allowed itself stands for its own name, whatever its link leads to.
        let places = [root.join("allowed.safetensors"), root.join("own/notes.txt")];
        assert_eq!(find_in(&places, "allowed"), Ok(root.join("secret.safetensors")));
        assert_eq!(list(&places).into_keys().collect::<Vec<_>>(), ["allowed"]);
        assert!(find_in(&folders[2..], "x").is_err_and(|e| e.contains("there are none in `/")));
        assert!(find_in(&[], "x").is_err_and(|e| e.contains("no folder of LoRAs is given")));
        Ok(())
    }

    #[test]
    fn a_file_beside_a_lora_says_how_it_is_sampled() -> Tested {
        let dir = tempfile::tempdir()?;
        let lora = dir.path().join("four-steps.safetensors");
        assert_eq!(sampling(&lora), Ok(None));
        let beside = dir.path().join("four-steps.toml");
        fs::write(&beside, "[sampling]\ndistilled = true\n")?;
        assert_eq!(sampling(&lora), Ok(Some(Sampling { distilled: Some(true), ..Sampling::default() })));
        fs::write(&beside, "[sampling]\nsteeps = 4\n")?;
        assert!(sampling(&lora).is_err_and(|e| e.contains("line 2") && e.contains("did you mean `steps`?")));
        Ok(())
    }

    #[test]
    fn a_models_folders_lie_in_it_or_beside_its_parts() -> Tested {
        let dir = tempfile::tempdir()?;
        let models = dir.path().join("models");
        for folder in ["loras", "diffusion_models/wan", "vae", "other/loras"] {
            fs::create_dir_all(models.join(folder))?;
        }
        let part = |name: &str| models.join(name).display().to_string();
        let text = format!(
            "name = \"wan\"\n[parts]\ndit = {:?}\nvae = {:?}\ntext = {:?}\n",
            part("diffusion_models/wan/dit.safetensors"),
            part("vae/vae.safetensors"),
            part("t5.safetensors")
        );
        let file = dir.path().join("wan.toml");
        fs::write(&file, text)?;
        assert_eq!(folders_of(&file), [models.join("loras")]);
        assert_eq!(folders_of(&models.join("other")), [models.join("other/loras")]);
        assert!(folders_of(&dir.path().join("none")).is_empty());
        Ok(())
    }
}
