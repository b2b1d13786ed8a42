//! Writes animd's manual pages and completions: `animd-docs DIR` fills DIR as `/usr/share` is.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;

/// Writes manual pages below DIR/man, and completions for bash, zsh and fish where their packages look below DIR.
#[derive(Parser)]
#[command(name = "animd-docs", version, after_help = "Example: animd-docs target/deb/tree/usr/share")]
struct Args {
    /// The folder, as /usr/share
    dir: PathBuf,
}

fn main() -> ExitCode {
    let Args { dir } = Args::parse();
    match animd_docs::write(&dir) {
        Ok(files) => {
            for file in files {
                println!("{}", file.display());
            }
            ExitCode::SUCCESS
        }
        Err(e) => {
            eprintln!("animd-docs: cannot write below `{}`: {e}", dir.display());
            ExitCode::FAILURE
        }
    }
}
