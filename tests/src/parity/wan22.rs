//! Wan2.2 image-to-video: two experts without CLIP, the boundary between them, their samplers, and its `MagCache`.

use std::path::Path;

use animd_engine::backend::cpu::Cpu;
use animd_engine::backend::{Backend, Keeping, TensorOps};
use animd_engine::image;
use animd_engine::model::dit::{self, Blocks, Context, Dit, Inputs};
use animd_engine::model::t5::T5;
use animd_engine::model::vae::{self, Footage, Vae};
use animd_engine::noise;
use animd_engine::progress::Quiet;
use animd_engine::sampler::{self, Guidance, SamplerConfig, schedule};
use animd_engine::text::{self, Tokenizer};
use animd_engine::weights;

use animd_protocol::profile::AttentionKind;
use animd_protocol::recipe::{Defaults, ExpertName, Recipe};
use animd_protocol::request::{Sampler, Settings};
use animd_protocol::step_cache::magcache;
use anyhow::{Context as _, Result};

use super::goldens::std;
use super::{ABSOLUTE, Goldens, LATENTS, MODEL};

type Tensor = <Cpu as TensorOps>::Tensor;

/// The fraction of bytes that may be off by one.
const FRAMES: f64 = 1e-3;
/// The names of the experts in the goldens, in the order of the recipe.
const EXPERTS: [&str; 2] = ["high", "low"];

/// The fixture's model, loaded.
struct Model {
    backend: Cpu,
    tokenizer: Tokenizer,
    experts: [Dit<Cpu>; 2],
    t5: T5<Cpu>,
    vae: Vae<Cpu>,
    recipe: Recipe,
}

impl Model {
    fn load(dir: &Path) -> Result<Self> {
        let backend = Cpu::new();
        let loader = backend.loader(Keeping::F32);
        let model = weights::Model::open(dir, None)?;
        let recipe = model.recipe();
        let weights::Model { dit: high, low_noise, t5, vae, tokenizer, .. } = model;
        let low = low_noise.context("there is one transformer")?;
        Ok(Self {
            tokenizer: Tokenizer::open(&tokenizer)?,
            experts: [Dit::load(&loader, &high.0, &high.1)?, Dit::load(&loader, &low.0, &low.1)?],
            t5: T5::load(&loader, &t5.0, &t5.1)?,
            vae: Vae::load(&loader, &vae.0, &vae.1)?,
            backend,
            recipe,
        })
    }
}

/// Checks everything of a directory that holds Wan2.2, but for `flf.*` and `flf21.*`.
pub fn check(goldens: &mut Goldens) -> Result<()> {
    let model = Model::load(&goldens.dir.join("official")).context("cannot load official/")?;
    prompts(goldens, &model).context("prompts")?;
    boundary(goldens, &model).context("the boundary")?;
    experts(goldens, &model).context("experts")?;
    let scene = Scene::prepare(goldens, &model).context("conditioning")?;
    scene.guided(goldens, "unipc", "unipc", true)?;
    schedules(goldens).context("schedules")?;
    scene.distilled(goldens, "distill", true)?;
    magcaches(goldens, &scene).context("MagCache")?;
    last_frame(goldens, scene).context("a last frame")
}

/// Checks `tok.*`, `t5.*`, `tokenizer`, `prompt_rules`.
fn prompts(goldens: &mut Goldens, model: &Model) -> Result<()> {
    goldens.fact("tokenizer/seq_len", text::MAX_TOKENS)?;
    for i in 0..goldens.len("tokenizer/prompts")? {
        let at = |key: &str| format!("tokenizer/prompts/{i}/{key}");
        let cleaned = text::clean(goldens.text(&at("raw"))?);
        let tokens = model.tokenizer.encode(&cleaned)?;
        let padded: Vec<i64> = tokens.padded(text::MAX_TOKENS).iter().map(|&id| i64::from(id)).collect();
        goldens.equal(&format!("tok.{i}.ids"), &padded)?;
        let out = model.t5.encode(&model.backend, &tokens.ids, None)?;
        goldens.relative(&format!("t5.{i}.out"), &model.backend.download(&out)?, MODEL)?;
        goldens.given(&at("raw"))?;
        goldens.given(&at("tag"))?;
        goldens.fact(&at("cleaned"), cleaned)?;
        goldens.fact(&at("len"), tokens.ids.len())?;
    }
    goldens.fact("prompt_rules/wan22_default_negative", Defaults::wan22_i2v().negative_prompt)?;
    for given in ["official", "distilled"] {
        goldens.given(&format!("prompt_rules/{given}"))?;
    }
    Ok(())
}

/// Returns the recipe's experts of a schedule of `UniPC`, as letters.
fn letters(recipe: &Recipe, timesteps: &[i64]) -> String {
    timesteps.iter().map(|&t| if recipe.expert_at(t as f64) == 0 { 'H' } else { 'L' }).collect()
}

/// Checks `boundary` and `unipc.STEPS_SHIFT.*`.
fn boundary(goldens: &mut Goldens, model: &Model) -> Result<()> {
    let recipe = &model.recipe;
    let high = &recipe.experts[ExpertName::HighNoise.index()];
    goldens.near("boundary/boundary", high.from, 0.0)?;
    goldens.near("boundary/timestep", 1000.0 * high.from, 0.0)?;
    for given in ["rule", "guide_order_official"] {
        goldens.given(&format!("boundary/{given}"))?;
    }
    for i in 0..goldens.len("boundary/schedules")? {
        let at = |key: &str| format!("boundary/schedules/{i}/{key}");
        let (steps, shift) = (goldens.count(&at("steps"))?, goldens.real(&at("shift"))?);
        let schedule = schedule::unipc(steps, shift);
        let name = format!("unipc.{steps}_{shift}");
        goldens.absolute(&format!("{name}.sigmas"), &schedule.sigmas, ABSOLUTE)?;
        goldens.equal(&format!("{name}.timesteps"), &schedule.timesteps)?;
        // The experts of a request are those of its timesteps.
        let settings = Settings { steps: Some(steps as u32), shift: Some(shift), ..Settings::default() };
        let request = settings.resolve_for(&recipe.defaults, || 1)?;
        let experts: String =
            recipe.step_experts(&request).iter().map(|&e| if e == 0 { 'H' } else { 'L' }).collect();
        goldens.fact(&at("high_steps"), experts.matches('H').count())?;
        goldens.fact(&at("experts"), experts)?;
        let at_boundary =
            schedule.timesteps.iter().enumerate().filter(|(_, t)| **t as f64 == 1000.0 * high.from);
        goldens.fact(&at("on_the_boundary"), at_boundary.map(|(i, _)| i).collect::<Vec<_>>())?;
        goldens.given(&at("steps"))?;
        goldens.given(&at("shift"))?;
    }
    Ok(())
}

/// Checks `rope.*`, `time.*`, and both experts' `time.*` and `dit.*`.
fn experts(goldens: &mut Goldens, model: &Model) -> Result<()> {
    let b = &model.backend;
    let config = &model.recipe.experts[0].network.config;
    let mut grid = [0; 3];
    for (i, tokens) in grid.iter_mut().enumerate() {
        *tokens = goldens.count(&format!("rope/grid/{i}"))?;
        goldens.given(&format!("rope/grid/{i}"))?;
    }
    let (cos, sin) = dit::rope(grid, config.dim / config.num_heads);
    let narrow = |table: Vec<f64>| table.into_iter().map(|v| v as f32).collect::<Vec<_>>();
    goldens.absolute("rope.cos", &narrow(cos), ABSOLUTE)?;
    goldens.absolute("rope.sin", &narrow(sin), ABSOLUTE)?;

    let times = goldens.input("time.t")?.data.clone();
    let sinusoid: Vec<f32> = times.iter().flat_map(|&t| dit::sinusoid(t, config.freq_dim)).collect();
    goldens.absolute("time.sinusoid", &sinusoid, ABSOLUTE)?;
    for (name, dit) in EXPERTS.into_iter().zip(&model.experts) {
        let (mut e, mut e0) = (Vec::new(), Vec::new());
        for &t in &times {
            let time = dit.time(b, t)?;
            e.extend_from_slice(&time.e_host);
            e0.extend_from_slice(&time.e0_host);
        }
        goldens.relative(&format!("{name}.time.e"), &e, MODEL)?;
        goldens.relative(&format!("{name}.time.e0"), &e0, MODEL)?;
        for index in 0..2 {
            forward(goldens, b, name, dit, index)?;
        }
    }
    Ok(())
}

/// Checks `NAME.dit.INDEX.*`.
fn forward(goldens: &mut Goldens, b: &Cpu, name: &str, dit: &Dit<Cpu>, index: usize) -> Result<()> {
    let at = |key: &str| format!("dit/{name}.{index}/{key}");
    let mut input = |key: &str| -> Result<Tensor> {
        let tensor = goldens.text(&at(key))?.to_owned();
        goldens.given(&at(key))?;
        let golden = goldens.input(&tensor)?;
        Ok(b.upload(&golden.f32(), &golden.shape)?)
    };
    let (x, y) = (input("x")?, input("y")?);
    let text = goldens.text(&at("context"))?.to_owned();
    let text = goldens.get(&text)?;
    let context = dit.context(b, &b.upload(&text.f32(), &text.shape)?, None)?;
    for given in ["context", "model", "t"] {
        goldens.given(&at(given))?;
    }
    let time = dit.time(b, goldens.real(&at("t"))?)?;
    let shape = b.shape(&x);
    let grid = dit.grid(b, shape[1], shape[2], shape[3])?;
    let inputs =
        Inputs { x: &x, y: &y, time: &time, context: &context, grid: &grid, attention: AttentionKind::Exact };
    let mut parts = Vec::new();
    let mut probe = |part: &str, t: &Tensor| parts.push((part.to_owned(), t.clone()));
    dit.forward(b, &inputs, Blocks::Compute { keep_residual: false }, &Quiet, Some(&mut probe))?;
    for (part, tensor) in parts {
        let golden = format!("{name}.dit.{index}.{part}");
        if !goldens.has(&golden) {
            continue;
        }
        // The fixture keeps only one row of the padding after the prompt.
        let rows = goldens.get(&golden)?.shape[0];
        let tensor = if part == "context_text" { b.slice(&tensor, 0, 0, rows)? } else { tensor };
        let values = b.download(&tensor)?;
        goldens.relative(&golden, &values, MODEL)?;
        if part == "out" {
            goldens.number(&at("out_std"), std(&values), MODEL)?;
        }
    }
    Ok(())
}

/// What all samplings start from, all of it the engine's own but a last frame's conditioning.
struct Scene<'a> {
    model: &'a Model,
    y: Tensor,
    /// For each expert the contexts of the prompt and of the negative prompt.
    contexts: [[Context<Cpu>; 2]; 2],
    noise: Vec<f32>,
    /// The latents' shape: 16, latent frames, height, width.
    shape: [usize; 4],
}

impl<'a> Scene<'a> {
    /// Runs every stage before the sampler, and checks `y*`, `noise` and `images`.
    fn prepare(goldens: &mut Goldens, model: &'a Model) -> Result<Self> {
        let b = &model.backend;
        let picture = image::decode(&goldens.dir.join(goldens.text("images/files/first/file")?))?;
        for which in ["first", "last", "other"] {
            goldens.given(&format!("images/files/{which}"))?;
        }
        let (lat_h, lat_w) =
            image::official(picture.width, picture.height, goldens.count("images/max_area")? as u32)?;
        let (lat_h, lat_w) = (lat_h as usize, lat_w as usize);
        goldens.fact("images/lat_hw", vec![lat_h, lat_w])?;
        goldens.given("images/max_area")?;
        let frames = goldens.count("images/frames")?;
        goldens.given("images/frames")?;
        let latent_frames = (frames - 1) / 4 + 1;
        let pixels = image::bicubic(&picture, lat_h * 8, lat_w * 8);
        goldens.relative("y.first_frame", &pixels, MODEL)?;
        let first = b.upload(&pixels, &[3, 1, lat_h * 8, lat_w * 8])?;
        let footage = Footage::Picture { picture: &first, last: None, latent_frames };
        let latents = model.vae.encode(b, footage, None, &Quiet, None)?;
        // Latents are what the encoder gives, normalised for each channel.
        let per_channel = latent_frames * lat_h * lat_w;
        let values = b.download(&latents)?;
        let mu: Vec<f32> = values
            .iter()
            .enumerate()
            .map(|(i, &v)| {
                let channel = i / per_channel;
                (f64::from(v) * vae::LATENT_STD[channel] as f64 + vae::LATENT_MEAN[channel] as f64) as f32
            })
            .collect();
        goldens.relative("y.mu", &mu, MODEL)?;
        let y = vae::condition(b, &latents, false)?;
        goldens.relative("y", &b.download(&y)?, MODEL)?;

        let shape = [16, latent_frames, lat_h, lat_w];
        let noise = noise::cpu(goldens.count("unipc/seed")? as u64).randn(shape.iter().product());
        goldens.absolute("noise", &noise, ABSOLUTE)?;
        let prompt = goldens.text("unipc/prompt")?.to_owned();
        goldens.fact("unipc/negative", model.recipe.defaults.negative_prompt.clone())?;
        let embed = |prompt: &str| -> Result<Tensor> {
            let tokens = model.tokenizer.encode(&text::clean(prompt))?;
            Ok(model.t5.encode(b, &tokens.ids, None)?)
        };
        let texts = [embed(&prompt)?, embed(&model.recipe.defaults.negative_prompt)?];
        let of = |dit: &Dit<Cpu>| -> Result<[Context<Cpu>; 2]> {
            Ok([dit.context(b, &texts[0], None)?, dit.context(b, &texts[1], None)?])
        };
        let contexts = [of(&model.experts[0])?, of(&model.experts[1])?];
        Ok(Self { model, y, contexts, noise, shape })
    }

    /// Runs one forward of an expert; with `residual`, without its blocks. Returns the velocity, and the residual if it was
    /// computed.
    fn forward(
        &self,
        expert: usize,
        x: &Tensor,
        t: f64,
        branch: usize,
        residual: Option<&Tensor>,
    ) -> animd_engine::Result<(Tensor, Option<Tensor>)> {
        let (b, dit) = (&self.model.backend, &self.model.experts[expert]);
        let [_, f, h, w] = self.shape;
        let blocks = residual.map_or(Blocks::Compute { keep_residual: true }, Blocks::Reuse);
        let (time, grid) = (dit.time(b, t)?, dit.grid(b, f, h, w)?);
        let (context, attention) = (&self.contexts[expert][branch], AttentionKind::Exact);
        let inputs = Inputs { x, y: &self.y, time: &time, context, grid: &grid, attention };
        let out = dit.forward(b, &inputs, blocks, &Quiet, None)?;
        Ok((out.velocity, out.residual))
    }

    /// Runs the sampler; returns the latents before the first and after every step.
    fn sample(
        &self,
        config: &SamplerConfig,
        velocity: &mut dyn FnMut(usize, &Tensor, f64) -> animd_engine::Result<Tensor>,
    ) -> Result<Vec<Vec<f32>>> {
        let b = &self.model.backend;
        let mut trajectory = vec![self.noise.clone()];
        let mut at_step = |step: usize, x: &Tensor, t: f64| velocity(step, x, t);
        let mut after = |_: usize, x: &Tensor| {
            trajectory.push(b.download(x)?);
            Ok(())
        };
        let noise = b.upload(&self.noise, &self.shape)?;
        sampler::run(b, config, noise, &mut at_step, &mut Vec::new, &mut after)?;
        Ok(trajectory)
    }

    /// Checks the latents, their deviations and the frames of a run whose tensors are called `tensors.*`.
    fn compare(
        &self,
        goldens: &mut Goldens,
        tensors: &str,
        json: &str,
        run: &[Vec<f32>],
        video: bool,
    ) -> Result<()> {
        goldens.relative(&format!("{tensors}.latents"), &run.concat(), LATENTS)?;
        for (i, latents) in run.iter().enumerate() {
            goldens.number(&format!("{json}/latent_std/{i}"), std(latents), LATENTS)?;
        }
        let (Some(last), true) = (run.last(), video) else { return Ok(()) };
        let b = &self.model.backend;
        let mut bytes = Vec::new();
        let mut sink = |part: vae::Rendered| {
            bytes.extend(part.frames);
            Ok(())
        };
        self.model.vae.render(b, &b.upload(last, &self.shape)?, None, &Quiet, &mut sink)?;
        goldens.frames(&format!("{tensors}.video_u8"), &bytes, FRAMES)
    }

    /// Checks a run of `UniPC` over the boundary: tensors `tensors.*`, facts `json/*`.
    fn guided(&self, goldens: &mut Goldens, tensors: &str, json: &str, branches: bool) -> Result<()> {
        let at = |key: &str| format!("{json}/{key}");
        let (b, recipe) = (&self.model.backend, &self.model.recipe);
        let schedule = schedule::unipc(goldens.count(&at("steps"))?, goldens.real(&at("shift"))?);
        goldens.fact(&at("experts"), letters(recipe, &schedule.timesteps))?;
        let guides = guides(goldens, json)?;
        let mut guided = |_: usize, x: &Tensor, t: f64| {
            let expert = recipe.expert_at(t);
            let (cond, _) = self.forward(expert, x, t, 0, None)?;
            let (uncond, _) = self.forward(expert, x, t, 1, None)?;
            guides[expert].apply(b, &cond, &uncond)
        };
        let run = self.sample(&SamplerConfig::unipc(schedule.clone()), &mut guided)?;
        self.compare(goldens, tensors, json, &run, true)?;
        given(goldens, json)?;
        if !branches {
            return Ok(());
        }
        // Each branch alone, at the golden latents, so that no error of an earlier step is in it.
        let golden = goldens.get(&format!("{tensors}.latents"))?.f32();
        for (branch, name) in ["cond", "uncond"].into_iter().enumerate() {
            let mut outputs = Vec::new();
            for (latents, &t) in golden.chunks(self.noise.len()).zip(&schedule.timesteps) {
                let (x, t) = (b.upload(latents, &self.shape)?, t as f64);
                outputs.extend(b.download(&self.forward(recipe.expert_at(t), &x, t, branch, None)?.0)?);
            }
            goldens.relative(&format!("{tensors}.{name}"), &outputs, MODEL)?;
        }
        Ok(())
    }

    /// Checks a run of distilled experts, which take turns by the number of the step.
    fn distilled(&self, goldens: &mut Goldens, name: &str, predictions: bool) -> Result<()> {
        let json = name.replace('.', "/");
        let at = |key: &str| format!("{json}/{key}");
        let b = &self.model.backend;
        let list = timesteps(goldens, &at("denoising_step_list"))?;
        let shift = goldens.real(&at("shift"))?;
        let settings = Settings {
            sampler: Some(Sampler::Distill),
            steps: Some(list.len() as u32),
            steps_high: Some(goldens.count(&at("boundary_step_index"))? as u32),
            shift: Some(shift),
            ..Settings::default()
        };
        let request = settings.resolve_for(&self.model.recipe.defaults, || 1)?;
        let experts = self.model.recipe.step_experts(&request);
        let names: String = experts.iter().map(|&e| if e == 0 { 'H' } else { 'L' }).collect();
        goldens.fact(&at("experts"), names)?;
        let config = SamplerConfig::euler(schedule::distill(&list, shift)?);
        let mut seen = Vec::new();
        let mut plain = |step: usize, x: &Tensor, t: f64| {
            let (v, _) = self.forward(experts[step], x, t, 0, None)?;
            seen.extend(b.download(&v)?);
            Ok(v)
        };
        let run = self.sample(&config, &mut plain)?;
        self.compare(goldens, name, &json, &run, predictions)?;
        if predictions {
            goldens.relative(&format!("{name}.pred"), &seen, LATENTS)?;
        }
        for key in ["denoising_step_list", "boundary_step_index"] {
            goldens.given(&at(key))?;
        }
        given(goldens, &json)
    }
}

/// Notes the inputs of a run.
fn given(goldens: &mut Goldens, json: &str) -> Result<()> {
    for key in ["image", "last_image", "prompt", "seed", "frames", "max_area", "steps", "shift", "guide"] {
        let path = format!("{json}/{key}");
        if goldens.at(&path).is_ok() {
            goldens.given(&path)?;
        }
    }
    Ok(())
}

/// Returns the guidance of each expert.
fn guides(goldens: &Goldens, json: &str) -> Result<[Guidance; 2]> {
    let of =
        |name| Ok::<_, anyhow::Error>(Guidance { scale: goldens.real(&format!("{json}/guide/{name}"))? });
    Ok([of(EXPERTS[0])?, of(EXPERTS[1])?])
}

fn timesteps(goldens: &Goldens, path: &str) -> Result<Vec<u32>> {
    let list = goldens.at(path)?.as_array().with_context(|| format!("`{path}` is no list"))?;
    list.iter().map(|v| v.as_u64().map(|n| n as u32).context("a timestep is no number")).collect()
}

/// Checks `distill.INDEX.*`.
fn schedules(goldens: &mut Goldens) -> Result<()> {
    for i in 0..goldens.len("distill/schedules")? {
        let at = |key: &str| format!("distill/schedules/{i}/{key}");
        let list = timesteps(goldens, &at("denoising_step_list"))?;
        let schedule = schedule::distill(&list, goldens.real(&at("shift"))?)?;
        goldens.absolute(&format!("distill.{i}.sigmas"), &schedule.sigmas, ABSOLUTE)?;
        // Timesteps are a thousand times the sigmas.
        goldens.relative(&format!("distill.{i}.timesteps"), &schedule.timesteps, 1e-7)?;
        goldens.given(&at("denoising_step_list"))?;
        goldens.given(&at("shift"))?;
    }
    Ok(())
}

/// Checks `magcache`: decisions, and runs with the tiny model.
fn magcaches(goldens: &mut Goldens, scene: &Scene<'_>) -> Result<()> {
    let recipe = &scene.model.recipe;
    let ratios = recipe.step_caches.magcache_by_forward.as_ref().context("there are no ratios")?;
    for (name, ratios) in ["cond", "uncond"].into_iter().zip(ratios) {
        let all: Vec<Option<f64>> = ratios.iter().copied().map(Some).collect();
        goldens.numbers(&format!("magcache/ratios_{name}"), &all, 0.0)?;
    }
    for i in 0..goldens.len("magcache/settings")? {
        let at = |key: &str| format!("magcache/settings/{i}/{key}");
        let (steps, shift) = (goldens.count(&at("steps"))?, goldens.real(&at("shift"))?);
        let schedule = schedule::unipc(steps, shift);
        let high = letters(recipe, &schedule.timesteps).matches('H').count();
        goldens.fact(&at("high_steps"), high)?;
        let (threshold, retention) = (goldens.real(&at("threshold"))?, goldens.real(&at("retention_ratio"))?);
        let skips = goldens.count(&at("K"))?;
        let plan = magcache::plan_by_forward(
            steps,
            high,
            ratios.each_ref().map(Vec::as_slice),
            threshold,
            skips,
            retention,
        );
        for (name, computed) in ["cond", "uncond"].into_iter().zip(&plan.compute) {
            let bits: String = computed.iter().map(|&c| if c { '1' } else { '0' }).collect();
            goldens.fact(&at(&format!("computed_{name}")), bits)?;
        }
        let computed = plan.compute.iter().flatten().filter(|&&c| c).count();
        goldens.fact(&at("forwards_computed"), computed)?;
        goldens.fact(&at("first_forward_that_may_be_skipped"), plan.first)?;
        let errors: Vec<Option<f64>> = (0..2 * steps).map(|c| plan.errors[c % 2][c / 2]).collect();
        goldens.numbers(&at("errors_before_reset"), &errors, 1e-12)?;
        let margin = errors.iter().flatten().map(|error| (error - threshold).abs()).fold(1e9, f64::min);
        goldens.near(&at("min_margin_to_threshold"), margin, 1e-12)?;
        for key in ["steps", "shift", "threshold", "K", "retention_ratio"] {
            goldens.given(&at(key))?;
        }
        if goldens.has(&format!("magcache.{i}.latent")) {
            cached(goldens, scene, i, schedule, &plan.compute)?;
        }
    }
    goldens.given("magcache/guide")?;
    Ok(())
}

/// Checks `magcache.INDEX.latent`.
fn cached(
    goldens: &mut Goldens,
    scene: &Scene<'_>,
    index: usize,
    schedule: schedule::Schedule,
    compute: &[Vec<bool>; 2],
) -> Result<()> {
    let (b, recipe) = (&scene.model.backend, &scene.model.recipe);
    let guides = guides(goldens, "magcache")?;
    let mut residuals = [None, None];
    let mut velocity = |step: usize, x: &Tensor, t: f64| {
        let expert = recipe.expert_at(t);
        let mut branches = Vec::new();
        for (branch, residual) in residuals.iter_mut().enumerate() {
            let reuse = residual.as_ref().filter(|_| !compute[branch][step]);
            let (v, new) = scene.forward(expert, x, t, branch, reuse)?;
            if new.is_some() {
                *residual = new;
            }
            branches.push(v);
        }
        guides[expert].apply(b, &branches[0], &branches[1])
    };
    let run = scene.sample(&SamplerConfig::unipc(schedule), &mut velocity)?;
    let last = run.last().context("a sampling without latents")?;
    goldens.relative(&format!("magcache.{index}.latent"), last, LATENTS)
}

/// Checks `flf22.*` from the golden conditioning of a last frame.
fn last_frame(goldens: &mut Goldens, mut scene: Scene<'_>) -> Result<()> {
    let y = goldens.get("flf.y")?;
    scene.y = scene.model.backend.upload(&y.f32(), &y.shape)?;
    goldens.fact("flf22/unipc/negative", scene.model.recipe.defaults.negative_prompt.clone())?;
    scene.guided(goldens, "flf22.unipc", "flf22/unipc", false)?;
    scene.distilled(goldens, "flf22.distill", false)?;
    given(goldens, "flf22")
}
