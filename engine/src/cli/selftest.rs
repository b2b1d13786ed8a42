//! `animd-engine selftest`.

use animd_engine::{Error, Result};

#[cfg(feature = "cuda")]
use {
    super::stop::Stop,
    super::{print, print_json},
    animd_engine::backend::cuda::conformance::{self, Finding, Group},
    animd_engine::backend::cuda::{Cuda, Options},
    animd_engine::progress::{Observer, Progress},
    std::fmt::Write,
};

/// The end of the help. Only a build for GPUs has more to choose.
const HELP: &str = if cfg!(feature = "cuda") {
    "\
Examples:
  animd-engine selftest
  animd-engine selftest attention --json
  animd-engine selftest --capability 8.9
Exit status: 1 if an operation is wrong, or if there is no GPU that could be asked."
} else {
    "\
Example:
  animd-engine selftest
Exit status: 1, because this build has no code for GPUs."
};

/// Check every operation on the GPU against the CPU.
///
/// Each operation that the model is made of runs at small, awkward sizes on both. Printed is the case of each that is
/// farthest from the CPU's result for what its roundings allow: the relative L2 distance, the largest difference in
/// relation to the largest value, and the distance that is allowed.
#[derive(clap::Args)]
#[command(after_help = HELP)]
pub struct Selftest {
    /// Operations to check [default: all]
    #[cfg(feature = "cuda")]
    #[arg(value_name = "OPERATIONS", value_enum)]
    groups: Vec<Group>,
    /// Run the kernels of an older card, such as 8.9 (RTX 40 series), 8.6 or 8.0, on this one
    #[cfg(feature = "cuda")]
    #[arg(long, value_name = "X.Y", value_parser = capability)]
    capability: Option<(u32, u32)>,
    /// Print every case as JSON
    #[arg(long)]
    json: bool,
}

impl Selftest {
    /// Runs the command.
    #[cfg(not(feature = "cuda"))]
    pub fn run(self) -> Result<()> {
        let Self { json: _ } = self;
        Err(Error::Device(
            "this build has no code for NVIDIA GPUs: there is nothing to check; the CPU is what GPUs are checked against".into(),
        ))
    }

    /// Runs the command.
    #[cfg(feature = "cuda")]
    pub fn run(self) -> Result<()> {
        let gpu = Cuda::open(0, &Options { capability: self.capability, ..Options::default() }, 0, 0)?
            .gpu_name()?;
        let groups = if self.groups.is_empty() { Group::ALL.to_vec() } else { self.groups };
        let findings = conformance::run(0, self.capability, &groups, &Watch(Stop::listen()?))?;
        if self.json {
            print_json(&serde_json::json!({ "gpu": gpu, "findings": findings }))?;
        } else {
            print(&table(&gpu, &findings))?;
        }
        verdict(&gpu, &findings)
    }
}

/// Returns a compute capability from text like `8.9`.
#[cfg(feature = "cuda")]
fn capability(text: &str) -> std::result::Result<(u32, u32), String> {
    let parts =
        text.split_once('.').and_then(|(major, minor)| Some((major.parse().ok()?, minor.parse().ok()?)));
    parts.ok_or_else(|| "a compute capability has the form 8.9".into())
}

/// Returns a table of the worst case of each operation, in the order in which the operations first appear.
#[cfg(feature = "cuda")]
fn table(gpu: &str, findings: &[Finding]) -> String {
    let mut worst: Vec<(usize, &Finding)> = Vec::new();
    for finding in findings {
        match worst.iter_mut().find(|(_, other)| other.operation == finding.operation) {
            None => worst.push((1, finding)),
            Some((count, other)) => {
                *count += 1;
                if badness(finding) > badness(other) {
                    *other = finding;
                }
            }
        }
    }
    let mut text =
        format!("{gpu}\n{:30}{:>6}{:>11}{:>11}{:>11}\n", "", "cases", "distance", "largest", "allowed");
    for (count, f) in worst {
        let verdict = if f.passed { String::new() } else { format!("  WRONG: {}", f.case) };
        // Writing to a string cannot fail.
        let _ = writeln!(
            text,
            "{:30}{count:>6}{:>11.1e}{:>11.1e}{:>11.1e}{verdict}",
            f.operation, f.error, f.most, f.tolerance
        );
    }
    text.trim_end().to_owned()
}

/// Returns how much of the tolerance is used up; exact operations have no tolerance.
#[cfg(feature = "cuda")]
fn badness(finding: &Finding) -> f64 {
    match finding.passed {
        true => finding.error / finding.tolerance.max(f64::MIN_POSITIVE),
        false => f64::INFINITY,
    }
}

#[cfg(feature = "cuda")]
fn verdict(gpu: &str, findings: &[Finding]) -> Result<()> {
    let failed: Vec<&Finding> = findings.iter().filter(|f| !f.passed).collect();
    let Some(first) = failed.first() else { return Ok(()) };
    Err(Error::Device(format!(
        "{} of {} cases are wrong on this {gpu}, as {} ({}): do not use it; a newer driver may help, and a report is welcome",
        failed.len(),
        findings.len(),
        first.operation,
        first.case
    )))
}

/// Stops the work on a signal.
#[cfg(feature = "cuda")]
struct Watch(Stop);

#[cfg(feature = "cuda")]
impl Observer for Watch {
    fn progress(&self, _: &Progress) {}

    fn canceled(&self) -> bool {
        self.0.asked()
    }
}

#[cfg(all(test, feature = "cuda"))]
mod tests {
    use super::*;

    #[test]
    fn the_worst_case_speaks_for_its_operation() {
        assert_eq!(capability("8.9"), Ok((8, 9)));
        assert!(capability("89").is_err() && capability("8.x").is_err());
        let finding = |operation, case: &str, error: f64| Finding {
            operation,
            case: case.into(),
            error,
            most: 0.0,
            tolerance: 1e-3,
            passed: error <= 1e-3,
        };
        let mut findings =
            vec![finding("a", "small", 1e-4), finding("b", "x", 0.0), finding("a", "large", 5e-4)];
        assert!(verdict("GPU", &findings).is_ok());
        let text = table("GPU", &findings);
        assert!(text.contains("5.0e-4") && !text.contains("1.0e-4") && !text.contains("WRONG"), "{text}");
        findings.push(finding("b", "strange", f64::NAN));
        let text = table("GPU", &findings);
        assert!(text.contains("WRONG: strange"), "{text}");
        let error = verdict("GPU", &findings).unwrap_err().to_string();
        assert!(error.contains("1 of 4 cases") && error.contains("b (strange)"), "{error}");
    }
}
