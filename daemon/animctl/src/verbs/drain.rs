//! `animctl drain`

use std::collections::HashMap;
use std::time::Duration;

use serde_json::json;
use tokio::time::{Instant, sleep};

use super::exit::{Exit, Failure, Result};
use super::{Ctl, json_of, warm, whole};

/// The pause between two checks for a running job.
const PACE: Duration = Duration::from_millis(500);

/// Let the running job finish, and start no other.
///
/// Queued jobs stay in the queue.
#[derive(clap::Args)]
#[command(
    after_help = "Example: sudo animctl drain -- apt upgrade\n\nWithout a command the queue stays paused until `animctl resume`; with \
one it continues when the command has ended. Asks polkit (configure, or unload with a command) where you are not root.\n\nJSON: \
drained, paused; with a command nothing, since standard output is the command's"
)]
pub struct Args {
    /// Wait at most this long for the running job, then fail; without a command the queue stays paused
    #[arg(long, value_name = "SECONDS", value_parser = whole::<u64>)]
    timeout: Option<u64>,
    /// The command to run once nothing runs, and its arguments
    #[arg(last = true, value_name = "CMD")]
    command: Vec<String>,
}

pub async fn run(args: &Args, ctl: &Ctl) -> Result {
    let _hold = match args.command.first() {
        Some(command) => Some(ctl.manager.inhibit("pause", "animctl drain", command).await?),
        None => {
            ctl.manager.pause().await?;
            None
        }
    };
    let deadline = args.timeout.map(|seconds| Instant::now() + Duration::from_secs(seconds));
    let mut told = None;
    while let Some(id) = running(ctl).await? {
        if deadline.is_some_and(|deadline| Instant::now() >= deadline) {
            return Err(Failure::new(format!(
                "job {id} still runs; wait longer, or `animctl cancel {id}` (if you restart the service, the job runs again)"
            )));
        }
        if told != Some(id) {
            eprintln!("waiting for job {id} to finish");
            told = Some(id);
        }
        sleep(PACE).await;
    }
    if !args.command.is_empty() {
        return warm::command(&args.command).await;
    }
    ctl.tell(
        &json!({"drained": true, "paused": true}),
        "no job is running, and the queue is paused; `animctl resume` continues it",
    );
    Ok(Exit::Done)
}

/// Returns the number of a job that has been started and has not ended.
async fn running(ctl: &Ctl) -> Result<Option<u64>> {
    for state in ["running", "finishing"] {
        let filter = HashMap::from([("state", state.into()), ("limit", 1_u32.into())]);
        if let Some(job) = ctl.manager.list(filter).await?.first() {
            return Ok(json_of(job)["id"].as_u64());
        }
    }
    Ok(None)
}
