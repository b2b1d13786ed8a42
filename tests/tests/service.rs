//! The service with the real engine: whichever process dies, in whichever stage, each picture becomes exactly one
//! video.

mod common;
#[path = "live/harness.rs"]
#[allow(dead_code, clippy::unwrap_used, reason = "a part of it is enough here, and a test may panic")]
mod harness;

use std::fs;

use common::{ffprobe, names, picture, tiny_model};
use harness::House;
use rustix::process::{Pid, Signal, kill_process};

/// The query for how many jobs have a video.
const DONE: &str = "SELECT count(*) FROM job WHERE state = 'done'";

/// Starts the service with the real engine, small videos, and many attempts per job.
fn started() -> House {
    let mut house = House::new(
        "[queue]\nattempts = 50\ninterruptions = 50\n\
         [defaults]\nseed = 7\nsize = \"192x128\"\nframes = 13\nsampler = \"distill\"\n",
    );
    house.use_real_engine(&tiny_model());
    house.start();
    house
}

/// Returns the jobs as the client shows them, with the stage of the running one.
fn stages_shown(house: &House) -> String {
    String::from_utf8_lossy(&house.animctl(&["list", "--json"]).stdout).into_owned()
}

#[test]
fn one_video_a_picture_whatever_dies_in_whatever_stage() {
    let mut house = started();
    let stages = ["load", "vae-encode", "denoise", "vae-decode", "write"];
    let mut pictures = 0;
    for (i, stage) in stages.into_iter().flat_map(|s| [s, s]).enumerate() {
        let engine_dies = i % 2 == 0;
        let name = format!("{i}.png");
        // The picture is written elsewhere and moved in, as a careful program does.
        let fresh = house.path("fresh.png");
        picture(&fresh, 60, 40 + i as u32);
        fs::rename(&fresh, house.path("inbox").join(&name)).expect("moved in");
        pictures += 1;
        let is_done = |house: &House| house.number(DONE) == Some(pictures);
        // The stage may be over before it is seen; then the kill comes later, which is a valid test as well.
        house.until("in its stage", |house| {
            stages_shown(house).contains(&format!("\"{stage}\"")) || is_done(house)
        });
        if engine_dies {
            if let Some(engine) = house.engine().and_then(|pid| Pid::from_raw(pid.cast_signed())) {
                let _ = kill_process(engine, Signal::KILL);
            }
        } else {
            house.kill();
            house.start();
        }
        house.until("done", is_done);
    }
    // No video is lost or doubled, and no unfinished file is left.
    let expected: Vec<String> = (0..pictures).map(|i| format!("{i}-7.mp4")).collect();
    house.until("tidy", |house| names(&house.path("outbox")) == expected);
    for name in &expected {
        assert_eq!(ffprobe(&house.path("outbox").join(name))["streams"][0]["nb_read_frames"], "13", "{name}");
    }
    house.until("moved", |house| names(&house.path("inbox/done")).len() as i64 == pictures);
    assert_eq!(house.number("SELECT count(*) FROM job"), Some(pictures));
}

#[test]
fn a_picture_that_is_none_fails_with_a_note_and_the_next_one_runs() {
    let house = started();
    fs::write(house.path("inbox/broken.jpg"), "no picture at all").expect("written");
    house.until("failed", |house| house.path("inbox/failed/broken.jpg").exists());
    house.until("explained", |house| house.path("inbox/failed/broken.jpg.error.txt").exists());
    let note = fs::read_to_string(house.path("inbox/failed/broken.jpg.error.txt")).expect("a note");
    assert!(note.contains("not") && note.len() > 20, "{note}");
    picture(&house.path("inbox/good.png"), 50, 50);
    house.until("made", |house| house.path("outbox/good-7.mp4").exists());
    assert!(names(&house.path("outbox")).iter().all(|n| n == "good-7.mp4"));
}
