//! `animctl report OUT.html`

use std::fs::{self, File};
use std::io::Read as _;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use animd_client::JobProxy;
use animd_common::files::{kind, show, write_atomic};
use jiff::Timestamp;
use serde_json::{Value, json};

use super::exit::{Exit, Failure, Result};
use super::jobs::Which;
use super::stats::{By, sum, sums};
use super::{Ctl, count, json_of, path, who, whole};
use crate::report::{Entry, Report, Sum, page};

/// The size of the largest thumbnail that goes into the report, in bytes.
const MAX_THUMBNAIL: u64 = 1 << 20;

/// Write a report on what animd did, as one HTML page.
///
/// It has sums, plots and a card for each job, and needs no other files.
#[derive(clap::Args)]
#[command(
    after_help = "Example: animctl report animd.html --days 30\n\nIt has your own jobs; for root it has everybody's, with prompts and \
pictures. An existing file is replaced.\n\nJSON: file, jobs (how many have a card), bytes"
)]
pub struct Args {
    /// The HTML file to write
    #[arg(value_name = "OUT.html", value_parser = path())]
    file: PathBuf,
    /// Sum up only the last N days
    #[arg(long, value_name = "N", value_parser = whole::<u64>)]
    days: Option<u64>,
    /// Show at most N jobs, the newest
    #[arg(long, value_name = "N", default_value_t = 50, value_parser = count::<u64>)]
    limit: u64,
    /// Only jobs of this user, a name or a number
    #[arg(long, value_name = "USER", value_parser = who::uid)]
    owner: Option<u32>,
}

pub async fn run(args: &Args, ctl: &Ctl) -> Result {
    let all = async |by| {
        let rows = sums(ctl, by, args.days, args.owner).await?;
        rows.into_iter().map(sum).collect::<Result<Vec<Sum>>>()
    };
    let mut jobs = Vec::new();
    let which = Which { state: Vec::new(), owner: args.owner, before: None };
    which
        .each(ctl, Some(args.limit), |job| {
            jobs.push(job);
            Ok(())
        })
        .await?;
    let mut entries = Vec::new();
    for description in jobs {
        // A job may have been forgotten meanwhile.
        if let Some(entry) = entry(ctl, description).await? {
            entries.push(entry);
        }
    }
    let report = Report {
        version: ctl.manager.version().await?,
        made_us: Timestamp::now().as_microsecond() as u64,
        days: all(By::Day).await?,
        models: all(By::Model).await?,
        profiles: all(By::Profile).await?,
        jobs: entries,
    };
    let html = page(&report);
    write(&args.file, &html)?;
    let file = show(&args.file);
    ctl.tell(&json!({"file": file, "jobs": report.jobs.len(), "bytes": html.len()}), &file);
    Ok(Exit::Done)
}

fn write(file: &Path, html: &str) -> Result<()> {
    // Prompts and pictures are private, so only the owner may read the page.
    let full = std::path::absolute(file).map_err(Failure::file("find", file))?;
    // The page replaces what is there, which would destroy a device or a link.
    if let Ok(meta) = fs::symlink_metadata(&full)
        && !meta.is_file()
    {
        let (file, kind) = (show(file), kind(&meta));
        return Err(Failure::new(format!("`{file}` is {kind}, not a regular file; choose another name")));
    }
    write_atomic(&full, html.as_bytes(), 0o600).map_err(Failure::file("write", file))
}

async fn entry(ctl: &Ctl, description: Value) -> Result<Option<Entry>> {
    let id = description["id"].as_u64().unwrap_or(0);
    let Ok(timeline) = ctl.manager.timeline(id).await else { return Ok(None) };
    let timeline = serde_json::from_value(json_of(&timeline))
        .map_err(|e| Failure::new(format!("animd's timeline of job {id} cannot be read: {e}")))?;
    let thumbnail = match description["state"].as_str() {
        Some("done") => match ctl.job(id).await {
            Ok(job) => thumbnail(&job).await,
            Err(_) => return Ok(None),
        },
        _ => None,
    };
    Ok(Some(Entry { description, timeline, thumbnail }))
}

async fn thumbnail(job: &JobProxy<'_>) -> Option<Vec<u8>> {
    let file = File::from(OwnedFd::from(job.open_thumbnail().await.ok()?));
    let mut jpeg = Vec::new();
    file.take(MAX_THUMBNAIL).read_to_end(&mut jpeg).ok()?;
    Some(jpeg)
}
