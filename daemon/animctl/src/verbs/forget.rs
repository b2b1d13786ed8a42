//! `animctl forget ID`

use serde_json::json;

use super::Ctl;
use super::exit::{Exit, Result};

/// Delete what animd knows of a job that has ended.
///
/// Its prompt, its pictures, its figures.
#[derive(clap::Args)]
#[command(
    after_help = "Example: animctl forget 7\n\nThe video in the outbox stays; one that was kept for you to fetch goes.\n\nJSON: id, \
forgotten"
)]
pub struct Args {
    /// The job's number
    id: u64,
}

pub async fn run(args: &Args, ctl: &Ctl) -> Result {
    ctl.job(args.id).await?.forget().await?;
    ctl.tell(&json!({"id": args.id, "forgotten": true}), &format!("job {} is forgotten", args.id));
    Ok(Exit::Done)
}
