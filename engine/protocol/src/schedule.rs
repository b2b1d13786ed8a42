//! Noise levels (sigma, 1 is pure noise) and the timesteps that the model is given.

use crate::InvalidSetting;
use crate::request::{Sampler, distill_timesteps};

/// The number of timesteps in training, and the first timestep of a distilled model.
const MAX_DISTILL_TIMESTEP: u32 = 1000;

/// The schedule of the released model, for `UniPC`.
#[derive(Clone, Debug, PartialEq)]
pub struct Schedule {
    /// The noise level before each step, and 0 after the last one: one more than there are steps.
    pub sigmas: Vec<f32>,
    /// The timestep that the model is given in each step, 0 to 999.
    pub timesteps: Vec<i64>,
}

/// The schedule of the step-distilled model.
#[derive(Clone, Debug, PartialEq)]
pub struct DistillSchedule {
    /// The noise level before each step; after the last one it is 0.
    pub sigmas: Vec<f32>,
    /// The timestep that the model is given in each step: 1000 sigma, not rounded.
    pub timesteps: Vec<f32>,
}

/// The steps of the denoising loop: the noise level, the timestep and the solver of each.
#[derive(Clone, Debug, PartialEq)]
pub struct SamplerConfig {
    sigmas: Vec<f32>,
    timesteps: Vec<f64>,
    samplers: Vec<Sampler>,
}

impl SamplerConfig {
    /// Returns steps that are all of one sampler.
    ///
    /// # Errors
    /// Returns the errors of [`distill`].
    pub fn of(sampler: Sampler, steps: u32, shift: f64) -> Result<Self, InvalidSetting> {
        let distilled = || distill(&distill_timesteps(steps), shift);
        Ok(match sampler {
            Sampler::Unipc => Self::unipc(unipc(steps as usize, shift)),
            Sampler::Distill => Self::euler(distilled()?),
            Sampler::DistillRenoise => Self::renoise(distilled()?),
        })
    }

    /// Returns the steps of a schedule by `UniPC` of order 2.
    pub fn unipc(schedule: Schedule) -> Self {
        let timesteps: Vec<f64> = schedule.timesteps.iter().map(|&timestep| timestep as f64).collect();
        let samplers = vec![Sampler::Unipc; timesteps.len()];
        Self { sigmas: schedule.sigmas, timesteps, samplers }
    }

    /// Returns the steps of a schedule by deterministic Euler.
    pub fn euler(schedule: DistillSchedule) -> Self {
        Self::distilled(schedule, Sampler::Distill)
    }

    /// Returns steps to the clean sample, with new noise on top.
    pub fn renoise(schedule: DistillSchedule) -> Self {
        Self::distilled(schedule, Sampler::DistillRenoise)
    }

    fn distilled(schedule: DistillSchedule, sampler: Sampler) -> Self {
        let timesteps: Vec<f64> = schedule.timesteps.iter().map(|&timestep| f64::from(timestep)).collect();
        let sigmas = schedule.sigmas.into_iter().chain([0.0]).collect();
        Self { sigmas, samplers: vec![sampler; timesteps.len()], timesteps }
    }

    /// Returns the first `steps` of these and, from there on, those of `later`, which has as many in all: the step between
    /// them goes from the noise level of one to that of the other.
    #[must_use]
    pub fn then(self, steps: usize, later: Self) -> Self {
        fn join<T>(mut first: Vec<T>, steps: usize, mut later: Vec<T>) -> Vec<T> {
            first.truncate(steps);
            first.extend(later.drain(first.len()..));
            first
        }
        Self {
            sigmas: join(self.sigmas, steps, later.sigmas),
            timesteps: join(self.timesteps, steps, later.timesteps),
            samplers: join(self.samplers, steps, later.samplers),
        }
    }

    /// Returns the timestep that the model is given in each step.
    pub fn timesteps(&self) -> &[f64] {
        &self.timesteps
    }

    /// Returns the noise level of the sample before each step, from 1 down, and 0 after the last one.
    pub fn sigmas(&self) -> &[f32] {
        &self.sigmas
    }

    /// Returns the solver of each step.
    pub fn samplers(&self) -> &[Sampler] {
        &self.samplers
    }
}

/// Wan2.1's flow-matching schedule (`FlowUniPCMultistepScheduler`): `steps` noise levels evenly from 0.999 (as f32)
/// towards 0, then shifted: s g / (1 + (s - 1) g). In f64, then rounded to f32; timesteps are cut to whole numbers.
pub fn unipc(steps: usize, shift: f64) -> Schedule {
    let first = f64::from(0.999_f32);
    // numpy's linspace: start + i * step.
    let step = -first / steps as f64;
    let shifted = (0..steps).map(|i| {
        let g = i as f64 * step + first;
        shift * g / (1.0 + (shift - 1.0) * g)
    });
    let timesteps = shifted.clone().map(|sigma| (sigma * 1000.0) as i64).collect();
    let sigmas = shifted.map(|sigma| sigma as f32).chain([0.0]).collect();
    Schedule { sigmas, timesteps }
}

/// `LightX2V`'s schedule for step-distilled models. Of 1000 noise levels, evenly from 1 down to 0.001 and then shifted,
/// it takes those of `timesteps` (1 to 1000), all in f32. The number and order of the steps are free.
///
/// # Errors
/// [`InvalidSetting`] for a timestep outside 1 to 1000.
pub fn distill(timesteps: &[u32], shift: f64) -> Result<DistillSchedule, InvalidSetting> {
    let level = |&timestep: &u32| match timestep {
        1..=MAX_DISTILL_TIMESTEP => Ok(distill_sigma((MAX_DISTILL_TIMESTEP - timestep) as usize, shift)),
        _ => Err(InvalidSetting(format!("timestep {timestep} is not from 1 to {MAX_DISTILL_TIMESTEP}"))),
    };
    let sigmas = timesteps.iter().map(level).collect::<Result<Vec<f32>, _>>()?;
    let timesteps = sigmas.iter().map(|sigma| sigma * 1000.0).collect();
    Ok(DistillSchedule { sigmas, timesteps })
}

/// Returns entry `index` of `linspace(1, 0, 1001)`, shifted; it equals torch's to the bit.
fn distill_sigma(index: usize, shift: f64) -> f32 {
    const STEP: f32 = -1.0 / 1000.0;
    // torch counts from the nearer end, and rounds once.
    let g = if index < 500 { STEP.mul_add(index as f32, 1.0) } else { -STEP * (1000 - index) as f32 };
    shift as f32 * g / (1.0 + (shift - 1.0) as f32 * g)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unipc_schedules_of_few_steps() {
        assert_eq!(unipc(1, 3.0).timesteps, [999]);
        // These figures are numpy's, with a shift of 7.5.
        assert_eq!(unipc(3, 7.5).timesteps, [999, 937, 789]);
        assert_eq!(unipc(3, 7.5).sigmas[3..], [0.0]);
    }

    #[test]
    fn every_distill_level_equals_torchs_to_the_bit() -> Result<(), InvalidSetting> {
        // These are the sums of the bit patterns of torch's 1000 levels.
        let all: Vec<u32> = (1..=1000).rev().collect();
        for (shift, sum) in [(5.0, 1060109227585), (3.3, 1058669748746)] {
            let levels = distill(&all, shift)?.sigmas;
            assert_eq!(
                levels.iter().map(|level| u64::from(level.to_bits())).sum::<u64>(),
                sum,
                "shift {shift}"
            );
        }
        Ok(())
    }

    #[test]
    fn a_timestep_off_the_scale_is_refused() {
        for timestep in [0, 1001] {
            let error = distill(&[1000, timestep], 5.0).expect_err("off the scale").to_string();
            assert!(error.starts_with(&format!("timestep {timestep} ")), "{error}");
        }
    }

    #[test]
    fn a_sampler_has_its_steps() -> Result<(), InvalidSetting> {
        let released = SamplerConfig::of(Sampler::Unipc, 40, 3.0)?;
        assert_eq!(released, SamplerConfig::unipc(unipc(40, 3.0)));
        assert_eq!((released.sigmas().len(), released.samplers()), (41, &[Sampler::Unipc; 40][..]));
        let distilled = SamplerConfig::of(Sampler::Distill, 4, 5.0)?;
        assert_eq!(distilled.timesteps(), [1000.0, 937.5, f64::from(833.3333_f32), 625.0]);
        assert_eq!(distilled.sigmas().last(), Some(&0.0));
        Ok(())
    }

    #[test]
    fn published_schedules_of_distilled_models() -> Result<(), InvalidSetting> {
        // LightX2V's configurations: Wan2.2 distilled, its NVFP4-sparse experts, and between two pictures.
        for (shift, sigmas) in [
            (5.0, [1.0, 0.9375, 0.833_333, 0.625]),
            (7.0, [1.0, 0.954_545, 0.875, 0.7]),
            (16.0, [1.0, 0.979_592, 0.941_176, 0.842_105]),
        ] {
            let steps = SamplerConfig::of(Sampler::Distill, 4, shift)?;
            assert!(
                steps.sigmas().iter().zip(sigmas).all(|(got, want)| (f64::from(*got) - want).abs() < 1e-6),
                "shift {shift}: {:?}",
                steps.sigmas()
            );
        }
        // With another number of steps, the levels before the shift are as even.
        for steps in 5..=8u32 {
            let sampler = SamplerConfig::of(Sampler::Distill, steps, 7.0)?;
            for (i, sigma) in sampler.sigmas().iter().take(steps as usize).enumerate() {
                let even = f64::from((1000.0 * (1.0 - i as f64 / f64::from(steps))).round() as u32) / 1000.0;
                let want = 7.0 * even / (1.0 + 6.0 * even);
                assert!(
                    (f64::from(*sigma) - want).abs() < 1e-6,
                    "{steps} steps, step {i}: {sigma} is not {want}"
                );
            }
        }
        Ok(())
    }

    #[test]
    fn steps_of_two_samplers_join_at_their_levels() -> Result<(), InvalidSetting> {
        let (first, second) =
            (SamplerConfig::of(Sampler::Unipc, 8, 5.0)?, SamplerConfig::of(Sampler::Distill, 8, 7.0)?);
        let both = first.clone().then(3, second.clone());
        assert_eq!(both.sigmas()[..3], first.sigmas()[..3]);
        assert_eq!(both.sigmas()[3..], second.sigmas()[3..]);
        assert_eq!(both.timesteps()[2..4], [first.timesteps()[2], second.timesteps()[3]]);
        assert_eq!(both.samplers()[2..4], [Sampler::Unipc, Sampler::Distill]);
        assert_eq!((both.sigmas().len(), both.timesteps().len()), (9, 8));
        assert_eq!(first.clone().then(8, second.clone()).timesteps(), first.timesteps());
        assert_eq!(first.then(0, second.clone()), second);
        Ok(())
    }
}
