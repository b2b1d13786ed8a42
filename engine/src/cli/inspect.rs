//! `animd-engine inspect`.

use std::path::PathBuf;

use animd_engine::{Error, Result, inspect};

use super::{print, print_json};

/// Say what model a folder holds, and what is missing from it.
#[derive(clap::Args)]
#[command(after_help = "\
Example:
  animd-engine inspect ~/models/Wan2.1-I2V-14B-480P
Exit status: 1 if the folder holds no model that can be used.")]
pub struct Inspect {
    /// The folder
    dir: PathBuf,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

impl Inspect {
    /// Runs the command.
    pub fn run(self) -> Result<()> {
        let found = inspect::inspect(&self.dir);
        if self.json {
            print_json(&found)?;
        } else {
            print(&found.to_string())?;
        }
        if found.usable {
            Ok(())
        } else {
            Err(Error::Model(format!("`{}` holds no complete model", self.dir.display())))
        }
    }
}
