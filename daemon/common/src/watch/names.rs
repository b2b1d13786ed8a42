//! Which names in a watched folder may be pictures.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use crate::files::split_name;

/// The folder at the root of a watched folder for pictures that have become videos.
pub const DONE: &str = "done";
/// The folder at the root of a watched folder for pictures that have failed.
pub const FAILED: &str = "failed";
/// The folder at the root of a watched folder for pictures whose jobs were cancelled.
pub const CANCELED: &str = "cancelled";
/// The file with the settings of everything in its folder.
pub const FOLDER_SETTINGS: &str = "folder.toml";

/// Endings of sidecars with settings.
pub const SETTINGS: [&str; 2] = ["toml", "json"];
/// Endings of sidecars with a prompt: captioning tools have their own.
pub const TEXTS: [&str; 4] = ["txt", "text", "caption", "prompt"];

/// Endings of pictures, in names such as `photo.last.jpg`.
pub const PICTURES: [&str; 8] = ["jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff"];
/// What comes before the ending in the name of a picture that a video ends at.
pub const LAST: &str = "last";

/// Endings of unfinished files of browsers, editors and copying programs.
const UNFINISHED: [&str; 26] = [
    "part",
    "partial",
    "filepart",
    "crdownload",
    "opdownload",
    "download",
    "aria2",
    "aria2__temp",
    "!qb",
    "!ut",
    "!bt",
    "!sync",
    "bc!",
    "dctmp",
    "td",
    "xltd",
    "uploading",
    "tmp",
    "temp",
    "swp",
    "swo",
    "swx",
    "bak",
    "lock",
    "lck",
    "ytdl",
];

/// Endings of what photo programs, shells and download managers write beside a picture.
const BESIDE: [&str; 17] = [
    "lnk", "url", "webloc", "xmp", "aae", "pp3", "dop", "nksc", "thm", "md5", "sha1", "sha256", "sha512",
    "sfv", "torrent", "icloud", "ini",
];

/// Files that file managers leave.
const LITTER: [&str; 6] =
    ["thumbs.db", "ehthumbs.db", "ehthumbs_vista.db", "icon\r", "zbthumbnail.info", "4913"];

/// How names of Windows' notes on where a file comes from end, in whichever way the colon before it was copied.
const STREAM: &[u8] = b"zone.identifier";

/// Folders that network storage, synchronisation and file managers leave.
const LITTER_FOLDERS: [&str; 12] = [
    "@eadir",
    "#recycle",
    "@recycle",
    "@recently-snapshot",
    "#snapshot",
    "$recycle.bin",
    "system volume information",
    "lost+found",
    "__macosx",
    "network trash folder",
    "temporary items",
    "recycler",
];

/// Returns the name of the picture whose video ends at the picture of this name: `photo` of `photo.last.jpg`. `None` for any
/// other name.
pub fn of_last(name: &OsStr) -> Option<&OsStr> {
    let (stem, tail) = split_name(name);
    let ending = tail.as_bytes().strip_prefix(b".")?.to_ascii_lowercase();
    let (first, mark) = split_name(stem);
    let is_last = mark.as_bytes().strip_prefix(b".")?.eq_ignore_ascii_case(LAST.as_bytes());
    (is_last && PICTURES.iter().any(|e| e.as_bytes() == ending)).then_some(first)
}

/// Returns whether a file is not a picture that a video is made of, by its name: it is hidden, temporary, a sidecar, the last
/// picture of a pair, or litter.
pub fn is_ignored(name: &OsStr) -> bool {
    let lower = name.as_bytes().to_ascii_lowercase();
    let ending = split_name(OsStr::from_bytes(&lower)).1.as_bytes().strip_prefix(b".");
    lower.starts_with(b".")
        || lower.starts_with(b"~$")
        || lower.ends_with(b"~")
        || (lower.starts_with(b"#") && lower.ends_with(b"#"))
        || lower.ends_with(STREAM)
        || lower.ends_with(b":$data")
        || LITTER.iter().any(|l| l.as_bytes() == lower)
        || of_last(name).is_some()
        || ending.is_some_and(|ending| {
            let mut endings = SETTINGS.iter().chain(&TEXTS).chain(&UNFINISHED).chain(&BESIDE);
            endings.any(|e| e.as_bytes() == ending)
        })
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

/// Returns the name of a sidecar without its ending, which is the name of its picture, with or without the picture's own
/// ending; `None` for a file that is no sidecar of pictures. The last picture of a pair is a sidecar of the first.
pub fn of_sidecar(name: &OsStr) -> Option<&OsStr> {
    if let Some(first) = of_last(name) {
        return Some(first);
    }
    let (stem, tail) = split_name(name);
    let ending = tail.as_bytes().strip_prefix(b".")?.to_ascii_lowercase();
    let is_sidecar = SETTINGS.iter().chain(&TEXTS).any(|e| e.as_bytes() == ending);
    (is_sidecar && name != FOLDER_SETTINGS).then_some(stem)
}

/// Returns the ends of the names beside a picture that say that it is being downloaded.
pub fn downloads(picture: &OsStr) -> impl Iterator<Item = OsString> {
    ["aria2", "part", "partial", "crdownload", "xltd", "td"].into_iter().map(move |ending| {
        let mut name = picture.to_owned();
        name.push(".");
        name.push(ending);
        name
    })
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
            "a.png:Zone.Identifier",
            "a.pngZone.Identifier",
            "a.png\u{f03a}Zone.Identifier",
            "a.png:Zone.Identifier:$DATA",
            "#a.png#",
            "a.png.json",
            "a.caption",
            "a.png.md5",
            "a.png.bak",
            "DESKTOP.INI",
            ".DS_Store",
            "a.png.!ut",
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
    fn a_sidecar_names_its_picture() {
        let of = |name| of_sidecar(OsStr::new(name)).map(OsStr::to_owned);
        assert_eq!(of("a.b.txt").as_deref(), Some(OsStr::new("a.b")));
        assert_eq!(of("a.Png.TXT").as_deref(), Some(OsStr::new("a.Png")));
        assert_eq!(of("a.caption").as_deref(), Some(OsStr::new("a")));
        for name in ["a.last.jpg", "a.LAST.Png", "a.b.last.webp"] {
            assert!(is_ignored(OsStr::new(name)), "{name}");
        }
        assert_eq!(of("a.b.last.webp").as_deref(), Some(OsStr::new("a.b")));
        assert_eq!(of("a.jpg.Last.TIFF").as_deref(), Some(OsStr::new("a.jpg")));
        for name in ["last.jpg", ".last.jpg", "a.last", "a.last.mp4", "alast.jpg", "a.last.b.jpg"] {
            assert_eq!(of_last(OsStr::new(name)), None, "{name}");
        }
        for name in ["folder.toml", "a.png", "a", ".txt"] {
            assert_eq!(of(name), None, "{name}");
        }
    }
}
