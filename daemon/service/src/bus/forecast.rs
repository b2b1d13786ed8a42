//! When the jobs that wait are expected to end: after the running one, each with the time that its plan says.

use std::collections::HashMap;

use animd_common::bus::ServiceState;
use animd_common::clock::now_us;

use super::Hub;
use super::error::BusError;
use crate::store::ledger::{Filter, Job, State, Store};

/// The most waiting jobs that are looked at; those behind them have no forecast.
const LOOKED_AT: usize = 200;
/// The most different plans that one forecast makes.
const PLANS: usize = 16;

/// Returns the expected end of waiting jobs, in microseconds since the epoch; empty where the queue does not move or
/// there is nothing to judge by.
pub async fn ends(hub: &Hub) -> Result<HashMap<u64, u64>, BusError> {
    let moves = matches!(hub.events.status().borrow().state, ServiceState::Idle | ServiceState::Busy);
    if !moves {
        return Ok(HashMap::new());
    }
    let (running, waiting) = hub.ledger.call(jobs).await?;
    let now = now_us() as u64;
    let mut plans = Vec::new();
    let mut end = now;
    for job in running {
        let live = hub.events.live(job.id).and_then(|live| live.expected_end_us);
        let planned = match live {
            Some(end) => Some(end),
            None => seconds(hub, &mut plans, &job)
                .await?
                .map(|seconds| job.started_us.unwrap_or(now) + (seconds * 1e6) as u64),
        };
        let Some(planned) = planned else { return Ok(HashMap::new()) };
        end = end.max(planned);
    }
    let mut ends = HashMap::new();
    for job in waiting {
        let Some(seconds) = seconds(hub, &mut plans, &job).await? else { break };
        end += (seconds * 1e6) as u64;
        ends.insert(job.id, end);
    }
    Ok(ends)
}

/// Returns the running jobs, and the first ones of the queue in its order.
fn jobs(db: &mut Store) -> crate::error::Result<(Vec<Job>, Vec<Job>)> {
    let running = Filter { states: vec![State::Running], owner: None, before: None, limit: 2 };
    let mut waiting = Vec::new();
    for id in db.queue()?.into_iter().take(LOOKED_AT) {
        waiting.extend(db.job(id)?);
    }
    Ok((db.list(&running)?, waiting))
}

/// What makes two jobs take the same time: size, frames of each part and of all, steps, guidance and step cache.
type Kind = String;

/// Returns the seconds that a job is expected to take; plans are made once for each kind of job.
async fn seconds(
    hub: &Hub,
    plans: &mut Vec<(Kind, Option<f64>)>,
    job: &Job,
) -> Result<Option<f64>, BusError> {
    let Some(request) = &job.request else { return Ok(None) };
    let kind = format!(
        "{} {} {} {} {} {:?}",
        request.size,
        request.frames,
        request.total_frames(),
        request.total_steps(),
        request.forwards(),
        request.step_cache
    );
    if let Some((_, seconds)) = plans.iter().find(|(known, _)| *known == kind) {
        return Ok(*seconds);
    }
    if plans.len() >= PLANS {
        return Ok(None);
    }
    let plan = crate::plan::plan(&hub.ledger, &hub.profiles, request, None).await?;
    plans.push((kind, plan.seconds));
    Ok(plan.seconds)
}
