//! `animd-watch`, with the real service, a bus, and a desktop that listens.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod harness;

use std::collections::HashMap;
use std::fs;
use std::process::{Child, Command};
use std::sync::{Arc, Mutex};

use harness::{House, PICTURE};
use zbus::{OwnedVariant, interface};

/// What a desktop was asked to show: summary, body, and whether there was a picture.
type Shown = Arc<Mutex<Vec<(String, String, bool)>>>;

struct Notifications(Shown);

#[interface(name = "org.freedesktop.Notifications")]
impl Notifications {
    #[expect(clippy::too_many_arguments, reason = "the desktop's interface is so")]
    fn notify(
        &self,
        _app_name: String,
        _replaces: u32,
        _icon: String,
        summary: String,
        body: String,
        _actions: Vec<String>,
        hints: HashMap<String, OwnedVariant>,
        _expires: i32,
    ) -> u32 {
        let mut shown = self.0.lock().unwrap();
        shown.push((summary, body, hints.contains_key("image-path")));
        shown.len() as u32
    }
}

/// A user's home in a house, and the watcher when it runs.
struct Home {
    watcher: Option<Child>,
}

impl Drop for Home {
    fn drop(&mut self) {
        self.kill();
    }
}

impl Home {
    fn start(house: &House, config: &str) -> Self {
        let mut home = Self { watcher: None };
        home.spawn(house, config);
        home
    }

    fn spawn(&mut self, house: &House, config: &str) {
        fs::create_dir_all(house.path("home/.config/animd")).unwrap();
        fs::create_dir_all(house.path("home/run")).unwrap();
        let file = house.path("home/.config/animd/watch.toml");
        fs::write(file, format!("stable_seconds = 0.2\nlog_level = \"debug\"\n{config}")).unwrap();
        let log = fs::OpenOptions::new().create(true).append(true).open(house.path("home/log")).unwrap();
        let watcher = Command::new(env!("CARGO_BIN_EXE_animd-watch"))
            .arg("--user")
            .env("DBUS_SESSION_BUS_ADDRESS", house.address())
            .env("HOME", house.path("home"))
            .env("XDG_RUNTIME_DIR", house.path("home/run"))
            .env_remove("XDG_CONFIG_HOME")
            .env_remove("XDG_VIDEOS_DIR")
            .env_remove("NOTIFY_SOCKET")
            .env_remove("JOURNAL_STREAM")
            .stderr(log)
            .spawn()
            .unwrap();
        self.watcher = Some(watcher);
        house.until("it watches", |house| house.path(INBOX).join("failed").exists());
    }

    fn kill(&mut self) {
        if let Some(mut watcher) = self.watcher.take() {
            watcher.kill().unwrap();
            watcher.wait().unwrap();
        }
    }

    fn stop(&mut self) -> Option<i32> {
        let mut watcher = self.watcher.take()?;
        let pid = rustix::process::Pid::from_child(&watcher);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        watcher.wait().unwrap().code()
    }
}

const INBOX: &str = "home/Videos/animd/inbox";
const OUTBOX: &str = "home/Videos/animd/outbox";

fn put(house: &House, name: &str, prompt: Option<&str>) {
    let path = house.path(INBOX).join(name);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    if let Some(prompt) = prompt {
        fs::write(path.with_extension("txt"), prompt).unwrap();
    }
    fs::write(&path, [PICTURE, name.as_bytes()].concat()).unwrap();
}

fn arrived(house: &House, count: usize) {
    house.until(&format!("{count} videos have arrived"), |house| house.files(OUTBOX).len() == count);
}

/// A desktop on the house's bus, in a thread of its own.
fn desktop(house: &House) -> Shown {
    let (shown, address) = (Shown::default(), house.address().to_owned());
    let (ready, there) = std::sync::mpsc::channel();
    let kept = shown.clone();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let bus = zbus::connection::Builder::address(address.as_str())
                .name("org.freedesktop.Notifications")
                .serve_at("/org/freedesktop/Notifications", Notifications(kept));
            let bus = bus.build().await.unwrap();
            ready.send(()).unwrap();
            bus.closed().await;
        });
    });
    there.recv().unwrap();
    shown
}

#[test]
fn pictures_of_a_home_become_videos_there_and_the_desktop_is_told() {
    let house = House::started("[defaults]\nseed = 7\n");
    let shown = desktop(&house);
    let mut home = Home::start(&house, "");
    put(&house, "photo.png", Some("a wave"));
    arrived(&house, 1);
    put(&house, "sub/deep.png", None);
    put(&house, "broken.png", Some("fail"));
    fs::write(house.path(INBOX).join("wrong.toml"), "steeps = 1\n").unwrap();
    put(&house, "wrong.png", None);
    let inbox = |name: &str| house.files(&format!("{INBOX}/{name}"));
    house.until("all are done", |_| inbox("failed").len() == 6 && inbox("done/sub") == ["deep.png"]);
    assert_eq!(house.files(OUTBOX), ["photo-7.mp4"]);
    assert_eq!(house.files(&format!("{OUTBOX}/sub")), ["deep-7.mp4"]);
    assert_eq!(inbox("done"), ["photo.png", "photo.txt"]);
    let note = |name: &str| fs::read_to_string(house.path(INBOX).join("failed").join(name)).unwrap();
    assert!(note("broken.png.error.txt").contains("the video needs 80 GiB"));
    assert_eq!(note("wrong.png.error.txt"), "wrong.toml:1: unknown key `steeps`; did you mean `steps`?\n");
    assert_eq!(house.text("SELECT settings_json ->> 'prompt' FROM job WHERE id = 1"), "a wave");
    // Collected: the service keeps no second copy.
    house.until("its copies are gone", |house| house.files("state/results").is_empty());
    house.until("the desktop is told", |_| shown.lock().unwrap().len() == 4);
    let shown = shown.lock().unwrap().clone();
    assert!(
        shown.iter().any(|(summary, body, _)| summary == "A video is ready" && body.contains("photo-7.mp4"))
    );
    assert!(shown.iter().any(|(_, body, _)| body.contains("unknown key `steeps`")));
    assert_eq!(home.stop(), Some(0));
    let log = fs::read_to_string(house.path("home/log")).unwrap();
    assert!(!log.contains("ERROR"), "{log}");
}

#[test]
fn either_side_may_be_away_or_die_and_nothing_is_made_twice() {
    let mut house = House::new("[defaults]\nseed = 7\n");
    let mut home = Home::start(&house, "");
    // The service is not there yet.
    put(&house, "early.png", None);
    std::thread::sleep(std::time::Duration::from_millis(600));
    assert!(house.path(INBOX).join("early.png").exists());
    house.start();
    arrived(&house, 1);
    // The watcher dies while its job runs, and the job ends without it.
    put(&house, "orphan.png", Some("slow=30"));
    house.until("it is sent", |house| house.number("SELECT count(*) FROM job") == Some(2));
    home.kill();
    house.until_ended(2);
    home.spawn(&house, "");
    arrived(&house, 2);
    // The service dies while a job runs.
    put(&house, "service.png", Some("slow=30"));
    house.until("it runs", |house| {
        house.number("SELECT count(*) FROM job WHERE state = 'running'") == Some(1)
    });
    house.kill();
    std::thread::sleep(std::time::Duration::from_millis(300));
    house.start();
    arrived(&house, 3);
    house.until("all are moved", |house| house.files(&format!("{INBOX}/done")).len() == 5);
    assert_eq!(house.number("SELECT count(*) FROM job"), Some(3));
    // Put back, it is a new wish.
    let inbox = house.path(INBOX);
    fs::rename(inbox.join("done/early.png"), inbox.join("early.png")).unwrap();
    arrived(&house, 4);
    assert_eq!(house.files(OUTBOX), ["early-7-2.mp4", "early-7.mp4", "orphan-7.mp4", "service-7.mp4"]);
    assert_eq!(house.number("SELECT count(*) FROM job"), Some(4));
}

#[test]
fn there_are_never_more_jobs_than_one_user_may_have() {
    let house = House::started("[queue]\nper_user = 2\n[defaults]\nseed = 7\nprompt = \"slow=3\"\n");
    let _home = Home::start(&house, "per_user = 3\nnotifications = false\n");
    for n in 0..7 {
        put(&house, &format!("{n}.png"), None);
    }
    let mut most = 0;
    house.until("all have arrived", |house| {
        let open = house.number("SELECT count(*) FROM job WHERE state IN ('queued','running','finishing')");
        most = most.max(open.unwrap_or(0));
        house.files(OUTBOX).len() == 7
    });
    assert!(most <= 2, "{most}");
    assert_eq!(house.number("SELECT count(*) FROM job"), Some(7));
}

#[test]
fn wrong_configurations_end_it_in_words() {
    let house = House::new("");
    let run = |args: &[&str]| {
        Command::new(env!("CARGO_BIN_EXE_animd-watch"))
            .args(args)
            .env("DBUS_SESSION_BUS_ADDRESS", house.address())
            .env("HOME", house.dir.path())
            .output()
            .unwrap()
    };
    let output = run(&["--user", "/x", "--outbox", "/x/videos"]);
    assert_eq!(output.status.code(), Some(78));
    assert!(String::from_utf8_lossy(&output.stderr).contains("taken for pictures"));
    assert_eq!(run(&["--nonsense"]).status.code(), Some(2));
}
