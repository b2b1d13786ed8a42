//! `animctl status`

use std::collections::HashMap;

use animd_common::bus::ServiceState;
use serde_json::{Value, json};

use super::exit::{Exit, Failure, Result};
use super::facts::{Facts, completed};
use super::term::{Color, paint, width, wrap};
use super::{Ctl, facts, json_of, list, print};

/// The most jobs that are shown.
const SHOWN: usize = 12;

/// Show what animd is doing.
#[derive(clap::Args)]
#[command(
    after_help = "Example: animctl status --json\n\nJSON: version, state (starting, loading, idle, busy, paused, no-weights, no-gpu, \
no-engine, no-output, stopping), state_text, queued (how many jobs wait), paused, profile, gpu (name, uuid, index, driver, memory_total, used; \
empty without one), running and waiting (what `animctl list` has of these jobs), last (the same of the newest job that has ended)"
)]
pub struct Args {}

pub async fn run(_: &Args, ctl: &Ctl) -> Result {
    let manager = &ctl.manager;
    let (version, state, text) =
        (manager.version().await?, manager.state().await?, manager.state_text().await?);
    let (queued, paused) = (manager.queued().await?, manager.paused().await?);
    let (profile, gpu) = (manager.profile().await?, json_of(&manager.gpu().await?));
    let jobs = async |state: &'static str, limit: u32| {
        let filter = HashMap::from([("state", state.into()), ("limit", limit.into())]);
        Ok::<Vec<Value>, Failure>(manager.list(filter).await?.iter().map(json_of).map(completed).collect())
    };
    let running = jobs("running,finishing", 100).await?;
    let mut waiting = jobs("queued", 1000).await?;
    waiting.sort_by_key(|job| job["position"].as_u64());
    let ended = jobs("done,failed,canceled", 1).await?;
    if ctl.json {
        print(json!({
            "version": version,
            "state": state,
            "state_text": text,
            "queued": queued,
            "paused": paused,
            "profile": profile,
            "gpu": gpu,
            "running": running,
            "waiting": waiting,
            "last": ended.first(),
        }));
        return Ok(Exit::Done);
    }
    let color = match ServiceState::from_name(&state) {
        Some(state) if state.is_trouble() => Some(Color::Red),
        Some(state) if state.is_working() => Some(Color::Green),
        _ => Some(Color::Yellow),
    };
    print(format!("animd {version}: {}", paint(&state, color)));
    wrap(&text, width()).iter().for_each(print);
    print(format!("{queued} queued"));
    if !profile.is_empty() {
        let gpu = gpu["name"].as_str().map(|name| format!(" on {name}")).unwrap_or_default();
        print(format!("profile {profile}{gpu}"));
    }
    if let Some(last) = ended.first().map(Facts).filter(|last| last.state() == "failed") {
        let name = if last.name().is_empty() { last.owner() } else { last.name().to_owned() };
        let text =
            format!("the last job, {} ({name}), failed at {}: {}", last.id(), last.when(), last.reason());
        wrap(text.trim_end_matches(": "), width()).iter().for_each(print);
    }
    let open: Vec<Value> = running.into_iter().chain(waiting).collect();
    if !open.is_empty() {
        print("");
        list::table(&open[..open.len().min(SHOWN)]).print(&facts::color);
    }
    if open.len() > SHOWN {
        print(format!("and {} more; `animctl list --state queued` shows them", open.len() - SHOWN));
    }
    Ok(Exit::Done)
}
