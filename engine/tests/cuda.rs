//! The program with the backend for GPUs, on the emulated one: a whole job, and each way in which a GPU can be missing.
#![cfg(feature = "emulator")]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures").join(name)
}

/// `animd-engine generate` with a profile on a GPU that the variables describe.
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
    for (variable, value, says) in [
        ("ANIMD_EMULATOR_CAPABILITY", "8.6", "compute capability 8.6"),
        ("ANIMD_EMULATOR_DRIVER", "12020", "it knows CUDA 12.2"),
        ("ANIMD_EMULATOR_MIB", "100", "0.10 GiB"),
    ] {
        let output = generate("h200", &out, &[(variable, value)]);
        let errors = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{errors}");
        assert!(errors.starts_with("error: ") && errors.lines().count() == 1, "{errors}");
        assert!(errors.contains(says), "{errors}");
        println!("{errors}");
        assert!(!out.exists());
    }
    Ok(())
}
