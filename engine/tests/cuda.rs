//! Runs the program with the backend for GPUs on an emulated GPU: a whole job, and each way in which a GPU can be
//! missing.
#![cfg(feature = "emulator")]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures").join(name)
}

/// Runs `animd-engine generate` with a profile on a GPU that the variables describe.
fn generate(profile: &str, out: &Path, variables: &[(&str, &str)]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_animd-engine"))
        .arg("generate")
        .arg(fixture("tiny-a/input0.png"))
        .args(["--prompt", "a boat", "--size", "64x48", "--frames", "5", "--steps", "2", "--json"])
        .args(["--profile", profile, "--model"])
        .arg(fixture("tiny-a/official"))
        .arg("--out")
        .arg(out)
        .envs(variables.iter().copied())
        .output()
        .expect("the engine starts")
}

#[test]
fn a_job_on_the_gpu() -> Result<(), Box<dyn std::error::Error>> {
    let dir = tempfile::tempdir()?;
    let out = dir.path().join("a.mp4");
    let output = generate("h200", &out, &[]);
    let (text, errors) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{errors}");
    let report: serde_json::Value = serde_json::from_str(&text)?;
    assert_eq!(report["report"]["frames"], 5);
    assert!(report["report"]["peak_gpu_bytes"].as_u64().is_some_and(|bytes| bytes > 1 << 20), "{text}");
    assert!(out.metadata()?.len() > 1000);
    Ok(())
}

#[test]
fn a_gpu_that_cannot_be_used_is_a_sentence() -> Result<(), Box<dyn std::error::Error>> {
    let dir = tempfile::tempdir()?;
    let out = dir.path().join("a.mp4");
    let own = include_str!("../../configs/h200.toml").replace("\ndit = \"int8\"", "\ndit = \"fp8\"");
    let in_fp8 = dir.path().join("own.toml");
    std::fs::write(&in_fp8, own.replace("name = \"h200\"", "name = \"own\""))?;
    let in_fp8 = in_fp8.to_string_lossy();
    for (profile, variable, value, says) in [
        (&*in_fp8, "ANIMD_EMULATOR_CAPABILITY", "8.6", "compute capability 8.6"),
        ("h200", "ANIMD_EMULATOR_DRIVER", "12020", "it knows CUDA 12.2"),
        ("h200", "ANIMD_EMULATOR_MIB", "100", "0.10 GiB"),
    ] {
        let output = generate(profile, &out, &[(variable, value)]);
        let errors = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{errors}");
        assert!(errors.starts_with("error: ") && errors.lines().count() == 1, "{errors}");
        assert!(errors.contains(says), "{errors}");
        println!("{errors}");
        assert!(!out.exists());
    }
    Ok(())
}

#[test]
fn a_selftest_tells_each_operation() -> Result<(), Box<dyn std::error::Error>> {
    let selftest = |args: &[&str]| {
        Command::new(env!("CARGO_BIN_EXE_animd-engine"))
            .arg("selftest")
            .args(args)
            .output()
            .expect("it starts")
    };
    let output = selftest(&["moves", "norms"]);
    let (text, errors) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{text}{errors}");
    for operation in
        ["slice", "concat", "linear combination", "patchify", "layer norm", "norm to int8 product"]
    {
        assert!(text.contains(operation), "no {operation} in {text}");
    }
    assert!(!text.contains("convolution") && !text.contains("WRONG"), "{text}");
    let output = selftest(&["volumes", "--json"]);
    let said: serde_json::Value = serde_json::from_slice(&output.stdout)?;
    let findings = said["findings"].as_array().ok_or("no findings")?;
    assert!(findings.len() > 100 && findings.iter().all(|f| f["passed"] == true), "{said}");
    assert_eq!(selftest(&["everything"]).status.code(), Some(2));
    Ok(())
}

#[test]
fn a_bench_on_the_gpu_loads_each_precision_once() -> Result<(), Box<dyn std::error::Error>> {
    let output = Command::new(env!("CARGO_BIN_EXE_animd-engine"))
        .args(["bench", "--synthetic", "tiny", "--size", "32x32", "--frames", "1", "--runs", "1", "--json"])
        .args(["--rows", "distill,bf16-8bit,fp8,bf16-exact"])
        .output()?;
    let (text, errors) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{errors}");
    let said: serde_json::Value = serde_json::from_str(&text)?;
    let row = |i: usize, key: &str| said["rows"][i][key].clone();
    let names: Vec<_> = (0..4).map(|i| row(i, "row")).collect();
    assert_eq!(names, ["distill", "bf16-8bit", "fp8", "bf16-exact"]);
    let types: Vec<_> = (0..4).map(|i| row(i, "weights")).collect();
    assert_eq!(types, ["fp8", "bf16", "fp8", "bf16"]);
    assert_eq!((row(2, "attention"), row(3, "attention")), ("8bit".into(), "exact".into()));
    // Rows with the same weights share one load, so their times are equal to the digit.
    assert_eq!((row(0, "load"), row(1, "load")), (row(2, "load"), row(3, "load")));
    assert!(row(2, "peak_bytes").as_u64() < row(3, "peak_bytes").as_u64(), "{text}");
    Ok(())
}

#[test]
fn a_card_that_no_row_fits_is_a_sentence() -> Result<(), Box<dyn std::error::Error>> {
    let bench = |mib: &str| {
        Command::new(env!("CARGO_BIN_EXE_animd-engine"))
            .args([
                "bench",
                "--synthetic",
                "tiny",
                "--size",
                "32x32",
                "--frames",
                "1",
                "--runs",
                "1",
                "--json",
            ])
            .args(["--rows", "distill", "--profile", "h200"])
            .env("ANIMD_EMULATOR_MIB", mib)
            .output()
    };
    let output = bench("100")?;
    let errors = String::from_utf8_lossy(&output.stderr);
    let last = errors.lines().last().unwrap_or_default();
    assert_eq!(output.status.code(), Some(1), "{errors}");
    assert!(last.starts_with("error: distill: ") && last.contains("0.10 GiB"), "{errors}");
    Ok(())
}
