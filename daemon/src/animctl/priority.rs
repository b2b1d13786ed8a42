//! `animctl priority ID N`

use serde_json::json;

use super::Ctl;
use super::exit::{Exit, Result};

/// Give a waiting job another place in the queue: the larger priority runs first, and among equals the older job.
#[derive(clap::Args)]
#[command(
    after_help = "Example: animctl priority 7 10\n\nAbove 0 asks polkit (raise-priority). A negative one is for what may wait: \
animctl priority 7 -5\n\nJSON: id, priority, position"
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
    let job = ctl.job(id).await?;
    job.set_priority(priority).await?;
    let position = job.position().await?;
    let place = if position > 0 { format!(", number {position} in the queue") } else { String::new() };
    ctl.tell(
        &json!({"id": id, "priority": priority, "position": position}),
        &format!("job {id} has priority {priority}{place}"),
    );
    Ok(Exit::Done)
}
