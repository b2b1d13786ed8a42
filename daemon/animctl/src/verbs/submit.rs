//! `animctl submit PICTURE...`

use std::fs::File;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use animd_client::{has_ended, id_of};
use animd_common::files::{open_regular, show};
use serde_json::{Map, Value, json};
use tokio::signal::ctrl_c;
use tokio::time::{Instant, sleep};
use zbus::Fd;

use super::batch::Batch;
use super::exit::{Exit, Failure, Result, is_full};
use super::facts::Facts;
use super::follow::follow;
use super::meter::Meter;
use super::{Ctl, fetch, json_of, path, settings, tell, texts};

/// How long a call is tried again that the bus has no room for, and the pause between two tries.
const PATIENCE: Duration = Duration::from_secs(10);
const PAUSE: Duration = Duration::from_millis(50);

/// Make videos of pictures.
#[derive(clap::Args)]
#[command(
    after_help = "Example: animctl submit photo.jpg -p 'The waves roll in' --steps 20 --wait\n\nWith --wait standard output has the \
video's path, or with --output the file. The progress goes to standard error: a bar on a terminal, otherwise a line for each \
step; and so do notes on settings that changed nothing. Ctrl-C ends the wait, and the job goes on.\n\nJSON: id and state; with --wait what `animctl show` prints; for several pictures an \
array of such objects"
)]
pub struct Args {
    /// The pictures
    #[arg(required = true, value_name = "PICTURE", value_parser = path())]
    pictures: Vec<PathBuf>,
    /// End the video at this picture; one of another size is cropped to cover the first one's shape
    #[arg(long, value_name = "PICTURE", value_parser = path(), conflicts_with = "looped")]
    last: Option<PathBuf>,
    /// Wait until the video is ready, and show the progress
    #[arg(short, long)]
    wait: bool,
    /// Wait for the video, and copy it to this file, which must not exist
    #[arg(short, long, value_name = "FILE", value_parser = path())]
    output: Option<PathBuf>,
    /// Begin the video's name with this [default: the picture's name]
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    /// Run before other queued jobs, from -100 to 100; above 0 asks polkit
    #[arg(long, value_name = "N", allow_negative_numbers = true, value_parser = super::priority::in_range())]
    priority: Option<i32>,
    /// Give the same job for the same key, however often it is submitted
    #[arg(long, value_name = "KEY")]
    idempotency_key: Option<String>,
    #[command(flatten, next_help_heading = "Settings of the video")]
    settings: settings::JobOptions,
}

/// A job that this command has submitted.
pub struct Submitted {
    pub id: u64,
    /// What people call it.
    pub name: String,
}

pub async fn run(args: Args, ctl: &Ctl) -> Result {
    let count = args.pictures.len();
    if count > 1 {
        let one =
            [("--output", args.output.is_some()), ("--idempotency-key", args.idempotency_key.is_some())];
        if let Some((option, _)) = one.into_iter().find(|(_, given)| *given) {
            let text = format!(
                "{option} is for one picture, and there are {count}; leave it out, or submit them one by one"
            );
            return Err(Failure::usage(text));
        }
    }
    if let Some(output) = &args.output {
        fetch::check(output)?;
    }
    let given = settings::given(args.settings.clone())?;
    let mut batch = Batch::new(count);
    let mut new = Vec::new();
    for picture in &args.pictures {
        let submitted = submit(picture, &args, &given, ctl).await;
        let submitted = submitted.map(|(id, state)| {
            new.push(Submitted { id, name: show(picture) });
            (json!({"id": id, "state": state}), sentence(id, &state))
        });
        batch.add(submitted)?;
    }
    if args.wait || args.output.is_some() {
        return finish(&new, args.output, batch, ctl).await;
    }
    Ok(batch.finish(ctl))
}

/// Submits one picture, and returns the job's number and state.
async fn submit(picture: &Path, args: &Args, given: &Map<String, Value>, ctl: &Ctl) -> Result<(u64, String)> {
    let file = open(picture)?;
    let last = args.last.as_deref().map(open).transpose()?;
    let name = args.name.clone().or_else(|| picture.file_name().map(show));
    let options = || {
        let mut options = settings::options(given);
        if let Some(name) = &name {
            options.insert("name", name.as_str().into());
        }
        if let Some((last, path)) = last.as_ref().zip(args.last.as_deref()) {
            options.insert("last", Fd::from(last.as_fd()).into());
            options.insert("last_name", path.file_name().map(show).unwrap_or_default().into());
        }
        if let Some(key) = &args.idempotency_key {
            options.insert("idempotency_key", key.as_str().into());
        }
        if let Some(priority) = args.priority {
            options.insert("priority", priority.into());
        }
        options
    };
    let path = patiently(async || ctl.manager.submit(file.as_fd().into(), options()).await).await?;
    let id = id_of(&path).unwrap_or(0);
    // A known key returns an existing job, which may be in any state.
    let state = match args.idempotency_key {
        Some(_) => json_of(&ctl.job(id).await?.describe().await?)["state"].as_str().map(str::to_owned),
        None => None,
    };
    Ok((id, state.unwrap_or_else(|| "queued".into())))
}

/// Calls until the bus takes the call, or for as long as a person waits. The bus refuses messages while the service has not
/// read earlier ones, which another user may have sent.
async fn patiently<T>(mut call: impl AsyncFnMut() -> zbus::Result<T>) -> zbus::Result<T> {
    let until = Instant::now() + PATIENCE;
    loop {
        match call().await {
            Err(e) if is_full(&e) && Instant::now() < until => sleep(PAUSE).await,
            answer => return answer,
        }
    }
}

fn sentence(id: u64, state: &str) -> String {
    match has_ended(state) {
        true => format!("job {id} has ended already ({state}); `animctl show {id}` shows what became of it"),
        false => format!("job {id} is {state}; `animctl show {id}` shows what becomes of it"),
    }
}

/// Opens a picture; links are followed.
pub fn open(image: &Path) -> Result<File> {
    let opened = image.canonicalize().and_then(|real| open_regular(&real));
    opened.map(|(file, _)| file).map_err(Failure::file("open", image))
}

/// Waits for jobs, one after the other, fetches a video, and prints the outcomes. `batch` has those that could not be
/// submitted.
pub async fn finish(new: &[Submitted], output: Option<PathBuf>, batch: Batch, ctl: &Ctl) -> Result {
    let mut outcomes = batch.without_told();
    for job in new {
        if new.len() > 1 {
            tell(&format!("job {}: {}", job.id, job.name));
        }
        let outcome = tokio::select! {
            outcome = wait(job.id, output.as_deref(), ctl) => outcome?,
            _ = ctrl_c() => {
                eprintln!();
                let goes_on = new.iter().skip_while(|other| other.id != job.id).map(|job| job.id.to_string());
                let goes_on = goes_on.collect::<Vec<_>>().join(" ");
                let text = goes_on_without_us(&goes_on);
                eprintln!("animctl: {text}");
                return Ok(Exit::Interrupted);
            }
        };
        let (description, line, exit) = outcome;
        if exit == Exit::Done {
            outcomes.add(Ok((description, line)))?;
        } else {
            tell(&format!("animctl: {line}"));
            outcomes.note(description, exit);
        }
    }
    Ok(outcomes.finish(ctl))
}

/// Returns what to say when Ctrl-C ends the wait for jobs, whose numbers `ids` has.
pub fn goes_on_without_us(ids: &str) -> String {
    match ids.contains(' ') {
        false => {
            format!("job {ids} goes on; `animctl watch {ids}` shows it, `animctl cancel {ids}` stops it")
        }
        true => format!("jobs {ids} go on; `animctl watch` shows them, `animctl cancel {ids}` stops them"),
    }
}

/// Waits for a job, and returns its description, what to print, and the exit code that says how it ended.
async fn wait(id: u64, output: Option<&Path>, ctl: &Ctl) -> Result<(Value, String, Exit)> {
    let mut meter = Meter::new(id, true);
    let state = follow(id, ctl, &mut meter).await?;
    let job = ctl.job(id).await?;
    let description = json_of(&job.describe().await?);
    if state == "done"
        && let Some(output) = &output
    {
        fetch::save(job.open_result().await?, output).map_err(|e| Failure {
            exit: e.exit,
            text: format!("{}; the video is made, `animctl fetch {id} FILE` copies it", e.text),
        })?;
    }
    for note in texts(&description["notes"]) {
        tell(&format!("job {id}: {note}"));
    }
    let (line, exit) = match state.as_str() {
        "done" => {
            let path = output.map(show);
            (path.as_deref().or(description["output"].as_str()).unwrap_or_default().to_owned(), Exit::Done)
        }
        ended => {
            let why = description["error_text"].as_str().unwrap_or_default();
            let exit = if ended == "canceled" { Exit::Canceled } else { Exit::Failed };
            (format!("job {id} {}: {why}", Facts(&description).state()), exit)
        }
    };
    Ok((description, line, exit))
}

#[cfg(test)]
mod tests {
    use zbus::fdo;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_full_bus_is_waited_for_and_no_other_error() {
        let full = || zbus::Error::from(fdo::Error::LimitsExceeded("a full message queue".into()));
        let mut calls = 0;
        let answer = patiently(async || {
            calls += 1;
            if calls < 4 { Err(full()) } else { Ok(7) }
        });
        assert_eq!((answer.await.ok(), calls), (Some(7), 4));
        let began = Instant::now();
        let never: zbus::Result<()> = patiently(async || Err(full())).await;
        assert!(never.is_err() && began.elapsed() >= PATIENCE);
        let said = Failure::from(full()).text;
        assert!(said.contains("try again"), "{said}");
        let mut calls = 0;
        let other: zbus::Result<()> = patiently(async || {
            calls += 1;
            Err(fdo::Error::AccessDenied("no".into()).into())
        })
        .await;
        assert_eq!((other.is_err(), calls), (true, 1));
    }
}
