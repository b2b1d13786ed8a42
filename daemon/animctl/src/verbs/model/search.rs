//! Asks the engine what model files there are.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use animd_common::files::show;
use animd_protocol::findings::Findings;

use super::super::exit::{Failure, Result};
use super::super::path;

/// Where to search, and what is named for a part.
#[derive(clap::Args, Clone, Debug, Default)]
pub struct Search {
    /// Folders and files: a model's folder, ComfyUI's, a Hugging Face cache, single files; several at once
    #[arg(value_name = "PATH", value_parser = path())]
    pub paths: Vec<PathBuf>,
    /// Use this file or folder as the transformer, of Wan2.1
    #[arg(long, value_name = "PATH", value_parser = path(), conflicts_with_all = ["high_noise", "low_noise"])]
    pub dit: Option<PathBuf>,
    /// Use this one as the transformer of the noisy steps, of Wan2.2
    #[arg(long, value_name = "PATH", value_parser = path())]
    pub high_noise: Option<PathBuf>,
    /// Use this one as the transformer of the last steps, of Wan2.2
    #[arg(long, value_name = "PATH", value_parser = path())]
    pub low_noise: Option<PathBuf>,
    /// Use this one as the text encoder
    #[arg(long, value_name = "PATH", value_parser = path())]
    pub text: Option<PathBuf>,
    /// Use this one as the image encoder
    #[arg(long, value_name = "PATH", value_parser = path())]
    pub clip: Option<PathBuf>,
    /// Use this one as the VAE
    #[arg(long, value_name = "PATH", value_parser = path())]
    pub vae: Option<PathBuf>,
    /// Use this one as the tokenizer
    #[arg(long, value_name = "PATH", value_parser = path())]
    pub tokenizer: Option<PathBuf>,
}

impl Search {
    /// Returns what is named for a part, with its option.
    fn named(&self) -> impl Iterator<Item = (&'static str, &PathBuf)> {
        let all = [
            ("--dit", &self.dit),
            ("--high-noise", &self.high_noise),
            ("--low-noise", &self.low_noise),
            ("--text", &self.text),
            ("--clip", &self.clip),
            ("--vae", &self.vae),
            ("--tokenizer", &self.tokenizer),
        ];
        all.into_iter().filter_map(|(option, path)| Some((option, path.as_ref()?)))
    }

    /// Returns what the engine finds. It matches `LoRAs` with these models, too.
    ///
    /// # Errors
    /// What is named for a part is not that part; or the engine cannot be run.
    pub fn run(&self, program: &Path, known: &[&Path]) -> Result<Findings> {
        if self.paths.is_empty() && self.named().next().is_none() {
            return Err(Failure::usage("name a folder or a file: `animctl model add PATH`"));
        }
        let mut command = Command::new(program);
        command.args(["find", "--json"]);
        for model in known {
            command.arg("--known").arg(model);
        }
        for (option, path) in self.named() {
            command.arg(option).arg(path);
        }
        let output = command.arg("--").args(&self.paths).stdin(Stdio::null()).output();
        let output = output.map_err(Failure::file("run", program))?;
        // Where no model is whole, the engine says what there is, and fails.
        serde_json::from_slice(&output.stdout).map_err(|e| {
            let said = String::from_utf8_lossy(&output.stderr);
            match said.trim().trim_start_matches("error: ") {
                "" => {
                    Failure::new(format!("`{}` does not answer as this animctl expects: {e}", show(program)))
                }
                said => Failure::new(said),
            }
        })
    }
}

/// Has the engine open a model, with these words for `animd-engine inspect` besides.
///
/// # Errors
/// What the engine says against it.
pub fn open(program: &Path, model: &Path, more: &[String]) -> Result<()> {
    let output = Command::new(program).arg("inspect").arg(model).args(more).stdin(Stdio::null()).output();
    let output = output.map_err(Failure::file("run", program))?;
    if output.status.success() {
        return Ok(());
    }
    Err(refused(&[output.stdout, output.stderr].concat()))
}

/// Returns the failure of an engine that refuses a model, by its words: the last line, and the details above it.
pub fn refused(said: &[u8]) -> Failure {
    let said = String::from_utf8_lossy(said);
    let last =
        said.lines().rev().find_map(|line| line.strip_prefix("error: ")).unwrap_or("it cannot be used");
    let detail = said.lines().filter(|line| !line.starts_with("error: ")).collect::<Vec<_>>().join("\n");
    Failure::new(format!("{}\n{last}", detail.trim()).trim().to_owned())
}
