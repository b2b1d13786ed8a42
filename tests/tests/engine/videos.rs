//! The videos that `generate` makes.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::process::Command;

use super::common::{ffprobe, fixture, names, picture, run, stderr};
use super::{generate, refused, scene, wrong_setting};

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
fn the_quantised_layouts_run() {
    let (folder, image) = scene();
    for layout in ["lightx2v_fp8", "comfy_fp8"] {
        let out = folder.path().join(format!("{layout}.mp4"));
        let output = run(generate(&image, &out, &["-p", "x", "--dit"]).arg(fixture("tiny-a").join(layout)));
        assert!(output.status.success(), "{layout}: {}", stderr(&output));
    }
}
