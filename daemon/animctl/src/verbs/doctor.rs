//! `animctl doctor`

use std::collections::HashMap;
use std::path::Path;

use animd_common::bus::ServiceState;
use animd_common::config::Config;
use serde_json::json;
use zbus::fdo::DBusProxy;
use zbus::{Connection, OwnedVariant};

use super::exit::{Exit, Result};
use super::{On, config, dropin, json_of, print};
use crate::doctor::sandbox::Sandbox;
use crate::doctor::{self, Check, Status, User, proc_text};

/// The file with the package's polkit actions.
const ACTIONS: &str = "/usr/share/polkit-1/actions/org.animd.animd1.policy";
const POLKIT: &str = "org.freedesktop.PolicyKit1";

/// Find out what keeps animd from working on this machine, and what would help.
#[derive(clap::Args)]
#[command(
    after_help = "Example: animctl doctor\n\nAs root it can look into folders that are closed to you.\n\nJSON: ok (nothing failed), \
checks: an array of objects with name, status (ok, warn, fail), message, and remedy where there is something to do"
)]
pub struct Args {}

pub async fn run(_: &Args, on: On) -> Result {
    let checks = checks(on).await;
    let ok = checks.iter().all(|check| check.status != Status::Fail);
    if on.json {
        print(json!({"ok": ok, "checks": checks}));
    } else {
        for check in &checks {
            print(format!("{:<4}  {:<15} {}", check.status.name(), check.name, check.message));
            if let Some(remedy) = &check.remedy {
                print(format!("{:22}{remedy}", ""));
            }
        }
    }
    Ok(if ok { Exit::Done } else { Exit::Failed })
}

async fn checks(on: On) -> Vec<Check> {
    let mut checks = Vec::new();
    let config = match config::load(None, on.user) {
        Ok(loaded) => {
            checks.push(Check::ok("configuration", format!("{} files", loaded.files.len())));
            loaded.config
        }
        Err(e) => {
            checks.push(Check::fail(
                "configuration",
                e.to_string(),
                "mend it; `animctl config check` looks again",
            ));
            Config::default()
        }
    };
    checks.extend([doctor::engine(&config.engine_program()), doctor::ffmpeg()]);
    let user = match on.user {
        true => Some(User::current()),
        false => dropin::service_user(),
    };
    match &user {
        Some(user) => {
            let sandbox = if on.user { Sandbox::default() } else { Sandbox::read(Path::new("/")) };
            checks.push(doctor::model(&config, user, &sandbox));
            checks.extend(doctor::folders(&config, user, &sandbox));
        }
        None => checks.push(Check::fail(
            "user",
            "there is no user `animd`, whom the service runs as",
            "install the package again, or ask for your own animd with --user",
        )),
    }
    checks.push(doctor::disk(&config));
    checks.push(doctor::memory(&proc_text("/proc/meminfo")));
    let driver = doctor::driver(&proc_text("/proc/driver/nvidia/version"));
    let there = driver.status == Status::Ok;
    checks.push(driver);
    if let (true, Some(user)) = (there, &user) {
        checks.push(doctor::devices(Path::new("/dev"), user));
    }
    checks.push(doctor::suspend(&proc_text("/proc/driver/nvidia/params")));
    checks.push(service(on).await);
    checks.extend(watched(on).await);
    if !on.user {
        checks.push(polkit(Path::new(ACTIONS), has_polkit().await));
    }
    checks
}

/// Checks that the service answers and says that it can work.
async fn service(on: On) -> Check {
    const NAME: &str = "service";
    let asked = async {
        let ctl = on.connect().await?;
        let manager = &ctl.manager;
        let (version, state) = (manager.version().await?, manager.state().await?);
        Ok::<_, super::exit::Failure>((version, state, manager.state_text().await?))
    };
    match asked.await {
        Err(e) => Check::fail(NAME, e.text, "start it, or look into its log: `animctl logs`"),
        Ok((version, _, _)) if version != env!("CARGO_PKG_VERSION") => Check::warn(
            NAME,
            format!("animd {version} runs, and this is {}", env!("CARGO_PKG_VERSION")),
            "`systemctl restart animd` when no job runs",
        ),
        Ok((_, state, text)) if ServiceState::from_name(&state).is_some_and(ServiceState::is_trouble) => {
            Check::fail(NAME, format!("{state}: {text}"), "see what failed above")
        }
        Ok((_, state, text)) => Check::ok(NAME, format!("{state}: {text}")),
    }
}

/// Checks for watched folders that the service does not use now. This never asks for a password.
async fn watched(on: On) -> Vec<Check> {
    if !on.user && !rustix::process::geteuid().is_root() {
        return Vec::new();
    }
    let asked = async { Ok::<_, super::exit::Failure>(on.connect().await?.manager.watches().await?) };
    let folders = asked.await.unwrap_or_default();
    let trouble =
        |folder: &HashMap<String, OwnedVariant>| Some(json_of(folder)["trouble"].as_str()?.to_owned());
    let remedy = "`animctl folder list` shows all folders, and `animctl folder remove DIR` ends the watch";
    folders.iter().filter_map(trouble).map(|why| Check::warn("watched folder", why, remedy)).collect()
}

/// Returns whether polkit runs, or a call would start it.
async fn has_polkit() -> bool {
    let asked = async {
        let bus = Connection::system().await?;
        let bus = DBusProxy::new(&bus).await?;
        let runs = bus.list_names().await?.iter().any(|name| name.as_str() == POLKIT);
        let starts = bus.list_activatable_names().await?.iter().any(|name| name.as_str() == POLKIT);
        zbus::Result::Ok(runs || starts)
    };
    asked.await.unwrap_or(false)
}

fn polkit(actions: &Path, there: bool) -> Check {
    const NAME: &str = "polkit";
    match (there, actions.exists()) {
        (true, true) => Check::ok(NAME, "it knows who may do what"),
        (true, false) => Check::warn(
            NAME,
            "it does not know animd's actions, so only root may manage",
            "install the package again",
        ),
        (false, _) => Check::warn(
            NAME,
            "it does not run, so only root may pause the queue, add folders or see others' jobs",
            "`apt install polkitd`, unless that is as you want it",
        ),
    }
}
