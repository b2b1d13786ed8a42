//! What a video would cost, and which profile and GPU would make it: for `Plan`, `Profiles` and the manager's
//! properties.

use animd_common::memory::available_memory;
use animd_common::text::Text;
use animd_protocol::profile::Backend;

use super::Hub;
use super::answer::{Answer, Dict};
use super::error::BusError;
use super::options::PlanOf;
use crate::supervisor::profile::Profiles;

/// Returns the plan of a submission.
pub async fn plan(hub: &Hub, of: PlanOf) -> Result<Dict, BusError> {
    let settings = hub.defaults.complete(of.settings);
    let request = hub.defaults.resolve(settings, || 0).map_err(|e| BusError::InvalidOption(e.to_string()))?;
    hub.queue.check(&request)?;
    if let Some(text) = crate::plan::refusal(&hub.profiles, &request, of.picture) {
        return Err(BusError::NotEnoughMemory(text));
    }
    let plan = crate::plan::plan(&hub.ledger, &hub.profiles, &request, of.picture).await?;
    let choice = hub.profiles.choice();
    let remedy = choice.remedy.clone().or_else(|| too_large(&plan, choice.profile.as_ref()?.device.backend));
    let backend = choice.profile.as_ref().map(|profile| profile.device.backend.name());
    Ok(Answer::default()
        .with("profile", plan.profile)
        .with("backend", backend)
        .with("why", choice.why.iter().map(|why| Text::from(why.as_str())).collect::<Vec<_>>())
        .with("remedy", remedy)
        .with("notes", plan.notes.into_iter().map(Text::from).collect::<Vec<_>>())
        .with("seconds", plan.seconds)
        .with("seconds_source", plan.seconds_source)
        .with("seconds_why", plan.seconds_why)
        .with("memory", plan.memory_bytes)
        .with("host_memory", plan.host_bytes)
        .with("streamed", plan.streamed_bytes)
        .with("size", request.size.to_string())
        .with("frames", request.total_frames())
        .with("parts", plan.parts)
        .with("steps", request.total_steps())
        .with("forwards", plan.forwards)
        .dict())
}

/// Returns what to do if the machine's main memory is too small for now. The GPU's memory was checked for the profile.
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

/// Returns all profiles, and for each whether it would run here.
pub fn profiles(profiles: &Profiles) -> Vec<Dict> {
    let listed = profiles.list().into_iter();
    let entry = |one: crate::supervisor::profile::Listed| {
        Answer::default()
            .with("name", one.name)
            .with("summary", one.summary)
            .with("fits", one.fits)
            .with("chosen", one.chosen)
            .with("why", one.why)
            .dict()
    };
    listed.map(entry).collect()
}

/// Returns the name of the profile in use; empty before the GPU has been looked at.
pub fn profile(profiles: &Profiles) -> Text {
    profiles.choice().profile.as_ref().map(|profile| profile.name.as_str().into()).unwrap_or_default()
}

/// Returns the GPU that the choice of the profile is about; empty without one.
pub fn gpu(profiles: &Profiles) -> Dict {
    let Some(gpu) = profiles.gpu() else { return Dict::new() };
    Answer::default()
        .with("name", gpu.name)
        .with("uuid", gpu.uuid)
        .with("index", gpu.index)
        .with("driver", gpu.driver)
        .with("memory_total", gpu.memory_total)
        .with("used", gpu.used)
        .dict()
}
