//! `animctl unload`

use serde_json::json;

use super::Ctl;
use super::exit::{Exit, Result};

/// Free the model's memory now.
///
/// The next job loads the model again.
#[derive(clap::Args)]
#[command(
    after_help = "Example: animctl unload\n\nRefused while a job is running or queued: pause the queue first, or use `animctl drain`. Asks \
polkit (unload) where you are not root.\n\nJSON: unloaded"
)]
pub struct Args {}

pub async fn run(_: &Args, ctl: &Ctl) -> Result {
    ctl.manager.unload().await?;
    ctl.tell(&json!({"unloaded": true}), "the model is unloaded");
    Ok(Exit::Done)
}
