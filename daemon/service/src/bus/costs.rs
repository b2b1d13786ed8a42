//! The part of a job's description that says what the job ran on and what it cost.

use super::answer::Answer;
use crate::store::ledger::Costs;

/// Adds `profile`, `gpu`, `gpu_uuid`, `driver` (s), `energy_joules` (d), `energy_method` (s: `counter`, `sampled`) and
/// `stage_joules` (a(sd)) as far as they are known.
pub fn describe(costs: Costs, answer: &mut Answer) {
    let Costs { placed, energy } = costs;
    answer.put("profile", placed.profile);
    answer.put("gpu", placed.gpu_name);
    answer.put("gpu_uuid", placed.gpu_uuid);
    answer.put("driver", placed.driver);
    if let Some(energy) = energy {
        answer.put("energy_joules", energy.joules);
        answer.put("energy_method", energy.method);
        answer.put("stage_joules", Some(energy.stages).filter(|stages| !stages.is_empty()));
    }
}
