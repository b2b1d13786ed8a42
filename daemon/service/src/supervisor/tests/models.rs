//! Engines of the model that a job names, and models that cannot be used.

use super::*;

#[tokio::test(start_paused = true)]
async fn a_job_of_another_model_gets_an_engine_with_that_model() {
    let models = tempfile::tempdir().expect("a folder");
    let other = models.path().join("models/other");
    std::fs::create_dir_all(&other).expect("made");
    let mut house = House::new(|config| config.models = Models::beside(models.path()));
    let mut first = house.engine().await;
    assert_eq!(first.1, Path::new("/model"));
    first.hello().await;
    house.until(ServiceState::Idle).await;
    let [a, b, c] = [of_model("other"), of_model("other"), Settings::default()];
    let [a, b, c] = [house.queue_with(a).await, house.queue_with(b).await, house.queue_with(c).await];
    let mut second = house.engine().await;
    assert_eq!(first.next().await, None, "one model at a time");
    assert_eq!(second.1, other);
    second.hello().await;
    for id in [a, b] {
        assert_eq!(second.job().await, id);
        second.fail(id, ErrorCode::InvalidImage).await;
    }
    let mut third = house.engine().await;
    assert_eq!(third.1, Path::new("/model"));
    third.hello().await;
    assert_eq!(third.job().await, c);
    house.end().await;
}

#[tokio::test(start_paused = true)]
async fn without_a_configured_model_jobs_that_name_one_run_and_others_wait() {
    let models = tempfile::tempdir().expect("a folder");
    let small = models.path().join("models/small");
    std::fs::create_dir_all(&small).expect("made");
    let mut house = House::new(|config| {
        config.model.path = None;
        config.models = Models::beside(models.path());
    });
    let first = house.queue().await;
    let said = house.until(ServiceState::NoWeights).await;
    assert!(said.starts_with("no model is configured: ") && said.contains("`animctl demo`"), "{said}");
    let named = house.queue_with(of_model("small")).await;
    let mut engine = house.engine().await;
    assert_eq!(engine.1, small);
    engine.hello().await;
    assert_eq!(engine.job().await, named);
    assert!(
        house.tools.profiles.recipes().of(None).is_none(),
        "another model says nothing of the configured one"
    );
    engine.fail(named, ErrorCode::InvalidImage).await;
    assert_eq!(house.until(ServiceState::NoWeights).await, said);
    let job = house.job(first).await;
    assert_eq!((job.state, job.attempt), (State::Queued, 0));
    house.end().await;
}

/// Refuses the model of an engine that was just started.
async fn refuse_model(mut engine: Remote) {
    assert!(matches!(engine.next().await, Some(ToEngine::Hello { .. })));
    engine.say(&FromEngine::Failed { job: 0, code: ErrorCode::Model, message: "it is torn".into() }).await;
}

#[tokio::test(start_paused = true)]
async fn a_configured_model_that_cannot_be_used_holds_up_its_own_jobs_only() {
    let models = tempfile::tempdir().expect("a folder");
    let other = models.path().join("models/other");
    std::fs::create_dir_all(&other).expect("made");
    let mut house = House::new(|config| config.models = Models::beside(models.path()));
    let first = house.queue().await;
    // The pauses between the tries grow to a minute.
    for _ in 0..8 {
        let engine = house.engine().await;
        assert_eq!(engine.1, Path::new("/model"));
        refuse_model(engine).await;
    }
    assert_eq!(house.until(ServiceState::NoWeights).await, "it is torn");
    let named = house.queue_with(of_model("other")).await;
    let mut engine = house.engine().await;
    while engine.1 != other {
        // The clock moves on while the ledger works, so that another try may have begun.
        refuse_model(engine).await;
        engine = house.engine().await;
    }
    engine.hello().await;
    assert_eq!(engine.job().await, named);
    engine.fail(named, ErrorCode::InvalidImage).await;
    assert_eq!(house.until(ServiceState::NoWeights).await, "it is torn");
    // The configured model is tried again all the same, and nobody else makes its videos.
    let idle = Instant::now();
    let mut engine = house.engine().await;
    assert_eq!(engine.1, Path::new("/model"));
    assert!(seconds_since(idle) <= 60);
    engine.hello().await;
    assert_eq!(engine.job().await, first);
    house.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_model_that_cannot_be_used_fails_its_own_jobs_only() {
    let models = tempfile::tempdir().expect("a folder");
    std::fs::create_dir_all(models.path().join("models/broken")).expect("made");
    let mut house = House::new(|config| config.models = Models::beside(models.path()));
    let gone = house.queue_with(of_model("gone")).await;
    let broken = house.queue_with(of_model("broken")).await;
    let good = house.queue().await;
    let mut engine = house.engine().await;
    while engine.1 != models.path().join("models/broken") {
        // The supervisor may have started the first engine before the jobs came.
        engine.hello().await;
        engine = house.engine().await;
    }
    assert!(matches!(engine.next().await, Some(ToEngine::Hello { .. })));
    engine.say(&FromEngine::Failed { job: 0, code: ErrorCode::Model, message: "it is torn".into() }).await;
    drop(engine);
    let mut next = house.engine().await;
    assert_eq!(next.1, Path::new("/model"));
    next.hello().await;
    assert_eq!(next.job().await, good);
    for (id, said) in
        [(gone, "no model is called `gone`"), (broken, "its model `broken` cannot be used: it is torn")]
    {
        let job = house.job(id).await;
        assert_eq!((job.state, job.error_code.as_deref()), (State::Failed, Some("model")));
        let text = job.error_text.map(String::from).unwrap_or_default();
        assert!(text.contains(said), "{text}");
    }
    house.end().await;
}

// Its clock is real, so that no engine counts as silent while the test waits for the ledger.
#[tokio::test]
async fn a_job_has_the_defaults_of_its_own_model_whichever_was_open() {
    let models = tempfile::tempdir().expect("a folder");
    std::fs::create_dir_all(models.path().join("models/other")).expect("made");
    let mut house = House::new(|config| config.models = Models::beside(models.path()));
    let mut engine = house.engine().await;
    engine.hello_of(Some(Recipe::wan21_i2v_14b())).await;
    house.until(ServiceState::Idle).await;
    let asked = house.queue_with(Settings { guidance: Some(5.0), ..of_model("other") }).await;
    let silent = house.queue_with(of_model("other")).await;
    assert!(house.job(silent).await.request.expect("settings").open.is_some(), "nobody knows its family");
    let mut engine = house.engine().await;
    engine.hello_of(Some(Recipe::wan22_i2v_a14b())).await;
    for (id, guidance) in [(asked, 5.0), (silent, 3.5)] {
        let Some(ToEngine::Generate { job, request, .. }) = engine.next().await else { panic!("a job") };
        assert_eq!((job, request.guidance, request.shift, request.seed), (id, guidance, 5.0, 7));
        assert_eq!(house.job(id).await.request, Some(*request), "it is written down");
        engine.fail(id, ErrorCode::InvalidImage).await;
    }
    // Both models are known from now on, whichever is open.
    for (settings, guidance) in [(of_model("other"), 3.5), (Settings::default(), 5.0)] {
        let id = house.queue_with(settings).await;
        let request = house.job(id).await.request.expect("settings");
        assert_eq!((request.guidance, request.open), (guidance, None));
    }
    house.end().await;
}
