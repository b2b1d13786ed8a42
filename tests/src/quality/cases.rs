//! The videos that are asked for, in a folder that `tests/quality/approximations.py` writes.

use std::fs;
use std::path::{Path, PathBuf};

use animd_engine::image;
use animd_engine::pipeline::{Job, model_file};
use animd_protocol::model_settings::with_model;
use animd_protocol::request::{Noise, Settings, Size};
use anyhow::{Context, Result, ensure};
use serde::Deserialize;

use super::measures;

/// All cases of a folder, `cases.json`. Their videos have the same size.
#[derive(Deserialize)]
pub struct Cases {
    /// The videos' width in pixels.
    pub width: usize,
    /// The videos' height in pixels.
    pub height: usize,
    /// The videos' number of frames.
    pub frames: u32,
    /// The cases, in their order.
    #[serde(rename = "cases")]
    pub all: Vec<Case>,
}

/// One video that is asked for.
#[derive(Deserialize)]
pub struct Case {
    /// The motion or effect.
    pub kind: String,
    /// The prompt.
    pub prompt: String,
    /// The seed of the noise.
    pub seed: u64,
    /// The picture's file.
    picture: PathBuf,
    /// The true video's file, `[frames, height, width, 3]` bytes.
    truth: PathBuf,
    /// The file that says where the true video shows what the picture shows, `[frames, height, width]` bytes of 0 and 1.
    shown: PathBuf,
}

/// The true video of a case.
pub struct Truth {
    rgb: Vec<u8>,
    shown: Vec<u8>,
}

impl Cases {
    /// Reads the cases of a folder, at most so many.
    ///
    /// # Errors
    /// Returns what is wrong with the folder.
    pub fn read(folder: &Path, most: usize) -> Result<Self> {
        let file = folder.join("cases.json");
        let text = fs::read_to_string(&file).with_context(|| format!("cannot read `{}`", file.display()))?;
        let mut cases: Self = serde_json::from_str(&text).with_context(|| format!("`{}`", file.display()))?;
        cases.all.truncate(most);
        ensure!(!cases.all.is_empty(), "`{}` has no cases", file.display());
        for case in &mut cases.all {
            for path in [&mut case.picture, &mut case.truth, &mut case.shown] {
                *path = folder.join(&*path);
            }
        }
        Ok(cases)
    }

    /// Returns the job of a case, sampled as the model's file says.
    ///
    /// # Errors
    /// Returns why the picture or the model's file cannot be used.
    pub fn job(&self, case: &Case, model: &Path) -> Result<Job> {
        let settings = Settings {
            prompt: Some(case.prompt.clone()),
            seed: Some(case.seed),
            size: Some(Size::Exact { width: self.width as u32, height: self.height as u32 }),
            frames: Some(self.frames),
            // What PyTorch draws on a CPU, from which the true snow and ripples are rendered, too.
            noise: Some(Noise::Cpu),
            ..Settings::default()
        };
        let settings = match model_file(model)? {
            Some(file) => with_model(settings, &file),
            None => settings,
        };
        let picture = image::decode(&case.picture)?;
        Ok(Job::new(&picture, settings.resolve(|| case.seed)?)?)
    }
}

impl Case {
    /// Reads the true video.
    ///
    /// # Errors
    /// Returns why it cannot be read.
    pub fn truth(&self) -> Result<Truth> {
        let read = |path: &Path| fs::read(path).with_context(|| format!("cannot read `{}`", path.display()));
        let (rgb, shown) = (read(&self.truth)?, read(&self.shown)?);
        ensure!(rgb.len() == 3 * shown.len(), "`{}` has another size than its mask", self.truth.display());
        Ok(Truth { rgb, shown })
    }
}

impl Truth {
    /// Returns the PSNR of frames against the true ones, in dB, where these show what the picture shows.
    pub fn psnr(&self, rgb: &[u8]) -> f64 {
        let shown = self.shown.iter().flat_map(|&shown| [shown != 0; 3]);
        measures::psnr(self.rgb.iter().zip(rgb).zip(shown).filter(|(_, shown)| *shown).map(|(pair, _)| pair))
    }
}
