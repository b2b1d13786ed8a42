//! What the types cannot say: ranges, and values that must go together.

use std::path::{Component, Path, PathBuf};

use animd_protocol::request::Settings;
use toml::{Table, Value};

use super::{Config, Origins};
use crate::files::show;
use crate::text;
use crate::{Error, Result};

/// The most that a `days` key may say: a thousand years.
const MAX_DAYS: u32 = 365_250;

/// Checks a configuration whose types are right.
///
/// # Errors
/// [`Error::Config`] names the first wrong value with its place and the range it must be in.
pub fn check(config: &Config, origins: &Origins) -> Result<()> {
    numbers(config, origins)?;
    folders(config, origins)?;
    watches(config, origins)?;
    level(config, origins)?;
    defaults(&config.defaults, origins)
}

fn refuse<T>(origins: &Origins, key: &str, sentence: &str) -> Result<T> {
    Err(Error::Config(origins.say(key, sentence)))
}

fn numbers(config: &Config, origins: &Origins) -> Result<()> {
    let Config { engine, inbox, queue, retention, .. } = config;
    let days = f64::from(MAX_DAYS);
    let mut numbers: Vec<(String, f64, f64, f64)> = [
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
    for (key, value, low, high) in numbers {
        if !(low..=high).contains(&value) {
            return refuse(origins, &key, &format!("{} {value} is not from {low} to {high}", plain(&key)));
        }
    }
    Ok(())
}

/// `watch.3.path` as people know it: `watch.path`.
pub fn plain(key: &str) -> String {
    match key.split('.').collect::<Vec<_>>()[..] {
        [section, _, key] => format!("{section}.{key}"),
        _ => key.to_owned(),
    }
}

fn folders(config: &Config, origins: &Origins) -> Result<()> {
    let folders = &config.folders;
    let paths = [
        ("model.path", config.model.path.as_deref()),
        ("model.dit", config.model.dit.as_deref()),
        ("engine.program", config.engine.program.as_deref()),
        ("folders.inbox", Some(folders.inbox.as_path())),
        ("folders.outbox", Some(&folders.outbox)),
        ("folders.state", Some(&folders.state)),
        ("metrics.textfile", config.metrics.textfile.as_deref()),
    ];
    for (key, path) in paths {
        absolute(origins, key, path)?;
    }
    let three = [("inbox", &folders.inbox), ("outbox", &folders.outbox), ("state", &folders.state)];
    for (i, (name, path)) in three.iter().enumerate() {
        for (other, same) in &three[..i] {
            if clean(path) == clean(same) {
                let sentence = format!(
                    "folders.{name} `{}` is folders.{other} too; give each its own folder",
                    show(path)
                );
                // The default of one may meet the other's configured value.
                let key = format!("folders.{name}");
                let key =
                    if *origins.of(&key) == super::Place::BuiltIn { format!("folders.{other}") } else { key };
                return refuse(origins, &key, &sentence);
            }
        }
    }
    Ok(())
}

fn absolute(origins: &Origins, key: &str, path: Option<&Path>) -> Result<()> {
    match path {
        Some(path) if !path.is_absolute() => {
            refuse(origins, key, &format!("{} `{}` is not an absolute path", plain(key), show(path)))
        }
        _ => Ok(()),
    }
}

/// A path without doubled slashes and dots, to be compared. Links are not followed: they may change.
fn clean(path: &Path) -> PathBuf {
    path.components().filter(|part| *part != Component::CurDir).collect()
}

fn watches(config: &Config, origins: &Origins) -> Result<()> {
    let folders = &config.folders;
    let mut known: Vec<(String, PathBuf)> = vec![("folders.inbox".into(), clean(&folders.inbox))];
    for (n, watch) in config.watch.iter().enumerate() {
        let key = format!("watch.{n}.path");
        absolute(origins, &key, Some(&watch.path))?;
        absolute(origins, &format!("watch.{n}.outbox"), watch.outbox.as_deref())?;
        let path = clean(&watch.path);
        let shown = show(&path);
        let outbox = clean(watch.outbox.as_ref().unwrap_or(&folders.outbox));
        if path == outbox {
            let sentence =
                format!("watch.path `{shown}` is where its own videos appear; give it another outbox");
            return refuse(origins, &key, &sentence);
        }
        let state = clean(&folders.state);
        if state.starts_with(&path) || path.starts_with(&state) {
            let sentence = format!(
                "watch.path `{shown}` and folders.state `{}` lie in each other; watch another folder",
                show(&state)
            );
            return refuse(origins, &key, &sentence);
        }
        for (other_key, other) in &known {
            let by = || match (other_key.as_str(), origins.of(other_key)) {
                ("folders.inbox", _) => "folders.inbox".to_owned(),
                (_, place) => place.to_string(),
            };
            if path == *other {
                let sentence = format!("watch.path `{shown}` is watched already, by {}; remove one", by());
                return refuse(origins, &key, &sentence);
            }
            if path.starts_with(other) || other.starts_with(&path) {
                let sentence = format!(
                    "watch.path `{shown}` and `{}` ({}) lie in each other, and subfolders are watched too; remove one",
                    show(other),
                    by()
                );
                return refuse(origins, &key, &sentence);
            }
        }
        known.push((key, path));
    }
    Ok(())
}

fn level(config: &Config, origins: &Origins) -> Result<()> {
    crate::log::filter(&config.log.level).map(|_| ()).map_err(|e| match e {
        Error::Config(text) => Error::Config(origins.say("log.level", &text)),
        e => e,
    })
}

/// A wrong default would fail every job: better to say so now.
fn defaults(settings: &Settings, origins: &Origins) -> Result<()> {
    let resolve =
        |settings: Settings| text::settings(settings)?.resolve(|| 0).map(|_| ()).map_err(|e| e.to_string());
    let Err(sentence) = resolve(settings.clone()) else { return Ok(()) };
    // The value whose absence mends it is to blame; among several, the one that the sentence names first.
    let table = Table::try_from(settings).unwrap_or_default();
    let mends = |key: &str| {
        let mut rest = table.clone();
        rest.remove(key);
        Value::Table(rest).try_into().is_ok_and(|rest: Settings| resolve(rest) != Err(sentence.clone()))
    };
    let named = |key: &String| sentence.replace(' ', "_").find(key.as_str()).unwrap_or(usize::MAX);
    let blamed = table.keys().filter(|key| mends(key)).min_by_key(|key| named(key));
    match blamed {
        Some(key) => refuse(origins, &format!("defaults.{key}"), &format!("[defaults]: {sentence}")),
        None => Err(Error::Config(format!("[defaults]: {sentence}"))),
    }
}
