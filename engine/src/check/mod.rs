//! Checks a model by what it computes, on the files and the card of whoever has them.
//!
//! [`crate::verify`] looks at each tensor for itself. This looks at what they do together: whether the transformer denoises
//! a video that it has never seen, whether each of its blocks helps with that, whether the prompt does, whether the VAE
//! gives back what it is given, and whether the device computes what the CPU does. The yardsticks need no other copy of
//! the model; see [`denoise`]. A report has figures alone: no pictures, prompts, paths or names.
//!
//! What a model computes does not tell every mistake. Taking back in turn what may have happened to a file (q and k of one block
//! exchanged, one layer scaled) and looking whether the model denoises better then was tried on the small model, whose weights are
//! sound. On 81 frames, as it was trained, exchanging q and k of its first block makes it err 1.6 to 2.4 times as much, so that a mistake
//! would be seen when it is taken back. On nine frames the same exchange makes it err 10 % less at noise 0.9, and scaling some layers by
//! two to four up to 17 % less: training makes the loss least over its own videos, and what a check shows is a photograph that moves. How
//! far a large model is from its own videos there, nobody has measured; so q and k in each other's place are not looked for, and
//! layers are compared with their neighbours by size alone, as a matter of doubt; see [`depth`].

mod agreement;
mod clip;
mod denoise;
mod depth;
mod findings;
mod report;
mod rounding;
#[cfg(test)]
mod tests;
mod verdict;

use std::path::Path;

use animd_protocol::plan::Setup;
use animd_protocol::request::{Settings, Size};

use crate::backend::Backend;
use crate::model::dit::Blocks;
use crate::model::vae::{self, Footage};
use crate::pipeline::{Job, Parts, Pipeline};
use crate::progress::{Observer, Progress};
use crate::verify::{self, Known};
use crate::weights;
use crate::{Result, image, text};

use agreement::Agreement;
use clip::Motion;
use denoise::{LEVELS, Loss, Sample};

pub use depth::Apart;
pub use findings::{Findings, Latents, Prompt, Suspect, Worth};
pub use report::{Device, Ground, Network, Report};
pub use verdict::{Judged, Verdict};

/// The most parameters with which the CPU denoises a whole video; a larger model gets five frames of it.
const SMALL: usize = 500_000_000;
/// The noise level at which blocks are left out: there a transformer has the most to do.
const MIDDLE: f64 = 0.6;
/// The noise level at which prompts are compared: the motion is not to be seen in the sample.
const NOISY: f64 = 0.9;

/// What to check, and on what.
pub struct Options<'a> {
    /// The model's folder.
    pub model: &'a Path,
    /// The transformer's folder or file, if it lies elsewhere.
    pub dit: Option<&'a Path>,
    /// The list of hashes that verifying has written.
    pub hashes: Option<&'a Path>,
    /// The device's name.
    pub device: String,
    /// The frames of the videos, 4n+1; as many as the device can do in minutes if not given.
    pub frames: Option<u32>,
}

/// Receives what is being done, in words, and how much of all is done, from 0 to 1.
pub type Told<'a> = &'a (dyn Fn(&str, f64) + Sync);

/// The work in parts: its words, and how much is done when it begins.
const PARTS: [(&str, f64); 6] = [
    ("tensors", 0.0),
    ("8 bits", 0.2),
    ("device and CPU", 0.3),
    ("loading", 0.45),
    ("VAE", 0.55),
    ("denoising", 0.65),
];

/// Reports one part of the work after the other.
struct Clock<'a> {
    told: Told<'a>,
    observer: &'a dyn Observer,
}

impl Clock<'_> {
    /// Reports that a share of a part is done.
    fn at(&self, part: usize, share: f64) -> Result<()> {
        let (words, begins) = PARTS[part];
        let ends = PARTS.get(part + 1).map_or(1.0, |(_, begins)| *begins);
        (self.told)(words, begins + (ends - begins) * share.clamp(0.0, 1.0));
        self.observer.check()
    }
}

/// Stops work that reports its own progress.
struct Silent<'a>(&'a dyn Observer);

impl Observer for Silent<'_> {
    fn progress(&self, _: &Progress) {}

    fn canceled(&self) -> bool {
        self.0.canceled()
    }
}

/// Checks a model.
///
/// # Errors
/// Returns [`crate::Error::Model`] for a model that cannot be opened, [`crate::Error::Canceled`], and errors of the
/// device. What is wrong with a model that can be opened is no error: the report says it.
pub fn check<B: Backend>(
    backend: &B,
    setup: &Setup,
    options: &Options<'_>,
    observer: &dyn Observer,
    told: Told<'_>,
) -> Result<Report> {
    let clock = Clock { told, observer };
    let files = weights::Model::open(options.model, options.dit)?;
    let looked =
        verify::look(options.model, options.dit, observer, &|done| (told)(PARTS[0].0, PARTS[1].1 * done))?;
    clock.at(1, 0.0)?;
    let (large, mut seen) = (files.dit.0.parameters().max(1), 0);
    let rounding = rounding::costs(&files.dit.0, &files.dit.1, &mut |n| {
        seen += n;
        clock.at(1, seen as f64 / large as f64)
    })?;
    clock.at(2, 0.0)?;
    let mut ground = Ground::new(&backend.resolve(setup), &options.device, backend.name());
    ground.networks = report::networks(&files, options.hashes.map(Known::read).as_ref());
    let usual = if backend.name() == "cpu" && files.parameters() > SMALL { 5 } else { 81 };
    ground.frames = options.frames.unwrap_or(usual);
    let frames = ground.frames;
    let [height, width] = clip::SIZE;
    let size = Size::Exact { width: width as u32, height: height as u32 };
    let settings =
        Settings { size: Some(size), frames: Some(frames), guidance: Some(1.0), ..Settings::default() };
    let job = Job::new(clip::photograph()?, settings.resolve(|| 0)?)?;
    let mut pipeline = Pipeline::open(backend.clone(), setup, options.model, options.dit, None)?;
    let agreement = compared(backend, &mut pipeline, &job, &files, observer)?;
    drop(files);

    clock.at(3, 0.0)?;
    pipeline.prepare(&job, &Silent(observer))?;
    let attention = pipeline.setup().attention;
    let parts = pipeline.parts()?;
    clock.at(4, 0.0)?;
    let findings = compute(&parts, attention, frames as usize, &clock)?;
    Ok(Report::new(ground, looked, rounding, agreement, findings))
}

/// Compares a device with the CPU, which is what devices are compared with.
fn compared<B: Backend>(
    backend: &B,
    pipeline: &mut Pipeline<B>,
    job: &Job,
    files: &weights::Model,
    observer: &dyn Observer,
) -> Result<Option<Agreement>> {
    if backend.name() == "cpu" {
        return Ok(None);
    }
    // The comparison works with less than the videos, in the memory that these are going to have.
    pipeline.reserve_for(job)?;
    let setup = pipeline.setup();
    agreement::compare(backend, &setup, files, observer).map(Some)
}

/// Computes everything that takes the whole model.
fn compute<B: Backend>(
    parts: &Parts<'_, B>,
    attention: animd_protocol::profile::AttentionKind,
    frames: usize,
    clock: &Clock<'_>,
) -> Result<Findings> {
    let &Parts { backend: b, tokenizer, recipe, ref models, .. } = parts;
    let [height, width] = clip::SIZE;
    let observer = clock.observer;
    let photograph = clip::photograph()?;
    let plane = height * width;
    let frame = |video: &[f32], n: usize| -> Vec<f32> {
        let channels = video.chunks_exact(frames * plane);
        channels.flat_map(|channel| channel[n * plane..][..plane].to_vec()).collect()
    };
    let ends = recipe.needs_last_frame();
    let grid_size = [1 + frames / 4, height / 8, width / 8];
    let [t, h, w] = grid_size;
    let mut latents = None;
    let mut videos = Vec::new();
    for (i, motion) in Motion::ALL.into_iter().enumerate() {
        let video = clip::video(photograph, motion, frames);
        let uploaded = b.upload(&video, &[3, frames, height, width])?;
        let encoded = models.vae()?.encode(b, Footage::Video(&uploaded), None, observer, None)?;
        let picture = b.upload(&frame(&video, 0), &[3, 1, height, width])?;
        let last = ends.then(|| b.upload(&frame(&video, frames - 1), &[3, 1, height, width])).transpose()?;
        let footage = Footage::Picture { picture: &picture, last: last.as_ref(), latent_frames: t };
        let given = models.vae()?.encode(b, footage, None, observer, None)?;
        if latents.is_none() {
            let mut decoded = Vec::new();
            let mut take = |piece: vae::Piece<B::Tensor>| {
                decoded.push((piece.first, b.download(&piece.frames)?));
                observer.check()
            };
            models.vae()?.decode(b, &encoded, None, observer, &mut take, None)?;
            latents = Some(findings::latents(&b.download(&encoded)?, &video, &decoded, [frames, plane]));
        }
        videos.push((motion, vae::condition(b, &given, ends)?, b.download(&encoded)?));
        clock.at(4, (i + 1) as f64 / Motion::ALL.len() as f64)?;
    }
    clock.at(5, 0.0)?;

    let embedded =
        |prompt: &str| models.text_encoder()?.encode(b, &tokenizer.encode(&text::clean(prompt))?.ids, None);
    let pixels = image::clip_pixels(photograph);
    let mut seen = models.image_encoder().map(|encoder| encoder.encode(b, &pixels, None)).transpose()?;
    if ends && let Some(picture) = &seen {
        seen = Some(b.concat(&[picture, picture], 0)?);
    }
    let grid = models.expert(0)?.grid(b, t, h, w)?;
    let mut sample = Sample {
        b,
        grid: &grid,
        y: videos[0].1.clone(),
        clean: Vec::new(),
        shape: [recipe.vae.config.z_dim, t, h, w],
        attention,
        observer,
    };
    let layers: usize = recipe.experts.iter().map(|e| e.network.config.num_layers).sum();
    let forwards = LEVELS.len() * recipe.experts.len() + layers + recipe.experts.len() + 2 * videos.len();
    let mut computed = 0;
    let mut step = || {
        computed += 1;
        clock.at(5, computed as f64 / forwards as f64)
    };

    let (mut losses, mut worth, mut prompts) = (Vec::<Loss>::new(), Vec::new(), Vec::new());
    let all = Blocks::Compute { keep_residual: false };
    let (motion, _, clean) = &videos[0];
    sample.clean.clone_from(clean);
    for (index, expert) in recipe.experts.iter().enumerate() {
        let dit = models.expert(index)?;
        let context = dit.context(b, &embedded(motion.prompt())?, seen.as_ref())?;
        for level in LEVELS {
            losses.push(sample.loss(dit, index, level, &context, all)?);
            step()?;
        }
        // Each of several transformers is tried at a noise level that is its own.
        let level = if expert.from > 0.0 { f64::midpoint(expert.from, 1.0) } else { MIDDLE };
        let whole = sample.loss(dit, index, level, &context, all)?;
        step()?;
        for block in 0..expert.network.config.num_layers {
            let without = sample.loss(dit, index, level, &context, Blocks::Without(block))?;
            worth.push(Worth { expert: index, block, with: whole.predicted, without: without.predicted });
            step()?;
        }
    }
    let index = recipe.expert_at(1000.0 * NOISY);
    let dit = models.expert(index)?;
    for (motion, y, clean) in videos {
        sample.y = y;
        sample.clean = clean;
        let mut loss = |prompt: &str| {
            let context = dit.context(b, &embedded(prompt)?, seen.as_ref())?;
            step()?;
            Ok::<_, crate::Error>(sample.loss(dit, index, NOISY, &context, all)?.predicted)
        };
        prompts.push(Prompt { right: loss(motion.prompt())?, wrong: loss(motion.opposite().prompt())? });
    }
    let chosen = losses.iter().filter(|loss| recipe.expert_at(1000.0 * loss.level) == loss.expert);
    let own: Vec<Loss> = chosen.copied().collect();
    let latents = latents.ok_or_else(|| crate::Error::Internal("no video was encoded".into()))?;
    Ok(Findings { latents, losses: own, all_losses: losses, worth, prompts })
}
