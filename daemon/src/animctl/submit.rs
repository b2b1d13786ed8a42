//! `animctl submit IMAGE`

use std::collections::HashMap;
use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::IsTerminal;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use animd::client::{JobProxy, ManagerProxy};
use animd::files::show;
use animd_engine::request::Settings;
use futures_util::StreamExt;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::Value;
use tokio::time::timeout;
use zbus::proxy::CacheProperties;
use zbus::{Connection, OwnedObjectPath, Variant, fdo};

use crate::{CANCELED, FAILED, Failure, Result, UNREACHABLE, print, show as show_verb};

/// How long a service that has gone away is waited for.
const AWAY: Duration = Duration::from_secs(60);

/// Make a video of a picture.
#[derive(clap::Args)]
#[command(
    after_help = "Example: animctl submit photo.jpg -p 'The waves roll in' --steps 20 --wait\n\nJSON: id and state; with \
--wait what `animctl show` prints"
)]
pub struct Args {
    /// The picture
    image: PathBuf,
    #[command(flatten)]
    settings: Settings,
    /// What the video's name begins with [default: the picture's name]
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    /// The same key gives the same job, however often it is submitted
    #[arg(long, value_name = "KEY")]
    idempotency_key: Option<String>,
    /// Wait for the end, and show the progress
    #[arg(short, long)]
    wait: bool,
    /// Copy the video to this file, which must not exist; waits for it
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
}

pub async fn run(args: Args, connection: &Connection, manager: &ManagerProxy<'_>, json: bool) -> Result<u8> {
    if let Some(output) = args.output.as_ref().filter(|path| path.exists()) {
        return Err(Failure::new(format!("`{}` exists already; choose another name", show(output))));
    }
    let image = File::open(&args.image)
        .map_err(|e| Failure::new(format!("cannot open `{}`: {e}", show(&args.image))))?;
    let Ok(Value::Object(settings)) = serde_json::to_value(&args.settings) else {
        return Err(Failure::new("the settings cannot be sent"));
    };
    let name = args.name.or_else(|| args.image.file_name().map(show));
    let mut options: HashMap<&str, Variant<'_>> = HashMap::new();
    for (key, value) in &settings {
        let value: Variant<'_> = match value {
            Value::String(text) => text.as_str().into(),
            Value::Number(n) => n.as_u64().map_or_else(|| n.as_f64().unwrap_or_default().into(), Into::into),
            _ => continue,
        };
        options.insert(key, value);
    }
    if let Some(name) = &name {
        options.insert("name", name.as_str().into());
    }
    if let Some(key) = &args.idempotency_key {
        options.insert("idempotency_key", key.as_str().into());
    }
    let path = manager.submit(image.as_fd().into(), options).await?;
    let id: u64 = path.as_str().rsplit('/').next().and_then(|n| n.parse().ok()).unwrap_or(0);
    if !args.wait && args.output.is_none() {
        if json {
            print(serde_json::json!({"id": id, "state": "queued"}));
        } else {
            print(format!("job {id} is queued; `animctl show {id}` tells what becomes of it"));
        }
        return Ok(0);
    }
    let state = wait(id, path, connection, manager).await?;
    let job = job_at(connection, manager.get_job(id).await?).await?;
    let description = crate::json_of(&job.describe().await?);
    if state == "done"
        && let Some(output) = &args.output
    {
        save(&job, output).await?;
    }
    if json {
        show_verb::describe(&job, true).await?;
    }
    match state.as_str() {
        "done" => {
            if !json {
                let output = args.output.as_deref().map(show);
                print(output.as_deref().or(description["output"].as_str()).unwrap_or_default());
            }
            Ok(0)
        }
        state => {
            if !json {
                eprintln!(
                    "animctl: job {id} {state}: {}",
                    description["error_text"].as_str().unwrap_or_default()
                );
            }
            Ok(if state == "canceled" { CANCELED } else { FAILED })
        }
    }
}

async fn job_at(connection: &Connection, path: OwnedObjectPath) -> Result<JobProxy<'static>> {
    // A restarted service would leave the cache stale.
    Ok(JobProxy::builder(connection).path(path).cache_properties(CacheProperties::No).build().await?)
}

/// Shows the job's progress until it has ended, across restarts of the service. Gives its last state.
async fn wait(
    id: u64,
    path: OwnedObjectPath,
    connection: &Connection,
    manager: &ManagerProxy<'_>,
) -> Result<String> {
    let bus = fdo::PropertiesProxy::builder(connection)
        .destination(animd::bus::NAME)
        .path(path.clone())
        .build()
        .await?;
    let mut changes = bus.receive_properties_changed().await?;
    let mut meter = Meter::new(id);
    let mut job = job_at(connection, path).await?;
    let mut away: Option<SystemTime> = None;
    loop {
        match look(&job, manager, &mut meter).await {
            Ok(state) if ["done", "failed", "canceled"].contains(&state.as_str()) => {
                meter.end();
                return Ok(state);
            }
            Ok(_) => away = None,
            Err(e) if e.code == UNREACHABLE || away.is_some() => {
                let since = *away.get_or_insert_with(SystemTime::now);
                meter.say("animd is away");
                if since.elapsed().unwrap_or_default() > AWAY {
                    return Err(Failure {
                        code: UNREACHABLE,
                        text: format!(
                            "animd is away; job {id} is kept, `animctl show {id}` tells later what became of it"
                        ),
                    });
                }
                if let Ok(path) = manager.get_job(id).await {
                    job = job_at(connection, path).await?;
                }
            }
            // Its object goes ten minutes after its end; the ledger still knows.
            Err(e) => match manager.get_job(id).await {
                Ok(path) => job = job_at(connection, path).await?,
                Err(_) => return Err(e),
            },
        }
        let pause = if away.is_some() { Duration::from_secs(1) } else { Duration::from_secs(5) };
        // Signals say when to look; what is looked at is the truth.
        if let Ok(None) = timeout(pause, changes.next()).await {
            tokio::time::sleep(pause).await;
        }
    }
}

async fn look(job: &JobProxy<'_>, manager: &ManagerProxy<'_>, meter: &mut Meter) -> Result<String> {
    let state = job.state().await?;
    match state.as_str() {
        "queued" => {
            let service = manager.state().await?;
            if ["idle", "busy"].contains(&service.as_str()) {
                meter.say(&format!("waiting, number {} in the queue", job.position().await?.max(1)));
            } else {
                meter.say(&format!("waiting: {}", manager.state_text().await?));
            }
        }
        "running" => {
            let (step, steps) = job.step().await?;
            meter.show(job.progress().await?, &job.stage().await?, step, steps, job.expected_end().await?);
        }
        _ => {}
    }
    Ok(state)
}

async fn save(job: &JobProxy<'_>, output: &std::path::Path) -> Result<()> {
    let video = OwnedFd::from(job.open_result().await?);
    let failed = |e: std::io::Error| Failure::new(format!("cannot write `{}`: {e}", show(output)));
    let mut copy =
        fs::OpenOptions::new().write(true).create_new(true).mode(0o644).open(output).map_err(failed)?;
    let copied = std::io::copy(&mut File::from(video), &mut copy).and_then(|_| copy.sync_all());
    if copied.is_err() {
        _ = fs::remove_file(output);
    }
    copied.map_err(failed)
}

/// A bar on a terminal, a line for each change elsewhere; both on standard error.
struct Meter {
    bar: Option<ProgressBar>,
    last: String,
}

impl Meter {
    fn new(id: u64) -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::with_draw_target(Some(1000), ProgressDrawTarget::stderr());
            if let Ok(style) = ProgressStyle::with_template("{prefix} [{wide_bar}] {percent:>3}% {msg}") {
                bar.set_style(style.progress_chars("=> "));
            }
            bar.set_prefix(format!("job {id}"));
            bar
        });
        Self { bar, last: String::new() }
    }

    fn say(&mut self, text: &str) {
        match &self.bar {
            Some(bar) => bar.set_message(text.to_owned()),
            None if self.last != text => eprintln!("{text}"),
            None => {}
        }
        text.clone_into(&mut self.last);
    }

    fn show(&mut self, fraction: f64, stage: &str, step: u32, steps: u32, expected_end: u64) {
        // It runs, but the engine has not said yet where it is.
        if stage.is_empty() {
            return;
        }
        let mut text = if stage == "denoise" { format!("{stage} {step}/{steps}") } else { stage.to_owned() };
        match &self.bar {
            Some(bar) => {
                let end = UNIX_EPOCH + Duration::from_micros(expected_end);
                if let Ok(left) = end.duration_since(SystemTime::now()) {
                    _ = write!(text, ", {} left", indicatif::HumanDuration(left));
                }
                bar.set_position((fraction * 1000.0) as u64);
                bar.set_message(text);
            }
            None => self.say(&format!("{:3.0}% {text}", fraction * 100.0)),
        }
    }

    fn end(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
