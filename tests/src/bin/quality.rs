//! `quality CASES`: prints what each approximation costs in pictures.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use animd_engine::backend::cpu::Cpu;
#[cfg(feature = "cuda")]
use animd_engine::backend::cuda::{Cuda, Options};
use animd_tests::quality::{Cases, Comparison, Measures, Row, Table, cpu_rows, gpu_rows, small_model};
use anyhow::{Context, Result};
use clap::{Parser, ValueEnum};

/// Compare a model's videos, computed approximately, with the exact ones: those of the CPU in float32.
///
/// `tests/quality/approximations.py` makes the folder of cases and calls this.
#[derive(Parser)]
struct Args {
    /// The folder of cases
    cases: PathBuf,
    /// The model's folder [default: the small model of this repository]
    #[arg(short, long)]
    model: Option<PathBuf>,
    /// The device that approximates
    #[arg(long, value_enum, default_value_t = Device::Cpu)]
    device: Device,
    /// Take only so many cases
    #[arg(long, default_value_t = usize::MAX, hide_default_value = true)]
    most: usize,
    /// Write the figures of each video to this file
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

#[derive(Clone, Copy, PartialEq, ValueEnum)]
enum Device {
    Cpu,
    Cuda,
}

fn main() -> ExitCode {
    match run(&Args::parse()) {
        Ok(table) => {
            // A reader that has gone away (`| head`) does not change the outcome.
            let _ = writeln!(std::io::stdout(), "{table}");
            ExitCode::SUCCESS
        }
        Err(e) => {
            eprintln!("error: {e:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> Result<Table> {
    let cases = Cases::read(&args.cases, args.most)?;
    let model = args.model.clone().unwrap_or_else(small_model);
    let (device, has_fp8) = device(args.device)?;
    let (rows, mut left_out) = match args.device {
        Device::Cpu => cpu_rows(),
        Device::Cuda => gpu_rows(has_fp8),
    };
    let comparison = Comparison::new(&cases, &model)?;
    let mut measured = Vec::new();
    for row in &rows {
        eprintln!("{}", row.name);
        match measure(&comparison, row, args.device) {
            Ok(measures) => measured.push((row.name.to_owned(), measures)),
            Err(e) => left_out.push(format!("{} is left out: {e:#}", row.name)),
        }
    }
    let table =
        Table { device, videos: cases.all.len(), truth: comparison.truth()?, rows: measured, left_out };
    if let Some(file) = &args.json {
        save(&table, file)?;
    }
    Ok(table)
}

fn save(table: &Table, file: &Path) -> Result<()> {
    let text = serde_json::to_string_pretty(table)?;
    std::fs::write(file, text + "\n").with_context(|| format!("cannot write `{}`", file.display()))
}

/// Returns a device's name, and whether it computes in fp8.
fn device(device: Device) -> Result<(String, bool)> {
    match device {
        Device::Cpu => Ok(("the CPU".to_owned(), false)),
        #[cfg(feature = "cuda")]
        Device::Cuda => {
            let gpu = Cuda::open(0, &Options::default(), 0, 0)?;
            Ok((gpu.gpu_name()?, gpu.has_fp8()))
        }
        #[cfg(not(feature = "cuda"))]
        Device::Cuda => {
            anyhow::bail!("this build has no code for GPUs; build it with the feature `cuda` of animd-tests")
        }
    }
}

/// Measures a row on a backend of its own, so that no row finds another one's memory.
fn measure(comparison: &Comparison<'_>, row: &Row, device: Device) -> Result<Vec<Measures>> {
    match device {
        Device::Cpu => comparison.row(row, Cpu::new()),
        #[cfg(feature = "cuda")]
        Device::Cuda => comparison.row(row, Cuda::open(0, &Options::default(), 0, 0)?),
        #[cfg(not(feature = "cuda"))]
        Device::Cuda => anyhow::bail!("this build has no code for GPUs"),
    }
}
