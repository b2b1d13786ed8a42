//! The cache of the Hugging Face hub: `models--ORGANISATION--NAME` with `blobs`, `refs`, and `snapshots` of links into the
//! blobs.

use std::fs;
use std::path::{Path, PathBuf};

use crate::weights;

/// Where the hub's client keeps what it is fetching into an ordinary folder.
const LOCAL: &str = ".cache/huggingface/download";
/// The most files of a folder that are looked at.
const MOST: usize = 10_000;

/// Returns the folder with the files of a repository in the cache, or a sentence why there is none; `None` for a folder that
/// is no repository.
pub(super) fn repository(folder: &Path) -> Option<Result<PathBuf, String>> {
    match weights::snapshot(folder) {
        Ok(same) if same == folder => None,
        Ok(snapshot) => Some(Ok(snapshot)),
        Err(e) => Some(Err(e.to_string())),
    }
}

/// Returns a sentence if files for a folder are not fetched to their end: blobs of a repository, or files that are being
/// fetched into the folder itself.
pub(super) fn unfinished(folder: &Path) -> Option<String> {
    let count = incomplete(&folder.join("blobs")) + incomplete(&folder.join(LOCAL));
    let (files, are) = if count == 1 { ("file", "is") } else { ("files", "are") };
    (count > 0).then(|| {
        format!(
            "{count} {files} of `{}` {are} not fetched to the end (`*.incomplete`); run the same `hf download` again, which goes on \
             where it stopped",
            weights::title(folder)
        )
    })
}

/// Returns the sentence of [`unfinished`] for the repository that a path inside its snapshots belongs to.
pub(super) fn unfinished_around(path: &Path) -> Option<String> {
    let snapshots = path.ancestors().skip(1).find(|folder| folder.ends_with("snapshots"))?;
    unfinished(snapshots.parent()?)
}

/// Returns how many unfinished files are in a folder and the folders in it.
fn incomplete(folder: &Path) -> usize {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten().take(MOST);
    entries
        .map(|entry| match entry.file_type() {
            Ok(kind) if kind.is_dir() => incomplete(&entry.path()),
            _ => usize::from(entry.file_name().to_string_lossy().ends_with(".incomplete")),
        })
        .sum()
}
