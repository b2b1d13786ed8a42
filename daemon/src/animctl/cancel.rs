//! `animctl cancel ID`

use animd::client::{JobProxy, ManagerProxy};
use zbus::Connection;

use crate::{Result, print};

/// Cancel a job, waiting or running. Its owner and root may.
#[derive(clap::Args)]
#[command(after_help = "Example: animctl cancel 7\n\nJSON: id, state")]
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
    if json {
        print(serde_json::json!({"id": args.id, "state": job.state().await?}));
    } else {
        print(format!("job {} is cancelled", args.id));
    }
    Ok(0)
}
