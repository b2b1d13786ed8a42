//! `animctl pause` and `animctl resume`

use serde_json::json;

use super::Ctl;
use super::exit::{Exit, Result};

/// Start no job from here on.
///
/// Also after a restart of the service. A running job goes on.
#[derive(clap::Args)]
#[command(
    after_help = "Example: animctl pause\n\nAsks polkit (configure) where you are not root. `animctl resume` ends it.\n\n\
JSON: paused"
)]
pub struct PauseArgs {}

/// Start jobs again.
#[derive(clap::Args)]
#[command(
    after_help = "Example: animctl resume\n\nPrograms that hold the queue (`animctl drain -- CMD`) go on holding it; `animctl status` \
names them.\n\nJSON: paused (still true where a program holds the queue)"
)]
pub struct ResumeArgs {}

pub async fn pause(_: &PauseArgs, ctl: &Ctl) -> Result {
    ctl.manager.pause().await?;
    ctl.tell(&json!({"paused": true}), "no job is started until `animctl resume`");
    Ok(Exit::Done)
}

pub async fn resume(_: &ResumeArgs, ctl: &Ctl) -> Result {
    ctl.manager.resume().await?;
    let held = ctl.manager.paused().await?;
    let text = if held { ctl.manager.state_text().await? } else { "jobs are started".into() };
    ctl.tell(&json!({"paused": held}), &text);
    Ok(Exit::Done)
}
