//! `animctl model remove NAME`

use std::fs;
use std::path::{Path, PathBuf};

use animd_common::config::Sources;
use animd_common::files::show;
use animd_protocol::sources::quoted;
use serde_json::json;

use super::super::dropin::{Plan, config as config_file, is_active, needs_root, reread, restart};
use super::super::exit::{Exit, Failure, Result};
use super::super::{On, config, print};
use super::{known_loras, place, trial};
use crate::doctor::sandbox::Sandbox;

#[allow(clippy::doc_markdown, reason = "the words are the help of the command")]
/// Forget a model that was added, or LoRAs.
///
/// The files themselves stay. The service no longer sees them.
#[derive(clap::Args)]
#[command(
    after_help = "Examples:\n  sudo animctl model remove wan-480p\n  sudo animctl model remove ~/ComfyUI/models/loras\n\nJSON: name, next"
)]
pub struct Remove {
    #[allow(clippy::doc_markdown, reason = "the words are the help of the option")]
    /// The name of the model or LoRA, which `animctl model list` shows; or the path of a folder of LoRAs
    name: String,
}

pub async fn run(args: &Remove, on: On) -> Result {
    let name = &args.name;
    let loaded = config::load(None, on.user)?;
    let models = &loaded.config.models;
    let path = match models.find(name) {
        Ok(path) => path,
        Err(why) => return remove_lora(name, why, on).await,
    };
    let own = models.own().join(format!("{name}.toml"));
    if path != own {
        let why = if path.starts_with(models.own()) {
            "is a folder with the model's own files"
        } else {
            "comes with animd"
        };
        return Err(Failure::new(format!("`{}` {why}, which animctl does not remove", show(&path))));
    }
    let is_configured = loaded.config.model.path.as_deref() == Some(&*own);
    let conf = match on.user {
        true => user_config()?,
        false => Path::new("/").join(config_file("model")),
    };
    let by_animctl = fs::read_to_string(&conf).is_ok_and(|text| text == place::chosen(&own));
    if is_configured && !by_animctl {
        let origin = loaded.origins.of("model.path");
        return Err(Failure::new(format!(
            "`{name}` is the configured model ({origin}); choose another one there, or by `animctl model use`, first"
        )));
    }
    let next = if on.user {
        for path in std::iter::once(&own).chain(by_animctl.then_some(&conf)) {
            fs::remove_file(path).map_err(Failure::file("remove", path))?;
        }
        match on.connect().await {
            Ok(ctl) if ctl.manager.reload().await.is_ok() => "jobs can choose it no longer",
            _ => "it is gone when animd is started",
        }
    } else {
        needs_root(&format!("animctl model remove {}", quoted(name)))?;
        for_system(&place::removal(name, by_animctl))?
    };
    let none =
        if is_configured { "; no model is configured now: `animctl model use NAME` chooses one" } else { "" };
    match on.json {
        true => print(json!({"name": name, "next": next})),
        false => print(format!("`{name}` is removed, and its files are where they were; {next}{none}")),
    }
    Ok(Exit::Done)
}

/// Forgets a `LoRA` or a folder of them; `why` says that no model has the name.
async fn remove_lora(name: &str, why: String, on: On) -> Result {
    let root = Path::new("/");
    let conf = match on.user {
        true => user_config()?,
        false => root.join(config_file("model")),
    };
    let folder = conf.parent().unwrap_or(root);
    let Some(added) = known_loras::added(name, folder, &Sandbox::of(on.user))? else {
        return Err(Failure::new(format!(
            "{why}; nor was a LoRA of this name or path added by `animctl model add`"
        )));
    };
    let path = show(&added.path);
    let next = if on.user {
        fs::remove_file(&added.file).map_err(Failure::file("remove", &added.file))?;
        match on.connect().await {
            Ok(ctl) if ctl.manager.reload().await.is_ok() => "jobs can choose it no longer",
            _ => "it is gone when animd is started",
        }
    } else {
        needs_root(&format!("animctl model remove {}", quoted(name)))?;
        let file = added.file.strip_prefix(root).unwrap_or(&added.file).to_owned();
        for_system(&Plan { gone: vec![file, added.drop_in], ..Plan::default() })?
    };
    match on.json {
        true => print(json!({"name": name, "next": next})),
        false => print(format!("`{path}` is removed from the LoRAs, and stays where it is; {next}")),
    }
    Ok(Exit::Done)
}

/// Returns the file that makes a model the configured one of the user's own service.
fn user_config() -> Result<PathBuf> {
    let sources = Sources { user: true, vars: std::env::vars_os().collect(), ..Sources::default() };
    Ok(sources.drop_ins()?.join(config_file("model").file_name().unwrap_or_default()))
}

fn for_system(plan: &Plan) -> Result<&'static str> {
    let root = Path::new("/");
    let targets = || Sandbox::read(root).binds.into_iter().map(|bind| bind.target).collect::<Vec<_>>();
    let before = targets();
    if !trial::has_systemd() {
        plan.or_undo(root, || plan.write(root))?;
        return Ok("the service sees it no longer when animd is started");
    }
    let next = plan.or_undo(root, || {
        plan.write(root)?;
        reread()?;
        restart()
    })?;
    // A running service still has something mounted there.
    if !is_active() {
        let after = targets();
        let hidden: Vec<PathBuf> = before.into_iter().filter(|target| !after.contains(target)).collect();
        place::tidy(root, &hidden);
    }
    Ok(next)
}
