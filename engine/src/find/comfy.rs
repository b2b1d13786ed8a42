//! `ComfyUI`'s folders: its `models`, and those that `extra_model_paths.yaml` names.

use std::path::{Path, PathBuf};

use crate::weights;

/// The files in which `ComfyUI` lists folders besides its own.
const EXTRA: [&str; 2] = ["extra_model_paths.yaml", "extra_model_paths.yml"];
/// The longest such file that is read.
const MAX_FILE: u64 = 1 << 18;

/// Returns the folder of models in `ComfyUI`'s own folder; `None` for another folder. Its other folders hold programs and
/// pictures by the ten thousand.
pub(super) fn models(folder: &Path) -> Option<PathBuf> {
    let models = folder.join("models");
    let is_comfy = ["main.py", "comfy", "folder_paths.py"].iter().any(|name| folder.join(name).exists());
    (is_comfy && models.is_dir()).then_some(models)
}

/// Returns the folders that the list in a folder names and that are there, with the list's file. The list of a folder
/// `models` may lie beside it.
pub(super) fn extra_folders(folder: &Path) -> Option<(PathBuf, Vec<PathBuf>)> {
    let beside = folder.ends_with("models").then(|| folder.parent()).flatten();
    let places = std::iter::once(folder).chain(beside);
    let file = places.flat_map(|place| EXTRA.map(|name| place.join(name))).find(|file| file.is_file())?;
    let text = weights::text_file(&file, MAX_FILE).ok()?;
    let base = file.parent().unwrap_or(Path::new("/"));
    let mut folders: Vec<PathBuf> =
        listed(&text).into_iter().map(|path| base.join(path)).filter(|path| path.is_dir()).collect();
    folders.sort();
    folders.dedup();
    Some((file, folders))
}

/// Returns the folders that the text of a list names: of each section `base_path` and, below it, one folder or several lines
/// of folders for each kind of file. Only the plain forms that `ComfyUI`'s own example has are understood.
fn listed(text: &str) -> Vec<PathBuf> {
    let mut folders = Vec::new();
    let mut base = PathBuf::new();
    // The indent of the key whose lines are listed below it.
    let mut block: Option<usize> = None;
    for line in text.lines() {
        let content = line.split(" #").next().unwrap_or_default().trim();
        if content.is_empty() || content.starts_with('#') {
            continue;
        }
        let indent = line.len() - line.trim_start().len();
        if block.is_some_and(|key| indent > key) {
            folders.push(base.join(value(content.trim_start_matches("- "))));
            continue;
        }
        block = None;
        let Some((key, rest)) = content.split_once(':') else { continue };
        let rest = value(rest);
        match (indent, key.trim()) {
            (0, _) => base = PathBuf::new(),
            (_, "base_path") => base = home(&rest),
            (_, "is_default") => {}
            _ if ["", "|", "|-", ">"].contains(&&*rest) => block = Some(indent),
            _ => folders.push(base.join(home(&rest))),
        }
    }
    folders
}

fn value(text: &str) -> String {
    text.trim().trim_matches(['"', '\'']).to_owned()
}

/// Returns a path with `~` as the home of whoever runs the program.
fn home(path: &str) -> PathBuf {
    match (path.strip_prefix("~/"), std::env::var_os("HOME")) {
        (Some(below), Some(home)) => PathBuf::from(home).join(below),
        _ => path.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_of_folders_is_read() {
        let text = "\
# other programs
a111:
    base_path: /srv/a1111/
    is_default: true
    checkpoints: models/Stable-diffusion
    loras: |
         models/Lora
         models/LyCORIS   # more
    vae: \"models/my vae\"
comfyui:
    base_path: /srv/comfy
    diffusion_models:
        - models/unet
other:
    text_encoders: /elsewhere/text
";
        let expected = [
            "/srv/a1111/models/Stable-diffusion",
            "/srv/a1111/models/Lora",
            "/srv/a1111/models/LyCORIS",
            "/srv/a1111/models/my vae",
            "/srv/comfy/models/unet",
            "/elsewhere/text",
        ];
        assert_eq!(listed(text), expected.map(PathBuf::from));
        assert_eq!(listed("nonsense\n- x\n"), Vec::<PathBuf>::new());
    }
}
