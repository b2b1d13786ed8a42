//! `animd-engine inspect`.

use std::path::PathBuf;

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
        if self.json {
            print_json(&found)?;
        } else {
            print(&found.to_string())?;
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
