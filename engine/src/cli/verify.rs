//! `animd-engine verify`.

use std::path::{Path, PathBuf};

use animd_engine::progress::{Observer, Progress, Stage};
use animd_engine::verify::{self, Known};
use animd_engine::{Error, Result};
use serde_json::json;

use super::bar::Bar;
use super::stop::Stop;
use super::{print, print_json};

/// Check a model's files: whether they are what they were, and whether every tensor is plausible.
///
/// Each file's SHA-256 is compared with the last time's. Each tensor must be finite and as large as its place in the network
/// asks for: this finds scales that are missing, applied twice or inverted, parts that were not copied, layers that were copied
/// twice, and bytes in another order. It neither needs a GPU nor computes anything: `check` does. Wrong values of a plausible
/// size, such as two layers in each other's place, only `check` can see.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  animd-engine verify ~/models/Wan2.1-I2V-14B-480P
  animd-engine verify ~/models/distilled/dit.safetensors --json
Exit status: 1 if something is wrong.

JSON with --seen: an array of objects with path and sound")]
pub struct Verify {
    /// The model's folder, a model file (`NAME.toml`), or one network's file
    #[arg(value_name = "MODEL", required_unless_present = "seen")]
    model: Option<PathBuf>,
    /// Take the DiT from this folder or file instead
    #[arg(long, value_name = "PATH")]
    dit: Option<PathBuf>,
    /// The list of the files that were seen, which is compared with and written [default: model-hashes.json in
    /// `$STATE_DIRECTORY`, else in `$XDG_STATE_HOME/animd`, else in ~/.local/state/animd]
    #[arg(long, value_name = "FILE")]
    hashes: Option<PathBuf>,
    /// Read no model, and say of each of these files whether it was verified, found sound, and not written since
    #[arg(long, value_name = "FILE", num_args = 1.., conflicts_with_all = ["model", "dit"])]
    seen: Vec<PathBuf>,
    /// Print JSON: files (an array: path, bytes, sha256, change, seen), parts (an array: name, tensors, mistakes)
    #[arg(long)]
    json: bool,
}

impl Verify {
    /// Runs the command.
    pub fn run(self) -> Result<()> {
        let list = self.hashes.or_else(known_hashes);
        let Some(model) = self.model else {
            let known = list.as_deref().map(Known::read).unwrap_or_default();
            return seen(&known, &self.seen, self.json);
        };
        let bar = Bar::new(self.json, Stop::listen()?);
        let told = |fraction| {
            bar.progress(&Progress { stage: Stage::Load, step: 0, steps: 0, fraction, seconds_left: None });
        };
        let found = verify::verify(&model, self.dit.as_deref(), list.as_deref(), &bar, &told);
        bar.finish();
        let found = found?;
        if self.json {
            print_json(&found)?;
        } else {
            print(&found.to_string())?;
        }
        found.verdict().map_or(Ok(()), |what| Err(Error::Model(what)))
    }
}

/// Says of each file whether it was verified and is as it was.
fn seen(known: &Known, files: &[PathBuf], json: bool) -> Result<()> {
    if json {
        let one = |file: &PathBuf| json!({"path": file, "sound": known.is_sound(file)});
        return print_json(&files.iter().map(one).collect::<Vec<_>>());
    }
    files.iter().try_for_each(|file| {
        let what = if known.is_sound(file) { "verified, and not written since" } else { "not verified" };
        print(&format!("{}: {what}", file.display()))
    })
}

/// Returns the list of this service, or of this user.
pub fn known_hashes() -> Option<PathBuf> {
    let folder = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let state = folder("STATE_DIRECTORY")
        .or_else(|| Some(folder("XDG_STATE_HOME")?.join("animd")))
        .or_else(|| Some(folder("HOME")?.join(".local/state/animd")))?;
    Some(state.join(Path::new("model-hashes.json")))
}
