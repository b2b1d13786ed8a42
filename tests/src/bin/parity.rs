//! `parity DIR`: compares the engine with the goldens of a fixture directory.

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use animd_tests::parity;
use clap::Parser;

/// Compare the engine with the goldens of a fixture directory.
///
/// Runs every item of `golden.json` and `golden.safetensors` and prints its error and bound; for a directory of layouts
/// (`layouts.json`), reads every file and compares its values. Exit status: 1 if an item is out of bounds, or was not
/// checked.
#[derive(Parser)]
#[command(after_help = "Example:\n  parity tests/fixtures/tiny-a")]
struct Args {
    /// The directory: `golden.json`, `golden.safetensors`, `official/` and the quantised layouts; or `layouts.json`,
    /// `layouts.safetensors` and the files, plain or in `pool.bin`
    dir: PathBuf,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

fn main() -> ExitCode {
    let args = Args::parse();
    let items = match parity::run(&args.dir) {
        Ok(items) => items,
        Err(e) => {
            eprintln!("error: {e:#}");
            return ExitCode::from(2);
        }
    };
    let bad = items.iter().filter(|i| !i.ok).count();
    let mut out = std::io::stdout().lock();
    // A reader that has gone away (`| head`) does not change the verdict.
    let _ = if args.json {
        writeln!(out, "{}", serde_json::json!({ "items": items, "ok": bad == 0, "bad": bad }))
    } else {
        items
            .iter()
            .try_for_each(|i| writeln!(out, "{i}"))
            .and_then(|()| writeln!(out, "{} items, {bad} out of bounds or not checked", items.len()))
    };
    if bad == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
