//! Sigmas, timesteps and the solvers on a toy velocity.

use animd_engine::backend::TensorOps;
use animd_engine::sampler::schedule;
use animd_engine::sampler::unipc::UniPc;
use anyhow::{Context as _, Result};

use super::{ABSOLUTE, Goldens, MODEL, Model};

/// Checks `unipc.*`, `toy.*`, `distill.sigmas` and `.timesteps`.
pub fn check(goldens: &mut Goldens, model: &Model) -> Result<()> {
    let b = &model.backend;
    let x = goldens.input("toy.x")?;
    let (start, shape) = (x.f32(), x.shape.clone());
    let c = goldens.input("toy.c")?.f32();
    for i in 0..goldens.len("spec/unipc_schedules")? {
        let steps = goldens.count(&format!("spec/unipc_schedules/{i}/0"))?;
        let shift = goldens.real(&format!("spec/unipc_schedules/{i}/1"))?;
        let name = format!("unipc.{steps}_{shift}");
        let schedule = schedule::unipc(steps, shift);
        goldens.absolute(&format!("{name}.sigmas"), &schedule.sigmas, ABSOLUTE)?;
        goldens.equal(&format!("{name}.timesteps"), &schedule.timesteps)?;

        let timesteps = schedule.timesteps.clone();
        let mut solver = UniPc::new(schedule.sigmas.clone());
        let mut sample = b.upload(&start, &shape)?;
        let mut trajectory = start.clone();
        for t in timesteps {
            let t = t as f32 / 1000.0;
            let values = b.download(&sample)?;
            let velocity: Vec<f32> = values
                .iter()
                .zip(&c)
                .map(|(&x, &c)| 0.6 * x + 0.4 * (2.0 * x + c).sin() - 0.3 * c * t)
                .collect();
            sample = solver.step(b, &b.upload(&velocity, &shape)?, &sample)?;
            trajectory.extend(b.download(&sample)?);
        }
        goldens.relative(&format!("{name}.toy_traj"), &trajectory, MODEL)?;
    }
    let list = distill_timesteps(goldens)?;
    let distill = schedule::distill(&list, goldens.real("spec/distill_shift")?)?;
    goldens.absolute("distill.sigmas", &distill.sigmas, ABSOLUTE)?;
    // Timesteps are a thousand times the sigmas.
    goldens.relative("distill.timesteps", &distill.timesteps, 1e-7)
}

/// Returns the fixture's list of distilled timesteps.
pub fn distill_timesteps(goldens: &Goldens) -> Result<Vec<u32>> {
    let list = goldens.at("spec/distill_steps")?.as_array().context("`distill_steps` is no list")?;
    list.iter().map(|v| v.as_u64().map(|n| n as u32).context("a timestep is no number")).collect()
}
