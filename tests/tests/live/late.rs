//! Pictures that are taken as soon as they are complete, and what comes beside them after that. The tests give pictures a
//! long time to lie unchanged, so that whatever comes within it would come too late for a service that waited.

use std::fs;
use std::io::Write;
use std::path::PathBuf;

use crate::harness::{House, PICTURE};

/// Seconds that a picture should lie unchanged here: more than a busy machine needs to start a job.
const STABLE: f64 = 30.0;

/// Returns a house where pictures should lie unchanged for so many seconds, and where jobs take so many milliseconds for
/// each of their hundred steps.
fn house(stable: f64, slow: u32) -> House {
    let mut house = House::new(&format!("[defaults]\nseed = 7\nsteps = 100\nprompt = \"slow={slow}\"\n"));
    house.set_stable(stable);
    house.start();
    house
}

fn jobs(house: &House) -> Option<i64> {
    house.number("SELECT count(*) FROM job")
}

fn until_it_runs(house: &House) {
    house.until("it runs", |house| {
        house.number("SELECT count(*) FROM job WHERE state = 'running'") == Some(1)
    });
}

/// Waits until the job begins again.
fn until_again(house: &House, times: i64) {
    house.until("it begins again", |house| {
        house.number("SELECT count(*) FROM event WHERE kind = 'requeued'") == Some(times)
    });
}

/// Waits until the video is finished and more words may come.
fn until_it_is_held(house: &House) {
    // The file is made empty before the job starts.
    let is_written = |path: &PathBuf| fs::metadata(path).is_ok_and(|meta| meta.len() > 0);
    house.until("it is held", |house| {
        let status = house.json(&["status"]);
        parts(house).iter().any(is_written)
            && status["state_text"].as_str().is_some_and(|text| text.contains("is made; it is saved when"))
    });
    // Neither idle nor starting: what is told is what happened.
    let status = house.json(&["status"]);
    assert_eq!((&status["state"], &status["running"][0]["stage"]), (&"busy".into(), &"write".into()));
}

fn prompt(house: &House) -> String {
    house.text("SELECT settings_json ->> 'prompt' FROM job")
}

/// Returns the unfinished files in the outbox.
fn parts(house: &House) -> Vec<PathBuf> {
    let entries = fs::read_dir(house.path("outbox")).unwrap().flatten().map(|entry| entry.path());
    entries.filter(|path| path.extension().is_some_and(|ending| ending == "part")).collect()
}

#[test]
fn words_that_come_while_the_job_runs_make_it_begin_again() {
    let mut house = house(STABLE, 300);
    fs::write(house.path("inbox/photo.png"), PICTURE).unwrap();
    until_it_runs(&house);
    let engine = house.engine();
    fs::write(house.path("inbox/photo.txt"), "slow=300 a first wave").unwrap();
    until_again(&house, 1);
    assert_eq!(prompt(&house), "slow=300 a first wave");
    // Again and again, also with other settings.
    until_it_runs(&house);
    fs::write(house.path("inbox/photo.txt"), "a wave").unwrap();
    until_again(&house, 2);
    assert_eq!((prompt(&house).as_str(), house.engine()), ("a wave", engine), "the engine keeps its model");
    // A stop of the service ends the wait for more words.
    until_it_is_held(&house);
    house.stop();
    house.start();
    house.until_ended(1);
    assert_eq!((jobs(&house), house.files("outbox")), (Some(1), vec!["photo-7.mp4".to_owned()]));
    assert_eq!(house.files("inbox/done"), ["photo.png", "photo.txt"]);
    assert_eq!(
        house.number("SELECT attempt FROM job"),
        Some(1),
        "a start that was taken back does not count"
    );
}

#[test]
fn words_for_a_job_that_was_quicker_than_they_give_one_video() {
    let house = house(6.0, 0);
    fs::write(house.path("inbox/photo.png"), PICTURE).unwrap();
    until_it_is_held(&house);
    fs::write(house.path("inbox/photo.toml"), "prompt = \"a wave\"\nseed = 5\n").unwrap();
    house.until_ended(1);
    assert_eq!((prompt(&house).as_str(), jobs(&house)), ("a wave", Some(1)));
    assert_eq!(house.files("outbox"), ["photo-5.mp4"]);
    assert_eq!(house.files("inbox/done"), ["photo.png", "photo.toml"]);
    assert!(parts(&house).is_empty());
}

#[test]
fn a_picture_written_once_more_takes_the_place_of_the_first() {
    let house = house(6.0, 300);
    fs::write(house.path("inbox/photo.png"), PICTURE).unwrap();
    until_it_runs(&house);
    let sha = "SELECT hex(image_sha256) FROM job";
    let first = house.text(sha);
    // A program adds metadata by writing another file of this name; the words come after that.
    fs::write(house.path("other"), [PICTURE, b"metadata"].concat()).unwrap();
    fs::rename(house.path("other"), house.path("inbox/photo.png")).unwrap();
    until_again(&house, 1);
    assert_ne!(house.text(sha), first);
    fs::write(house.path("inbox/photo.png.txt"), "a wave").unwrap();
    house.until_ended(1);
    assert_eq!((prompt(&house).as_str(), jobs(&house)), ("a wave", Some(1)));
    assert_eq!((house.files("outbox").len(), house.files("state/spool").len()), (1, 1));
    assert_eq!(house.files("inbox/done"), ["photo.png", "photo.png.txt"]);
    assert!(house.files("inbox").is_empty());
}

#[test]
fn the_last_picture_of_a_pair_may_come_while_the_job_runs() {
    let house = house(6.0, 300);
    fs::write(house.path("inbox/photo.png"), PICTURE).unwrap();
    until_it_runs(&house);
    // Half a picture does not count.
    let mut last = fs::File::create(house.path("inbox/photo.last.png")).unwrap();
    last.write_all(&PICTURE[..40]).unwrap();
    fs::write(house.path("inbox/photo.txt"), "slow=300 a wave").unwrap();
    last.write_all(&PICTURE[40..]).unwrap();
    drop(last);
    house.until("both are there", |house| {
        house.text("SELECT settings_json ->> 'last' FROM job") == "photo.last.png"
            && house.number("SELECT last_bytes FROM job") == Some(PICTURE.len() as i64)
            && prompt(house) == "slow=300 a wave"
    });
    fs::write(house.path("inbox/photo.txt"), "a wave").unwrap();
    house.until_ended(1);
    assert_eq!((jobs(&house), house.text("SELECT state FROM job")), (Some(1), "done".into()));
    assert_eq!(house.files("inbox/done"), ["photo.last.png", "photo.png", "photo.txt"]);
}

#[test]
fn a_mistake_is_not_refused_before_its_time() {
    let house = house(4.0, 0);
    fs::write(house.path("inbox/photo.toml"), "seed = ").unwrap();
    fs::write(house.path("inbox/photo.png"), PICTURE).unwrap();
    fs::write(house.path("inbox/bad.toml"), "sede = 5\n").unwrap();
    fs::write(house.path("inbox/bad.png"), [PICTURE, b"2"].concat()).unwrap();
    fs::write(house.path("inbox/good.png"), [PICTURE, b"3"].concat()).unwrap();
    house.until("the good one is taken", |house| jobs(house) == Some(1));
    fs::write(house.path("inbox/photo.toml"), "seed = 5\n").unwrap();
    house.until_ended(3);
    assert_eq!(house.files("outbox"), ["good-7.mp4", "photo-5.mp4"]);
    let note = fs::read_to_string(house.path("inbox/failed/bad.png.error.txt")).unwrap();
    assert_eq!(note, "bad.toml:1: unknown key `sede`; did you mean `seed`?\n");
    assert_eq!(jobs(&house), Some(3));
}

#[test]
fn a_kill_between_a_picture_and_its_words_loses_neither() {
    let mut house = house(6.0, 300);
    for round in 1..=3 {
        let name = format!("{round}.png");
        fs::write(house.path("inbox").join(&name), [PICTURE, name.as_bytes()].concat()).unwrap();
        until_it_runs(&house);
        match round {
            1 => house.kill(),
            2 => _ = house.stop(),
            _ => {
                let pid = rustix::process::Pid::from_raw(house.engine().unwrap() as i32).unwrap();
                rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
            }
        }
        fs::write(house.path(&format!("inbox/{round}.txt")), "a wave").unwrap();
        if round < 3 {
            house.start();
        }
        house.until("it has its words", |house| {
            let sql = "SELECT count(*) FROM job WHERE settings_json ->> 'prompt' = 'a wave'";
            house.number(sql) == Some(round)
        });
        house.until_ended(round);
    }
    assert_eq!((jobs(&house), house.files("outbox").len()), (Some(3), 3));
    assert_eq!(house.number("SELECT count(*) FROM job WHERE state = 'done'"), Some(3));
    assert!(house.files("inbox").is_empty() && parts(&house).is_empty());
}

#[test]
fn a_cancel_outranks_words() {
    let house = house(STABLE, 300);
    fs::write(house.path("inbox/photo.png"), PICTURE).unwrap();
    until_it_runs(&house);
    house.json(&["cancel", "1"]);
    fs::write(house.path("inbox/photo.txt"), "a wave").unwrap();
    house.until_ended(1);
    assert_eq!(house.text("SELECT state FROM job"), "canceled");
    // A cancel of a job whose video is finished comes too late, and ends the wait for words.
    fs::write(house.path("inbox/quick.txt"), "a wave").unwrap();
    fs::write(house.path("inbox/quick.png"), [PICTURE, b"2"].concat()).unwrap();
    until_it_is_held(&house);
    house.json(&["cancel", "2"]);
    house.until_ended(2);
    assert_eq!(house.text("SELECT state FROM job WHERE id = 2"), "done");
}
