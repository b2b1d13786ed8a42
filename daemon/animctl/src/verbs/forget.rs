//! `animctl forget ID...`

use serde_json::json;

use super::batch::Batch;
use super::exit::Result;
use super::{Ctl, job_number};

/// Delete what animd knows of jobs that have ended.
///
/// That is the prompt, the pictures and the figures of each.
#[derive(clap::Args)]
#[command(
    after_help = "Example: animctl forget 7 8\n\nThe video in the outbox stays; one that was kept for you to fetch is deleted.\n\nJSON: \
id, forgotten; for several jobs an array of such objects"
)]
pub struct Args {
    /// The jobs' numbers
    #[arg(required = true, value_name = "ID", value_parser = job_number)]
    ids: Vec<u64>,
}

pub async fn run(args: &Args, ctl: &Ctl) -> Result {
    let mut batch = Batch::new(args.ids.len());
    for &id in &args.ids {
        let forgotten = async {
            ctl.job(id).await?.forget().await?;
            Ok((json!({"id": id, "forgotten": true}), format!("job {id} is forgotten")))
        };
        batch.add(forgotten.await)?;
    }
    Ok(batch.finish(ctl))
}
