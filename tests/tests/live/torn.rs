//! A model file that is cut, and put back, while the real engine has it open: no job is lost, and the file is named.

use std::fs::{self, File};
use std::path::Path;

use crate::common::tiny_model;
use crate::harness::{House, PICTURE};

/// Copies a folder with all that is in it.
fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap().flatten() {
        match entry.path() {
            path if path.is_dir() => copy(&path, &to.join(entry.file_name())),
            path => _ = fs::copy(path, to.join(entry.file_name())).unwrap(),
        }
    }
}

#[test]
fn jobs_wait_for_a_model_file_that_was_cut_and_run_when_it_is_back() {
    let small = "size = \"64x48\"\nframes = 5\nsampler = \"distill\"\nsteps = 1\nseed = 7\n";
    let mut house = House::new(&format!("[defaults]\n{small}[queue]\nattempts = 2\n"));
    let model = house.path("wan");
    copy(&tiny_model(), &model);
    house.use_real_engine(&model);
    house.start();
    house.drop_picture("first.png", Some("a wave"));
    house.until_ended(1);
    let vae = model.join("Wan2.1_VAE.pth");
    File::options().write(true).open(&vae).unwrap().set_len(1000).unwrap();
    fs::write(house.path("inbox/second.png"), [PICTURE, b"2"].concat()).unwrap();
    house.until("the state names the file", |house| {
        let status = house.json(&["status"]);
        let text = status["state_text"].as_str().unwrap();
        status["state"] == "no-weights" && text.contains(vae.to_str().unwrap())
    });
    // An engine that opens the model says what is wrong with the file, and the job waits as it is.
    house.until("it is tried again", |house| {
        let log = fs::read_to_string(house.path("log")).unwrap();
        log.matches("the engine cannot work: ").count() > 2
    });
    let job = "SELECT state || attempt || crashes FROM job WHERE id = 2";
    assert_eq!(house.text(job), "queued00");
    fs::copy(tiny_model().join("Wan2.1_VAE.pth"), &vae).unwrap();
    house.until_ended(2);
    assert_eq!(house.text(job), "done10");
    // A file that was replaced by another one is opened again, and nobody notices.
    fs::copy(&vae, house.path("new")).unwrap();
    fs::rename(house.path("new"), &vae).unwrap();
    fs::write(house.path("inbox/third.png"), [PICTURE, b"3"].concat()).unwrap();
    house.until_ended(3);
    let log = fs::read_to_string(house.path("log")).unwrap();
    assert!(log.contains("is another file than when the model was opened"), "{log}");
    assert_eq!(house.number("SELECT count(*) FROM job WHERE state = 'done' AND crashes = 0"), Some(3));
}
