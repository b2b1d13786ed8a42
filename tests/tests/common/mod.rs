//! What the end-to-end tests share: the built programs, the fixtures, and pictures.
#![allow(dead_code, reason = "each test program uses its own part")]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// Returns the path of a program of this workspace, built with the tests' own profile.
pub fn program(name: &str) -> PathBuf {
    let test = std::env::current_exe().expect("a test has a path");
    let folder = test.ancestors().nth(2).expect("tests lie in `deps`, below the programs");
    let path = folder.join(name);
    assert!(
        path.exists(),
        "`{}` is not built: run `cargo build --release --workspace` first",
        path.display()
    );
    path
}

/// Returns the path of a file or folder of `tests/fixtures`.
pub fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures").join(name)
}

/// Returns the tiny model in the official layout.
pub fn tiny_model() -> PathBuf {
    fixture("tiny-a/official")
}

/// Writes a colourful picture of this size.
pub fn picture(path: &Path, width: u32, height: u32) {
    let pixel = |x: u32, y: u32| image::Rgb([(7 * x) as u8, (5 * y) as u8, (x * y / 16) as u8]);
    image::RgbImage::from_fn(width, height, pixel).save(path).expect("the picture is written");
}

/// Returns the names in a folder, including hidden ones, sorted.
pub fn names(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).expect("the folder is there");
    let mut names: Vec<String> =
        entries.map(|e| e.expect("an entry").file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

/// Runs a command to its end.
pub fn run(command: &mut Command) -> Output {
    command.output().unwrap_or_else(|e| panic!("cannot run {command:?}: {e}"))
}

/// Returns standard error as text.
pub fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Returns ffprobe's description of a file, as JSON.
pub fn ffprobe(file: &Path) -> serde_json::Value {
    let output = run(Command::new("ffprobe")
        .args(["-v", "error", "-count_frames", "-show_streams", "-show_format", "-of", "json"])
        .arg(file));
    assert!(output.status.success(), "ffprobe refuses {}: {}", file.display(), stderr(&output));
    serde_json::from_slice(&output.stdout).expect("ffprobe prints JSON")
}
