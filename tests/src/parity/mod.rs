//! Runs every item of a fixture directory.

mod clip;
mod dit;
mod e2e;
mod flf;
mod goldens;
mod image;
pub mod layouts;
mod noise;
mod quantised;
mod schedule;
mod teacache;
mod text;
mod vae;
mod wan22;

use std::path::Path;

use animd_engine::backend::cpu::Cpu;
use animd_engine::backend::{Backend, Keeping};
use animd_engine::model::{clip::Clip, dit::Dit, t5::T5, vae::Vae};
use animd_engine::text::Tokenizer;
use animd_engine::weights;
use anyhow::{Context as _, Result};

pub use goldens::{Goldens, Item};

/// The error that f32 arithmetic in another order may have, relative L2: the goldens are 1e-6 from an f64 run at most.
const MODEL: f64 = 5e-6;
/// The error that f32 arithmetic in another order may have after sampling, which amplifies it.
const LATENTS: f64 = 2e-5;
/// The absolute error of sigmas, tables and random numbers.
const ABSOLUTE: f64 = 1e-6;
/// The error with simulated 8-bit activations. A value that rounds the other way moves by a sixteenth of itself, and
/// the error propagates: changing one input by its last bit moves the result by up to 1.4e-2, while leaving out the
/// simulation moves it by 1.8e-2 and more.
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
        let loader = backend.loader(Keeping::F32);
        let weights::Model { dit, t5, clip, vae, tokenizer, .. } = weights::Model::open(dir, None)?;
        let clip = clip.context("there is no CLIP tower")?;
        Ok(Self {
            tokenizer: Tokenizer::open(&tokenizer)?,
            dit: Dit::load(&loader, &dit.0, &dit.1)?,
            t5: T5::load(&loader, &t5.0, &t5.1)?,
            clip: Clip::load(&loader, &clip.0, &clip.1)?,
            vae: Vae::load(&loader, &vae.0, &vae.1)?,
            backend,
        })
    }
}

/// Checks every layout of model files in `dir`, or everything of one model, and returns one [`Item`] for each thing that is there, checked or not.
///
/// # Errors
/// If the directory cannot be read, or the engine refuses or fails where a result was due.
pub fn run(dir: &Path) -> Result<Vec<Item>> {
    if dir.join("layouts.json").exists() {
        return layouts::run(dir);
    }
    let mut goldens = Goldens::open(dir)?;
    if dir.join("official/high_noise_model").exists() {
        wan22::check(&mut goldens).context("two experts")?;
        if dir.join("flf2v").exists() {
            flf::check(&mut goldens).context("first and last frame")?;
        }
        return Ok(goldens.finish());
    }
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
