//! Runs every kernel on the CPU: the checks of `kernel-check`, with the emulator in place of NVIDIA's driver.
#![cfg(feature = "emulator")]

use std::process::Command;

/// Runs a group of checks on a card of this compute capability, without the largest cases.
fn check(group: &str, capability: &str) {
    let output = Command::new(env!("CARGO_BIN_EXE_kernel-check"))
        .args(["--checks-only", "--quick", "--only", group])
        .env("ANIMD_EMULATOR_CAPABILITY", capability)
        .output()
        .expect("kernel-check starts");
    let (out, errors) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(out.starts_with("emulator\n"), "it ran on something else: {out}{errors}");
    assert!(output.status.success() && out.ends_with("all right\n"), "{out}{errors}");
}

const HOPPER: &str = "9.0";
const ADA: &str = "8.9";
const AMPERE: &str = "8.6";
const A100: &str = "8.0";

#[test]
fn attention() {
    check("attention", HOPPER);
    check("attention", ADA);
}

/// Other cards have no kernels for them, and say so.
#[test]
fn raw_heads() {
    check("raw-heads", HOPPER);
    check("raw-heads", ADA);
}

#[test]
fn products() {
    check("products", HOPPER);
}

#[test]
fn products_on_ada() {
    check("products", ADA);
}

#[test]
fn products_on_ampere() {
    check("products", AMPERE);
}

#[test]
fn int8() {
    check("int8", AMPERE);
    check("int8", A100);
    // Products in int8 are there, and 8-bit attention is another.
    check("int8", HOPPER);
}

/// The kernels of this group are the same on all cards.
#[test]
fn rows() {
    check("rows", HOPPER);
}

#[test]
fn convolutions() {
    check("convolutions", HOPPER);
}

#[test]
fn convolutions_on_ada() {
    check("convolutions", ADA);
}

#[test]
fn other_attentions() {
    check("other-attentions", HOPPER);
    check("other-attentions", ADA);
}
