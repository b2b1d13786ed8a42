//! Reads descriptions of many jobs, page by page.

use std::collections::HashMap;

use clap::builder::{PossibleValue, PossibleValuesParser};
use serde_json::Value;
use zbus::Variant;

use super::exit::Result;
use super::{Ctl, job_number, json_of, who};

/// The most jobs that `History` returns in one reply.
const PAGE: u64 = 200;

/// The states of jobs, as an option takes them.
const STATES: [&str; 5] = ["queued", "running", "finishing", "done", "failed"];

/// Returns the parser of a state; people may write `cancelled` as well.
fn state() -> PossibleValuesParser {
    let canceled = PossibleValue::new("canceled").alias("cancelled");
    PossibleValuesParser::new(STATES.map(PossibleValue::new).into_iter().chain([canceled]))
}

/// Which jobs.
#[derive(clap::Args)]
pub struct Which {
    /// Only jobs in these states
    #[arg(long, value_name = "STATE", value_delimiter = ',', value_parser = state())]
    pub state: Vec<String>,
    /// Only jobs of this user, a name or a number
    #[arg(long, value_name = "USER", value_parser = who::uid)]
    pub owner: Option<u32>,
    /// Only jobs with a smaller number
    #[arg(long, value_name = "ID", value_parser = job_number)]
    pub before: Option<u64>,
}

impl Which {
    /// Returns the filter for `List` and `History`.
    pub fn filter(&self) -> HashMap<&'static str, Variant<'_>> {
        let mut filter = HashMap::new();
        if !self.state.is_empty() {
            // The parser leaves the other spelling as it was typed.
            filter.insert("state", self.state.join(",").replace("cancelled", "canceled").into());
        }
        if let Some(owner) = self.owner {
            filter.insert("owner", owner.into());
        }
        if let Some(before) = self.before {
            filter.insert("before", before.into());
        }
        filter
    }

    /// Describes jobs, the newest first, at most `limit`, a page at a time.
    pub async fn each(
        &self,
        ctl: &Ctl,
        limit: Option<u64>,
        mut take: impl FnMut(Value) -> Result<()>,
    ) -> Result<()> {
        let (mut left, mut before) = (limit.unwrap_or(u64::MAX), self.before);
        while left > 0 {
            let mut filter = self.filter();
            let asked = left.min(PAGE);
            filter.insert("limit", asked.into());
            if let Some(before) = before {
                filter.insert("before", before.into());
            }
            let page = ctl.manager.history(filter).await?;
            let count = page.len() as u64;
            for job in page.iter().map(json_of) {
                before = job["id"].as_u64();
                take(job)?;
            }
            // A page of long prompts may be shorter than what was asked for; only an empty one is the last.
            if count == 0 {
                break;
            }
            left -= count;
        }
        Ok(())
    }
}

/// Returns seconds from the last start to the end.
pub fn seconds(job: &Value) -> Option<f64> {
    let (start, end) = (job["started"].as_u64()?, job["finished"].as_u64()?);
    Some(end.saturating_sub(start) as f64 / 1e6)
}
