//! `animctl model use NAME`

use std::path::{Path, PathBuf};

use animd_common::config::{Loaded, Origins, Sources};
use animd_common::files::{show, write_atomic};
use animd_protocol::sources::quoted;
use serde_json::json;

use super::super::dropin::{self, Plan, needs_root, reread, restart};
use super::super::exit::{Exit, Failure, Result};
use super::super::{On, config, print};
use super::{place, search, trial};

/// Make a model that was added the configured one.
///
/// Jobs that choose no model get it. The service restarts when no job runs.
#[derive(clap::Args)]
#[command(
    after_help = "Example: sudo animctl model use wan2.1_i2v_480p_14B_fp8_scaled\n\nJSON: name, path, next, notes (an array)"
)]
pub struct Use {
    /// The model's name; `animctl model list` shows all
    name: String,
}

pub async fn run(args: &Use, on: On) -> Result {
    let loaded = config::load(None, on.user)?;
    let path = loaded.config.models.find(&args.name).map_err(Failure::new)?;
    let next = if on.user {
        search::open(&loaded.config.engine_program(), &path, &[])?;
        let sources = Sources { user: true, vars: std::env::vars_os().collect(), ..Sources::default() };
        choose_for_user(&sources, &path, on).await?
    } else {
        needs_root(&format!("animctl model use {}", quoted(&args.name)))?;
        for_system(&loaded, &path)?
    };
    let notes = overruled(&loaded);
    match on.json {
        true => print(json!({"name": args.name, "path": show(&path), "next": next, "notes": notes})),
        false => {
            print(format!("`{}` is the configured model; {next}", args.name));
            notes.iter().for_each(print);
        }
    }
    Ok(Exit::Done)
}

fn for_system(loaded: &Loaded, path: &Path) -> Result<&'static str> {
    let root = Path::new("/");
    let mut plan = Plan { inside: path.to_owned(), ..Plan::default() };
    place::choose(&mut plan);
    if !trial::has_systemd() {
        plan.or_undo(root, || plan.write(root))?;
        return Ok("it is used when animd is started");
    }
    plan.or_undo(root, || {
        trial::open(&loaded.config.engine_program(), path, &[])?;
        plan.write(root)?;
        reread()?;
        restart()
    })
}

/// Makes a model the configured one of the user's own service, and returns a sentence that says from when on.
pub async fn choose_for_user(sources: &Sources, path: &Path, on: On) -> Result<&'static str> {
    let conf: PathBuf = sources.drop_ins()?.join(dropin::config("model").file_name().unwrap_or_default());
    if let Some(parent) = conf.parent() {
        std::fs::create_dir_all(parent).map_err(Failure::file("make", parent))?;
    }
    write_atomic(&conf, place::chosen(path).as_bytes(), 0o644).map_err(Failure::file("write", &conf))?;
    Ok(match on.connect().await {
        Ok(ctl) if ctl.manager.reload().await.is_ok() => "it is loaded with the next job",
        _ => "it is used when animd is started",
    })
}

/// Returns a sentence for each value of the configuration that goes before the choice of a model.
pub fn overruled(loaded: &Loaded) -> Vec<String> {
    let dit = loaded.config.model.dit.as_ref();
    let place = |origins: &Origins, key: &str| origins.of(key).to_string();
    dit.map(|dit| {
        format!(
            "the configuration still takes the transformer from `{}` (model.dit, {}); remove that line",
            show(dit),
            place(&loaded.origins, "model.dit")
        )
    })
    .into_iter()
    .collect()
}
