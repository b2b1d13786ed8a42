//! Checks of the models: the configured one, and those that jobs may choose by their names. Only headers are read.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;

use animd_common::config::Config;
use animd_common::files::show;
use animd_common::models::model_file;
use animd_protocol::sources::quoted;
use serde::Deserialize;

use super::outside::Outside;
use super::sandbox::Sandbox;
use super::{Check, READ, User, refusal_from};

/// The most models that are looked at at a time.
const TOGETHER: usize = 4;

/// What keeps a model from being used.
struct Fault {
    message: String,
    remedy: String,
}

/// The part of what `animd-engine inspect` says that matters here.
#[derive(Deserialize)]
struct Inspected {
    problems: Vec<String>,
}

/// Checks that a model is configured, that the service's user can reach it, and that all its files are present. Where there is
/// none that works, the remedy also names what works meanwhile.
pub fn model(config: &Config, user: &User, sandbox: &Sandbox) -> Check {
    const NAME: &str = "model";
    let checked = match config.model_path(config.defaults.model.as_deref()) {
        Ok(Some(path)) => {
            let dit = config.model.dit.as_deref().filter(|_| config.model.path.as_ref() == Some(&path));
            let named = config.defaults.model.as_ref().map(|name| format!(" {name}")).unwrap_or_default();
            let show_it = format!("`animctl model show{named}` lists everything that is missing or unexpected");
            usable(&path, dit, config, user, sandbox).map_err(|fault| fault.or(&show_it))
        }
        Ok(None) => Err(Fault {
            message: "no model is configured".into(),
            remedy:
                "run `animctl model add` with the folder that the model was downloaded to, or set `path` in [model] of animd.toml"
                    .into(),
        }),
        Err(message) => Err(Fault { message, remedy: "correct `model` in [defaults] of animd.toml".into() }),
    };
    match checked {
        Ok(shown) => Check::ok(NAME, format!("`{shown}`: all model files are present")),
        Err(Fault { message, mut remedy }) => {
            if config.models.demonstrates() {
                remedy.push_str("; meanwhile `animctl demo` shows what animd does, with a small model");
            }
            Check::fail(NAME, message, remedy)
        }
    }
}

/// Checks the other models that jobs may choose by their names, in the same way: a finding for each one that cannot be used,
/// and one for all others together.
pub fn named_models(config: &Config, user: &User, sandbox: &Sandbox) -> Vec<Check> {
    const NAME: &str = "named models";
    let configured = config.model_path(config.defaults.model.as_deref()).ok().flatten();
    let known = config.models.list().into_iter().filter(|(_, path)| configured.as_ref() != Some(path));
    let known: Vec<(String, PathBuf)> = known.collect();
    let check = |(name, path): &(String, PathBuf)| {
        let checked = usable(path, None, config, user, sandbox);
        let again = format!("`animctl model show {name}` lists everything that is missing or unexpected");
        checked.map(|_| name.clone()).map_err(|fault| {
            let Fault { message, remedy } = fault.or(&again);
            Check::warn(NAME, format!("`{name}` cannot be used: {message}"), remedy)
        })
    };
    let together = |some: &[(String, PathBuf)]| {
        thread::scope(|scope| {
            let started: Vec<_> = some.iter().map(|one| scope.spawn(|| check(one))).collect();
            // A check that panicked has said why.
            started.into_iter().filter_map(|one| one.join().ok()).collect::<Vec<_>>()
        })
    };
    let (mut whole, mut checks) = (Vec::new(), Vec::new());
    for checked in known.chunks(TOGETHER).flat_map(together) {
        match checked {
            Ok(name) => whole.push(name),
            Err(check) => checks.push(check),
        }
    }
    if !whole.is_empty() {
        let models = whole.join(", ");
        checks.insert(0, Check::ok(NAME, format!("all files are present of {models}")));
    }
    checks
}

impl Fault {
    /// Returns a fault whose remedy the caller knows.
    fn of_files(message: String) -> Self {
        Self { message, remedy: String::new() }
    }

    /// Returns this fault with a remedy if it has none.
    fn or(self, remedy: &str) -> Self {
        match self.remedy.is_empty() {
            true => Self { remedy: remedy.to_owned(), ..self },
            false => self,
        }
    }
}

/// Returns how a model is shown that the service's user can reach and the engine can use.
fn usable(
    path: &Path,
    dit: Option<&Path>,
    config: &Config,
    user: &User,
    sandbox: &Sandbox,
) -> Result<String, Fault> {
    let file = model_file(&sandbox.outside(path).0).ok().flatten();
    let parts = file.iter().flat_map(|file| file.parts.named().map(|(_, path)| path.to_owned()));
    let parts: Vec<_> = parts.collect();
    for path in [path, dit.unwrap_or(path)].into_iter().chain(parts.iter().map(PathBuf::as_path)) {
        reachable(path, user, sandbox)?;
    }
    let outside = Outside::of(path, sandbox).map_err(|message| Fault {
        message,
        remedy: "correct the file, or write it anew with `animctl model add`".into(),
    })?;
    let mut inspect = Command::new(config.engine_program());
    inspect.args(["inspect", "--json"]).arg(outside.path()).stdin(Stdio::null());
    let output = inspect.output().map_err(|e| Fault {
        message: format!("the engine cannot look at `{}`: {e}", show(path)),
        remedy: "see `engine` above".into(),
    })?;
    if output.status.success() {
        return Ok(if outside.is_made() { show(path) } else { show(outside.path()) });
    }
    let problems =
        serde_json::from_slice(&output.stdout).map_or(Vec::new(), |Inspected { problems }| problems);
    let said = String::from_utf8_lossy(&output.stderr);
    let said = said.lines().find_map(|line| line.strip_prefix("error: "));
    let said = said.unwrap_or("`inspect` failed and gave no reason");
    Err(Fault::of_files(outside.words(problems.first().map_or(said, String::as_str))))
}

/// Checks that the service sees a model's file or folder, and that its user may read it.
fn reachable(path: &Path, user: &User, sandbox: &Sandbox) -> Result<(), Fault> {
    if let Some(why) = sandbox.refusal(path, false) {
        return Err(Fault {
            message: format!("`{}` {why}", show(path)),
            remedy: format!("`sudo animctl model add {}` lets the service see it", quoted(&show(path))),
        });
    }
    let together = [Some(path), path.parent()].into_iter().flatten();
    let one_by_one = together.map(|dir| sandbox.files_in(dir)).find(|files| !files.is_empty());
    let places = match one_by_one {
        Some(files) => files.into_iter().map(|(_, source)| (source.clone(), source)).collect(),
        None => vec![sandbox.outside(path)],
    };
    let refused = places
        .into_iter()
        .find_map(|(outside, start)| Some((refusal_from(&start, &outside, user, READ)?, outside)));
    match refused {
        None => Ok(()),
        Some((why, outside)) if !outside.exists() => Err(Fault {
            message: why,
            remedy: "mount its disk if it is on one, or say where the files are now with `animctl model add`"
                .into(),
        }),
        Some((why, outside)) => Err(Fault {
            message: why,
            remedy: format!(
                "let user `{0}` read it: `setfacl -R -m u:{0}:rX {1}`",
                user.name,
                quoted(&show(&outside))
            ),
        }),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use animd_common::models::Models;

    use super::super::Status;
    use super::*;

    /// Says of each model that one of its files is cut, unless the path ends in `good`.
    const ENGINE: &str = r#"#!/bin/sh
case "$3" in
*good) exit 0 ;;
*mute) exit 1 ;;
esac
echo "{\"problems\": [\"\`$3/vae.pth\` is cut\", \"another\"]}"
echo 'error: it holds no complete model' >&2
exit 1
"#;

    #[test]
    fn models_that_jobs_may_choose_are_checked_too() {
        let dir = tempfile::tempdir().expect("a folder");
        let mut config = Config { models: Models::beside(dir.path()), ..Config::default() };
        let program = dir.path().join("engine");
        fs::write(&program, ENGINE).expect("written");
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).expect("changed");
        config.engine.program = Some(program);
        let own = config.models.own().to_owned();
        for name in ["good", "also-good", "torn", "mute"] {
            fs::create_dir_all(own.join(name)).expect("made");
        }
        fs::write(own.join("wrong.toml"), "name =").expect("written");
        let parts = "name = \"moved\"\n[parts]\ndit = \"/nowhere/dit\"\ntext = \"/nowhere/t5\"\nvae = \"/nowhere/vae\"\n";
        fs::write(own.join("moved.toml"), parts).expect("written");
        let (user, sandbox) = (User::current(), Sandbox::default());
        let checks = named_models(&config, &user, &sandbox);
        let told: Vec<_> = checks.iter().map(|check| (check.status, check.message.as_str())).collect();
        assert_eq!(told[0], (Status::Ok, "all files are present of also-good, good"));
        assert!(told[1..].iter().all(|(status, _)| *status == Status::Warn), "{told:?}");
        let of = |name: &str| {
            let found = checks.iter().find(|check| check.message.starts_with(&format!("`{name}` cannot")));
            let check = found.expect("it is named");
            (check.message.clone(), check.remedy.clone().expect("there is something to do"))
        };
        let (message, remedy) = of("torn");
        assert!(message.ends_with("models/torn/vae.pth` is cut"), "{message}");
        assert!(remedy.starts_with("`animctl model show torn` lists"), "{remedy}");
        assert!(of("mute").0.ends_with("`inspect` failed and gave no reason"));
        assert!(of("wrong").0.contains("wrong.toml"));
        let (message, remedy) = of("moved");
        assert!(
            message.ends_with("there is no `/nowhere`") && remedy.starts_with("mount its disk"),
            "{remedy}"
        );
        assert_eq!(checks.len(), 5, "{told:?}");
        // The same of the configured one keeps animd from working.
        config.model.path = Some(own.join("torn"));
        let check = model(&config, &user, &sandbox);
        assert_eq!((check.name, check.status), ("model", Status::Fail));
        assert!(check.message.ends_with("vae.pth` is cut"), "{}", check.message);
        (config.model.path, config.defaults.model) = (None, Some("good".into()));
        assert_eq!(model(&config, &user, &sandbox).status, Status::Ok, "jobs get it by default");
    }
}
