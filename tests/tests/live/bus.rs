//! What programs do over the bus: send, plan, fetch, retry, hold, pause, forget.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io::{Read, Seek, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use animd_client::{Dict, JobProxy, ManagerProxy, Options, error_name, has_ended, id_of};
use futures_util::StreamExt;
use zbus::proxy::CacheProperties;
use zbus::{Connection, OwnedObjectPath, Variant, fdo};

use crate::harness::House;

async fn job(bus: &Connection, path: &OwnedObjectPath) -> JobProxy<'static> {
    let path = path.clone().into_inner();
    JobProxy::builder(bus).path(path).cache_properties(CacheProperties::No).build().await.unwrap()
}

async fn submit(
    manager: &ManagerProxy<'_>,
    house: &House,
    options: Options<'_>,
) -> zbus::Result<OwnedObjectPath> {
    let picture = File::open(house.picture()).unwrap();
    manager.submit(picture.as_fd().into(), options).await
}

async fn ended(job: &JobProxy<'_>) -> String {
    loop {
        let state = job.state().await.unwrap();
        if has_ended(&state) {
            return state;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn until<F: Future<Output = bool>>(what: &str, mut done: impl FnMut() -> F) {
    let start = Instant::now();
    while !done().await {
        assert!(start.elapsed() < Duration::from_secs(120), "{what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

fn refused<T: std::fmt::Debug>(answer: zbus::Result<T>) -> (String, String) {
    let error = answer.expect_err("it should be refused");
    let name = error_name(&error).unwrap_or_default().to_owned();
    let zbus::Error::MethodError(_, text, _) = error else { panic!("{error}") };
    (name, text.unwrap_or_default())
}

fn text(dict: &Dict, key: &str) -> String {
    dict.get(key)
        .map(|v| animd_common::bus::json(v).unwrap())
        .and_then(|v| v.as_str().map(str::to_owned))
        .unwrap_or_default()
}

#[tokio::test]
async fn a_caller_fetches_its_own_video() {
    let house = House::started("");
    let manager = house.manager().await;
    let bus = manager.inner().connection().clone();
    let (mut new, mut removed) =
        (manager.receive_job_new().await.unwrap(), manager.receive_job_removed().await.unwrap());
    let picture = File::open(house.picture()).unwrap();
    // The service does not depend on the caller's file offset.
    (&picture).seek(std::io::SeekFrom::End(0)).unwrap();
    let options = HashMap::from([
        ("prompt", "a wave".into()),
        ("keep", "caller".into()),
        ("steps", 4_i64.into()),
        ("seed", 7_u8.into()),
        ("name", "mine".into()),
    ]);
    let path = manager.submit(picture.as_fd().into(), options).await.unwrap();
    assert_eq!(id_of(&path), Some(1));
    let told = new.next().await.unwrap();
    assert_eq!((told.args().unwrap().id, told.args().unwrap().job.as_str()), (1, path.as_str()));
    let told = removed.next().await.unwrap();
    assert_eq!((told.args().unwrap().id, told.args().unwrap().result), (1, "done"));

    let job = job(&bus, &path).await;
    assert_eq!(ended(&job).await, "done");
    assert_eq!(
        (job.progress().await.unwrap(), job.step().await.unwrap(), job.position().await.unwrap()),
        (1.0, (4, 4), 0)
    );
    assert!(house.files("outbox").is_empty(), "the caller fetches it");
    let mut video = File::from(OwnedFd::from(job.open_result().await.unwrap()));
    let mut read = String::new();
    video.read_to_string(&mut read).unwrap();
    assert!(read.contains("simulated video of job 1"), "{read}");
    assert!(video.write_all(b"x").is_err(), "a result is for reading");
    let described = job.describe().await.unwrap();
    assert_eq!((text(&described, "state"), text(&described, "name")), ("done".into(), "mine".into()));
    let thumbnail =
        job.open_thumbnail().await.map(|fd| File::from(OwnedFd::from(fd)).metadata().unwrap().len());
    assert!(thumbnail.unwrap() > 0);
    let poster = job.open_poster().await.map(|fd| File::from(OwnedFd::from(fd)).metadata().unwrap().len());
    assert!(poster.unwrap() > 0);

    job.collected().await.unwrap();
    assert_eq!(refused(job.open_result().await).0, "NotFound");
    job.collected().await.unwrap();
    assert!(house.files("state/results").is_empty());
    let history = manager.history(HashMap::from([("state", "done".into())])).await.unwrap();
    assert_eq!((history.len(), text(&history[0], "name")), (1, "mine".into()));
}

#[tokio::test]
async fn errors_have_their_names_and_a_remedy() {
    let house = House::started("[queue]\nper_user = 2\n");
    let manager = house.manager().await;
    let bus = manager.inner().connection().clone();
    let send = async |options: Options<'_>| submit(&manager, &house, options).await;
    let one = |key, value: Variant<'static>| HashMap::from([(key, value)]);

    let (name, told) = refused(send(one("promt", "a".into())).await);
    assert_eq!(name, "UnknownOption");
    assert!(told.ends_with("did you mean `prompt`?"), "{told}");
    for (key, value, part) in [
        ("priority", Variant::from("high"), "whole number"),
        ("priority", 101.into(), "-100 to 100"),
        ("keep", "me".into(), "neither `outbox` nor `caller`"),
        ("frames", 80.into(), "4n+1"),
        ("idempotency_key", "".into(), "1 to 200"),
    ] {
        let (name, told) = refused(send(one(key, value)).await);
        assert_eq!(name, "InvalidOption", "{told}");
        assert!(told.contains(part), "{told}");
    }
    assert_eq!(refused(manager.plan(one("width", 800.into())).await).0, "InvalidOption");
    assert_eq!(refused(manager.get_job(99).await).0, "NotFound");
    assert_eq!(refused(manager.get_job(u64::MAX).await).0, "NotFound");
    assert_eq!(refused(manager.inhibit("cold", "a", "b").await).0, "InvalidOption");

    let failed = job(&bus, &send(one("prompt", "fail".into())).await.unwrap()).await;
    ended(&failed).await;
    let (name, told) = refused(failed.open_result().await);
    assert_eq!(name, "NotEnoughMemory");
    assert!(told.contains("choose a smaller size"), "{told}");

    let slow = job(&bus, &send(one("prompt", "slow=1000".into())).await.unwrap()).await;
    assert_eq!(refused(slow.open_result().await).0, "NotReady");
    assert_eq!(refused(slow.open_thumbnail().await).0, "NotReady");
    assert_eq!(refused(slow.forget().await).0, "NotReady");
    let waits = job(&bus, &send(one("prompt", "waits".into())).await.unwrap()).await;
    let (name, told) = refused(send(HashMap::new()).await);
    assert_eq!(name, "QueueFull");
    assert!(told.contains("queue.per_user"), "{told}");
    waits.cancel().await.unwrap();
    assert_eq!(ended(&waits).await, "canceled");
    assert_eq!(refused(waits.open_result().await).0, "Canceled");
    assert_eq!(refused(waits.set_priority(1).await).0, "NotReady");
    until("it runs", async || slow.state().await.unwrap() == "running").await;
    assert_eq!(refused(manager.unload().await).0, "Busy");
}

#[tokio::test]
async fn the_queue_is_reordered_and_nobody_is_told_of_positions() {
    let house = House::started("");
    let manager = house.manager().await;
    let bus = manager.inner().connection().clone();
    manager.pause().await.unwrap();
    let mut jobs = Vec::new();
    for priority in [0, 0, 5] {
        let path = submit(&manager, &house, HashMap::from([("priority", priority.into())])).await.unwrap();
        jobs.push(job(&bus, &path).await);
    }
    let positions = async || {
        let mut all = Vec::new();
        for job in &jobs {
            all.push(job.position().await.unwrap());
        }
        all
    };
    until("all have their places", async || positions().await == [2, 3, 1]).await;
    jobs[1].set_priority(10).await.unwrap();
    until("one has moved", async || positions().await == [3, 1, 2]).await;
    assert_eq!(jobs[1].priority().await.unwrap(), 10);
    until("the length is told", async || manager.queued().await.unwrap() == 3).await;
    manager.resume().await.unwrap();
    house.until_ended(3);
    let order = house.text("SELECT group_concat(id) FROM (SELECT id FROM job ORDER BY started_us)");
    assert_eq!(order, "2,3,1");
}

#[tokio::test]
async fn a_pause_lasts_and_a_hold_ends_with_its_program() {
    let mut house = House::started("");
    {
        let manager = house.manager().await;
        manager.pause().await.unwrap();
        until("it is told", async || manager.paused().await.unwrap()).await;
    }
    house.kill();
    house.start();
    let manager = house.manager().await;
    assert!(manager.paused().await.unwrap());
    submit(&manager, &house, HashMap::new()).await.unwrap();
    manager.resume().await.unwrap();
    house.until_ended(1);

    let other = house.manager().await;
    let hold = other.inhibit("pause", "backup", "the disk is busy").await.unwrap();
    let watching =
        job(manager.inner().connection(), &submit(&manager, &house, HashMap::new()).await.unwrap()).await;
    until("it is told", async || manager.paused().await.unwrap()).await;
    until("who and why are told", async || {
        let text = manager.state_text().await.unwrap();
        text.contains("backup") && text.contains("the disk is busy")
    })
    .await;
    assert_eq!(watching.state().await.unwrap(), "queued");
    // Dropping the descriptor is what happens when a program ends: only the kernel reports it.
    drop(hold);
    drop(other);
    assert_eq!(ended(&watching).await, "done");
    until("the end is told", async || !manager.paused().await.unwrap()).await;

    let mut holds = Vec::new();
    while holds.len() < 16 {
        holds.push(manager.inhibit("warm", "a", "b").await.unwrap());
    }
    assert_eq!(refused(manager.inhibit("warm", "a", "b").await).0, "Busy");
    drop(holds.pop());
    until("there is room", async || manager.inhibit("warm", "a", "b").await.is_ok()).await;
    // `Unload` frees the memory in spite of the holds, and they do not load the model again.
    until("nothing runs", async || manager.unload().await.is_ok()).await;
    until("it is unloaded", async || manager.state_text().await.unwrap().contains("unloaded")).await;
}

#[tokio::test]
async fn jobs_are_retried_and_forgotten() {
    let house = House::started("");
    let manager = house.manager().await;
    let bus = manager.inner().connection().clone();
    let objects = fdo::ObjectManagerProxy::builder(&bus)
        .destination("org.animd.Animd1")
        .path("/org/animd/Animd1")
        .build()
        .await
        .unwrap();
    let options = HashMap::from([("prompt", "fail".into()), ("seed", 7.into())]);
    let first = job(&bus, &submit(&manager, &house, options).await.unwrap()).await;
    assert_eq!(ended(&first).await, "failed");
    assert_eq!(refused(first.retry(HashMap::from([("nmae", "x".into())])).await).0, "UnknownOption");
    let path = first.retry(HashMap::from([("prompt", "a wave".into())])).await.unwrap();
    let second = job(&bus, &path).await;
    assert_eq!(ended(&second).await, "done");
    let described = animd_common::bus::json(&Variant::new(second.describe().await.unwrap())).unwrap();
    assert_eq!((&described["retry_of"], &described["settings"]["seed"]), (&1.into(), &7.into()));

    let mut gone = objects.receive_interfaces_removed().await.unwrap();
    first.forget().await.unwrap();
    let path = gone.next().await.unwrap().args().unwrap().object_path.to_string();
    assert_eq!(path, "/org/animd/Animd1/job/1");
    assert_eq!(refused(manager.get_job(1).await).0, "NotFound");
    assert!(first.state().await.is_err());
    assert_eq!(house.number("SELECT count(*) FROM job"), Some(1));
    let managed = objects.get_managed_objects().await.unwrap();
    let ours: HashSet<String> =
        managed.iter().filter(|(_, i)| !i.is_empty()).map(|(p, _)| p.to_string()).collect();
    assert!(
        ours.contains("/org/animd/Animd1/job/2") && !ours.contains("/org/animd/Animd1/job/1"),
        "{ours:?}"
    );
}

#[tokio::test]
async fn a_plan_says_how_long_jobs_like_it_took() {
    let house = House::started("");
    let manager = house.manager().await;
    let bus = manager.inner().connection().clone();
    let asked = || HashMap::from([("steps", 5.into()), ("prompt", "a".into())]);
    let done = job(&bus, &submit(&manager, &house, asked()).await.unwrap()).await;
    ended(&done).await;
    let mut options = asked();
    options.extend([("width", Variant::from(832)), ("height", 480.into())]);
    let plan = animd_common::bus::json(&Variant::new(manager.plan(options).await.unwrap())).unwrap();
    assert_eq!((&plan["steps"], &plan["forwards"]), (&5.into(), &10.into()), "{plan}");
    assert!(plan["why"].is_array(), "{plan}");
    assert_eq!(house.number("SELECT count(*) FROM job"), Some(1), "nothing is queued");
    let profiles = manager.profiles().await.unwrap();
    assert!(profiles.iter().any(|p| text(p, "name") == "h200"), "{profiles:?}");
    assert!(manager.reload().await.is_ok());
    std::fs::write(house.path("animd.toml"), "[queue]\nper_usr = 1\n").unwrap();
    let (name, told) = refused(manager.reload().await);
    assert_eq!(name, "InvalidOption");
    assert!(told.contains("animd.toml:2") && told.contains("per_user"), "{told}");
}

#[tokio::test]
async fn progress_is_told_at_most_four_times_a_second() {
    let house = House::started("");
    let manager = house.manager().await;
    let bus = manager.inner().connection().clone();
    let start = Instant::now();
    let options = HashMap::from([("prompt", "slow=20".into()), ("steps", 100.into())]);
    let path = submit(&manager, &house, options).await.unwrap();
    let properties = fdo::PropertiesProxy::builder(&bus)
        .destination("org.animd.Animd1")
        .path(path.clone().into_inner())
        .build()
        .await
        .unwrap();
    let mut changes = properties.receive_properties_changed().await.unwrap();
    let (mut told, mut last) = (0, 0.0);
    loop {
        let change = changes.next().await.unwrap();
        let changed = change.args().unwrap().changed_properties;
        assert!(!changed.contains_key("Position"));
        if let Some(progress) = changed.get("Progress") {
            let progress: f64 = progress.try_into().unwrap();
            assert!(progress >= last);
            (told, last) = (told + 1, progress);
        }
        if changed.get("State").is_some_and(|state| *state == Variant::from("done")) {
            break;
        }
    }
    // The last signal comes with the job's end.
    let most = 4.0 * start.elapsed().as_secs_f64() + 2.0;
    assert!((2.0..=most).contains(&f64::from(told)), "{told} in {:?}", start.elapsed());
}
