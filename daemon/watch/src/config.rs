//! What `animd-watch` watches: folders of the command line, or of `~/.config/animd/watch.toml`, or `~/Videos/animd`.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::mem::take;
use std::path::{Path, PathBuf};

use animd_common::files::show;
use animd_common::keys;
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
    /// [`Error::Config`] names the file and the line, or the folder that cannot be watched.
    pub fn load(sources: &Sources, env: &dyn Fn(&str) -> Option<OsString>) -> Result<Self> {
        let absolute = |name: &str| env(name).map(PathBuf::from).filter(|path| path.is_absolute());
        let home = absolute("HOME").ok_or_else(|| Error::config("HOME is not set; set it"))?;
        let videos = absolute("XDG_VIDEOS_DIR").unwrap_or_else(|| home.join("Videos")).join("animd");
        let file = sources.file.clone().unwrap_or_else(|| {
            absolute("XDG_CONFIG_HOME").unwrap_or_else(|| home.join(".config")).join("animd/watch.toml")
        });
        let written = read(&file, sources.file.is_some())?;
        check(&file, &written)?;
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
        if let Some(overlap) = places::overlap(&[], &places) {
            return Err(Error::config(match sources.folders.is_empty() && file.exists() {
                true => format!("{}: {}", show(&file), overlap.sentence),
                false => overlap.sentence,
            }));
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

fn read(file: &Path, asked: bool) -> Result<Written> {
    let bytes = match fs::read(file) {
        Ok(bytes) => bytes,
        Err(e) if e.kind() == io::ErrorKind::NotFound && !asked => return Ok(Written::default()),
        Err(e) => {
            return Err(Error::config(format!("cannot read the configuration `{}`: {e}", show(file))));
        }
    };
    let text = text::decode(bytes).map_err(|e| Error::config(e.of(&show(file))))?;
    let mut written: Written =
        toml::from_str(&text).map_err(|e| Error::config(keys::explain(file, &text, &e)))?;
    for place in &mut written.watch {
        let refuse =
            |e: String| Error::config(format!("{}: [[watch]] `{}`: {e}", show(file), show(&place.path)));
        place.settings = text::settings(take(&mut place.settings)).map_err(refuse)?;
        for (key, path) in [("path", Some(&place.path)), ("outbox", place.outbox.as_ref())] {
            let Some(path) = path else { continue };
            text::without_zero(path).map_err(|e| refuse(format!("`{key}`: {e}")))?;
        }
    }
    Ok(written)
}

fn check(file: &Path, written: &Written) -> Result<()> {
    let mut numbers = vec![
        ("per_user", written.per_user as f64, 1.0, 1e6),
        ("stable_seconds", written.stable_seconds, 0.0, 3600.0),
        ("poll_seconds", written.poll_seconds, 0.1, 3600.0),
        ("rescan_seconds", written.rescan_seconds, 1.0, 86_400.0),
    ];
    for place in &written.watch {
        numbers.extend(place.stable_seconds.map(|x| ("watch.stable_seconds", x, 0.0, 3600.0)));
        numbers.extend(place.poll_seconds.map(|x| ("watch.poll_seconds", x, 0.1, 3600.0)));
    }
    match numbers.into_iter().find(|(_, value, low, high)| !(low..=high).contains(&value)) {
        Some((name, value, low, high)) => {
            let text = format!("{}: {name} {value} is not from {low} to {high}", show(file));
            Err(Error::config(text))
        }
        None => Ok(()),
    }
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
