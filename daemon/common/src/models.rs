//! Models by their names: the one place that says which file or folder a name stands for.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use animd_protocol::model_file::{ModelFile, check_name};
use animd_protocol::nearest::nearest;

use crate::files::show;

/// The models that come with animd.
const PACKAGED: &str = "/usr/share/animd/models";
/// The name of the small model that comes with animd. It is there to try animd with; a job must name it.
pub const SMALL: &str = "small";
/// The models that an administrator has added.
const SYSTEM: &str = "/etc/animd/models";
/// The name of the folder of models beside a configuration.
const BESIDE: &str = "models";
/// The most names that a sentence lists.
const LISTED: usize = 12;

/// The folders in which models have names: `NAME.toml`, a model file, or `NAME`, a model's folder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Models {
    /// A name in a later folder outranks the same name in an earlier one.
    folders: [PathBuf; 2],
}

impl Default for Models {
    fn default() -> Self {
        Self { folders: [PACKAGED.into(), SYSTEM.into()] }
    }
}

impl Models {
    /// Returns the models of a service whose configuration is in the folder `config`: those beside it, and the packaged
    /// ones.
    pub fn beside(config: &Path) -> Self {
        Self { folders: [PACKAGED.into(), config.join(BESIDE)] }
    }

    /// Returns the folder for models that are added.
    pub fn own(&self) -> &Path {
        &self.folders[1]
    }

    /// Returns whether there is the small model that `animctl demo` uses.
    pub fn demonstrates(&self) -> bool {
        self.find(SMALL).is_ok()
    }

    /// Returns what a name stands for: a model file or a model's folder.
    ///
    /// # Errors
    /// A sentence with the nearest name, or with all names.
    pub fn find(&self, name: &str) -> Result<PathBuf, String> {
        check_name(name)?;
        let found = self.folders.iter().rev().find_map(|folder| named(folder, name));
        found.ok_or_else(|| {
            let known = self.list();
            let names = || known.keys().map(String::as_str);
            let hint = match nearest(name, names()) {
                Some(near) => format!("did you mean `{near}`?"),
                None if known.is_empty() => {
                    "no model has a name so far; `animctl model add` gives it one".into()
                }
                None => {
                    let more = if known.len() > LISTED { " ..." } else { "" };
                    format!("known are {}{more}", names().take(LISTED).collect::<Vec<_>>().join(", "))
                }
            };
            format!("no model is called `{name}`; {hint}")
        })
    }

    /// Returns all names, and what they stand for.
    pub fn list(&self) -> BTreeMap<String, PathBuf> {
        let mut found = BTreeMap::new();
        for folder in &self.folders {
            for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
                let path = entry.path();
                let name = match path.extension() {
                    Some(end) if end == "toml" && path.is_file() => path.file_stem(),
                    _ if path.is_dir() => path.file_name(),
                    _ => None,
                };
                if let Some(name) =
                    name.and_then(|name| name.to_str()).filter(|name| check_name(name).is_ok())
                {
                    found.insert(name.to_owned(), named(folder, name).unwrap_or(path));
                }
            }
        }
        found
    }
}

/// Returns what a name stands for in one folder.
fn named(folder: &Path, name: &str) -> Option<PathBuf> {
    let (file, dir) = (folder.join(format!("{name}.toml")), folder.join(name));
    if file.is_file() { Some(file) } else { dir.is_dir().then_some(dir) }
}

/// Returns the content of the model file that a model's path leads to: `path` itself, or `model.toml` in the folder
/// `path`. `None` for a folder without one.
///
/// # Errors
/// A sentence with every mistake in the file.
pub fn model_file(path: &Path) -> Result<Option<ModelFile>, String> {
    let inside = path.join("model.toml");
    let file = if path.is_dir() { inside.is_file().then_some(inside) } else { Some(path.to_owned()) };
    file.map(|file| ModelFile::read(&file).map_err(|e| show(&e))).transpose()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_lead_to_files_and_folders() {
        let dir = tempfile::tempdir().expect("a folder");
        let models = Models::beside(dir.path());
        assert!(models.find("wan").is_err_and(|e| e.contains("`animctl model add`")));
        let own = models.own();
        fs::create_dir_all(own.join("wan-720p")).expect("made");
        fs::create_dir_all(own.join("both")).expect("made");
        for name in ["wan-480p.toml", "both.toml", "notes.txt", ".hidden.toml", "a b.toml"] {
            fs::write(own.join(name), "").expect("written");
        }
        assert_eq!(models.find("wan-480p"), Ok(own.join("wan-480p.toml")));
        assert_eq!(models.find("wan-720p"), Ok(own.join("wan-720p")));
        assert_eq!(models.find("both"), Ok(own.join("both.toml")), "the file says more than the folder");
        let near = models.find("wan480p").expect_err("there is none");
        assert_eq!(near, "no model is called `wan480p`; did you mean `wan-480p`?");
        assert!(models.find("x").is_err_and(|e| e.ends_with("known are both, wan-480p, wan-720p")));
        for wrong in ["", "../both", "/etc/passwd", "a b", ".hidden"] {
            assert!(models.find(wrong).is_err_and(|e| e.contains("letters, digits")), "{wrong}");
        }
        assert_eq!(models.list().into_keys().collect::<Vec<_>>(), ["both", "wan-480p", "wan-720p"]);
    }
}
