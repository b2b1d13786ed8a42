//! A whole model in a folder.

use std::path::{Path, PathBuf};

use super::open::{open_clip, open_dit, open_t5, open_vae};
use super::source::Weights;
use super::{carried, find, refusals};
use crate::{Error, Result};
use animd_protocol::dims::{ClipConfig, DitConfig, T5Config, VaeConfig};
use animd_protocol::recipe::Recipe;

/// A whole model, all of it checked.
pub struct Model {
    /// The DiT.
    pub dit: (Weights, DitConfig),
    /// The `umT5` encoder.
    pub t5: (Weights, T5Config),
    /// The CLIP tower.
    pub clip: (Weights, ClipConfig),
    /// The VAE.
    pub vae: (Weights, VaeConfig),
    /// The file with the tokenizer: its own, or the text encoder's.
    pub tokenizer: PathBuf,
}

/// Returns the file that has the tokenizer of a model: one of its own in the folder, or the text encoder's file if that
/// carries it.
pub(crate) fn tokenizer(folder: &Path, encoder: Option<&Path>) -> Option<PathBuf> {
    find::tokenizer(folder)
        .or_else(|| encoder.filter(|file| carried::is_carried_by(file)).map(Path::to_owned))
}

impl Model {
    /// Opens a model folder as it is downloaded. The DiT can be in a folder or file of its own, which `dit` names. Only
    /// headers are read.
    ///
    /// # Errors
    /// One [`Error::Model`] for everything that is wrong: files that are missing, half-copied or of another model.
    pub fn open(folder: &Path, dit: Option<&Path>) -> Result<Self> {
        if !folder.exists() {
            return Err(Error::Model(format!("the model folder `{}` does not exist", folder.display())));
        }
        if !folder.is_dir() {
            return Err(Error::Model(format!(
                "`{}` is a file; name the folder of the model",
                folder.display()
            )));
        }
        // An empty folder, or one for another program, is one problem and not five.
        let files = find::list(folder)?;
        if dit.is_none() && !files.iter().any(|n| n.starts_with("models_") || n.starts_with("Wan2.1_VAE")) {
            open_dit(folder)?;
        }
        let mut errors = Vec::new();
        let mut note = |e| errors.push(e);
        let dit = open_dit(dit.unwrap_or(folder)).map_err(&mut note).ok();
        let t5 = open_t5(folder).map_err(&mut note).ok();
        let clip = open_clip(folder).map_err(&mut note).ok();
        let vae = open_vae(folder).map_err(&mut note).ok();
        let tokenizer = tokenizer(folder, t5.as_ref().and_then(|(weights, _)| weights.file()));
        if tokenizer.is_none() {
            note(Error::Model(format!(
                "`{}` holds no `google/umt5-xxl/tokenizer.json`, and its text encoder carries no tokenizer",
                folder.display()
            )));
        }
        if let Some((_, dit)) = &dit {
            let widths = [
                ("text", Some(dit.text_dim), t5.as_ref().map(|(w, c)| (w, c.dim))),
                ("images", dit.image_dim, clip.as_ref().map(|(w, c)| (w, c.dim))),
            ];
            for (what, want, found) in widths {
                let Some(want) = want else { continue };
                if let Some((weights, have)) = found.filter(|(_, have)| *have != want) {
                    let path = weights.file().map_or(folder, |p| p).display();
                    note(Error::Model(format!(
                        "the DiT takes {what} of width {want}, and `{path}` gives {have}"
                    )));
                }
            }
        }
        refusals::merge(errors)?;
        let (Some(dit), Some(t5), Some(clip), Some(vae), Some(tokenizer)) = (dit, t5, clip, vae, tokenizer)
        else {
            return Err(Error::Internal("a part of the model is neither found nor missing".to_owned()));
        };
        Ok(Self { dit, t5, clip, vae, tokenizer })
    }

    /// Returns the model as a value.
    pub fn recipe(&self) -> Recipe {
        Recipe::wan21_i2v(self.dit.1.clone(), self.t5.1.clone(), self.clip.1.clone(), self.vae.1.clone())
    }

    /// Returns the number of parameters of all four networks.
    pub fn parameters(&self) -> usize {
        [&self.dit.0, &self.t5.0, &self.clip.0, &self.vae.0].into_iter().map(Weights::parameters).sum()
    }
}
