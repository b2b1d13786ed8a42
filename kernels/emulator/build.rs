//! Builds the emulator and the kernels for it.

use std::env;
use std::error::Error;
use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::{FOLDERS, files, headers, newest, side_by_side};

/// Builds the kernels and the emulator as one shared library.
pub fn build(out: &Path) -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=emulator");
    println!("cargo::rerun-if-env-changed=CXX");
    println!("cargo::rustc-env=ANIMD_CUDA_MAJOR=13");
    let compiler = env::var_os("CXX").unwrap_or_else(|| "c++".into());
    let home = PathBuf::from(env::var("CARGO_MANIFEST_DIR")?);
    let folder = out.join("emulator");
    fs::create_dir_all(&folder)?;

    let mut all = headers()?;
    all.extend(files(Path::new("emulator"), "h")?);
    all.extend(files(Path::new("emulator/include"), "h")?);
    all.extend(files(Path::new("emulator/include/instructions"), "cuh")?);
    let common = newest(&[Path::new("build.rs"), Path::new("emulator/build.rs")], all)?;
    let (mut jobs, mut objects) = (Vec::new(), Vec::new());
    let mut sources = files(Path::new("emulator"), "cpp")?;
    for folder in &FOLDERS {
        fs::create_dir_all(out.join(folder.name))?;
        sources.extend(files(&Path::new("cuda").join(folder.name), "cu")?);
    }
    for source in sources {
        let (parent, name) = parent_and_name(&source)?;
        let object = folder.join(format!("{parent}-{name}.o"));
        if source.extension() == Some(OsStr::new("cu")) {
            let image = out.join(parent).join(name).with_extension("fatbin");
            fs::write(image, format!("emulated:{parent}/{name}\0"))?;
        }
        let changed = newest(&[&source], Vec::new())?.max(common);
        if !fs::metadata(&object).and_then(|m| m.modified()).is_ok_and(|built| built > changed) {
            jobs.push((home.join(&source), object.clone()));
        }
        objects.push(object);
    }
    side_by_side(jobs, |(source, object)| compile_for_host(&compiler, &home, &source, &object))?;
    let mut link = Command::new(&compiler);
    // This is the first of the names by which programs look for the driver.
    link.args(["-shared", "-Wl,-soname,libcuda.so"]).arg("-o").arg(folder.join("libcuda.so.1")).args(objects);
    run(&mut link).map(|_| ()).map_err(Into::into)
}

/// Compiles kernels with a table of their names behind them; the names come from the preprocessed source.
fn compile_for_host(compiler: &OsStr, home: &Path, source: &Path, object: &Path) -> Result<(), String> {
    let mut flags =
        vec!["-std=c++17", "-O3", "-fPIC", "-fvisibility=hidden", "-U_FORTIFY_SOURCE", "-Wall", "-Wextra"];
    flags.extend(["-Wno-unknown-pragmas", "-Wno-unused-variable", "-Wno-maybe-uninitialized", "-Wno-psabi"]);
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
        // nvcc, too, makes one operation of a product and a sum.
        flags.extend(["-mavx2", "-mfma"]);
    }
    let command = || {
        let mut command = Command::new(compiler);
        command.args(&flags).arg("-I").arg(home.join("emulator/include")).args(["-x", "c++"]);
        command
    };
    let partial = object.with_extension("part");
    let mut input = source.to_path_buf();
    let mut checks = [].as_slice();
    if source.extension() == Some(OsStr::new("cu")) {
        // These checks trap on what a GPU would refuse or silently do; `machine.cpp` catches the trap.
        checks = &[
            "-fsanitize=alignment,bounds,shift,signed-integer-overflow,integer-divide-by-zero,float-cast-overflow",
            "-fsanitize-undefined-trap-on-error",
        ];
        let text =
            run(command().args(["-E", "-P", "-DEMULATED_NAMES", "-include", "cuda_runtime.h"]).arg(source))?;
        let (parent, name) = parent_and_name(source)?;
        // Kernels of two folders can have the same name.
        let kernels = kernels_of(&text)?;
        let names = kernels.iter().map(|k| format!("#define {0} {parent}_{0}", k.name));
        let table = kernels.iter().map(|Kernel { name: kernel, cluster, threads }| {
            format!("EMULATED_KERNEL(\"{parent}/{name}\", {kernel}, ({cluster}), ({threads}))")
        });
        let runtime = "#include \"cuda_runtime.h\"".to_owned();
        let kernel = format!("#include \"{}\"", source.display());
        let lines: Vec<String> = [runtime].into_iter().chain(names).chain([kernel]).chain(table).collect();
        let wrapper = lines.join("\n") + "\n";
        input = object.with_extension("cpp");
        fs::write(&input, wrapper).map_err(|e| format!("cannot write `{}`: {e}", input.display()))?;
    }
    run(command().args(checks).arg("-c").arg("-o").arg(&partial).arg(&input))?;
    fs::rename(&partial, object).map_err(|e| format!("cannot write `{}`: {e}", object.display()))
}

/// Returns the folder and the name, without its extension, of a source.
fn parent_and_name(source: &Path) -> Result<(&str, &str), String> {
    let parent = source.parent().and_then(Path::file_name).and_then(OsStr::to_str);
    let name = source.file_stem().and_then(OsStr::to_str);
    parent.zip(name).ok_or_else(|| format!("`{}` has no usable name", source.display()))
}

/// A kernel's name, blocks of a cluster and most threads of a block, the last two as its source says them.
struct Kernel<'a> {
    name: &'a str,
    cluster: &'a str,
    threads: &'a str,
}

/// Returns the kernels of a preprocessed source, in which `__global__` and its like have been left as they are.
fn kernels_of(text: &str) -> Result<Vec<Kernel<'_>>, String> {
    text.split("extern \"C\" __global__ void")
        .skip(1)
        .map(|rest| {
            let mut kernel = Kernel { name: "", cluster: "1", threads: "1024" };
            let mut rest = rest.trim_start();
            loop {
                let end = rest.find('(').ok_or("a kernel without parameters")?;
                let word = rest[..end].trim();
                let arguments = balanced(&rest[end..]).ok_or("a parenthesis is missing")?;
                let first = first_argument(&arguments[1..arguments.len() - 1]);
                match word {
                    "__launch_bounds__" => kernel.threads = first,
                    "__cluster_dims__" => kernel.cluster = first,
                    name => {
                        kernel.name = name;
                        return Ok(kernel);
                    }
                }
                rest = rest[end + arguments.len()..].trim_start();
            }
        })
        .collect()
}

/// Returns the text from an opening parenthesis to the one that closes it.
fn balanced(text: &str) -> Option<&str> {
    let mut depth = 0;
    let end = text.find(|c| {
        depth += match c {
            '(' => 1,
            ')' => -1,
            _ => 0,
        };
        depth == 0
    })?;
    Some(&text[..=end])
}

/// Returns the text up to the first comma that is not within parentheses or angle brackets.
fn first_argument(text: &str) -> &str {
    let mut depth = 0;
    let end = text.find(|c| {
        depth += match c {
            '(' | '<' => 1,
            ')' | '>' => -1,
            _ => 0,
        };
        c == ',' && depth == 0
    });
    text[..end.unwrap_or(text.len())].trim()
}

fn run(command: &mut Command) -> Result<String, String> {
    let output = command.output().map_err(|e| format!("cannot run {command:?}: {e}"))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    Err(format!("{command:?}: {}", String::from_utf8_lossy(&output.stderr)))
}
