//! What a submission would come to, and on what: for `Plan`, `Profiles` and the manager's properties.

use std::collections::HashMap;

use animd_common::memory::available_memory;
use animd_protocol::profile::Backend;
use zbus::{OwnedVariant, Variant};

use super::Hub;
use super::error::BusError;
use super::options::PlanOf;
use crate::supervisor::profile::Profiles;

type Dict = HashMap<String, OwnedVariant>;

/// The plan of a submission.
pub async fn plan(hub: &Hub, of: PlanOf) -> Result<Dict, BusError> {
    let request = of
        .settings
        .or(hub.defaults.get())
        .resolve(|| 0)
        .map_err(|e| BusError::InvalidOption(e.to_string()))?;
    let plan = crate::plan::plan(&hub.ledger, &hub.profiles, &request, of.picture).await?;
    let choice = hub.profiles.choice();
    let remedy = choice.remedy.clone().or_else(|| too_large(&plan, choice.profile.as_ref()?.device.backend));
    let backend = choice.profile.as_ref().map(|profile| profile.device.backend.name());
    Ok(dict([
        ("profile", plan.profile.map(Into::into)),
        ("backend", backend.map(Into::into)),
        ("why", Some(Variant::new(choice.why.clone()))),
        ("remedy", remedy.map(Into::into)),
        ("seconds", plan.seconds.map(Into::into)),
        ("seconds_source", Some(if plan.seconds.is_some() { "history" } else { "unknown" }.into())),
        ("seconds_why", Some(plan.seconds_why.into())),
        ("memory", plan.memory_bytes.map(Into::into)),
        ("size", Some(request.size.to_string().into())),
        ("frames", Some(request.frames.into())),
        ("steps", Some(request.steps.into())),
        ("forwards", Some(plan.forwards.into())),
    ]))
}

/// What to do where the machine's own memory would not do now. A GPU's has been looked at for the profile.
fn too_large(plan: &crate::plan::Plan, backend: Backend) -> Option<String> {
    let (needed, free) = (plan.memory_bytes?, available_memory()?);
    let gib = |bytes: u64| bytes as f64 / f64::from(1 << 30);
    (backend == Backend::Cpu && needed > free).then(|| {
        format!(
            "this takes {:.1} GiB of memory, and the machine has {:.1} GiB left: close other programs, or choose a smaller \
             `size`, fewer `frames` or `tiling` = `tiled`",
            gib(needed),
            gib(free)
        )
    })
}

/// All profiles, and whether they would run here.
pub fn profiles(profiles: &Profiles) -> Vec<Dict> {
    let listed = profiles.list().into_iter();
    let entry = |one: crate::supervisor::profile::Listed| {
        dict([
            ("name", Some(one.name.into())),
            ("summary", Some(one.summary.into())),
            ("fits", Some(one.fits.into())),
            ("chosen", Some(one.chosen.into())),
            ("why", Some(one.why.into())),
        ])
    };
    listed.map(entry).collect()
}

/// The profile that is in use; empty before the GPU has been looked at.
pub fn profile(profiles: &Profiles) -> String {
    profiles.choice().profile.as_ref().map(|profile| profile.name.clone()).unwrap_or_default()
}

/// The GPU that the choice of the profile is about; empty without one.
pub fn gpu(profiles: &Profiles) -> Dict {
    let Some(gpu) = profiles.gpu() else { return Dict::new() };
    dict([
        ("name", Some(gpu.name.into())),
        ("uuid", Some(gpu.uuid.into())),
        ("index", Some(gpu.index.into())),
        ("driver", Some(gpu.driver.into())),
        ("memory_total", Some(gpu.memory_total.into())),
        ("used", Some(gpu.used.into())),
    ])
}

/// A dictionary of what is known.
fn dict<const N: usize>(pairs: [(&str, Option<Variant<'_>>); N]) -> Dict {
    let known = pairs.into_iter().filter_map(|(key, value)| Some((key, value?)));
    known.filter_map(|(key, value)| Some((key.to_owned(), value.try_into_owned().ok()?))).collect()
}
