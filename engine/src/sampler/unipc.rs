//! `UniPC` (Zhao et al. 2023, arXiv:2302.04867) as Wan2.1 uses it: order 2, B(h) = e^h - 1 ("bh2"), on predictions of
//! the clean sample, with order 1 in the first and the last step.
//!
//! Each step corrects its sample with the prediction made from it, then predicts the next sample. Both are weighted
//! sums of a few latents; the weights are computed in f64.

use crate::backend::TensorOps;
use crate::{Error, Result};

/// The solver with its history of earlier steps: at most three latents.
pub struct UniPc<T> {
    /// The noise level before each step, and 0 after the last one.
    sigmas: Vec<f32>,
    /// The index of the next step.
    step: usize,
    /// The corrected sample at the previous step.
    last_sample: Option<T>,
    /// Predictions of the clean sample at the previous step and the one before it.
    predictions: [Option<T>; 2],
}

impl<T: Clone + Send + Sync + 'static> UniPc<T> {
    /// Returns a solver that goes through these noise levels, the last of which is 0.
    pub fn new(sigmas: Vec<f32>) -> Self {
        Self { sigmas, step: 0, last_sample: None, predictions: [None, None] }
    }

    /// Takes one step: from `sample` and the model's `velocity` there (noise minus clean sample) to the next sample.
    /// After the last step the sample is the clean one.
    ///
    /// # Errors
    /// Returns `Internal` if the schedule is at its end, and the errors of `linear_combination`.
    pub fn step<B: TensorOps<Tensor = T>>(&mut self, b: &B, velocity: &T, sample: &T) -> Result<T> {
        let k = self.step;
        let steps = self.sigmas.len().saturating_sub(1);
        if k >= steps {
            return Err(Error::Internal(format!("a schedule of {steps} steps was asked for step {}", k + 1)));
        }
        self.step += 1;
        let clean = b.linear_combination(&[(1.0, sample), (-self.sigmas[k], velocity)])?;
        let [before, older] = std::mem::take(&mut self.predictions);
        let last_sample = self.last_sample.take();
        if k + 1 == steps {
            // The noise level is 0 from here: the next sample is the prediction, and the corrector has no effect.
            return Ok(clean);
        }
        let corrected = match (&last_sample, &before) {
            (Some(last), Some(before)) => {
                let w = corrector(&self.sigmas[..=k]);
                let mut terms =
                    vec![(w.sample as f32, last), (w.now as f32, &clean), (w.before as f32, before)];
                terms.extend(older.as_ref().map(|older| (w.older as f32, older)));
                b.linear_combination(&terms)?
            }
            _ => sample.clone(),
        };
        drop((last_sample, older));
        let w = predictor(&self.sigmas[..=k + 1]);
        let mut terms = vec![(w.sample as f32, &corrected), (w.now as f32, &clean)];
        terms.extend(before.as_ref().map(|before| (w.before as f32, before)));
        let next = b.linear_combination(&terms)?;
        self.last_sample = Some(corrected);
        self.predictions = [Some(clean), before];
        Ok(next)
    }
}

/// The weights of a sum of latents: of a sample, and of the predictions at this step, the previous one, and the one
/// before that.
struct Weights {
    sample: f64,
    now: f64,
    before: f64,
    older: f64,
}

/// Returns half the logarithm of the signal-to-noise ratio: ln(alpha / sigma) with alpha = 1 - sigma.
fn log_snr(sigma: f32) -> f64 {
    let sigma = f64::from(sigma);
    (1.0 - sigma).ln() - sigma.ln()
}

/// Returns the weights of `UniP` from the last but one noise level to the last: order 2 if there is an earlier step,
/// else 1.
fn predictor(sigmas: &[f32]) -> Weights {
    let (from, to) = (sigmas[sigmas.len() - 2], sigmas[sigmas.len() - 1]);
    let h = log_snr(to) - log_snr(from);
    let b = -(1.0 - f64::from(to)) * (-h).exp_m1();
    let before = match sigmas {
        [.., earlier, _, _] => 0.5 * b * h / (log_snr(*earlier) - log_snr(from)),
        _ => 0.0,
    };
    Weights { sample: f64::from(to) / f64::from(from), now: b - before, before, older: 0.0 }
}

/// Returns the weights of `UniC` at the last noise level, from the corrected sample at the last but one: order 2 if
/// there is an earlier step, else 1.
fn corrector(sigmas: &[f32]) -> Weights {
    let (from, to) = (sigmas[sigmas.len() - 2], sigmas[sigmas.len() - 1]);
    let h = log_snr(to) - log_snr(from);
    let phi = (-h).exp_m1();
    let b = -(1.0 - f64::from(to)) * phi;
    let (now, older) = match sigmas {
        [.., earlier, _, _] => {
            // rho solves [[1, 1], [r, 1]] rho = (g1, g2), the moments that the second order must meet.
            let r = (log_snr(*earlier) - log_snr(from)) / h;
            let phi_1 = phi / -h - 1.0;
            let phi_2 = phi_1 / -h - 0.5;
            let (g1, g2) = (phi_1 / phi, 2.0 * phi_2 / phi);
            let rho = (g2 - g1) / (r - 1.0);
            (b * (g1 - rho), b * rho / r)
        }
        _ => (0.5 * b, 0.0),
    };
    Weights { sample: f64::from(to) / f64::from(from), now, before: b - now - older, older }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::goldens::Golden;
    use crate::sampler::schedule;
    use crate::sampler::testing::{Host, relative_l2};

    fn toy_velocity(x: &[f32], c: &[f32], timestep: i64) -> Vec<f32> {
        let t = timestep as f32 / 1000.0;
        x.iter().zip(c).map(|(x, c)| 0.6 * x + 0.4 * (2.0 * x + c).sin() - 0.3 * c * t).collect()
    }

    /// Returns the samples before and after each step on the toy velocity.
    fn toy_trajectory(golden: &Golden, steps: usize, shift: f64) -> Result<Vec<Vec<f32>>> {
        let c = golden.f32("toy.c");
        let schedule = schedule::unipc(steps, shift);
        let mut solver = UniPc::new(schedule.sigmas.clone());
        let mut trajectory = vec![golden.f32("toy.x")];
        for &timestep in &schedule.timesteps {
            let x = Host.upload(&trajectory[trajectory.len() - 1], &[4, 2, 3, 3])?;
            let velocity = Host.upload(&toy_velocity(&Host.download(&x)?, &c, timestep), &[4, 2, 3, 3])?;
            trajectory.push(Host.download(&solver.step(&Host, &velocity, &x)?)?);
        }
        Ok(trajectory)
    }

    #[test]
    fn toy_trajectories_equal_the_goldens() -> Result<()> {
        let golden = Golden::open();
        for (name, steps, shift) in [("40_3", 40, 3.0), ("40_5", 40, 5.0), ("20_3", 20, 3.0), ("6_3", 6, 3.0)]
        {
            let want = golden.f32(&format!("unipc.{name}.toy_traj"));
            let got = toy_trajectory(&golden, steps, shift)?;
            assert_eq!(got.len() * got[0].len(), want.len());
            for (i, (got, want)) in got.iter().zip(want.chunks(got[0].len())).enumerate() {
                let error = relative_l2(got, want);
                assert!(error <= 5e-6, "{name}, step {i}: {error:e}");
            }
        }
        Ok(())
    }

    #[test]
    fn few_steps_equal_the_reference() -> Result<()> {
        let golden = Golden::open();
        // The expected values are sums over the last sample of diffusers' UniPC on the same sigmas, with weights 1, 2,
        // 3, ...
        let sums = [
            (1, 3.0, -374.01321943476796),
            (2, 3.0, -324.7864411659539),
            (3, 7.5, -330.61043187975883),
            (50, 3.0, -280.29146749991924),
        ];
        for (steps, shift, want) in sums {
            let got = toy_trajectory(&golden, steps, shift)?;
            let sum: f64 = got[steps].iter().zip(1..).map(|(x, i)| f64::from(*x) * f64::from(i)).sum();
            let size: f64 =
                got[steps].iter().zip(1..).map(|(x, i)| (f64::from(*x) * f64::from(i)).abs()).sum();
            assert!((sum - want).abs() <= 5e-6 * size, "{steps} steps: {sum} is not {want}");
        }
        Ok(())
    }

    #[test]
    fn one_step_too_many_is_an_error() -> Result<()> {
        let mut solver = UniPc::new(schedule::unipc(1, 3.0).sigmas);
        let x = Host.upload(&[1.0], &[1])?;
        solver.step(&Host, &x, &x)?;
        assert!(solver.step(&Host, &x, &x).is_err());
        Ok(())
    }
}
