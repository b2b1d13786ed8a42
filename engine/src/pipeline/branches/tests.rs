//! Branches that share their prefix give the same bits as branches that do not, and compute less.

use animd_protocol::plan::Setup;
use animd_protocol::recipe::{Component, Recipe};
use animd_protocol::request::{self, Settings, StepCache};

use super::super::clock::Clock;
use super::super::pictures::Previews;
use super::super::{Conditioning, Job, Manner, Parts, Pipeline, Turn, denoise};
use super::*;
use crate::backend::TensorOps;
use crate::backend::cpu::Cpu;
use crate::image::Picture;
use crate::progress::{Quiet, Stage};
use crate::synth::{self, Family, Size};

type Tensor = <Cpu as TensorOps>::Tensor;

fn job(recipe: &Recipe, settings: Settings) -> Result<Job> {
    let picture = Picture { width: 64, height: 48, rgb: (0..64 * 48 * 3).map(|i| (i % 251) as u8).collect() };
    let settings = Settings {
        prompt: Some("a boat".into()),
        size: Some(request::Size::Exact { width: 64, height: 48 }),
        frames: Some(5),
        ..settings
    };
    Job::new(&picture, settings.resolve_for(&recipe.defaults, || 1)?)
}

/// Returns a loaded model, what a job's steps start from, and the job's clock.
fn prepared<B: Backend>(
    b: B,
    setup: &Setup,
    recipe: &Recipe,
    job: &Job,
) -> Result<(Pipeline<B>, Conditioning<B>, Clock<'static>)> {
    let mut pipeline = Pipeline::made_up(b, setup, recipe.clone(), 1)?;
    pipeline.reserve_for(job)?;
    let mut clock = Clock::start(&Quiet, job.request.total_steps(), pipeline.costs(job));
    clock.stage(Stage::Load)?;
    let conditioning = pipeline.condition(job, None, &mut Vec::new(), &mut clock)?;
    pipeline.load(Component::Dit, &mut clock)?;
    Ok((pipeline, conditioning, clock))
}

/// Checks that a job's latents are the same whether its branches share their prefix or not.
fn same_latents<B: Backend>(b: &B, setup: &Setup, family: Family, settings: Settings) -> Result<()> {
    let recipe = Size::Tiny.recipe_of(family);
    let job = job(&recipe, settings)?;
    let (mut pipeline, mut conditioning, mut clock) = prepared(b.clone(), setup, &recipe, &job)?;
    assert!(pipeline.plan(&job).share_prefix, "there is room");
    let sampler = pipeline.recipe().sampler(&job.request)?;
    let attention = pipeline.setup().attention;
    let parts = pipeline.parts()?;
    clock.stage(Stage::Denoise)?;
    let mut latents = |share_prefix| {
        let (manner, mut previews) = (Manner { attention, share_prefix }, Previews::new(None, None));
        let (latents, plan) =
            denoise(&parts, &job, &sampler, manner, &mut conditioning, &mut previews, &mut clock)?;
        assert_eq!(plan.skips(), job.request.step_cache != StepCache::None, "{:?}", job.request.step_cache);
        b.download(&latents)
    };
    let (apart, shared) = (latents(false)?, latents(true)?);
    assert!(apart.iter().all(|value| value.is_finite()));
    assert!(apart == shared, "{:?}", job.request.step_cache);
    Ok(())
}

/// The settings of guided jobs, without a step cache and with one that skips some forwards.
fn guided() -> [Settings; 2] {
    let of = |steps, step_cache| Settings {
        steps: Some(steps),
        step_cache: Some(step_cache),
        ..Settings::default()
    };
    [of(2, StepCache::None), of(8, StepCache::Magcache)]
}

#[test]
fn a_shared_prefix_changes_no_bit_of_a_job() -> Result<()> {
    for family in [Family::Wan21, Family::Wan22] {
        for settings in guided() {
            same_latents(&Cpu::new(), &Setup::CPU, family, settings)?;
        }
    }
    Ok(())
}

#[cfg(feature = "cuda")]
#[test]
#[cfg_attr(not(feature = "emulator"), ignore = "it takes a GPU")]
fn a_shared_prefix_changes_no_bit_of_a_job_on_cuda() -> Result<()> {
    use crate::backend::cuda::{Cuda, Options};
    use animd_protocol::profile::Profile;

    for settings in guided() {
        let b = Cuda::open(0, &Options { poison: true, ..Options::default() }, 0, 0)?;
        let setup = Setup::from(&Profile::built_in("h200").expect("a profile"));
        same_latents(&b, &setup, Family::Wan21, settings)?;
    }
    Ok(())
}

/// Which forwards of six steps compute their blocks: three steps can share.
const COMPUTE: [[bool; 2]; 6] =
    [[true, true], [true, true], [false, true], [true, false], [false, false], [true, true]];

#[test]
fn a_step_that_computes_both_branches_attends_once_less() -> Result<()> {
    let recipe = Size::Tiny.recipe();
    let settings = Settings { steps: Some(COMPUTE.len() as u32), ..Settings::default() };
    let job = job(&recipe, settings)?;
    let (mut pipeline, conditioning, _) = prepared(Cpu::new(), &Setup::CPU, &recipe, &job)?;
    let attention = pipeline.setup().attention;
    let parts = pipeline.parts()?;
    let Parts { backend: b, ref models, .. } = parts;
    let (dit, [t, h, w]) = (models.expert(0)?, job.latent());
    let times = (0..COMPUTE.len()).map(|step| (step, 900.0 - 100.0 * step as f64));
    let Turn { contexts, times, .. } = Turn::begin(&parts, &job.request, &conditioning.embeddings, 0, times)?;
    let (grid, y) = (&dit.grid(b, t, h, w)?, &conditioning.y);

    // The velocities of all forwards, and how many self-attentions they took.
    let run = |share_prefix| -> Result<(Vec<Vec<f32>>, usize)> {
        let mut branches = Branches::new(b, &Quiet, true, share_prefix);
        let mut x = b.upload(&synth::noise(1, "x", 1.0, 16 * t * h * w), &[16, t, h, w])?;
        let (mut all, mut attended) = (Vec::new(), 0);
        for (step, compute) in COMPUTE.iter().enumerate() {
            let time = &times[&step];
            let inputs = contexts.iter().map(|context| Inputs { x: &x, y, time, context, grid, attention });
            let mut probe = |name: &str, _: &Tensor| attended += usize::from(name.ends_with(".self_attn"));
            let velocities = branches.velocities(dit, inputs, compute, &mut |_| Ok(()), Some(&mut probe))?;
            for velocity in &velocities {
                all.push(b.download(velocity)?);
            }
            // The next step begins where this one leads.
            x = b.linear_combination(&[(1.0, &x), (-0.1, &velocities[0]), (-0.05, &velocities[1])])?;
        }
        Ok((all, attended))
    };
    let (apart, shared) = (run(false)?, run(true)?);
    assert!(apart.0 == shared.0);
    let layers = recipe.experts[0].network.config.num_layers;
    let computed = COMPUTE.iter().flatten().filter(|&&compute| compute).count();
    assert_eq!((apart.1, shared.1), (layers * computed, layers * computed - 3));
    Ok(())
}
