//! `animctl unload`

use serde_json::json;

use super::Ctl;
use super::exit::{Exit, Result};

/// Give the model's memory back now.
///
/// The next job loads it again.
#[derive(clap::Args)]
#[command(
    after_help = "Example: animctl unload\n\nRefused while a job runs or waits: pause the queue first, or `animctl drain`. Asks \
polkit (unload) where you are not root.\n\nJSON: unloaded"
)]
pub struct Args {}

pub async fn run(_: &Args, ctl: &Ctl) -> Result {
    ctl.manager.unload().await?;
    ctl.tell(&json!({"unloaded": true}), "the model is unloaded");
    Ok(Exit::Done)
}
