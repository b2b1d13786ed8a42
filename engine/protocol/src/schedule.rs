//! Noise levels (sigma, 1 is pure noise) and the timesteps that the model is given.

use crate::InvalidSetting;
use crate::request::{Request, Sampler, distill_timesteps};

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

/// The solver of the denoising loop, with its schedule.
#[derive(Clone, Debug, PartialEq)]
pub enum SamplerConfig {
    /// `UniPC` of order 2.
    Unipc(Schedule),
    /// Deterministic Euler.
    Euler(DistillSchedule),
    /// Steps to the clean sample, with new noise on top.
    Renoise(DistillSchedule),
}

impl SamplerConfig {
    /// Returns the sampler that a request asks for.
    ///
    /// # Errors
    /// Returns the errors of [`distill`].
    pub fn new(request: &Request) -> Result<Self, InvalidSetting> {
        let distilled = || distill(&distill_timesteps(request.steps), request.shift);
        Ok(match request.sampler {
            Sampler::Unipc => Self::Unipc(unipc(request.steps as usize, request.shift)),
            Sampler::Distill => Self::Euler(distilled()?),
            Sampler::DistillRenoise => Self::Renoise(distilled()?),
        })
    }

    /// Returns the timestep that the model is given in each step.
    pub fn timesteps(&self) -> Vec<f64> {
        match self {
            Self::Unipc(schedule) => schedule.timesteps.iter().map(|&timestep| timestep as f64).collect(),
            Self::Euler(schedule) | Self::Renoise(schedule) => {
                schedule.timesteps.iter().map(|&timestep| f64::from(timestep)).collect()
            }
        }
    }

    /// Returns the noise level of the sample before each step, from 1 to 0.
    pub fn sigmas(&self) -> &[f32] {
        match self {
            Self::Unipc(schedule) => &schedule.sigmas,
            Self::Euler(schedule) | Self::Renoise(schedule) => &schedule.sigmas,
        }
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
    use crate::request::Settings;

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
    fn a_request_picks_its_sampler() -> Result<(), InvalidSetting> {
        let request = Settings::default().resolve(|| 1)?;
        assert_eq!(SamplerConfig::new(&request)?, SamplerConfig::Unipc(unipc(40, 3.0)));
        let distilled = Settings { sampler: Some(Sampler::Distill), ..Settings::default() }.resolve(|| 1)?;
        assert_eq!(
            SamplerConfig::new(&distilled)?.timesteps(),
            [1000.0, 937.5, f64::from(833.3333_f32), 625.0]
        );
        Ok(())
    }
}
