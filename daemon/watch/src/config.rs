//! What `animd-watch` watches: folders of the command line, or of `~/.config/animd/watch.toml`, or `~/Videos/animd`.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::mem::take;
use std::path::{Path, PathBuf};

use animd_common::config::tolerant;
use animd_common::files::show;
use animd_common::keys;
use animd_common::log;
use animd_common::places::{self, Role};
use animd_common::text;
use animd_common::watch::access;
use animd_protocol::request::Settings;
use serde::Deserialize;

use crate::{Error, Result};

/// Everything that can be configured, resolved.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// The folders; none overlaps another one.
    pub watch: Vec<Place>,
    /// The most jobs at a time; the service has its own limit, `queue.per_user`.
    pub per_user: usize,
    /// Whether to notify the desktop of videos and failures.
    pub notifications: bool,
    /// Seconds that a picture and its sidecar must lie unchanged.
    pub stable_seconds: f64,
    /// Seconds between two scans where the kernel does not report changes.
    pub poll_seconds: f64,
    /// Seconds between two scans of everything.
    pub rescan_seconds: f64,
    /// `error`, `warn`, `info`, `debug` or `trace`.
    pub log_level: String,
}

/// One watched folder.
#[derive(Clone, Debug, PartialEq)]
pub struct Place {
    /// The folder.
    pub path: PathBuf,
    /// Where its videos go.
    pub outbox: PathBuf,
    /// This folder's [`Config::stable_seconds`].
    pub stable_seconds: Option<f64>,
    /// The interval to poll it at, in seconds, without events.
    pub poll_seconds: Option<f64>,
    /// The settings of its pictures that do not give their own.
    pub settings: Settings,
}

impl Place {
    /// Returns its two folders, for the comparison with others.
    pub fn places(&self) -> [places::Place; 2] {
        [
            places::Place::new("watch.path", &self.path, Role::Inbox),
            places::Place::new("watch.outbox", &self.outbox, Role::Outbox),
        ]
    }
}

/// Where the configuration comes from.
#[derive(Clone, Debug, Default)]
pub struct Sources {
    /// `--config`
    pub file: Option<PathBuf>,
    /// Folders of the command line, in place of the file's.
    pub folders: Vec<PathBuf>,
    /// `--outbox`, for folders that name none.
    pub outbox: Option<PathBuf>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Written {
    per_user: usize,
    notifications: bool,
    stable_seconds: f64,
    poll_seconds: f64,
    rescan_seconds: f64,
    log_level: String,
    watch: Vec<WrittenPlace>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WrittenPlace {
    path: PathBuf,
    outbox: Option<PathBuf>,
    stable_seconds: Option<f64>,
    poll_seconds: Option<f64>,
    #[serde(default)]
    settings: Settings,
}

impl Default for Written {
    fn default() -> Self {
        Self {
            per_user: 100,
            notifications: true,
            stable_seconds: 2.0,
            poll_seconds: 5.0,
            rescan_seconds: 300.0,
            log_level: "info".into(),
            watch: Vec::new(),
        }
    }
}

impl Config {
    /// Reads the file, if there is one, and fills everything in.
    ///
    /// # Errors
    /// [`Error::Config`] has a line for each mistake, which names the file and the line, or the folder that cannot be watched.
    pub fn load(sources: &Sources, env: &dyn Fn(&str) -> Option<OsString>) -> Result<Self> {
        let absolute = |name: &str| env(name).map(PathBuf::from).filter(|path| path.is_absolute());
        let home = absolute("HOME").ok_or_else(|| Error::config("HOME is not set; set it"))?;
        let videos = absolute("XDG_VIDEOS_DIR").unwrap_or_else(|| home.join("Videos")).join("animd");
        let file = sources.file.clone().unwrap_or_else(|| {
            absolute("XDG_CONFIG_HOME").unwrap_or_else(|| home.join(".config")).join("animd/watch.toml")
        });
        let Read { written, mut mistakes } = read(&file, sources.file.is_some())?;
        let outbox = sources.outbox.clone().unwrap_or_else(|| videos.join("outbox"));
        let place = |path: PathBuf| Place {
            path,
            outbox: outbox.clone(),
            stable_seconds: None,
            poll_seconds: None,
            settings: Settings::default(),
        };
        let mut watch: Vec<Place> = if sources.folders.is_empty() {
            let of_file = written.watch.into_iter().map(|place| Place {
                path: at_home(&home, place.path),
                outbox: place.outbox.map_or_else(|| outbox.clone(), |outbox| at_home(&home, outbox)),
                stable_seconds: place.stable_seconds,
                poll_seconds: place.poll_seconds,
                settings: place.settings,
            });
            of_file.collect()
        } else {
            sources.folders.iter().cloned().map(place).collect()
        };
        if watch.is_empty() {
            watch.push(place(videos.join("inbox")));
        }
        let places: Vec<_> = watch.iter().flat_map(Place::places).collect();
        for overlap in places::overlaps(&[], &places) {
            let mistake = match sources.folders.is_empty() && file.exists() {
                true => format!("{}: {}", show(&file), overlap.sentence),
                false => overlap.sentence,
            };
            // Folders can share an outbox, which is then compared with the others as often.
            if !mistakes.contains(&mistake) {
                mistakes.push(mistake);
            }
        }
        if !mistakes.is_empty() {
            return Err(Error::config(mistakes.join("\n")));
        }
        Ok(Self {
            watch,
            per_user: written.per_user,
            notifications: written.notifications,
            stable_seconds: written.stable_seconds,
            poll_seconds: written.poll_seconds,
            rescan_seconds: written.rescan_seconds,
            log_level: written.log_level,
        })
    }

    /// Returns the folders for `--check`, one per line, with what would keep one from being watched.
    pub fn print(&self) -> String {
        let line = |place: &Place| {
            let trouble = if place.path.exists() { access::refusal(&place.path) } else { None };
            let trouble = trouble.map(|why| format!("  but: {why}\n")).unwrap_or_default();
            format!("`{}`: its videos go to `{}`\n{trouble}", show(&place.path), show(&place.outbox))
        };
        self.watch.iter().map(line).collect()
    }

    /// Returns the place whose watched folder this is.
    pub fn place(&self, root: &Path) -> Option<&Place> {
        self.watch.iter().find(|place| place.path == root)
    }
}

/// The file, as far as it can be read.
#[derive(Default)]
struct Read {
    written: Written,
    /// A sentence for each mistake, with its place.
    mistakes: Vec<String>,
}

fn read(file: &Path, asked: bool) -> Result<Read> {
    let bytes = match fs::read(file) {
        Ok(bytes) => bytes,
        Err(e) if e.kind() == io::ErrorKind::NotFound && !asked => return Ok(Read::default()),
        Err(e) => {
            return Err(Error::config(format!("cannot read the configuration `{}`: {e}", show(file))));
        }
    };
    let text = text::decode(bytes).map_err(|e| Error::config(e.of(&show(file))))?;
    let mut read = tolerant::read::<Written>(&text, |_| None)
        .map_err(|e| Error::config(keys::explain(file, &text, &e)))?;
    read.mistakes.sort_by_key(|(at, _)| *at);
    let say = |(at, sentence): (Option<usize>, String)| match at {
        Some(at) => format!("{}:{}: {sentence}", show(file), keys::line(&text, at)),
        None => format!("{}: {sentence}", show(file)),
    };
    let mut mistakes: Vec<String> = read.mistakes.into_iter().map(say).collect();
    let mut written = read.value.unwrap_or_default();
    mistakes.extend(check(&mut written).into_iter().map(|mistake| format!("{}: {mistake}", show(file))));
    Ok(Read { written, mistakes })
}

/// Returns a sentence for each value that no type excludes and that cannot be used, and puts the settings of folders in
/// order.
fn check(written: &mut Written) -> Vec<String> {
    let mut mistakes = Vec::new();
    let mut number = |of: &str, name: &str, value: f64, low: f64, high: f64| {
        if !(low..=high).contains(&value) {
            mistakes.push(format!("{of}{name} {value} is not from {low} to {high}"));
        }
    };
    number("", "per_user", written.per_user as f64, 1.0, 1e6);
    number("", "stable_seconds", written.stable_seconds, 0.0, 3600.0);
    number("", "poll_seconds", written.poll_seconds, 0.1, 3600.0);
    number("", "rescan_seconds", written.rescan_seconds, 1.0, 86_400.0);
    for place in &written.watch {
        let of = of_place(place);
        if let Some(seconds) = place.stable_seconds {
            number(&of, "watch.stable_seconds", seconds, 0.0, 3600.0);
        }
        if let Some(seconds) = place.poll_seconds {
            number(&of, "watch.poll_seconds", seconds, 0.1, 3600.0);
        }
    }
    for place in &mut written.watch {
        let of = of_place(place);
        match text::settings(take(&mut place.settings)) {
            Ok(settings) => place.settings = settings,
            Err(e) => mistakes.push(format!("{of}{e}")),
        }
        for (key, path) in [("path", Some(&place.path)), ("outbox", place.outbox.as_ref())] {
            if let Some(Err(e)) = path.map(text::without_zero) {
                mistakes.push(format!("{of}`{key}`: {e}"));
            }
        }
    }
    if let Err(e) = log::filter(&written.log_level) {
        mistakes.push(e.to_string().replacen("log.level", "log_level", 1));
    }
    mistakes
}

/// Returns the beginning of a sentence about a watched folder.
fn of_place(place: &WrittenPlace) -> String {
    format!("[[watch]] `{}`: ", show(&place.path))
}

/// Returns `~/x` or `x` as a path in the home folder.
fn at_home(home: &Path, path: PathBuf) -> PathBuf {
    match path.strip_prefix("~") {
        Ok(below) => home.join(below),
        Err(_) => home.join(path),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(text: &str, folders: &[&str]) -> Result<Config> {
        let dir = tempfile::tempdir().map_err(Error::file("make", "a folder"))?;
        let file = dir.path().join("watch.toml");
        fs::write(&file, text).map_err(Error::file("write", &file))?;
        let folders = folders.iter().map(PathBuf::from).collect();
        Config::load(&Sources { file: Some(file), folders, outbox: None }, &|name| {
            (name == "HOME").then(|| "/home/ann".into())
        })
    }

    #[test]
    fn folders_come_from_the_file_or_the_command_line_or_are_the_usual_ones() -> Result<()> {
        let usual = load("", &[])?;
        assert_eq!(usual.watch[0].path, Path::new("/home/ann/Videos/animd/inbox"));
        assert_eq!(usual.watch[0].outbox, Path::new("/home/ann/Videos/animd/outbox"));
        let text = "[[watch]]\npath = \"~/Pictures/animate\"\n[watch.settings]\nsteps = 4\n\
                    [[watch]]\npath = \"/srv/x\"\noutbox = \"Videos/x\"\n";
        let config = load(text, &[])?;
        assert_eq!(config.watch[0].path, Path::new("/home/ann/Pictures/animate"));
        assert_eq!(config.watch[0].settings.steps, Some(4));
        assert_eq!(config.watch[1].outbox, Path::new("/home/ann/Videos/x"));
        let given = load(text, &["/given"])?;
        assert_eq!((given.watch.len(), given.watch[0].path.as_path()), (1, Path::new("/given")));
        Ok(())
    }

    #[test]
    fn the_example_has_every_key_with_its_default() -> Result<()> {
        let text = include_str!("../../../configs/user/watch.toml");
        assert_eq!(load(text, &[])?, load("", &[])?, "all of it is commented out");
        let lines = text.lines().filter_map(|line| line.strip_prefix('#'));
        let keys: Vec<&str> = lines.filter(|line| !line.starts_with(' ')).collect();
        let keys = keys.join("\n");
        let (all, none) = (load(&keys, &[])?, load("", &[])?);
        assert_eq!(Config { watch: none.watch.clone(), ..all.clone() }, none);
        for key in
            ["per_user", "notifications", "stable_seconds", "poll_seconds", "rescan_seconds", "log_level"]
        {
            assert!(keys.contains(&format!("{key} = ")), "{key}");
        }
        let place = &all.watch[0];
        assert_eq!((place.stable_seconds, place.poll_seconds), (Some(2.0), Some(5.0)));
        assert_eq!(place.path, Path::new("/home/ann/Pictures/animate"));
        assert_eq!(place.outbox, Path::new("/home/ann/Videos/animate"));
        assert_eq!(place.settings.frames, Some(81));
        Ok(())
    }

    #[test]
    fn all_mistakes_are_told_at_once() {
        let text = "per_user = 0\nnotification = false\nlog_level = \"inof\"\npoll_seconds = \"often\"\n\
                    [[watch]]\npath = \"~/a\"\nstable_seconds = -1.0\n[watch.settings]\nsteeps = 4\nprompt = \"a\\u0000\"\n\
                    [[watch]]\noutbox = \"~/b\"\n[[watch]]\npath = \"~/a/c\"\npoll_seconds = 0.0\n";
        let error = load(text, &[]).expect_err("refused").to_string();
        let lines: Vec<&str> =
            error.lines().map(|line| line.split_once("watch.toml:").map_or(line, |(_, rest)| rest)).collect();
        let expected = [
            "2: unknown key `notification`; did you mean `notifications`?",
            "4: poll_seconds must be a number, not \"often\"",
            "9: unknown key `steeps`; did you mean `steps`?",
            "11: `path` is missing, and must be given",
            " per_user 0 is not from 1 to 1000000",
            " [[watch]] `~/a`: watch.stable_seconds -1 is not from 0 to 3600",
            " [[watch]] `~/a/c`: watch.poll_seconds 0 is not from 0.1 to 3600",
            " [[watch]] `~/a`: `prompt`: it has the control character U+0000",
            " log_level `inof` is no level; did you mean `info`?",
            " `/home/ann/a/c` (watch.path) lies in the watched folder `/home/ann/a` (watch.path)",
        ];
        assert_eq!(lines.len(), expected.len(), "{error}");
        for (line, expected) in lines.iter().zip(expected) {
            assert!(line.starts_with(expected), "{line}\n{expected}");
        }
    }

    #[test]
    fn mistakes_are_named() {
        let error = |text: &str| load(text, &[]).expect_err("refused").to_string();
        let text = error("per_user = 3\n\nnotification = false\n");
        assert!(
            text.ends_with("watch.toml:3: unknown key `notification`; did you mean `notifications`?"),
            "{text}"
        );
        assert!(error("poll_seconds = 0.0").contains("poll_seconds 0 is not from 0.1 to 3600"));
        let text = error("[[watch]]\npath = \"~/a\"\n[[watch]]\npath = \"~/a/b\"\n");
        assert!(text.contains("lies in the watched folder `/home/ann/a`"), "{text}");
        let text = error("[[watch]]\npath = \"~/a\"\noutbox = \"~/a/videos\"\n");
        assert!(text.contains("taken for pictures"), "{text}");
    }
}
