//! Noise levels (sigma, 1 is pure noise) and the timesteps that the model is told.

use crate::{Error, Result};

/// Timesteps of training, and the first one of a distilled model.
const MAX_DISTILL_TIMESTEP: u32 = 1000;

/// The schedule of the released model: what [`super::unipc::UniPc`] walks along.
#[derive(Clone, Debug, PartialEq)]
pub struct Schedule {
    /// The noise level before each step, and 0 after the last one: one more than there are steps.
    pub sigmas: Vec<f32>,
    /// What the model is told in each step, 0 to 999.
    pub timesteps: Vec<i64>,
}

/// The schedule of the step-distilled model.
#[derive(Clone, Debug, PartialEq)]
pub struct DistillSchedule {
    /// The noise level before each step; after the last one it is 0.
    pub sigmas: Vec<f32>,
    /// What the model is told in each step: 1000 sigma, not rounded.
    pub timesteps: Vec<f32>,
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

/// `LightX2V`'s schedule for step-distilled models: from 1000 noise levels evenly from 1 down to 0.001 and shifted, those
/// of `timesteps` (1 to 1000), all in f32. Any number of steps in any order.
///
/// # Errors
/// `Setting` for a timestep outside 1 to 1000.
pub fn distill(timesteps: &[u32], shift: f64) -> Result<DistillSchedule> {
    let level = |&timestep: &u32| match timestep {
        1..=MAX_DISTILL_TIMESTEP => Ok(distill_sigma((MAX_DISTILL_TIMESTEP - timestep) as usize, shift)),
        _ => Err(Error::Setting(format!("timestep {timestep} is not from 1 to {MAX_DISTILL_TIMESTEP}"))),
    };
    let sigmas = timesteps.iter().map(level).collect::<Result<Vec<f32>>>()?;
    let timesteps = sigmas.iter().map(|sigma| sigma * 1000.0).collect();
    Ok(DistillSchedule { sigmas, timesteps })
}

/// Entry `index` of `linspace(1, 0, 1001)`, shifted; equal to torch's to the bit.
fn distill_sigma(index: usize, shift: f64) -> f32 {
    const STEP: f32 = -1.0 / 1000.0;
    // torch counts from the nearer end, and rounds once.
    let g = if index < 500 { STEP.mul_add(index as f32, 1.0) } else { -STEP * (1000 - index) as f32 };
    shift as f32 * g / (1.0 + (shift - 1.0) as f32 * g)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::goldens::Golden;

    #[test]
    fn unipc_schedules_equal_the_goldens() {
        let golden = Golden::open();
        for (name, steps, shift) in [("40_3", 40, 3.0), ("40_5", 40, 5.0), ("20_3", 20, 3.0), ("6_3", 6, 3.0)]
        {
            let schedule = unipc(steps, shift);
            assert_eq!(schedule.timesteps, golden.i64(&format!("unipc.{name}.timesteps")), "{name}");
            let want = golden.f32(&format!("unipc.{name}.sigmas"));
            assert_eq!(schedule.sigmas.len(), want.len());
            for (got, want) in schedule.sigmas.iter().zip(&want) {
                assert!((got - want).abs() <= 1e-6, "{name}: {got} is not {want}");
            }
        }
    }

    #[test]
    fn unipc_schedules_of_few_steps() {
        assert_eq!(unipc(1, 3.0).timesteps, [999]);
        // By numpy, shift 7.5.
        assert_eq!(unipc(3, 7.5).timesteps, [999, 937, 789]);
        assert_eq!(unipc(3, 7.5).sigmas[3..], [0.0]);
    }

    #[test]
    fn distill_schedule_equals_the_golden() -> Result<()> {
        let golden = Golden::open();
        let schedule = distill(&crate::request::DISTILL_TIMESTEPS, 5.0)?;
        assert_eq!(schedule.sigmas, golden.f32("distill.sigmas"));
        assert_eq!(schedule.timesteps, golden.f32("distill.timesteps"));
        Ok(())
    }

    #[test]
    fn every_distill_level_equals_torchs_to_the_bit() -> Result<()> {
        // The sums of the bit patterns of torch's 1000 levels.
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
}
