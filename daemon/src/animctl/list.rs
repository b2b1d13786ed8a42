//! `animctl list`

use std::collections::HashMap;

use animd::client::ManagerProxy;
use serde_json::Value;
use zbus::Variant;

use crate::{Result, json_of, print};

/// List jobs, the newest first.
#[derive(clap::Args)]
#[command(
    after_help = "Example: animctl list --state failed --limit 5\n\nJSON: an array of objects with id, owner, state, stage, \
step [done, all], progress (0 to 1), expected_end, position (0 when it does not wait), created, started, finished (microseconds \
since 1970, 0 when not known), and name for jobs that you may see"
)]
pub struct Args {
    /// Only jobs in this state: queued, running, finishing, done, failed or canceled
    #[arg(long, value_name = "STATE")]
    state: Option<String>,
    /// Only jobs of this user
    #[arg(long, value_name = "UID")]
    owner: Option<u32>,
    /// Only jobs with a smaller number
    #[arg(long, value_name = "ID")]
    before: Option<u64>,
    /// At most so many
    #[arg(long, value_name = "N", default_value_t = 20)]
    limit: u32,
}

pub async fn run(args: &Args, manager: &ManagerProxy<'_>, json: bool) -> Result<u8> {
    let mut filter: HashMap<&str, Variant<'_>> = HashMap::from([("limit", args.limit.into())]);
    if let Some(state) = &args.state {
        filter.insert("state", state.as_str().into());
    }
    if let Some(owner) = args.owner {
        filter.insert("owner", owner.into());
    }
    if let Some(before) = args.before {
        filter.insert("before", before.into());
    }
    let jobs: Vec<Value> = manager.list(filter).await?.iter().map(json_of).collect();
    if json {
        print(Value::Array(jobs));
        return Ok(0);
    }
    print(format!(
        "{:>6}  {:<9}  {:>5}  {:<10}  {:>8}  {:>6}  NAME",
        "ID", "STATE", "DONE", "STAGE", "STEP", "OWNER"
    ));
    for job in jobs {
        let text = |key: &str| job[key].as_str().unwrap_or_default().to_owned();
        let percent = format!("{:.0}%", job["progress"].as_f64().unwrap_or(0.0) * 100.0);
        let step = match (job["step"][0].as_u64(), job["step"][1].as_u64()) {
            (Some(done), Some(all)) if all > 0 => format!("{done}/{all}"),
            _ => String::new(),
        };
        print(format!(
            "{:>6}  {:<9}  {percent:>5}  {:<10}  {step:>8}  {:>6}  {}",
            job["id"].to_string(),
            text("state"),
            text("stage"),
            job["owner"].to_string(),
            text("name")
        ));
    }
    Ok(0)
}
