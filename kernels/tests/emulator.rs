//! Runs every kernel on the CPU: the checks of `kernel-check`, with the emulator in place of NVIDIA's driver.
#![cfg(feature = "emulator")]

use std::process::Command;

/// A group of checks, of which the largest cases are left out.
fn check(group: &str) {
    let folder = concat!(env!("OUT_DIR"), "/emulator");
    let output = Command::new(env!("CARGO_BIN_EXE_kernel-check"))
        .args(["--checks-only", "--quick", "--only", group])
        .env("LD_LIBRARY_PATH", folder)
        .output()
        .expect("kernel-check starts");
    let (out, errors) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(out.starts_with("emulator\n"), "it ran on something else: {out}{errors}");
    assert!(output.status.success() && out.ends_with("all right\n"), "{out}{errors}");
}

#[test]
fn attention() {
    check("attention");
}

#[test]
fn products() {
    check("products");
}

#[test]
fn rows() {
    check("rows");
}

#[test]
fn convolutions() {
    check("convolutions");
}

#[test]
fn other_attentions() {
    check("other-attentions");
}
