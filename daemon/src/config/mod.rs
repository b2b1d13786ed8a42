//! The configuration: built-in defaults, a TOML file, variables `ANIMD_SECTION_KEY`, and the command line, each over
//! the one before.

mod sections;

use std::ffi::OsString;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use animd_engine::request::Settings;
use serde::{Deserialize, Serialize};
use toml::{Table, Value};

use crate::files::show;
use crate::keys;
use crate::{Error, Result};

pub use sections::{Engine, Folders, Inbox, Log, Model, Power, Profile, Queue, Retention, Watch};

/// The file that is read without `--config`, where there is one.
pub const SYSTEM_FILE: &str = "/etc/animd/animd.toml";

/// Everything that can be configured, resolved. `configs/animd.toml` has each key with its comment.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// `[model]`
    pub model: Model,
    /// `[engine]`
    pub engine: Engine,
    /// `[profile]`
    pub profile: Profile,
    /// `[folders]`
    pub folders: Folders,
    /// `[inbox]`
    pub inbox: Inbox,
    /// `[queue]`
    pub queue: Queue,
    /// `[retention]`
    pub retention: Retention,
    /// `[power]`
    pub power: Power,
    /// `[log]`
    pub log: Log,
    /// `[defaults]`: what a job gets that does not say otherwise.
    pub defaults: Settings,
    /// `[[watch]]`: watched folders besides the inbox.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub watch: Vec<Watch>,
}

/// What the service needs to know to find its configuration.
#[derive(Clone, Debug, Default)]
pub struct Sources {
    /// `--config`
    pub file: Option<PathBuf>,
    /// `--user`
    pub user: bool,
    /// The command line's own values, over everything else.
    pub overrides: Table,
}

/// The prompt for a picture that comes without one: little happens, and the camera stays where it is.
pub const NEUTRAL_PROMPT: &str = "The scene comes gently to life with natural, subtle motion. The camera is fixed and steady; the \
composition, the subjects and the lighting stay as they are in the picture.";

impl Config {
    /// Reads all layers.
    ///
    /// # Errors
    /// [`Error::Config`] names the file and the line, or the variable, and the nearest right key.
    pub fn load(sources: &Sources, vars: impl IntoIterator<Item = (OsString, OsString)>) -> Result<Self> {
        let vars: Vec<_> = vars.into_iter().collect();
        let env = |name: &str| vars.iter().find(|(n, _)| n == name).map(|(_, value)| value.clone());
        let mut defaults = Self::default();
        defaults.defaults.prompt = Some(NEUTRAL_PROMPT.into());
        if sources.user {
            defaults.folders = Folders::of_user(&env)?;
        }
        let mut layers = Table::try_from(&defaults).map_err(|e| Error::Config(e.to_string()))?;
        if let Some((path, text)) = read_file(sources, &env)? {
            // Into the type first: only then do errors know their line.
            toml::from_str::<Self>(&text).map_err(|e| Error::Config(keys::explain(&path, &text, &e)))?;
            let mut file: Table =
                toml::from_str(&text).map_err(|e| Error::Config(keys::explain(&path, &text, &e)))?;
            absolute(&mut file, path.parent().unwrap_or(Path::new("/")));
            merge(&mut layers, file);
        }
        for (name, value) in &vars {
            let Some(name) = name.to_str().filter(|n| n.starts_with("ANIMD_") && *n != "ANIMD_CONFIG") else {
                continue;
            };
            let value = value.to_str().ok_or_else(|| Error::Config(format!("{name} is not valid UTF-8")))?;
            merge(&mut layers, variable(name, value)?);
        }
        merge(&mut layers, sources.overrides.clone());
        let config: Self =
            layers.try_into().map_err(|e: toml::de::Error| Error::Config(keys::with_hint(e.message())))?;
        config.check()?;
        Ok(config)
    }

    fn check(&self) -> Result<()> {
        let refuse = |text: String| Err(Error::Config(text));
        for (name, value, low, high) in [
            ("inbox.stable_seconds", self.inbox.stable_seconds, 0.0, 3600.0),
            ("inbox.poll_seconds", self.inbox.poll_seconds, 0.1, 3600.0),
            ("inbox.rescan_seconds", self.inbox.rescan_seconds, 1.0, 86_400.0),
        ] {
            if !(low..=high).contains(&value) {
                return refuse(format!("{name} {value} is not from {low} to {high}"));
            }
        }
        for (name, value, low, high) in [
            ("engine.heartbeat_seconds", self.engine.heartbeat_seconds, 5, 3600),
            ("engine.start_seconds", self.engine.start_seconds, 1, 3600),
            ("engine.cancel_seconds", self.engine.cancel_seconds, 1, 3600),
            ("queue.attempts", self.queue.attempts.into(), 1, 100),
            ("queue.interruptions", self.queue.interruptions.into(), 1, 10_000),
            ("queue.per_user", self.queue.per_user.into(), 1, 1_000_000),
            ("queue.total", self.queue.total.into(), 1, 10_000_000),
        ] {
            if !(low..=high).contains(&value) {
                return refuse(format!("{name} {value} is not from {low} to {high}"));
            }
        }
        let Folders { inbox, outbox, state } = &self.folders;
        for (name, dir) in [("inbox", inbox), ("outbox", outbox), ("state", state)] {
            if !dir.is_absolute() {
                return refuse(format!("folders.{name} `{}` is not an absolute path", show(dir)));
            }
        }
        if inbox == outbox || state == inbox || state == outbox {
            return refuse(
                "folders.inbox, folders.outbox and folders.state must be three different folders".into(),
            );
        }
        // A wrong default would fail every job: better to say so now.
        self.defaults.clone().resolve(|| 0).map_err(|e| Error::Config(format!("[defaults]: {e}")))?;
        Ok(())
    }

    /// The engine's program.
    pub fn engine_program(&self) -> PathBuf {
        if let Some(program) = &self.engine.program {
            return program.clone();
        }
        let beside = std::env::current_exe().ok().and_then(|exe| Some(exe.parent()?.join("animd-engine")));
        beside.filter(|path| path.exists()).unwrap_or_else(|| "/usr/libexec/animd/engine".into())
    }
}

fn read_file(sources: &Sources, env: &dyn Fn(&str) -> Option<OsString>) -> Result<Option<(PathBuf, String)>> {
    let asked = sources.file.clone().or_else(|| env("ANIMD_CONFIG").map(PathBuf::from));
    let path = match &asked {
        Some(path) => std::path::absolute(path).map_err(Error::file("find", path))?,
        None if sources.user => {
            let base = env("XDG_CONFIG_HOME")
                .map(PathBuf::from)
                .filter(|path| path.is_absolute())
                .or_else(|| Some(PathBuf::from(env("HOME")?).join(".config")));
            match base {
                Some(base) => base.join("animd/animd.toml"),
                None => return Ok(None),
            }
        }
        None => SYSTEM_FILE.into(),
    };
    match fs::read(&path) {
        Ok(bytes) => match String::from_utf8(bytes) {
            Ok(text) => Ok(Some((path, text))),
            Err(_) => Err(Error::Config(format!("{}: it is not valid UTF-8", show(&path)))),
        },
        Err(e) if e.kind() == io::ErrorKind::NotFound && asked.is_none() => Ok(None),
        Err(e) => Err(Error::Config(format!("cannot read the configuration `{}`: {e}", show(&path)))),
    }
}

/// Paths in a file are relative to the file's own folder.
fn absolute(file: &mut Table, dir: &Path) {
    for (section, key) in [
        ("model", "path"),
        ("model", "dit"),
        ("engine", "program"),
        ("folders", "inbox"),
        ("folders", "outbox"),
        ("folders", "state"),
    ] {
        if let Some(Value::String(path)) = file.get_mut(section).and_then(|s| s.get_mut(key))
            && let Some(full) = dir.join(&path).to_str()
        {
            full.clone_into(path);
        }
    }
}

fn merge(under: &mut Table, over: Table) {
    for (key, value) in over {
        match (under.get_mut(&key), value) {
            (Some(Value::Table(under)), Value::Table(over)) => merge(under, over),
            (_, value) => _ = under.insert(key, value),
        }
    }
}

/// `ANIMD_QUEUE_FREE_MIB=100` as `[queue] free_mib = 100`.
fn variable(name: &str, value: &str) -> Result<Table> {
    const SECTIONS: [&str; 10] =
        ["model", "engine", "profile", "folders", "inbox", "queue", "retention", "power", "log", "defaults"];
    let key = name["ANIMD_".len()..].to_lowercase();
    let Some((section, key)) = key.split_once('_').filter(|(section, _)| SECTIONS.contains(section)) else {
        let near = keys::nearest(key.split('_').next().unwrap_or_default(), SECTIONS);
        let near =
            near.map(|s| format!("; did you mean ANIMD_{}_...?", s.to_uppercase())).unwrap_or_default();
        return Err(Error::Config(format!("unknown variable {name}{near}")));
    };
    let table = |value: Value| {
        let mut inner = Table::new();
        inner.insert(key.to_owned(), value);
        Table::from_iter([(section.to_owned(), Value::Table(inner))])
    };
    // A number where the key takes one, text otherwise.
    let plain = toml::from_str::<Table>(&format!("v = {value}")).ok().and_then(|mut t| t.remove("v"));
    let candidates = [plain, Some(Value::String(value.to_owned()))];
    let mut first = None;
    for value in candidates.into_iter().flatten() {
        let layer = table(value);
        match layer.clone().try_into::<Config>() {
            Ok(_) => return Ok(layer),
            Err(e) => _ = first.get_or_insert(e),
        }
    }
    let why = first.map(|e| keys::with_hint(e.message())).unwrap_or_default();
    Err(Error::Config(format!("variable {name}: {why}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(text: &str, vars: &[(&str, &str)]) -> Result<Config> {
        let dir = tempfile::tempdir().map_err(Error::file("make", "a folder"))?;
        let file = dir.path().join("animd.toml");
        fs::write(&file, text).map_err(Error::file("write", &file))?;
        let sources = Sources { file: Some(file), ..Sources::default() };
        Config::load(&sources, vars.iter().map(|(n, v)| (OsString::from(n), OsString::from(v))))
    }

    #[test]
    fn later_layers_win_and_the_rest_stays() -> Result<()> {
        let config = load(
            "[queue]\nattempts = 5\nfree_mib = 7\n[defaults]\nsteps = 4\n",
            &[
                ("ANIMD_QUEUE_FREE_MIB", "9"),
                ("ANIMD_MODEL_PATH", "/m"),
                ("HOME", "/home/a"),
                ("ANIMD_DEFAULTS_SIZE", "720p"),
            ],
        )?;
        assert_eq!((config.queue.attempts, config.queue.free_mib), (5, 9));
        assert_eq!(config.model.path.as_deref(), Some(Path::new("/m")));
        assert_eq!(
            (config.defaults.steps, config.defaults.prompt.as_deref()),
            (Some(4), Some(NEUTRAL_PROMPT))
        );
        assert_eq!(config.defaults.size, Some(animd_engine::request::Size::P720));
        assert_eq!(config.folders, Folders::default());
        Ok(())
    }

    #[test]
    fn mistakes_are_named_with_their_place() {
        let error = |text, vars: &[(&str, &str)]| load(text, vars).expect_err("refused").to_string();
        let e = error("[queue]\n\natempts = 5\n", &[]);
        assert!(e.ends_with("animd.toml:3: unknown key `atempts`; did you mean `attempts`?"), "{e}");
        let e = error("[queue]\nattempts = \"x\"\n", &[]);
        assert!(e.contains("animd.toml:2: invalid type"), "{e}");
        assert!(error("[queue\n", &[]).contains("animd.toml:1:"));
        assert!(error("[queue]\nattempts = 0", &[]).contains("queue.attempts 0 is not from 1"));
        let e = error("", &[("ANIMD_QUEU_FREE_MIB", "9")]);
        assert_eq!(e, "unknown variable ANIMD_QUEU_FREE_MIB; did you mean ANIMD_QUEUE_...?");
        let e = error("", &[("ANIMD_QUEUE_FRE_MIB", "9")]);
        assert_eq!(e, "variable ANIMD_QUEUE_FRE_MIB: unknown key `fre_mib`; did you mean `free_mib`?");
        assert!(error("[defaults]\nframes = 80\n", &[]).contains("[defaults]: frames 80"));
        let sources = Sources { file: Some("/nowhere/animd.toml".into()), ..Sources::default() };
        assert!(Config::load(&sources, []).is_err_and(|e| e.to_string().contains("/nowhere/animd.toml")));
    }

    #[test]
    fn a_user_has_folders_of_their_own() -> Result<()> {
        let sources = Sources { user: true, ..Sources::default() };
        let config = Config::load(&sources, [("HOME".into(), "/home/a".into())])?;
        assert_eq!(config.folders.inbox, Path::new("/home/a/Videos/animd/inbox"));
        assert_eq!(config.folders.state, Path::new("/home/a/.local/state/animd"));
        Ok(())
    }

    #[test]
    fn the_shipped_file_is_the_defaults() -> Result<()> {
        // Every key is there, commented out; read with the comment signs gone, it is what is built in.
        let text: String = include_str!("../../../configs/animd.toml")
            .lines()
            .map(|line| {
                line.strip_prefix('#').filter(|l| !l.starts_with(' ') && !l.is_empty()).unwrap_or(line)
            })
            .flat_map(|line| [line, "\n"])
            .collect();
        let mut read: Config = toml::from_str(&text)
            .map_err(|e| Error::Config(keys::explain(Path::new("animd.toml"), &text, &e)))?;
        assert_eq!(
            read.model.path.take().as_deref(),
            Some(Path::new("/var/lib/animd/models/Wan2.1-I2V-14B-480P"))
        );
        assert!(read.model.dit.take().is_some() && read.engine.program.take().is_some());
        let [watch] = std::mem::take(&mut read.watch).try_into().expect("one example");
        assert!(watch.outbox.is_some() && watch.stable_seconds.is_some() && watch.poll_seconds.is_some());
        let defaults = std::mem::take(&mut read.defaults);
        assert_eq!(defaults.prompt.as_deref(), Some(NEUTRAL_PROMPT));
        assert_eq!(read, Config::default());
        for (section, keys) in Table::try_from(Config::default()).map_err(|e| Error::Config(e.to_string()))? {
            for (key, _) in keys.as_table().into_iter().flatten() {
                assert!(text.contains(&format!("\n{key} = ")), "{section}.{key} is missing");
            }
        }
        Ok(())
    }
}
