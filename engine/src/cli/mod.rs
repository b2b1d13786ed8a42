//! The commands of `animd-engine`, each in a file of its own.

mod backend;
mod bar;
mod bench;
mod cache;
mod check;
mod find;
mod generate;
mod inspect;
mod plan;
mod prepare;
mod profile;
mod selftest;
mod serve;
mod stop;
mod synth;
mod verify;

use std::path::PathBuf;
use std::process::ExitCode;

use animd_engine::{Error, Result};

/// Turns a picture and a line of text into a video with Wan2.1-I2V.
#[derive(clap::Parser)]
#[command(
    version,
    after_help = "\
Exit status: 0 done; 1 failed; 2 wrong usage, or a setting that cannot be used; 130 stopped by Ctrl-C.
Every command takes --help, with an example."
)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(clap::Subcommand)]
enum Command {
    /// Make one video
    Generate(Box<generate::Generate>),
    /// Show which model a folder holds, and what is missing from it
    Inspect(inspect::Inspect),
    /// Find models in folders, and say which parts fit together and what is missing
    Find(Box<find::Find>),
    /// Estimate the operations and memory of a video, without making it
    Plan(Box<plan::PlanArgs>),
    /// Measure how long each stage of a video takes on this machine
    Bench(Box<bench::Bench>),
    /// Check every operation on the GPU against the CPU
    Selftest(selftest::Selftest),
    /// Check a model's files, tensor by tensor
    Verify(verify::Verify),
    /// Check a model by what it computes, on this machine
    Check(Box<check::Check>),
    /// Write a copy of the DiT in 8 bits, for faster starts
    Prepare(prepare::Prepare),
    /// Show the prepared copies, and drop them
    Cache(cache::CacheCommand),
    /// Write a model of random weights in the official layout, for tests and measurements
    SynthModel(synth::SynthModel),
    /// Take jobs from a parent process on standard input, a socket; this is how animd runs the engine
    #[command(hide = true)]
    Serve(serve::Serve),
}

/// Where the model is.
#[derive(clap::Args)]
pub struct ModelArgs {
    /// The model's folder, as downloaded: the released one, or one of ComfyUI, LightX2V, diffusers or the Hugging Face
    /// cache; or a model file (`NAME.toml`), which says where each part lies
    #[arg(short, long, value_name = "PATH", env = "ANIMD_MODEL_PATH")]
    model: PathBuf,
    /// Take the DiT from this folder or file instead, such as a GGUF file or a distilled one
    #[arg(long, value_name = "PATH", env = "ANIMD_MODEL_DIT")]
    dit: Option<PathBuf>,
}

/// Runs the command and prints its error, if there is one.
pub fn run(args: Args) -> ExitCode {
    // `serve` tells its parent.
    if !matches!(args.command, Command::Serve(_)) {
        let report = |e: Error| {
            eprintln!("error: {e}");
            1
        };
        if let Err(e) = animd_engine::weights::on_fault(report) {
            tracing::warn!("{e}");
        }
    }
    let result = match args.command {
        Command::Generate(command) => command.run(),
        Command::Inspect(command) => command.run(),
        Command::Find(command) => command.run(),
        Command::Plan(command) => command.run(),
        Command::Bench(command) => command.run(),
        Command::Selftest(command) => command.run(),
        Command::Verify(command) => command.run(),
        Command::Check(command) => command.run(),
        Command::Prepare(command) => command.run(),
        Command::Cache(command) => command.run(),
        Command::SynthModel(command) => command.run(),
        Command::Serve(command) => return command.run(),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(Error::Canceled) => {
            eprintln!("stopped; nothing was written");
            ExitCode::from(130)
        }
        Err(error) => {
            eprintln!("error: {error}");
            // Two options that do not go together are as wrong as one that cannot be read.
            if matches!(error, Error::Setting(_)) { ExitCode::from(2) } else { ExitCode::FAILURE }
        }
    }
}

/// Returns a seed for users who gave none: 32 bits, so that it is short in file names.
fn draw_seed() -> u64 {
    u64::from(uuid::Uuid::new_v4().as_fields().0)
}

/// Prints to standard output; a reader that has gone away (`| head`) is not an error.
fn print(text: &str) -> Result<()> {
    use std::io::Write;
    match writeln!(std::io::stdout(), "{text}") {
        Err(e) if e.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(Error::file("write", "standard output")(e))
        }
        _ => Ok(()),
    }
}

/// Prints a value as JSON to standard output.
fn print_json(value: &impl serde::Serialize) -> Result<()> {
    print(&serde_json::to_string_pretty(value).map_err(|e| Error::Internal(e.to_string()))?)
}
