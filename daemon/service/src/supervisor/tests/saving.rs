//! A job that computes while the file of the one before is finished.

use super::*;

/// How long these tests wait for what should not come. Their clock is real: a paused one would run on to the limit for
/// silent engines whenever a test waits for the ledger.
const A_WHILE: Duration = Duration::from_millis(300);

/// Starts a supervisor whose engine finishes the file of the first of two jobs, and computes the second one.
async fn saving_one_and_computing_another(change: impl FnOnce(&mut Config)) -> (House, Remote, u64, u64) {
    let mut house = House::new(|config| {
        config.profile.name = "cpu".into();
        change(config);
    });
    let (first, second) = (house.queue().await, house.queue().await);
    let mut engine = house.engine().await;
    engine.hello().await;
    assert_eq!(engine.job().await, first);
    engine.say(&FromEngine::Saving { job: first }).await;
    assert_eq!(engine.job().await, second);
    for id in [first, second] {
        assert_eq!(house.job(id).await.state, State::Running);
    }
    (house, engine, first, second)
}

#[tokio::test]
async fn a_job_starts_while_the_file_of_the_one_before_is_finished() {
    let (house, mut engine, first, second) = saving_one_and_computing_another(|_| ()).await;
    let third = house.queue().await;
    // Nobody saves two files at a time, and nobody saves what he was not given.
    engine.say(&FromEngine::Saving { job: second }).await;
    engine.say(&FromEngine::Saving { job: 77 }).await;
    assert!(tokio::time::timeout(A_WHILE, engine.next()).await.is_err());
    engine.fail(first, ErrorCode::InvalidImage).await;
    house
        .tools
        .events
        .status()
        .wait_for(|status| status.text.contains(&format!("job {second}")))
        .await
        .unwrap();
    assert_eq!(house.job(second).await.state, State::Running);
    engine.say(&FromEngine::Saving { job: second }).await;
    assert_eq!(engine.job().await, third);
    // The later one may end before the earlier one.
    engine.fail(third, ErrorCode::InvalidImage).await;
    let text = format!("job {second} is running");
    house.tools.events.status().wait_for(|status| status.text.contains(&text)).await.unwrap();
    let refused = house.commands.unload().await.expect_err("a file is being finished");
    assert_eq!(refused.code(), ErrorCode::Busy);
    engine.fail(second, ErrorCode::InvalidImage).await;
    house.until(ServiceState::Idle).await;
    for id in [first, second, third] {
        assert_eq!(house.job(id).await.state, State::Failed);
    }
    house.end().await;
}

#[tokio::test]
async fn both_jobs_of_an_engine_that_dies_run_again() {
    let (mut house, engine, first, second) = saving_one_and_computing_another(|_| ()).await;
    drop(engine);
    let mut next = house.engine().await;
    next.hello().await;
    for id in [first, second] {
        assert_eq!(next.job().await, id, "in the order of the queue");
        let job = house.job(id).await;
        assert_eq!((job.attempt, job.crashes), (2, 1));
        next.fail(id, ErrorCode::InvalidImage).await;
    }
    assert_eq!(house.tools.events.restarts(), 1);
    house.end().await;
}

#[tokio::test]
async fn both_jobs_go_back_into_the_queue_when_the_machine_sleeps() {
    let (house, mut engine, first, second) = saving_one_and_computing_another(|_| ()).await;
    house.commands.sleep().await.expect("the supervisor runs");
    assert_eq!(engine.next().await, None);
    for id in [first, second] {
        let job = house.job(id).await;
        assert_eq!((job.state, job.attempt, job.crashes), (State::Queued, 0, 0));
    }
    house.end().await;
}

#[tokio::test]
async fn a_job_whose_file_is_being_finished_can_be_cancelled() {
    let (mut house, mut engine, first, second) =
        saving_one_and_computing_another(|config| config.engine.cancel_seconds = 1).await;
    assert!(house.commands.cancel(first, "by somebody".into()).await.is_ok_and(|known| known));
    assert!(matches!(engine.next().await, Some(ToEngine::Cancel { job }) if job == first));
    // An engine that ignores the cancel is ended, and the other job runs again.
    assert_eq!(engine.next().await, None);
    let mut next = house.engine().await;
    next.hello().await;
    assert_eq!(next.job().await, second);
    assert_eq!(house.job(first).await.state, State::Canceled);
    house.end().await;
}

#[tokio::test]
async fn another_model_waits_until_the_last_file_is_finished() {
    let models = tempfile::tempdir().expect("a folder");
    std::fs::create_dir_all(models.path().join("models/other")).expect("made");
    let mut house = House::new(|config| config.models = Models::beside(models.path()));
    let first = house.queue().await;
    let mut engine = house.engine().await;
    engine.hello().await;
    assert_eq!(engine.job().await, first);
    let other = house.queue_with(of_model("other")).await;
    engine.say(&FromEngine::Saving { job: first }).await;
    assert!(tokio::time::timeout(A_WHILE, engine.next()).await.is_err(), "it is not ended");
    let status = house.tools.events.status().borrow().clone();
    assert_eq!(status.state, ServiceState::Busy, "{}", status.text);
    engine.fail(first, ErrorCode::InvalidImage).await;
    assert_eq!(engine.next().await, None);
    let mut next = house.engine().await;
    assert_eq!(next.1, models.path().join("models/other"));
    next.hello().await;
    assert_eq!(next.job().await, other);
    house.end().await;
}

#[tokio::test]
async fn a_choice_that_is_due_waits_for_the_last_file_and_no_longer() {
    let (house, mut engine, first, second) = saving_one_and_computing_another(|_| ()).await;
    let third = house.queue().await;
    engine.fail(first, ErrorCode::InvalidImage).await;
    let mut config = Config::clone(&house.tools.config.get());
    config.profile.name = "cpu-of-another-name".into();
    house.tools.config.replace(Arc::new(config));
    engine.say(&FromEngine::Saving { job: second }).await;
    assert!(tokio::time::timeout(A_WHILE, engine.next()).await.is_err(), "no job before the choice is made");
    assert_eq!(house.job(third).await.state, State::Queued);
    let looked = house.tools.profiles.choice();
    engine.fail(second, ErrorCode::InvalidImage).await;
    // Whatever comes of it, the choice is made again now.
    while *house.tools.profiles.choice() == *looked {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    house.end().await;
}
