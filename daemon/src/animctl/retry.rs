//! `animctl retry ID`

use std::path::PathBuf;

use animd_options::SettingsOptions;
use serde_json::json;

use super::exit::{Exit, Result};
use super::{Ctl, fetch, settings, submit};
use crate::client::id_of;

/// Make a job's video again, or another one of its picture.
///
/// With its own settings, but for those that are given.
#[derive(clap::Args)]
#[command(
    after_help = "Example: animctl retry 7 --new-seed --wait\n\nThe new job has a number of its own. animd keeps the picture for some \
days (retention.pictures_days); after that it is to be submitted again.\n\nJSON: id, state, retry_of; with --wait what `animctl \
show` prints"
)]
pub struct Args {
    /// The job's number
    id: u64,
    #[command(flatten)]
    settings: SettingsOptions,
    /// Draw another seed, for another video
    #[arg(long, conflicts_with = "seed")]
    new_seed: bool,
    /// Wait for the end, and show the progress
    #[arg(short, long)]
    wait: bool,
    /// Copy the video to this file, which must not exist; waits for it
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
}

pub async fn run(args: Args, ctl: &Ctl) -> Result {
    if let Some(output) = &args.output {
        fetch::check(output)?;
    }
    let given = settings::given(args.settings.clone())?;
    let mut options = settings::options(&given);
    if args.new_seed {
        options.insert("new_seed", true.into());
    }
    let path = ctl.job(args.id).await?.retry(options).await?;
    let id = id_of(&path).unwrap_or(0);
    if args.wait || args.output.is_some() {
        return submit::finish(id, args.output, ctl).await;
    }
    let sentence = format!("job {id} is queued; `animctl show {id}` tells what becomes of it");
    ctl.tell(&json!({"id": id, "state": "queued", "retry_of": args.id}), &sentence);
    Ok(Exit::Done)
}
