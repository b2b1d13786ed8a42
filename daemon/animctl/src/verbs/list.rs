//! `animctl list`

use serde_json::Value;

use super::exit::{Exit, Result};
use super::facts::{Facts, color, completed};
use super::jobs::Which;
use super::table::{Column, Table};
use super::{Ctl, count, json_of, print};

/// List jobs, the newest first.
///
/// Everybody's jobs, by their public facts; `animctl history` has more about your own.
#[derive(clap::Args)]
#[command(
    after_help = "Example: animctl list --state failed,canceled --owner ann\n\nJSON: an array of objects with id, owner, owner_name, \
state (queued, running, canceling, finishing, done, failed or canceled), stage, step [done, all], progress (0 to 1), expected_end, \
priority, position (0 when it does not wait), created, started, finished (microseconds since 1970, 0 when not known), and for jobs that \
you may see name, error_code and error_text"
)]
pub struct Args {
    #[command(flatten)]
    which: Which,
    /// Show at most this many jobs
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = count::<u32>)]
    limit: u32,
}

pub async fn run(args: &Args, ctl: &Ctl) -> Result {
    let mut filter = args.which.filter();
    filter.insert("limit", args.limit.into());
    let jobs: Vec<Value> = ctl.manager.list(filter).await?.iter().map(json_of).map(completed).collect();
    if ctl.json {
        print(Value::Array(jobs));
    } else if jobs.is_empty() {
        print("no jobs");
    } else {
        table(&jobs).print(&color);
    }
    Ok(Exit::Done)
}

/// Returns the public facts of jobs as a table.
pub fn table(jobs: &[Value]) -> Table<6> {
    let head = [
        Column::right("ID"),
        Column::left("STATE"),
        Column::flexible("NOW"),
        Column::left("TIME"),
        Column::flexible("OWNER"),
        Column::flexible("NAME"),
    ];
    Table { head, rows: jobs.iter().map(row).collect() }
}

fn row(job: &Value) -> [String; 6] {
    let facts = Facts(job);
    [
        facts.id().to_string(),
        facts.state().to_owned(),
        facts.doing(),
        facts.when(),
        facts.owner(),
        facts.name().to_owned(),
    ]
}
