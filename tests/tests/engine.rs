//! `animd-engine` as a user runs it, on the tiny model.

mod common;

use std::ffi::OsStr;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use animd_protocol::messages::{FromEngine, Kernels, PROTOCOL, Pictures, ToEngine};
use animd_protocol::request::{Sampler, Settings};
use common::{ffprobe, fixture, names, picture, program, run, stderr, tiny_model};
use tempfile::TempDir;

/// Returns a folder with a picture in it.
fn scene() -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("cat.png");
    picture(&path, 120, 80);
    (folder, path)
}

/// Starts an engine that serves the tiny model, and returns it with this side of its socket.
fn serving() -> (Child, UnixStream) {
    let (ours, theirs) = UnixStream::pair().expect("a socket pair");
    let child = Command::new(program("animd-engine"))
        .args(["serve", "--model"])
        .arg(tiny_model())
        .stdin(std::os::fd::OwnedFd::from(theirs))
        .spawn()
        .unwrap_or_else(|e| panic!("cannot start: {e}"));
    (child, ours)
}

fn send(mut engine: &UnixStream, message: &ToEngine) {
    let line = serde_json::to_string(message).expect("plain data");
    writeln!(engine, "{line}").expect("it listens");
}

/// Returns what the engine says, message by message.
fn heard(engine: &UnixStream) -> impl Iterator<Item = FromEngine> {
    BufReader::new(engine)
        .lines()
        .map(|line| serde_json::from_str(&line.expect("it speaks")).expect("its language"))
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

#[test]
fn makes_a_video_that_players_open() {
    let (folder, image) = scene();
    let out = folder.path().join("cat.mp4");
    let output = run(&mut generate(&image, &out, &["-p", "the cat = turns;\nits #head \\ 猫", "--json"]));
    assert!(output.status.success(), "{}", stderr(&output));
    let said: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(said["report"]["frames"], 5);
    assert_eq!(said["report"]["forwards_computed"], 4);
    assert_eq!(said["report"]["seed"], 7);

    let found = ffprobe(&out);
    let stream = &found["streams"][0];
    for (key, value) in [
        ("codec_name", "h264"),
        ("pix_fmt", "yuv420p"),
        ("color_space", "bt709"),
        ("color_transfer", "bt709"),
        ("color_primaries", "bt709"),
        ("color_range", "tv"),
        ("r_frame_rate", "16/1"),
        ("nb_read_frames", "5"),
    ] {
        assert_eq!(stream[key], value, "{key}");
    }
    assert_eq!((&stream["width"], &stream["height"]), (&64.into(), &48.into()));
    let made: serde_json::Value =
        serde_json::from_str(found["format"]["tags"]["comment"].as_str().expect("a comment")).expect("JSON");
    assert_eq!(made["request"], said["request"]);
    assert_eq!(made["request"]["prompt"], "the cat = turns;\nits #head \\ 猫");
    assert_eq!(names(folder.path()), ["cat.mp4", "cat.png"]);
}

#[test]
fn a_poster_and_a_thumbnail_lie_beside_the_video() {
    let (folder, image) = scene();
    let [out, poster, thumbnail] = ["cat.mp4", "cat.jpg", "small.jpg"].map(|name| folder.path().join(name));
    let mut command = generate(&image, &out, &["-p", "x", "--size", "640x32"]);
    command.arg("--poster").arg(&poster).arg("--thumbnail").arg(&thumbnail);
    let output = run(&mut command);
    assert!(output.status.success(), "{}", stderr(&output));
    let size = |path: &Path| image::image_dimensions(path).expect("a picture");
    assert_eq!((size(&poster), size(&thumbnail)), ((640, 32), (512, 26)));
    // The thumbnails show the second of the five frames.
    let frame = folder.path().join("frame.png");
    let select = ["-v", "error", "-vf", "select=eq(n\\,1)", "-frames:v", "1"];
    let output = run(Command::new("ffmpeg").arg("-i").arg(&out).args(select).arg(&frame));
    assert!(output.status.success(), "{}", stderr(&output));
    let open = |path: &Path| image::open(path).expect("a picture").to_luma8();
    let far = |a: &image::GrayImage, b: &image::GrayImage| {
        let sum: u64 = a.iter().zip(b.iter()).map(|(a, b)| u64::from(a.abs_diff(*b))).sum();
        sum as f64 / a.len() as f64
    };
    let distance = far(&open(&poster), &open(&frame));
    assert!(distance < 6.0, "{distance} of 255 from the frame");

    std::fs::remove_file(&out).expect("a video");
    std::fs::remove_file(&frame).expect("a frame");
    let kept = ["cat.jpg", "cat.png", "small.jpg"];
    refused(&run(&mut command), &["cat.jpg", "exists"], folder.path(), &kept);
}

#[test]
fn a_parent_process_gets_pictures_and_previews() {
    let (folder, image) = scene();
    let path = |name: &str| Some(folder.path().join(name));
    let (mut child, ours) = serving();
    let send = |message: &ToEngine| send(&ours, message);
    send(&ToEngine::Hello { protocol: PROTOCOL, version: "test".into() });
    let settings = Settings {
        size: Some("64x48".parse().expect("a size")),
        frames: Some(9),
        sampler: Some(Sampler::Distill),
        ..Settings::default()
    };
    let pictures = Pictures { poster: path("p.jpg"), thumbnail: path("t.jpg"), preview: path("v.jpg") };
    send(&ToEngine::Generate {
        job: 3,
        loras: Vec::new(),
        last: None,
        parts: None,
        image,
        output: folder.path().join("out.part"),
        pictures,
        request: Box::new(settings.resolve(|| 1).expect("valid")),
    });
    let mut heard = heard(&ours);
    let hello = heard.next();
    assert!(
        matches!(&hello, Some(FromEngine::Hello { protocol: PROTOCOL, kernels, recipe: Some(_), .. })
            if *kernels == Kernels::default()),
        "{hello:?}"
    );
    let mut previews = Vec::new();
    loop {
        match heard.next().expect("it goes on") {
            FromEngine::Preview { job: 3, n } => previews.push(n),
            FromEngine::Done { job: 3, .. } => break,
            FromEngine::Failed { message, .. } => panic!("{message}"),
            _ => {}
        }
    }
    assert_eq!(previews.first(), Some(&1));
    let size = |name: &str| image::image_dimensions(folder.path().join(name)).expect("a picture");
    assert_eq!((size("p.jpg"), size("t.jpg"), size("v.jpg")), ((64, 48), (64, 48), (32, 24)));
    assert_eq!(names(folder.path()), ["cat.png", "out.part", "p.jpg", "t.jpg", "v.jpg"]);
    drop(heard);
    ours.shutdown(std::net::Shutdown::Both).expect("open");
    assert!(child.wait().expect("it ends").success());
}

#[test]
fn a_job_is_taken_while_the_file_of_the_one_before_is_finished() {
    let (folder, image) = scene();
    let (mut child, ours) = serving();
    let send = |message: &ToEngine| send(&ours, message);
    // The first file has so many pixels that the encoder is not done when the last frame is.
    let generate = |job: u64, size: &str| {
        let settings = Settings {
            size: Some(size.parse().expect("a size")),
            frames: Some(5),
            sampler: Some(Sampler::Distill),
            ..Settings::default()
        };
        send(&ToEngine::Generate {
            job,
            last: None,
            loras: Vec::new(),
            parts: None,
            image: image.clone(),
            output: folder.path().join(format!("{job}.part")),
            pictures: Pictures::default(),
            request: Box::new(settings.resolve(|| 1).expect("valid")),
        });
    };
    send(&ToEngine::Hello { protocol: PROTOCOL, version: "test".into() });
    generate(1, "256x256");
    let mut heard = heard(&ours);
    let (mut told, mut reports) = (Vec::new(), Vec::new());
    while reports.len() < 3 {
        match heard.next().expect("it goes on") {
            FromEngine::Saving { job } => {
                told.push((job, "saving"));
                match job {
                    1 => generate(2, "64x48"),
                    2 => generate(3, "64x48"),
                    _ => {}
                }
            }
            FromEngine::Done { job, report } => {
                told.push((job, "done"));
                assert!(report.seconds.iter().any(|(stage, _)| stage == "write"), "{report:?}");
                let written = folder.path().join(format!("{job}.part")).metadata().expect("a file").len();
                assert_eq!(report.bytes, written);
                reports.push(report);
            }
            FromEngine::Failed { job, message, .. } => panic!("{job}: {message}"),
            _ => {}
        }
    }
    let at = |what| told.iter().position(|told| *told == what).expect("it was told");
    for job in 1..=3 {
        assert!(at((job, "saving")) < at((job, "done")), "{told:?}");
        // A file is finished before the next one is.
        assert!(job == 1 || at((job - 1, "done")) < at((job, "saving")), "{told:?}");
    }
    drop(heard);
    ours.shutdown(std::net::Shutdown::Both).expect("open");
    assert!(child.wait().expect("it ends").success());
}

#[test]
fn the_same_seed_gives_the_same_file_and_another_seed_another() {
    let (folder, image) = scene();
    let make = |name: &str, more: &[&str]| {
        let out = folder.path().join(name);
        let output = run(&mut generate(&image, &out, more));
        assert!(output.status.success(), "{}", stderr(&output));
        let frames =
            run(Command::new("ffmpeg").args(["-v", "error", "-i"]).arg(&out).args(["-f", "md5", "-"]));
        String::from_utf8(frames.stdout).expect("a sum")
    };
    let first = make("1.mp4", &["-p", "a"]);
    assert_eq!(first, make("2.mp4", &["-p", "a"]));
    assert_ne!(first, make("3.mp4", &["-p", "a", "--seed", "8"]));
    assert_ne!(first, make("4.mp4", &["-p", "b"]));
    assert_ne!(first, make("5.mp4", &["-p", "a", "--noise", "cpu"]));
    assert_ne!(first, make("6.mp4", &["-p", "a", "--sampler", "distill-renoise"]));
}

#[test]
fn every_sampler_cache_and_tiling_runs() {
    let (folder, image) = scene();
    for (i, more) in [
        &["--sampler", "unipc", "--steps", "4"][..],
        &["--sampler", "unipc", "--steps", "1", "--guidance", "1"],
        &["--sampler", "unipc", "--steps", "8", "--step-cache", "magcache"],
        &["--sampler", "unipc", "--steps", "8", "--step-cache", "teacache", "--step-cache-threshold", "0.3"],
        &["--sampler", "unipc", "--steps", "8", "--step-cache", "teacache-ret"],
        &["--tiling", "tiled", "--size", "320x16"],
        &["--resize", "adaptive", "--size", "48x64", "--frames", "1"],
    ]
    .into_iter()
    .enumerate()
    {
        let out = folder.path().join(format!("{i}.mp4"));
        let given = |flag: &str| more.contains(&flag);
        let mut command = generate(&image, &out, more);
        let output = run(command.arg("--json"));
        assert!(output.status.success(), "{more:?}: {}", stderr(&output));
        let said: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
        let skipped = said["report"]["forwards_skipped"].as_u64().expect("a count");
        assert_eq!(skipped > 0, given("magcache") || given("teacache"), "{more:?}: {skipped} skipped");
    }
}

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
fn one_pixel_is_a_picture() {
    let (folder, image) = scene();
    picture(&image, 1, 1);
    let output = run(&mut generate(&image, &folder.path().join("out.mp4"), &["-p", "x"]));
    assert!(output.status.success(), "{}", stderr(&output));
}

#[test]
fn prompts_of_every_kind() {
    let (folder, image) = scene();
    let out = folder.path().join("out.mp4");
    let output = run(&mut generate(&image, &out, &["-p", ""]));
    assert!(output.status.success(), "an empty prompt: {}", stderr(&output));
    std::fs::remove_file(&out).expect("a video");

    let prompt = folder.path().join("prompt.txt");
    let mut from_file = generate(&image, &out, &[]);
    from_file.arg("--prompt-file").arg(&prompt);
    std::fs::write(&prompt, "long ".repeat(20_000)).expect("written");
    wrong_setting(
        &run(&mut from_file),
        &["100000 bytes", "16384"],
        folder.path(),
        &["cat.png", "prompt.txt"],
    );
    std::fs::write(&prompt, b"good \xff bad").expect("written");
    wrong_setting(&run(&mut from_file), &["UTF-8", "byte 5"], folder.path(), &["cat.png", "prompt.txt"]);
    // More than 512 tokens are cut, with a warning.
    std::fs::write(&prompt, "word ".repeat(2000)).expect("written");
    let output = run(&mut from_file);
    assert!(output.status.success() && stderr(&output).contains("the first 512"), "{}", stderr(&output));
    std::fs::remove_file(&out).expect("a video");

    let output = run(generate(&image, &out, &["-p"]).arg(OsStr::from_bytes(b"\xff\xfe")));
    assert_eq!(output.status.code(), Some(2), "{}", stderr(&output));
    assert!(stderr(&output).contains("UTF-8"), "{}", stderr(&output));
    assert_eq!(names(folder.path()), ["cat.png", "prompt.txt"]);
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

#[test]
fn the_quantised_layouts_run() {
    let (folder, image) = scene();
    for layout in ["lightx2v_fp8", "comfy_fp8"] {
        let out = folder.path().join(format!("{layout}.mp4"));
        let output = run(generate(&image, &out, &["-p", "x", "--dit"]).arg(fixture("tiny-a").join(layout)));
        assert!(output.status.success(), "{layout}: {}", stderr(&output));
    }
}

#[test]
fn a_made_up_model_is_inspected_and_runs() {
    let (folder, image) = scene();
    let model = folder.path().join("model");
    let engine = || Command::new(program("animd-engine"));
    let output = run(engine().arg("synth-model").arg(&model).args(["--size", "tiny"]));
    assert!(output.status.success(), "{}", stderr(&output));
    let output = run(engine().arg("inspect").arg(&model).arg("--json"));
    assert!(output.status.success(), "{}", stderr(&output));
    let found: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert!(found.to_string().contains("official"), "{found}");
    // Existing files are not overwritten.
    let output = run(engine().arg("synth-model").arg(&model).args(["--size", "tiny"]));
    assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));

    let out = folder.path().join("out.mp4");
    let output = run(generate(&image, &out, &["-p", "x", "--model"]).arg(&model));
    assert!(output.status.success(), "{}", stderr(&output));

    std::fs::remove_file(model.join("Wan2.1_VAE.pth")).expect("removed");
    let output = run(engine().arg("inspect").arg(&model));
    assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
}

#[test]
fn a_plan_says_what_fits() {
    let plan = |args: &[&str]| run(Command::new(program("animd-engine")).arg("plan").args(args));
    let output = plan(&["--size", "480p", "--vram", "48GiB"]);
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && text.contains("32760 tokens") && text.contains("fits"), "{text}");
    // What does not stay on a card passes through it; that, too, needs room.
    assert!(plan(&["--size", "480p", "--profile", "h200", "--vram", "24GB"]).status.success());
    let dir = tempfile::tempdir().unwrap();
    let own = include_str!("../../configs/h100.toml").replace("\ndit = \"int8\"", "\ndit = \"fp8\"");
    std::fs::write(dir.path().join("own.toml"), own.replace("name = \"h100\"", "name = \"own\"")).unwrap();
    let in_fp8 = dir.path().join("own.toml").to_string_lossy().into_owned();
    for (args, words) in [
        (&["--size", "480p", "--vram", "8GB"][..], &["needs", " GiB weights + ", "can be used: "][..]),
        (&["--size", "16384x16384", "--frames", "4093"], &["16384x16384 with 4093 frames needs", " fits"]),
        (&["--gpu", "rtx3060", "--host-memory", "8GB"], &["of the machine's memory", "can be used"]),
        (&["--gpu", "rtx3090", "--profile", &in_fp8], &["`fp8`", "8.6", "int8"]),
    ] {
        let output = plan(args);
        // A profile that the card cannot run is a wrong setting; too little memory is not.
        let code = if args.contains(&&*in_fp8) { 2 } else { 1 };
        assert_eq!(output.status.code(), Some(code), "{args:?}");
        assert!(words.iter().all(|w| stderr(&output).contains(w)), "{}", stderr(&output));
    }
    let output = plan(&["--gpu", "RTX 4090", "--size", "720p", "--sampler", "distill", "--json"]);
    let said: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(
        (&said["profile"], &said["gpu"], &said["fits"]),
        (&"rtx4090".into(), &"rtx4090".into(), &true.into())
    );
    let dit = &said["plan"]["memory"]["networks"][0];
    assert_eq!((&dit["place"], &dit["slots"]), (&"host".into(), &2.into()));
    assert!(
        said["prediction"]["seconds"].as_f64().is_some_and(|seconds| seconds > 50.0),
        "{}",
        said["prediction"]
    );
    assert_eq!(plan(&["--gpu", "rtx4091"]).status.code(), Some(2));

    // Another model and a custom profile.
    let folder = tempfile::tempdir().expect("a temporary folder");
    let profile = folder.path().join("mine.toml");
    let own = std::fs::read_to_string(fixture("../../configs/cpu.toml")).expect("it comes with animd");
    std::fs::write(&profile, own.replacen("\"cpu\"", "\"mine\"", 1)).expect("written");
    let path = profile.to_str().expect("a plain path");
    let model = tiny_model();
    let model = model.to_str().expect("a plain path");
    let output = plan(&["--model", model, "--profile", path, "--size", "64x48", "--frames", "5", "--json"]);
    assert!(output.status.success(), "{}", stderr(&output));
    let said: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!((&said["profile"], &said["plan"]["tokens"]), (&"mine".into(), &24.into()));
    assert_eq!(said["plan"]["forwards"]["computed"], 80);

    // What changes nothing is said, and what the family cannot do is refused as `generate` does.
    let remark = "there are no steps of `steps_base`, so `guidance_base` changes nothing";
    let idle = ["--family", "wan22", "--guidance-base", "2"];
    let output = plan(&[&idle[..], &["--json"]].concat());
    let said: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(said["remarks"], serde_json::json!([remark]));
    assert!(String::from_utf8_lossy(&plan(&idle).stdout).contains(remark));

    for (args, code, words) in [
        (&["--profile", "h2000"][..], 2, &["h2000", "h200"][..]),
        (&["--steps-base", "2"], 2, &["has one transformer", "`steps_base`"]),
        (&["--model", "/nonexistent"], 1, &["/nonexistent"]),
        (&["--frames", "80"], 2, &["`frames` must be 4n+1"]),
    ] {
        let output = plan(args);
        assert_eq!(output.status.code(), Some(code));
        assert!(words.iter().all(|w| stderr(&output).contains(w)), "{}", stderr(&output));
    }
    assert_eq!(plan(&["--vram", "24GHz"]).status.code(), Some(2));
    std::fs::write(&profile, own.replacen("kind = \"exact\"", "kind = \"7bit\"", 1)).expect("written");
    let output = plan(&["--profile", path]);
    assert!(stderr(&output).contains("mine.toml`, line"), "{}", stderr(&output));
}

#[test]
fn a_bench_of_a_made_up_model() {
    let bench = |args: &[&str]| {
        let tiny = ["bench", "--profile", "cpu", "--size", "64x48", "--frames", "5", "--runs", "2"];
        run(Command::new(program("animd-engine")).args(tiny).args(args))
    };
    let output =
        bench(&["--synthetic", "tiny", "--whole", "--rows", "distill,fp8-teacache,fp8-magcache", "--json"]);
    assert!(output.status.success(), "{}", stderr(&output));
    let said: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(
        (&said["tokens"], &said["model"], &said["backend"]),
        (&24.into(), &"made-up".into(), &"cpu".into())
    );
    let rows = said["rows"].as_array().expect("rows");
    let names: Vec<_> = rows.iter().map(|row| row["row"].as_str().unwrap_or_default()).collect();
    assert_eq!(names, ["distill", "fp8-teacache", "fp8-magcache"]);
    let forwards: Vec<_> =
        rows.iter().map(|row| (row["computed"].as_u64(), row["skipped"].as_u64())).collect();
    assert_eq!(forwards, [(Some(4), Some(0)), (Some(44), Some(36)), (Some(34), Some(46))]);
    for row in rows {
        let all = row["forward"]["all"].as_array().expect("runs");
        let (median, job) = (row["forward"]["median"].as_f64(), row["job"].as_f64());
        assert_eq!(all.len(), 2);
        assert!(median.is_some_and(|s| s > 0.0) && job > median, "{row}");
    }
    // `TeaCache` has nothing to base its decisions on, so no such job is measured.
    let measured: Vec<_> = rows.iter().map(|row| row["job_measured"].as_f64().is_some()).collect();
    assert_eq!(measured, [true, false, true]);
    assert!(said["notes"].to_string().contains("44 of 80"), "{said}");

    // The bench of an existing model, as a table.
    let model = tiny_model();
    let output =
        bench(&["--model", model.to_str().expect("a plain path"), "--rows", "bf16-exact,fp8-teacache"]);
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{}", stderr(&output));
    for word in ["bf16-exact", "fp8-teacache", "forward", "peak GiB", "64x48, 5 frames, 24 tokens"] {
        assert!(text.contains(word), "no {word:?} in {text}");
    }
    assert!(!text.contains("nothing to decide by"), "{text}");

    for (args, status, word) in [
        (&["--synthetic", "tiny", "--rows", "fp7"][..], 2, "fp7"),
        (&["--synthetic", "tiny", "--model", "/nonexistent"], 2, "--model"),
        (&["--model", "/nonexistent"], 1, "/nonexistent"),
        (&["--synthetic", "tiny", "--profile", "h2000"], 2, "h2000"),
    ] {
        let output = bench(args);
        assert_eq!(output.status.code(), Some(status), "{}", stderr(&output));
        assert!(stderr(&output).contains(word), "{}", stderr(&output));
    }
}

#[test]
fn a_selftest_without_a_gpu_is_a_sentence() {
    let output = run(Command::new(program("animd-engine")).arg("selftest"));
    let errors = stderr(&output);
    assert_eq!(output.status.code(), Some(1), "{errors}");
    assert!(
        errors.starts_with("error: ") && errors.lines().count() == 1 && errors.contains("GPU"),
        "{errors}"
    );
}

#[test]
fn help_has_an_example_for_every_command() {
    for command in ["generate", "inspect", "plan", "bench", "selftest", "synth-model", "prepare", "cache"] {
        let output = run(Command::new(program("animd-engine")).args([command, "--help"]));
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(
            output.status.success() && text.contains("Example") && text.contains("animd-engine"),
            "{text}"
        );
    }
    // A reader that goes away is not an error.
    let mut child = Command::new(program("animd-engine"))
        .args(["inspect", "--json"])
        .arg(tiny_model())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|e| panic!("cannot start: {e}"));
    drop(child.stdout.take());
    let output = child.wait_with_output().expect("it ends");
    assert!(output.status.success(), "{}", stderr(&output));
    let _ = std::io::stderr().flush();
}

#[test]
fn prepared_copies_are_shown_limited_and_cleared() {
    let folder = tempfile::tempdir().expect("a folder");
    let (model, cache) = (folder.path().join("tiny"), folder.path().join("cache"));
    let engine =
        |args: &[&str]| run(Command::new(program("animd-engine")).args(args).env("CACHE_DIRECTORY", &cache));
    let json = |args: &[&str]| {
        let output = engine(args);
        assert!(output.status.success(), "{args:?}: {}", stderr(&output));
        serde_json::from_slice::<serde_json::Value>(&output.stdout).expect("JSON")
    };
    let path = model.to_str().expect("UTF-8");
    assert!(engine(&["synth-model", path, "--size", "tiny"]).status.success());
    let none = json(&["cache", "--json"]);
    assert_eq!((&none["bytes"], &none["copies"]), (&0.into(), &serde_json::json!([])));
    assert!(!cache.exists(), "looking makes nothing");
    let made = json(&["prepare", path, "--precision", "fp8", "--json"]);
    let listed = json(&["cache", "--json"]);
    let copy = &listed["copies"][0];
    assert_eq!(
        (&copy["precision"], &copy["state"], &copy["in_use"]),
        (&"fp8".into(), &"current".into(), &false.into())
    );
    assert!(
        made[0]["folder"].as_str().is_some_and(|made| made.ends_with(copy["name"].as_str().unwrap_or("?")))
    );
    assert_eq!(listed["limit"], 64u64 << 30);
    let shown = String::from_utf8_lossy(&engine(&["cache"]).stdout).into_owned();
    assert!(shown.contains("of 64 GiB") && shown.contains("last used just now"), "{shown}");
    assert_eq!(json(&["cache", "--limit", "1", "--json"])["dropped"], serde_json::json!([]));
    let refused = engine(&["cache", "--clear", "other"]);
    assert!(
        refused.status.code() == Some(2) && stderr(&refused).contains("no prepared copy"),
        "{}",
        stderr(&refused)
    );
    let cleared = json(&["cache", "--clear", "--json"]);
    assert_eq!((&cleared["dropped"][0]["name"], &cleared["copies"]), (&copy["name"], &serde_json::json!([])));
}
