//! The configuration in layers, each of which overrides the one before: built-in defaults, a TOML file, the files of
//! `conf.d` beside it, variables `ANIMD_SECTION_KEY`, and the command line.

mod check;
mod layers;
mod origin;
pub mod reference;
mod sections;
pub mod tolerant;

use std::ffi::OsString;
use std::fmt::Write as _;
use std::mem::take;
use std::path::{Path, PathBuf};

use animd_protocol::lora_files;
use animd_protocol::model_settings::{with_model, with_sampling};
use animd_protocol::request::Settings;
use serde::{Deserialize, Serialize};
use toml::{Table, Value};

use crate::loras;
use crate::models::{self, Models};
use crate::{Error, Result, places};
use layers::{Layer, Stack};

pub use check::file_place;
pub use layers::DROP_INS;
pub use origin::{Origins, Place};
pub use sections::{
    Engine, Folders, Inbox, Log, Lora, Metrics, Model, Power, Profile, Queue, Retention, Watch,
};

/// The file that is read without `--config`, if it exists.
pub const SYSTEM_FILE: &str = "/etc/animd/animd.toml";
/// The variable that names another file, as `--config` does.
const CONFIG_VARIABLE: &str = "ANIMD_CONFIG";

/// Everything that can be configured, resolved. `configs/animd.toml` has each key with its comment.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// `[model]`
    pub model: Model,
    /// `[lora]`
    pub lora: Lora,
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
    /// `[metrics]`
    pub metrics: Metrics,
    /// `[defaults]`: the settings of a job that does not give its own.
    pub defaults: Settings,
    /// `[[watch]]`: watched folders besides the inbox.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub watch: Vec<Watch>,
    /// The models that have names; where they lie follows from where the configuration lies.
    #[serde(skip)]
    pub models: Models,
    /// The folder of `LoRAs` that is looked into where none are configured.
    #[serde(skip)]
    pub loras: LoraFolder,
}

/// A folder of `LoRAs`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LoraFolder(pub PathBuf);

impl Default for LoraFolder {
    fn default() -> Self {
        Self("/var/lib/animd/loras".into())
    }
}

/// Where to look for the configuration. This stays the same when the configuration is read again.
#[derive(Clone, Debug, Default)]
pub struct Sources {
    /// `--config`
    pub file: Option<PathBuf>,
    /// `--user`
    pub user: bool,
    /// The values of the command line, which override everything else.
    pub options: Vec<Given>,
    /// The environment.
    pub vars: Vec<(OsString, OsString)>,
}

/// A value that an option of the command line gives.
#[derive(Clone, Debug, PartialEq)]
pub struct Given {
    /// The option: `--inbox`.
    pub option: &'static str,
    /// The section of its key.
    pub section: &'static str,
    /// Its key.
    pub key: &'static str,
    /// The value.
    pub value: Value,
}

/// A configuration, and where it comes from.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Loaded {
    /// All values.
    pub config: Config,
    /// The places of the values that are not built in.
    pub origins: Origins,
    /// The files that were read, in their order.
    pub files: Vec<PathBuf>,
}

/// The prompt for a picture that comes without one: little happens, and the camera stays where it is.
pub const NEUTRAL_PROMPT: &str = "The scene comes gently to life with natural, subtle motion. The camera is fixed and steady; the \
composition, the subjects and the lighting stay as they are in the picture.";

impl Sources {
    /// Reads all layers.
    ///
    /// # Errors
    /// [`Error::Config`] has a line for each mistake, which names the file and the line, the variable or the option, and
    /// what would do.
    pub fn load(&self) -> Result<Loaded> {
        let texts = match self.main_file()? {
            Some((path, asked)) => layers::files(&path, asked)?,
            None => Vec::new(),
        };
        let mut over = Stack::default();
        let home = self.home();
        for (path, text) in &texts {
            over.push(layers::of_file(path, text, home.as_deref())?)?;
        }
        let mut vars: Vec<_> = self.vars.iter().collect();
        vars.sort();
        for (name, value) in vars {
            let Some(name) = name.to_str().filter(|n| n.starts_with("ANIMD_") && *n != CONFIG_VARIABLE)
            else {
                continue;
            };
            let value = value
                .to_str()
                .ok_or_else(|| Error::Config(format!("variable {name}: it is not valid UTF-8")))?;
            match layers::of_variable(name, value, home.as_deref()) {
                Ok(layer) => over.push(layer)?,
                Err(e) => over.mistakes.push(e.to_string()),
            }
        }
        for Given { option, section, key, value } in &self.options {
            let place = Place::Option((*option).to_owned());
            over.push(layers::single(section, key, value.clone(), place))?;
        }
        self.resolve(over, texts.into_iter().map(|(path, _)| path).collect())
    }

    fn resolve(&self, mut over: Stack, files: Vec<PathBuf>) -> Result<Loaded> {
        let mut built_in = Config::default();
        built_in.defaults.prompt = Some(NEUTRAL_PROMPT.into());
        if self.user && !["folders.inbox", "folders.outbox", "folders.state"].iter().all(|key| over.has(key))
        {
            built_in.folders = Folders::of_user(&|name| self.var(name))?;
        }
        let mut origins = Origins::default();
        for (key, place) in take(&mut over.places) {
            origins.set(key, place);
        }
        let mut mistakes = take(&mut over.mistakes);
        let mut config = over.read(&built_in)?;
        if let Some(folder) = self.main_file()?.as_ref().and_then(|(path, _)| path.parent()) {
            config.models = Models::beside(folder);
        }
        if let Some(data) = self.data_folder() {
            config.loras = LoraFolder(data.join("animd/loras"));
        }
        mistakes.extend(check::mistakes(&config, &origins, &files));
        if !mistakes.is_empty() {
            return Err(Error::Config(mistakes.join("\n")));
        }
        Ok(Loaded { config, origins, files })
    }

    /// Returns the folder whose files are read after the configuration file.
    ///
    /// # Errors
    /// [`Error::Config`] where there is no place for a configuration.
    pub fn drop_ins(&self) -> Result<PathBuf> {
        let file = self.main_file()?.map(|(path, _)| path);
        let dir = file.as_deref().and_then(Path::parent).map(|dir| dir.join(DROP_INS));
        dir.ok_or_else(|| {
            Error::Config("HOME is not set, so there is no place for a configuration; set it".into())
        })
    }

    /// Returns the configuration file, and whether it was asked for and so must exist.
    fn main_file(&self) -> Result<Option<(PathBuf, bool)>> {
        let absolute = |name| self.var(name).map(PathBuf::from).filter(|path| path.is_absolute());
        if let Some(path) = self.file.clone().or_else(|| self.var(CONFIG_VARIABLE).map(PathBuf::from)) {
            let path = std::path::absolute(&path).map_err(Error::file("find", path))?;
            return Ok(Some((path, true)));
        }
        if !self.user {
            return Ok(Some((SYSTEM_FILE.into(), false)));
        }
        let base = absolute("XDG_CONFIG_HOME").or_else(|| Some(absolute("HOME")?.join(".config")));
        Ok(base.map(|base| (base.join("animd/animd.toml"), false)))
    }

    /// Returns the folder for the data of a user's own service; the system's has its own place.
    fn data_folder(&self) -> Option<PathBuf> {
        let absolute = |name| self.var(name).map(PathBuf::from).filter(|path| path.is_absolute());
        let home = || Some(absolute("HOME")?.join(".local/share"));
        absolute("XDG_DATA_HOME").or_else(home).filter(|_| self.user)
    }

    /// Returns what `~` stands for: the home of a user's own service. The system's has none, and could mean anybody's.
    fn home(&self) -> Option<PathBuf> {
        self.var("HOME").map(PathBuf::from).filter(|home| self.user && home.is_absolute())
    }

    fn var(&self, name: &str) -> Option<OsString> {
        self.vars.iter().find(|(n, _)| n == name).map(|(_, value)| value.clone())
    }
}

/// Reads one file's text as a whole configuration, for `animctl config check` and the fuzzer.
///
/// # Errors
/// [`Error::Config`] names the line.
pub fn from_text(path: &Path, text: &str) -> Result<Loaded> {
    alone(layers::of_file(path, text, None)?)
}

/// Reads one variable as a whole configuration.
///
/// # Errors
/// [`Error::Config`] names the variable.
pub fn from_variable(name: &str, value: &str) -> Result<Loaded> {
    alone(layers::of_variable(name, value, None)?)
}

fn alone(layer: Layer) -> Result<Loaded> {
    let mut stack = Stack::default();
    stack.push(layer)?;
    Sources::default().resolve(stack, Vec::new())
}

impl Loaded {
    /// Returns the configuration as TOML, with each value's place behind it if `origins` is set.
    pub fn print(&self, origins: bool) -> String {
        let mut text = String::new();
        let mut section = |header: &str, prefix: &str, values: &Table| {
            _ = writeln!(text, "{}{header}", if text.is_empty() { "" } else { "\n" });
            for (key, value) in values {
                let place = self.origins.of(&format!("{prefix}.{key}"));
                _ = match origins {
                    true => writeln!(text, "{key} = {value} # {place}"),
                    false => writeln!(text, "{key} = {value}"),
                };
            }
        };
        let all = Table::try_from(&self.config).unwrap_or_default();
        for (name, value) in &all {
            match value {
                Value::Table(values) => section(&format!("[{name}]"), name, values),
                Value::Array(items) => {
                    for (n, item) in items.iter().enumerate() {
                        if let Some(values) = item.as_table() {
                            section(&format!("[[{name}]]"), &format!("{name}.{n}"), values);
                        }
                    }
                }
                _ => {}
            }
        }
        text
    }
}

impl Config {
    /// Checks what the types cannot express; `files` are the configuration's own files. Reads the disk.
    ///
    /// # Errors
    /// [`Error::Config`] has a line for each wrong value, with its place and its range.
    pub fn check(&self, origins: &Origins, files: &[PathBuf]) -> Result<()> {
        let mistakes = check::mistakes(self, origins, files);
        if mistakes.is_empty() { Ok(()) } else { Err(Error::Config(mistakes.join("\n"))) }
    }

    /// Returns what a service with this configuration keeps apart from watched folders.
    pub fn own_places(&self) -> Vec<places::Place> {
        check::own_places(self)
    }

    /// Returns what an engine is started with. An engine that was started with something else must be replaced.
    pub fn engine_identity(&self) -> (PathBuf, [Option<&Path>; 2], &Profile) {
        let Model { path, dit, cache_gib: _ } = &self.model;
        (self.engine_program(), [path.as_deref(), dit.as_deref()], &self.profile)
    }

    /// Returns the model of jobs that ask for this name, or of jobs that ask for none. `None` if none is configured.
    ///
    /// # Errors
    /// A sentence with the nearest name.
    pub fn model_path(&self, name: Option<&str>) -> Result<Option<PathBuf>, String> {
        match name {
            Some(name) => self.models.find(name).map(Some),
            None => Ok(self.model.path.clone()),
        }
    }

    /// Returns the folders whose files jobs of a model may name as `LoRAs`, and single files, those first that were added by their
    /// own paths.
    pub fn lora_places(&self, model: Option<&str>) -> Vec<PathBuf> {
        let folders = || {
            let model = self.model_path(model).ok().flatten();
            let mut folders = model.map(|model| lora_files::folders_of(&model)).unwrap_or_default();
            folders.push(self.loras.0.clone());
            folders
        };
        let folders = self.lora.folders.clone().unwrap_or_else(folders);
        [&self.lora.added[..], &folders].concat()
    }

    /// Returns a job's settings, with what the files of its `LoRAs` and of its model say of sampling where the job says
    /// nothing. A `LoRA` outranks the model that it changes.
    #[must_use]
    pub fn with_models(&self, settings: Settings) -> Settings {
        let model = settings.model.as_deref().or(self.defaults.model.as_deref());
        let wanted = settings.lora.as_ref().or(self.defaults.lora.as_ref());
        let mut sampled = Vec::new();
        if let Some(wanted) = wanted.filter(|wanted| !wanted.is_empty()) {
            let places = self.lora_places(model);
            // A name that stands for no file is refused when the job is admitted.
            let files = wanted.iter().filter_map(|choice| lora_files::find(&places, &choice.name).ok());
            sampled = files.filter_map(|file| loras::sampling(&file).ok().flatten()).collect();
        }
        let settings = sampled.iter().fold(settings, with_sampling);
        let name = settings.model.as_deref().or(self.defaults.model.as_deref());
        let path = self.model_path(name).ok().flatten();
        // A file that cannot be read is told when the engine opens it.
        match path.and_then(|path| models::model_file(&path).ok().flatten()) {
            Some(file) => with_model(settings, &file),
            None => settings,
        }
    }

    /// Returns the engine's program.
    pub fn engine_program(&self) -> PathBuf {
        if let Some(program) = &self.engine.program {
            return program.clone();
        }
        let beside = std::env::current_exe().ok().and_then(|exe| Some(exe.parent()?.join("animd-engine")));
        beside.filter(|path| path.exists()).unwrap_or_else(|| "/usr/libexec/animd/engine".into())
    }
}

#[cfg(test)]
mod tests;
