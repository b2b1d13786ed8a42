//! `animd-engine` as a user runs it, on the tiny model.

mod commands;
#[path = "../common/mod.rs"]
mod common;
mod refusals;
mod served;
mod videos;

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use common::{names, picture, program, stderr, tiny_model};
use tempfile::TempDir;

/// Returns a folder with a picture in it.
fn scene() -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("cat.png");
    picture(&path, 120, 80);
    (folder, path)
}

/// Returns a `generate` command with settings that take a second.
fn generate(image: &Path, out: &Path, more: &[&str]) -> Command {
    let mut command = Command::new(program("animd-engine"));
    command.arg("generate").arg(image).arg("--out").arg(out).arg("--model").arg(tiny_model());
    command.args(["--size", "64x48", "--frames", "5", "--sampler", "distill", "--seed", "7"]).args(more);
    command
}

/// Checks that the run failed with one sentence that has all these words, and left nothing in `folder` but `kept`.
#[track_caller]
fn refused(output: &Output, words: &[&str], folder: &Path, kept: &[&str]) {
    ended(output, 1, words, folder, kept);
}

/// Checks what [`refused`] does of a run whose settings cannot be used.
#[track_caller]
fn wrong_setting(output: &Output, words: &[&str], folder: &Path, kept: &[&str]) {
    ended(output, 2, words, folder, kept);
}

#[track_caller]
fn ended(output: &Output, code: i32, words: &[&str], folder: &Path, kept: &[&str]) {
    let text = stderr(output);
    assert_eq!(output.status.code(), Some(code), "{text}");
    assert!(!text.contains("panicked"), "{text}");
    for word in words {
        assert!(text.contains(word), "no {word:?} in: {text}");
    }
    let lines: Vec<_> = text.lines().filter(|l| l.starts_with("error: ")).collect();
    assert_eq!(lines.len(), 1, "{text}");
    assert_eq!(names(folder), kept, "{text}");
}
