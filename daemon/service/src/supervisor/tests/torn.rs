//! Files of a model that are cut, written or replaced during a job.

use super::*;

const CUT: &str = "`/model/dit.safetensors` had 9 bytes when it was opened and now has 4; copy it again";

/// Lets an engine that was just started take a job, and find out that its model was cut.
async fn cut_during_a_job(mut engine: Remote, job: u64) {
    engine.hello().await;
    assert_eq!(engine.job().await, job);
    engine.say(&FromEngine::Failed { job: 0, code: ErrorCode::Model, message: CUT.into() }).await;
}

#[tokio::test(start_paused = true)]
async fn a_job_waits_for_the_configured_model_whose_file_was_cut() {
    let mut house = House::new(|config| config.queue.attempts = 2);
    let id = house.queue().await;
    // More often than a job may take engines down.
    let mut since = Instant::now();
    for _ in 0..4 {
        let engine = house.engine().await;
        since = Instant::now();
        cut_during_a_job(engine, id).await;
        assert_eq!(house.until(ServiceState::NoWeights).await, CUT);
    }
    let job = house.job(id).await;
    assert_eq!((job.state, job.attempt, job.crashes), (State::Queued, 0, 0));
    let mut engine = house.engine().await;
    assert!((4..60).contains(&seconds_since(since)), "the pauses grow: {:?}", since.elapsed());
    engine.hello().await;
    assert_eq!(engine.job().await, id);
    house.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_job_that_names_a_model_whose_file_is_cut_again_and_again_fails_with_the_file() {
    let models = tempfile::tempdir().expect("a folder");
    std::fs::create_dir_all(models.path().join("models/other")).expect("made");
    let mut house = House::new(|config| {
        config.models = Models::beside(models.path());
        config.model.path = None;
        config.queue.attempts = 2;
    });
    let id = house.queue_with(of_model("other")).await;
    for _ in 0..2 {
        let engine = house.engine().await;
        cut_during_a_job(engine, id).await;
    }
    let job = loop {
        match house.job(id).await {
            job if job.state == State::Failed => break job,
            _ => tokio::time::sleep(Duration::from_millis(10)).await,
        }
    };
    let text = job.error_text.map(String::from).unwrap_or_default();
    assert!(text.contains("the last time because `/model/dit.safetensors` had 9 bytes"), "{text}");
    house.end().await;
}
