//! `animctl reload`

use serde_json::json;

use super::Ctl;
use super::exit::{Exit, Result};

/// Let the service read its configuration again.
///
/// With a mistake in it the old one stays.
#[derive(clap::Args)]
#[command(
    after_help = "Example: animctl config check && animctl reload\n\nAsks polkit (configure) where you are not root.\n\n\
JSON: reloaded"
)]
pub struct Args {}

pub async fn run(_: &Args, ctl: &Ctl) -> Result {
    ctl.manager.reload().await?;
    ctl.tell(&json!({"reloaded": true}), "the configuration was read again");
    Ok(Exit::Done)
}
