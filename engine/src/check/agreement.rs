//! Compares a few blocks of the transformer and the whole VAE on the device with the CPU in f32.

use serde::Serialize;

use super::clip;
use crate::backend::cpu::Cpu;
use crate::backend::{Backend, Keeping};
use crate::model::dit::{Blocks, Dit, Inputs};
use crate::model::vae::{self, Footage, Vae};
use crate::progress::Observer;
use crate::synth::noise;
use crate::weights::{DitConfig, HostTensor, Matrix, Model, WeightSource};
use crate::{Result, image};
use animd_protocol::plan::Setup;
use animd_protocol::profile::{AttentionKind, Place, Precision};
use animd_protocol::recipe::Component;

/// The seed of the made-up text and picture that the blocks attend to.
const SEED: u64 = 11;
/// The noise level of the blocks' input.
const LEVEL: f64 = 0.6;
/// The frames that the VAE encodes and decodes: a single one, and four together.
const FRAMES: usize = 5;
/// The height and width of these frames in pixels: as many as the CPU can do in seconds.
const SIZE: [usize; 2] = [96, 160];

/// How far the device is from the CPU: the distances over the lengths of the CPU's results.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Agreement {
    /// The blocks, with the branches of each, in bf16 and in the precision that jobs run in.
    pub branches: Vec<Branch>,
    /// The latents of a video.
    pub encoded: f64,
    /// The frames of these latents.
    pub decoded: f64,
}

/// One branch of a block.
#[derive(Clone, Debug, Serialize)]
pub struct Branch {
    /// The block's number in the model.
    pub block: usize,
    /// `self_attn`, `cross_attn` or `ffn`.
    pub name: String,
    /// In bf16.
    pub bf16: f64,
    /// In the precision that jobs run in.
    pub jobs: f64,
}

/// Compares a device with the CPU.
///
/// # Errors
/// Returns [`crate::Error::Canceled`], and errors of the weights and of the backends.
pub fn compare<B: Backend>(
    b: &B,
    setup: &Setup,
    model: &Model,
    observer: &dyn Observer,
) -> Result<Agreement> {
    let cpu = Cpu::new();
    let wanted = blocks(&cpu, model, Keeping::F32, AttentionKind::Exact, observer)?;
    let setup = b.resolve(setup);
    let jobs = Keeping { place: Place::Device, ..Keeping::of(&setup, Component::Dit) };
    let bf16 = Keeping { weights: Precision::Bf16, ..jobs };
    let bf16 = blocks(b, model, bf16, AttentionKind::Exact, observer)?;
    let jobs = blocks(b, model, jobs, setup.attention, observer)?;
    let all = wanted.iter().zip(bf16).zip(jobs);
    let branches = all.map(|(((block, branch, wanted), (_, _, bf16)), (_, _, jobs))| Branch {
        block: *block,
        name: branch.clone(),
        bf16: distance(&bf16, wanted),
        jobs: distance(&jobs, wanted),
    });
    let branches = branches.collect();
    let keeping = Keeping { place: Place::Device, ..Keeping::of(&setup, Component::Vae) };
    let [latents, frames] = through_vae(&cpu, model, Keeping::F32, None, observer)?;
    let [encoded, decoded] = through_vae(b, model, keeping, Some(&latents), observer)?;
    Ok(Agreement { branches, encoded: distance(&encoded, &latents), decoded: distance(&decoded, &frames) })
}

/// Returns the numbers of the blocks that are compared: the first, the middle one and the last.
fn chosen(layers: usize) -> Vec<usize> {
    let mut chosen = vec![0, layers / 2, layers.saturating_sub(1)];
    chosen.dedup();
    chosen
}

/// A transformer that consists of some blocks of another.
struct Selected<'a> {
    all: &'a dyn WeightSource,
    blocks: &'a [usize],
}

impl Selected<'_> {
    /// Returns the name in the whole transformer.
    fn name(&self, name: &str) -> String {
        let block = name.strip_prefix("blocks.").and_then(|rest| rest.split_once('.'));
        let block =
            block.and_then(|(number, rest)| Some((self.blocks.get(number.parse::<usize>().ok()?)?, rest)));
        block.map_or_else(|| name.to_owned(), |(number, rest)| format!("blocks.{number}.{rest}"))
    }
}

impl WeightSource for Selected<'_> {
    fn tensor(&self, name: &str) -> Result<HostTensor> {
        self.all.tensor(&self.name(name))
    }

    fn matrix(&self, name: &str) -> Result<Matrix<'_>> {
        self.all.matrix(&self.name(name))
    }
}

/// Returns the branches of the chosen blocks, with the values that they add.
fn blocks<B: Backend>(
    b: &B,
    model: &Model,
    keeping: Keeping,
    attention: AttentionKind,
    observer: &dyn Observer,
) -> Result<Vec<(usize, String, Vec<f32>)>> {
    let (weights, config) = &model.dit;
    let numbers = chosen(config.num_layers);
    let config = DitConfig { num_layers: numbers.len(), ..config.clone() };
    let selected = Selected { all: weights, blocks: &numbers };
    let dit = Dit::load(&b.loader(keeping), &selected, &config)?;
    let [h, w] = SIZE.map(|side| side / 8);
    let up = |name: &str, deviation: f32, shape: &[usize]| {
        b.upload(&noise(SEED, name, deviation, shape.iter().product()), shape)
    };
    let x = up("x", 1.0, &[config.out_dim, 2, h, w])?;
    let latents = up("y", 1.0, &[config.out_dim, 2, h, w])?;
    let y = vae::condition(b, &latents, false)?;
    // umT5's values are small, and CLIP's about 1.
    let text = up("text", 0.1, &[config.text_len.min(16), config.text_dim])?;
    let image =
        config.image_dim.map(|dim| up("image", 1.0, &[model.recipe().image_tokens(), dim])).transpose()?;
    let context = dit.context(b, &text, image.as_ref())?;
    let (time, grid) = (dit.time(b, 1000.0 * LEVEL)?, dit.grid(b, 2, h, w)?);
    let inputs = Inputs { x: &x, y: &y, time: &time, context: &context, grid: &grid, attention };
    let mut seen = Vec::new();
    let mut probe = |name: &str, tensor: &B::Tensor| {
        let Some((block, branch)) = name.strip_prefix("block").and_then(|rest| rest.split_once('.')) else {
            return;
        };
        let number = block.parse().ok().and_then(|block: usize| numbers.get(block));
        if let Some(number) = number.filter(|_| branch != "out") {
            seen.push((*number, branch.to_owned(), b.download(tensor)));
        }
    };
    dit.forward(b, &inputs, Blocks::Compute { keep_residual: false }, observer, Some(&mut probe))?;
    seen.into_iter().map(|(number, branch, values)| Ok((number, branch, values?))).collect()
}

/// Returns the latents of a few frames, and the frames of these latents or of the given ones.
fn through_vae<B: Backend>(
    b: &B,
    model: &Model,
    keeping: Keeping,
    latents: Option<&[f32]>,
    observer: &dyn Observer,
) -> Result<[Vec<f32>; 2]> {
    let (weights, config) = &model.vae;
    let vae = Vae::load(&b.loader(keeping), weights, config)?;
    let [height, width] = SIZE;
    let crop = image::Crop { top: 72, left: 120, height: height as u32, width: width as u32 };
    let picture = image::bicubic_antialiased(clip::photograph()?, crop, height, width);
    // Each frame is darker than the one before, so that time has an effect.
    let fade = |frame: usize| 1.0 - 0.1 * frame as f32;
    let plane = height * width;
    let video: Vec<f32> = picture
        .chunks_exact(plane)
        .flat_map(|plane| (0..FRAMES).flat_map(move |frame| plane.iter().map(move |v| v * fade(frame))))
        .collect();
    let video = b.upload(&video, &[3, FRAMES, height, width])?;
    let encoded = vae.encode(b, Footage::Video(&video), None, observer, None)?;
    let shape = b.shape(&encoded);
    let own = b.download(&encoded)?;
    // Both decode the same latents, so that the decoder's distance is its own.
    let start = latents.map_or_else(|| Ok(encoded.clone()), |latents| b.upload(latents, &shape))?;
    let mut frames = Vec::new();
    let mut take = |piece: vae::Piece<B::Tensor>| {
        frames.extend(b.download(&piece.frames)?);
        Ok(())
    };
    vae.decode(b, &start, None, observer, &mut take, None)?;
    Ok([own, frames])
}

/// Returns the distance of values from those that are right, over the length of these.
fn distance(got: &[f32], want: &[f32]) -> f64 {
    if got.len() != want.len() {
        return f64::INFINITY;
    }
    let square = |v: f64| v * v;
    let off: f64 = got.iter().zip(want).map(|(g, w)| square(f64::from(*g) - f64::from(*w))).sum();
    let length: f64 = want.iter().map(|w| square(f64::from(*w))).sum();
    let distance = (off / length.max(f64::MIN_POSITIVE)).sqrt();
    if distance.is_nan() { f64::INFINITY } else { distance }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::progress::Quiet;

    #[test]
    fn a_backend_agrees_with_itself_and_no_other_does() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/tiny-a/official");
        let model = Model::open(&folder, None).expect("a model");
        let agreement = compare(&Cpu::new(), &Setup::CPU, &model, &Quiet).expect("it runs");
        assert_eq!(agreement.branches.len(), 9, "three branches of three blocks");
        assert_eq!(agreement.branches.iter().map(|b| b.block).max(), Some(2));
        let distances = agreement.branches.iter().flat_map(|b| [b.bf16, b.jobs]);
        assert!(distances.chain([agreement.encoded, agreement.decoded]).all(|d| d == 0.0), "{agreement:?}");
        assert_eq!(distance(&[1.0, f32::NAN], &[1.0, 1.0]), f64::INFINITY);
        assert_eq!(distance(&[3.0, 0.0], &[0.0, 4.0]), 1.25);
        assert_eq!([1, 2, 3, 40].map(|n| chosen(n).len()), [1, 2, 3, 3]);
    }
}
