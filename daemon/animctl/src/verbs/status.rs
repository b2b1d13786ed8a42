//! `animctl status`

use std::collections::HashMap;

use serde_json::{Value, json};

use super::exit::{Exit, Result};
use super::{Ctl, json_of, list, print};

/// Show what animd is doing.
#[derive(clap::Args)]
#[command(
    after_help = "Example: animctl status --json\n\nJSON: version, state (starting, loading, idle, busy, paused, no-weights, no-gpu, \
no-engine, no-output, stopping), state_text, queued (jobs that wait), paused, profile, gpu (name, uuid, index, driver, memory_total, used; \
empty without one), running (what `animctl list` has of the running jobs)"
)]
pub struct Args {}

pub async fn run(_: &Args, ctl: &Ctl) -> Result {
    let manager = &ctl.manager;
    let (version, state, text) =
        (manager.version().await?, manager.state().await?, manager.state_text().await?);
    let (queued, paused) = (manager.queued().await?, manager.paused().await?);
    let (profile, gpu) = (manager.profile().await?, json_of(&manager.gpu().await?));
    let running: Vec<Value> =
        manager.list(HashMap::from([("state", "running".into())])).await?.iter().map(json_of).collect();
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
        }));
        return Ok(Exit::Done);
    }
    print(format!("animd {version}: {state}\n{text}\n{queued} waiting"));
    if !profile.is_empty() {
        let gpu = gpu["name"].as_str().map(|name| format!(" on {name}")).unwrap_or_default();
        print(format!("profile {profile}{gpu}"));
    }
    if !running.is_empty() {
        print("");
        list::rows(&running).iter().for_each(print);
    }
    Ok(Exit::Done)
}
