//! One user of the machine cannot harm the others over the bus. Users are simulated by connections with their uids,
//! which only root can make.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use animd::cli::EXIT_CONFIG;
use animd_client::{ManagerProxy, error_name};
use futures_util::future::join_all;
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio::time::timeout;
use zbus::{Connection, Message, Variant};

use crate::harness::{ALICE, BOB, House, PICTURE, others};

/// Far longer than any answer takes on a busy machine, so that only a hang exceeds it.
const PATIENCE: Duration = Duration::from_secs(50);
/// A pause in which the service reads what the bus keeps for it.
const PAUSE: Duration = Duration::from_millis(20);
/// The most memory that a user can make the service take.
const MOST_MEMORY: u64 = 120 << 20;
/// The most open files of a service that nobody calls.
const FEW_FILES: usize = 60;

const MANAGER: &str = "org.animd.Animd1.Manager";
const PATH: &str = "/org/animd/Animd1";

/// Returns a service with a paused queue, on a bus that all users reach.
async fn house() -> House {
    paused(House::closed_system("[queue]\nper_user = 1000\n")).await
}

async fn paused(mut house: House) -> House {
    house.start();
    house.manager().await.pause().await.unwrap();
    house
}

async fn manager(connection: &Connection) -> ManagerProxy<'static> {
    ManagerProxy::new(connection).await.unwrap()
}

/// Checks that Alice can submit a picture, whatever Bob does.
async fn alice_is_served(house: &House) {
    let alice = manager(&house.connect_as(ALICE).await).await;
    let picture = File::open(house.picture()).unwrap();
    let submit = async {
        loop {
            match alice.submit(picture.as_fd().into(), HashMap::new()).await {
                // The bus has a limit of its own for what the service has not read yet.
                Err(e) if e.to_string().contains("LimitsExceeded") => tokio::time::sleep(PAUSE).await,
                answer => return answer,
            }
        }
    };
    timeout(PATIENCE, submit).await.expect("Alice is answered").expect("Alice is served");
}

/// Submits jobs with the longest prompts.
async fn submit_long(house: &House, user: &Connection, count: usize) {
    let (user, picture) = (manager(user).await, File::open(house.picture()).unwrap());
    let prompt = "p".repeat(16_000);
    for _ in 0..count {
        let long = ["prompt", "negative_prompt"].map(|key| (key, Variant::from(prompt.as_str())));
        user.submit(picture.as_fd().into(), HashMap::from(long)).await.unwrap();
    }
}

/// Returns a call with sixteen descriptors that its method does not take.
fn loaded_call(path: &str, interface: &str, member: &str) -> Message {
    let nothing = File::open("/dev/null").unwrap();
    let descriptors = (0..16).map(|_| OwnedFd::from(nothing.try_clone().unwrap()).into()).collect();
    let call = Message::method_call(path, member).destination("org.animd.Animd1").interface(interface);
    // SAFETY: an empty dictionary is its length and four bytes of padding, and has no descriptors.
    unsafe { call.build_raw_body(&[0; 8], "a{sv}", descriptors) }.unwrap()
}

#[tokio::test]
async fn descriptors_that_no_method_takes_do_not_pile_up() {
    if !others() {
        return;
    }
    let mut house = House::closed_system("[queue]\nper_user = 1000\n");
    house.wrap(&["sh", "-c", "ulimit -n 1024; exec \"$@\"", "sh"]);
    let mut house = paused(house).await;
    let bobs = join_all((0..6).map(|_| house.connect_as(BOB))).await;
    submit_long(&house, &bobs[0], 40).await;
    let job = format!("{PATH}/job/1");
    let calls = [
        (PATH, MANAGER, "History"),
        (PATH, MANAGER, "List"),
        (PATH, MANAGER, "History"),
        (PATH, MANAGER, "NoSuchMethod"),
        (PATH, MANAGER, "History"),
        (PATH, "org.freedesktop.DBus.ObjectManager", "GetManagedObjects"),
        (PATH, MANAGER, "History"),
        (PATH, "org.freedesktop.DBus.Introspectable", "Introspect"),
        (&job, "org.freedesktop.DBus.Properties", "GetAll"),
        (&job, "org.animd.Animd1.Job", "Describe"),
        ("/nowhere", MANAGER, "History"),
        ("/nowhere", "org.freedesktop.DBus.Peer", "Ping"),
    ];
    let mut sent = 0;
    for _ in 0..8 {
        for (bob, (path, interface, member)) in bobs.iter().flat_map(|bob| calls.map(|call| (bob, call))) {
            bob.send(&loaded_call(path, interface, member)).await.unwrap();
            sent += 1;
            if sent % 4 == 0 {
                tokio::time::sleep(PAUSE / 10).await;
            }
        }
    }
    alice_is_served(&house).await;
    assert_eq!(house.exited(), None);
    house.until("the descriptors are closed", |house| house.open_files() < FEW_FILES);
    assert!(house.memory("VmHWM") < MOST_MEMORY, "{} bytes", house.memory("VmHWM"));
}

#[tokio::test]
async fn long_answers_are_bounded_and_given_back() {
    if !others() {
        return;
    }
    let house = house().await;
    let bobs = join_all((0..4).map(|_| house.connect_as(BOB))).await;
    submit_long(&house, &bobs[0], 60).await;
    let managers = join_all(bobs.iter().map(manager)).await;
    let history = || managers.iter().flat_map(|bob| (0..40).map(|_| bob.history(HashMap::new())));
    let flood = async {
        for page in timeout(PATIENCE * 2, join_all(history())).await.expect("every call is answered") {
            let count = page.unwrap().len();
            assert!((1..60).contains(&count), "{count} jobs in one answer");
        }
    };
    tokio::join!(flood, alice_is_served(&house));
    assert!(house.memory("VmHWM") < MOST_MEMORY, "{} bytes", house.memory("VmHWM"));
    house.until("memory is given back", |house| house.memory("VmRSS") < MOST_MEMORY / 2);

    // All jobs come, page by page.
    let (mut before, mut seen) = (HashMap::new(), Vec::new());
    loop {
        let page = managers[0].history(before).await.unwrap();
        let ids: Vec<u64> = page.iter().map(|job| job["id"].downcast_ref().unwrap()).collect();
        let Some(last) = ids.last() else { break };
        before = HashMap::from([("before", (*last).into())]);
        seen.extend(ids);
    }
    assert_eq!(seen, (1..=60).rev().collect::<Vec<u64>>());
}

#[tokio::test]
async fn one_users_submissions_leave_room_for_others_and_end_with_their_clients() {
    if !others() {
        return;
    }
    let house = house().await;
    let large = house.path("large.png");
    let mut file = File::create_new(&large).unwrap();
    file.write_all(PICTURE).unwrap();
    file.set_len(48 << 20).unwrap();
    fs::set_permissions(&large, fs::Permissions::from_mode(0o644)).unwrap();
    let file = Arc::new(File::open(&large).unwrap());
    let full = Arc::new(Notify::new());
    let mut calls = JoinSet::new();
    for bob in join_all((0..8).map(|_| house.connect_as(BOB))).await {
        let bob = manager(&bob).await;
        // The service knows who calls before the flood.
        bob.get_job(u64::MAX).await.unwrap_err();
        for _ in 0..90 {
            let (bob, file, full) = (bob.clone(), file.clone(), full.clone());
            calls.spawn(async move {
                while let Err(e) = bob.submit(file.as_fd().into(), HashMap::new()).await {
                    if error_name(&e) == Some("Busy") {
                        full.notify_one();
                    }
                    tokio::time::sleep(PAUSE).await;
                }
            });
        }
    }
    timeout(PATIENCE, full.notified()).await.expect("Bob is told that it is enough");
    alice_is_served(&house).await;
    calls.shutdown().await;
    house.until("what Bob has left is dropped", |house| house.open_files() < FEW_FILES);
    let made = house.number(&format!("SELECT count(*) FROM job WHERE owner_uid = {BOB}")).unwrap();
    assert!(made < 300, "{made} jobs of calls that nobody waits for");
    alice_is_served(&house).await;
}

/// Returns a picture of about a MiB, unlike any other.
fn large_picture(house: &House, n: u32) -> File {
    let path = house.path("large.png");
    let pixel = [PICTURE, &n.to_le_bytes()[..], &vec![0; 1 << 20]].concat();
    fs::write(&path, pixel).unwrap();
    File::open(path).unwrap()
}

/// Submits and cancels jobs that have begun until the service refuses one, and returns its sentence.
async fn until_refused(
    house: &House,
    user: &Connection,
    options: impl Fn(u32) -> HashMap<&'static str, Variant<'static>>,
    picture: impl Fn(u32) -> File,
) -> String {
    let manager = manager(user).await;
    for n in 0..200 {
        let path = match manager.submit(picture(n).as_fd().into(), options(n)).await {
            Ok(path) => path,
            Err(e) => {
                assert_eq!(error_name(&e), Some("QueueFull"), "{e}");
                return e.to_string();
            }
        };
        let job = animd_client::JobProxy::builder(user).path(path);
        let job = job.cache_properties(zbus::proxy::CacheProperties::No).build().await.unwrap();
        house.until("it begins", |house| {
            house.number("SELECT count(*) FROM job WHERE state = 'running'") == Some(1)
        });
        job.cancel().await.unwrap();
        house.until("it ends", |house| {
            house.number("SELECT count(*) FROM job WHERE state IN ('running', 'finishing')") == Some(0)
        });
    }
    panic!("nothing is refused");
}

#[tokio::test]
async fn cancelled_jobs_do_not_fill_the_disk() {
    if !others() {
        return;
    }
    let house = House::system("[queue]\ndisk_mib_per_user = 4\n");
    let bob = house.connect_as(BOB).await;
    let slow = |_| HashMap::from([("prompt", Variant::from("slow=1000"))]);
    let said = until_refused(&house, &bob, slow, |n| large_picture(&house, n)).await;
    assert!(said.contains("queue.disk_mib_per_user") && said.contains("4 MiB"), "{said}");
    let spool = || -> u64 {
        let files = fs::read_dir(house.path("state/spool")).unwrap().flatten();
        files.map(|file| file.metadata().map_or(0, |meta| meta.len())).sum()
    };
    assert!((3 << 20..5 << 20).contains(&spool()), "{} bytes", spool());
    alice_is_served(&house).await;
    // His share is his again when what he had is gone.
    let count = house.number(&format!("SELECT count(*) FROM job WHERE owner_uid = {BOB}")).unwrap();
    for id in 1..=count {
        assert!(house.animctl(&["forget", &id.to_string()]).status.success());
    }
    manager(&bob).await.submit(large_picture(&house, 999).as_fd().into(), HashMap::new()).await.unwrap();
}

#[tokio::test]
async fn long_prompts_do_not_fill_the_ledger() {
    if !others() {
        return;
    }
    let house = House::system("[queue]\nledger_mib_per_user = 1\n");
    let bob = house.connect_as(BOB).await;
    let picture = house.picture();
    let long = |n| {
        let prompt = format!("slow=1000 {n} {}", "p".repeat(15_000));
        HashMap::from([("prompt", prompt.into()), ("negative_prompt", "n".repeat(16_000).into())])
    };
    let said = until_refused(&house, &bob, long, |_| File::open(&picture).unwrap()).await;
    assert!(said.contains("queue.ledger_mib_per_user"), "{said}");
    assert!(house.number("SELECT count(*) FROM job") < Some(40));
    alice_is_served(&house).await;
}

#[tokio::test]
async fn a_picture_that_gave_no_job_does_not_stay() {
    if !others() {
        return;
    }
    let house = paused(House::closed_system("[queue]\ntotal = 1\n")).await;
    alice_is_served(&house).await;
    let bob = manager(&house.connect_as(BOB).await).await;
    for n in 0..3 {
        let refused = bob.submit(large_picture(&house, n).as_fd().into(), HashMap::new()).await;
        assert!(refused.unwrap_err().to_string().contains("queue.total"));
    }
    house.until("only Alice's stays", |house| house.files("state/spool").len() == 1);
}

/// A polkit that asks its user and waits for ever, and notes the questions that are taken back.
#[derive(Clone, Default)]
struct SilentPolkit {
    asked: Arc<AtomicUsize>,
    taken_back: Arc<AtomicUsize>,
}

#[zbus::interface(name = "org.freedesktop.PolicyKit1.Authority")]
impl SilentPolkit {
    async fn check_authorization(
        &self,
        _subject: (String, HashMap<String, zbus::OwnedVariant>),
        _action: String,
        _details: HashMap<String, String>,
        _flags: u32,
        _cancellation: String,
    ) -> (bool, bool, HashMap<String, String>) {
        self.asked.fetch_add(1, Ordering::SeqCst);
        std::future::pending().await
    }

    fn cancel_check_authorization(&self, _cancellation: String) {
        self.taken_back.fetch_add(1, Ordering::SeqCst);
    }
}

#[tokio::test]
async fn one_users_questions_keep_nobody_elses_from_polkit() {
    if !others() {
        return;
    }
    let house = house().await;
    let polkit = SilentPolkit::default();
    let bus = house.connect().await;
    bus.object_server().at("/org/freedesktop/PolicyKit1/Authority", polkit.clone()).await.unwrap();
    bus.request_name("org.freedesktop.PolicyKit1").await.unwrap();
    // This thread answers as polkit meanwhile.
    let reaches = async |counter: &AtomicUsize, count: usize| {
        let start = std::time::Instant::now();
        while counter.load(Ordering::SeqCst) < count && start.elapsed() < PATIENCE {
            tokio::time::sleep(PAUSE).await;
        }
        counter.load(Ordering::SeqCst) == count
    };
    let bobs = join_all((0..5).map(|_| house.connect_as(BOB))).await;
    let bob = manager(&bobs[0]).await;
    // A wrong call is refused before anybody is asked.
    for path in ["not/absolute", "/a/../b", &format!("/x{}", "y".repeat(1 << 20))] {
        let refused = bob.add_watch(path, HashMap::new()).await.unwrap_err();
        assert_eq!(error_name(&refused), Some("InvalidOption"), "{refused}");
        let refused = bob.remove_watch(path).await.unwrap_err();
        assert_eq!(error_name(&refused), Some("InvalidOption"), "{refused}");
    }
    assert_eq!(polkit.asked.load(Ordering::SeqCst), 0);
    let mut calls = JoinSet::new();
    for bob in &bobs {
        let bob = manager(bob).await;
        for _ in 0..10 {
            let bob = bob.clone();
            calls.spawn(async move { bob.add_watch("/srv/pictures", HashMap::new()).await });
        }
    }
    // All but a few are refused at once.
    let mut busy = 0;
    while busy < 46 {
        let answer = timeout(PATIENCE, calls.join_next()).await.expect("answered").unwrap().unwrap();
        assert_eq!(error_name(&answer.unwrap_err()), Some("Busy"));
        busy += 1;
    }
    assert!(reaches(&polkit.asked, 4).await);
    let alice = manager(&house.connect_as(ALICE).await).await;
    let question = tokio::spawn(async move { alice.add_watch("/srv/other", HashMap::new()).await });
    assert!(reaches(&polkit.asked, 5).await, "Alice's question is asked");
    alice_is_served(&house).await;
    assert!(house.memory("VmHWM") < MOST_MEMORY);
    // Bob goes, and his questions with him.
    calls.shutdown().await;
    drop((bob, bobs));
    assert!(reaches(&polkit.taken_back, 4).await, "they are taken back");
    question.abort();
}

#[tokio::test]
async fn a_second_service_does_not_take_the_name() {
    let mut house = House::started("");
    let pid = house.pid();
    let owner = async |house: &House| {
        let bus = zbus::fdo::DBusProxy::new(&house.connect().await).await.unwrap();
        bus.get_name_owner("org.animd.Animd1".try_into().unwrap()).await.unwrap()
    };
    let first = owner(&house).await;
    let (state, inbox) = (house.path("other-state"), house.path("other-inbox"));
    fs::create_dir(&inbox).unwrap();
    let mut second = house.service();
    second.arg("--state").arg(state).arg("--inbox").arg(inbox).stderr(Stdio::piped());
    let mut second = second.spawn().unwrap();
    let mut ended = None;
    for _ in 0..300 {
        ended = second.try_wait().unwrap();
        if ended.is_some() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    _ = second.kill();
    second.wait().unwrap();
    let mut said = String::new();
    second.stderr.take().unwrap().read_to_string(&mut said).unwrap();
    assert_eq!(ended.and_then(|status| status.code()), Some(EXIT_CONFIG.into()), "{said}");
    assert!(said.contains("another program has the name org.animd.Animd1 on this bus"), "{said}");
    assert_eq!(owner(&house).await, first);
    assert_eq!((house.exited(), house.pid()), (None, pid));
    assert!(house.animctl(&["status"]).status.success());
}
