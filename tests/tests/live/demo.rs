//! The small model that comes with animd: who gets it, and that nobody gets it unasked.

use std::collections::HashMap;
use std::fs::{self, File};
use std::os::fd::AsFd;
use std::process::Stdio;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use crate::harness::{House, PICTURE, text};

/// Returns the state of the service and its sentence.
fn status(house: &House) -> (String, String) {
    let status = house.json(&["status"]);
    let word = |key: &str| status[key].as_str().unwrap().to_owned();
    (word("state"), word("state_text"))
}

/// Drops a picture into the inbox, and checks that it waits, and that the service says why and what to do meanwhile.
fn waits(house: &House, why: &str) {
    if house.files("inbox").is_empty() {
        house.drop_picture("photo.png", Some("the waves roll in"));
    }
    house.until("the picture waits", |house| {
        house.number("SELECT count(*) FROM job WHERE id = 1 AND state = 'queued' AND attempt = 0") == Some(1)
    });
    house.until("the state says what to do", |house| {
        let (state, text) = status(house);
        state == "no-weights" && text.contains(why) && text.contains("meanwhile `animctl demo`")
    });
    assert!(
        house.files("outbox").iter().all(|name| !name.starts_with("photo")),
        "nobody named a model for it"
    );
}

/// Returns the settings of a job that the small model's file decides.
fn decided(house: &House, id: i64) -> Value {
    let settings = house.text(&format!("SELECT settings_json FROM job WHERE id = {id}"));
    let settings: Value = serde_json::from_str(&settings).unwrap();
    let keys = ["model", "prompt", "size", "frames", "sampler", "steps", "shift", "guidance"];
    keys.into_iter().map(|key| settings[key].clone()).collect()
}

#[test]
fn without_a_model_a_demo_runs_and_pictures_in_folders_wait() {
    let mut house = House::new("");
    house.use_no_model();
    house.install_small_model();
    house.start();
    waits(&house, "no model is configured: `animctl model add");
    let video = house.path("demo.mp4");
    let demo = house.animctl(&["demo", "--output", video.to_str().unwrap()]);
    assert!(demo.status.success(), "{}", text(&demo.stderr));
    assert_eq!(text(&demo.stdout).trim(), video.to_str().unwrap());
    assert!(text(&demo.stderr).contains("no measure of Wan 14B"), "{}", text(&demo.stderr));
    assert!(text(&fs::read(&video).unwrap()).starts_with("simulated video of job 2"));
    waits(&house, "no model is configured");
    let checks = house.animctl(&["--json", "doctor"]);
    let checks: Value = serde_json::from_slice(&checks.stdout).unwrap();
    let model = checks["checks"].as_array().unwrap().iter().find(|check| check["name"] == "model").unwrap();
    assert_eq!(model["status"], "fail");
    assert!(model["remedy"].as_str().unwrap().contains("`animctl demo`"), "{model}");
}

#[test]
fn no_other_model_takes_the_place_of_one_that_is_broken() {
    let mut house = House::new("");
    house.install_small_model();
    house.set_env("SIM_START", "model=/model");
    house.start();
    waits(&house, "the model folder is empty");
    let picture = house.picture();
    for _ in 0..2 {
        let done = house.animctl(&["submit", &picture, "--model", "small", "--wait"]);
        assert!(done.status.success(), "{}", text(&done.stderr));
    }
    waits(&house, "the model folder is empty");
    assert_eq!(house.number("SELECT count(*) FROM job WHERE state = 'done' AND attempt = 1"), Some(2));
}

#[tokio::test]
async fn the_small_models_file_says_how_it_is_used_on_every_way_in() {
    let mut house =
        House::new("[defaults]\nsize = \"720p\"\nframes = 9\nsampler = \"unipc\"\nprompt = \"waves\"\n");
    house.install_small_model();
    house.start();
    let picture = house.picture();
    assert!(house.animctl(&["submit", &picture, "--model", "small"]).status.success());
    let file = File::open(&picture).unwrap();
    let options = HashMap::from([("model", "small".into())]);
    house.manager().await.submit(file.as_fd().into(), options).await.unwrap();
    fs::write(house.path("inbox/photo.toml"), "model = \"small\"\n").unwrap();
    fs::write(house.path("inbox/photo.png"), PICTURE).unwrap();
    house.until_ended(3);
    for id in 1..=3 {
        let expected = json!(["small", "", "320x192", 81, "distill", 4, 5.0, 1.0]);
        assert_eq!(decided(&house, id), expected, "job {id}");
    }
    let own = ["submit", &picture, "--model", "small", "--size", "480x320", "-p", "rain falls", "--wait"];
    assert!(house.animctl(&own).status.success());
    assert_eq!(decided(&house, 4), json!(["small", "rain falls", "480x320", 81, "distill", 4, 5.0, 1.0]));
    assert!(house.animctl(&["submit", &picture, "--wait"]).status.success());
    assert_eq!(decided(&house, 5)[2], "720p", "the configured model has its own");
    assert!(house.animctl(&["retry", "5", "--model", "small"]).status.success());
    assert_eq!(decided(&house, 6), json!(["small", "waves", "320x192", 81, "distill", 4, 5.0, 1.0]));
}

#[test]
fn ctrl_c_ends_the_wait_for_a_demo_and_its_job_goes_on() {
    let mut house = House::new("");
    house.use_no_model();
    house.install_small_model();
    house.start();
    let video = house.path("demo.mp4");
    let mut demo = house.animctl_command(&["demo", "-p", "slow=500", "-o", video.to_str().unwrap()]);
    let demo = demo.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    house.until("it runs", |house| {
        house.number("SELECT count(*) FROM job WHERE state = 'running'") == Some(1)
    });
    kill_process(Pid::from_child(&demo), Signal::INT).unwrap();
    let ended = demo.wait_with_output().unwrap();
    assert_eq!(ended.status.code(), Some(130));
    assert!(text(&ended.stderr).contains("job 1 goes on"), "{}", text(&ended.stderr));
    house.until_ended(1);
    assert_eq!(house.text("SELECT state FROM job"), "done");
    assert!(!video.exists());
}

#[test]
fn the_time_of_a_demo_says_nothing_of_the_configured_model() {
    let mut house = House::new("");
    house.install_small_model();
    house.start();
    let picture = house.picture();
    assert!(house.animctl(&["submit", &picture, "--model", "small", "--wait"]).status.success());
    // A job that fails opens the configured model.
    assert_eq!(house.animctl(&["submit", &picture, "-p", "fail", "--wait"]).status.code(), Some(1));
    let source = |house: &House| house.json(&["plan", &picture])["seconds_source"].clone();
    assert_eq!(source(&house), "unknown");
    // The simulated engine says that loading took half a second, which is no part of a video's time.
    assert!(house.animctl(&["submit", &picture, "-p", "slow=20", "--wait"]).status.success());
    assert_eq!(source(&house), "history");
}
