//! `animctl retry ID...`

use std::path::PathBuf;

use animd_client::id_of;
use serde_json::json;

use super::batch::Batch;
use super::exit::{Failure, Result};
use super::submit::{Submitted, finish};
use super::{Ctl, fetch, job_number, path, settings};

/// Make videos again from the pictures of jobs that have ended.
///
/// A job keeps its own settings, except for those that you give here.
#[derive(clap::Args)]
#[command(
    after_help = "Example: animctl retry 7 8 --new-seed --wait\n\nEach new job has its own number. animd keeps a picture for some \
days (retention.pictures_days); after that, submit it again.\n\nJSON: id, state, retry_of; with --wait what `animctl \
show` prints; for several jobs an array of such objects"
)]
pub struct Args {
    /// The jobs' numbers
    #[arg(required = true, value_name = "ID", value_parser = job_number)]
    ids: Vec<u64>,
    /// Draw another seed, for a different video
    #[arg(long, conflicts_with = "seed")]
    new_seed: bool,
    /// Wait until the video is ready, and show the progress
    #[arg(short, long)]
    wait: bool,
    /// Wait for the video, and copy it to this file, which must not exist
    #[arg(short, long, value_name = "FILE", value_parser = path())]
    output: Option<PathBuf>,
    #[command(flatten, next_help_heading = "Settings of the video")]
    settings: settings::JobOptions,
}

pub async fn run(args: Args, ctl: &Ctl) -> Result {
    if let Some(output) = &args.output {
        if args.ids.len() > 1 {
            return Err(Failure::usage(
                "--output is for one job; leave it out, or retry the jobs one by one",
            ));
        }
        fetch::check(output)?;
    }
    let given = settings::given(args.settings)?;
    let mut batch = Batch::new(args.ids.len());
    let mut new = Vec::new();
    for &id in &args.ids {
        let mut options = settings::options(&given);
        if args.new_seed {
            options.insert("new_seed", true.into());
        }
        let retried = async {
            let path = ctl.job(id).await?.retry(options).await?;
            Ok(id_of(&path).unwrap_or(0))
        };
        let retried = retried.await.map(|again| {
            new.push(Submitted { id: again, name: format!("job {id}") });
            let sentence = format!("job {again} is queued; `animctl show {again}` shows what becomes of it");
            (json!({"id": again, "state": "queued", "retry_of": id}), sentence)
        });
        batch.add(retried)?;
    }
    if args.wait || args.output.is_some() {
        return finish(&new, args.output, batch, ctl).await;
    }
    Ok(batch.finish(ctl))
}
