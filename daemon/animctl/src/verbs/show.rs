//! `animctl show ID`

use animd_common::words::{ago, bytes, date, energy, moment, time};
use serde_json::Value;

use super::exit::{Exit, Result};
use super::{Ctl, json_of, print};

/// Show everything about a job.
///
/// Its owner and root may.
#[derive(clap::Args)]
#[command(
    after_help = "Example: animctl show 7 --json\n\nJSON: id, uuid, state, owner, name, priority, created, attempt, and where known \
started, finished (microseconds since 1970), retry_of, source, source_moved_to, output, output_bytes, width, height, model, backend, \
profile, gpu, gpu_uuid, driver, energy_joules, energy_method (counter, sampled), stage_joules [[name, joules]], \
forwards_computed, forwards_skipped, ram_peak_bytes, gpu_peak_bytes, error_code, error_text, stages [[name, seconds]], settings \
(every setting with its value); with --timeline also timeline: events [[time, kind, text]], stages [[name, seconds, joules]], \
steps [[seconds, computed]], samples [[time, watts, degrees, MHz, per cent, bytes]]"
)]
pub struct Args {
    /// The job's number
    id: u64,
    /// Show what happened to it and when, too
    #[arg(long)]
    timeline: bool,
}

pub async fn run(args: &Args, ctl: &Ctl) -> Result {
    let mut description = json_of(&ctl.job(args.id).await?.describe().await?);
    if args.timeline {
        description["timeline"] = json_of(&ctl.manager.timeline(args.id).await?);
    }
    if ctl.json {
        print(description);
        return Ok(Exit::Done);
    }
    for_people(&description);
    for event in description["timeline"]["events"].as_array().into_iter().flatten() {
        let (at, kind) = (event[0].as_u64().unwrap_or(0), event[1].as_str().unwrap_or_default());
        print(format!("{}  {kind:<12} {}", moment(at), event[2].as_str().unwrap_or_default()).trim_end());
    }
    Ok(Exit::Done)
}

/// The values of a description, the most important first.
const ORDER: [&str; 27] = [
    "id",
    "state",
    "error_text",
    "error_code",
    "output",
    "output_bytes",
    "name",
    "source",
    "source_moved_to",
    "owner",
    "priority",
    "retry_of",
    "created",
    "started",
    "finished",
    "attempt",
    "width",
    "height",
    "model",
    "backend",
    "profile",
    "gpu",
    "driver",
    "forwards_computed",
    "forwards_skipped",
    "ram_peak_bytes",
    "gpu_peak_bytes",
];

/// Prints a job's description.
pub fn for_people(description: &Value) {
    for key in ORDER {
        // The value already contains its unit.
        let words = match key {
            "output_bytes" => "output size".to_owned(),
            key => key.trim_end_matches("_bytes").replace('_', " "),
        };
        match &description[key] {
            Value::Null => {}
            Value::String(text) => print(format!("{words:<18} {text}")),
            Value::Number(n) => {
                let n = n.as_i64().unwrap_or(0);
                match key {
                    "created" | "started" | "finished" => {
                        print(format!("{words:<18} {}, {}", date(n as u64), ago(n as u64)));
                    }
                    "priority" | "gpu_peak_bytes" if n == 0 => {}
                    key if key.ends_with("_bytes") => print(format!("{words:<18} {}", bytes(n as u64))),
                    _ => print(format!("{words:<18} {n}")),
                }
            }
            value => print(format!("{words:<18} {value}")),
        }
    }
    if let Some(joules) = description["energy_joules"].as_f64() {
        let method = description["energy_method"].as_str().unwrap_or_default();
        print(format!("{:<18} {}, {method}", "energy", energy(joules)));
    }
    for stage in description["stages"].as_array().into_iter().flatten() {
        let joules = description["stage_joules"].as_array().into_iter().flatten();
        let joules = joules.filter(|of| of[0] == stage[0]).find_map(|of| of[1].as_f64());
        let joules = joules.map(energy).unwrap_or_default();
        let line = format!(
            "  {:<16} {:>12} {joules:>10}",
            stage[0].as_str().unwrap_or_default(),
            time(stage[1].as_f64().unwrap_or(0.0))
        );
        print(line.trim_end());
    }
    if let Value::Object(settings) = &description["settings"] {
        print("settings");
        for (key, value) in settings {
            print(format!(
                "  {key:<22} {}",
                value.as_str().map_or_else(|| value.to_string(), |t| format!("{t:?}"))
            ));
        }
    }
}
