//! `animctl bench` and `animctl selftest`: what the engine says of this machine.

use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::process::Command;

use animd_common::files::show;

use super::On;
use super::config::load;
use super::exit::{Exit, Failure, Result};

/// Measure how long each stage of a video takes on this machine, even before a model is downloaded.
///
/// It runs `animd-engine bench` as yourself; without a model it uses random weights, which take just as long. Keep the
/// service from using the GPU meanwhile: `animctl unload`, then `animctl drain -- animctl bench`.
#[derive(clap::Args)]
#[command(
    after_help = "Example: animctl bench --size 720p --rows int8,int8-distill\n\n`animctl bench -- --help` shows all options.\n\nJSON: \
version, device, backend, model, width, height, frames, tokens, runs, tiling, rows (an array: row, weights, attention, and \
seconds by stage), notes, and for known cards comparisons (an array: row, stages with measured and predicted seconds)"
)]
pub struct Bench {
    /// Options of the engine's `bench`
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "OPTIONS")]
    options: Vec<OsString>,
}

/// Check every operation on the GPU against the CPU.
///
/// It runs `animd-engine selftest` as yourself.
#[derive(clap::Args)]
#[command(
    after_help = "Example: animctl selftest attention\n\n`animctl selftest -- --help` shows all options.\n\nJSON: gpu, \
 findings (an array: operation, case, error, most, tolerance, passed)"
)]
pub struct Selftest {
    /// Operations to check, and options of the engine's `selftest`
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "OPTIONS")]
    options: Vec<OsString>,
}

pub fn bench(args: &Bench, on: On) -> Result {
    run("bench", &args.options, on)
}

pub fn selftest(args: &Selftest, on: On) -> Result {
    run("selftest", &args.options, on)
}

/// Replaces this process with the configured engine.
pub fn run(verb: &str, options: &[OsString], on: On) -> Result {
    let mut command = command(verb, options, on)?;
    let e = command.exec();
    Err(cannot(&command, &e))
}

/// Runs the configured engine, and ends as it does.
pub fn call(verb: &str, options: &[OsString], on: On) -> Result {
    let mut command = command(verb, options, on)?;
    let status = command.status().map_err(|e| cannot(&command, &e))?;
    Ok(match status.code() {
        Some(0) => Exit::Done,
        // Only Ctrl-C ends it by a signal, and ends this program, too.
        code => Exit::Of(code.map_or(130, |code| u8::try_from(code).unwrap_or(1))),
    })
}

fn command(verb: &str, options: &[OsString], on: On) -> Result<Command> {
    let mut command = Command::new(load(None, on.user)?.config.engine_program());
    command.arg(verb).args(options.iter().filter(|option| *option != "--"));
    if on.json {
        command.arg("--json");
    }
    Ok(command)
}

fn cannot(command: &Command, e: &std::io::Error) -> Failure {
    let engine = show(command.get_program());
    Failure::new(format!("the engine `{engine}` cannot be run: {e}; install animd again"))
}
