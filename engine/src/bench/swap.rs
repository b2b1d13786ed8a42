//! Measures the exchange of `LoRA`s between jobs of a model that stays loaded.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

use animd_protocol::dims::DitConfig;
use animd_protocol::dims::schema;
use animd_protocol::lora::LoraChoice;
use animd_protocol::plan::Setup;
use animd_protocol::request::{Settings, Size};
use half::bf16;
use serde::Serialize;

use crate::backend::Backend;
use crate::image::Picture;
use crate::pipeline::{Job, Pipeline};
use crate::progress::Observer;
use crate::weights::{DType, safetensors};
use crate::{Error, Result};

use super::SEED;

/// The rank of a made-up `LoRA`: that of the largest ones in use.
const RANK: usize = 64;

/// One exchange.
#[derive(Clone, Debug, Serialize)]
pub struct Swap {
    /// Which `LoRAs` the model has after it, and how strongly.
    pub loras: Vec<String>,
    /// The parameters that were read, changed and loaded again; all of them at first.
    pub parameters: usize,
    /// The seconds from the choice until the model can compute.
    pub seconds: f64,
}

/// The exchanges, one after the other.
#[derive(Clone, Debug, Serialize)]
pub struct Swaps(pub Vec<Swap>);

impl fmt::Display for Swaps {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{:>14}{:>9}  LoRAs", "parameters", "seconds")?;
        for Swap { loras, parameters, seconds } in &self.0 {
            let loras = if loras.is_empty() { "none".to_owned() } else { loras.join(", ") };
            writeln!(f, "{:>12.2} G{seconds:>9.2}  {loras}", *parameters as f64 / 1e9)?;
        }
        Ok(())
    }
}

/// Loads a model and exchanges `LoRAs`: each of these files alone, none, and the first at half its strength. Without files, one
/// is made up that changes every large matrix.
///
/// # Errors
/// The errors of loading.
pub fn swap<B: Backend>(
    backend: B,
    setup: &Setup,
    model: &Path,
    dit: Option<&Path>,
    files: &[PathBuf],
    observer: &dyn Observer,
) -> Result<Swaps> {
    let mut pipeline = Pipeline::open(backend, setup, model, dit, None)?;
    let own =
        Temporary(std::env::temp_dir().join(format!("animd-made-up-{}.safetensors", std::process::id())));
    let files = match files {
        [] => {
            made_up(&own.0, &pipeline.recipe().experts[0].network.config)?;
            vec![own.0.clone()]
        }
        files => files.to_vec(),
    };
    let size = Size::Exact { width: 832, height: 480 };
    let request = Settings { prompt: Some("a boat".into()), size: Some(size), ..Settings::default() };
    let picture = Picture { width: 832, height: 480, rgb: vec![128; 832 * 480 * 3] };
    let job = Job::new(&picture, request.resolve(|| SEED)?)?;

    let mut swaps = Vec::new();
    let mut one = |file: Option<(&PathBuf, f64)>| -> Result<()> {
        let name = |file: &Path| file.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let both = pipeline.recipe().experts.len() > 1;
        let choice = file.map(|(file, strength)| LoraChoice {
            name: name(file),
            strength,
            strength_low: both.then_some(strength),
            strength_base: None,
            sha256: None,
        });
        let began = Instant::now();
        pipeline.adapt(choice.as_slice(), file.map(|(file, _)| file.clone()).as_slice())?;
        let parameters = pipeline.to_load();
        pipeline.prepare(&job, observer)?;
        // A download waits for everything that was enqueued.
        let parts = pipeline.parts()?;
        for expert in 0..parts.recipe.experts.len() {
            parts.models.expert(expert)?.time(parts.backend, 500.0)?;
        }
        let seconds = began.elapsed().as_secs_f64();
        swaps.push(Swap { loras: choice.iter().map(ToString::to_string).collect(), parameters, seconds });
        Ok(())
    };
    one(None)?;
    for file in &files {
        one(Some((file, 1.0)))?;
    }
    one(None)?;
    one(files.first().map(|file| (file, 0.5)))?;
    Ok(Swaps(swaps))
}

/// A file that is removed in the end, if it was made.
struct Temporary(PathBuf);

impl Drop for Temporary {
    fn drop(&mut self) {
        // Where none was made there is nothing to remove.
        let _ = fs::remove_file(&self.0);
    }
}

/// Writes a `LoRA` for every large matrix of a transformer.
fn made_up(path: &Path, config: &DitConfig) -> Result<()> {
    let matrices = schema::dit(config).into_iter().filter(|tensor| tensor.quantisable);
    let tensors = matrices.flat_map(|tensor| {
        let layer = tensor.name.trim_end_matches(".weight").to_owned();
        let (rows, cols) = (tensor.shape[0], tensor.shape[1..].iter().product());
        [
            (format!("{layer}.lora_A.weight"), vec![RANK, cols]),
            (format!("{layer}.lora_B.weight"), vec![rows, RANK]),
        ]
    });
    let tensors: Vec<(String, Vec<usize>)> = tensors.collect();
    let mut bytes = safetensors::header(tensors.iter().map(|(name, shape)| (&**name, DType::Bf16, &**shape)));
    let values: usize = tensors.iter().map(|(_, shape)| shape.iter().product::<usize>()).sum();
    // Small enough that every sum stays what it is for a model's own values.
    bytes.extend(bf16::from_f32(1.0 / 512.0).to_le_bytes().repeat(values));
    fs::write(path, bytes).map_err(Error::file("write", path))
}
