//! `animctl model show [NAME]`

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use animd_common::files::show;
use animd_common::models::model_file;
use animd_protocol::model_file::ModelFile;
use serde_json::Value;

use super::super::exit::{Exit, Failure, Result};
use super::super::{On, config, print};
use super::search;
use crate::doctor::outside::Outside;
use crate::doctor::sandbox::Sandbox;

/// Show a model: its parts, where they lie, and what is wrong with them.
#[derive(clap::Args)]
#[command(
    after_help = "Example: animctl model show wan-480p\n\nJSON: path, configured, usable, file (the model file's text, where there is \
one), and what `animd-engine inspect --json` says: model, parts, problems, parameters, bytes"
)]
pub struct Show {
    /// The model's name [default: the configured model]
    name: Option<String>,
}

pub async fn run(args: &Show, on: On) -> Result {
    let config = config::of_service(on).await?.config;
    let path: PathBuf = match &args.name {
        Some(name) => config.models.find(name).map_err(Failure::new)?,
        None => config.model.path.clone().ok_or_else(|| {
            Failure::new("no model is configured; `animctl model list` shows those that were added")
        })?,
    };
    let sandbox = Sandbox::of(on.user);
    let file = path.exists().then(|| model_file(&path)).transpose().map_err(Failure::new)?.flatten();
    let outside = Outside::of(&path, &sandbox).map_err(Failure::new)?;
    let is_configured = config.model.path.as_deref() == Some(&*path);
    if on.json {
        let mut seen = inspected(&config.engine_program(), &outside)?;
        seen["path"] = show(&path).into();
        seen["configured"] = is_configured.into();
        if let Some(file) = &file {
            seen["file"] = file.to_toml().into();
        }
        print(&seen);
        return Ok(if seen["usable"] == true { Exit::Done } else { Exit::Failed });
    }
    let mark = if is_configured { " (configured)" } else { "" };
    print(format!("{}{mark}", show(&path)));
    if let Some(file) = &file {
        parts(file, &sandbox);
    }
    search::open(&config.engine_program(), outside.path(), &[])
        .map_err(|e| Failure { text: outside.words(&e.text), ..e })?;
    print("all parts are there and fit together");
    Ok(Exit::Done)
}

/// Prints the parts of a model file, each as it lies on this machine.
fn parts(file: &ModelFile, sandbox: &Sandbox) {
    for (key, path) in file.parts.named() {
        print(format!("    {key:<11} {}", show(sandbox.outside(path).0)));
    }
    for lora in &file.loras {
        print(format!(
            "    {:<11} {}, strength {}",
            "lora",
            show(sandbox.outside(&lora.file).0),
            lora.strength
        ));
    }
    let sampling = file.sampling;
    let said = [
        sampling.distilled.map(|yes| if yes { "distilled to few steps" } else { "not distilled" }.to_owned()),
        sampling.steps.map(|steps| format!("{steps} steps")),
        sampling.shift.map(|shift| format!("shift {shift}")),
        sampling.guidance.map(|guidance| format!("guidance {guidance}")),
    ];
    let said: Vec<String> = said.into_iter().flatten().collect();
    if !said.is_empty() {
        print(format!("    {:<11} {}", "sampling", said.join(", ")));
    }
}

/// Returns what the engine says of a model.
fn inspected(program: &Path, model: &Outside) -> Result<Value> {
    let output =
        Command::new(program).args(["inspect", "--json"]).arg(model.path()).stdin(Stdio::null()).output();
    let output = output.map_err(Failure::file("run", program))?;
    let said = model.words(&String::from_utf8_lossy(&output.stdout));
    let seen: Option<Value> = serde_json::from_str(&said).ok();
    let mut seen = seen.filter(Value::is_object).ok_or_else(|| search::refused(&output.stderr))?;
    // `path` says where the model is.
    seen.as_object_mut().map(|object| object.remove("folder"));
    Ok(seen)
}
