//! `animctl list`

use serde_json::Value;

use super::exit::{Exit, Result};
use super::jobs::Which;
use super::table::{Side, lines};
use super::{Ctl, json_of, print};

/// List jobs, the newest first.
///
/// Everybody's, by their public facts; `animctl history` tells more of your own.
#[derive(clap::Args)]
#[command(
    after_help = "Example: animctl list --state failed --limit 5\n\nJSON: an array of objects with id, owner, state, stage, \
step [done, all], progress (0 to 1), expected_end, priority, position (0 when it does not wait), created, started, finished \
(microseconds since 1970, 0 when not known), and name for jobs that you may see"
)]
pub struct Args {
    #[command(flatten)]
    which: Which,
    /// At most so many
    #[arg(long, value_name = "N", default_value_t = 20)]
    limit: u32,
}

pub async fn run(args: &Args, ctl: &Ctl) -> Result {
    let mut filter = args.which.filter();
    filter.insert("limit", args.limit.into());
    let jobs: Vec<Value> = ctl.manager.list(filter).await?.iter().map(json_of).collect();
    if ctl.json {
        print(Value::Array(jobs));
        return Ok(Exit::Done);
    }
    rows(&jobs).iter().for_each(print);
    Ok(Exit::Done)
}

/// Returns the public facts of jobs as lines.
pub fn rows(jobs: &[Value]) -> Vec<String> {
    lines(HEAD, &jobs.iter().map(row).collect::<Vec<_>>())
}

const HEAD: [(&str, Side); 7] = [
    ("ID", Side::Right),
    ("STATE", Side::Left),
    ("DONE", Side::Right),
    ("STAGE", Side::Left),
    ("STEP", Side::Right),
    ("OWNER", Side::Right),
    ("NAME", Side::Left),
];

fn row(job: &Value) -> [String; 7] {
    let text = |key: &str| job[key].as_str().unwrap_or_default().to_owned();
    let step = match (job["step"][0].as_u64(), job["step"][1].as_u64()) {
        (Some(done), Some(all)) if all > 0 => format!("{done}/{all}"),
        _ => String::new(),
    };
    [
        job["id"].to_string(),
        text("state"),
        format!("{:.0}%", job["progress"].as_f64().unwrap_or(0.0) * 100.0),
        text("stage"),
        step,
        job["owner"].to_string(),
        text("name"),
    ]
}
