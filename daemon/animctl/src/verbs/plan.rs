//! `animctl plan`

use std::os::fd::AsFd;
use std::path::PathBuf;

use animd_common::files::show;
use animd_common::words::{bytes, time};
use zbus::Fd;

use super::exit::{Exit, Result};
use super::{Ctl, json_of, path, print, settings, submit, texts};

/// Estimate time and memory of a video, without making it.
#[derive(clap::Args)]
#[command(
    after_help = "Example: animctl plan photo.jpg --size 720p --steps 20\n\nJSON: size, frames, parts (in which a long video is made), steps, forwards (passes through the \
model), seconds_source (history, prediction, unknown), seconds_why, why (the reasons for the profile), notes (on the settings), and where known profile, \
backend, remedy, seconds (of work, without waiting), memory, host_memory (in which weights wait for the GPU), streamed (in each \
pass; all in bytes)"
)]
pub struct Args {
    /// The picture, whose shape matters
    #[arg(value_name = "PICTURE", value_parser = path())]
    image: Option<PathBuf>,
    /// The picture that the video ends at
    #[arg(long, value_name = "PICTURE", value_parser = path(), conflicts_with = "looped")]
    last: Option<PathBuf>,
    #[command(flatten, next_help_heading = "Settings of the video")]
    settings: settings::JobOptions,
}

pub async fn run(args: Args, ctl: &Ctl) -> Result {
    let given = settings::given(args.settings.clone())?;
    let mut options = settings::options(&given);
    if let Some(image) = &args.image {
        let file = submit::open(image)?;
        let header = animd_common::picture::read(&file, &format!("the picture `{}`", show(image)))?;
        if let Some((width, height)) = header.size {
            options.insert("width", width.into());
            options.insert("height", height.into());
        }
    }
    let last = args.last.as_deref().map(submit::open).transpose()?;
    if let Some(last) = &last {
        options.insert("last", Fd::from(last.as_fd()).into());
    }
    let plan = json_of(&ctl.manager.plan(options).await?);
    if ctl.json {
        print(plan);
        return Ok(Exit::Done);
    }
    let text = |key: &str| plan[key].as_str().map(str::to_owned);
    let line = |name: &str, value: Option<String>| {
        if let Some(value) = value {
            print(format!("{name:<9} {value}"));
        }
    };
    let parts = match plan["parts"].as_u64() {
        Some(parts @ 2..) => format!(" in {parts} parts, each continuing the one before"),
        _ => String::new(),
    };
    line("video", Some(format!("{}, {} frames{parts}", text("size").unwrap_or_default(), plan["frames"])));
    line("work", Some(format!("{} steps, {} passes through the model", plan["steps"], plan["forwards"])));
    let seconds = plan["seconds"].as_f64().map_or_else(|| "not known".to_owned(), time);
    line("time", Some(format!("{seconds}: {}", text("seconds_why").unwrap_or_default())));
    line("memory", plan["memory"].as_u64().map(bytes));
    line(
        "host",
        plan["host_memory"].as_u64().map(|n| format!("{} of weights wait in the machine's memory", bytes(n))),
    );
    line("streamed", plan["streamed"].as_u64().map(|n| format!("{} to the GPU in each pass", bytes(n))));
    line("profile", text("profile").map(|name| format!("{name} ({})", text("backend").unwrap_or_default())));
    for why in texts(&plan["why"]) {
        line("", Some(why.to_owned()));
    }
    line("remedy", text("remedy"));
    for note in texts(&plan["notes"]) {
        line("note", Some(note.to_owned()));
    }
    Ok(Exit::Done)
}
