//! The usual places of model files.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

/// Folders of machines that keep models for everybody.
const SHARED: [&str; 4] = ["/models", "/srv", "/opt/ComfyUI/models", "/var/lib/animd/models"];
/// Folders in a home.
const IN_HOME: [&str; 4] = ["models", "Models", "Downloads", ".local/share/animd/models"];
/// The most names in a home that are looked at for `ComfyUI`'s folders.
const MAX_NAMES: usize = 2000;

/// Returns the usual places that exist, given the environment and the homes of the people who may have fetched models.
pub fn usual(env: &dyn Fn(&str) -> Option<OsString>, homes: &[PathBuf]) -> Vec<PathBuf> {
    let absolute = |name: &str| env(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let hub = absolute("HF_HUB_CACHE").or_else(|| Some(absolute("HF_HOME")?.join("hub")));
    let mut places: Vec<PathBuf> = hub.into_iter().chain(absolute("XDG_DOWNLOAD_DIR")).collect();
    for home in homes {
        places.push(home.join(".cache/huggingface/hub"));
        places.extend(IN_HOME.iter().map(|name| home.join(name)));
        places.extend(comfy(home));
    }
    places.extend(SHARED.map(PathBuf::from));
    let mut seen = BTreeSet::new();
    places.retain(|path| {
        let real = std::fs::canonicalize(path).ok();
        path.is_dir() && real.is_some_and(|real| seen.insert(real))
    });
    places
}

/// Returns the folders of models of every `ComfyUI` in a home, or in a folder of it.
fn comfy(home: &Path) -> Vec<PathBuf> {
    let folders = |folder: &Path| -> Vec<PathBuf> {
        let entries = std::fs::read_dir(folder).into_iter().flatten().flatten().take(MAX_NAMES);
        let visible = |entry: &std::fs::DirEntry| !entry.file_name().as_encoded_bytes().starts_with(b".");
        entries.filter(visible).map(|entry| entry.path()).filter(|path| path.is_dir()).collect()
    };
    let is_comfy = |path: &PathBuf| {
        let name = path.file_name().unwrap_or_default().to_string_lossy().to_lowercase();
        name.contains("comfy")
    };
    let below = folders(home);
    let deeper = below.iter().flat_map(|folder| folders(folder));
    let mut found: Vec<PathBuf> = below.iter().cloned().chain(deeper).filter(is_comfy).collect();
    found.sort();
    found.into_iter().map(|folder| folder.join("models")).filter(|models| models.is_dir()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn usual_places_are_those_that_exist() -> std::io::Result<()> {
        let dir = tempfile::tempdir()?;
        let (home, other) = (dir.path().join("ann"), dir.path().join("hub"));
        for folder in [
            "ComfyUI/models",
            "ai/comfy-nightly/models",
            "ai/other/models",
            "comfy-notes",
            ".comfy/models",
            "models",
            ".cache/huggingface/hub",
        ] {
            std::fs::create_dir_all(home.join(folder))?;
        }
        std::fs::create_dir_all(&other)?;
        let env = |name: &str| (name == "HF_HUB_CACHE").then(|| other.clone().into_os_string());
        let found = usual(&env, std::slice::from_ref(&home));
        let inside: Vec<_> = found.iter().filter(|path| path.starts_with(dir.path())).collect();
        let wanted = [
            other.clone(),
            home.join(".cache/huggingface/hub"),
            home.join("models"),
            home.join("ComfyUI/models"),
            home.join("ai/comfy-nightly/models"),
        ];
        assert_eq!(inside, wanted.iter().collect::<Vec<_>>());
        // A place that another name leads to is searched once.
        std::os::unix::fs::symlink(home.join("models"), home.join("Models"))?;
        assert_eq!(usual(&env, &[home.clone(), home]).len(), found.len());
        Ok(())
    }
}
