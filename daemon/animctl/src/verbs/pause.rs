//! `animctl pause` and `animctl resume`

use serde_json::json;

use super::Ctl;
use super::exit::{Exit, Result};

/// Pause the queue: start no more jobs.
///
/// The queue stays paused after a restart of the service. A running job continues.
#[derive(clap::Args)]
#[command(
    after_help = "Example: animctl pause\n\nAsks polkit (configure) where you are not root. `animctl resume` continues the queue.\n\n\
JSON: paused"
)]
pub struct PauseArgs {}

/// Continue the queue.
#[derive(clap::Args)]
#[command(
    after_help = "Example: animctl resume\n\nThe queue stays paused while a program holds it (`animctl drain -- CMD`); `animctl status` \
names it.\n\nJSON: paused (still true where a program holds the queue)"
)]
pub struct ResumeArgs {}

pub async fn pause(_: &PauseArgs, ctl: &Ctl) -> Result {
    ctl.manager.pause().await?;
    ctl.tell(&json!({"paused": true}), "the queue is paused; `animctl resume` continues it");
    Ok(Exit::Done)
}

pub async fn resume(_: &ResumeArgs, ctl: &Ctl) -> Result {
    ctl.manager.resume().await?;
    let held = ctl.manager.paused().await?;
    let text = if held { ctl.manager.state_text().await? } else { "the queue continues".into() };
    ctl.tell(&json!({"paused": held}), &text);
    Ok(Exit::Done)
}
