//! `animctl priority ID N`

use serde_json::json;

use super::exit::{Exit, Result};
use super::{Ctl, job_number};

/// Move a queued job up or down the queue.
///
/// The job with the larger priority runs first; of equal ones, the older.
#[derive(clap::Args)]
#[command(
    after_help = "Example: animctl priority 7 10\n\nAbove 0 asks polkit (raise-priority). A negative one is for a job that can wait: \
animctl priority 7 -5\n\nJSON: id, priority"
)]
pub struct Args {
    /// The job's number
    #[arg(value_parser = job_number)]
    id: u64,
    /// The new priority, from -100 to 100; a job starts with 0
    #[arg(allow_negative_numbers = true, value_name = "N", value_parser = in_range())]
    priority: i32,
}

/// Returns the parser of a priority.
pub fn in_range() -> impl Fn(&str) -> std::result::Result<i32, String> + Clone {
    |word| {
        let number = word.parse().ok().filter(|number| (-100..=100).contains(number));
        number.ok_or_else(|| format!("`priority` must be a whole number from -100 to 100, not {word}"))
    }
}

pub async fn run(args: &Args, ctl: &Ctl) -> Result {
    let Args { id, priority } = *args;
    ctl.job(id).await?.set_priority(priority).await?;
    ctl.tell(&json!({"id": id, "priority": priority}), &format!("job {id} has priority {priority}"));
    Ok(Exit::Done)
}
