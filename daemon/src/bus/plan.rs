//! What a submission would come to, and on what: for `Plan`, `Profiles` and the manager's properties.

use std::collections::HashMap;

use zbus::{OwnedVariant, Variant};

use super::error::BusError;
use super::options::PlanOf;
use crate::delivery::Desk;

type Dict = HashMap<String, OwnedVariant>;

/// The plan of a submission.
pub async fn plan(desk: &Desk, of: PlanOf) -> Result<Dict, BusError> {
    let request = of
        .settings
        .or(desk.config().defaults.clone())
        .resolve(|| 0)
        .map_err(|e| BusError::InvalidOption(e.to_string()))?;
    let asked = request.clone();
    let past = desk.ledger.call(move |db| db.seconds_like(&asked)).await?;
    let forwards = request.steps * if request.guidance == 1.0 { 1 } else { 2 };
    let why = match &past {
        Some(_) => "jobs like it took so long here".to_owned(),
        None => "no job like it has ended here yet".to_owned(),
    };
    Ok(dict([
        ("profile", Some(profile(desk).into())),
        ("why", Some(Variant::new(vec![why]))),
        ("seconds", past.map(Into::into)),
        ("seconds_source", Some(if past.is_some() { "history" } else { "unknown" }.into())),
        ("size", Some(request.size.to_string().into())),
        ("frames", Some(request.frames.into())),
        ("steps", Some(request.steps.into())),
        ("forwards", Some(forwards.into())),
    ]))
}

/// All profiles.
#[expect(clippy::unnecessary_wraps, reason = "profiles of the machine's own are read from files")]
pub fn profiles(_: &Desk) -> Result<Vec<Dict>, BusError> {
    Ok(Vec::new())
}

/// The profile that is in use; empty before the GPU has been looked at.
pub fn profile(desk: &Desk) -> String {
    desk.config().profile.name.clone()
}

/// The GPU that is in use; empty without one.
pub fn gpu(_: &Desk) -> Dict {
    Dict::new()
}

/// A dictionary of what is known.
fn dict<const N: usize>(pairs: [(&str, Option<Variant<'_>>); N]) -> Dict {
    let known = pairs.into_iter().filter_map(|(key, value)| Some((key, value?)));
    known.filter_map(|(key, value)| Some((key.to_owned(), value.try_into_owned().ok()?))).collect()
}
