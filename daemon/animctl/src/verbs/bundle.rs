//! `animctl doctor --bundle FILE`: one archive with what helps to find a fault. It has no prompt and no name, and nothing
//! is sent anywhere.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use animd_common::config::Loaded;
use animd_common::files::{show, write_atomic};
use animd_common::words::bytes;
use jiff::Timestamp;
use serde_json::{Value, json};

use super::exit::{Exit, Failure, Result};
use super::jobs::Which;
use super::{Ctl, On, json_of, print};
use crate::doctor::{Check, proc_text};
use crate::tar;

/// The most jobs of the ledger.
const JOBS: u64 = 200;
/// The most lines of the journal.
const LINES: &str = "--lines=2000";
/// What of a job is about the picture and not about the machine.
const PRIVATE: [&str; 5] = ["name", "source", "source_moved_to", "output", "owner_name"];

/// Text that must not leave the machine, and what stands in its place.
#[derive(Default)]
struct Secrets(Vec<(String, &'static str)>);

impl Secrets {
    fn add(&mut self, text: &str, instead: &'static str) {
        // A shorter word would be found within others.
        if text.len() >= 3 && !self.0.iter().any(|(known, _)| known == text) {
            self.0.push((text.to_owned(), instead));
        }
    }

    /// Returns a text without them; the longest go first, since they hold others.
    fn remove(&mut self, text: &str) -> String {
        self.0.sort_by_key(|(secret, _)| std::cmp::Reverse(secret.len()));
        self.0.iter().fold(text.to_owned(), |text, (secret, instead)| {
            // In JSON and in TOML a text is escaped.
            let escaped = Value::from(secret.as_str()).to_string();
            text.replace(secret, instead).replace(escaped.trim_matches('"'), instead)
        })
    }
}

/// One file of the archive.
struct Part {
    name: &'static str,
    what: &'static str,
    text: String,
}

/// Writes the archive and lists what is in it.
pub async fn write(file: &Path, checks: &[Check], loaded: Option<&Loaded>, on: On) -> Result {
    if fs::symlink_metadata(file).is_ok() {
        return Err(Failure::new(format!("`{}` exists already; choose another name", show(file))));
    }
    let mut secrets = Secrets::default();
    if let Some(home) = std::env::var("HOME").ok().filter(|home| home.len() > 1) {
        secrets.add(&home, "~");
    }
    let parts = parts(checks, loaded, on, &mut secrets).await;
    let files: Vec<(String, Vec<u8>)> = parts
        .iter()
        .map(|part| (format!("animd/{}", part.name), secrets.remove(&part.text).into_bytes()))
        .collect();
    let mut archive = Vec::new();
    tar::write(&mut archive, &files, Timestamp::now().as_second().unsigned_abs())
        .and_then(|()| write_atomic(&std::path::absolute(file)?, &archive, 0o600))
        .map_err(Failure::file("write", file))?;
    let contents = || parts.iter().zip(&files);
    if on.json {
        let contents: Vec<Value> = contents()
            .map(|(part, (name, text))| json!({"name": name, "bytes": text.len(), "what": part.what}))
            .collect();
        print(json!({"file": show(file), "bytes": archive.len(), "contents": contents}));
    } else {
        for (part, (name, text)) in contents() {
            print(format!("{name:<26} {:>10}  {}", bytes(text.len() as u64), part.what));
        }
        print(format!(
            "`{0}` is written, and nothing is sent.\nIt has no prompts and no names of pictures. Read it before you pass it on:\n\
             `tar xOf '{0}' | less`",
            show(file)
        ));
    }
    Ok(Exit::Done)
}

async fn parts(checks: &[Check], loaded: Option<&Loaded>, on: On, secrets: &mut Secrets) -> Vec<Part> {
    let ctl = on.connect().await;
    let ctl = ctl.as_ref().map_err(|e| format!("not available: {}\n", e.text));
    let mut parts = vec![
        Part {
            name: "versions.txt",
            what: "animd, the engine and the system",
            text: versions(loaded, ctl.clone()).await,
        },
        Part { name: "doctor.json", what: "what `animctl doctor` finds", text: pretty(&json!(checks)) },
        Part {
            name: "configuration.toml",
            what: "the configuration, with its places",
            text: configuration(loaded, secrets),
        },
        Part { name: "driver.txt", what: "the NVIDIA driver and its cards", text: driver() },
        Part { name: "journal.txt", what: "the service's log", text: journal(on) },
    ];
    let texts = match ctl {
        Ok(ctl) => [
            told(status(ctl).await),
            told(plan(ctl).await),
            told(profiles(ctl).await),
            told(jobs(ctl, secrets).await),
        ],
        Err(why) => std::array::from_fn(|_| why.clone()),
    };
    let names = [
        ("status.json", "what the service does"),
        ("plan.json", "what a video would take"),
        ("profiles.json", "the profiles, with the reasons"),
        ("jobs.json", "the newest jobs, without prompts and names"),
    ];
    parts.extend(names.into_iter().zip(texts).map(|((name, what), text)| Part { name, what, text }));
    parts
}

fn pretty(value: &Value) -> String {
    serde_json::to_string_pretty(value).unwrap_or_default() + "\n"
}

fn told(value: Result<Value>) -> String {
    match value {
        Ok(value) => pretty(&value),
        Err(e) => format!("not available: {}\n", e.text),
    }
}

/// Returns the standard output of a program, or why there is none.
fn output(program: &str, args: &[&str]) -> String {
    match Command::new(program).args(args).stdin(Stdio::null()).output() {
        Ok(output) if output.status.success() => String::from_utf8_lossy(&output.stdout).into_owned(),
        Ok(output) => format!("`{program}` failed: {}\n", String::from_utf8_lossy(&output.stderr).trim()),
        Err(e) => format!("`{program}` cannot be run: {e}\n"),
    }
}

async fn versions(loaded: Option<&Loaded>, ctl: std::result::Result<&Ctl, String>) -> String {
    let service = match ctl {
        Ok(ctl) => ctl.manager.version().await.unwrap_or_else(|e| Failure::from(e).text),
        Err(why) => why.trim_end().to_owned(),
    };
    let config = loaded.map(|loaded| loaded.config.clone()).unwrap_or_default();
    let engine = output(&config.engine_program().to_string_lossy(), &["--version"]);
    let system = proc_text("/etc/os-release");
    let system = system.lines().find_map(|line| line.strip_prefix("PRETTY_NAME=")).unwrap_or("not known");
    let systemd = output("systemctl", &["--version"]);
    format!(
        "animctl {}\nanimd   {service}\nengine  {}\nsystem  {}\nkernel  {}\nsystemd {}\n",
        env!("CARGO_PKG_VERSION"),
        engine.trim_end(),
        system.trim_matches('"'),
        proc_text("/proc/version").trim_end(),
        systemd.lines().next().unwrap_or_default()
    )
}

fn configuration(loaded: Option<&Loaded>, secrets: &mut Secrets) -> String {
    let Some(loaded) = loaded else { return "it has mistakes; doctor.json has them\n".into() };
    let mut loaded = loaded.clone();
    let defaults = &mut loaded.config.defaults;
    for prompt in [&mut defaults.prompt, &mut defaults.negative_prompt].into_iter().flatten() {
        secrets.add(prompt, "[a prompt]");
        *prompt = "[a prompt]".into();
    }
    loaded.print(true)
}

fn driver() -> String {
    ["/proc/driver/nvidia/version", "/proc/driver/nvidia/params"]
        .into_iter()
        .map(|path| match fs::read_to_string(path) {
            Ok(text) => format!("{path}:\n{text}\n"),
            Err(e) => format!("{path}: {e}\n"),
        })
        .chain([output("nvidia-smi", &[])])
        .collect()
}

fn journal(on: On) -> String {
    let unit = if on.user { "--user-unit=animd" } else { "--unit=animd" };
    let text =
        output("journalctl", &[unit, LINES, "--no-pager", "--no-hostname", "--quiet", "--output=short-iso"]);
    if text.is_empty() { "the journal has no entries that this user can read\n".into() } else { text }
}

async fn status(ctl: &Ctl) -> Result<Value> {
    let manager = &ctl.manager;
    Ok(json!({
        "state": manager.state().await?,
        "state_text": manager.state_text().await?,
        "queued": manager.queued().await?,
        "paused": manager.paused().await?,
        "profile": manager.profile().await?,
        "gpu": json_of(&manager.gpu().await?),
    }))
}

async fn plan(ctl: &Ctl) -> Result<Value> {
    Ok(json_of(&ctl.manager.plan(std::collections::HashMap::new()).await?))
}

async fn profiles(ctl: &Ctl) -> Result<Value> {
    Ok(ctl.manager.profiles().await?.iter().map(json_of).collect())
}

async fn jobs(ctl: &Ctl, secrets: &mut Secrets) -> Result<Value> {
    let mut jobs = Vec::new();
    let which = Which { state: Vec::new(), owner: None, before: None };
    which
        .each(ctl, Some(JOBS), |job| {
            jobs.push(without_names(job, secrets));
            Ok(())
        })
        .await?;
    Ok(Value::Array(jobs))
}

/// Returns a job's description without what is its owner's own, which is added to `secrets`.
fn without_names(mut job: Value, secrets: &mut Secrets) -> Value {
    for key in PRIVATE {
        if let Some(text) = job[key].as_str() {
            secrets.add(text, "[a name]");
        }
        if let Some(facts) = job.as_object_mut() {
            facts.remove(key);
        }
    }
    for key in ["prompt", "negative_prompt"] {
        if let Some(prompt) = job["settings"][key].as_str() {
            let length = prompt.chars().count();
            secrets.add(prompt, "[a prompt]");
            job["settings"][key] = format!("[{length} characters]").into();
        }
    }
    job
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_private_is_left() {
        let mut secrets = Secrets::default();
        secrets.add("/home/ann", "~");
        let job = json!({
            "id": 7, "name": "my \"cat\".jpg", "source": "/home/ann/in/my \"cat\".jpg", "output": "/home/ann/out/cat-1.mp4",
            "error_text": "`my \"cat\".jpg` is damaged",
            "settings": {"prompt": "the cat sleeps", "steps": 4},
        });
        let job = without_names(job, &mut secrets);
        assert_eq!(job["settings"], json!({"prompt": "[14 characters]", "steps": 4}));
        let log = "moved /home/ann/in/my \"cat\".jpg; it says: the cat sleeps; /home/ann/models";
        let text = format!("{}{log}", pretty(&job));
        let clean = secrets.remove(&text);
        assert!(!clean.contains("cat") && !clean.contains("ann"), "{clean}");
        assert!(clean.contains("~/models") && clean.contains("[a name]"), "{clean}");
    }
}
