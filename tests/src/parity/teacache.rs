//! `TeaCache`: decisions, and the latents after forty steps with them.

use animd_engine::backend::TensorOps;
use animd_engine::sampler::unipc::UniPc;
use animd_engine::sampler::{Guidance, schedule};
use animd_protocol::step_cache::teacache;
use anyhow::{Context as _, Result};

use super::e2e::Scene;
use super::{Goldens, LATENTS, Model};

/// What a polynomial of the relative change, summed over steps, may differ by: the change itself is right to 1e-6, and
/// the polynomial's slope is up to 1e4 where it is steepest.
const ACCUMULATED: f64 = 1e-3;

/// Checks `teacache`, `tea.*`.
pub fn check(goldens: &mut Goldens, model: &Model) -> Result<()> {
    let b = &model.backend;
    let scene = Scene::prepare(goldens, model)?;
    let guide = Guidance { scale: goldens.real("spec/e2e_guide")? };
    let keys: Vec<String> =
        goldens.at("teacache")?.as_object().context("`teacache` is no table")?.keys().cloned().collect();
    for key in keys {
        let at = |what: &str| format!("teacache/{key}/{what}");
        let steps = goldens.count(&at("steps"))?;
        let (shift, threshold) = (goldens.real(&at("shift"))?, goldens.real(&at("threshold"))?);
        let ret = goldens.at(&at("use_ret_steps"))?.as_bool().context("`use_ret_steps` is no truth value")?;
        let coefficients = teacache::coefficients(key.starts_with("480p"), ret);
        let schedule = schedule::unipc(steps, shift);
        let timesteps = schedule.timesteps.clone();

        let embeddings = timesteps
            .iter()
            .map(|&t| {
                let time = model.dit.time(b, t as f64)?;
                Ok(if ret { time.e0_host.clone() } else { time.e_host.clone() })
            })
            .collect::<Result<Vec<_>>>()?;
        let plan = teacache::plan(&embeddings, coefficients, threshold, ret);

        let mut solver = UniPc::new(schedule.sigmas.clone());
        let mut x = b.upload(&scene.noise, &scene.shape)?;
        let mut residuals = [None, None];
        for (step, &t) in timesteps.iter().enumerate() {
            let mut velocities = Vec::new();
            for (branch, residual) in residuals.iter_mut().enumerate() {
                let reuse = residual.as_ref().filter(|_| !plan.compute[step]);
                let (v, computed) = scene.forward(&x, t as f64, branch, reuse)?;
                if computed.is_some() {
                    *residual = computed;
                }
                velocities.push(v);
            }
            let v = guide.apply(b, &velocities[0], &velocities[1])?;
            x = solver.step(b, &v, &x)?;
        }
        goldens.relative(&format!("tea.{key}.latent"), &b.download(&x)?, LATENTS)?;

        let decisions: String = plan.compute.iter().map(|&c| if c { '1' } else { '0' }).collect();
        // The decision depends on the timestep alone: both branches share it.
        goldens.fact(&at("computed_cond"), decisions.clone())?;
        goldens.fact(&at("computed_uncond"), decisions)?;
        goldens.fact(&at("forwards_computed"), 2 * plan.compute.iter().filter(|&&c| c).count())?;
        goldens.numbers(
            &at("rel_l1_cond"),
            &plan.rel_l1.iter().map(|r| r.map(f64::from)).collect::<Vec<_>>(),
            1e-6,
        )?;
        goldens.numbers(&at("accumulated_cond_before_reset"), &plan.accumulated, ACCUMULATED)?;
        goldens.near(&at("min_margin_to_threshold"), plan.min_margin(threshold), ACCUMULATED)?;
        goldens.numbers(&at("coefficients"), &coefficients.map(Some), 1e-12)?;
        for given in ["shift", "steps", "threshold", "use_ret_steps"] {
            goldens.given(&at(given))?;
        }
    }
    Ok(())
}
