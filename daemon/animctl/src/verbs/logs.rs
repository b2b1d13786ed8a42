//! `animctl logs`

use std::os::unix::process::CommandExt;
use std::process::Command;

use super::exit::{Exit, Failure, Result};
use super::{On, job_number};

/// Show the log of the service, or of one job.
///
/// It is read from systemd's journal.
#[derive(clap::Args)]
#[command(
    after_help = "Example: animctl logs 7\n\nIt runs journalctl; root and members of the groups `adm` and `systemd-journal` can \
see all entries.\n\nJSON: a line for each entry, as `journalctl -o json` writes them"
)]
pub struct Args {
    /// Only entries of this job
    #[arg(value_parser = job_number)]
    id: Option<u64>,
    /// Keep showing new entries
    #[arg(short, long)]
    follow: bool,
    /// Only the last N entries
    #[arg(short = 'n', long, value_name = "N")]
    lines: Option<u32>,
    /// Only entries since then, such as `yesterday` or `2026-01-31 12:00`
    #[arg(long, value_name = "TIME")]
    since: Option<String>,
}

pub fn run(args: &Args, on: On) -> Result {
    let failed = |e| Failure::new(format!("`journalctl` cannot be run: {e}; it is part of systemd"));
    let options = options(args, on);
    if !args.follow {
        let first = Command::new("journalctl").args(&options).args(["--quiet", "--lines=1"]).output();
        let first = first.map_err(failed)?;
        if first.status.success() && first.stdout.is_empty() {
            eprintln!("animctl: {}", nothing(args.id, on));
            return Ok(Exit::Done);
        }
    }
    let e = Command::new("journalctl").args(options).exec();
    Err(failed(e))
}

/// Returns what to say where the journal has no entries, and why that may be so.
fn nothing(id: Option<u64>, on: On) -> String {
    let what = match (id, on.user) {
        (Some(id), _) => format!("job {id}"),
        (None, true) => "the user unit `animd`".to_owned(),
        (None, false) => "the unit `animd`".to_owned(),
    };
    let why = "a service that is started by hand logs to its terminal, and others' entries are only shown to root and the groups `adm` \
               and `systemd-journal`";
    format!("the journal has no entries of {what} that you can read: {why}")
}

fn options(args: &Args, on: On) -> Vec<String> {
    let mut options = Vec::new();
    match args.id {
        Some(id) => options.push(format!("JOB={id}")),
        None if on.user => options.push("--user-unit=animd".into()),
        None => options.push("--unit=animd".into()),
    }
    if args.follow {
        options.push("--follow".into());
    }
    options.extend(args.lines.map(|lines| format!("--lines={lines}")));
    options.extend(args.since.as_ref().map(|since| format!("--since={since}")));
    if on.json {
        options.push("--output=json".into());
    }
    options
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn journalctl_is_asked_for_the_job_or_the_unit() {
        let on = On { user: false, system: false, json: true };
        let args = Args { id: Some(7), follow: true, lines: None, since: None };
        assert_eq!(options(&args, on), ["JOB=7", "--follow", "--output=json"]);
        let args = Args { id: None, follow: false, lines: Some(3), since: Some("today".into()) };
        assert_eq!(options(&args, On { json: false, ..on }), ["--unit=animd", "--lines=3", "--since=today"]);
    }
}
