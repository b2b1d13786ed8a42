//! `animctl warm [-- CMD]`

use std::time::Duration;

use serde_json::json;
use tokio::process::Command;
use tokio::signal::ctrl_c;
use tokio::time::sleep;

use super::exit::{Exit, Failure, Result};
use super::{Ctl, whole};

/// Keep the model in memory while a command runs, or until Ctrl-C.
#[derive(clap::Args)]
#[command(
    after_help = "Example: animctl warm -- ./make-all-videos.sh\n\nExample: animctl warm --seconds 3600\n\nJSON: warm and seconds (0 \
means until Ctrl-C), at the beginning; with a command nothing, since standard output is the command's"
)]
pub struct Args {
    /// Keep it for N seconds
    #[arg(long, value_name = "N", conflicts_with = "command", value_parser = whole::<u64>)]
    seconds: Option<u64>,
    /// The command and its arguments
    #[arg(last = true, value_name = "CMD")]
    command: Vec<String>,
}

pub async fn run(args: &Args, ctl: &Ctl) -> Result {
    let span = args.seconds.map(|seconds| match seconds {
        1 => "for 1 second".to_owned(),
        seconds => format!("for {seconds} seconds"),
    });
    let by_hand = || span.as_deref().unwrap_or("until Ctrl-C");
    let why = args.command.first().map_or_else(by_hand, String::as_str);
    let _hold = ctl.manager.inhibit("warm", "animctl", why).await?;
    if !args.command.is_empty() {
        return command(&args.command).await;
    }
    let sentence = match &span {
        Some(span) => format!("the model is kept in memory {span}; Ctrl-C stops earlier"),
        None => "the model is kept in memory until Ctrl-C".to_owned(),
    };
    ctl.tell(&json!({"warm": true, "seconds": args.seconds.unwrap_or(0)}), &sentence);
    tokio::select! {
        _ = ctrl_c() => {}
        () = sleep(Duration::from_secs(args.seconds.unwrap_or(u64::MAX / 2))) => {}
    }
    Ok(Exit::Done)
}

/// Runs a command to its end, and returns its exit code.
pub async fn command(command: &[String]) -> Result {
    let [program, arguments @ ..] = command else { return Ok(Exit::Done) };
    let mut child = Command::new(program)
        .args(arguments)
        .spawn()
        .map_err(|e| Failure::new(format!("cannot run `{program}`: {e}")))?;
    loop {
        tokio::select! {
            ended = child.wait() => {
                let status = ended.map_err(|e| Failure::new(format!("`{program}` cannot be waited for: {e}")))?;
                let signal = std::os::unix::process::ExitStatusExt::signal(&status);
                // Shells report a signal in this way, too.
                let code = status.code().or(signal.map(|signal| 128 + signal)).unwrap_or(1);
                return Ok(Exit::Of(code as u8));
            }
            // The terminal sends SIGINT to the command as well, which decides what to do.
            _ = ctrl_c() => {}
        }
    }
}
