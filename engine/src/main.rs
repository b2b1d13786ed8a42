//! animd-engine: image and text in, video out. See `animd-engine --help`.

mod cli;

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    let args = cli::Args::parse();
    tracing_subscriber::fmt()
        .with_env_filter(tracing_subscriber::EnvFilter::from_env("ANIMD_LOG_LEVEL"))
        .with_writer(std::io::stderr)
        .init();
    cli::run(args)
}
