//! `animd-engine inspect`.

use std::path::PathBuf;

use animd_engine::find::{Usable, by_names};
use animd_engine::weights::identify;
use animd_engine::{Error, Result, inspect};

use super::{print, print_json};

/// Say what model a folder holds, and what is missing from it.
#[derive(clap::Args)]
#[command(after_help = "\
Example:
  animd-engine inspect ~/models/Wan2.1-I2V-14B-480P
  animd-engine inspect --each --json ~/ComfyUI/models/*/*.safetensors
Exit status: 1 if the folder holds no model that can be used.")]
pub struct Inspect {
    /// The folder, or the model file (`NAME.toml`)
    #[arg(required = true)]
    paths: Vec<PathBuf>,
    /// Say of each file, or of each folder with the shards of one part, what it is by itself
    #[arg(long)]
    each: bool,
    #[allow(clippy::doc_markdown, reason = "the words are the help of the option")]
    /// Say also whether the model can be used with this LoRA, which a job would choose by this name and these strengths
    #[arg(long, value_name = "NAME[:STRENGTH[:LOW]]", conflicts_with = "each")]
    lora: Vec<String>,
    #[allow(clippy::doc_markdown, reason = "the words are the help of the option")]
    /// A folder of LoRAs, or a single one, besides the model's own
    #[arg(long, value_name = "PATH")]
    lora_folder: Vec<PathBuf>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

impl Inspect {
    /// Runs the command.
    pub fn run(self) -> Result<()> {
        if self.each {
            return each(&self.paths, self.json);
        }
        let [dir] = &self.paths[..] else {
            return Err(Error::Setting(
                "one folder is inspected at a time; add --each for several files".into(),
            ));
        };
        let found = inspect::inspect(dir);
        let loras = match found.usable && !self.lora.is_empty() {
            true => by_names(dir, &self.lora, &self.lora_folder)?,
            false => Vec::new(),
        };
        if self.json {
            let mut json = serde_json::to_value(&found).map_err(|e| Error::Internal(e.to_string()))?;
            if !self.lora.is_empty() {
                json["loras"] = serde_json::to_value(&loras).map_err(|e| Error::Internal(e.to_string()))?;
            }
            print_json(&json)?;
        } else {
            print(&found.to_string())?;
            for Usable { name, path, tensors, needs_two_strengths } in &loras {
                let how = match needs_two_strengths {
                    true => format!(
                        "usable with two strengths, the high-noise transformer's first, as `{name}:1:1` for both or `{name}:1:0` \
                         for the first"
                    ),
                    false => "ok".to_owned(),
                };
                print(&format!(
                    "\nLoRA {name}: {how}, changes {tensors} tensors\n  file: {}",
                    path.display()
                ))?;
            }
        }
        if found.usable {
            Ok(())
        } else {
            Err(Error::Model(format!("`{}` holds no complete model", dir.display())))
        }
    }
}

/// Says of each file what it is.
fn each(paths: &[PathBuf], json: bool) -> Result<()> {
    let found: Vec<_> = paths.iter().map(|path| identify(path)).collect();
    if json {
        return print_json(&found);
    }
    for one in &found {
        let what = match (&one.part, &one.refusal) {
            (_, Some(why)) => why.clone(),
            (Some(part), None) => format!("{}, {:.2} GB", part.component.title(), part.bytes as f64 / 1e9),
            (None, None) => "a LoRA".to_owned(),
        };
        print(&format!("{}: {what}", one.path.display()))?;
    }
    Ok(())
}
