//! A whole model in a folder.

use std::path::{Path, PathBuf};

use super::open::{open_clip, open_dit, open_expert, open_t5, open_vae};
use super::source::Weights;
use super::{carried, experts, find, refusals};
use crate::{Error, Result};
use animd_protocol::dims::{ClipConfig, DitConfig, T5Config, VaeConfig};
use animd_protocol::recipe::Recipe;

/// A whole model, all of it checked.
pub struct Model {
    /// The DiT; of Wan2.2 the high-noise expert.
    pub dit: (Weights, DitConfig),
    /// The low-noise expert of Wan2.2.
    pub low_noise: Option<(Weights, DitConfig)>,
    /// The `umT5` encoder.
    pub t5: (Weights, T5Config),
    /// The CLIP tower; Wan2.2 has none.
    pub clip: Option<(Weights, ClipConfig)>,
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
    /// Opens a model folder as it is downloaded. The DiT can be in a folder or file of its own, which `dit` names; Wan2.2's two
    /// experts are found there or in the model's folder. Only headers are read.
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
        let pair = experts::pair(dit.unwrap_or(folder))?;
        if dit.is_none()
            && pair.is_none()
            && !files.iter().any(|n| n.starts_with("models_") || n.starts_with("Wan2.1_VAE"))
        {
            open_dit(folder)?;
        }
        let mut errors = Vec::new();
        let mut note = |e| errors.push(e);
        let (dit, low_noise) = match &pair {
            None => (open_dit(dit.unwrap_or(folder)).map_err(&mut note).ok(), None),
            Some([high, low]) => {
                let [high, low] = [high, low].map(|path| open_expert(path).map_err(&mut note).ok());
                (high, low)
            }
        };
        let t5 = open_t5(folder).map_err(&mut note).ok();
        let clip = match pair {
            None => open_clip(folder).map_err(&mut note).ok(),
            Some(_) => None,
        };
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
        if let (Some((_, high)), Some((weights, low))) = (&dit, &low_noise)
            && high != low
        {
            let path = weights.file().map_or(folder, |p| p).display();
            note(Error::Model(format!(
                "the low-noise transformer `{path}` has other sizes than the high-noise one: they are of different models"
            )));
        }
        refusals::merge(errors)?;
        let (Some(dit), Some(t5), Some(vae), Some(tokenizer)) = (dit, t5, vae, tokenizer) else {
            return Err(Error::Internal("a part of the model is neither found nor missing".to_owned()));
        };
        Ok(Self { dit, low_noise, t5, clip, vae, tokenizer })
    }

    /// Returns the model as a value.
    pub fn recipe(&self) -> Recipe {
        let (dit, t5, vae) = (self.dit.1.clone(), self.t5.1.clone(), self.vae.1.clone());
        match (&self.low_noise, &self.clip) {
            (None, Some((_, clip))) => Recipe::wan21_i2v(dit, t5, clip.clone(), vae),
            (low, _) => {
                let low = low.as_ref().map_or_else(|| dit.clone(), |(_, low)| low.clone());
                Recipe::wan22_i2v([dit, low], t5, vae)
            }
        }
    }

    /// Returns the number of parameters of all networks.
    pub fn parameters(&self) -> usize {
        let always = [&self.dit.0, &self.t5.0, &self.vae.0].into_iter();
        let low = self.low_noise.iter().map(|(weights, _)| weights);
        let clip = self.clip.iter().map(|(weights, _)| weights);
        always.chain(low).chain(clip).map(Weights::parameters).sum()
    }
}
