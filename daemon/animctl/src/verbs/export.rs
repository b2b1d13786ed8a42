//! `animctl export`

use serde_json::Value;

use super::exit::{Exit, Failure, Result};
use super::jobs::{Which, seconds};
use super::{Ctl, json_of, print, print_data};

/// Write everything about your jobs to standard output.
///
/// The newest job comes first. For root it is everybody's jobs.
#[derive(clap::Args)]
#[command(
    after_help = "Example: animctl export --csv > jobs.csv\n\nCSV: a line of names, then a line for each job; times are microseconds since \
1970.\n\nJSON (also without --json): an array of what `animctl show` prints of each job; with --timeline as in `animctl show`"
)]
pub struct Args {
    /// Write comma-separated values
    #[arg(long, conflicts_with = "timeline")]
    csv: bool,
    /// Add each job's events, stages, steps and samples
    #[arg(long)]
    timeline: bool,
    #[command(flatten)]
    which: Which,
}

/// The columns of CSV: keys of a description, and settings.
const COLUMNS: [&str; 26] = [
    "id",
    "uuid",
    "state",
    "owner",
    "name",
    "priority",
    "created",
    "started",
    "finished",
    "attempt",
    "retry_of",
    "output",
    "output_bytes",
    "width",
    "height",
    "model",
    "backend",
    "profile",
    "gpu",
    "driver",
    "energy_joules",
    "forwards_computed",
    "forwards_skipped",
    "error_code",
    "family",
    "conditioning",
];

pub async fn run(args: &Args, ctl: &Ctl) -> Result {
    if args.csv {
        let settings = animd_common::keys::SETTINGS;
        // The seconds that a job took have their name; those of its video need another one.
        let named = settings.map(|key| if key == "seconds" { "video_seconds" } else { key });
        let names = COLUMNS.into_iter().chain(["seconds"]).chain(named);
        print_data(names.collect::<Vec<_>>().join(","));
        args.which
            .each(ctl, None, |job| {
                let seconds = seconds(&job).map_or(Value::Null, Into::into);
                let plain = COLUMNS.iter().map(|key| cell(&job[*key]));
                let set = settings.iter().map(|key| cell(&job["settings"][*key]));
                print_data(plain.chain([cell(&seconds)]).chain(set).collect::<Vec<_>>().join(","));
                Ok(())
            })
            .await?;
        return Ok(Exit::Done);
    }
    let mut jobs = Vec::new();
    args.which
        .each(ctl, None, |job| {
            jobs.push(job);
            Ok(())
        })
        .await?;
    // One job on each line, so that line-based tools can split the array.
    print("[");
    let last = jobs.len();
    for (n, mut job) in jobs.into_iter().enumerate() {
        if args.timeline {
            let id = job["id"].as_u64().unwrap_or(0);
            if let Ok(timeline) = ctl.manager.timeline(id).await {
                job["timeline"] = json_of(&timeline);
            }
        }
        let text = serde_json::to_string(&job).map_err(|e| Failure::new(e.to_string()))?;
        print(format!("{text}{}", if n + 1 < last { "," } else { "" }));
    }
    print("]");
    Ok(Exit::Done)
}

/// Returns a value as CSV has it (RFC 4180).
fn cell(value: &Value) -> String {
    let text = match value {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        value => value.to_string(),
    };
    match text.contains([',', '"', '\n', '\r']) {
        true => format!("\"{}\"", text.replace('"', "\"\"")),
        false => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cells_are_quoted_where_they_must() {
        assert_eq!(cell(&Value::Null), "");
        assert_eq!(cell(&5.into()), "5");
        assert_eq!(cell(&"a \"wave\", twice".into()), "\"a \"\"wave\"\", twice\"");
        assert_eq!(cell(&"two\nlines".into()), "\"two\nlines\"");
    }
}
