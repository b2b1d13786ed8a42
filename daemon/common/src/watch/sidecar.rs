//! Reads the sidecars of a picture: `photo.toml`, `photo.txt`, and the `folder.toml` of its folder and the ones above.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use animd_protocol::ErrorCode;
use animd_protocol::request::{Request, Settings};

use super::names::FOLDER_SETTINGS;
use super::root::{self, Dir, Root};
use crate::clock::now_us;
use crate::files::{self, NAME_MAX, show, split_name};
use crate::keys;
use crate::text;
use crate::{Error, Result};

/// The largest sidecar, in bytes.
pub const MAX_BYTES: u64 = 1 << 20;

/// Returns the [`paths`] of a picture below a root; none if its folder is gone.
pub fn beside(root: &Root, picture: &Path) -> [Option<PathBuf>; 2] {
    let Ok(dir) = Dir::of(root, picture) else { return [None, None] };
    paths(&dir.at(picture)).map(|path| Some(picture.with_file_name(path?.file_name()?)))
}

/// Returns `photo.toml` and `photo.txt` for `photo.png`, or `photo.TOML` and `photo.TXT` where only these exist; `None`
/// where no such file can exist.
pub fn paths(picture: &Path) -> [Option<PathBuf>; 2] {
    let (stem, _) = split_name(picture.file_name().unwrap_or_default());
    let beside = |kind: &str| {
        let mut name = stem.as_bytes().to_vec();
        name.push(b'.');
        name.extend_from_slice(kind.as_bytes());
        // A picture called `folder.png` does not own its folder's settings.
        let possible = name.len() <= NAME_MAX && name != FOLDER_SETTINGS.as_bytes();
        possible.then(|| picture.with_file_name(OsStr::from_bytes(&name)))
    };
    let is_there = |path: &PathBuf| fs::symlink_metadata(path).is_ok();
    ["toml", "txt"].map(|kind| {
        let path = beside(kind)?;
        let shouted = || beside(&kind.to_uppercase()).filter(is_there);
        Some(if is_there(&path) { path } else { shouted().unwrap_or(path) })
    })
}

/// Returns what a picture's sidecars say, then its folder's `folder.toml`, then the ones of the folders above, up to
/// `root`. `photo.toml` has settings; `photo.txt` is the prompt, which the first may leave out.
///
/// # Errors
/// [`Error::Refused`] names the file and the line.
pub fn settings(root: &Root, picture: &Path) -> Result<Settings> {
    let [toml, txt] = beside(root, picture);
    let mut settings = Settings::default();
    if let Some(path) = &toml
        && let Some(text) = read(root, path)?
    {
        settings = parse(root, path, &text)?;
    }
    // An empty file says nothing: there is a prompt for pictures that come without one.
    if let Some(path) = &txt
        && let Some(text) = read(root, path)?.filter(|text| !text.trim().is_empty())
    {
        if settings.prompt.is_some() {
            return Err(Error::refused(
                ErrorCode::InvalidSetting,
                format!(
                    "both `{}` and `{}` give a prompt; keep one",
                    toml.map(|toml| name(root, &toml)).unwrap_or_default(),
                    name(root, path)
                ),
            ));
        }
        let prompt = text::prompt(&text)
            .map_err(|e| Error::refused(ErrorCode::InvalidSetting, e.of(&name(root, path))))?;
        settings.prompt = Some(prompt.trim().to_owned());
    }
    for folder in picture.ancestors().skip(1).take_while(|folder| folder.starts_with(root.path())) {
        let path = folder.join(FOLDER_SETTINGS);
        if let Some(text) = read(root, &path)? {
            settings = settings.or(parse(root, &path, &text)?);
        }
    }
    Ok(settings)
}

/// Returns when a picture's sidecars last changed, in microseconds since the epoch; `None` without any.
pub fn changed_us(root: &Root, picture: &Path) -> Option<i64> {
    beside(root, picture)
        .into_iter()
        .flatten()
        .filter_map(|path| Some(files::changed_us(&root::metadata(root, &path).ok()?)))
        .max()
}

/// Microseconds by which the times of files may lag behind the clock: a tick of a kernel that counts a hundred a second.
const TICK_US: i64 = 10_000;

/// Returns the time to write down before sidecars are read: now, or when they changed, by the clock of their file
/// system, which may be ahead of ours. Rather too early than too late: what changed is read again before it counts.
pub fn read_us(root: &Root, picture: &Path) -> i64 {
    changed_us(root, picture).unwrap_or_default().max(now_us() - TICK_US)
}

/// Returns the settings of [`settings`] with defaults under them, and everything filled in.
pub fn request(
    root: &Root,
    picture: &Path,
    defaults: Settings,
    draw_seed: impl FnOnce() -> u64,
) -> Result<Request> {
    let own = settings(root, picture)?;
    let exists = |path: &PathBuf| root::metadata(root, path).is_ok();
    own.or(defaults).resolve(draw_seed).map_err(|e| {
        let beside = beside(root, picture).into_iter().flatten().find(exists);
        let above = || {
            let mut folders =
                picture.ancestors().skip(1).take_while(|folder| folder.starts_with(root.path()));
            folders.find_map(|folder| Some(folder.join(FOLDER_SETTINGS)).filter(exists))
        };
        match beside.or_else(above) {
            Some(path) => Error::refused(ErrorCode::InvalidSetting, format!("{}: {e}", name(root, &path))),
            None => e.into(),
        }
    })
}

/// Returns a path as its user knows it.
fn name(root: &Root, path: &Path) -> String {
    show(path.strip_prefix(root.path()).unwrap_or(path))
}

fn parse(root: &Root, path: &Path, text: &str) -> Result<Settings> {
    let file = path.strip_prefix(root.path()).unwrap_or(path);
    keys::settings_from_toml(file, text).map_err(|e| Error::refused(ErrorCode::InvalidSetting, e))
}

fn read(root: &Root, path: &Path) -> Result<Option<String>> {
    let bytes = match root::read_small(root, path, MAX_BYTES) {
        Ok(bytes) => bytes,
        Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            return Ok(None);
        }
        Err(e) if root::is_swapped(&e) => return Err(Error::file("read", path)(e)),
        Err(e) => {
            let text = format!("`{}`, which may hold its settings, cannot be read: {e}", name(root, path));
            return Err(Error::refused(ErrorCode::File, text));
        }
    };
    let text = text::decode(bytes)
        .map_err(|e| Error::refused(ErrorCode::InvalidSetting, e.of(&name(root, path))))?;
    Ok(Some(text))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_at_once_after_the_reading_is_late() -> Result<()> {
        let dir = tempfile::tempdir().map_err(Error::file("make", "a folder"))?;
        let root = Root::alone(dir.path());
        for n in 0..200 {
            let picture = dir.path().join(format!("{n}.png"));
            let read_us = read_us(&root, &picture);
            fs::write(picture.with_extension("txt"), "a wave").map_err(Error::file("write", "a sidecar"))?;
            assert!(changed_us(&root, &picture).is_some_and(|changed_us| changed_us > read_us), "{n}");
        }
        Ok(())
    }

    #[test]
    fn sidecars_give_settings_and_prompt_or_a_sentence() -> Result<()> {
        let dir = tempfile::tempdir().map_err(Error::file("make", "a folder"))?;
        let (root, picture) = (Root::alone(dir.path()), dir.path().join("photo.png"));
        let write = |name: &str, bytes: &[u8]| {
            fs::write(dir.path().join(name), bytes).map_err(Error::file("write", name))
        };
        let settings = || settings(&root, &picture);
        assert_eq!(settings()?, Settings::default());
        write("photo.txt", "\u{feff} a wave\n".as_bytes())?;
        write("photo.toml", b"seed = 5\n")?;
        let read = settings()?;
        assert_eq!((read.prompt.as_deref(), read.seed), (Some("a wave"), Some(5)));
        let error = || settings().expect_err("refused").to_string();
        write("photo.toml", b"prompt = \"b\"")?;
        assert_eq!(error(), "both `photo.toml` and `photo.txt` give a prompt; keep one");
        write("photo.toml", b"\nsed = 5\n")?;
        assert_eq!(error(), "photo.toml:2: unknown key `sed`; did you mean `seed`?");
        write("photo.toml", b"")?;
        write("photo.txt", b"one\ntwo \xff")?;
        assert_eq!(error(), "photo.txt:2: it is not valid UTF-8; save it as UTF-8");
        write("photo.txt", b" \n")?;
        assert_eq!(settings()?.prompt, None);
        fs::rename(dir.path().join("photo.txt"), dir.path().join("photo.TXT"))
            .map_err(Error::file("rename", "photo.txt"))?;
        write("photo.TXT", b"a wave")?;
        assert_eq!(settings()?.prompt.as_deref(), Some("a wave"));
        Ok(())
    }

    #[test]
    fn the_nearest_folder_wins_and_the_root_is_the_last() -> Result<()> {
        let dir = tempfile::tempdir().map_err(Error::file("make", "a folder"))?;
        let root = dir.path().join("root");
        let deep = root.join("a/b");
        fs::create_dir_all(&deep).map_err(Error::file("create", &deep))?;
        let write = |path: PathBuf, text: &str| fs::write(&path, text).map_err(Error::file("write", &path));
        write(dir.path().join("folder.toml"), "fps = 1\n")?;
        write(root.join("folder.toml"), "steps = 1\nframes = 5\nseed = 1\n")?;
        write(deep.join("folder.toml"), "steps = 3\nseed = 3\n")?;
        write(deep.join("photo.toml"), "seed = 4\n")?;
        let (root, top) = (Root::alone(&root), root);
        let read = settings(&root, &deep.join("photo.png"))?;
        assert_eq!((read.seed, read.steps, read.frames, read.fps), (Some(4), Some(3), Some(5), None));
        let read = settings(&root, &deep.join("folder.png"))?;
        assert_eq!(read.seed, Some(3), "a picture called folder does not own the folder's settings");
        write(top.join("a/folder.toml"), "\nsteeps = 3\n")?;
        let error = settings(&root, &deep.join("photo.png")).expect_err("refused").to_string();
        assert_eq!(error, "a/folder.toml:2: unknown key `steeps`; did you mean `steps`?");
        Ok(())
    }
}
