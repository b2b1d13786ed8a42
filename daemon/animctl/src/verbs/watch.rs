//! `animctl watch [ID]`

use tokio::signal::ctrl_c;

use super::exit::{Exit, Result};
use super::facts::Facts;
use super::follow::{entry, follow};
use super::meter::Meter;
use super::submit::goes_on_without_us;
use super::{Ctl, job_number, queue};

/// Show a job, or the queue, as it runs.
///
/// With a number it shows this job until it has ended; without one, the queue until Ctrl-C.
#[derive(clap::Args)]
#[command(
    after_help = "Example: animctl watch 7\n\nOn kitty, Ghostty, Konsole, iTerm2 and WezTerm a small preview of the video is shown \
while it is made. Where standard error is not a terminal, each step is a line. The queue goes to standard output: a table on a terminal, otherwise a \
line for each job that is submitted, starts or ends.\n\n`animctl folder` manages the folders that animd watches.\n\nJSON: an object a line, for each \
change: what `animctl list` has of the job, and note where nothing happens; for the queue id and state"
)]
pub struct Args {
    /// The job's number
    #[arg(value_parser = job_number)]
    id: Option<u64>,
    /// Stop when no job is queued or running
    #[arg(long, conflicts_with = "id")]
    until_idle: bool,
    /// Do not show pictures
    #[arg(long)]
    no_preview: bool,
}

pub async fn run(args: &Args, ctl: &Ctl) -> Result {
    let Some(id) = args.id else { return queue::watch(args.until_idle, ctl).await };
    let mut meter = if ctl.json { Meter::json() } else { Meter::new(id, !args.no_preview) };
    let state = tokio::select! {
        state = follow(id, ctl, &mut meter) => state?,
        _ = ctrl_c() => {
            eprintln!("\nanimctl: {}", goes_on_without_us(&id.to_string()));
            return Ok(Exit::Interrupted);
        }
    };
    if !ctl.json {
        let job = entry(id, ctl).await?.unwrap_or_else(|| serde_json::json!({"state": state}));
        let (facts, reason) = (Facts(&job), Facts(&job).reason().to_owned());
        let why = if reason.is_empty() { reason } else { format!(": {reason}") };
        super::print(format!("job {id} {}{why}", facts.state()));
    }
    Ok(match state.as_str() {
        "done" => Exit::Done,
        "canceled" => Exit::Canceled,
        _ => Exit::Failed,
    })
}
