//! `animctl history`

use animd_common::words::{date, energy, time};
use serde_json::Value;

use super::exit::{Exit, Result};
use super::facts::{Facts, color, completed};
use super::jobs::{Which, seconds};
use super::table::{Column, Table};
use super::{Ctl, count, print};

/// List your jobs with their time and energy, the newest first.
///
/// For root it is everybody's jobs.
#[derive(clap::Args)]
#[command(
    after_help = "Example: animctl history --state done --limit 50\n\nJSON: an array of what `animctl show` prints of each job"
)]
pub struct Args {
    #[command(flatten)]
    which: Which,
    /// Show at most this many jobs
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = count::<u64>)]
    limit: u64,
}

pub async fn run(args: &Args, ctl: &Ctl) -> Result {
    let mut jobs = Vec::new();
    args.which
        .each(ctl, Some(args.limit), |job| {
            jobs.push(completed(job));
            Ok(())
        })
        .await?;
    if ctl.json {
        print(Value::Array(jobs));
        return Ok(Exit::Done);
    }
    let head = [
        Column::right("ID"),
        Column::left("STATE"),
        Column::left("ENDED"),
        Column::right("TIME"),
        Column::right("ENERGY"),
        Column::right("SIZE"),
        Column::flexible("PROFILE"),
        Column::flexible("NAME"),
    ];
    Table { head, rows: jobs.iter().map(row).collect() }.print(&color);
    Ok(Exit::Done)
}

fn row(job: &Value) -> [String; 8] {
    let text = |key: &str| job[key].as_str().unwrap_or_default().to_owned();
    let size = match (job["width"].as_u64(), job["height"].as_u64()) {
        (Some(width), Some(height)) => format!("{width}x{height}"),
        _ => String::new(),
    };
    [
        job["id"].to_string(),
        Facts(job).state().to_owned(),
        job["finished"].as_u64().map(date).unwrap_or_default(),
        seconds(job).map(time).unwrap_or_default(),
        job["energy_joules"].as_f64().map(energy).unwrap_or_default(),
        size,
        text("profile"),
        text("name"),
    ]
}
