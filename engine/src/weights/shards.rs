//! Files that are one part together: the files of an index, or numbered ones.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::stored::text_file;
use crate::{Error, Result};

/// The longest index that is read; a real one, with a thousand tensors, has 100 kB.
const MAX_INDEX: u64 = 16 << 20;
/// The end of the name of an index.
const INDEX: &str = ".safetensors.index.json";

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

#[derive(Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

/// Returns the name of the folder's index; the official name comes first.
pub(super) fn index_file(path: &Path, names: &[String]) -> Result<Option<String>> {
    let official = "diffusion_pytorch_model.safetensors.index.json";
    let indices: Vec<&String> = names.iter().filter(|n| n.ends_with(INDEX)).collect();
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
pub(super) fn indexed_files(path: &Path) -> Result<BTreeSet<String>> {
    let text = text_file(path, MAX_INDEX).map_err(Error::file("read", path))?;
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

/// Returns all files called `NAME-00001-of-00007.safetensors`, of the first name if there are several.
pub(super) fn numbered_files(path: &Path, names: &[String]) -> Result<Option<Vec<PathBuf>>> {
    match names.iter().find_map(|name| numbers(name)) {
        Some((base, _, total)) => all_numbered(path, names, base, total).map(Some),
        None => Ok(None),
    }
}

/// Returns the name, the number and the count of a file called `NAME-00001-of-00007.safetensors`.
fn numbers(name: &str) -> Option<(&str, usize, usize)> {
    let (rest, total) = name.strip_suffix(".safetensors")?.rsplit_once("-of-")?;
    let (base, number) = rest.rsplit_once('-')?;
    Some((base, number.parse().ok()?, total.parse().ok()?))
}

/// Returns whether a file's name says that it is one of several that are one part together.
pub(crate) fn is_numbered(name: &str) -> bool {
    numbers(name).is_some_and(|(_, _, total)| total > 1)
}

/// Returns the numbered files of this name and count, all of which must be there.
fn all_numbered(folder: &Path, names: &[String], base: &str, total: usize) -> Result<Vec<PathBuf>> {
    let of_it = |name: &&String| numbers(name).is_some_and(|(b, _, t)| (b, t) == (base, total));
    let files: Vec<PathBuf> = names.iter().filter(of_it).map(|name| folder.join(name)).collect();
    if files.len() != total {
        return Err(Error::Model(format!(
            "`{}` has {} of the {total} files `{base}-*-of-{total:05}.safetensors`; copy the others too",
            folder.display(),
            files.len()
        )));
    }
    Ok(files)
}

/// Returns the files that a file stands for: an index for the files that it names, one of several numbered files for all of
/// them, and any other file for itself.
pub(crate) fn of_file(path: &Path) -> Result<Vec<PathBuf>> {
    let (Some(folder), Some(name)) = (path.parent(), path.file_name().and_then(|name| name.to_str())) else {
        return Ok(vec![path.to_owned()]);
    };
    if name.ends_with(INDEX) {
        return Ok(indexed_files(path)?.iter().map(|file| folder.join(file)).collect());
    }
    let Some((base, _, total)) = numbers(name).filter(|_| path.is_file()) else {
        return Ok(vec![path.to_owned()]);
    };
    all_numbered(folder, &list(folder)?, base, total)
}

/// Returns the index in a folder that names these files, if they are several.
pub(crate) fn index_of(folder: &Path, files: &[PathBuf]) -> Option<PathBuf> {
    let named: BTreeSet<String> =
        files.iter().filter_map(|file| Some(file.file_name()?.to_str()?.to_owned())).collect();
    let indices = list(folder).ok()?.into_iter().filter(|name| files.len() > 1 && name.ends_with(INDEX));
    let mut indices = indices.map(|name| folder.join(name));
    indices.find(|index| indexed_files(index).is_ok_and(|files| files == named))
}

/// Files of a folder that are one part together.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Group {
    /// What stands for them: their index, the first of them if they are numbered, or their folder.
    pub path: PathBuf,
    /// The files; an index is not one of them.
    pub files: Vec<PathBuf>,
}

/// Returns the groups among the files of a folder, and a sentence for each group that lacks some of its files, with what
/// stands for it.
pub(crate) fn groups(folder: &Path, names: &[String]) -> (Vec<Group>, Vec<(PathBuf, String)>) {
    let (mut whole, mut broken) = (Vec::<Group>::new(), Vec::new());
    let mut grouped = BTreeSet::new();
    for index in names.iter().filter(|name| name.ends_with(INDEX)) {
        let path = folder.join(index);
        match indexed_files(&path) {
            Ok(files) if files.iter().all(|file| names.contains(file)) => {
                whole.push(Group { path, files: files.iter().map(|file| folder.join(file)).collect() });
                grouped.extend(files);
            }
            // An index may lie beside one file that has everything. Where none of its files is there, they are not missed.
            Ok(files) if !files.iter().any(|file| names.contains(file)) => {}
            Ok(files) => {
                let missing: Vec<_> = files.iter().filter(|file| !names.contains(file)).collect();
                let list: Vec<_> = missing.iter().map(|file| format!("`{file}`")).collect();
                broken.push((
                    path,
                    format!(
                        "`{}` lacks {} of the {} files that `{index}` names: {}; copy them too",
                        folder.display(),
                        missing.len(),
                        files.len(),
                        list.join(", ")
                    ),
                ));
                grouped.extend(files);
            }
            Err(e) => broken.push((path, e.to_string())),
        }
    }
    let sets: BTreeSet<_> = names
        .iter()
        .filter(|name| !grouped.contains(*name))
        .filter_map(|name| numbers(name).map(|(base, _, total)| (base, total)))
        .collect();
    for (base, total) in sets {
        match all_numbered(folder, names, base, total) {
            Ok(files) => whole.extend(files.first().cloned().map(|path| Group { path, files })),
            Err(e) => broken.push((folder.to_owned(), e.to_string())),
        }
    }
    let alone = |name: &str| !grouped.contains(name);
    if names.iter().any(|name| name == "non_block.safetensors" && alone(name)) {
        let is_block = |name: &str| name.starts_with("block_") && name.ends_with(".safetensors");
        let of_it = names.iter().filter(|name| *name == "non_block.safetensors" || is_block(name));
        whole.push(Group { path: folder.to_owned(), files: of_it.map(|name| folder.join(name)).collect() });
    }
    (whole, broken)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn files_that_are_one_part_are_grouped() {
        let dir = tempfile::tempdir().expect("a folder");
        let index = r#"{"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}"#;
        fs::write(dir.path().join("model.safetensors.index.json"), index).expect("written");
        let half = r#"{"weight_map": {"a": "there.safetensors", "b": "gone.safetensors"}}"#;
        fs::write(dir.path().join("half.safetensors.index.json"), half).expect("written");
        fs::write(dir.path().join("none.safetensors.index.json"), half.replace("there", "away"))
            .expect("written");
        let names = names(&[
            "model.safetensors.index.json",
            "half.safetensors.index.json",
            "none.safetensors.index.json",
            "there.safetensors",
            "model-00001-of-00002.safetensors",
            "model-00002-of-00002.safetensors",
            "other-00001-of-00002.safetensors",
            "other-00002-of-00002.safetensors",
            "third-2-of-3.safetensors",
            "non_block.safetensors",
            "block_0.safetensors",
            "alone.safetensors",
        ]);
        let (whole, broken) = groups(dir.path(), &names);
        let short = |path: &Path| {
            path.strip_prefix(dir.path()).map(|path| path.to_string_lossy().into_owned()).unwrap_or_default()
        };
        let said: Vec<_> = whole.iter().map(|group| (short(&group.path), group.files.len())).collect();
        let expected =
            [("model.safetensors.index.json", 2), ("other-00001-of-00002.safetensors", 2), ("", 2)];
        assert_eq!(said, expected.map(|(path, count)| (path.to_owned(), count)));
        assert_eq!(broken.len(), 2, "{broken:?}");
        assert!(broken[0].1.contains("lacks 1 of the 2 files") && broken[0].1.contains("`gone.safetensors`"));
        assert!(broken[1].1.contains("has 1 of the 3 files `third-*-of-00003.safetensors`"));
    }

    #[test]
    fn one_of_several_files_stands_for_all() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = |name: &str| dir.path().join(name);
        for name in ["a-1-of-2.safetensors", "a-2-of-2.safetensors", "b-1-of-2.safetensors", "c.safetensors"]
        {
            fs::write(path(name), "").expect("written");
        }
        let of = |name: &str| of_file(&path(name)).map_err(|e| e.to_string());
        assert_eq!(
            of("a-2-of-2.safetensors"),
            Ok(vec![path("a-1-of-2.safetensors"), path("a-2-of-2.safetensors")])
        );
        assert_eq!(of("c.safetensors"), Ok(vec![path("c.safetensors")]));
        assert!(of("b-1-of-2.safetensors").is_err_and(|e| e.contains("has 1 of the 2 files")));
    }
}
