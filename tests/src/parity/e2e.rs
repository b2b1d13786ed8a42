//! Checks the whole path from picture and prompts to frames.

use animd_engine::backend::TensorOps;
use animd_engine::backend::cpu::Cpu;
use animd_engine::model::dit::{Blocks, Context, Inputs};
use animd_engine::model::vae::{self, Footage};
use animd_engine::noise;
use animd_engine::progress::Quiet;
use animd_engine::sampler::{self, Guidance, SamplerConfig, schedule};
use animd_protocol::profile::AttentionKind;
use animd_protocol::request::NEGATIVE_PROMPT;
use anyhow::Result;

use super::{ABSOLUTE, Goldens, LATENTS, MODEL, Model};

type Tensor = <Cpu as TensorOps>::Tensor;

/// The fraction of bytes that may be off by one.
const FRAMES: f64 = 1e-3;

/// What both samplings start from, all of it the engine's own.
pub struct Scene<'a> {
    model: &'a Model,
    y: Tensor,
    /// The contexts of the prompt and of the negative prompt.
    pub contexts: [Context<Cpu>; 2],
    /// The seed's noise.
    pub noise: Vec<f32>,
    /// The latents' shape: 16, latent frames, height, width.
    pub shape: [usize; 4],
}

impl<'a> Scene<'a> {
    /// Runs every stage before the sampler.
    pub fn prepare(goldens: &Goldens, model: &'a Model) -> Result<Self> {
        let b = &model.backend;
        let (first, lat_h, lat_w) = super::vae::first_frame(goldens, model)?;
        let frames = super::vae::latent_frames(goldens)?;
        let footage = Footage::Picture { picture: &first, last: None, latent_frames: frames };
        let latents = model.vae.encode(b, footage, None, &Quiet, None)?;
        let picture = animd_engine::image::decode(&goldens.dir.join(goldens.text("clip/0/file")?))?;
        let clip = model.clip.encode(b, &animd_engine::image::clip_pixels(&picture), None)?;
        let prompts = [goldens.count("spec/e2e_prompt")?, super::text::negative(goldens)?];
        let context = |index| -> Result<_> {
            Ok(model.dit.context(b, &super::text::embedding(goldens, model, index)?, Some(&clip))?)
        };
        let shape = [16, frames, lat_h, lat_w];
        let seed = goldens.count("spec/e2e_seed")? as u64;
        Ok(Self {
            model,
            y: vae::condition(b, &latents, false)?,
            contexts: [context(prompts[0])?, context(prompts[1])?],
            noise: noise::cpu(seed).randn(shape.iter().product()),
            shape,
        })
    }

    /// Runs one forward; with `residual`, without its blocks. Returns the velocity, and the residual if it was
    /// computed.
    pub fn forward(
        &self,
        x: &Tensor,
        t: f64,
        branch: usize,
        residual: Option<&Tensor>,
    ) -> animd_engine::Result<(Tensor, Option<Tensor>)> {
        let (b, dit) = (&self.model.backend, &self.model.dit);
        let [_, f, h, w] = self.shape;
        let blocks = residual.map_or(Blocks::Compute { keep_residual: true }, Blocks::Reuse);
        let (time, grid) = (dit.time(b, t)?, dit.grid(b, f, h, w)?);
        let (y, time, context, grid) = (&self.y, &time, &self.contexts[branch], &grid);
        let inputs = Inputs { x, y, time, context, grid, attention: AttentionKind::Exact };
        let out = dit.forward(b, &inputs, blocks, &Quiet, None)?;
        Ok((out.velocity, out.residual))
    }

    /// Runs the sampler; returns the latents before the first and after every step.
    fn sample(
        &self,
        config: &SamplerConfig,
        velocity: &mut dyn FnMut(&Tensor, f64) -> animd_engine::Result<Tensor>,
        renoise: &mut dyn FnMut() -> Vec<f32>,
    ) -> Result<Vec<Vec<f32>>> {
        let b = &self.model.backend;
        let noise = b.upload(&self.noise, &self.shape)?;
        let mut trajectory = vec![self.noise.clone()];
        let mut at_step = |_, x: &Tensor, t| velocity(x, t);
        let mut after = |_, x: &Tensor| {
            trajectory.push(b.download(x)?);
            Ok(())
        };
        sampler::run(b, config, noise, &mut at_step, renoise, &mut after)?;
        Ok(trajectory)
    }

    /// Decodes latents to bytes, `[frames, h, w, 3]`.
    fn frames(&self, latents: &[f32]) -> Result<Vec<u8>> {
        let b = &self.model.backend;
        let mut bytes = Vec::new();
        let mut sink = |part: vae::Rendered| {
            bytes.extend(part.frames);
            Ok(())
        };
        let latents = b.upload(latents, &self.shape)?;
        self.model.vae.render(b, &latents, None, &Quiet, &mut sink)?;
        Ok(bytes)
    }
}

/// Checks `e2e.*`.
pub fn check(goldens: &mut Goldens, model: &Model) -> Result<()> {
    let b = &model.backend;
    let scene = Scene::prepare(goldens, model)?;
    goldens.absolute("e2e.noise", &scene.noise, ABSOLUTE)?;
    facts(goldens, &scene)?;

    // CFG and UniPC, from noise to frames.
    let guide = Guidance { scale: goldens.real("spec/e2e_guide")? };
    let steps = goldens.count("spec/e2e_steps")?;
    let schedule = schedule::unipc(steps, goldens.real("spec/e2e_shift")?);
    let config = SamplerConfig::unipc(schedule.clone());
    let mut guided = |x: &Tensor, t: f64| {
        let (cond, _) = scene.forward(x, t, 0, None)?;
        let (uncond, _) = scene.forward(x, t, 1, None)?;
        guide.apply(b, &cond, &uncond)
    };
    let trajectory = scene.sample(&config, &mut guided, &mut Vec::new)?;
    goldens.relative("e2e.unipc.latents", &trajectory.concat(), LATENTS)?;
    for (i, latents) in trajectory.iter().enumerate() {
        goldens.number(&format!("e2e/latent_std/{i}"), super::goldens::std(latents), LATENTS)?;
    }
    let Some(last) = trajectory.last() else { anyhow::bail!("a sampling without latents") };
    goldens.frames("e2e.unipc.video_u8", &scene.frames(last)?, FRAMES)?;

    // Each branch alone, at the golden latents, so that no error of an earlier step is in it.
    let golden = goldens.get("e2e.unipc.latents")?.f32();
    let volume: usize = scene.shape.iter().product();
    for (branch, name) in ["e2e.unipc.cond", "e2e.unipc.uncond"].into_iter().enumerate() {
        let mut outputs = Vec::new();
        for (latents, &t) in golden.chunks(volume).zip(&schedule.timesteps) {
            let (out, _) = scene.forward(&b.upload(latents, &scene.shape)?, t as f64, branch, None)?;
            outputs.extend(b.download(&out)?);
        }
        goldens.relative(name, &outputs, MODEL)?;
    }

    distilled(goldens, &scene, volume)
}

/// Checks `e2e.distill.*`.
fn distilled(goldens: &mut Goldens, scene: &Scene<'_>, volume: usize) -> Result<()> {
    let b = &scene.model.backend;
    let list = super::schedule::distill_timesteps(goldens)?;
    let schedule = schedule::distill(&list, goldens.real("spec/distill_shift")?)?;
    let seed = goldens.count("spec/e2e_seed")? as u64;
    for kind in ["euler", "renoise"] {
        let renoising = kind == "renoise";
        let kind_of = if renoising { SamplerConfig::renoise } else { SamplerConfig::euler };
        let config = kind_of(schedule.clone());
        let mut predictions = Vec::new();
        let mut plain = |x: &Tensor, t: f64| {
            let (v, _) = scene.forward(x, t, 0, None)?;
            predictions.extend(b.download(&v)?);
            Ok(v)
        };
        // The draws follow the initial noise from one generator.
        let mut generator = noise::cpu(seed);
        generator.randn(volume);
        let mut draws = Vec::new();
        let mut draw = || {
            let drawn = generator.randn(volume);
            draws.extend_from_slice(&drawn);
            drawn
        };
        let trajectory = scene.sample(&config, &mut plain, &mut draw)?;
        goldens.relative(&format!("e2e.distill.{kind}.latents"), &trajectory.concat(), LATENTS)?;
        if renoising {
            goldens.absolute("e2e.distill.renoise", &draws, ABSOLUTE)?;
        } else {
            goldens.relative("e2e.distill.euler.pred", &predictions, LATENTS)?;
            let Some(last) = trajectory.last() else { anyhow::bail!("a sampling without latents") };
            goldens.frames("e2e.distill.euler.video_u8", &scene.frames(last)?, FRAMES)?;
        }
    }
    Ok(())
}

/// Checks what `golden.json` says of the job: its results against the engine's; the rest is the job's input.
fn facts(goldens: &mut Goldens, scene: &Scene<'_>) -> Result<()> {
    let [_, _, lat_h, lat_w] = scene.shape;
    goldens.fact("e2e/lat_hw", vec![lat_h, lat_w])?;
    goldens.fact("e2e/hw", vec![lat_h * 8, lat_w * 8])?;
    goldens.fact("e2e/negative", NEGATIVE_PROMPT)?;
    for given in ["image", "prompt", "seed", "steps", "shift", "guide", "frames", "max_area"] {
        goldens.given(&format!("e2e/{given}"))?;
    }
    // How many values the last decoding clamps.
    let latents = goldens.get("e2e.unipc.latents")?.f32();
    let last = &latents[latents.len() - scene.noise.len()..];
    let (b, mut clamped, mut count) = (&scene.model.backend, 0, 0);
    let mut sink = |piece: vae::Piece<Tensor>| {
        let values = b.download(&piece.frames)?;
        clamped += values.iter().filter(|v| v.abs() > 1.0).count();
        count += values.len();
        Ok(())
    };
    let last = b.upload(last, &scene.shape)?;
    scene.model.vae.decode(b, &last, None, &Quiet, &mut sink, None)?;
    goldens.number("e2e/clamped_fraction", f64::from(clamped as u32) / f64::from(count as u32), 1e-3)
}
