//! `animctl show ID`

use animd::client::{JobProxy, ManagerProxy};
use serde_json::Value;
use zbus::Connection;

use crate::{Result, json_of, print};

/// Show everything about a job. Its owner and root may.
#[derive(clap::Args)]
#[command(
    after_help = "Example: animctl show 7 --json\n\nJSON: id, uuid, state, owner, name, created, attempt, and where known \
started, finished (microseconds since 1970), source, source_moved_to, output, output_bytes, width, height, model, backend, \
profile, gpu, gpu_uuid, driver, energy_joules, energy_method (counter, sampled), stage_joules [[name, joules]], forwards_computed, forwards_skipped, ram_peak_bytes, gpu_peak_bytes, error_code, error_text, stages [[name, seconds]], settings \
(every setting with its value)"
)]
pub struct Args {
    /// The job's number
    id: u64,
}

pub async fn run(args: &Args, connection: &Connection, manager: &ManagerProxy<'_>, json: bool) -> Result<u8> {
    let path = manager.get_job(args.id).await?;
    let job = JobProxy::builder(connection).path(path).build().await?;
    describe(&job, json).await?;
    Ok(0)
}

/// The values of a description in the order in which one asks.
const ORDER: [&str; 26] = [
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
    "energy_joules",
    "energy_method",
];

/// Prints a job's description.
pub async fn describe(job: &JobProxy<'_>, json: bool) -> Result<()> {
    let description = json_of(&job.describe().await?);
    if json {
        print(description);
        return Ok(());
    }
    for key in ORDER {
        match &description[key] {
            Value::Null => {}
            Value::String(text) => print(format!("{:<18} {text}", key.replace('_', " "))),
            Value::Number(n) if ["created", "started", "finished"].contains(&key) => {
                print(format!("{key:<18} {}", ago(n.as_u64().unwrap_or(0))));
            }
            value => print(format!("{:<18} {value}", key.replace('_', " "))),
        }
    }
    for stage in description["stages"].as_array().into_iter().flatten() {
        let joules = description["stage_joules"].as_array().into_iter().flatten();
        let joules = joules.filter(|of| of[0] == stage[0]).find_map(|of| of[1].as_f64());
        let joules = joules.map_or(String::new(), |joules| format!("  {joules:.0} J"));
        print(format!(
            "{:<18} {:.2} s{joules}",
            stage[0].as_str().unwrap_or_default(),
            stage[1].as_f64().unwrap_or(0.0)
        ));
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
    Ok(())
}

/// A time in the past in words.
fn ago(us: u64) -> String {
    let now = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0, |d| d.as_micros() as u64);
    let seconds = now.saturating_sub(us) / 1_000_000;
    match seconds {
        0..60 => format!("{seconds} s ago"),
        60..3600 => format!("{} min ago", seconds / 60),
        3600..86400 => format!("{} h {} min ago", seconds / 3600, seconds / 60 % 60),
        _ => format!("{} days ago", seconds / 86400),
    }
}
