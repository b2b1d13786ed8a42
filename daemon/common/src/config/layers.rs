//! The layers that a configuration is made of: files, variables, options, each value with its place.
//!
//! Each layer is read by itself first, because only the TOML reader knows lines; then the `config` crate merges them.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fmt::Display;
use std::fs::{self, File};
use std::io::{self, Read as _};
use std::mem::take;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use config::ConfigBuilder;
use config::builder::DefaultState;
use serde::Deserialize as _;
use toml::{Table, Value};

use super::check::plain;
use super::reference::section_of;
use super::tolerant::{self, Tolerated};
use super::{Config, Place};
use crate::files::show;
use crate::home;
use crate::keys;
use crate::text;
use crate::{Error, Result};

/// The folder beside the configuration file whose files are read after it.
pub const DROP_INS: &str = "conf.d";
/// The largest configuration file, in bytes.
const MAX_BYTES: u64 = 1 << 20;
/// Keys that hold a path, which may be relative to its file.
const PATHS: [&str; 11] = [
    "model.path",
    "model.dit",
    "lora.folders",
    "lora.added",
    "engine.program",
    "folders.inbox",
    "folders.outbox",
    "folders.state",
    "metrics.textfile",
    "watch.path",
    "watch.outbox",
];

/// Lists whose items of all layers count together, as watched folders do.
const GATHERED: [&str; 1] = ["lora.added"];

/// Values with their places. A key is `section.key`, or `watch.N.key` for a watched folder.
#[derive(Debug, Default)]
pub struct Layer {
    /// The values, as in a file.
    pub values: Table,
    /// The place of each value.
    pub places: Vec<(String, Place)>,
    /// A sentence for each value that cannot be used, with its place; `values` does not have them.
    pub mistakes: Vec<String>,
}

/// Returns the configuration file if it is there, and the files of `conf.d` beside it, sorted by their names.
pub fn files(main: &Path, asked: bool) -> Result<Vec<(PathBuf, String)>> {
    let mut read = Vec::new();
    match read_text(main) {
        Ok(text) => read.push((main.to_owned(), text?)),
        Err(e) if e.kind() == io::ErrorKind::NotFound && !asked => {}
        Err(e) => return Err(unreadable(main, &e)),
    }
    let dir = main.parent().unwrap_or(Path::new("/")).join(DROP_INS);
    let entries = match fs::read_dir(&dir) {
        Ok(entries) => entries,
        Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            return Ok(read);
        }
        Err(e) => return Err(unreadable(&dir, &e)),
    };
    let mut names: Vec<OsString> = entries
        .map(|entry| entry.map(|entry| entry.file_name()))
        .collect::<io::Result<_>>()
        .map_err(|e| unreadable(&dir, &e))?;
    names.retain(|name| is_drop_in(name));
    names.sort();
    for name in names {
        let path = dir.join(name);
        let text = read_text(&path).map_err(|e| unreadable(&path, &e))??;
        read.push((path, text));
    }
    Ok(read)
}

fn is_drop_in(name: &OsStr) -> bool {
    name.as_bytes().ends_with(b".toml") && !name.as_bytes().starts_with(b".")
}

fn unreadable(path: &Path, e: &io::Error) -> Error {
    Error::Config(format!("cannot read the configuration `{}`: {e}", show(path)))
}

fn read_text(path: &Path) -> io::Result<Result<String>> {
    let mut bytes = Vec::new();
    // A device or a pipe may never end; a symbolic link is the administrator's own.
    if !fs::metadata(path)?.is_file() && path != Path::new("/dev/null") {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is not a regular file"));
    }
    File::open(path)?.take(MAX_BYTES + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > MAX_BYTES {
        return Err(io::Error::new(
            io::ErrorKind::FileTooLarge,
            format!("it has more than {MAX_BYTES} bytes"),
        ));
    }
    Ok(text::decode(bytes).map_err(|e| Error::Config(e.of(&show(path)))))
}

/// Returns the layer of a file; `home` is what `~` stands for.
///
/// # Errors
/// [`Error::Config`] for a file that is not TOML. All other mistakes are in the layer: line, what is wrong there, and the
/// nearest right key or value.
pub fn of_file(path: &Path, text: &str, home: Option<&Path>) -> Result<Layer> {
    let say = |at: Option<usize>, sentence: &str| match at {
        Some(at) => Place::in_file(path, text, at).say(sentence),
        None => format!("{}: {sentence}", show(path)),
    };
    let refuse = |e: &toml::de::Error| {
        Error::Config(say(e.span().map(|span| span.start), &keys::with_hint(e.message())))
    };
    let read = tolerant::read::<Config>(text, section_of).map_err(|e| refuse(&e))?;
    let Tolerated { tree, spans, mistakes, .. } = read;
    let mut wrong: Vec<_> = mistakes.into_iter().map(|(at, sentence)| (at, say(at, &sentence))).collect();
    let mut values = Table::deserialize(toml::Deserializer::from(tree)).map_err(|e| refuse(&e))?;
    let dir = path.parent().unwrap_or(Path::new("/"));
    let mut places = Vec::new();
    for (key, span) in spans {
        let place = Place::in_file(path, text, span.start);
        if let Some(value) = leaf(&mut values, &key)
            && let Err(e) = complete(&key, value, dir, home)
        {
            wrong.push((Some(span.start), place.say(&e)));
            forget(&mut values, &key);
        }
        places.push((key, place));
    }
    wrong.sort_by_key(|(at, _)| *at);
    Ok(Layer { values, places, mistakes: wrong.into_iter().map(|(_, mistake)| mistake).collect() })
}

/// Checks a text of a file, and makes a path absolute.
fn complete(key: &str, value: &mut Value, dir: &Path, home: Option<&Path>) -> Result<(), String> {
    if let Value::String(text) = &*value {
        text::without_zero(text).map_err(|e| format!("{}: {e}", plain(key)))?;
    }
    make_absolute(key, value, dir, home)
}

/// Removes the value of `section.key`; for a watched folder, which cannot do without its path, the whole folder.
fn forget(values: &mut Table, key: &str) {
    match key.split('.').collect::<Vec<_>>()[..] {
        [section, key] => {
            if let Some(Value::Table(section)) = values.get_mut(section) {
                section.remove(key);
            }
        }
        _ => _ = values.remove("watch"),
    }
}

/// Returns the value of `section.key` or `watch.N.key`.
fn leaf<'a>(values: &'a mut Table, key: &str) -> Option<&'a mut Value> {
    let mut parts = key.split('.');
    let mut value = values.get_mut(parts.next()?)?;
    for part in parts {
        value = match value {
            Value::Table(table) => table.get_mut(part)?,
            Value::Array(items) => items.get_mut(part.parse::<usize>().ok()?)?,
            _ => return None,
        };
    }
    Some(value)
}

fn make_absolute(key: &str, value: &mut Value, dir: &Path, home: Option<&Path>) -> Result<(), String> {
    if let Value::Array(items) = value {
        return items.iter_mut().try_for_each(|item| make_absolute(key, item, dir, home));
    }
    let Value::String(path) = value else { return Ok(()) };
    let plain = plain(key);
    let is_path = PATHS.contains(&plain.as_str()) || (plain == "profile.name" && path.contains('/'));
    if !is_path {
        return Ok(());
    }
    if path.is_empty() {
        return Err(format!("{plain} is empty; give a path, or leave it out"));
    }
    let expanded =
        home::expand(Path::new(&*path), home).map_err(|e| format!("{plain} `{}`: {e}", show(&*path)))?;
    if let Some(full) = dir.join(expanded).to_str() {
        full.clone_into(path);
    }
    Ok(())
}

/// Returns the layer of one variable: `ANIMD_QUEUE_FREE_MIB=100` is `[queue] free_mib = 100`.
///
/// # Errors
/// [`Error::Config`] names the variable, and the nearest right one.
pub fn of_variable(name: &str, value: &str, home: Option<&Path>) -> Result<Layer> {
    let sections = super::reference::sections();
    let lower = name.strip_prefix("ANIMD_").unwrap_or(name).to_lowercase();
    if lower == "watch" || lower.starts_with("watch_") {
        return Err(Error::Config(format!(
            "variable {}: watched folders cannot be variables; write a [[watch]] section into a file of {DROP_INS}",
            keys::one_line(name, 100)
        )));
    }
    let Some((section, key)) = lower.split_once('_').filter(|(section, _)| sections.contains(section)) else {
        let near = keys::nearest(lower.split('_').next().unwrap_or_default(), sections);
        let near =
            near.map(|s| format!("; did you mean ANIMD_{}_...?", s.to_uppercase())).unwrap_or_default();
        return Err(Error::Config(format!("unknown variable {}{near}", keys::one_line(name, 100))));
    };
    let place = Place::Variable(name.to_owned());
    // A number or a truth value where the key takes one, text otherwise.
    let candidates = [value.trim().parse::<Value>().ok(), Some(Value::String(value.to_owned()))];
    let mut first = None;
    for value in candidates.into_iter().flatten() {
        let mut value = value;
        if let Value::String(text) = &mut value
            && text.starts_with('~')
        {
            // A path with `/` before it is absolute already.
            make_absolute(&format!("{section}.{key}"), &mut value, Path::new("/"), home)
                .map_err(|e| Error::Config(place.say(&e)))?;
        }
        let layer = single(section, key, value, place.clone());
        match layer.values.clone().try_into::<Config>() {
            Ok(_) => return Ok(layer),
            Err(e) => _ = first.get_or_insert(e),
        }
    }
    let why = first
        .map(|e| tolerant::explain(e.message(), Some(&format!("{section}.{key}")), section_of))
        .unwrap_or_default();
    Err(Error::Config(place.say(&why)))
}

/// Returns the layer of one value.
pub fn single(section: &str, key: &str, value: Value, place: Place) -> Layer {
    let inner = Table::from_iter([(key.to_owned(), value)]);
    Layer {
        values: Table::from_iter([(section.to_owned(), Value::Table(inner))]),
        places: vec![(format!("{section}.{key}"), place)],
        mistakes: Vec::new(),
    }
}

/// The layers merged so far: a later value replaces an earlier one, watched folders are added.
#[derive(Debug, Default)]
pub struct Stack {
    layers: ConfigBuilder<DefaultState>,
    /// The watched folders of all layers.
    watches: Vec<Value>,
    /// The lists of the uppermost layer that has each, by their keys. The `config` crate would merge lists item by item, and
    /// forgets empty ones.
    lists: BTreeMap<String, Value>,
    /// The place of each value, the uppermost layer last.
    pub places: Vec<(String, Place)>,
    /// The mistakes of all layers.
    pub mistakes: Vec<String>,
}

impl Stack {
    /// Puts a layer on top.
    ///
    /// # Errors
    /// [`Error::Config`] if a value has a type that no configuration has.
    pub fn push(&mut self, mut layer: Layer) -> Result<()> {
        let first = self.watches.len();
        self.mistakes.append(&mut layer.mistakes);
        for (key, place) in layer.places {
            let mut parts = key.splitn(3, '.');
            let key = match (parts.next(), parts.next().map(str::parse::<usize>), parts.next()) {
                (Some("watch"), Some(Ok(n)), Some(rest)) => format!("watch.{}.{rest}", first + n),
                _ => key,
            };
            self.places.push((key, place));
        }
        if let Some(Value::Array(watches)) = layer.values.remove("watch") {
            self.watches.extend(watches);
        }
        self.take_lists(&mut layer.values);
        let source = config::Config::try_from(&layer.values).map_err(unfit)?;
        self.layers = take(&mut self.layers).add_source(source);
        Ok(())
    }

    /// Takes the lists out of a layer; any other value takes the place of a list below it, and so does a list, unless the items
    /// of all layers count.
    fn take_lists(&mut self, values: &mut Table) {
        for (section, values) in values {
            let Value::Table(values) = values else { continue };
            values.retain(|key, value| {
                let (key, is_list) = (format!("{section}.{key}"), value.is_array());
                match (value.as_array(), self.lists.get_mut(&key)) {
                    (Some(items), Some(Value::Array(below))) if GATHERED.contains(&&*key) => {
                        below.extend_from_slice(items);
                    }
                    (Some(_), _) => _ = self.lists.insert(key, value.clone()),
                    (None, _) => _ = self.lists.remove(&key),
                }
                !is_list
            });
        }
    }

    /// Returns whether a layer has the key `section.key`.
    pub fn has(&self, key: &str) -> bool {
        self.places.iter().any(|(known, _)| known == key)
    }

    /// Returns the layers merged over the built-in values. Each layer has already been parsed into the type, so this
    /// does not fail in practice.
    pub fn read(self, built_in: &Config) -> Result<Config> {
        let mut layers =
            config::Config::builder().add_source(config::Config::try_from(built_in).map_err(unfit)?);
        layers = layers.add_source(self.layers.build().map_err(unfit)?);
        if !self.watches.is_empty() {
            let watches: config::Value = Value::Array(self.watches).try_into().map_err(unfit)?;
            layers = layers.set_override("watch", watches).map_err(unfit)?;
        }
        for (key, list) in self.lists {
            let list: config::Value = list.try_into().map_err(unfit)?;
            layers = layers.set_override(key, list).map_err(unfit)?;
        }
        layers.build().and_then(config::Config::try_deserialize).map_err(unfit)
    }
}

fn unfit(e: impl Display) -> Error {
    Error::Config(format!("the configuration does not fit together: {e}"))
}
