//! Runs every item of a fixture directory.

mod clip;
mod dit;
mod e2e;
mod goldens;
mod image;
mod noise;
mod quantised;
mod schedule;
mod teacache;
mod text;
mod vae;

use std::path::Path;

use animd_engine::backend::cpu::Cpu;
use animd_engine::model::{clip::Clip, dit::Dit, t5::T5, vae::Vae};
use animd_engine::text::Tokenizer;
use animd_engine::weights::{ModelDir, open_clip, open_dit, open_t5, open_vae};
use anyhow::{Context as _, Result};

pub use goldens::{Goldens, Item};

/// The error that f32 arithmetic in another order may have, relative L2: the goldens are 1e-6 from an f64 run at most.
const MODEL: f64 = 5e-6;
/// The same after sampling, which amplifies.
const LATENTS: f64 = 2e-5;
/// Sigmas, tables and random numbers, absolute.
const ABSOLUTE: f64 = 1e-6;
/// 8-bit activations, simulated. A value whose rounding falls the other way moves by a sixteenth of itself, and carries
/// on: changing one input by its last bit moves the result by up to 1.4e-2, while leaving the simulation out moves it by
/// 1.8e-2 and more.
const SIMULATED: f64 = 1.5e-2;

/// The fixture's model, loaded.
struct Model {
    backend: Cpu,
    tokenizer: Tokenizer,
    dit: Dit<Cpu>,
    t5: T5<Cpu>,
    clip: Clip<Cpu>,
    vae: Vae<Cpu>,
}

impl Model {
    fn load(dir: &Path) -> Result<Self> {
        let backend = Cpu::new();
        let files = ModelDir::open(dir)?;
        let (dit, dit_config) = open_dit(&files.dit)?;
        let (t5, t5_config) = open_t5(&files.t5)?;
        let (clip, clip_config) = open_clip(&files.clip)?;
        let (vae, vae_config) = open_vae(&files.vae)?;
        Ok(Self {
            tokenizer: Tokenizer::open(&files.tokenizer)?,
            dit: Dit::load(&backend, &dit, &dit_config)?,
            t5: T5::load(&backend, &t5, &t5_config)?,
            clip: Clip::load(&backend, &clip, &clip_config)?,
            vae: Vae::load(&backend, &vae, &vae_config)?,
            backend,
        })
    }
}

/// Checks everything in `dir` and returns one [`Item`] for each thing that is there, checked or not.
///
/// # Errors
/// If the directory cannot be read, or the engine refuses or fails where a result was due.
pub fn run(dir: &Path) -> Result<Vec<Item>> {
    let mut goldens = Goldens::open(dir)?;
    let model = Model::load(&dir.join("official")).context("cannot load official/")?;
    text::check(&mut goldens, &model).context("text")?;
    image::check(&mut goldens).context("image")?;
    clip::check(&mut goldens, &model).context("clip")?;
    vae::check(&mut goldens, &model).context("vae")?;
    dit::check(&mut goldens, &model).context("dit")?;
    dit::check_quantised(&mut goldens).context("quantised dit")?;
    schedule::check(&mut goldens, &model).context("schedules")?;
    e2e::check(&mut goldens, &model).context("end to end")?;
    teacache::check(&mut goldens, &model).context("teacache")?;
    noise::check(&mut goldens).context("noise")?;
    Ok(goldens.finish())
}
