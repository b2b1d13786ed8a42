//! What cannot be used gets a sentence, and leaves nothing behind.

use std::ffi::OsStr;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use super::common::{names, picture, program, run, stderr, tiny_model};
use super::{generate, refused, scene, wrong_setting};

#[test]
fn pictures_that_cannot_be_used_get_a_sentence() {
    let (folder, image) = scene();
    let whole = std::fs::read(&image).expect("the picture");
    let path = folder.path().join("wide.png");
    picture(&path, 40_000, 3);
    let wide = std::fs::read(&path).expect("the picture");
    std::fs::remove_file(&path).expect("it is removed");
    let mut heic = vec![0, 0, 0, 24];
    heic.extend_from_slice(b"ftypheic\0\0\0\0mif1heic");
    let bad = folder.path().join("bad.png");
    for (bytes, words) in [
        (&b"hello, this is text"[..], &["bad.png"][..]),
        (b"", &["bad.png", "empty"]),
        (&whole[..whole.len() / 2], &["bad.png"]),
        (&whole[..20], &["bad.png"]),
        (&wide, &["bad.png", "40000", "32768"]),
        (&heic, &["HEIC", "JPEG"]),
    ] {
        std::fs::write(&bad, bytes).expect("the file is written");
        let output = run(&mut generate(&bad, &folder.path().join("out.mp4"), &["-p", "x"]));
        refused(&output, words, folder.path(), &["bad.png", "cat.png"]);
    }
    std::fs::remove_file(&bad).expect("it is removed");
    for image in [folder.path(), &folder.path().join("missing.png")] {
        let output = run(&mut generate(image, &folder.path().join("out.mp4"), &["-p", "x"]));
        refused(&output, &[], folder.path(), &["cat.png"]);
    }
    // A picture one pixel high cannot be fitted to any video size.
    let strip = folder.path().join("strip.png");
    picture(&strip, 20_000, 1);
    let output = Command::new(program("animd-engine"))
        .args(["generate", "-p", "x", "--size", "480p", "--model"])
        .args([tiny_model().as_os_str(), OsStr::new("--out")])
        .args([&folder.path().join("out.mp4"), &strip])
        .output()
        .expect("it runs");
    refused(&output, &["20000"], folder.path(), &["cat.png", "strip.png"]);
}

#[test]
fn settings_out_of_range_are_named() {
    let (folder, image) = scene();
    for (more, words) in [
        (&["--frames", "80"][..], &["`frames` must be 4n+1", "81"][..]),
        (&["--quality", "52"], &["`quality` must be a whole number from 1 to 51, not 52"]),
        (&["--guidance", "NaN"], &["`guidance` must be a number from 0 to 100, not NaN"]),
        (&["--steps", "9"], &["`steps` must be from 1 to 8", "not 9"]),
        (&["--step-cache", "magcache"], &["`step_cache` saves nothing"]),
    ] {
        let mut command = Command::new(program("animd-engine"));
        command.arg("generate").arg(&image).arg("--out").arg(folder.path().join("out.mp4"));
        command.arg("--model").arg(tiny_model()).args(["--sampler", "distill", "--size", "64x48"]).args(more);
        wrong_setting(&run(&mut command), words, folder.path(), &["cat.png"]);
    }
    let output = run(Command::new(program("animd-engine")).args(["generate", "x.png", "--size", "100x100"]));
    assert!(
        stderr(&output).contains("multiple of 16") && stderr(&output).contains("96"),
        "{}",
        stderr(&output)
    );
}

#[test]
fn an_existing_video_and_an_unwritable_folder_are_left_alone() {
    let (folder, image) = scene();
    let out = folder.path().join("out.mp4");
    std::fs::write(&out, "mine").expect("written");
    let output = run(&mut generate(&image, &out, &["-p", "x"]));
    refused(&output, &["out.mp4", "exists"], folder.path(), &["cat.png", "out.mp4"]);
    assert_eq!(std::fs::read(&out).expect("still there"), b"mine");
    // A file where a folder should be; permission bits do not bind root, under which tests may run.
    let output = run(&mut generate(&image, &out.join("video.mp4"), &["-p", "x"]));
    refused(&output, &["out.mp4"], folder.path(), &["cat.png", "out.mp4"]);
    let output = run(&mut generate(&image, Path::new("/proc/video.mp4"), &["-p", "x"]));
    refused(&output, &["/proc"], folder.path(), &["cat.png", "out.mp4"]);
}

#[test]
fn a_full_disk_gets_a_sentence_and_leaves_nothing() {
    let (folder, image) = scene();
    // A limit on the size of files stands for a full disk: it needs no rights, and fails the same write.
    let command =
        generate(&image, &folder.path().join("out.mp4"), &["-p", "x", "--size", "320x192", "--quality", "1"]);
    let mut limited = Command::new("sh");
    limited
        .args(["-c", "ulimit -f 8; exec \"$0\" \"$@\""])
        .arg(command.get_program())
        .args(command.get_args());
    refused(&run(&mut limited), &["out.mp4"], folder.path(), &["cat.png"]);
}

#[test]
fn model_folders_that_cannot_be_used_get_a_sentence() {
    let (folder, image) = scene();
    let out = folder.path().join("out.mp4");
    let models = tempfile::tempdir().expect("a temporary folder");
    let with_model = |model: &Path| {
        let mut command = Command::new(program("animd-engine"));
        command
            .arg("generate")
            .arg(&image)
            .arg("--out")
            .arg(&out)
            .arg("--model")
            .arg(model)
            .args(["-p", "x"]);
        run(&mut command)
    };
    refused(&with_model(models.path()), &[&models.path().display().to_string()], folder.path(), &["cat.png"]);
    refused(&with_model(&models.path().join("none")), &["none"], folder.path(), &["cat.png"]);
    refused(&with_model(&image), &["cat.png"], folder.path(), &["cat.png"]);

    let copy = |name: &str| {
        let to = models.path().join(name);
        let status = Command::new("cp").arg("-r").arg(tiny_model()).arg(&to).status().expect("cp");
        assert!(status.success());
        to
    };
    // The model is half-copied: the DiT's file ends early; then a part is missing altogether.
    let half = copy("half");
    let dit = half.join("diffusion_pytorch_model.safetensors");
    let length = std::fs::metadata(&dit).expect("it is there").len();
    std::fs::File::options().write(true).open(&dit).and_then(|f| f.set_len(length / 2)).expect("truncated");
    refused(&with_model(&half), &["diffusion_pytorch_model.safetensors"], folder.path(), &["cat.png"]);
    let part = copy("part");
    std::fs::remove_file(part.join("Wan2.1_VAE.pth")).expect("removed");
    refused(&with_model(&part), &["VAE"], folder.path(), &["cat.png"]);
    // Another model: a text-to-video DiT takes no picture beside its noise.
    let other = copy("other");
    let config = std::fs::read_to_string(other.join("config.json")).expect("read");
    let config = config.replace("\"i2v\"", "\"t2v\"").replace("\"in_dim\": 36", "\"in_dim\": 16");
    std::fs::write(other.join("config.json"), config).expect("written");
    refused(&with_model(&other), &["t2v"], folder.path(), &["cat.png"]);
}

#[test]
fn ctrl_c_leaves_nothing_behind() {
    let (folder, image) = scene();
    let mut command = generate(&image, &folder.path().join("out.mp4"), &["-p", "x"]);
    let mut child = command
        .args(["--sampler", "unipc", "--steps", "1000"])
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|e| panic!("cannot start: {e}"));
    let started = Instant::now();
    while !names(folder.path()).iter().any(|n| Path::new(n).extension().is_some_and(|e| e == "part")) {
        assert!(started.elapsed() < Duration::from_secs(60), "it never began to write");
        std::thread::sleep(Duration::from_millis(10));
    }
    std::thread::sleep(Duration::from_millis(300));
    let pid = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(pid, rustix::process::Signal::INT).expect("it still runs");
    let status = child.wait().expect("it ends");
    assert_eq!(status.code(), Some(130));
    assert_eq!(names(folder.path()), ["cat.png"]);
}
