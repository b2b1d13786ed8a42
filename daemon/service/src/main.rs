//! `animd`, the service.

use std::process::ExitCode;
use std::time::Duration;

use animd::cli::{Args, EXIT_CONFIG, EXIT_DAMAGED, EXIT_NEW_START};
use animd::{Error, service};
use animd_common::{log, profiles};
use clap::Parser;

fn main() -> ExitCode {
    let args = Args::parse();
    match start(&args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("animd: {e}");
            match e {
                Error::Common(animd_common::Error::Config(_)) => ExitCode::from(EXIT_CONFIG),
                Error::Damaged(_) => ExitCode::from(EXIT_DAMAGED),
                Error::NewStart(_) => ExitCode::from(EXIT_NEW_START),
                _ => ExitCode::FAILURE,
            }
        }
    }
}

fn start(args: &Args) -> Result<(), Error> {
    let sources = args.sources()?;
    let loaded = sources.load()?;
    if args.check {
        profiles::check(&loaded)?;
        print!("{}", loaded.print(args.origins));
        return Ok(());
    }
    if args.restore_ledger {
        println!("animd: {}", service::restore_ledger(&loaded.config)?);
        return Ok(());
    }
    log::start(&loaded.config.log.level)?;
    // One thread: the engine's life hangs on the thread that started it, and there is little to do but wait.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(Error::file("start", "the runtime"))?;
    let result = runtime.block_on(service::run(loaded, sources));
    // A copy from a slow disk must not hold the stop up; it is not in the ledger yet.
    runtime.shutdown_timeout(Duration::from_secs(1));
    result
}
