//! With the feature `cuda`: compiles each kernel under `cuda/` into one fatbin of its own in `OUT_DIR`, for
//! `src/cuda/module.rs` to embed. Without the feature it does nothing and needs no nvcc.
//!
//! With the feature `emulator`: compiles the same kernels with the host's C++ compiler into a library that stands for
//! NVIDIA's driver, `OUT_DIR/emulator/libcuda.so.1`. In that case only the kernels' names are embedded.

use std::env;
use std::error::Error;
use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::SystemTime;

#[path = "src/code.rs"]
mod code;
#[path = "emulator/build.rs"]
mod emulator;

use code::{FOLDERS, Folder};

/// Returns the targets of a folder, as nvcc's option `-gencode` names them.
fn targets(folder: &Folder) -> Vec<String> {
    let suffix = if folder.only { "a" } else { "" };
    let native = folder.native.iter().map(|(major, minor)| {
        let target = format!("{major}{minor}{suffix}");
        format!("arch=compute_{target},code=sm_{target}")
    });
    let ptx = folder.ptx.iter().map(|(major, minor)| {
        let target = format!("{major}{minor}");
        format!("arch=compute_{target},code=compute_{target}")
    });
    native.chain(ptx).collect()
}

const MISSING: &str = "the feature `cuda` of animd-kernels needs nvcc 12.8 or newer: run `packaging/cuda-toolchain.sh`, \
                       or set `CUDA_HOME`, or put nvcc on `PATH`";

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=src/code.rs");
    if env::var_os("CARGO_FEATURE_CUDA").is_none() {
        return Ok(());
    }
    println!("cargo::rerun-if-changed=cuda");
    println!("cargo::rerun-if-env-changed=CUDA_HOME");
    println!("cargo::rerun-if-env-changed=PATH");
    let out = PathBuf::from(env::var("OUT_DIR")?);
    if env::var_os("CARGO_FEATURE_EMULATOR").is_some() {
        return emulator::build(&out);
    }
    let Some(nvcc) = find_nvcc(&PathBuf::from(env::var("CARGO_MANIFEST_DIR")?)) else {
        println!("cargo::error={MISSING}");
        return Ok(());
    };

    println!("cargo::rustc-env=ANIMD_CUDA_MAJOR={}", major(&nvcc)?);
    let mut jobs = Vec::new();
    let common = newest(&[&nvcc, Path::new("build.rs"), Path::new("src/code.rs")], headers()?)?;
    for folder in &FOLDERS {
        let to = out.join(folder.name);
        fs::create_dir_all(&to)?;
        let sources = Path::new("cuda").join(folder.name);
        for source in files(&sources, "cu")? {
            let fatbin =
                to.join(source.file_name().ok_or("a kernel without a name")?).with_extension("fatbin");
            let changed = newest(&[&source], Vec::new())?.max(common);
            if fs::metadata(&fatbin).and_then(|m| m.modified()).is_ok_and(|built| built > changed) {
                continue;
            }
            jobs.push((source, fatbin, targets(folder)));
        }
    }

    side_by_side(jobs, |(source, fatbin, targets)| compile(&nvcc, &source, &fatbin, &targets))
}

/// Does all jobs, as many at a time as cargo allows, and reports each that fails.
fn side_by_side<T: Send>(
    jobs: Vec<T>,
    work: impl Fn(T) -> Result<(), String> + Sync,
) -> Result<(), Box<dyn Error>> {
    let threads = env::var("NUM_JOBS").ok().and_then(|n| n.parse().ok()).unwrap_or(1);
    let (jobs, failed) = (Mutex::new(jobs), AtomicBool::new(false));
    thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let job = jobs.lock().ok().and_then(|mut jobs| jobs.pop());
                    let Some(job) = job else { break };
                    if let Err(message) = work(job) {
                        println!("cargo::error={}", message.replace('\n', " | "));
                        failed.store(true, Ordering::Relaxed);
                    }
                }
            });
        }
    });
    if failed.load(Ordering::Relaxed) { Err("a kernel does not compile".into()) } else { Ok(()) }
}

fn find_nvcc(manifest: &Path) -> Option<PathBuf> {
    let name = format!("nvcc{}", env::consts::EXE_SUFFIX);
    let home = env::var_os("CUDA_HOME").map(|home| PathBuf::from(home).join("bin"));
    let path = env::var_os("PATH").unwrap_or_default();
    let toolchain = manifest.join("../.cuda/nvidia/cu13/bin");
    home.into_iter()
        .chain(env::split_paths(&path))
        .chain([toolchain])
        .map(|folder| folder.join(&name))
        .find(|nvcc| nvcc.is_file())
}

/// Returns the major version of CUDA of this nvcc: a driver runs code of its own major version or an older one.
fn major(nvcc: &Path) -> Result<u32, Box<dyn Error>> {
    let output = Command::new(nvcc).arg("--version").output()?;
    let text = String::from_utf8_lossy(&output.stdout);
    let version = text.split("release ").nth(1).and_then(|rest| rest.split('.').next());
    Ok(version.ok_or("`nvcc --version` says no release")?.parse()?)
}

fn files(folder: &Path, extension: &str) -> Result<Vec<PathBuf>, Box<dyn Error>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.extension() == Some(OsStr::new(extension)) {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

/// Returns the headers of all kernels.
fn headers() -> Result<Vec<PathBuf>, Box<dyn Error>> {
    let mut headers = files(Path::new("cuda/instructions"), "cuh")?;
    for folder in &FOLDERS {
        headers.extend(files(&Path::new("cuda").join(folder.name), "cuh")?);
    }
    Ok(headers)
}

fn newest(some: &[&Path], more: Vec<PathBuf>) -> Result<SystemTime, Box<dyn Error>> {
    let mut newest = SystemTime::UNIX_EPOCH;
    for path in some.iter().map(|p| p.to_path_buf()).chain(more) {
        newest = newest.max(fs::metadata(path)?.modified()?);
    }
    Ok(newest)
}

fn compile(nvcc: &Path, source: &Path, fatbin: &Path, targets: &[String]) -> Result<(), String> {
    let partial = fatbin.with_extension("part");
    let output = Command::new(nvcc)
        .args(["-std=c++17", "-O3", "-I", "cuda", "-fatbin"])
        .args(targets.iter().flat_map(|target| ["-gencode", target.as_str()]))
        .arg("-o")
        .arg(&partial)
        .arg(source)
        .output()
        .map_err(|e| format!("cannot run `{}`: {e}", nvcc.display()))?;
    if !output.status.success() {
        return Err(format!("{}: {}", source.display(), String::from_utf8_lossy(&output.stderr)));
    }
    fs::rename(&partial, fatbin).map_err(|e| format!("cannot write `{}`: {e}", fatbin.display()))
}
