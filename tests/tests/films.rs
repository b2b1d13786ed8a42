//! Videos that end at a picture, loops, and videos that are made in parts: the service with the real engine and tiny
//! models.

mod common;
#[path = "live/harness.rs"]
#[allow(dead_code, clippy::unwrap_used, reason = "a part of it is enough here, and a test may panic")]
mod harness;

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use common::{ffprobe, names, picture, program, run, stderr, tiny_model};
use harness::{House, text};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

/// Settings with which a part takes about a second.
const SMALL: &str = "[queue]\nattempts = 50\ninterruptions = 50\n\
     [defaults]\nseed = 7\nsize = \"96x64\"\nframes = 9\nfps = 8\nsampler = \"distill\"\n";

/// The query for how many jobs have a video.
const DONE: &str = "SELECT count(*) FROM job WHERE state = 'done'";

/// Writes a made-up model of a family into a folder of its own.
fn made_up(family: &str) -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join(family);
    let made = run(Command::new(program("animd-engine"))
        .arg("synth-model")
        .arg(&path)
        .args(["--size", "tiny", "--family", family]));
    assert!(made.status.success(), "{}", stderr(&made));
    (folder, path)
}

/// Returns a made-up model that makes videos between two pictures.
fn flf_model() -> &'static Path {
    static MODEL: OnceLock<(TempDir, PathBuf)> = OnceLock::new();
    &MODEL.get_or_init(|| made_up("flf2v")).1
}

fn started(model: &Path, config: &str) -> House {
    let mut house = House::new(config);
    house.use_real_engine(model);
    house.start();
    house
}

/// Returns the settings of a job as JSON.
fn settings(house: &House, job: u32) -> serde_json::Value {
    let json = house.text(&format!("SELECT settings_json FROM job WHERE id = {job}"));
    serde_json::from_str(&json).expect("JSON")
}

/// Returns the times of a video's frames, in ticks of its frame rate.
fn times(video: &Path, fps: f64) -> Vec<i64> {
    let output = run(Command::new("ffprobe")
        .args(["-v", "error", "-select_streams", "v", "-show_entries", "frame=best_effort_timestamp_time"])
        .args(["-of", "csv=p=0"])
        .arg(video));
    assert!(output.status.success(), "{}", stderr(&output));
    let times = text(&output.stdout);
    let lines = times.lines().map(|line| line.trim_end_matches(',')).filter(|line| !line.is_empty());
    let seconds = lines.map(|line| line.parse::<f64>().expect("a time"));
    seconds.map(|seconds| (seconds * fps).round() as i64).collect()
}

fn kill_engine(house: &House) {
    if let Some(engine) = house.engine().and_then(|pid| Pid::from_raw(pid.cast_signed())) {
        let _ = kill_process(engine, Signal::KILL);
    }
}

/// Returns the folder of the only job with finished parts.
fn parts(house: &House) -> Option<PathBuf> {
    let uuid = house.text_if("SELECT uuid FROM job WHERE state = 'running' OR state = 'queued'")?;
    Some(house.path("state/parts").join(uuid))
}

#[test]
fn a_pair_in_a_folder_becomes_one_video_in_either_order() {
    let house = started(flf_model(), SMALL);
    let inbox = house.path("inbox");
    // The first picture of `a` comes first, that of `b` last, and `b`'s last picture has another size.
    let fresh = house.path("fresh.png");
    picture(&fresh, 60, 40);
    fs::copy(&fresh, inbox.join("a.last.png")).expect("copied");
    picture(&inbox.join("a.png"), 60, 40);
    picture(&inbox.join("b.last.jpg"), 90, 90);
    picture(&inbox.join("b.png"), 60, 41);
    house.until("both are made", |house| house.number(DONE) == Some(2));
    assert_eq!(names(&house.path("outbox")), ["a-7.mp4", "b-7.mp4"]);
    house.until("all pictures are moved", |house| {
        names(&house.path("inbox/done")) == ["a.last.png", "a.png", "b.last.jpg", "b.png"]
    });
    let mut lasts: Vec<String> =
        (1..=2).map(|job| settings(&house, job)["last"].as_str().unwrap_or_default().to_owned()).collect();
    lasts.sort();
    assert_eq!(lasts, ["a.last.png", "b.last.jpg"]);
    assert_eq!(house.number("SELECT count(*) FROM job WHERE last_sha256 IS NOT NULL"), Some(2));
    // Another try has both pictures.
    let retried = house.animctl(&["retry", "1", "--wait"]);
    assert!(retried.status.success(), "{}", text(&retried.stderr));
    assert_eq!(settings(&house, 3)["last"], settings(&house, 1)["last"]);
}

#[test]
fn a_last_picture_that_comes_late_counts_while_the_first_one_waits() {
    // The simulated model can do with and without a last picture.
    let house = House::started(SMALL);
    let paused = house.animctl(&["pause"]);
    assert!(paused.status.success(), "{}", text(&paused.stderr));
    let inbox = house.path("inbox");
    picture(&inbox.join("late.png"), 60, 40);
    house.until("queued", |house| house.number("SELECT count(*) FROM job") == Some(1));
    assert_eq!(settings(&house, 1)["last"], "");
    picture(&inbox.join("late.last.png"), 50, 40);
    house.until("heard of", |house| {
        house.number("SELECT count(*) FROM job WHERE last_sha256 IS NOT NULL") == Some(1)
    });
    assert_eq!(settings(&house, 1)["last"], "late.last.png");
    assert_eq!(house.files("state/spool").len(), 2, "both pictures are spooled");
    // Another picture of the same name is another end.
    let bytes = house.number("SELECT last_bytes FROM job");
    picture(&inbox.join("late.last.png"), 90, 70);
    house.until("noticed", |house| house.number("SELECT last_bytes FROM job") != bytes);
    house.until("one copy is given up", |house| house.files("state/spool").len() == 2);
    house.animctl(&["resume"]);
    house.until("made", |house| house.number(DONE) == Some(1));
    assert_eq!(house.number("SELECT count(*) FROM job"), Some(1));
    house.until("moved", |house| names(&house.path("inbox/done")) == ["late.last.png", "late.png"]);
    // A picture that a sidecar names may come late, too; until then the first one waits, and the named one is a picture of
    // its own.
    fs::write(inbox.join("named.toml"), "last = \"end.png\"").expect("written");
    picture(&inbox.join("named.png"), 60, 40);
    house.until("it waits", |house| {
        fs::read_to_string(house.path("log"))
            .is_ok_and(|log| log.contains("a picture waits in a watched folder"))
    });
    assert_eq!(house.number("SELECT count(*) FROM job"), Some(1));
    // Forgetting the job frees both copies.
    let forgotten = house.animctl(&["forget", "1"]);
    assert!(forgotten.status.success(), "{}", text(&forgotten.stderr));
    assert!(house.files("state/spool").is_empty());
}

#[test]
fn a_loop_and_a_last_picture_from_a_terminal() {
    let house = started(flf_model(), SMALL);
    let (first, last) = (house.path("first.png"), house.path("last.png"));
    picture(&first, 60, 40);
    picture(&last, 40, 60);
    let [first, last] = [&first, &last].map(|path| path.to_str().expect("a path"));
    for more in [&["--loop"][..], &["--last", last], &["--loop=true", "-p", "a wave"]] {
        let made = house.animctl(&[&["submit", first, "--wait"], more].concat());
        assert!(made.status.success(), "{more:?}: {}", text(&made.stderr));
    }
    assert_eq!((&settings(&house, 1)["loop"], &settings(&house, 1)["last"]), (&true.into(), &"".into()));
    assert_eq!(
        (&settings(&house, 2)["loop"], &settings(&house, 2)["last"]),
        (&false.into(), &"last.png".into())
    );
    let shown = house.animctl(&["show", "1", "--json"]);
    let shown: serde_json::Value = serde_json::from_slice(&shown.stdout).expect("JSON");
    assert_eq!(
        (&shown["family"], &shown["conditioning"]),
        (&"Wan2.1 first-and-last-frame".into(), &"first-and-last".into())
    );
    assert_eq!(house.text("SELECT family FROM job WHERE id = 1"), "Wan2.1 first-and-last-frame");
    // The engine has opened the model by now, so that what it cannot do is refused before it is queued.
    let refused = house.animctl(&["submit", first]);
    assert_eq!(refused.status.code(), Some(2), "{}", text(&refused.stderr));
    assert!(text(&refused.stderr).contains("needs the second one: give `last`"), "{}", text(&refused.stderr));
    let refused = house.animctl(&["submit", first, "--loop", "--seconds", "4"]);
    assert!(text(&refused.stderr).contains("only the last part has one"), "{}", text(&refused.stderr));
    assert_eq!(house.number("SELECT count(*) FROM job"), Some(3));
    // In a folder, the second picture of the pair may still come.
    picture(&house.path("inbox/alone.png"), 60, 40);
    house.until("it waits", |house| {
        fs::read_to_string(house.path("log"))
            .is_ok_and(|log| log.contains("a picture waits in a watched folder"))
    });
    assert_eq!(house.number("SELECT count(*) FROM job"), Some(3));
    picture(&house.path("inbox/alone.last.png"), 60, 40);
    house.until("made", |house| house.number(DONE) == Some(4));
    house.until("moved", |house| names(&house.path("inbox/done")) == ["alone.last.png", "alone.png"]);
}

#[test]
fn a_model_without_positions_refuses_a_last_picture() {
    let house = started(&tiny_model(), SMALL);
    let first = house.path("first.png");
    picture(&first, 60, 40);
    let first = first.to_str().expect("a path");
    let failed = house.animctl(&["submit", first, "--loop", "--wait"]);
    let words = "cannot end at a given picture; leave `last` and `loop` out";
    assert!(text(&failed.stderr).contains(words), "{}", text(&failed.stderr));
    // Whether the engine knew or was asked first: the second time, nothing is queued.
    house.until("the engine has said what it is", |house| {
        let refused = house.animctl(&["submit", first, "--last", first]);
        assert!(text(&refused.stderr).contains(words) || refused.status.success());
        !refused.status.success()
    });
}

#[test]
fn a_long_video_is_one_film_and_its_finished_parts_outlive_everything() {
    let mut house = started(&tiny_model(), SMALL);
    let cup = house.path("fresh.png");
    picture(&cup, 60, 40);
    fs::write(house.path("inbox/cup.toml"), "seconds = 3\n").expect("written");
    fs::rename(&cup, house.path("inbox/cup.png")).expect("moved in");
    // Three parts of 9 frames at 8 frames a second.
    let finished = |house: &House, part: u32| {
        parts(house).is_some_and(|dir| dir.join(format!("part-{part}.json")).exists())
            || house.number(DONE) == Some(1)
    };
    house.until("the first part is finished", |house| finished(house, 1));
    let first = parts(&house).map(|dir| dir.join("part-1.mp4"));
    let state = |path: &Option<PathBuf>| {
        path.as_ref().and_then(|path| fs::metadata(path).ok()).map(|meta| (meta.ino(), meta.mtime_nsec()))
    };
    let before = state(&first);
    // The service dies in the second part, then the engine does.
    house.kill();
    house.start();
    house.until("the service is back", |house| {
        house.number("SELECT count(*) FROM job WHERE state = 'running'") == Some(1)
            || house.number(DONE) == Some(1)
    });
    assert!(before.is_none() || state(&first) == before || house.number(DONE) == Some(1));
    kill_engine(&house);
    house.until("the second part is finished", |house| finished(house, 2));
    assert!(before.is_none() || state(&first) == before || house.number(DONE) == Some(1));
    kill_engine(&house);
    house.until("the film is made", |house| house.number(DONE) == Some(1));
    let film = house.path("outbox/cup-7.mp4");
    let found = ffprobe(&film);
    assert_eq!(found["streams"][0]["nb_read_frames"], "25");
    assert_eq!(times(&film, 8.0), (0..25).collect::<Vec<i64>>());
    let comment = found["format"]["tags"]["comment"].as_str().expect("a comment");
    let comment: serde_json::Value = serde_json::from_str(comment).expect("JSON");
    assert_eq!((&comment["request"]["seconds"], &comment["request"]["seed"]), (&3.0.into(), &7.into()));
    assert_eq!(
        (&comment["family"], &comment["conditioning"]),
        (&"Wan2.1 image-to-video".into(), &"first".into())
    );
    assert_eq!(comment["parts"][2], serde_json::json!({ "frames": 9, "seed": 9 }));
    assert_eq!(house.number("SELECT frames FROM job"), Some(25));
    assert_eq!(house.number("SELECT count(*) FROM step"), Some(12), "four steps for each part");
    assert_eq!(house.number("SELECT parts_bytes FROM job"), Some(0));
    assert!(names(&house.path("state/parts")).is_empty(), "finished parts are gone");
    assert_eq!(names(&house.path("outbox")), ["cup-7.mp4"]);
}

#[test]
fn a_film_is_planned_as_a_whole_and_leaves_nothing_when_it_is_cancelled() {
    let house = started(&tiny_model(), SMALL);
    let first = house.path("first.png");
    picture(&first, 60, 40);
    let first = first.to_str().expect("a path");
    let submitted = house.animctl(&["submit", first, "--seconds", "30"]);
    assert!(submitted.status.success(), "{}", text(&submitted.stderr));
    house.until("a part is finished", |house| {
        parts(house).is_some_and(|dir| dir.join("part-1.json").exists())
    });
    let shown = house.json(&["show", "1"]);
    assert!(shown["progress"].as_f64().is_some_and(|progress| progress < 0.5), "{shown}");
    assert_eq!(shown["step"]["total"].as_u64().or(shown["step"][1].as_u64()), Some(4 * 30), "{shown}");
    let plan = house.json(&["plan", first, "--seconds", "30"]);
    assert_eq!((&plan["parts"], &plan["frames"], &plan["forwards"]), (&30.into(), &241.into(), &120.into()));
    assert!(house.number("SELECT parts_bytes FROM job").is_some_and(|bytes| bytes > 0));
    let canceled = house.animctl(&["cancel", "1"]);
    assert!(canceled.status.success(), "{}", text(&canceled.stderr));
    house.until_ended(1);
    assert_eq!(house.text("SELECT state FROM job"), "canceled");
    // The files go after the ledger has the outcome.
    house.until("its files are gone", |house| {
        names(&house.path("state/parts")).is_empty() && names(&house.path("outbox")).is_empty()
    });
    assert_eq!(house.number("SELECT parts_bytes FROM job"), Some(0));
}

#[test]
fn a_film_that_the_disk_cannot_hold_is_refused_with_the_arithmetic() {
    // No disk has so much to keep free, and still takes the picture's own check later than the parts' one.
    let house = started(&tiny_model(), &SMALL.replace("[queue]\n", "[queue]\nfree_mib = 1000000000\n"));
    let first = house.path("first.png");
    picture(&first, 60, 40);
    let refused = house.animctl(&["submit", first.to_str().expect("a path"), "--seconds", "9"]);
    assert!(!refused.status.success());
    let said = text(&refused.stderr);
    for words in ["9 s are made in 9 parts, which take up to ", " MiB left, of which ", "fewer `seconds`"] {
        assert!(said.contains(words), "no {words:?} in {said}");
    }
}

#[test]
fn of_a_film_with_a_last_picture_only_the_last_part_aims_at_it() {
    let (folder, model) = made_up("wan22");
    let (first, last) = (folder.path().join("first.png"), folder.path().join("last.png"));
    picture(&first, 96, 64);
    picture(&last, 64, 96);
    // The frames' hashes, without the columns that say when each is shown.
    let frames = |name: &str, more: &[&str]| -> Vec<String> {
        let film = folder.path().join(name);
        let made = run(Command::new(program("animd-engine"))
            .arg("generate")
            .arg(&first)
            .args(["-p", "a boat", "--size", "96x64", "--frames", "9", "--fps", "8", "--seconds", "2"])
            .args(["--sampler", "distill", "--shift", "5", "--seed", "1", "-m"])
            .arg(&model)
            .arg("-o")
            .arg(&film)
            .args(more));
        assert!(made.status.success(), "{more:?}: {}", stderr(&made));
        let hashes =
            run(Command::new("ffmpeg").args(["-v", "error", "-i"]).arg(&film).args(["-f", "framemd5", "-"]));
        let hashes = text(&hashes.stdout);
        let frame = |line: &str| line.rsplit(',').next().map(|hash| hash.trim().to_owned());
        hashes.lines().filter(|line| !line.starts_with('#')).filter_map(frame).collect()
    };
    let plain = frames("plain.mp4", &[]);
    let aimed = frames("aimed.mp4", &["--last", last.to_str().expect("a path")]);
    assert_eq!((plain.len(), aimed.len()), (17, 17));
    assert_eq!(plain[..9], aimed[..9], "the first part has no last picture");
    assert!(plain[9..].iter().zip(&aimed[9..]).all(|(plain, aimed)| plain != aimed));
}
