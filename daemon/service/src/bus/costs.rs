//! On what a job ran and what it cost, for its description.

use std::collections::HashMap;

use zbus::{OwnedVariant, Variant};

use crate::store::ledger::Costs;

/// Adds `profile`, `gpu`, `gpu_uuid`, `driver` (s), `energy_joules` (d), `energy_method` (s: `counter`, `sampled`) and
/// `stage_joules` (a(sd)) as far as they are known.
pub fn describe(costs: Costs, dict: &mut HashMap<String, OwnedVariant>) {
    let mut put = |key: &str, value: Option<Variant<'_>>| {
        if let Some(Ok(value)) = value.map(Variant::try_into_owned) {
            dict.insert(key.to_owned(), value);
        }
    };
    let Costs { placed, energy } = costs;
    put("profile", placed.profile.map(Into::into));
    put("gpu", placed.gpu_name.map(Into::into));
    put("gpu_uuid", placed.gpu_uuid.map(Into::into));
    put("driver", placed.driver.map(Into::into));
    if let Some(energy) = energy {
        put("energy_joules", Some(energy.joules.into()));
        put("energy_method", Some(energy.method.into()));
        put("stage_joules", Some(energy.stages).filter(|s| !s.is_empty()).map(Variant::new));
    }
}
