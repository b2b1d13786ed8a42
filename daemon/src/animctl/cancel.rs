//! `animctl cancel ID`

use animd::client::{JobProxy, ManagerProxy};
use zbus::Connection;

use crate::{Result, json_of, print};

/// Cancel a job, waiting or running. Its owner and root may.
#[derive(clap::Args)]
#[command(
    after_help = "Example: animctl cancel 7\n\nA running job stops a little later; if its video is finished \
first, the job is done all the same.\n\nJSON: id, state (canceled, canceling, or done or failed where that came first)"
)]
pub struct Args {
    /// The job's number
    id: u64,
}

pub async fn run(args: &Args, connection: &Connection, manager: &ManagerProxy<'_>, json: bool) -> Result<u8> {
    let path = manager.get_job(args.id).await?;
    let job = JobProxy::builder(connection)
        .path(path)
        .cache_properties(zbus::proxy::CacheProperties::No)
        .build()
        .await?;
    job.cancel().await?;
    // Not the property, which may lag behind.
    let description = json_of(&job.describe().await?);
    let ended = description["state"].as_str().filter(|s| ["canceled", "done", "failed"].contains(s));
    let state = ended.unwrap_or("canceling");
    let id = args.id;
    if json {
        print(serde_json::json!({"id": id, "state": state}));
    } else {
        print(match state {
            "canceled" => format!("job {id} is cancelled"),
            "canceling" => format!("job {id} is being cancelled"),
            ended => format!("job {id} is {ended}: that came before the cancel"),
        });
    }
    Ok(0)
}
