//! `animctl reload`

use serde_json::json;

use super::Ctl;
use super::exit::{Exit, Failure, Result};

/// Make the service read its configuration again.
///
/// If it has a mistake, the old one stays in force.
#[derive(clap::Args)]
#[command(
    after_help = "Example: animctl config check && animctl reload\n\nAsks polkit (configure) where you are not root.\n\n\
JSON: reloaded"
)]
pub struct Args {}

pub async fn run(_: &Args, ctl: &Ctl) -> Result {
    // The configuration is at fault, not the command line.
    ctl.manager.reload().await.map_err(|e| Failure::new(Failure::from(e).text))?;
    ctl.tell(&json!({"reloaded": true}), "the configuration was read again");
    Ok(Exit::Done)
}
