//! From noise to a clean latent: schedules, solvers and guidance.
//!
//! Nothing here knows a model: [`run`] asks for velocities.

pub mod distill;
#[cfg(test)]
mod testing;
pub mod unipc;

pub use animd_protocol::schedule::{self, SamplerConfig};

use crate::backend::TensorOps;
use crate::{Error, Result};

use unipc::UniPc;

/// The model as [`run`] sees it: from the step's index, the sample and the timestep it returns noise minus clean
/// sample, with guidance included.
pub type Velocity<'a, T> = dyn FnMut(usize, &T, f64) -> Result<T> + 'a;

/// Runs the sampler from `noise` to a clean latent.
///
/// `draw` returns new noise, as many values as `noise` has; it is called with [`SamplerConfig::Renoise`] only, after
/// each step but the last. `on_step` is called after each step with the sample after it; an error from it ends the run.
pub fn run<B: TensorOps>(
    b: &B,
    config: &SamplerConfig,
    noise: B::Tensor,
    velocity: &mut Velocity<'_, B::Tensor>,
    draw: &mut dyn FnMut() -> Vec<f32>,
    on_step: &mut dyn FnMut(usize, &B::Tensor) -> Result<()>,
) -> Result<B::Tensor> {
    let mut solver = match config {
        SamplerConfig::Unipc(schedule) => Some(UniPc::new(schedule.clone())),
        SamplerConfig::Euler(_) | SamplerConfig::Renoise(_) => None,
    };
    let mut sample = noise;
    for (i, timestep) in config.timesteps().into_iter().enumerate() {
        let v = velocity(i, &sample, timestep)?;
        sample = match (config, &mut solver) {
            (SamplerConfig::Unipc(_), Some(solver)) => solver.step(b, &v, &sample)?,
            (SamplerConfig::Unipc(_), None) => return Err(Error::Internal("UniPC has no solver".into())),
            (SamplerConfig::Euler(schedule) | SamplerConfig::Renoise(schedule), _) => {
                let sigma = schedule.sigmas[i];
                match (config, schedule.sigmas.get(i + 1)) {
                    (_, None) => distill::euler(b, sigma, 0.0, &v, &sample)?,
                    (SamplerConfig::Renoise(_), Some(&next)) => {
                        let fresh = b.upload(&draw(), &b.shape(&sample))?;
                        distill::renoise(b, sigma, next, &v, &sample, &fresh)?
                    }
                    (_, Some(&next)) => distill::euler(b, sigma, next, &v, &sample)?,
                }
            }
        };
        on_step(i, &sample)?;
    }
    Ok(sample)
}

/// Classifier-free guidance (Ho & Salimans 2022, arXiv:2207.12598).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Guidance {
    /// The distance from the negative prompt's velocity towards the prompt's; at 1 the result is the prompt's velocity.
    pub scale: f64,
}

impl Guidance {
    /// Returns uncond + scale * (cond - uncond).
    pub fn apply<B: TensorOps>(self, b: &B, cond: &B::Tensor, uncond: &B::Tensor) -> Result<B::Tensor> {
        // The difference is computed first: the two are nearly equal, and the scale would enlarge their rounding.
        let difference = b.linear_combination(&[(1.0, cond), (-1.0, uncond)])?;
        b.linear_combination(&[(1.0, uncond), (self.scale as f32, &difference)])
    }
}

#[cfg(test)]
mod tests {
    use super::testing::{Host, HostTensor, relative_l2};
    use super::*;
    use crate::goldens::Golden;
    use animd_protocol::request::DISTILL_TIMESTEPS;

    /// Runs the loop on recorded velocities; returns the sample before the first step and after each.
    fn replay(
        config: &SamplerConfig,
        noise: &[f32],
        shape: &[usize],
        mut velocity: impl FnMut(usize) -> Result<HostTensor>,
        mut draw: impl FnMut() -> Vec<f32>,
    ) -> Result<Vec<Vec<f32>>> {
        let mut trajectory = vec![noise.to_vec()];
        let last = run(
            &Host,
            config,
            Host.upload(noise, shape)?,
            &mut |i, _, _| velocity(i),
            &mut draw,
            &mut |i, sample| {
                assert_eq!(i + 1, trajectory.len());
                trajectory.push(Host.download(sample)?);
                Ok(())
            },
        )?;
        assert_eq!(Some(&Host.download(&last)?), trajectory.last());
        Ok(trajectory)
    }

    fn assert_near(got: &[Vec<f32>], want: &[f32], bound: f64) {
        assert_eq!(got.len() * got[0].len(), want.len());
        for (i, (got, want)) in got.iter().zip(want.chunks(got[0].len())).enumerate() {
            let error = relative_l2(got, want);
            assert!(error <= bound, "step {i}: {error:e}");
        }
    }

    #[test]
    fn guided_unipc_equals_the_golden() -> Result<()> {
        let golden = Golden::open();
        let noise = golden.f32("e2e.noise");
        let shape = [16, 3, 8, 12];
        let (cond, uncond) = (golden.f32("e2e.unipc.cond"), golden.f32("e2e.unipc.uncond"));
        let guidance = Guidance { scale: 5.0 };
        let velocity = |i: usize| {
            let part = i * noise.len()..(i + 1) * noise.len();
            let [cond, uncond] = [&cond, &uncond].map(|all| Host.upload(&all[part.clone()], &shape));
            guidance.apply(&Host, &cond?, &uncond?)
        };
        let config = SamplerConfig::Unipc(schedule::unipc(6, 3.0));
        let got = replay(&config, &noise, &shape, velocity, Vec::new)?;
        assert_near(&got, &golden.f32("e2e.unipc.latents"), 2e-5);
        Ok(())
    }

    #[test]
    fn distilled_euler_equals_the_golden() -> Result<()> {
        let golden = Golden::open();
        let noise = golden.f32("e2e.noise");
        let pred = golden.f32("e2e.distill.euler.pred");
        let config = SamplerConfig::Euler(schedule::distill(&DISTILL_TIMESTEPS, 5.0)?);
        let velocity = |i: usize| Host.upload(&pred[i * noise.len()..(i + 1) * noise.len()], &[16, 3, 8, 12]);
        let got = replay(&config, &noise, &[16, 3, 8, 12], velocity, Vec::new)?;
        assert_near(&got, &golden.f32("e2e.distill.euler.latents"), 2e-5);
        Ok(())
    }

    #[test]
    fn renoising_agrees_with_the_golden() -> Result<()> {
        let golden = Golden::open();
        let latents = golden.f32("e2e.distill.renoise.latents");
        let draws = golden.f32("e2e.distill.renoise");
        let n = latents.len() / 5;
        let sigmas = golden.f32("distill.sigmas");
        // Velocities are not recorded: each follows from the samples before and after its step and the draw in between.
        let velocity = |i: usize| {
            let (before, after) = (&latents[i * n..(i + 1) * n], &latents[(i + 1) * n..(i + 2) * n]);
            let next = sigmas.get(i + 1).copied().unwrap_or(0.0);
            let draw = |j| draws.get(i * n + j).copied().unwrap_or(0.0);
            let clean =
                |j: usize| if next == 0.0 { after[j] } else { (after[j] - next * draw(j)) / (1.0 - next) };
            let velocity: Vec<f32> = (0..n).map(|j| (before[j] - clean(j)) / sigmas[i]).collect();
            Host.upload(&velocity, &[n])
        };
        let mut drawn = draws.chunks(n);
        let draw = || drawn.next().expect("one draw less than steps").to_vec();
        let config = SamplerConfig::Renoise(schedule::distill(&DISTILL_TIMESTEPS, 5.0)?);
        let got = replay(&config, &latents[..n], &[n], velocity, draw)?;
        assert_near(&got, &latents, 2e-5);
        assert!(drawn.next().is_none());
        Ok(())
    }

    #[test]
    fn an_observer_ends_the_walk() -> Result<()> {
        let config = SamplerConfig::Unipc(schedule::unipc(5, 3.0));
        let mut calls = 0;
        let result = run(
            &Host,
            &config,
            Host.upload(&[1.0], &[1])?,
            &mut |_, x, timestep| {
                calls += 1;
                assert!((0.0..1000.0).contains(&timestep));
                Ok(x.clone())
            },
            &mut Vec::new,
            &mut |i, _| if i == 1 { Err(Error::Canceled) } else { Ok(()) },
        );
        assert!(matches!(result, Err(Error::Canceled)));
        assert_eq!(calls, 2);
        Ok(())
    }

    #[test]
    fn unipc_schedules_equal_the_goldens() {
        let golden = Golden::open();
        for (name, steps, shift) in [("40_3", 40, 3.0), ("40_5", 40, 5.0), ("20_3", 20, 3.0), ("6_3", 6, 3.0)]
        {
            let schedule = schedule::unipc(steps, shift);
            assert_eq!(schedule.timesteps, golden.i64(&format!("unipc.{name}.timesteps")), "{name}");
            let want = golden.f32(&format!("unipc.{name}.sigmas"));
            assert_eq!(schedule.sigmas.len(), want.len());
            for (got, want) in schedule.sigmas.iter().zip(&want) {
                assert!((got - want).abs() <= 1e-6, "{name}: {got} is not {want}");
            }
        }
    }

    #[test]
    fn distill_schedule_equals_the_golden() -> Result<()> {
        let golden = Golden::open();
        let schedule = schedule::distill(&DISTILL_TIMESTEPS, 5.0)?;
        assert_eq!(schedule.sigmas, golden.f32("distill.sigmas"));
        assert_eq!(schedule.timesteps, golden.f32("distill.timesteps"));
        Ok(())
    }
}
