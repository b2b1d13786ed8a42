//! `animctl doctor`

use std::collections::HashMap;
use std::io::IsTerminal;
use std::path::{Path, PathBuf};

use animd_common::bus::ServiceState;
use animd_common::config::{Config, Loaded};
use animd_common::files::show;
use serde_json::json;
use zbus::fdo::DBusProxy;
use zbus::{Connection, OwnedVariant};

use super::exit::{Exit, Result};
use super::term::{Color, paint, width, wrap};
use super::{On, bundle, config, dropin, json_of, path, print};
use crate::doctor::sandbox::Sandbox;
use crate::doctor::{self, Check, Status, User, proc_text};

/// The file with the package's polkit actions.
const ACTIONS: &str = "/usr/share/polkit-1/actions/org.animd.animd1.policy";
const POLKIT: &str = "org.freedesktop.PolicyKit1";

/// Find out what keeps animd from working on this machine, and what would help.
#[derive(clap::Args)]
#[command(
    after_help = "Example: animctl doctor --bundle animd.tar\n\nAs root it can look into folders that are closed to you. A bundle has the \
versions, these checks, the configuration, the service's log, the newest jobs without prompts and names, a plan, and the driver. It \
is written to the file and sent nowhere.\n\nJSON: ok (nothing failed), \
checks: an array of objects with name, status (ok, warn, fail), message, and remedy where there is something to do; with --bundle \
file, bytes, contents (an array: name, bytes, what)"
)]
pub struct Args {
    /// Pack what helps to find a fault into a tar archive, which must not exist
    #[arg(long, value_name = "FILE", value_parser = path())]
    bundle: Option<PathBuf>,
}

pub async fn run(args: &Args, on: On) -> Result {
    let loaded = config::of_service(on).await;
    let checks = checks(&loaded, on).await;
    if let Some(file) = &args.bundle {
        return bundle::write(file, &checks, loaded.as_ref().ok(), on).await;
    }
    let ok = checks.iter().all(|check| check.status != Status::Fail);
    if on.json {
        print(json!({"ok": ok, "checks": checks}));
    } else {
        // Away from a terminal each finding stays on its line, for programs that search them.
        let most = if std::io::stdout().is_terminal() { width().saturating_sub(22) } else { usize::MAX };
        for check in &checks {
            let color = match check.status {
                Status::Ok => Color::Green,
                Status::Warn => Color::Yellow,
                Status::Fail => Color::Red,
            };
            let status = paint(&format!("{:<4}", check.status.name()), Some(color));
            let lines = [Some(&check.message), check.remedy.as_ref()];
            let lines = lines.into_iter().flatten().flat_map(|text| wrap(text, most));
            for (n, line) in lines.enumerate() {
                match n {
                    0 => print(format!("{status}  {:<15} {line}", check.name)),
                    _ => print(format!("{:22}{line}", "")),
                }
            }
        }
    }
    Ok(if ok { Exit::Done } else { Exit::Failed })
}

async fn checks(loaded: &animd_common::Result<Loaded>, on: On) -> Vec<Check> {
    let mut checks = Vec::new();
    let config = match loaded {
        Ok(loaded) => {
            let files = match &loaded.files[..] {
                [] => "there is no configuration file; the defaults are in force".to_owned(),
                [file] => format!("`{}`", show(file)),
                files => format!(
                    "{} files: {}",
                    files.len(),
                    files.iter().map(show).collect::<Vec<_>>().join(", ")
                ),
            };
            checks.push(Check::ok("configuration", format!("{files}; no mistakes found")));
            loaded.config.clone()
        }
        Err(e) => {
            checks.push(Check::fail(
                "configuration",
                e.to_string(),
                "correct it; `animctl config check` looks again",
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
            checks.extend(doctor::named_models(&config, user, &sandbox));
            checks.extend(doctor::folders(&config, user, &sandbox));
        }
        None => checks.push(Check::fail(
            "user",
            "there is no user `animd`, which the service runs as",
            "install the package again, or check your own animd with --user",
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
        Err(e) => Check::fail(NAME, e.text, "start it, or read its log: `animctl logs`"),
        Ok((version, _, _)) if version != env!("CARGO_PKG_VERSION") => Check::warn(
            NAME,
            format!("animd {version} is running, and this is {}", env!("CARGO_PKG_VERSION")),
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
    let warn = |folder| {
        let path = json_of(folder)["path"].as_str().unwrap_or_default().to_owned();
        let remedy = format!(
            "`animctl folder list` shows all folders, and `animctl folder remove '{path}'` stops watching this one"
        );
        Some(Check::warn("watched folder", trouble(folder)?, remedy))
    };
    folders.iter().filter_map(warn).collect()
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
        (true, true) => Check::ok(NAME, "it has animd's actions"),
        (true, false) => Check::warn(
            NAME,
            "it does not have animd's actions, so only root can manage animd",
            "install the package again",
        ),
        (false, _) => Check::warn(
            NAME,
            "it is not running, so only root can pause the queue, add folders or see others' jobs",
            "`apt install polkitd`, unless you want it so",
        ),
    }
}
