//! Checks what the types cannot express: ranges, and values that must fit each other.

use std::path::{Path, PathBuf};

use animd_protocol::request::Settings;
use toml::{Table, Value};

use super::{Config, Origins, Place as Origin};
use crate::files::show;
use crate::places::{self, Overlap, Place, Role};
use crate::text;

/// The most that a `days` key may say: a thousand years.
const MAX_DAYS: u32 = 365_250;

/// Returns a sentence with its place for each value that is out of range or does not fit the others, of a configuration
/// whose types are right.
pub fn mistakes(config: &Config, origins: &Origins, files: &[PathBuf]) -> Vec<String> {
    let mut mistakes = numbers(config, origins);
    let relative = absolute(config, origins);
    // Places can only be compared when all of them are known.
    let overlap = if relative.is_empty() { overlaps(config, origins, files) } else { None };
    mistakes.extend(relative.into_iter().chain(overlap));
    mistakes.extend(level(config, origins).into_iter().chain(defaults(&config.defaults, origins)));
    mistakes
}

fn numbers(config: &Config, origins: &Origins) -> Vec<String> {
    let Config { model, engine, inbox, queue, retention, .. } = config;
    let days = f64::from(MAX_DAYS);
    let mut numbers: Vec<(String, f64, f64, f64)> = [
        ("model.cache_gib", model.cache_gib as f64, 0.0, 1e6),
        ("engine.heartbeat_seconds", engine.heartbeat_seconds as f64, 5.0, 3600.0),
        ("engine.start_seconds", engine.start_seconds as f64, 1.0, 3600.0),
        ("engine.cancel_seconds", engine.cancel_seconds as f64, 1.0, 3600.0),
        ("engine.idle_unload_seconds", engine.idle_unload_seconds as f64, 0.0, 1e9),
        ("inbox.stable_seconds", inbox.stable_seconds, 0.0, 3600.0),
        ("inbox.poll_seconds", inbox.poll_seconds, 0.1, 3600.0),
        ("inbox.rescan_seconds", inbox.rescan_seconds, 1.0, 86_400.0),
        ("queue.attempts", queue.attempts.into(), 1.0, 100.0),
        ("queue.interruptions", queue.interruptions.into(), 1.0, 10_000.0),
        ("queue.free_mib", queue.free_mib as f64, 0.0, 1e9),
        ("queue.per_user", queue.per_user.into(), 1.0, 1e6),
        ("queue.total", queue.total.into(), 1.0, 1e7),
        ("queue.disk_mib_per_user", queue.disk_mib_per_user as f64, 1.0, 1e9),
        ("queue.ledger_mib_per_user", queue.ledger_mib_per_user as f64, 1.0, 1e6),
        ("retention.pictures_days", retention.pictures_days.into(), 0.0, days),
        ("retention.results_days", retention.results_days.into(), 0.0, days),
        ("retention.steps_days", retention.steps_days.into(), 0.0, days),
        ("retention.samples_days", retention.samples_days.into(), 0.0, days),
        ("retention.events_days", retention.events_days.into(), 0.0, days),
        ("retention.jobs_days", retention.jobs_days.into(), 0.0, days),
    ]
    .map(|(key, value, low, high)| (key.to_owned(), value, low, high))
    .into();
    for (n, watch) in config.watch.iter().enumerate() {
        if let Some(seconds) = watch.stable_seconds {
            numbers.push((format!("watch.{n}.stable_seconds"), seconds, 0.0, 3600.0));
        }
        if let Some(seconds) = watch.poll_seconds {
            numbers.push((format!("watch.{n}.poll_seconds"), seconds, 0.1, 3600.0));
        }
    }
    let wrong = numbers.into_iter().filter(|(_, value, low, high)| !(low..=high).contains(&value));
    wrong
        .map(|(key, value, low, high)| {
            origins.say(&key, &format!("{} {value} is not from {low} to {high}", plain(&key)))
        })
        .collect()
}

/// Returns a key as people write it: `watch.path` for `watch.3.path`.
pub fn plain(key: &str) -> String {
    let names: Vec<&str> = key.split('.').filter(|part| part.parse::<usize>().is_err()).collect();
    names.join(".")
}

fn absolute(config: &Config, origins: &Origins) -> Vec<String> {
    let own = paths(config).into_iter().map(|(key, path, _)| (key.to_owned(), path));
    let more = [("engine.program", &config.engine.program), ("metrics.textfile", &config.metrics.textfile)];
    let more = more.into_iter().filter_map(|(key, path)| Some((key.to_owned(), path.as_deref()?)));
    let folders = config.lora.folders.iter().flatten().map(|path| ("lora.folders", path));
    let loras = folders.chain(config.lora.added.iter().map(|path| ("lora.added", path)));
    let loras = loras.map(|(key, path)| (key.to_owned(), path.as_path()));
    own.chain(watched(config).map(|(key, path, _)| (key, path)))
        .chain(more)
        .chain(loras)
        .filter(|(_, path)| !path.is_absolute())
        .map(|(key, path)| {
            origins.say(&key, &format!("{} `{}` is not an absolute path", plain(&key), show(path)))
        })
        .collect()
}

/// Returns the folders that the service has besides watched ones, and the inbox, with their keys.
fn paths(config: &Config) -> Vec<(&'static str, &Path, Role)> {
    let Config { model, folders, .. } = config;
    let own = [
        ("folders.inbox", folders.inbox.as_path(), Role::Inbox),
        ("folders.outbox", &folders.outbox, Role::Outbox),
        ("folders.state", &folders.state, Role::State),
    ];
    let model = [("model.path", &model.path), ("model.dit", &model.dit)];
    let model = model.into_iter().filter_map(|(key, path)| Some((key, path.as_deref()?, Role::Model)));
    own.into_iter().chain(model).collect()
}

fn watched(config: &Config) -> impl Iterator<Item = (String, &Path, Role)> {
    config.watch.iter().enumerate().flat_map(|(n, watch)| {
        let outbox =
            watch.outbox.as_deref().map(|outbox| (format!("watch.{n}.outbox"), outbox, Role::Outbox));
        [(format!("watch.{n}.path"), watch.path.as_path(), Role::Inbox)].into_iter().chain(outbox)
    })
}

/// Returns what a service with this configuration keeps apart from its watched folders.
pub fn own_places(config: &Config) -> Vec<Place> {
    let own = paths(config).into_iter().filter(|(_, _, role)| *role != Role::Inbox);
    own.map(|(key, path, role)| Place::new(key, path, role)).chain(textfile(config)).collect()
}

fn textfile(config: &Config) -> Option<Place> {
    Some(Place::new("metrics.textfile", config.metrics.textfile.as_ref()?, Role::File))
}

/// Returns a file that the configuration stands in.
pub fn file_place(path: &PathBuf) -> Place {
    Place::new("the configuration", path, Role::File)
}

/// Refuses folders that lie in each other but must not. If one of two is built in, the error names the configured one.
/// An overlap that another user's link causes is not a mistake of the configuration; such a folder is checked on each
/// use.
fn overlaps(config: &Config, origins: &Origins, files: &[PathBuf]) -> Option<String> {
    let own = paths(config).into_iter().map(|(key, path, role)| (key.to_owned(), path, role));
    let (keys, mut all): (Vec<String>, Vec<Place>) = own
        .chain(watched(config))
        .map(|(key, path, role)| {
            let mut place = Place::new(plain(&key), path, role);
            place.origin =
                Some(origins.of(&key)).filter(|at| **at != Origin::BuiltIn).map(ToString::to_string);
            (key, place)
        })
        .unzip();
    all.extend(textfile(config).into_iter().chain(files.iter().map(file_place)));
    let mistake = places::overlaps(&[], &all).into_iter().find(|overlap| !overlap.by_others);
    let Overlap { new, other, sentence, .. } = mistake?;
    let blamed = [new, other].into_iter().find(|at| all[*at].origin.is_some()).and_then(|at| keys.get(at));
    Some(origins.say(blamed.map_or("", String::as_str), &sentence))
}

fn level(config: &Config, origins: &Origins) -> Option<String> {
    crate::log::filter(&config.log.level).err().map(|e| origins.say("log.level", &e.to_string()))
}

/// Checks `[defaults]`, because a wrong default would fail every job.
fn defaults(settings: &Settings, origins: &Origins) -> Option<String> {
    let resolve = |settings: Settings| {
        if settings.last.as_deref().is_some_and(|last| !last.is_empty()) {
            return Err(
                "`last` names the picture of one job and has no default; name it in a sidecar".to_owned()
            );
        }
        text::settings(settings)?.resolve(|| 0).map(|_| ()).map_err(|e| e.to_string())
    };
    let sentence = resolve(settings.clone()).err()?;
    // The value to blame is the one without which the rest is valid; among several, the one that the sentence names
    // first.
    let table = Table::try_from(settings).unwrap_or_default();
    let mends = |key: &str| {
        let mut rest = table.clone();
        rest.remove(key);
        Value::Table(rest).try_into().is_ok_and(|rest: Settings| resolve(rest) != Err(sentence.clone()))
    };
    let named = |key: &String| sentence.find(&format!("`{key}`")).unwrap_or(usize::MAX);
    let blamed = table.keys().filter(|key| mends(key)).min_by_key(|key| named(key));
    let key = blamed.map(|key| format!("defaults.{key}")).unwrap_or_default();
    Some(origins.say(&key, &format!("[defaults]: {sentence}")))
}
