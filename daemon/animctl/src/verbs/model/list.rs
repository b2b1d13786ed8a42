//! `animctl model list`

use std::path::{Path, PathBuf};

use animd_common::config::Config;
use animd_common::files::show;
use animd_common::models::model_file;
use serde_json::{Value, json};

use super::super::exit::{Exit, Result};
use super::super::{On, config, print};
use super::known_loras;
use crate::doctor::sandbox::Sandbox;

#[allow(clippy::doc_markdown, reason = "the words are the help of the command")]
/// List the models that have names, and the LoRAs.
///
/// Jobs choose a model by `--model NAME`; those that choose none get the configured one. They choose LoRAs by `--lora NAME`; those in
/// the configured model's own folders are only for its jobs.
#[derive(clap::Args)]
#[command(
    after_help = "Example: animctl model list\n\nJSON: an array of objects with kind (model or lora), path, configured, and where they \
apply name, parts (an array of keys), distilled, error (why its file cannot be read)"
)]
pub struct List {}

pub async fn run(_: &List, on: On) -> Result {
    let config = config::of_service(on).await?.config;
    let (models, loras) = (models(&config), known_loras::list(&config, &Sandbox::of(on.user)));
    if on.json {
        let one = |(name, path): (&String, &PathBuf)| json!({"kind": "lora", "name": name, "path": show(path), "configured": false});
        print(Value::Array(models.into_iter().chain(loras.iter().map(one)).collect()));
        return Ok(Exit::Done);
    }
    if models.is_empty() {
        print("no model has been added; `animctl model add PATH` adds one");
    }
    for model in &models {
        let text = |key: &str| model[key].as_str().unwrap_or_default();
        let mark = if model["configured"] == true { " (configured)" } else { "" };
        match text("name") {
            "" => print(format!("{}{mark}", text("path"))),
            name => print(format!("{name}{mark}\n    {}", text("path"))),
        }
        if let Some(error) = model["error"].as_str() {
            print(format!("    {error}"));
        }
    }
    if !loras.is_empty() {
        print("LoRAs:");
    }
    for (name, path) in &loras {
        print(format!("    {name:<23} {}", show(path)));
    }
    Ok(Exit::Done)
}

/// Returns all models that have names, and the configured one if it has none.
fn models(config: &Config) -> Vec<Value> {
    let configured = config.model.path.as_deref();
    let known = config.models.list();
    let nameless = configured.filter(|path| !known.values().any(|known| known == path));
    let named = known.iter().map(|(name, path)| (Some(name.as_str()), path.as_path()));
    let all = named.chain(nameless.map(|path| (None, path)));
    all.map(|(name, path)| described(name, path, configured == Some(path))).collect()
}

fn described(name: Option<&str>, path: &Path, is_configured: bool) -> Value {
    let mut model = json!({"kind": "model", "path": show(path), "configured": is_configured});
    if let Some(name) = name {
        model["name"] = name.into();
    }
    // A folder may be one that only the service sees.
    match path.exists().then(|| model_file(path)) {
        Some(Ok(Some(file))) => {
            model["parts"] = file.parts.named().map(|(key, _)| key).collect();
            if let Some(distilled) = file.sampling.distilled {
                model["distilled"] = distilled.into();
            }
        }
        Some(Err(e)) => model["error"] = e.into(),
        _ => {}
    }
    model
}

#[cfg(test)]
mod tests {
    use std::fs;

    use animd_common::models::Models;

    use super::*;

    #[test]
    fn models_are_listed_by_their_names_and_the_configured_one_too() {
        let dir = tempfile::tempdir().expect("a folder");
        let mut config = Config { models: Models::beside(dir.path()), ..Config::default() };
        let own = config.models.own().to_owned();
        fs::create_dir_all(own.join("folder")).expect("made");
        let text = "name = \"a\"\n[parts]\ndit = \"/d\"\ntext = \"/t\"\nvae = \"/v\"\n[sampling]\ndistilled = true\n";
        fs::write(own.join("a.toml"), text).expect("written");
        fs::write(own.join("broken.toml"), "name =").expect("written");
        config.model.path = Some(own.join("a.toml"));
        let listed = models(&config);
        let of =
            |name: &str| listed.iter().find(|model| model["name"] == name).expect("it is listed").clone();
        assert_eq!((&of("a")["configured"], &of("a")["distilled"]), (&true.into(), &true.into()));
        assert_eq!(of("a")["parts"], json!(["dit", "vae", "text"]));
        assert!(of("broken")["error"].as_str().is_some_and(|e| e.contains("broken.toml")));
        assert_eq!(of("folder")["configured"], false);
        config.model.path = Some("/elsewhere/wan".into());
        let last = models(&config).pop().expect("there are some");
        assert_eq!(last, json!({"kind": "model", "path": "/elsewhere/wan", "configured": true}));
    }
}
