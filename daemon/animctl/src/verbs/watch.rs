//! `animctl watch [ID]`

use super::exit::{Exit, Result};
use super::follow::follow;
use super::meter::Meter;
use super::{Ctl, queue};

/// Show a job, or the queue, as it goes on.
///
/// A job until it has ended; without a number the queue, until Ctrl-C.
#[derive(clap::Args)]
#[command(
    after_help = "Example: animctl watch 7\n\nOn kitty, Ghostty, Konsole, iTerm2 and WezTerm a small preview of the video is shown \
while it is made. Where standard error is no terminal, a line for each step; the queue is told on standard output, a line for each \
job that comes, starts or ends.\n\nThe folders that animd watches are `animctl folder`.\n\nJSON: an object a line, for each \
change: id, owner, state, stage, step [done, all], progress, expected_end, position, priority, and note where nothing happens; of the queue id and state"
)]
pub struct Args {
    /// The job's number
    id: Option<u64>,
    /// End when no job waits or runs
    #[arg(long, conflicts_with = "id")]
    until_idle: bool,
    /// Show no pictures
    #[arg(long)]
    no_preview: bool,
}

pub async fn run(args: &Args, ctl: &Ctl) -> Result {
    let Some(id) = args.id else { return queue::watch(args.until_idle, ctl).await };
    let mut meter = if ctl.json { Meter::json() } else { Meter::new(id, !args.no_preview) };
    let state = follow(id, ctl, &mut meter).await?;
    if !ctl.json {
        super::print(format!("job {id} {state}"));
    }
    Ok(match state.as_str() {
        "done" => Exit::Done,
        "canceled" => Exit::Canceled,
        _ => Exit::Failed,
    })
}
