//! `animctl model add DIR`

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use animd_common::config::{Config, Sources};
use animd_common::files::{show, write_atomic};
use serde_json::json;

use super::dropin::{Plan, apply, needs_root, real, service_user};
use super::exit::{Exit, Failure, Result};
use super::{On, path, print};
use crate::doctor::{READ, refusal_from};

/// Let the service see a model's folder, and use it.
#[derive(clap::Args)]
#[command(after_help = "Example: sudo animctl model add ~/models/Wan2.1-I2V-14B-480P")]
pub struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(clap::Subcommand)]
enum Verb {
    Add(Add),
}

/// Use the model in this folder.
///
/// It can be in the layout in which it was downloaded. The files stay where they are.
///
/// For the installed service this writes two files: one that lets its sandbox read this folder and nothing around it
/// (/etc/systemd/system/animd.service.d/animctl-model.conf), and one for its configuration
/// (/etc/animd/conf.d/animctl-model.toml). The service restarts when no job runs. With --user it writes only the
/// configuration.
#[derive(clap::Args)]
#[command(
    after_help = "Example: sudo animctl model add ~/models/Wan2.1-I2V-14B-480P\n\nJSON: path, inside (where the service sees it), next"
)]
struct Add {
    /// The folder
    #[arg(value_parser = path())]
    dir: PathBuf,
}

pub async fn run(args: &Args, on: On) -> Result {
    let Verb::Add(Add { dir }) = &args.verb;
    let dir = real(dir)?;
    inspect(&dir)?;
    let (inside, next) = if on.user { for_user(&dir, on).await? } else { for_system(&dir)? };
    match on.json {
        true => print(json!({"path": show(&dir), "inside": show(&inside), "next": next})),
        false => print(format!("the model is `{}`; {next}", show(&dir))),
    }
    Ok(Exit::Done)
}

/// Checks with the engine that the folder holds a model.
fn inspect(dir: &Path) -> Result<()> {
    let program = Config::default().engine_program();
    let output = Command::new(&program).arg("inspect").arg(dir).stdin(Stdio::null()).output();
    let output = output.map_err(Failure::file("run", &program))?;
    if output.status.success() {
        return Ok(());
    }
    let text = String::from_utf8_lossy(&output.stderr);
    Err(Failure::new(text.trim().trim_start_matches("error: ").to_owned()))
}

fn for_system(dir: &Path) -> Result<(PathBuf, &'static str)> {
    needs_root(&format!("animctl model add '{}'", show(dir)))?;
    let plan = Plan::model(dir);
    if let Some(user) = service_user()
        && let Some(why) = refusal_from(dir, dir, &user, READ)
    {
        return Err(Failure::new(format!(
            "{why}; allow it: `chmod -R a+rX '{0}'`, or `setfacl -R -m u:animd:rX '{0}'`",
            show(dir)
        )));
    }
    let root = Path::new("/");
    let next = plan.or_undo(root, || plan.write(root).and_then(|()| apply()))?;
    Ok((plan.inside, next))
}

async fn for_user(dir: &Path, on: On) -> Result<(PathBuf, &'static str)> {
    let sources = Sources { user: true, vars: std::env::vars_os().collect(), ..Sources::default() };
    let conf = sources.drop_ins()?.join("animctl-model.toml");
    if let Some(parent) = conf.parent() {
        std::fs::create_dir_all(parent).map_err(Failure::file("make", parent))?;
    }
    let text = format!("[model]\npath = {}\n", toml::Value::from(dir.to_string_lossy().into_owned()));
    write_atomic(&conf, text.as_bytes(), 0o644).map_err(Failure::file("write", &conf))?;
    let next = match on.connect().await {
        Ok(ctl) if ctl.manager.reload().await.is_ok() => "it is loaded with the next job",
        _ => "it is used when animd is started",
    };
    Ok((dir.to_owned(), next))
}
