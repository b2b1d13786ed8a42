//! `animd-watch`, for the folders of one user.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use animd_common::log;
use animd_watch::{Bus, Config, Error, Sources};
use clap::Parser;

/// A wrong configuration: starting again does not help. `EX_CONFIG` of sysexits.
const EXIT_CONFIG: u8 = 78;

/// Makes videos of the pictures in your own folders, by the animd of this machine.
///
/// Pictures go to animd by descriptor and videos come back the same way, so that animd needs no rights to your folders.
#[derive(Parser)]
#[command(
    name = "animd-watch",
    version,
    after_help = "Example: animd-watch ~/Pictures/animate\n\nExit codes: 0 stopped, 1 failed, 2 wrong usage, 78 wrong \
configuration"
)]
struct Args {
    /// Folders to watch [default: those of the configuration, or ~/Videos/animd/inbox]
    #[arg(value_name = "DIR")]
    folders: Vec<PathBuf>,
    /// Where videos go, for folders that name no place of their own [default: ~/Videos/animd/outbox]
    #[arg(short, long, value_name = "DIR")]
    outbox: Option<PathBuf>,
    /// The configuration file [default: ~/.config/animd/watch.toml]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Ask the animd on the session bus, not the one of the machine
    #[arg(long)]
    user: bool,
    /// Read the configuration, say which folders would be watched, and end
    #[arg(long)]
    check: bool,
}

fn main() -> ExitCode {
    match start(&Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("animd-watch: {e}");
            if matches!(e, Error::Common(animd_common::Error::Config(_))) {
                ExitCode::from(EXIT_CONFIG)
            } else {
                ExitCode::FAILURE
            }
        }
    }
}

fn start(args: &Args) -> Result<(), Error> {
    let full = |path: &PathBuf| std::path::absolute(path).map_err(Error::file("find", path));
    let sources = Sources {
        file: args.config.as_ref().map(full).transpose()?,
        folders: args.folders.iter().map(full).collect::<Result<_, _>>()?,
        outbox: args.outbox.as_ref().map(full).transpose()?,
    };
    let config = Config::load(&sources, &|name| std::env::var_os(name))?;
    if args.check {
        print!("{}", config.print());
        return Ok(());
    }
    log::start(&config.log_level)?;
    let bus = if args.user { Bus::Session } else { Bus::System };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(Error::file("start", "the runtime"))?;
    let result = runtime.block_on(animd_watch::run(config, bus));
    // A copy to a slow disk must not hold the stop up; it is made again.
    runtime.shutdown_timeout(Duration::from_secs(1));
    result
}
