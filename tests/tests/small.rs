//! The service with the packaged small model: a video begins with its picture and moves as the prompt says.
//!
//! Random weights can show that every part is called; only a model that has learned something can show that the picture
//! and the prompt reach it.

mod common;
#[path = "live/harness.rs"]
#[allow(dead_code, clippy::unwrap_used, reason = "a part of it is enough here, and a test may panic")]
mod harness;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread::sleep;
use std::time::{Duration, Instant};

use common::{run, stderr};
use harness::House;

const WIDTH: usize = 320;
const HEIGHT: usize = 192;
const FRAMES: usize = 81;
/// How far the picture's content moves within a video in which the camera pans, in pixels: what the model was trained for.
const PAN: i32 = 48;
/// The least likeness of a video's first frame and its picture, in dB. The model's mean over other photographs is 29.5 and its
/// least 23.8; a frame that has nothing of the picture but its mean colours has less than 15.
const LEAST_LIKENESS: f64 = 22.0;
/// How long the two videos may take; they took 68 s on two cores that had other work to do.
const PATIENCE: Duration = Duration::from_secs(900);

/// Returns a path below `packaging`.
fn packaging(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../packaging").join(name)
}

/// Runs ffmpeg with these arguments and returns what it writes to standard output.
fn ffmpeg(arguments: &[&str]) -> Vec<u8> {
    let output = run(Command::new("ffmpeg").args(["-v", "error"]).args(arguments));
    assert!(output.status.success(), "ffmpeg {arguments:?}: {}", stderr(&output));
    output.stdout
}

/// Returns the green values of a picture's or video's frames, `[frames, HEIGHT, WIDTH]`: most of the brightness, in full range.
fn green(file: &Path) -> Vec<u8> {
    let file = file.to_str().expect("the path is text");
    let pixels = ffmpeg(&["-i", file, "-f", "rawvideo", "-pix_fmt", "rgb24", "-"]);
    pixels.chunks_exact(3).map(|pixel| pixel[1]).collect()
}

/// Returns the ratio of the largest value to the mean difference of two frames, in dB.
fn psnr(a: &[u8], b: &[u8]) -> f64 {
    let squares: f64 = a.iter().zip(b).map(|(&a, &b)| f64::from(a.abs_diff(b)).powi(2)).sum();
    10.0 * (255.0 * 255.0 * a.len() as f64 / squares).log10()
}

/// Returns the mean difference of a frame and the picture moved right by `shift` pixels, where both have something to show.
fn difference(frame: &[u8], picture: &[u8], shift: i32) -> f64 {
    let (mut sum, mut count) = (0.0, 0.0);
    for row in 0..HEIGHT {
        for column in 0..WIDTH {
            let Some(from) = column.checked_add_signed(-shift as isize).filter(|&from| from < WIDTH) else {
                continue;
            };
            sum += f64::from(frame[row * WIDTH + column].abs_diff(picture[row * WIDTH + from]));
            count += 1.0;
        }
    }
    sum / count
}

/// Returns by how many pixels the picture lies further right in a frame, up to twice [`PAN`].
fn shift(frame: &[u8], picture: &[u8]) -> i32 {
    let difference = |shift: &i32| difference(frame, picture, *shift);
    (-2 * PAN..=2 * PAN).min_by(|a, b| difference(a).total_cmp(&difference(b))).expect("there are shifts")
}

#[test]
fn a_video_begins_with_its_picture_and_moves_as_the_prompt_says() {
    // Its size, frames and sampler are in the model's own file.
    let mut house = House::new("[defaults]\nseed = 7\nquality = 10\n");
    house.use_real_engine(&packaging("small-model/files"));
    house.start();
    // Two pictures that differ: the upper part of the photograph, and its lower part, mirrored.
    let photo = packaging("demo/photo.jpg");
    let photo = photo.to_str().expect("the path is text");
    let cases = [
        ("upper", "scale=320:-2,crop=320:192:0:0", "Slow pan to the left.", PAN),
        ("lower", "scale=320:-2,crop=320:192:0:20,hflip", "Slow pan to the right.", -PAN),
    ];
    for (name, filter, prompt, _) in cases {
        let fresh = house.path(&format!("{name}.png"));
        ffmpeg(&["-i", photo, "-vf", filter, fresh.to_str().expect("the path is text")]);
        std::fs::write(house.path("inbox").join(format!("{name}.txt")), prompt).expect("written");
        std::fs::copy(&fresh, house.path("inbox").join(format!("{name}.png"))).expect("copied");
    }
    let started = Instant::now();
    while house.number("SELECT count(*) FROM job WHERE state IN ('done', 'failed')") != Some(2) {
        assert!(started.elapsed() < PATIENCE, "no videos after {PATIENCE:?}");
        sleep(Duration::from_millis(100));
    }
    for (name, _, prompt, expected) in cases {
        let picture = green(&house.path(&format!("{name}.png")));
        let frames = green(&house.path(&format!("outbox/{name}-7.mp4")));
        assert_eq!(frames.len(), FRAMES * WIDTH * HEIGHT, "{name}");
        let (first, last) = (&frames[..WIDTH * HEIGHT], &frames[(FRAMES - 1) * WIDTH * HEIGHT..]);
        let (likeness, moved) = (psnr(first, &picture), shift(last, &picture));
        println!("{name}: {prompt} first frame {likeness:.1} dB, moved {moved} pixels");
        assert!(likeness >= LEAST_LIKENESS, "{name}: the first frame has {likeness:.1} dB of the picture");
        assert!((moved - expected).abs() <= PAN / 2, "{name}: {prompt} moved {moved} pixels, not {expected}");
    }
}

/// Copies the small model and cuts its transformer in half.
fn torn_model(to: &Path) {
    let from = packaging("small-model/files");
    let copied = run(Command::new("cp").arg("-r").arg(from).arg(to));
    assert!(copied.status.success(), "{}", stderr(&copied));
    let transformer = to.join("diffusion_pytorch_model.safetensors");
    let file = std::fs::OpenOptions::new().write(true).open(transformer).expect("it was copied");
    file.set_len(file.metadata().expect("readable").len() / 2).expect("cut");
}

#[test]
fn a_demo_says_what_it_is_and_takes_nobodys_place() {
    let mut house = House::new("");
    house.install_small_model();
    torn_model(&house.path("torn"));
    house.use_real_engine(&house.path("torn"));
    house.start();
    std::fs::copy(packaging("demo/photo.jpg"), house.path("inbox/photo.jpg")).expect("copied");
    let waits = |house: &House| {
        let status = house.json(&["status"]);
        let text = status["state_text"].as_str().unwrap_or_default().to_owned();
        status["state"] == "no-weights" && text.contains("torn") && text.contains("`animctl demo`")
    };
    house.until("the state says what is wrong", waits);
    let video = house.path("demo.mp4");
    let demo = house.animctl(&["demo", "-p", "Slow pan to the left.", "-o", video.to_str().expect("text")]);
    assert!(demo.status.success(), "{}", stderr(&demo));
    assert_eq!(green(&video).len(), FRAMES * WIDTH * HEIGHT);
    let probe = ["-v", "error", "-show_entries", "format_tags=comment", "-of", "default=nk=1:nw=1"];
    let comment = run(Command::new("ffprobe").args(probe).arg(&video)).stdout;
    let comment: serde_json::Value = serde_json::from_slice(&comment).expect("the comment is JSON");
    assert_eq!((&comment["model"], &comment["request"]["model"]), (&"small".into(), &"small".into()));
    let about = comment["about"].as_str().unwrap_or_default();
    assert!(about.contains("small model of animd") && about.contains("no measure of Wan 14B"), "{about}");
    house.until("the configured model is still broken", waits);
    assert_eq!(house.number("SELECT count(*) FROM job WHERE state = 'queued' AND attempt = 0"), Some(1));
    assert!(house.files("inbox").contains(&"photo.jpg".to_owned()));
    assert!(
        house.files("outbox").iter().all(|video| video.starts_with("animd-demo")),
        "nobody named a model for it"
    );
}
