//! Which names in a watched folder may be pictures.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use crate::files::split_name;

/// The folder at the root of a watched folder for pictures that have become videos.
pub const DONE: &str = "done";
/// The folder at the root of a watched folder for pictures that have failed.
pub const FAILED: &str = "failed";
/// The folder at the root of a watched folder for pictures whose jobs were cancelled.
pub const CANCELED: &str = "cancelled";
/// The file with the settings of everything in its folder.
pub const FOLDER_SETTINGS: &str = "folder.toml";

/// Endings of sidecars, of unfinished files of browsers, editors and copying programs, and of what photo programs write
/// beside a picture.
const ENDINGS: [&str; 20] = [
    "toml",
    "txt",
    "part",
    "partial",
    "filepart",
    "crdownload",
    "opdownload",
    "download",
    "aria2",
    "!qb",
    "!ut",
    "tmp",
    "temp",
    "swp",
    "swx",
    "lock",
    "lnk",
    "url",
    "xmp",
    "aae",
];

/// Files that file managers leave.
const LITTER: [&str; 4] = ["thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r"];

/// Folders that network storage, synchronisation and file managers leave.
const LITTER_FOLDERS: [&str; 9] = [
    "@eadir",
    "#recycle",
    "@recycle",
    "@recently-snapshot",
    "#snapshot",
    "$recycle.bin",
    "system volume information",
    "lost+found",
    "__macosx",
];

/// Returns whether a file is not a picture by its name: it is hidden, temporary, a sidecar, or litter.
pub fn is_ignored(name: &OsStr) -> bool {
    let lower = name.as_bytes().to_ascii_lowercase();
    let ending = split_name(OsStr::from_bytes(&lower)).1.as_bytes().strip_prefix(b".");
    lower.starts_with(b".")
        || lower.starts_with(b"~$")
        || lower.ends_with(b"~")
        || LITTER.iter().any(|l| l.as_bytes() == lower)
        || ending.is_some_and(|ending| ENDINGS.iter().any(|e| e.as_bytes() == ending))
}

/// Returns whether a folder below a watched one is not looked into: hidden, litter, or at the root the place for what
/// is done.
pub fn is_ignored_folder(below: &Path) -> bool {
    let name = below.file_name().unwrap_or_default();
    let at_root = below.parent().is_none_or(|parent| parent.as_os_str().is_empty());
    let lower = name.as_bytes().to_ascii_lowercase();
    lower.starts_with(b".")
        || LITTER_FOLDERS.iter().any(|l| l.as_bytes() == lower)
        || (at_root && [DONE, FAILED, CANCELED].iter().any(|own| name == *own))
}

/// Returns whether a path, relative to a watched folder's root, is one that the watch looks at.
pub fn is_watched(below: &Path) -> bool {
    let name = below.file_name().unwrap_or_default();
    let folders = below.parent().into_iter().flat_map(Path::ancestors);
    !is_ignored(name) && !folders.filter(|dir| !dir.as_os_str().is_empty()).any(is_ignored_folder)
}

/// Returns the paths of the pictures that a sidecar may belong to, one for each ending that pictures have.
pub fn pictures_of(sidecar: &Path) -> Vec<PathBuf> {
    const PICTURES: [&str; 12] =
        ["png", "jpg", "jpeg", "webp", "bmp", "tif", "tiff", "gif", "PNG", "JPG", "JPEG", "WEBP"];
    let (stem, tail) = split_name(sidecar.file_name().unwrap_or_default());
    let tail = tail.as_bytes().to_ascii_lowercase();
    if (tail != b".toml" && tail != b".txt") || sidecar.file_name() == Some(OsStr::new(FOLDER_SETTINGS)) {
        return Vec::new();
    }
    PICTURES
        .iter()
        .map(|ending| {
            let mut name = stem.to_owned();
            name.push(".");
            name.push(ending);
            sidecar.with_file_name(name)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_pictures_names_are_looked_at() {
        for name in [
            ".hidden.png",
            "._photo.png",
            "a.png~",
            "a.png.part",
            "a.PNG.crdownload",
            "a.png.aria2",
            "~$photo.png",
            "Thumbs.db",
            "a.txt",
            "a.TOML",
            "a.png.xmp",
        ] {
            assert!(is_ignored(OsStr::new(name)), "{name}");
        }
        for name in ["a.png", "a", "part", "toml.jpg", "a b\n.jpeg"] {
            assert!(!is_ignored(OsStr::new(name)), "{name}");
        }
        assert!(!is_ignored(OsStr::from_bytes(b"\xff\xfe.png")));
    }

    #[test]
    fn done_and_failed_are_left_alone_at_the_root_only() {
        for below in ["done/a.png", "failed/sub/a.png", "sub/@eaDir/a.png", ".stfolder/a.png", "a.txt"] {
            assert!(!is_watched(Path::new(below)), "{below}");
        }
        for below in ["a.png", "sub/done/a.png", "Done/a.png", "sub/sub/a.png"] {
            assert!(is_watched(Path::new(below)), "{below}");
        }
    }

    #[test]
    fn a_sidecar_names_its_pictures() {
        assert!(pictures_of(Path::new("sub/a.b.txt")).contains(&"sub/a.b.png".into()));
        assert!(
            pictures_of(Path::new("folder.toml")).is_empty() && pictures_of(Path::new("a.png")).is_empty()
        );
    }
}
