//! What a person can do to the queue: priorities, retrying, forgetting, pausing, unloading; and the retention of old
//! data.

use std::fs;

use animd::queue::Retry;
use animd::retention;
use animd::service::Parts;
use animd::store::ledger::{PART_PREFIX, PART_SUFFIX};
use animd_common::config::{Config, Sources};
use animd_protocol::request::Settings;
use rusqlite::{Connection, params};
use sha2::{Digest, Sha256};

use crate::harness::{House, PICTURE};

/// Returns the parts of a service that does not run.
fn parts_of(house: &House) -> Parts {
    let mut config = Config::default();
    config.folders.inbox = house.path("inbox");
    config.folders.outbox = house.path("outbox");
    config.folders.state = house.path("state");
    Parts::new(config, Sources::default()).unwrap()
}

fn refusal<T>(result: animd::Result<T>) -> (&'static str, String) {
    let e = result.err().expect("refused");
    (e.code().name(), e.to_string())
}

fn in_a_runtime<T>(work: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(work)
}

#[test]
fn an_ended_job_is_retried_and_forgotten() {
    let mut house = House::started("[defaults]\nseed = 7\n");
    house.drop_picture("photo.png", Some("fail"));
    house.until_ended(1);
    house.stop();
    let parts = parts_of(&house);
    in_a_runtime(async {
        assert_eq!(refusal(parts.queue.retry(9, Retry::default()).await).0, "not-found");
        let settings = Settings { prompt: Some("a wave".into()), ..Settings::default() };
        assert_eq!(parts.queue.retry(1, Retry { settings, new_seed: true }).await.unwrap(), 2);
        assert_eq!(refusal(parts.queue.retry(2, Retry::default()).await).0, "not-ready");
        assert_eq!(refusal(parts.queue.forget(2).await).0, "not-ready");
        assert_eq!(parts.queue.retry(1, Retry::default()).await.unwrap(), 3);
        parts.queue.set_priority(3, 5).await.unwrap();
        assert_eq!(parts.queue.ledger.call(|db| db.queue()).await.unwrap(), [3, 2]);
        assert_eq!(refusal(parts.queue.set_priority(1, 5).await).0, "not-ready");
    });
    drop(parts);
    house.start();
    house.until_ended(3);
    assert_eq!(house.text("SELECT group_concat(state) FROM job"), "failed,done,failed");
    assert_eq!(house.number("SELECT count(*) FROM job WHERE retry_of = 1"), Some(2));
    assert!(house.number("SELECT seed FROM job WHERE id = 2") != Some(7));
    assert_eq!(house.number("SELECT seed FROM job WHERE id = 3"), Some(7));
    let videos = house.files("outbox");
    assert!(videos.len() == 1 && videos[0].starts_with("photo-"), "{videos:?}");
    house.stop();
    let parts = parts_of(&house);
    in_a_runtime(async {
        for id in [1, 2] {
            parts.queue.forget(id).await.unwrap();
            assert_eq!(house.files("state/spool").len(), 1, "job 3 may still be retried");
        }
        parts.queue.forget(3).await.unwrap();
        assert_eq!(refusal(parts.queue.forget(3).await).0, "not-found");
    });
    assert!(house.files("state/spool").is_empty() && house.files("state/pictures").is_empty());
    assert_eq!(house.files("outbox"), videos, "a video that is in its place stays");
    assert_eq!(house.number("SELECT (SELECT count(*) FROM job) + (SELECT count(*) FROM event)"), Some(0));
    let left = fs::read(house.path("state/ledger.db")).unwrap();
    assert!(!left.windows(6).any(|bytes| bytes == b"a wave"), "the prompt is still in the ledger's file");
}

#[test]
fn a_picture_that_would_be_taken_again_keeps_its_job() {
    let mut house = House::started("");
    house.drop_picture("photo.png", None);
    house.until_ended(1);
    house.stop();
    // The picture goes back, as if it could not have been moved.
    fs::rename(house.path("inbox/done/photo.png"), house.path("inbox/photo.png")).unwrap();
    Connection::open(house.path("state/ledger.db"))
        .unwrap()
        .execute_batch("UPDATE job SET source_left = 1")
        .unwrap();
    let parts = parts_of(&house);
    in_a_runtime(async {
        let (code, text) = refusal(parts.queue.forget(1).await);
        assert!(code == "not-ready" && text.contains("inbox/photo.png"), "{text}");
        fs::remove_file(house.path("inbox/photo.png")).unwrap();
        parts.queue.forget(1).await.unwrap();
    });
}

#[test]
fn a_result_is_kept_until_it_is_collected() {
    let mut house = House::started("");
    house.json(&["submit", &house.picture(), "-p", "slow=50"]);
    house.stop();
    // The job is one whose caller fetches the video.
    let results = house.path("state/results");
    let db = Connection::open(house.path("state/ledger.db")).unwrap();
    db.execute("UPDATE job SET outbox = ?1", [results.to_str().unwrap().as_bytes()]).unwrap();
    house.start();
    house.until_ended(1);
    assert_eq!((house.files("state/results").len(), house.files("outbox").len()), (1, 0));
    house.stop();
    let parts = parts_of(&house);
    in_a_runtime(async {
        parts.queue.collected(1).await.unwrap();
        parts.queue.collected(1).await.unwrap();
    });
    assert!(house.files("state/results").is_empty());
    assert_eq!(house.number("SELECT count(*) FROM event WHERE kind = 'collected'"), Some(1));
}

#[test]
fn a_pause_outlives_a_restart() {
    let mut house = House::started("");
    house.stop();
    let parts = parts_of(&house);
    in_a_runtime(parts.queue.pause("by user 7")).unwrap();
    drop(parts);
    let lives = house.path("lives");
    house.set_env("SIM_LIVES", lives.to_str().unwrap());
    house.start();
    house.drop_picture("photo.png", None);
    house.until("it is queued", |house| house.number("SELECT count(*) FROM job") == Some(1));
    let status = house.json(&["status"]);
    assert_eq!(status["state"], "paused");
    assert_eq!(status["state_text"], "the queue is paused by user 7; `animctl resume` continues it");
    assert_eq!(house.text("SELECT state FROM job"), "queued");
    assert!(!lives.exists(), "nobody needs the GPU's memory");
    house.stop();
    let parts = parts_of(&house);
    parts.recover().unwrap();
    assert_eq!(parts.queue.holds.paused().as_deref(), Some("by user 7"));
    in_a_runtime(parts.queue.resume()).unwrap();
    drop(parts);
    house.start();
    house.until_ended(1);
}

#[test]
fn an_idle_engine_is_unloaded_and_comes_back_with_a_job() {
    let mut house = House::new("[engine]\nidle_unload_seconds = 1\n");
    let lives = house.path("lives");
    house.set_env("SIM_LIVES", lives.to_str().unwrap());
    house.start();
    for n in 1..=2 {
        house.until("the engine goes", |house| house.engine().is_none() && lives.exists());
        house.until("the state tells", |house| {
            let status = house.json(&["status"]);
            status["state"] == "idle" && status["state_text"].as_str().unwrap().contains("unloaded")
        });
        house.drop_picture(format!("photo{n}.png"), Some(&format!("number {n}")));
        house.until_ended(n);
    }
    assert_eq!(fs::read(&lives).unwrap().len(), 3);
}

#[test]
fn a_ledger_of_the_first_version_is_taken_over() {
    let mut house = House::new("");
    fs::create_dir_all(house.path("state/spool")).unwrap();
    let path = house.path("state/ledger.db");
    let db = Connection::open(&path).unwrap();
    db.execute_batch(include_str!("../../../daemon/service/src/store/ledger/schema-1.sql")).unwrap();
    db.pragma_update(None, "user_version", 1).unwrap();
    let sha: [u8; 32] = Sha256::digest(PICTURE).into();
    fs::write(house.path("state/spool").join(animd_common::files::hex(&sha)), PICTURE).unwrap();
    let request = serde_json::to_string(&Settings::default().resolve(|| 7).unwrap()).unwrap();
    let video = b"a video";
    let video_sha: [u8; 32] = Sha256::digest(video).into();
    for (id, state, outcome) in [
        (1, "queued", None),
        (2, "running", None),
        (3, "finishing", Some("done")),
        (4, "done", Some("done")),
        (5, "failed", Some("failed")),
        (6, "canceled", Some("canceled")),
    ] {
        let output = house.path(&format!("outbox/{id}-7.mp4"));
        let done = outcome == Some("done");
        db.execute(
            "INSERT INTO job (id, uuid, state, outcome, attempt, created_us, owner_uid, origin, name, image_sha256, settings_json,
               seed, version, output_path, output_sha256, output_bytes, error_code, error_text)
             VALUES (?1, ?2, ?3, ?4, 1, 1, 0, 'bus', ?5, ?6, ?7, 7, '0.1.0', ?8, ?9, 7, ?10, ?11)",
            params![
                id,
                format!("6b2cb0a8-9c0f-4d3e-8a57-0f8c1f3d2b1{id}"),
                state,
                outcome,
                format!("{id}.png").as_bytes(),
                sha,
                request,
                done.then(|| output.to_str().unwrap().as_bytes()),
                done.then_some(video_sha),
                outcome.filter(|o| *o != "done"),
                outcome.filter(|o| *o != "done"),
            ],
        )
        .unwrap();
    }
    drop(db);
    let part = format!("outbox/{PART_PREFIX}6b2cb0a8-9c0f-4d3e-8a57-0f8c1f3d2b13-1{PART_SUFFIX}");
    fs::write(house.path(&part), video).unwrap();
    fs::write(house.path("outbox/4-7.mp4"), video).unwrap();
    house.start();
    house.until_ended(6);
    assert_eq!(house.text("SELECT group_concat(state) FROM job"), "done,done,done,done,failed,canceled");
    assert_eq!(house.files("outbox"), ["1-7.mp4", "2-7.mp4", "3-7.mp4", "4-7.mp4"]);
    assert_eq!(house.number("PRAGMA user_version"), Some(5));
    assert_eq!(house.number("PRAGMA auto_vacuum"), Some(2));
    let copy = Connection::open(house.path("state/ledger.db.schema-1")).unwrap();
    let queued = copy.query_row("SELECT state FROM job WHERE id = 1", [], |row| row.get::<_, String>(0));
    assert_eq!(queued.unwrap(), "queued");
}

#[test]
fn what_is_old_goes() {
    let mut house = House::started("");
    for n in 0..2 {
        house.drop_picture(format!("photo{n}.png"), Some(&format!("number {n}")));
        house.until_ended(n + 1);
    }
    house.stop();
    let db = Connection::open(house.path("state/ledger.db")).unwrap();
    // The first job ended 40 days ago.
    db.execute("UPDATE job SET finished_us = finished_us - 40 * 86400000000 WHERE id = 1", []).unwrap();
    db.execute("INSERT INTO sample (job, attempt, at_us) VALUES (1, 1, 1), (2, 1, 1)", []).unwrap();
    fs::create_dir(house.path("state/results")).unwrap();
    fs::write(house.path("state/results/new.mp4"), "x").unwrap();
    fs::write(house.path("state/results/old.mp4"), "x").unwrap();
    let old = fs::File::options().write(true).open(house.path("state/results/old.mp4")).unwrap();
    old.set_modified(std::time::SystemTime::now() - std::time::Duration::from_secs(8 * 86400)).unwrap();
    let parts = parts_of(&house);
    in_a_runtime(retention::clean(&parts.queue)).unwrap();
    for table in ["step", "sample"] {
        assert_eq!(house.number(&format!("SELECT count(*) FROM {table} WHERE job = 1")), Some(0), "{table}");
        assert!(house.number(&format!("SELECT count(*) FROM {table} WHERE job = 2")) > Some(0), "{table}");
    }
    assert!(house.number("SELECT count(*) FROM event WHERE job = 1") > Some(0), "events stay 90 days");
    assert_eq!(house.files("state/results"), ["new.mp4"]);
    assert_eq!(house.files("state/spool").len(), 1, "both jobs are of one picture, and the second is new");
    assert_eq!(house.number("PRAGMA freelist_count"), Some(0));
    let mut config = (*parts.config.get()).clone();
    config.retention.jobs_days = 30;
    parts.reloader.apply(config);
    db.execute("UPDATE job SET finished_us = finished_us - 8 * 86400000000 WHERE id = 2", []).unwrap();
    assert_eq!(house.files("state/pictures").len(), 4, "a poster and a thumbnail of each");
    in_a_runtime(retention::clean(&parts.queue)).unwrap();
    let uuid = house.text("SELECT uuid FROM job");
    assert!(
        house.files("state/pictures").iter().all(|name| name.starts_with(&uuid)),
        "those of the first go with it"
    );
    assert_eq!(house.files("state/pictures").len(), 2);
    assert_eq!(house.number("SELECT id FROM job"), Some(2));
    assert!(house.files("state/spool").is_empty());
    assert_eq!(house.files("outbox").len(), 2);
}
