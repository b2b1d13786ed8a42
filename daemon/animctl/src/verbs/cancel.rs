//! `animctl cancel ID...`

use serde_json::json;

use super::batch::Batch;
use super::exit::Result;
use super::{Ctl, job_number, json_of};

/// Cancel jobs, queued or running.
///
/// Only a job's owner and root can cancel it.
#[derive(clap::Args)]
#[command(
    after_help = "Example: animctl cancel 7 8\n\nA running job stops a little later; if its video is finished \
first, the job is done all the same.\n\nJSON: id, state (canceled, canceling, or done or failed where that came first); for several \
jobs an array of such objects"
)]
pub struct Args {
    /// The jobs' numbers
    #[arg(required = true, value_name = "ID", value_parser = job_number)]
    ids: Vec<u64>,
}

pub async fn run(args: &Args, ctl: &Ctl) -> Result {
    let mut batch = Batch::new(args.ids.len());
    for &id in &args.ids {
        batch.add(cancel(id, ctl).await.map(|state| {
            let sentence = match state.as_str() {
                "canceled" => format!("job {id} is cancelled"),
                "canceling" => format!("job {id} is being cancelled"),
                ended => format!("job {id} is {ended}: it ended before it could be cancelled"),
            };
            (json!({"id": id, "state": state}), sentence)
        }))?;
    }
    Ok(batch.finish(ctl))
}

async fn cancel(id: u64, ctl: &Ctl) -> Result<String> {
    let job = ctl.job(id).await?;
    job.cancel().await?;
    // The property `State` may lag behind the description.
    let description = json_of(&job.describe().await?);
    let ended = description["state"].as_str().filter(|state| animd_client::has_ended(state));
    Ok(ended.unwrap_or("canceling").to_owned())
}
