//! The configuration read again while the service runs, for SIGHUP and for `Reload()` on the bus.

use std::collections::BTreeSet;
use std::sync::Arc;

use animd_common::config::{Config, Loaded, Sources};
use animd_common::log;
use animd_common::notify::notify;
use animd_common::tasks::blocking;
use toml::{Table, Value};

use crate::config::CurrentConfig;
use crate::error::{Error, Result};
use crate::events::Events;
use crate::store::ledger::Limits;
use crate::store::{Ledger, Spool, Watches};
use crate::supervisor::profile::Profiles;

/// When a changed value takes effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum When {
    /// The value takes effect at its next use.
    Now,
    /// The value takes effect when the engine is next started, which is as soon as it is idle.
    Engine,
    /// The value takes effect when the service is started again.
    Restart,
}

/// Returns when a change of `section.key` takes effect.
fn when(key: &str) -> When {
    match key.split('.').next() {
        // Finished videos and open jobs lie in these folders.
        Some("folders") => When::Restart,
        Some("model" | "profile") => When::Engine,
        Some("engine") if key == "engine.program" => When::Engine,
        _ => When::Now,
    }
}

/// Reads the configuration again while the service runs; cheap to clone.
#[derive(Clone)]
pub struct Reloader {
    /// Where the configuration is read from.
    pub sources: Arc<Sources>,
    /// The configuration in force.
    pub config: CurrentConfig,
    /// The ledger, which is told how many open jobs it takes.
    pub ledger: Ledger,
    /// The spool, which is told how long it keeps pictures and how much of the disk it leaves free.
    pub spool: Spool,
    /// Where the outcome is announced.
    pub events: Events,
    /// The choice of a profile, which forgets the recipe of a model that is replaced.
    pub profiles: Profiles,
    /// The list of watched folders, which follows the configuration.
    pub watches: Watches,
}

impl Reloader {
    /// Reads the configuration again and puts it in force, and says of each changed value what came of it.
    ///
    /// What only a restart of the service can change stays as it is, with a sentence. The supervisor replaces an engine
    /// that was started with something else ([`Config::engine_identity`]) once it is idle. systemd is told of the
    /// beginning and of the end.
    ///
    /// # Errors
    /// [`Error::Config`](animd_common::Error::Config) names the mistake with its place; the old configuration stays in
    /// force, and the service's state says so until a reload succeeds.
    pub async fn reload(&self) -> Result<Vec<String>> {
        let this = self.clone();
        // The check looks at folders, which may take long on a network.
        blocking(move || this.reload_blocking()).await
    }

    fn reload_blocking(&self) -> Result<Vec<String>> {
        notify(&[("RELOADING", "1"), ("MONOTONIC_USEC", &monotonic_us().to_string())]);
        let told = self.sources.load().map_err(Error::from).and_then(|loaded| self.put_in_force(loaded));
        match &told {
            Ok(sentences) => {
                tracing::info!("the configuration was read again: {} changes", sentences.len());
                // The sentences may name folders of users, which are private.
                for sentence in sentences {
                    tracing::debug!("{sentence}");
                }
                self.events.set_notice(None);
            }
            Err(e) => {
                tracing::error!("the configuration stays as it was: {e}");
                self.events.set_notice(Some(format!("cannot apply the changed configuration: {e}")));
            }
        }
        notify(&[("READY", "1")]);
        told
    }

    fn put_in_force(&self, loaded: Loaded) -> Result<Vec<String>> {
        let old = self.config.get();
        let files = loaded.files.clone();
        let (config, sentences) = compare(&old, loaded)?;
        if config.log.level != old.log.level {
            log::set_level(&config.log.level)?;
        }
        self.watches.keep_apart(&files);
        self.apply(config);
        Ok(sentences)
    }

    /// Puts a configuration in force, at the start and after a reload.
    pub fn apply(&self, config: Config) {
        self.spool.set_keep(config.retention.pictures_days);
        self.spool.set_reserve(config.queue.free_mib);
        let limits = Limits {
            total: config.queue.total,
            disk_bytes: config.queue.disk_mib_per_user << 20,
            ledger_bytes: config.queue.ledger_mib_per_user << 20,
        };
        // This is not awaited: a busy ledger must not hold up the reload, and every later job sees the new limits.
        self.ledger.tell(move |db| db.set_limits(limits));
        let config = Arc::new(config);
        let before = self.config.replace(config.clone());
        if before.model != config.model {
            self.profiles.recipes().forget(None);
        }
        self.watches.configure(&config);
        // The supervisor's times may have changed, and it may have to choose another profile.
        self.events.queued.notify_one();
    }
}

/// Returns the time of the clock that systemd compares with, in microseconds.
fn monotonic_us() -> u64 {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the call writes one `timespec`, which `now` is.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut now) };
    now.tv_sec as u64 * 1_000_000 + now.tv_nsec as u64 / 1000
}

/// Returns the configuration to put in force, and a sentence for each change.
fn compare(old: &Config, loaded: Loaded) -> Result<(Config, Vec<String>)> {
    let Loaded { mut config, origins, files } = loaded;
    let internal = |e: toml::ser::Error| Error::config(e.to_string());
    let (before, after) =
        (Table::try_from(old).map_err(internal)?, Table::try_from(&config).map_err(internal)?);
    let mut sentences = Vec::new();
    for section in before.keys().chain(after.keys()).collect::<BTreeSet<_>>() {
        let (before, after) = (before.get(section), after.get(section));
        if section == "watch" {
            sentences.extend(watches(before, after));
            continue;
        }
        let value = |section: Option<&Value>, key: &str| section.and_then(|s| s.get(key)).cloned();
        let keys = [before, after].into_iter().flatten().filter_map(Value::as_table).flat_map(Table::keys);
        for key in keys.collect::<BTreeSet<_>>() {
            let (before, after) = (value(before, key), value(after, key));
            if before == after {
                continue;
            }
            let key = format!("{section}.{key}");
            let said = |value: Option<Value>| value.map_or("not set".to_owned(), |value| value.to_string());
            let (before, after) = (said(before), said(after));
            sentences.push(origins.say(
                &key,
                &match when(&key) {
                    When::Now => format!("{key} is {after} now"),
                    When::Engine => format!("{key} will be {after} as soon as the engine is idle"),
                    When::Restart => {
                        format!("{key} stays {before}: a restart of the service makes it {after}")
                    }
                },
            ));
        }
    }
    config.folders = old.folders.clone();
    config.check(&origins, &files)?;
    Ok((config, sentences))
}

/// Returns a sentence for each watched folder that was added, changed or removed.
fn watches(before: Option<&Value>, after: Option<&Value>) -> Vec<String> {
    let list = |value: Option<&Value>| value.and_then(Value::as_array).cloned().unwrap_or_default();
    let path = |watch: &Value| watch.get("path").map(Value::to_string).unwrap_or_default();
    let (before, after) = (list(before), list(after));
    let find = |all: &[Value], like: &Value| all.iter().find(|watch| path(watch) == path(like)).cloned();
    let mut sentences = Vec::new();
    for watch in &after {
        match find(&before, watch) {
            None => sentences.push(format!("{} is watched now", path(watch))),
            Some(old) if old != *watch => {
                sentences.push(format!("{} is watched in another way now", path(watch)));
            }
            Some(_) => {}
        }
    }
    for watch in &before {
        if find(&after, watch).is_none() {
            sentences.push(format!("{} is watched no longer", path(watch)));
        }
    }
    sentences
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use animd_common::bus::ServiceState;

    use super::*;

    #[test]
    fn what_can_change_changes_and_the_rest_is_said() -> Result<()> {
        let dir = tempfile::tempdir().map_err(Error::file("make", "a folder"))?;
        let file = dir.path().join("animd.toml");
        let write = |text: &str| fs::write(&file, text).map_err(Error::file("write", &file));
        write("[queue]\nattempts = 2\n[folders]\nstate = \"s\"\n[[watch]]\npath = \"/a\"\n")?;
        let sources = Sources { file: Some(file.clone()), ..Sources::default() };
        let reloader = Reloader {
            sources: Arc::new(sources.clone()),
            config: CurrentConfig::default(),
            ledger: Ledger::open(&dir.path().join("ledger.db"))?,
            spool: Spool::open(dir.path().join("spool"))?,
            events: Events::default(),
            profiles: Profiles::default(),
            watches: Watches::default(),
        };
        reloader.apply(sources.load()?.config);
        assert_eq!(reloader.reload_blocking()?, Vec::<String>::new());

        let text = "[queue]\nattempts = 4\n[folders]\nstate = \"t\"\n[[watch]]\npath = \"/b\"\n[model]\npath = \"m\"\n";
        write(text)?;
        let sentences = reloader.reload_blocking()?.join("\n");
        for part in [
            "animd.toml:2:12: queue.attempts is 4 now",
            "/t\"",
            "animd.toml:4:9: folders.state stays \"",
            "\"/b\" is watched now\n\"/a\" is watched no longer",
            "/m\" as soon as the engine is idle",
        ] {
            assert!(sentences.contains(part), "{part} in {sentences}");
        }
        assert_eq!(sentences.lines().count(), 5, "{sentences}");
        let config = reloader.config.get();
        assert_eq!((config.queue.attempts, &config.watch[0].path), (4, &Path::new("/b").to_owned()));
        assert!(config.folders.state.ends_with("s"));

        write("[queue]\nattempts = 400\n")?;
        let e = reloader.reload_blocking().expect_err("refused").to_string();
        assert!(e.contains("animd.toml:2:12: queue.attempts 400"), "{e}");
        assert_eq!(reloader.config.get(), config);
        reloader.events.set_status(ServiceState::Idle, "waiting for pictures");
        assert!(reloader.events.status().borrow().text.contains("cannot apply the changed configuration: "));
        write(text)?;
        reloader.reload_blocking()?;
        reloader.events.set_status(ServiceState::Idle, "waiting for pictures");
        assert_eq!(reloader.events.status().borrow().text.as_str(), "waiting for pictures");
        Ok(())
    }
}
