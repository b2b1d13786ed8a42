//! `animctl priority ID N`

use serde_json::json;

use super::Ctl;
use super::exit::{Exit, Result};

/// Give a waiting job another place in the queue.
///
/// The larger priority runs first, and among equals the older job.
#[derive(clap::Args)]
#[command(
    after_help = "Example: animctl priority 7 10\n\nAbove 0 asks polkit (raise-priority). A negative one is for what may wait: \
animctl priority 7 -5\n\nJSON: id, priority"
)]
pub struct Args {
    /// The job's number
    id: u64,
    /// From -100 to 100; jobs begin with 0
    #[arg(allow_negative_numbers = true, value_name = "N")]
    priority: i32,
}

pub async fn run(args: &Args, ctl: &Ctl) -> Result {
    let Args { id, priority } = *args;
    ctl.job(id).await?.set_priority(priority).await?;
    ctl.tell(&json!({"id": id, "priority": priority}), &format!("job {id} has priority {priority}"));
    Ok(Exit::Done)
}
