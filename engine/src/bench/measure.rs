//! Measures one stage at a time, on inputs that others can make again: they have the same formula as the made-up
//! weights.

use std::path::PathBuf;
use std::time::Instant;

use animd_protocol::recipe::Recipe;

use crate::backend::{Backend, TensorOps};
use crate::model::dit::{self, Blocks, Context, Grid, Time};
use crate::model::vae::{self, Footage, Piece};
use crate::pipeline::{Job, Models};
use crate::progress::Observer;
use crate::synth::noise;
use crate::text::MAX_TOKENS;
use crate::video::{VideoOptions, VideoWriter};
use crate::{Error, Result};
use animd_protocol::profile::AttentionKind;

use super::outputs::Outputs;
use super::{Row, SEED, Seconds};

/// The rows of the prompt that the DiT attends to; zeros follow.
const TEXT_ROWS: usize = 77;
/// The expert whose forward is measured: all experts of a family take equally long.
pub const EXPERT: usize = 0;
/// The diffusion time of the forward that is measured.
const TIME: f64 = 500.0;
/// The frames of a decoded video that are kept for comparisons: those of the first three latent frames.
const KEPT_FRAMES: usize = 9;

/// The time and memory that a stage took.
pub struct Measured {
    pub seconds: Seconds,
    /// The most bytes of a GPU's memory in use, beyond those in use before.
    pub memory: u64,
}

/// Runs a stage once to warm up, then `runs` times.
fn measure<B: Backend>(
    b: &B,
    runs: usize,
    observer: &dyn Observer,
    mut run: impl FnMut() -> Result<()>,
) -> Result<Measured> {
    // Each call resets the peak, so the second one returns what is in use now.
    b.peak_memory();
    let before = b.peak_memory();
    run()?;
    let mut all = Vec::with_capacity(runs);
    for _ in 0..runs {
        observer.check()?;
        let began = Instant::now();
        run()?;
        all.push(began.elapsed().as_secs_f64());
    }
    Ok(Measured { seconds: Seconds::of(all), memory: b.peak_memory().saturating_sub(before) })
}

/// Waits until a tensor is computed, by fetching its first element.
fn wait<B: TensorOps>(b: &B, tensor: &B::Tensor) -> Result<()> {
    let mut one = tensor.clone();
    for axis in (0..b.shape(tensor).len()).rev() {
        one = b.slice(&one, axis, 0, 1)?;
    }
    b.download(&one).map(drop)
}

/// The stages around the DiT.
pub struct Around {
    /// The umT5 encoder, 512 tokens.
    pub text: Measured,
    /// The CLIP tower, of all pictures that the model takes.
    pub image: Measured,
    /// The VAE's encoder.
    pub encode: Measured,
    /// The VAE's decoder.
    pub decode: Measured,
    /// The decoder with the video encoder beside it, until the file is complete.
    pub write: Measured,
    /// Whether there was a video encoder.
    pub written: bool,
}

/// Measures the stages around the DiT, with the VAE in tiles of a side in latent pixels.
#[expect(clippy::too_many_arguments, reason = "each is a thing of its own")]
pub fn around<B: Backend>(
    b: &B,
    recipe: &Recipe,
    models: &Models<B>,
    job: &Job,
    tile: Option<usize>,
    runs: usize,
    outputs: &Outputs,
    observer: &dyn Observer,
) -> Result<Around> {
    let ids = ids(recipe.text_encoder.config.rows);
    let text = measure(b, runs, observer, || wait(b, &models.text_encoder()?.encode(b, &ids, None)?))?;
    outputs.save("text", &[("text", b, &models.text_encoder()?.encode(b, &ids, None)?)])?;

    let side = 224;
    let pixels = noise(SEED, "input.pixels", 1.0, 3 * side * side);
    let image = match models.image_encoder() {
        Some(clip) => {
            outputs.save("image", &[("image", b, &clip.encode(b, &pixels, None)?)])?;
            // A model that makes videos between two pictures reads both.
            let pictures = if recipe.needs_last_frame() { 2 } else { 1 };
            measure(b, runs, observer, || {
                (0..pictures).try_for_each(|_| wait(b, &clip.encode(b, &pixels, None)?))
            })?
        }
        None => Measured { seconds: Seconds::of(vec![0.0; runs]), memory: 0 },
    };

    let (width, height) = (job.width(), job.height());
    let picture = noise(SEED, "input.picture", 0.4, 3 * height * width);
    let picture = b.upload(&picture, &[3, 1, height, width])?;
    let latent_frames = job.request.latent_frames();
    let last = recipe.needs_last_frame().then_some(&picture);
    let footage = || Footage::Picture { picture: &picture, last, latent_frames };
    let encoded = || models.vae()?.encode(b, footage(), tile, observer, None);
    let encode = measure(b, runs, observer, || wait(b, &encoded()?))?;
    if outputs.wanted() {
        outputs.save("vae-encode", &[("latents", b, &encoded()?)])?;
    }

    let [t, h, w] = job.latent();
    let latents = b.upload(&noise(SEED, "input.latents", 1.0, 16 * t * h * w), &[16, t, h, w])?;
    let decoded = |sink: &mut dyn FnMut(Piece<B::Tensor>) -> Result<()>| {
        models.vae()?.decode(b, &latents, tile, observer, sink, None)
    };
    let decode = measure(b, runs, observer, || {
        let mut last = None;
        decoded(&mut |piece| {
            last = Some(piece.frames);
            observer.check()
        })?;
        last.map_or(Ok(()), |last| wait(b, &last))
    })?;
    if outputs.wanted() {
        let count = KEPT_FRAMES.min(job.request.frames as usize);
        let mut kept = vec![0.0; 3 * count * height * width];
        decoded(&mut |Piece { frames, first, area }| {
            if first >= count {
                return Ok(());
            }
            let n = b.shape(&frames)[1];
            for (i, line) in b.download(&frames)?.chunks_exact(area.columns.len()).enumerate() {
                let (image, y) = (i / area.rows.len(), i % area.rows.len());
                let frame = image / n * count + first + image % n;
                let start = (frame * height + area.rows.start + y) * width + area.columns.start;
                kept[start..][..line.len()].copy_from_slice(line);
            }
            Ok(())
        })?;
        let kept = b.upload(&kept, &[3, count, height, width])?;
        outputs.save("vae-decode", &[("frames", b, &kept)])?;
    }

    let written = crate::video::check_encoder().is_ok();
    // The video encoder gets soft waves: made-up weights give noise, which it is not made for.
    let waves: Vec<u8> = (0..job.request.frames as usize).flat_map(|i| stand_in(width, height, i)).collect();
    let write = measure(b, 1, observer, || {
        let mut writer = written.then(|| writer(job)).transpose()?;
        let mut rest = &waves[..];
        let mut put = |rgb: &[u8]| {
            let (now, later) = rest.split_at(rest.len().min(rgb.len()));
            rest = later;
            writer.as_mut().map_or(Ok(()), |writer| writer.write(now))
        };
        models.vae()?.render(b, &latents, tile, observer, &mut |part| put(&part.frames))?;
        writer.map_or(Ok(()), |writer| writer.finish().map(drop))
    });
    // The file may never have been written.
    let _ = std::fs::remove_file(file());
    Ok(Around { text, image, encode, decode, write: write?, written })
}

/// Returns the tokens of a prompt as long as the model reads, for an embedding with this number of rows.
fn ids(rows: usize) -> Vec<u32> {
    (0..MAX_TOKENS).map(|i| ((7919 * i + 13) % rows) as u32).collect()
}

/// Returns the path of the file that is written to measure how long that takes.
fn file() -> PathBuf {
    std::env::temp_dir().join(format!("animd-bench-{}.mp4", std::process::id()))
}

fn writer(job: &Job) -> Result<VideoWriter> {
    let (width, height) = (job.width() as u32, job.height() as u32);
    let (fps, quality) = (job.request.fps, job.request.quality);
    VideoWriter::create(&file(), &VideoOptions { width, height, fps, quality, metadata: Some("{}".into()) })
}

/// Returns a frame of soft waves that move.
pub fn stand_in(width: usize, height: usize, number: usize) -> Vec<u8> {
    let wave = |count: usize, length: f64, speed: f64| -> Vec<f64> {
        let phase = number as f64 * speed;
        (0..count).map(|i| 40.0 * ((i as f64 + phase) / length).sin()).collect()
    };
    let (across, down) = (wave(width, 37.0, 2.0), wave(height, 23.0, -1.0));
    let mut rgb = Vec::with_capacity(3 * width * height);
    for y in &down {
        for x in &across {
            rgb.extend([128.0 + x + y, 120.0 + x, 136.0 - y].map(|v| v as u8));
        }
    }
    rgb
}

/// The inputs of a forward of one expert.
pub struct Inputs<B: Backend> {
    expert: usize,
    x: B::Tensor,
    y: B::Tensor,
    time: Time<B>,
    context: Context<B>,
    grid: Grid<B>,
    attention: AttentionKind,
}

impl<B: Backend> Inputs<B> {
    fn of_forward(&self) -> dit::Inputs<'_, B> {
        let Self { x, y, time, context, grid, attention, .. } = self;
        dit::Inputs { x, y, time, context, grid, attention: *attention }
    }
}

/// Makes the inputs of an expert's forward. The first result is how long one branch's context takes.
#[expect(clippy::too_many_arguments, reason = "each is a thing of its own")]
pub fn inputs<B: Backend>(
    b: &B,
    recipe: &Recipe,
    models: &Models<B>,
    job: &Job,
    expert: usize,
    attention: AttentionKind,
    runs: usize,
    observer: &dyn Observer,
) -> Result<(Measured, Inputs<B>)> {
    let [t, h, w] = job.latent();
    let upload =
        |name: &str, shape: &[usize]| b.upload(&noise(SEED, name, 1.0, shape.iter().product()), shape);
    let image_dim = recipe.conditioning.image_encoder.as_ref().map_or(0, |n| n.config.dim);
    let text = upload("input.text", &[TEXT_ROWS, recipe.text_encoder.config.dim])?;
    let image = match recipe.image_tokens() {
        0 => None,
        tokens => Some(upload("input.image", &[tokens, image_dim])?),
    };
    let dit = models.expert(expert)?;
    let mut context = None;
    let took = measure(b, runs, observer, || {
        let made = dit.context(b, &text, image.as_ref())?;
        let waited = made.last().map_or(Ok(()), |last| wait(b, last));
        context = Some(made);
        waited
    })?;
    let context = context.ok_or_else(|| Error::Internal("a context was lost".into()))?;
    let x = upload("input.noise", &[16, t, h, w])?;
    let y = vae::condition(b, &upload("input.condition", &[16, t, h, w])?, false)?;
    let (time, grid) = (dit.time(b, TIME)?, dit.grid(b, t, h, w)?);
    Ok((took, Inputs { expert, x, y, time, context, grid, attention }))
}

/// Measures a forward of the DiT.
pub fn forward<B: Backend>(
    b: &B,
    models: &Models<B>,
    inputs: &Inputs<B>,
    runs: usize,
    observer: &dyn Observer,
) -> Result<Measured> {
    measure(b, runs, observer, || wait(b, &velocity(b, models, inputs, observer)?))
}

/// Writes the velocities of a row's forward if results are wanted: those of several experts with their numbers in the name.
#[expect(clippy::too_many_arguments, reason = "each is a thing of its own")]
pub fn velocities<B: Backend>(
    b: &B,
    recipe: &Recipe,
    models: &Models<B>,
    job: &Job,
    attention: AttentionKind,
    row: Row,
    outputs: &Outputs,
    observer: &dyn Observer,
) -> Result<()> {
    let count = recipe.experts.len();
    for expert in (0..count).filter(|_| outputs.wanted()) {
        let (_, inputs) = inputs(b, recipe, models, job, expert, attention, 0, observer)?;
        let number = if count > 1 { format!("-{expert}") } else { String::new() };
        let name = format!("dit-{}{number}", row.name());
        outputs.save(&name, &[("velocity", b, &velocity(b, models, &inputs, observer)?)])?;
    }
    Ok(())
}

/// Computes the velocity `[16, t, h, w]` of a forward.
fn velocity<B: Backend>(
    b: &B,
    models: &Models<B>,
    inputs: &Inputs<B>,
    observer: &dyn Observer,
) -> Result<B::Tensor> {
    let blocks = Blocks::Compute { keep_residual: false };
    let dit = models.expert(inputs.expert)?;
    Ok(dit.forward(b, &inputs.of_forward(), blocks, observer, None)?.velocity)
}

/// Measures a forward that keeps what its blocks add, and one that only adds it again, as a step cache does.
pub fn cached<B: Backend>(
    b: &B,
    models: &Models<B>,
    inputs: &Inputs<B>,
    runs: usize,
    observer: &dyn Observer,
) -> Result<[Measured; 2]> {
    let dit = models.expert(inputs.expert)?;
    let mut residual = None;
    let computed = measure(b, runs, observer, || {
        // As in a job, the last residual is dropped before the next one is made.
        residual = None;
        let blocks = Blocks::Compute { keep_residual: true };
        let out = dit.forward(b, &inputs.of_forward(), blocks, observer, None)?;
        residual = out.residual;
        wait(b, &out.velocity)
    })?;
    let residual = residual.ok_or_else(|| Error::Internal("a residual was lost".into()))?;
    let skipped = measure(b, runs, observer, || {
        let blocks = Blocks::Reuse(&residual);
        wait(b, &dit.forward(b, &inputs.of_forward(), blocks, observer, None)?.velocity)
    })?;
    Ok([computed, skipped])
}
