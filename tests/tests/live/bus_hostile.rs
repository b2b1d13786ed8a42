//! Calls of careless or hostile clients are refused or served, and delay nobody else.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use animd_client::{ManagerProxy, Options, error_name};
use futures_util::future::join_all;
use rustix::fs::{CWD, FileType, MemfdFlags, OFlags, SealFlags};
use tokio::time::timeout;
use zbus::Variant;

use crate::harness::{House, PICTURE};

/// Far longer than any answer takes on a busy machine, so that only a hang exceeds it.
const PATIENCE: Duration = Duration::from_secs(50);

/// Submits a file, and returns the error's name, if there is one.
async fn submit(
    manager: &ManagerProxy<'_>,
    file: impl AsFd,
    options: Options<'_>,
) -> Result<(), (String, String)> {
    let answer = timeout(PATIENCE, manager.submit(file.as_fd().into(), options)).await.expect("no answer");
    match answer {
        Ok(_) => Ok(()),
        Err(e) => Err((error_name(&e).unwrap_or("of the bus").to_owned(), e.to_string())),
    }
}

async fn alive(house: &House) {
    let manager = house.manager().await;
    let state = timeout(PATIENCE, manager.state()).await.expect("no answer").unwrap();
    assert!(!state.is_empty());
}

#[tokio::test]
async fn what_is_no_readable_picture_is_refused() {
    let house = House::started("[queue]\nper_user = 1000\n");
    let manager = house.manager().await;
    let fifo = house.path("fifo");
    rustix::fs::mknodat(CWD, &fifo, FileType::Fifo, 0o600.into(), 0).unwrap();
    let large = File::create_new(house.path("large")).unwrap();
    large.set_len(10 << 30).unwrap();
    let nothing = File::create_new(house.path("nothing")).unwrap();
    drop(nothing);
    let text = house.path("text.png");
    fs::write(&text, "this is no picture").unwrap();
    let picture = house.picture();
    let open = |flags: OFlags, path: &str| -> OwnedFd {
        rustix::fs::openat(CWD, path, flags | OFlags::CLOEXEC, 0o600.into()).unwrap()
    };
    let path = |name: &str| house.path(name).to_str().unwrap().to_owned();
    let (reader, writer) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap();
    let (socket, _other) = std::os::unix::net::UnixStream::pair().unwrap();
    for (what, file) in [
        ("a folder", open(OFlags::RDONLY | OFlags::DIRECTORY, &path(""))),
        ("a FIFO without a writer", open(OFlags::RDONLY | OFlags::NONBLOCK, &path("fifo"))),
        ("a FIFO", open(OFlags::RDWR, &path("fifo"))),
        ("a pipe", reader),
        ("a pipe's other end", writer),
        ("a socket", socket.into()),
        ("an endless device", open(OFlags::RDONLY, "/dev/zero")),
        ("an empty device", open(OFlags::RDONLY, "/dev/null")),
        ("10 GB of nothing", open(OFlags::RDONLY, &path("large"))),
        ("an empty file", open(OFlags::RDONLY, &path("nothing"))),
        ("text", open(OFlags::RDONLY, &path("text.png"))),
        ("a picture to be written", open(OFlags::WRONLY, &picture)),
        ("a picture that is only pointed at", open(OFlags::PATH, &picture)),
        ("a file of /proc", open(OFlags::RDONLY, "/proc/self/maps")),
    ] {
        let answer = submit(&manager, file, HashMap::new()).await;
        let (name, text) = answer.expect_err(what);
        assert_eq!(name, "InvalidImage", "{what}: {text}");
    }
    assert_eq!(house.number("SELECT count(*) FROM job"), Some(0));
    assert!(house.files("state/spool").is_empty());

    // These are pictures.
    let sealed =
        rustix::fs::memfd_create("picture", MemfdFlags::ALLOW_SEALING | MemfdFlags::CLOEXEC).unwrap();
    let mut sealed = File::from(sealed);
    sealed.write_all(PICTURE).unwrap();
    rustix::fs::fcntl_add_seals(
        &sealed,
        SealFlags::WRITE | SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL,
    )
    .unwrap();
    submit(&manager, &sealed, HashMap::new()).await.unwrap();
    submit(&manager, open(OFlags::RDWR, &picture), HashMap::new()).await.unwrap();
    let unlinked = open(OFlags::RDONLY, &picture);
    fs::remove_file(&picture).unwrap();
    submit(&manager, unlinked, HashMap::new()).await.unwrap();
    house.until_ended(3);
    assert_eq!(house.number("SELECT count(*) FROM job WHERE state = 'done'"), Some(3));
}

#[tokio::test]
async fn a_file_that_changes_is_refused_or_taken_whole() {
    let house = House::started("[queue]\nper_user = 1000\n");
    let manager = house.manager().await;
    manager.pause().await.unwrap();
    let path = house.path("restless");
    let mut whole = PICTURE.to_vec();
    whole.resize(8 << 20, b'x');
    fs::write(&path, &whole).unwrap();
    let stop = Arc::new(AtomicBool::new(false));
    let changing = {
        let (stop, path) = (stop.clone(), path.clone());
        std::thread::spawn(move || {
            let file = fs::OpenOptions::new().write(true).open(path).unwrap();
            let mut n = 0;
            while !stop.load(Ordering::Relaxed) {
                n = (n + 1) % 7;
                file.set_len((1 << 20) * (1 + n)).unwrap();
                std::thread::sleep(Duration::from_micros(300));
            }
        })
    };
    let mut taken = 0;
    for _ in 0..30 {
        match submit(&manager, File::open(&path).unwrap(), HashMap::new()).await {
            Ok(()) => taken += 1,
            Err((name, text)) => {
                assert_eq!(name, "InvalidImage", "{text}");
                assert!(text.contains("changed while it was read"), "{text}");
            }
        }
    }
    stop.store(true, Ordering::Relaxed);
    changing.join().unwrap();
    assert_eq!(house.number("SELECT count(*) FROM job"), Some(taken));
    alive(&house).await;
}

#[tokio::test]
async fn huge_and_strange_options_are_refused() {
    let house = House::started("");
    let manager = house.manager().await;
    let picture = File::open(house.picture()).unwrap();
    let send = async |options: Options<'_>| {
        let (name, text) = submit(&manager, &picture, options).await.expect_err("it is refused");
        assert!(text.len() < 2000, "an answer of {} bytes", text.len());
        name
    };
    let keys: Vec<String> = (0..200_000).map(|n| format!("key-{n}")).collect();
    let many = keys.iter().map(|key| (key.as_str(), Variant::from(1))).collect();
    assert_eq!(send(many).await, "UnknownOption");
    let long = "x".repeat(1 << 20);
    assert_eq!(send(HashMap::from([(long.as_str(), 1.into())])).await, "UnknownOption");
    for key in ["prompt", "negative_prompt", "size", "sampler", "idempotency_key", "keep"] {
        assert_eq!(send(HashMap::from([(key, long.as_str().into())])).await, "InvalidOption", "{key}");
    }
    let mut nested = Variant::from(1);
    for _ in 0..20 {
        nested = Variant::new(vec![nested]);
    }
    assert_eq!(send(HashMap::from([("prompt", nested)])).await, "InvalidOption");
    assert_eq!(send(HashMap::from([("steps", f64::NAN.into())])).await, "InvalidOption");
    assert_eq!(send(HashMap::from([("seed", i64::MIN.into())])).await, "InvalidOption");
    assert_eq!(send(HashMap::from([("priority", u64::MAX.into())])).await, "InvalidOption");
    let name = HashMap::from([("name", Variant::from("../".repeat(1000) + "\u{1}\n/.."))]);
    submit(&manager, &picture, name).await.unwrap();
    house.until_ended(1);
    assert!(house.files("outbox")[0].starts_with("video-"), "{:?}", house.files("outbox"));
}

#[tokio::test]
async fn a_flood_is_refused_or_served_and_the_next_client_is_heard() {
    let house = House::started("[queue]\nper_user = 50\n");
    let manager = house.manager().await;
    manager.pause().await.unwrap();
    let picture = File::open(house.picture()).unwrap();
    let calls = (0..10_000).map(|_| manager.submit(picture.as_fd().into(), HashMap::new()));
    let answers = timeout(PATIENCE * 4, join_all(calls)).await.expect("every call is answered");
    let mut counts: HashMap<String, i64> = HashMap::new();
    for answer in &answers {
        let name = match answer {
            Ok(_) => "served",
            // The bus daemon has limits of its own.
            Err(e) if e.to_string().contains("LimitsExceeded") => "LimitsExceeded",
            Err(e) => error_name(e).unwrap_or("of the bus"),
        };
        *counts.entry(name.to_owned()).or_default() += 1;
    }
    assert_eq!(counts.get("served"), Some(&50), "{counts:?}");
    let known = ["served", "QueueFull", "Busy", "LimitsExceeded"];
    assert!(counts.keys().all(|name| known.contains(&name.as_str())), "{counts:?}");
    assert_eq!(house.number("SELECT count(*) FROM job"), Some(50));
    let lists = (0..2_000).map(|_| manager.list(HashMap::new()));
    let lists = timeout(PATIENCE * 4, join_all(lists)).await.expect("every call is answered");
    for list in &lists {
        match list {
            Ok(list) => assert_eq!(list.len(), 50),
            Err(e) => assert!(e.to_string().contains("LimitsExceeded"), "{e}"),
        }
    }
    alive(&house).await;
    let open = house.open_files();
    assert!(open < 100, "{open} descriptors are left open");
}

#[tokio::test]
async fn clients_that_die_in_the_middle_leave_nothing_behind() {
    let house = House::started("[queue]\nper_user = 100000\n");
    let mut large = PICTURE.to_vec();
    large.resize(32 << 20, b'x');
    let path = house.path("large.png");
    fs::write(&path, &large).unwrap();
    house.manager().await.pause().await.unwrap();
    for _ in 0..20 {
        let manager = house.manager().await;
        let picture = File::open(&path).unwrap();
        let calls = (0..4).map(|_| manager.submit(picture.as_fd().into(), HashMap::new()));
        _ = timeout(Duration::from_millis(15), join_all(calls)).await;
        let hold = timeout(Duration::from_millis(5), manager.inhibit("pause", "dies", "young")).await;
        drop((manager, hold));
    }
    let manager = house.manager().await;
    // A picture that was sent completely may be a job, and every job has a complete picture.
    let mut before = -1;
    loop {
        let jobs = house.number("SELECT count(*) FROM job").unwrap();
        if jobs == before && house.files("state/spool").iter().all(|name| !name.contains(".part")) {
            break;
        }
        before = jobs;
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    let sizes: Vec<u64> = fs::read_dir(house.path("state/spool"))
        .unwrap()
        .map(|entry| entry.unwrap().metadata().unwrap().len())
        .collect();
    assert!(sizes.iter().all(|size| *size == 32 << 20), "{sizes:?}");
    manager.resume().await.unwrap();
    house.until("the holds of the dead are gone", |house| {
        house.json(&["status"])["state"].as_str().is_some_and(|state| state != "paused")
    });
    alive(&house).await;
}

#[tokio::test]
async fn a_path_is_opened_without_waiting() {
    let house = House::started("");
    let manager = house.manager().await;
    let fifo = house.path("inbox/fifo.png");
    rustix::fs::mknodat(CWD, &fifo, FileType::Fifo, 0o600.into(), 0).unwrap();
    fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(house.path("inbox/.hidden"))
        .unwrap();
    for path in ["inbox/fifo.png", "inbox", "inbox/.hidden", "inbox/../picture.png", "inbox/none.png"] {
        let path = house.path(path);
        let call = manager.submit_path(path.to_str().unwrap(), HashMap::new());
        let error = timeout(PATIENCE, call).await.expect("no answer").expect_err("it is refused");
        let name = error_name(&error).unwrap();
        assert!(["InvalidImage", "NotFound", "NotAuthorized"].contains(&name), "{path:?}: {error}");
    }
    alive(&house).await;
}
