//! From noise to a clean latent: schedules, solvers and guidance.
//!
//! Nothing here knows a model: [`run`] asks for velocities.

pub mod distill;
#[cfg(test)]
mod testing;
pub mod unipc;

use animd_protocol::request::Sampler;
pub use animd_protocol::schedule::{self, SamplerConfig};

use crate::Result;
use crate::backend::TensorOps;

use unipc::UniPc;

/// The model as [`run`] sees it: from the step's index, the sample and the timestep it returns noise minus clean
/// sample, with guidance included.
pub type Velocity<'a, T> = dyn FnMut(usize, &T, f64) -> Result<T> + 'a;

/// Runs the sampler from `noise` to a clean latent.
///
/// `draw` returns new noise, as many values as `noise` has; it is called in steps with new noise only, and not after the last
/// one. `on_step` is called after each step with the sample after it; an error from it ends the run. A solver whose steps
/// follow those of another one begins without history.
pub fn run<B: TensorOps>(
    b: &B,
    config: &SamplerConfig,
    noise: B::Tensor,
    velocity: &mut Velocity<'_, B::Tensor>,
    draw: &mut dyn FnMut() -> Vec<f32>,
    on_step: &mut dyn FnMut(usize, &B::Tensor) -> Result<()>,
) -> Result<B::Tensor> {
    let (sigmas, timesteps, samplers) = (config.sigmas(), config.timesteps(), config.samplers());
    let mut unipc: Option<UniPc<B::Tensor>> = None;
    let mut sample = noise;
    for (i, (&sampler, &timestep)) in samplers.iter().zip(timesteps).enumerate() {
        let v = velocity(i, &sample, timestep)?;
        let (sigma, next, is_last) = (sigmas[i], sigmas[i + 1], i + 1 == timesteps.len());
        sample = match sampler {
            Sampler::Unipc => {
                unipc.get_or_insert_with(|| UniPc::new(sigmas[i..].to_vec())).step(b, &v, &sample)?
            }
            Sampler::DistillRenoise if !is_last => {
                let fresh = b.upload(&draw(), &b.shape(&sample))?;
                distill::renoise(b, sigma, next, &v, &sample, &fresh)?
            }
            Sampler::Distill | Sampler::DistillRenoise => distill::euler(b, sigma, next, &v, &sample)?,
        };
        unipc = unipc.filter(|_| sampler == Sampler::Unipc);
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
    use crate::Error;
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
        let config = SamplerConfig::unipc(schedule::unipc(6, 3.0));
        let got = replay(&config, &noise, &shape, velocity, Vec::new)?;
        assert_near(&got, &golden.f32("e2e.unipc.latents"), 2e-5);
        Ok(())
    }

    #[test]
    fn distilled_euler_equals_the_golden() -> Result<()> {
        let golden = Golden::open();
        let noise = golden.f32("e2e.noise");
        let pred = golden.f32("e2e.distill.euler.pred");
        let config = SamplerConfig::euler(schedule::distill(&DISTILL_TIMESTEPS, 5.0)?);
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
        let config = SamplerConfig::renoise(schedule::distill(&DISTILL_TIMESTEPS, 5.0)?);
        let got = replay(&config, &latents[..n], &[n], velocity, draw)?;
        assert_near(&got, &latents, 2e-5);
        assert!(drawn.next().is_none());
        Ok(())
    }

    /// Returns the velocity towards a clean sample of zeros, at which every solver is exact whatever its steps are.
    fn towards_zero(sigma: f32, x: &HostTensor) -> Result<HostTensor> {
        Host.linear_combination(&[(1.0 / sigma, x)])
    }

    #[test]
    fn two_solvers_meet_at_one_noise_level() -> Result<()> {
        let of = |sampler, shift| SamplerConfig::of(sampler, 8, shift);
        let samplers = [Sampler::Unipc, Sampler::Distill, Sampler::DistillRenoise];
        for (first, second) in samplers.into_iter().flat_map(|a| samplers.map(|b| (a, b))) {
            let config = of(first, 5.0)?.then(3, of(second, 3.0)?);
            // Noise as strong as the first level says, of a clean sample of zeros; new noise is as strong.
            let noise = vec![config.sigmas()[0]; 4];
            let sigmas = config.sigmas().to_vec();
            let mut levels = Vec::new();
            let last = run(
                &Host,
                &config,
                Host.upload(&noise, &[4])?,
                &mut |i, x, _| towards_zero(sigmas[i], x),
                &mut || vec![1.0; 4],
                &mut |_, x| {
                    levels.push(Host.download(x)?[0]);
                    Ok(())
                },
            )?;
            for (i, (got, want)) in levels.iter().zip(&sigmas[1..]).enumerate() {
                assert!(
                    (got - want).abs() < 1e-5,
                    "{first:?} then {second:?}, step {i}: {got} is not {want}"
                );
            }
            assert!(Host.download(&last)?.iter().all(|v| v.abs() < 1e-6));
        }
        Ok(())
    }

    #[test]
    fn a_solver_that_takes_over_has_no_history() -> Result<()> {
        // The last steps of both are those of UniPC alone from the sample that it gets.
        let of = |sampler| SamplerConfig::of(sampler, 8, 5.0);
        let config = of(Sampler::Distill)?.then(4, of(Sampler::Unipc)?);
        let velocity = |i: usize| Host.upload(&[(i as f32 * 1.7).sin(), (i as f32).cos()], &[2]);
        let start = [0.3, -0.8];
        let got = replay(&config, &start, &[2], velocity, Vec::new)?;
        let mut alone = UniPc::new(config.sigmas()[4..].to_vec());
        let mut sample = Host.upload(&got[4], &[2])?;
        for (i, want) in got.iter().enumerate().skip(5) {
            sample = alone.step(&Host, &velocity(i - 1)?, &sample)?;
            assert_eq!(&Host.download(&sample)?, want);
        }
        Ok(())
    }

    #[test]
    fn an_observer_ends_the_walk() -> Result<()> {
        let config = SamplerConfig::unipc(schedule::unipc(5, 3.0));
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
