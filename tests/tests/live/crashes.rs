//! The engine and the service die, and no job is lost or done twice.

use std::fs;
use std::time::Duration;

use crate::harness::{House, PICTURE, program};

#[test]
fn an_engine_that_dies_three_times_fails_its_job_only() {
    let house = House::started("");
    house.drop_picture("poison.png", Some("crash"));
    house.until_ended(1);
    assert_eq!(house.text("SELECT error_code FROM job"), "crashed");
    assert_eq!(house.number("SELECT attempt FROM job"), Some(3));
    let note = fs::read_to_string(house.path("inbox/failed/poison.png.error.txt")).unwrap();
    assert!(note.starts_with("the engine went down 3 times while making this"), "{note}");
    house.drop_picture("good.png", None);
    house.until_ended(2);
    assert_eq!(house.files("outbox").len(), 1);
}

#[test]
fn a_hung_engine_is_replaced() {
    let house = House::started("[engine]\nheartbeat_seconds = 5\n[queue]\nattempts = 1\n");
    house.drop_picture("stuck.png", Some("hang"));
    house.until_ended(1);
    let note = fs::read_to_string(house.path("inbox/failed/stuck.png.error.txt")).unwrap();
    assert!(note.contains("has not been heard for"), "{note}");
}

#[test]
fn an_engine_that_leaves_no_file_fails_the_job() {
    let house = House::started("");
    house.drop_picture("photo.png", Some("nothing"));
    house.until_ended(1);
    assert_eq!(house.text("SELECT error_code FROM job"), "output");
    assert!(house.files("outbox").is_empty());
}

#[test]
fn a_job_that_ends_while_the_ledger_refuses_is_settled_later() {
    let house = House::started("[defaults]\nseed = 7\n");
    let db = rusqlite::Connection::open(house.path("state/ledger.db")).unwrap();
    db.execute_batch(
        "CREATE TRIGGER full BEFORE UPDATE OF state ON job WHEN NEW.state = 'finishing'
         BEGIN SELECT RAISE(ABORT, 'database or disk is full'); END",
    )
    .unwrap();
    house.drop_picture("photo.png", None);
    house.until("the ledger refuses", |house| {
        fs::read_to_string(house.path("log")).unwrap().contains("cannot write job 1 to the ledger")
    });
    assert_eq!(house.text("SELECT state FROM job"), "running");
    db.execute_batch("DROP TRIGGER full").unwrap();
    house.until_ended(1);
    assert_eq!(house.number("SELECT attempt FROM job WHERE state = 'done'"), Some(1));
    assert_eq!(house.files("outbox"), ["photo-7.mp4"]);
}

#[test]
fn a_stop_gives_the_job_back_uncounted() {
    let mut house = House::started("[defaults]\nseed = 7\n");
    house.drop_picture("photo.png", Some("slow=200"));
    house.until("the job runs", |house| {
        house.number("SELECT count(*) FROM job WHERE state = 'running'") == Some(1)
    });
    assert_eq!(house.stop(), Some(0));
    assert_eq!(house.text("SELECT state FROM job"), "queued");
    assert_eq!(house.number("SELECT attempt + crashes + interruptions FROM job"), Some(0));
    assert!(house.files("outbox").is_empty(), "no unfinished file stays");
    assert_eq!(house.files("inbox"), ["photo.png", "photo.txt"]);
    house.start();
    house.until_ended(1);
    assert_eq!(house.files("outbox"), ["photo-7.mp4"]);
}

#[test]
fn a_service_killed_again_and_again_makes_each_video_once() {
    const PICTURES: i64 = 6;
    let mut house = House::new("[queue]\ninterruptions = 1000\n[defaults]\nsteps = 20\n");
    for n in 0..PICTURES {
        // The sizes differ, so that no two are the same picture.
        fs::write(house.path(&format!("inbox/p{n}.txt")), format!("slow={}", 5 + n)).unwrap();
        fs::write(house.path(&format!("inbox/p{n}.png")), [PICTURE, &vec![b'x'; n as usize]].concat())
            .unwrap();
    }
    for n in 0..20_u64 {
        house.spawn();
        // A third of the kills hit the start, the others a running or finishing job; the multiplier visits all pauses.
        if n % 3 > 0 {
            house.until("a job runs", |house| {
                house.number("SELECT count(*) FROM job WHERE state IN ('running','finishing')") != Some(0)
                    || house.number("SELECT count(*) FROM job WHERE state = 'done'") == Some(PICTURES)
            });
        }
        std::thread::sleep(Duration::from_millis(9 * ((n * 7) % 20)));
        house.kill();
    }
    house.start();
    house.until_ended(PICTURES);
    assert_eq!(house.number("SELECT count(*) FROM job"), Some(PICTURES));
    assert_eq!(house.number("SELECT count(*) FROM job WHERE state = 'done'"), Some(PICTURES));
    assert!(house.number("SELECT sum(interruptions) FROM job") > Some(0), "the kills hit nothing");
    let videos = house.files("outbox");
    let all: Vec<_> = fs::read_dir(house.path("outbox")).unwrap().flatten().collect();
    assert_eq!((videos.len(), all.len()), (PICTURES as usize, PICTURES as usize), "{videos:?}");
    for n in 0..PICTURES {
        assert_eq!(videos.iter().filter(|v| v.starts_with(&format!("p{n}-"))).count(), 1, "{videos:?}");
    }
    assert_eq!(house.files("inbox/done").len(), 2 * PICTURES as usize);
    assert!(house.files("inbox").is_empty());
}

#[test]
fn without_a_model_pictures_wait_and_the_state_says_why() {
    let mut house = House::new("");
    house.set_env("SIM_START", "model");
    house.start();
    house.drop_picture("photo.png", None);
    house.until("the state tells", |house| house.json(&["status"])["state"] == "no-weights");
    house.until("the picture waits", |house| {
        house.number("SELECT count(*) FROM job WHERE state = 'queued'") == Some(1)
    });
    assert_eq!(house.json(&["status"])["state_text"], "the model folder is empty");
}

#[test]
fn one_service_for_one_ledger() {
    let house = House::started("");
    let file = house.path("animd.toml");
    let second = std::process::Command::new(program("animd"))
        .args(["--user", "--config", file.to_str().unwrap()])
        .env("HOME", house.dir.path())
        .output()
        .unwrap();
    assert_eq!(second.status.code(), Some(78));
    assert!(String::from_utf8_lossy(&second.stderr).contains("another animd works on"));
}

#[test]
fn a_service_that_is_not_alone_leaves_nothing_behind() {
    let house = House::started("");
    let other = tempfile::tempdir().unwrap();
    let start = |bus: &str| {
        let service = std::process::Command::new(program("animd"))
            .args(["--user", "--state"])
            .arg(other.path().join("new/state"))
            .env("HOME", other.path())
            .env_remove("XDG_CONFIG_HOME")
            .env_remove("XDG_STATE_HOME")
            .env("DBUS_SESSION_BUS_ADDRESS", bus)
            .output()
            .unwrap();
        let left: Vec<_> =
            fs::read_dir(other.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert!(left.is_empty(), "{left:?}");
        (service.status.code(), String::from_utf8_lossy(&service.stderr).into_owned())
    };
    let (code, said) = start(house.address());
    assert!(code == Some(78) && said.contains("another program has the name org.animd.Animd1"), "{said}");
    let (code, said) = start("unix:path=/nonexistent/bus");
    assert!(code == Some(1) && said.contains("/nonexistent/bus"), "{said}");
}

/// Returns the sentence and the code that a picture fails with when the engine does this to its job every time.
fn fate(words: &str) -> (String, String) {
    let house = House::started("[engine]\nheartbeat_seconds = 5\n[queue]\nattempts = 2\n");
    house.drop_picture("photo.png", Some(words));
    house.until_ended(1);
    assert!(house.files("outbox").is_empty());
    let note = fs::read_to_string(house.path("inbox/failed/photo.png.error.txt")).unwrap();
    house.drop_picture("good.png", None);
    house.until_ended(2);
    assert_eq!(house.text("SELECT state FROM job WHERE id = 2"), "done", "{words}");
    (house.text("SELECT error_code FROM job WHERE id = 1"), note)
}

#[test]
fn lack_of_memory_is_told_from_a_crash() {
    let (code, note) = fate("kill@vae-decode");
    assert_eq!(code, "crashed");
    assert!(note.contains("ran out of memory") && note.contains("choose a smaller `size`"), "{note}");
    let (code, note) = fate("crash@text");
    assert!(code == "crashed" && note.contains("SIGABRT") && !note.contains("memory"), "{note}");
    let (code, note) = fate("exit@write");
    assert!(code == "crashed" && note.contains("exit status: 3"), "{note}");
}

#[test]
fn an_engine_that_talks_nonsense_is_replaced() {
    let (code, note) = fate("garbage");
    assert!(code == "crashed" && note.contains("its messages cannot be read"), "{note}");
    let (code, note) = fate("endless@load");
    assert!(code == "crashed" && note.contains("a line of more than"), "{note}");
    let (code, note) = fate("short");
    assert!(code == "output" && note.contains("the engine wrote"), "{note}");
    let (code, note) = fate("fail=device@vae-encode");
    assert!(code == "device" && note.contains("80 GiB"), "{note}");
}

#[test]
fn a_strange_report_ends_no_job() {
    let house = House::started("[defaults]\nseed = 7\n");
    house.drop_picture("photo.png", Some("stray"));
    house.until_ended(1);
    assert_eq!(house.files("outbox"), ["photo-7.mp4"]);
}

#[test]
fn an_engine_of_another_version_is_refused_in_words() {
    let mut house = House::new("");
    house.set_env("SIM_START", "protocol");
    house.start();
    house.drop_picture("photo.png", None);
    house.until("the state tells", |house| {
        let status = house.json(&["status"]);
        status["state"] == "no-engine"
            && status["state_text"].as_str().unwrap().contains("finish the upgrade")
    });
    house.until("the picture waits", |house| house.number("SELECT count(*) FROM job") == Some(1));
    assert_eq!(house.text("SELECT state || attempt FROM job"), "queued0");
}

#[test]
fn an_engine_that_never_speaks_is_tried_again_more_and_more_seldom() {
    let mut house = House::new("[engine]\nstart_seconds = 1\n");
    house.set_env("SIM_START", "mute");
    let lives = house.path("lives");
    house.set_env("SIM_LIVES", lives.to_str().unwrap());
    house.start();
    house.until("it was tried thrice", |_| fs::read(&lives).is_ok_and(|lives| lives.len() == 3));
    let log = fs::read_to_string(house.path("log")).unwrap();
    assert!(log.contains("the engine has ended: it has not been heard for"), "{log}");
}
