//! Reads the sidecars of a picture, and the `folder.toml` of its folder and the ones above. [`find`] has their names.

pub mod find;
mod last;

use std::io;
use std::path::{Path, PathBuf};

use animd_protocol::request::{Request, Settings};
use animd_protocol::{ErrorCode, InvalidSetting};
use find::{Deciders, Kind, Sidecar};

use super::names::FOLDER_SETTINGS;
use super::root::{self, Dir, Root};
use crate::clock::now_us;
use crate::files::show;
use crate::keys;
use crate::text;
use crate::{Error, Result};

pub use find::beside;
pub use last::open_last;

/// The largest sidecar, in bytes.
pub const MAX_BYTES: u64 = 1 << 20;

/// Returns what a picture's sidecars say, then its folder's `folder.toml`, then the ones of the folders above, up to
/// `root`. A sidecar with the picture's whole name comes before one that other pictures may share. An empty text says
/// nothing: there is a prompt for pictures that come without one.
///
/// # Errors
/// [`Error::Refused`] names the file and the line.
pub fn settings(root: &Root, picture: &Path) -> Result<Settings> {
    let mut settings = Settings::default();
    let mut owner = None;
    if let Ok(dir) = Dir::of(root, picture) {
        let name = picture.file_name().unwrap_or_default();
        owner = find::owner(&dir, name);
        let found = find::found(&dir, name, owner);
        let read = |kinds: &[Kind]| -> Result<Option<(PathBuf, Kind, String)>> {
            let mut of_kind: Vec<(&Sidecar, String)> = Vec::new();
            for sidecar in found.iter().filter(|sidecar| kinds.contains(&sidecar.kind)) {
                let path = picture.with_file_name(&sidecar.name);
                let Some(text) = read(root, &path, owner)? else { continue };
                if !text.trim().is_empty() && (sidecar.kind != Kind::Json || is_settings(&text)) {
                    of_kind.push((sidecar, text));
                }
            }
            let exact = of_kind.iter().any(|(sidecar, _)| sidecar.exact);
            of_kind.retain(|(sidecar, _)| sidecar.exact == exact);
            let mut of_kind =
                of_kind.into_iter().map(|(s, text)| (picture.with_file_name(&s.name), s.kind, text));
            match (of_kind.next(), of_kind.next()) {
                (Some((one, ..)), Some((other, kind, _))) => {
                    let what = if kind == Kind::Text { "a prompt" } else { "settings" };
                    Err(keep_one(root, &one, &other, what))
                }
                (first, _) => Ok(first),
            }
        };
        let given = read(&[Kind::Toml, Kind::Json])?;
        if let Some((path, kind, text)) = &given {
            settings =
                if *kind == Kind::Json { parse_json(root, path, text) } else { parse(root, path, text) }?;
        }
        if let Some((path, _, text)) = read(&[Kind::Text])? {
            if let (Some(_), Some((other, ..))) = (&settings.prompt, &given) {
                return Err(keep_one(root, other, &path, "a prompt"));
            }
            let prompt = text::prompt(&text)
                .map_err(|e| Error::refused(ErrorCode::InvalidSetting, e.of(&name_of(root, &path))))?;
            settings.prompt = Some(prompt.trim().to_owned());
        }
    }
    let pair = last::beside(root, picture, &settings)?;
    if pair.is_some() {
        settings.last = pair;
    }
    // What a picture's own files say of its end outranks what the folders' files say of it, in either way.
    if settings.last.is_some() {
        settings.looped.get_or_insert(false);
    } else if settings.looped == Some(true) {
        settings.last = Some(String::new());
    }
    for folder in picture.ancestors().skip(1).take_while(|folder| folder.starts_with(root.path())) {
        let path = folder.join(FOLDER_SETTINGS);
        if let Some(text) = read(root, &path, owner)? {
            settings = settings.or(parse(root, &path, &text)?);
        }
    }
    Ok(settings)
}

fn keep_one(root: &Root, one: &Path, other: &Path, what: &str) -> Error {
    let text = format!("both `{}` and `{}` give {what}; keep one", name_of(root, one), name_of(root, other));
    Error::refused(ErrorCode::InvalidSetting, text)
}

/// Returns when a picture's sidecars last changed, in microseconds since the epoch; `None` without any.
pub fn changed_us(root: &Root, picture: &Path) -> Option<i64> {
    let dir = Dir::of(root, picture).ok()?;
    let name = picture.file_name()?;
    let found = find::found(&dir, name, find::owner(&dir, name));
    found.iter().map(|sidecar| stat_changed_us(&sidecar.stat)).max()
}

/// Returns when a file was last changed, moved or written, in microseconds since the epoch.
#[expect(clippy::unnecessary_cast, reason = "the types differ between architectures")]
pub fn stat_changed_us(stat: &rustix::fs::Stat) -> i64 {
    (stat.st_ctime as i64).saturating_mul(1_000_000).saturating_add(stat.st_ctime_nsec as i64 / 1000)
}

/// Microseconds by which the times of files may lag behind the clock: a tick of a kernel that counts a hundred a second.
const TICK_US: i64 = 10_000;

/// Returns the time to write down before sidecars are read: now, or when they changed, by the clock of their file
/// system, which may be ahead of ours. Rather too early than too late: what changed is read again before it counts.
pub fn read_us(root: &Root, picture: &Path) -> i64 {
    changed_us(root, picture).unwrap_or_default().max(now_us() - TICK_US)
}

/// Returns the request of a picture: `resolve` completes the settings of [`settings`]. Its errors name the sidecar.
pub fn request(
    root: &Root,
    picture: &Path,
    resolve: impl FnOnce(Settings) -> Result<Request, InvalidSetting>,
) -> Result<Request> {
    let own = settings(root, picture)?;
    let exists = |path: &PathBuf| root::metadata(root, path).is_ok();
    resolve(own).map_err(|e| {
        let beside = beside(root, picture).into_iter().next();
        let above = || {
            let mut folders =
                picture.ancestors().skip(1).take_while(|folder| folder.starts_with(root.path()));
            folders.find_map(|folder| Some(folder.join(FOLDER_SETTINGS)).filter(exists))
        };
        match beside.or_else(above) {
            Some(path) => Error::refused(ErrorCode::InvalidSetting, format!("{}: {e}", name_of(root, &path))),
            None => e.into(),
        }
    })
}

/// Returns a path as its user knows it.
fn name_of(root: &Root, path: &Path) -> String {
    show(path.strip_prefix(root.path()).unwrap_or(path))
}

fn parse(root: &Root, path: &Path, text: &str) -> Result<Settings> {
    let file = path.strip_prefix(root.path()).unwrap_or(path);
    keys::settings_from_toml(file, text).map_err(|e| Error::refused(ErrorCode::InvalidSetting, e))
}

fn parse_json(root: &Root, path: &Path, text: &str) -> Result<Settings> {
    let file = path.strip_prefix(root.path()).unwrap_or(path);
    keys::settings_from_json(file, text).map_err(|e| Error::refused(ErrorCode::InvalidSetting, e))
}

/// Returns whether a JSON file is about settings: photo services put other JSON beside pictures. What is no JSON may be
/// meant as settings.
fn is_settings(text: &str) -> bool {
    match serde_json::from_str(text) {
        Ok(serde_json::Value::Object(map)) => map.keys().any(|key| keys::SETTINGS.contains(&key.as_str())),
        Ok(_) => false,
        Err(_) => true,
    }
}

/// Returns the text of a sidecar or a folder's settings; `None` if there is no such file, or if it does not count for the
/// pictures of `owner`.
fn read(root: &Root, path: &Path, owner: Option<u32>) -> Result<Option<String>> {
    let bytes = Dir::of(root, path).and_then(|dir| {
        let deciders = Deciders::new(owner, &dir)?;
        deciders.read(&dir, path.file_name().unwrap_or_default(), MAX_BYTES)
    });
    let bytes = match bytes {
        Ok(Some(bytes)) => bytes,
        Ok(None) => {
            tracing::debug!("`{}` is another user's and does not count", name_of(root, path));
            return Ok(None);
        }
        Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            return Ok(None);
        }
        Err(e) if root::is_swapped(&e) => return Err(Error::file("read", path)(e)),
        Err(e) => {
            let text = format!("`{}`, which may hold its settings, cannot be read: {e}", name_of(root, path));
            return Err(Error::refused(ErrorCode::File, text));
        }
    };
    let text = text::decode(bytes)
        .map_err(|e| Error::refused(ErrorCode::InvalidSetting, e.of(&name_of(root, path))))?;
    Ok(Some(text))
}

#[cfg(test)]
mod tests {
    use std::fs;

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
    fn a_sidecar_has_every_name_that_people_give_it() -> Result<()> {
        for name in [
            "two.txt",
            "two.TXT",
            "two.Txt",
            "two.png.txt",
            "two.png.TXT",
            "two.caption",
            "two.png.caption",
            "two.text",
            "two.prompt",
        ] {
            let dir = tempfile::tempdir().map_err(Error::file("make", "a folder"))?;
            let (root, picture) = (Root::alone(dir.path()), dir.path().join("two.png"));
            fs::write(dir.path().join(name), "rain falls\n").map_err(Error::file("write", name))?;
            assert_eq!(settings(&root, &picture)?.prompt.as_deref(), Some("rain falls"), "{name}");
            assert_eq!(beside(&root, &picture), [dir.path().join(name)]);
        }
        for (name, text) in [
            ("two.toml", "seed = 5"),
            ("two.png.toml", "seed = 5"),
            ("two.json", "{\"seed\": 5}"),
            ("two.png.JSON", "{\n\"seed\": 5, \"prompt\": \"a\"}"),
        ] {
            let dir = tempfile::tempdir().map_err(Error::file("make", "a folder"))?;
            let (root, picture) = (Root::alone(dir.path()), dir.path().join("two.png"));
            fs::write(dir.path().join(name), text).map_err(Error::file("write", name))?;
            assert_eq!(settings(&root, &picture)?.seed, Some(5), "{name}");
        }
        Ok(())
    }

    #[test]
    fn the_whole_name_comes_first_and_two_of_a_kind_are_refused() -> Result<()> {
        let dir = tempfile::tempdir().map_err(Error::file("make", "a folder"))?;
        let root = Root::alone(dir.path());
        let write = |name: &str, text: &str| {
            fs::write(dir.path().join(name), text).map_err(Error::file("write", name))
        };
        let prompt = |picture: &str| settings(&root, &dir.path().join(picture)).map(|s| s.prompt);
        write("two.txt", "both")?;
        write("two.png.txt", "mine")?;
        assert_eq!(prompt("two.png")?.as_deref(), Some("mine"));
        assert_eq!(prompt("two.jpg")?.as_deref(), Some("both"));
        write("two.caption", "another")?;
        let error = prompt("two.jpg").expect_err("two of a kind").to_string();
        assert_eq!(error, "both `two.txt` and `two.caption` give a prompt; keep one");
        // What photo services write beside pictures is nobody's setting.
        write("three.png.json", "{\"title\": \"three.png\", \"description\": \"x\"}")?;
        assert_eq!(settings(&root, &dir.path().join("three.png"))?, Settings::default());
        write("four.json", "{\n  \"seed\": 5,\n  \"sede\": 5\n}")?;
        let error = settings(&root, &dir.path().join("four.png")).expect_err("unknown").to_string();
        assert_eq!(error, "four.json:3: unknown key `sede`; did you mean `seed`?");
        Ok(())
    }

    #[test]
    fn only_those_who_may_decide_decide() -> Result<()> {
        if !rustix::process::geteuid().is_root() {
            return Ok(());
        }
        let dir = tempfile::tempdir().map_err(Error::file("make", "a folder"))?;
        let folder = dir.path().join("folder");
        fs::create_dir(&folder).map_err(Error::file("create", &folder))?;
        let (root, picture) = (Root::alone(dir.path()), folder.join("photo.png"));
        let own = |path: &Path, uid| {
            std::os::unix::fs::chown(path, Some(uid), None).map_err(Error::file("own", path))
        };
        for (name, text) in [("photo.png", ""), ("photo.txt", "a wave"), ("folder.toml", "seed = 5")] {
            fs::write(folder.join(name), text).map_err(Error::file("write", name))?;
        }
        own(&folder, 3)?;
        own(&picture, 4)?;
        for (uid, counts) in [(0, true), (3, true), (4, true), (5, false)] {
            own(&folder.join("photo.txt"), uid)?;
            own(&folder.join("folder.toml"), uid)?;
            let read = settings(&root, &picture)?;
            assert_eq!((read.prompt.is_some(), read.seed.is_some()), (counts, counts), "user {uid}");
            assert_eq!(beside(&root, &picture).len(), usize::from(counts), "user {uid}");
        }
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
