//! `animctl submit IMAGE`

use std::fs::File;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use animd_client::{has_ended, id_of};
use animd_common::files::{open_regular, show};
use animd_options::SettingsOptions;
use serde_json::json;

use super::exit::{Exit, Failure, Result};
use super::follow::follow;
use super::meter::Meter;
use super::{Ctl, fetch, json_of, print, settings};

/// Make a video of a picture.
#[derive(clap::Args)]
#[command(
    after_help = "Example: animctl submit photo.jpg -p 'The waves roll in' --steps 20 --wait\n\nWith --wait standard output has the \
video's path, or with --output the file; the progress goes to standard error: a bar on a terminal, otherwise a line for each \
step.\n\nJSON: id and state; with --wait what `animctl show` prints"
)]
pub struct Args {
    /// The picture
    image: PathBuf,
    #[command(flatten)]
    settings: SettingsOptions,
    /// What the video's name begins with [default: the picture's name]
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    /// Before the others that wait, from -100 to 100; above 0 asks polkit
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    priority: Option<i32>,
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

pub async fn run(args: Args, ctl: &Ctl) -> Result {
    if let Some(output) = &args.output {
        fetch::check(output)?;
    }
    let image = open(&args.image)?;
    let given = settings::given(args.settings.clone())?;
    let mut options = settings::options(&given);
    let name = args.name.or_else(|| args.image.file_name().map(show));
    if let Some(name) = &name {
        options.insert("name", name.as_str().into());
    }
    if let Some(key) = &args.idempotency_key {
        options.insert("idempotency_key", key.as_str().into());
    }
    if let Some(priority) = args.priority {
        options.insert("priority", priority.into());
    }
    let path = ctl.manager.submit(image.as_fd().into(), options).await?;
    let id = id_of(&path).unwrap_or(0);
    if !args.wait && args.output.is_none() {
        // A known key returns an existing job, which may be in any state.
        let state = match args.idempotency_key {
            Some(_) => json_of(&ctl.job(id).await?.describe().await?)["state"].as_str().map(str::to_owned),
            None => None,
        };
        let state = state.as_deref().unwrap_or("queued");
        let sentence = match has_ended(state) {
            true => {
                format!("job {id} has ended already ({state}); `animctl show {id}` tells what became of it")
            }
            false => format!("job {id} is {state}; `animctl show {id}` tells what becomes of it"),
        };
        ctl.tell(&json!({"id": id, "state": state}), &sentence);
        return Ok(Exit::Done);
    }
    finish(id, args.output, ctl).await
}

/// Opens a picture; links are followed.
pub fn open(image: &Path) -> Result<File> {
    let opened = image.canonicalize().and_then(|real| open_regular(&real));
    opened.map(|(file, _)| file).map_err(Failure::file("open", image))
}

/// Waits for a job, fetches its video, and prints the outcome.
pub async fn finish(id: u64, output: Option<PathBuf>, ctl: &Ctl) -> Result {
    let mut meter = Meter::new(id, true);
    let state = follow(id, ctl, &mut meter).await?;
    let job = ctl.job(id).await?;
    let description = json_of(&job.describe().await?);
    if state == "done"
        && let Some(output) = &output
    {
        fetch::save(job.open_result().await?, output).map_err(|e| Failure {
            exit: e.exit,
            text: format!("{}; the video is made, `animctl fetch {id} FILE` gets it", e.text),
        })?;
    }
    let path = output.as_deref().map(show);
    let path = path.as_deref().or(description["output"].as_str()).unwrap_or_default();
    match (ctl.json, state.as_str()) {
        (true, _) => print(&description),
        (false, "done") => print(path),
        (false, _) => {
            eprintln!(
                "animctl: job {id} {state}: {}",
                description["error_text"].as_str().unwrap_or_default()
            );
        }
    }
    Ok(match state.as_str() {
        "done" => Exit::Done,
        "canceled" => Exit::Canceled,
        _ => Exit::Failed,
    })
}
