//! `animd-watch`, with the real service, a bus, and a desktop that listens.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command};
use std::sync::{Arc, Mutex};

use crate::harness::{House, PICTURE, program};
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

/// A user's home in a house, and the watcher while it runs.
struct Home {
    watcher: Option<Child>,
    log: PathBuf,
    /// The user, if not the test's own.
    uid: Option<u32>,
}

impl Drop for Home {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- the watcher's log\n{}", fs::read_to_string(&self.log).unwrap_or_default());
        }
        self.kill();
    }
}

impl Home {
    fn start(house: &House, config: &str) -> Self {
        let mut home = Self { watcher: None, log: house.path("home/log"), uid: None };
        home.spawn(house, config);
        home
    }

    fn spawn(&mut self, house: &House, config: &str) {
        for folder in ["home/.config/animd", "home/run"] {
            fs::create_dir_all(house.path(folder)).unwrap();
        }
        let file = house.path("home/.config/animd/watch.toml");
        fs::write(file, format!("stable_seconds = 0.2\nlog_level = \"debug\"\n{config}")).unwrap();
        let log = fs::OpenOptions::new().create(true).append(true).open(house.path("home/log")).unwrap();
        let mut command = watcher(house);
        if let Some(uid) = self.uid {
            for below in ["home", "home/run", "home/.config"] {
                chown(house.path(below), Some(uid), Some(uid)).unwrap();
            }
            command.uid(uid).gid(uid);
        }
        self.watcher = Some(command.stderr(log).spawn().unwrap());
        house.until("it watches", |house| house.path(INBOX).join("failed").exists());
    }

    fn ended(&mut self) -> Option<i32> {
        self.watcher.as_mut()?.try_wait().unwrap()?.code()
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

/// Returns the watcher's command with a house's home and bus.
fn watcher(house: &House) -> Command {
    let mut command = Command::new(program("animd-watch"));
    let session = house.bus_variable() == "DBUS_SESSION_BUS_ADDRESS";
    command
        .args(session.then_some("--user"))
        .env("DBUS_SESSION_BUS_ADDRESS", "unix:path=/nonexistent/bus")
        .env(house.bus_variable(), house.address())
        .env("HOME", house.path("home"))
        .env("XDG_RUNTIME_DIR", house.path("home/run"))
        .env_remove("XDG_CONFIG_HOME")
        .env_remove("XDG_VIDEOS_DIR")
        .env_remove("NOTIFY_SOCKET")
        .env_remove("JOURNAL_STREAM");
    command
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
    house.until(&format!("{count} videos have arrived"), |house| {
        house.files(OUTBOX).iter().filter(|name| name.ends_with(".mp4")).count() == count
    });
}

/// Starts a desktop on the house's bus, in a thread of its own.
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
fn a_pair_is_handed_over_as_two_open_files() {
    let house = House::started("[defaults]\nseed = 7\n");
    let _home = Home::start(&house, "");
    fs::write(house.path(INBOX).join("cup.last.png"), [PICTURE, b"x"].concat()).unwrap();
    fs::write(house.path(INBOX).join("cup.png"), PICTURE).unwrap();
    house.until("the video is there", |house| house.files(OUTBOX) == ["cup-7.mp4"]);
    assert_eq!(house.text("SELECT settings_json ->> 'last' FROM job"), "cup.last.png");
    assert_eq!(house.number("SELECT count(*) FROM job WHERE last_sha256 IS NOT image_sha256"), Some(1));
    house.until("both are moved", |house| {
        house.files(&format!("{INBOX}/done")) == ["cup.last.png", "cup.png"]
    });
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
    // The videos are collected, so the service keeps no second copy.
    house.until("its copies are gone", |house| house.files("state/results").is_empty());
    let told = |what: &str| shown.lock().unwrap().iter().any(|(_, body, _)| body.contains(what));
    house.until("the desktop is told", |_| {
        ["photo-7.mp4", "deep-7.mp4", "the video needs 80 GiB", "unknown key `steeps`"].into_iter().all(told)
    });
    let first = shown.lock().unwrap()[0].clone();
    // Events that come together share one notification.
    assert!(first.0.starts_with("A video is") || first.0.starts_with("2 videos are"), "{first:?}");
    assert!(first.1.starts_with("The video of photo.png is"), "{first:?}");
    assert_eq!(home.stop(), Some(0));
    let log = fs::read_to_string(house.path("home/log")).unwrap();
    assert!(!log.contains("ERROR"), "{log}");
}

#[test]
fn either_side_may_be_away_or_die_and_nothing_is_made_twice() {
    let mut house = House::new("[defaults]\nseed = 7\n");
    let mut home = Home::start(&house, "");
    // The service is not running for now.
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
    // A picture that is put back is a new request.
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

/// Kills either side, or both, again and again, whatever they are doing.
#[test]
fn kills_at_any_moment_lose_nothing_and_make_nothing_twice() {
    const ROUNDS: u64 = 24;
    let mut house = House::started("[defaults]\nseed = 7\nsteps = 4\n");
    let mut home = Home::start(&house, "");
    let mut moment = 0x9e37_79b9_7f4a_7c15_u64;
    for n in 0..ROUNDS {
        put(&house, &format!("{n}.png"), Some("slow=20"));
        moment = moment.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        // A picture is sent after 200 ms, its job runs for 80 ms, and then its video is fetched.
        std::thread::sleep(std::time::Duration::from_millis(150 + (moment >> 33) % 400));
        if n % 3 != 0 {
            home.kill();
        }
        if n % 3 != 1 {
            house.kill();
            house.start();
        }
        if n % 3 != 0 {
            home.spawn(&house, "");
        }
    }
    let done = format!("{INBOX}/done");
    house.until("all are moved", |house| {
        let pictures = house.files(&done).iter().filter(|name| name.ends_with(".png")).count();
        pictures == ROUNDS as usize
    });
    let mut videos: Vec<String> = (0..ROUNDS).map(|n| format!("{n}-7.mp4")).collect();
    videos.sort();
    assert_eq!(house.files(OUTBOX), videos);
    assert_eq!(house.number("SELECT count(*) FROM job"), Some(ROUNDS as i64));
    assert!(house.files(&format!("{INBOX}/failed")).is_empty());
}

#[test]
fn a_late_sidecar_is_another_wish() {
    let house = House::started("[defaults]\nseed = 7\n");
    let _home = Home::start(&house, "");
    put(&house, "busy.png", Some("slow=50"));
    house.until("it runs", |house| {
        house.number("SELECT count(*) FROM job WHERE state = 'running'") == Some(1)
    });
    put(&house, "late.png", None);
    house.until("it is queued", |house| house.number("SELECT count(*) FROM job") == Some(2));
    // The sidecar is in time for the waiting job; the running job is followed by another one.
    fs::write(house.path(INBOX).join("late.toml"), "seed = 8\n").unwrap();
    house.until("it is replaced", |house| house.number("SELECT count(*) FROM job") == Some(3));
    fs::write(house.path(INBOX).join("busy.toml"), "seed = 9\n").unwrap();
    arrived(&house, 3);
    let done = format!("{INBOX}/done");
    house.until("all are moved", |house| house.files(&done).len() == 5);
    assert_eq!(house.files(OUTBOX), ["busy-7.mp4", "busy-9.mp4", "late-8.mp4"]);
    assert_eq!(house.files(&done), ["busy.png", "busy.toml", "busy.txt", "late.png", "late.toml"]);
    assert!(house.files(INBOX).is_empty());
}

#[test]
fn what_is_renamed_or_written_again_meanwhile_has_one_video() {
    let house = House::started("[defaults]\nseed = 7\n");
    let _home = Home::start(&house, "");
    put(&house, "busy.png", Some("slow=50"));
    put(&house, "old.png", None);
    put(&house, "again.png", None);
    house.until("all are queued", |house| house.number("SELECT count(*) FROM job") == Some(3));
    let inbox = house.path(INBOX);
    fs::rename(inbox.join("old.png"), inbox.join("new.png")).unwrap();
    // As a synchronisation program does: another file with the same contents.
    fs::copy(inbox.join("again.png"), house.path("copy")).unwrap();
    fs::rename(house.path("copy"), inbox.join("again.png")).unwrap();
    arrived(&house, 3);
    house.until("all are moved", |house| house.files(&format!("{INBOX}/done")).len() == 4);
    assert_eq!(house.files(OUTBOX), ["again-7.mp4", "busy-7.mp4", "new-7.mp4"]);
    assert_eq!(house.number("SELECT count(*) FROM job"), Some(3));
}

#[test]
fn odd_files_hold_up_nobody() {
    let house = House::started("[defaults]\nseed = 7\n");
    let mut home = Home::start(&house, "");
    let inbox = house.path(INBOX);
    let odd = OsStr::from_bytes(b"new\nline \xff\xfe.png");
    fs::write(inbox.join(odd), PICTURE).unwrap();
    std::os::unix::fs::symlink("/etc/hostname", inbox.join("link.png")).unwrap();
    fs::write(inbox.join("note.png"), "no picture").unwrap();
    // A file is in the way in `failed/`: the picture cannot be moved, and is not taken again and again.
    fs::write(inbox.join("failed/sub"), "in the way").unwrap();
    fs::create_dir(inbox.join("sub")).unwrap();
    fs::write(inbox.join("sub/left.png"), "no picture").unwrap();
    house.until("it is refused", |house| house.files(&format!("{INBOX}/sub")).len() == 2);
    fs::write(inbox.join("sub/left.png.tmp"), "").unwrap();
    put(&house, "last.png", None);
    arrived(&house, 2);
    assert!(house.path(OUTBOX).join(OsStr::from_bytes(b"new\nline \xff\xfe-7.mp4")).exists());
    house.until("they are moved", |_| {
        inbox.join("done").join(odd).exists() && inbox.join("done/last.png").exists()
    });
    let note = fs::read_to_string(inbox.join("failed/note.png.error.txt")).unwrap();
    assert!(note.contains("is not a supported image"), "{note}");
    assert!(inbox.join("link.png").is_symlink());
    assert_eq!(house.files(&format!("{INBOX}/sub")), ["left.png", "left.png.error.txt", "left.png.tmp"]);
    assert_eq!(home.stop(), Some(0));
    let log = fs::read_to_string(house.path("home/log")).unwrap();
    assert_eq!(log.matches("cannot move a picture away").count(), 1, "{log}");
}

#[test]
fn a_picture_with_no_text_beside_it_is_set_aside_and_the_others_go_on() {
    let house = House::started("[defaults]\nseed = 7\n");
    let shown = desktop(&house);
    let mut home = Home::start(&house, "");
    let pid = home.watcher.as_ref().map(Child::id);
    let inbox = house.path(INBOX);
    let utf_16: Vec<u8> = "leaves fall\r\n".encode_utf16().flat_map(u16::to_le_bytes).collect();
    fs::write(inbox.join("utf16.txt"), utf_16).unwrap();
    fs::write(inbox.join("escaped.toml"), "prompt = \"a\\u0000b\"\n").unwrap();
    fs::write(inbox.join("negative.toml"), "negative_prompt = \"a\\u0000b\"\n").unwrap();
    fs::write(inbox.join("terminal.txt"), "a \x1b[2Jwave").unwrap();
    let bad = ["escaped", "negative", "terminal", "utf16"];
    for name in bad {
        put(&house, &format!("{name}.png"), None);
    }
    put(&house, "good.png", Some("a wave"));
    let failed = format!("{INBOX}/failed");
    house.until("all are done", |house| {
        house.files(&failed).len() == 12 && house.files(OUTBOX) == ["good-7.mp4"]
    });
    let note = |name: &str| fs::read_to_string(inbox.join(format!("failed/{name}.png.error.txt"))).unwrap();
    assert_eq!(
        note("utf16"),
        "utf16.txt: it looks like UTF-16 without a byte-order mark; save it as UTF-8\n"
    );
    for name in bad {
        assert!(note(name).starts_with(name), "{}", note(name));
    }
    let told = |what: &str| shown.lock().unwrap().iter().any(|(_, body, _)| body.contains(what));
    house.until("the desktop is told", |_| told("utf16.txt: it looks like UTF-16") || told("…"));
    assert_eq!(house.number("SELECT count(*) FROM job"), Some(1));
    assert_eq!((home.ended(), home.watcher.as_ref().map(Child::id)), (None, pid));
    assert_eq!(home.stop(), Some(0));
}

/// A home that nobody else may enter, without a desktop. The test runs only as root.
#[test]
fn a_closed_home_is_served_by_descriptor_and_over_a_log_out() {
    // Two users that every system has, because a bus rejects users that it does not know.
    const USER: u32 = 1;
    const SERVICE: u32 = 65_534;
    if rustix::process::geteuid().as_raw() != 0 {
        return;
    }
    let mut house = House::closed_system("[defaults]\nseed = 7\n");
    house.run_as(SERVICE);
    for folder in ["inbox", "outbox", "model", "."] {
        chown(house.path(folder), Some(SERVICE), Some(SERVICE)).unwrap();
    }
    house.start();
    fs::create_dir(house.path("home")).unwrap();
    fs::set_permissions(house.path("home"), fs::Permissions::from_mode(0o700)).unwrap();
    let mut home = Home { watcher: None, log: house.path("home/log"), uid: Some(USER) };
    home.spawn(&house, "");
    let drop = |name: &str, prompt: &str| {
        put(&house, name, Some(prompt));
        let path = house.path(INBOX).join(name);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        for path in [path.with_extension("txt"), path] {
            chown(path, Some(USER), Some(USER)).unwrap();
        }
    };
    drop("photo.png", "a wave");
    arrived(&house, 1);
    // The user logs out while the next one is made, and comes back when it is done.
    drop("next.png", "slow=30");
    house.until("it is sent", |house| house.number("SELECT count(*) FROM job") == Some(2));
    assert_eq!(home.stop(), Some(0));
    house.until_ended(2);
    home.spawn(&house, "");
    arrived(&house, 2);
    let meta = fs::metadata(house.path(OUTBOX).join("next-7.mp4")).unwrap();
    assert_eq!(std::os::unix::fs::MetadataExt::uid(&meta), USER);
    assert_eq!(house.number(&format!("SELECT count(*) FROM job WHERE owner_uid = {USER}")), Some(2));
    house.until("they are moved", |house| house.files(&format!("{INBOX}/done")).len() == 4);
    assert_eq!(home.stop(), Some(0));
    let log = fs::read_to_string(house.path("home/log")).unwrap();
    assert!(!log.contains("ERROR") && !log.contains("WARN"), "{log}");
}

#[test]
fn it_is_started_again_when_the_bus_has_gone() {
    let mut house = House::started("");
    let mut home = Home::start(&house, "");
    house.end_bus();
    house.until("it ends", |_| home.ended().is_some());
    assert_eq!(home.ended(), Some(1), "systemd starts it again");
}

#[test]
fn wrong_configurations_end_it_in_words() {
    let house = House::new("");
    let run = |args: &[&str]| {
        Command::new(program("animd-watch"))
            .args(args)
            .env("DBUS_SESSION_BUS_ADDRESS", house.address())
            .env("HOME", house.dir.path())
            .output()
            .unwrap()
    };
    let output = run(&["--check", "/x", "/y"]);
    assert_eq!(output.status.code(), Some(0));
    let videos = house.path("Videos/animd/outbox");
    let words = |path: &str| format!("`{path}`: its videos go to `{}`\n", videos.display());
    assert_eq!(String::from_utf8_lossy(&output.stdout), words("/x") + &words("/y"));
    assert!(!house.path("Videos").exists(), "it only looks");
    let output = run(&["--user", "/x", "--outbox", "/x/videos"]);
    assert_eq!(output.status.code(), Some(78));
    assert!(String::from_utf8_lossy(&output.stderr).contains("taken for pictures"));
    let file = house.path("watch.toml");
    let config = file.to_str().unwrap();
    for (toml, what) in [
        ("[[watch]]\npath = \"/x\\u0000y\"\n", "[[watch]] `/x\\u{0}y`: `path`: it has a zero byte"),
        (
            "[[watch]]\npath = \"/x\"\n[watch.settings]\nprompt = \"a\\u0000\"\n",
            "[[watch]] `/x`: `prompt`: it has the control character U+0000",
        ),
    ] {
        fs::write(&file, toml).unwrap();
        let output = run(&["--user", "--config", config]);
        assert_eq!(output.status.code(), Some(78));
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(said.contains(what), "{said}");
    }
    // All mistakes are told at once.
    fs::write(
        &file,
        "per_user = 0\npoll_seconds = \"often\"\n[[watch]]\npath = \"/x\"\nstabel_seconds = 1.0\n",
    )
    .unwrap();
    let output = run(&["--check", "--config", config]);
    assert_eq!(output.status.code(), Some(78));
    let said = String::from_utf8_lossy(&output.stderr);
    let expected = [
        format!("animd-watch: {config}:2: poll_seconds must be a number, not \"often\""),
        format!("{config}:5: unknown key `stabel_seconds`; did you mean `stable_seconds`?"),
        format!("{config}: per_user 0 is not from 1 to 1000000"),
    ];
    assert_eq!(said.lines().collect::<Vec<_>>(), expected);
    assert_eq!(run(&["--nonsense"]).status.code(), Some(2));
}
