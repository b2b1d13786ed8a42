//! What the ledger or an outbox refuses of jobs that have stopped: it is told, and done when it can be.

use animd_protocol::messages::Report;
use animd_protocol::progress::Stage;
use rusqlite::Connection;

use super::*;

/// Waits until the service's sentence has these words, in this state.
async fn told(house: &House, state: ServiceState, words: &str) -> String {
    let mut status = house.tools.events.status();
    let found = status.wait_for(|status| status.state == state && status.text.contains(words)).await;
    found.expect("the supervisor runs").text.to_string()
}

/// Waits until a job has this state.
async fn until_job(house: &House, id: u64, state: State) -> Job {
    loop {
        let job = house.job(id).await;
        if job.state == state {
            return job;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

// Their clock is real, so that no silent engine is replaced while a test waits for the ledger.
#[tokio::test]
async fn a_ledger_that_takes_no_entry_is_told_and_the_job_ends_when_it_does() {
    let mut house = House::new(|_| ());
    let mut engine = house.engine().await;
    engine.hello().await;
    let id = house.queue().await;
    assert_eq!(engine.job().await, id);
    // It stands for a full disk.
    let ledger = Connection::open(house.dir.path().join("ledger.db")).expect("a ledger");
    let full = "CREATE TRIGGER full BEFORE UPDATE ON job BEGIN SELECT RAISE(ABORT, 'the disk is full'); END";
    ledger.execute(full, []).expect("writable");
    engine.fail(id, ErrorCode::InvalidImage).await;
    let text = told(&house, ServiceState::NoOutput, "the ledger").await;
    assert!(text.starts_with("jobs wait, because the ledger takes no entry (the disk is full)"), "{text}");
    assert!(text.contains("make room on the disk of animd's state (`folders.state`)"), "{text}");
    assert_eq!(house.job(id).await.state, State::Running);
    // A job that waits is not started, and not forgotten either.
    let next = house.queue().await;
    ledger.execute("DROP TRIGGER full", []).expect("writable");
    assert_eq!(engine.job().await, next);
    assert_eq!(until_job(&house, id, State::Failed).await.error_code.as_deref(), Some("invalid-image"));
    engine.fail(next, ErrorCode::InvalidImage).await;
    house.until(ServiceState::Idle).await;
    house.end().await;
}

/// Lets the engine make a video while its outbox goes away. Returns the job, the outbox and where that is now.
async fn made_without_its_outbox(house: &mut House) -> (Remote, u64, PathBuf, PathBuf) {
    let id = house.queue().await;
    let mut engine = house.engine().await;
    engine.hello().await;
    let Some(ToEngine::Generate { output, .. }) = engine.next().await else { panic!("a job") };
    std::fs::write(&output, "a video").expect("written");
    let outbox = house.tools.config.get().folders.outbox.clone();
    let away = outbox.with_file_name("away");
    std::fs::rename(&outbox, &away).expect("renamed");
    let report = Report { bytes: 7, ..Report::default() };
    engine.say(&FromEngine::Done { job: id, report }).await;
    let text = told(house, ServiceState::NoOutput, "waits for its folder").await;
    assert!(text.starts_with(&format!("the finished video of job {id} waits for its folder: ")), "{text}");
    assert!(!text.contains("away") && !text.contains("outbox"), "folders of users are private: {text}");
    let live = house.tools.events.live(id).expect("it must not look as if it started").progress;
    assert_eq!((live.stage, live.fraction.to_bits()), (Stage::Write, 1.0f64.to_bits()));
    (engine, id, outbox, away)
}

#[tokio::test(start_paused = true)]
async fn a_video_whose_outbox_went_away_is_told_and_saved_when_it_is_back() {
    let mut house = House::new(|_| ());
    let (_engine, id, outbox, away) = made_without_its_outbox(&mut house).await;
    assert_eq!(house.job(id).await.state, State::Running);
    std::fs::rename(&away, &outbox).expect("renamed");
    // Nothing else happens meanwhile: the supervisor looks by itself.
    let job = until_job(&house, id, State::Done).await;
    assert_eq!(std::fs::read(job.output.expect("there is one")).expect("readable"), b"a video");
    assert!(house.tools.events.live(id).is_none());
    house.until(ServiceState::Idle).await;
    house.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_job_whose_outbox_went_away_can_be_cancelled() {
    let mut house = House::new(|_| ());
    let (_engine, id, ..) = made_without_its_outbox(&mut house).await;
    assert!(house.commands.cancel(id, "by somebody".into()).await.is_ok_and(|known| known));
    assert_eq!(until_job(&house, id, State::Canceled).await.error_code.as_deref(), Some("canceled"));
    house.until(ServiceState::Idle).await;
    house.end().await;
}
