//! `animctl show ID`

use animd_common::words::{ago, bytes, date, energy, moment, time};
use serde_json::Value;

use super::exit::{Exit, Result};
use super::facts::{Facts, completed};
use super::follow::entry;
use super::term::{paint, width, wrap};
use super::{Ctl, job_number, json_of, print, texts};

/// Show everything about a job.
///
/// Only its owner and root can see it.
#[derive(clap::Args)]
#[command(
    after_help = "Example: animctl show 7 --json\n\nJSON: id, uuid, state, owner, owner_name, name, priority, created, attempt, and where \
known stage, step, progress, position, expected_end, \
started, finished (microseconds since 1970), retry_of, source, source_moved_to, output, output_bytes, width, height, model, backend, \
profile, gpu, gpu_uuid, driver, loras [[name, [strengths], sha256]], model_loras (as loras), energy_joules, energy_method (counter, sampled), stage_joules [[name, joules]], \
forwards_computed, forwards_skipped, ram_peak_bytes, gpu_peak_bytes, error_code, error_text, notes (on settings and memory, when it is done), stages [[name, seconds]], settings \
(every setting with its value); with --timeline also timeline: events [[time, kind, text]], stages [[name, seconds, joules]], \
steps [[seconds, computed]], samples [[time, watts, degrees, MHz, per cent, bytes]]"
)]
pub struct Args {
    /// The job's number
    #[arg(value_parser = job_number)]
    id: u64,
    /// Also show what happened to it, and when
    #[arg(long)]
    timeline: bool,
}

/// What is told of a job that has not ended, beside its description.
const LIVE: [&str; 6] = ["state", "stage", "step", "progress", "position", "expected_end"];

pub async fn run(args: &Args, ctl: &Ctl) -> Result {
    let mut description = completed(json_of(&ctl.job(args.id).await?.describe().await?));
    let ended = description["state"].as_str().is_some_and(animd_client::has_ended);
    if !ended && let Some(facts) = entry(args.id, ctl).await? {
        for key in LIVE {
            description[key] = facts[key].clone();
        }
    }
    if args.timeline {
        description["timeline"] = json_of(&ctl.manager.timeline(args.id).await?);
    }
    if ctl.json {
        print(description);
        return Ok(Exit::Done);
    }
    lines(&description, width()).iter().for_each(print);
    for event in description["timeline"]["events"].as_array().into_iter().flatten() {
        let (at, kind) = (event[0].as_u64().unwrap_or(0), event[1].as_str().unwrap_or_default());
        let head = format!("{}  {kind:<12} ", moment(at));
        hanging(&head, event[2].as_str().unwrap_or_default(), width()).iter().for_each(print);
    }
    Ok(Exit::Done)
}

/// The values of a description, the most important first.
const ORDER: [&str; 32] = [
    "id",
    "state",
    "now",
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
    "family",
    "conditioning",
    "loras",
    "model_loras",
    "backend",
    "profile",
    "gpu",
    "driver",
    "forwards_computed",
    "forwards_skipped",
    "ram_peak_bytes",
    "gpu_peak_bytes",
];

/// Returns a job's description in lines of at most `most` columns.
fn lines(description: &Value, most: usize) -> Vec<String> {
    let mut lines = Vec::new();
    for key in ORDER {
        if let Some(text) = value(key, description) {
            // The value already contains its unit.
            let words = match key {
                "output_bytes" => "output size".to_owned(),
                "error_text" => "reason".to_owned(),
                key => key.trim_end_matches("_bytes").replace('_', " "),
            };
            lines.extend(hanging(&format!("{words:<18} "), &text, most));
        }
    }
    for note in texts(&description["notes"]) {
        lines.extend(hanging(&format!("{:<18} ", "note"), note, most));
    }
    if let Some(joules) = description["energy_joules"].as_f64() {
        let method = description["energy_method"].as_str().unwrap_or_default();
        lines.push(format!("{:<18} {}, {method}", "energy", energy(joules)));
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
        lines.push(line.trim_end().to_owned());
    }
    if let Value::Object(settings) = &description["settings"] {
        lines.push("settings".to_owned());
        for (key, value) in settings.iter().filter(|(key, value)| !is_unset(key, value)) {
            let text = value.as_str().map_or_else(|| value.to_string(), |text| format!("{text:?}"));
            lines.extend(hanging(&format!("  {key:<22} "), &text, most));
        }
    }
    lines
}

/// Returns whether a setting has the value that stands for none: nobody asked for a video of 0 seconds.
fn is_unset(key: &str, value: &Value) -> bool {
    match value {
        Value::String(text) => text.is_empty() && key != "prompt",
        Value::Array(items) => items.is_empty(),
        value => ["seconds", "step_cache_threshold"].contains(&key) && value.as_f64() == Some(0.0),
    }
}

/// Returns one value of a description in words; `None` where there is nothing to tell.
fn value(key: &str, description: &Value) -> Option<String> {
    let facts = Facts(description);
    match key {
        "state" => return Some(paint(facts.state(), facts.color())),
        "owner" => return Some(facts.owner()),
        "loras" | "model_loras" => return loras(&description[key]),
        "now" if description["finished"].is_null() => {
            let words: Vec<String> = [Some(facts.doing()), facts.left()].into_iter().flatten().collect();
            let words = words.into_iter().filter(|word| !word.is_empty()).collect::<Vec<_>>().join(", ");
            return Some(words).filter(|words| !words.is_empty());
        }
        _ => {}
    }
    match &description[key] {
        Value::Null => None,
        Value::String(text) => Some(text.clone()),
        Value::Number(number) => {
            let n = number.as_i64().unwrap_or(0);
            match key {
                "created" | "started" | "finished" => Some(format!("{}, {}", date(n as u64), ago(n as u64))),
                "priority" | "gpu_peak_bytes" if n == 0 => None,
                key if key.ends_with("_bytes") => Some(bytes(n as u64)),
                _ => Some(n.to_string()),
            }
        }
        value => Some(value.to_string()),
    }
}

/// Returns the `LoRAs` of a job in words: each with its strengths, and with so much of its hash as tells files apart.
fn loras(rows: &Value) -> Option<String> {
    let one = |row: &Value| {
        let strengths = row[1].as_array().into_iter().flatten().map(Value::to_string).collect::<Vec<_>>();
        let hash: String = row[2].as_str().unwrap_or_default().chars().take(12).collect();
        let name = row[0].as_str().unwrap_or_default();
        format!("{name} x {} {hash}", strengths.join(" and ")).trim_end().to_owned()
    };
    let all: Vec<String> = rows.as_array()?.iter().map(one).collect();
    Some(all.join(", ")).filter(|text| !text.is_empty())
}

/// Returns a text in lines behind its head, each line as far to the right as the first.
fn hanging(head: &str, text: &str, most: usize) -> Vec<String> {
    let indent = " ".repeat(head.len());
    let parts = wrap(text, most.saturating_sub(head.len()).max(20));
    if parts.is_empty() {
        return vec![head.trim_end().to_owned()];
    }
    parts
        .iter()
        .enumerate()
        .map(|(n, part)| format!("{}{part}", if n == 0 { head } else { &indent }))
        .collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::term::columns;
    use super::*;

    #[test]
    fn long_text_is_wrapped() {
        let description = json!({
            "id": 7, "state": "failed", "error_text": "a reason that goes on and on ".repeat(9), "owner": 0,
            "source": format!("/srv/{}", "pictures/".repeat(20)),
            "settings": {"prompt": "蒸汽从杯中升起 ".repeat(30)},
            "loras": [["detail", [0.5], "0f".repeat(32)], ["pair", [1.0, 0.0], ""]],
            "model_loras": [["four", [1.0], "ab".repeat(32)]], "notes": ["`shift_low` changes nothing, and more. ".repeat(9)],
        });
        let lines = lines(&description, 80);
        assert!(lines.len() > 12 && lines.iter().all(|line| columns(line) <= 80), "{lines:#?}");
        assert!(lines.iter().any(|line| line.starts_with("owner") && line.ends_with(" root")), "{lines:#?}");
        assert!(
            lines.iter().any(|line| line.ends_with(" detail x 0.5 0f0f0f0f0f0f, pair x 1.0 and 0.0")),
            "{lines:#?}"
        );
        assert!(
            lines
                .iter()
                .any(|line| line.starts_with("model loras") && line.ends_with(" four x 1.0 abababababab")),
            "{lines:#?}"
        );
        assert!(
            lines.iter().any(|line| line.starts_with("note               `shift_low` changes")),
            "{lines:#?}"
        );
        assert!(lines[3].starts_with(&" ".repeat(19)), "{lines:#?}");
    }
}
