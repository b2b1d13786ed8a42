//! `animctl status`

use animd::client::ManagerProxy;

use crate::{Result, print};

/// Show what animd is doing.
#[derive(clap::Args)]
#[command(
    after_help = "Example: animctl status --json\n\nJSON: version, state (starting, loading, idle, busy, no-weights, no-gpu, \
no-engine, stopping), state_text, queued"
)]
pub struct Args {}

pub async fn run(_: &Args, manager: &ManagerProxy<'_>, json: bool) -> Result<u8> {
    let (version, state) = (manager.version().await?, manager.state().await?);
    let (text, queued) = (manager.state_text().await?, manager.queued().await?);
    if json {
        print(serde_json::json!({"version": version, "state": state, "state_text": text, "queued": queued}));
    } else {
        print(format!("animd {version}: {state}\n{text}\n{queued} waiting"));
    }
    Ok(0)
}
