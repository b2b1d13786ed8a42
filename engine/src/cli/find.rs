//! `animd-engine find`.

use std::path::PathBuf;

use animd_engine::find::{Named, find};
use animd_engine::{Error, Result};

use animd_protocol::findings::FoundModel;

use super::{print, print_json};

/// Find models in folders, ComfyUI's trees and the Hugging Face cache: which parts there are, which fit together, and what is
/// missing.
///
/// What a file is follows from what is in it. Only headers are read, and nothing is changed. `animctl model add` does the same
/// and makes a model of it.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  animd-engine find ~/ComfyUI ~/.cache/huggingface/hub
  animd-engine find ~/models --json
  animd-engine find ~/ComfyUI/models --dit wan2.1_i2v_480p_14B_fp16.safetensors
Exit status: 1 if no whole model was found, nor LoRAs alone for a known model.")]
pub struct Find {
    /// Folders and files to search
    #[arg(value_name = "PATH")]
    paths: Vec<PathBuf>,
    /// Take this file or folder as the transformer of Wan2.1
    #[arg(long, value_name = "PATH", conflicts_with_all = ["high_noise", "low_noise"])]
    dit: Option<PathBuf>,
    /// Take this one as the transformer of the noisy steps of Wan2.2
    #[arg(long, value_name = "PATH")]
    high_noise: Option<PathBuf>,
    /// Take this one as the transformer of the last steps of Wan2.2
    #[arg(long, value_name = "PATH")]
    low_noise: Option<PathBuf>,
    /// Take this one as the text encoder
    #[arg(long, value_name = "PATH")]
    text: Option<PathBuf>,
    /// Take this one as the image encoder
    #[arg(long, value_name = "PATH")]
    clip: Option<PathBuf>,
    /// Take this one as the VAE
    #[arg(long, value_name = "PATH")]
    vae: Option<PathBuf>,
    /// Take this one as the tokenizer
    #[arg(long, value_name = "PATH")]
    tokenizer: Option<PathBuf>,
    #[allow(clippy::doc_markdown, reason = "the words are the help of the option")]
    /// Say of LoRAs whether they go with this model, too: its folder or its model file
    #[arg(long, value_name = "MODEL")]
    known: Vec<PathBuf>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

impl Find {
    /// Runs the command.
    pub fn run(self) -> Result<()> {
        let named = [
            ("dit", self.dit),
            ("high_noise", self.high_noise),
            ("low_noise", self.low_noise),
            ("text", self.text),
            ("clip", self.clip),
            ("vae", self.vae),
            ("tokenizer", self.tokenizer),
        ];
        let named: Vec<Named> =
            named.into_iter().filter_map(|(key, path)| Some(Named { key, path: path? })).collect();
        if self.paths.is_empty() && named.is_empty() {
            return Err(Error::Setting("name a folder or a file to search".into()));
        }
        let found = find(&self.paths, &named, &self.known)?;
        if self.json {
            print_json(&found)?;
        } else {
            print(&found.to_string())?;
        }
        let is_useful = found.models.iter().any(FoundModel::is_whole)
            || (found.models.is_empty() && found.loras.iter().any(|lora| !lora.models.is_empty()));
        match is_useful {
            true => Ok(()),
            false => Err(Error::Model("no whole model was found".into())),
        }
    }
}
