//! `animctl model add DIR`, `verify` and `check`

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use animd_common::config::{Config, Sources};
use animd_common::files::{show, write_atomic};
use animd_protocol::model_file::check_name;
use serde_json::json;

use super::config::load;
use super::dropin::{Plan, apply, needs_root, real, service_user};
use super::exit::{Exit, Failure, Result};
use super::{On, engine, path, print};
use crate::doctor::{READ, refusal_from};

/// Let the service see a model's folder, use it, and check its files.
#[derive(clap::Args)]
#[command(after_help = "Example: sudo animctl model add ~/models/Wan2.1-I2V-14B-480P")]
pub struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(clap::Subcommand)]
enum Verb {
    Add(Add),
    Verify(Verify),
    Check(Check),
}

/// Check the model's files, tensor by tensor.
///
/// It runs `animd-engine verify` as yourself: each file's SHA-256 is compared with the last time's, and each tensor must be
/// finite and of a plausible size. This finds scales that are missing or applied twice, parts that were not copied, and bytes
/// in another order.
#[derive(clap::Args)]
#[command(
    after_help = "Example: animctl model verify\n\n`animctl model verify -- --help` shows all options.\n\nJSON: files (an \
 array: path, bytes, sha256, change, seen), parts (an array: name, tensors, mistakes)"
)]
struct Verify {
    /// The model's name, folder or file, and options of the engine's `verify` [default: the configured model]
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "MODEL")]
    options: Vec<OsString>,
}

/// Check the model by what it computes on this machine.
///
/// It runs `animd-engine check` as yourself: does the model denoise a video that it has never seen, does each block help, does
/// the prompt, does the VAE give back what it gets, does the GPU compute what the CPU does, and what do 8 bits cost each layer?
/// It takes minutes. Keep the service from using the GPU meanwhile: `animctl unload`, then `animctl drain -- animctl model
/// check`.
#[derive(clap::Args)]
#[command(
    after_help = "Example: animctl model check --report check.json\n\n`animctl model check -- --help` shows all options. The \
 report has no pictures, prompts, names of users or paths.\n\nJSON: verdict (sound, doubtful, wrong), sentence, judged, \
 version, device, networks, frames, suspects, rounding, agreement, findings"
)]
struct Check {
    /// The model's name, folder or file, and options of the engine's `check` [default: the configured model]
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "MODEL")]
    options: Vec<OsString>,
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
    let dir = match &args.verb {
        Verb::Add(Add { dir }) => dir,
        Verb::Verify(Verify { options }) => return engine::run("verify", &with_model(options, on)?, on),
        Verb::Check(Check { options }) => return engine::run("check", &with_model(options, on)?, on),
    };
    let dir = real(dir)?;
    inspect(&dir)?;
    let (inside, next) = if on.user { for_user(&dir, on).await? } else { for_system(&dir)? };
    match on.json {
        true => print(json!({"path": show(&dir), "inside": show(&inside), "next": next})),
        false => print(format!("the model is `{}`; {next}", show(&dir))),
    }
    Ok(Exit::Done)
}

/// Returns the engine's options, with the configured model where none is named.
fn with_model(options: &[OsString], on: On) -> Result<Vec<OsString>> {
    let mut options: Vec<OsString> = options.iter().filter(|option| *option != "--").cloned().collect();
    // The model comes first; `--help` needs none.
    let named = options.first().is_some_and(|first| {
        !first.as_encoded_bytes().starts_with(b"-") || first == "--help" || first == "-h"
    });
    if named {
        if let Some(model) = options.first_mut().filter(|model| is_name(model)) {
            let config = load(None, on.user)?.config;
            *model = config.models.find(&model.to_string_lossy()).map_err(Failure::new)?.into();
        }
        return Ok(options);
    }
    let model = load(None, on.user)?.config.model;
    let Some(path) = model.path else {
        return Err(Failure::new("no model is configured; name one, or add one: `animctl model add DIR`"));
    };
    let dit = model.dit.into_iter().flat_map(|dit| [OsString::from("--dit"), dit.into()]);
    Ok(std::iter::once(path.into()).chain(dit).chain(options).collect())
}

/// Returns whether a word is the name of a model: it could be one, and nothing is called so here.
fn is_name(word: &OsStr) -> bool {
    word.to_str().is_some_and(|word| check_name(word).is_ok()) && !Path::new(word).exists()
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
