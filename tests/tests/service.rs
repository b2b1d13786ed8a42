//! The service with the real engine: whatever dies, and in whatever stage, each picture becomes exactly one video.

mod common;

use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use common::{ffprobe, names, picture, program, tiny_model};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

/// A bus, folders, and the service on them.
struct House {
    dir: TempDir,
    bus: Child,
    address: String,
    service: Child,
}

impl House {
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let config = dir.path().join("bus.conf");
        fs::write(
            &config,
            format!(
                "<busconfig><type>session</type><listen>unix:path={}</listen><policy context=\"default\">\
                 <allow send_destination=\"*\"/><allow receive_sender=\"*\"/><allow own=\"*\"/></policy></busconfig>",
                dir.path().join("bus").display()
            ),
        )
        .expect("written");
        let mut bus = Command::new("dbus-daemon")
            .arg(format!("--config-file={}", config.display()))
            .args(["--nofork", "--print-address"])
            .stdout(Stdio::piped())
            .spawn()
            .expect("dbus-daemon is installed");
        let mut address = String::new();
        let mut said = BufReader::new(bus.stdout.take().expect("a pipe"));
        said.read_line(&mut address).expect("it prints its address");
        let settings = format!(
            "[model]\npath = \"{}\"\n[folders]\ninbox = \"inbox\"\noutbox = \"outbox\"\nstate = \"state\"\n\
             [inbox]\nstable_seconds = 0.2\n[queue]\nattempts = 50\ninterruptions = 50\n\
             [defaults]\nseed = 7\nsize = \"192x128\"\nframes = 13\nsampler = \"distill\"\n",
            tiny_model().display()
        );
        fs::write(dir.path().join("animd.toml"), settings).expect("written");
        for folder in ["inbox", "outbox"] {
            fs::create_dir(dir.path().join(folder)).expect("made");
        }
        let address = address.trim().to_owned();
        let service = start(&dir, &address);
        Self { dir, bus, address, service }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The ledger, read beside the service.
    fn ledger(&self, sql: &str) -> Option<String> {
        let flags = rusqlite::OpenFlags::SQLITE_OPEN_READ_ONLY;
        let ledger = rusqlite::Connection::open_with_flags(self.path("state/ledger.db"), flags).ok()?;
        ledger
            .query_row(sql, [], |row| row.get::<_, rusqlite::types::Value>(0))
            .ok()
            .map(|v| format!("{v:?}"))
    }

    /// The job's stage as the client shows it, or its state.
    fn stage(&self) -> String {
        let output = Command::new(program("animctl"))
            .args(["--user", "list", "--json"])
            .env("DBUS_SESSION_BUS_ADDRESS", &self.address)
            .output()
            .expect("animctl runs");
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// The engine's process: the service's only child.
    fn engine(&self) -> Option<Pid> {
        let children = format!("/proc/{0}/task/{0}/children", self.service.id());
        let pid = fs::read_to_string(children).ok()?.split_whitespace().next()?.parse().ok()?;
        Pid::from_raw(pid)
    }

    fn until(&self, what: &str, mut done: impl FnMut(&Self) -> bool) {
        let started = Instant::now();
        while !done(self) {
            let log = || fs::read_to_string(self.path("log")).unwrap_or_default();
            assert!(
                started.elapsed() < Duration::from_secs(120),
                "not {what} within two minutes:\n{}",
                log()
            );
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn restart(&mut self) {
        let _ = self.service.kill();
        let _ = self.service.wait();
        self.service = start(&self.dir, &self.address);
    }
}

impl Drop for House {
    fn drop(&mut self) {
        for child in [&mut self.service, &mut self.bus] {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn start(dir: &TempDir, address: &str) -> Child {
    let log = File::options().create(true).append(true).open(dir.path().join("log")).expect("a log");
    Command::new(program("animd"))
        .args(["--user", "--config"])
        .arg(dir.path().join("animd.toml"))
        .env("DBUS_SESSION_BUS_ADDRESS", address)
        .env("HOME", dir.path())
        .stderr(log)
        .spawn()
        .expect("animd starts")
}

#[test]
fn one_video_a_picture_whatever_dies_in_whatever_stage() {
    let mut house = House::new();
    let stages = ["load", "vae-encode", "denoise", "vae-decode", "write"];
    let mut pictures = 0;
    for (i, stage) in stages.into_iter().flat_map(|s| [s, s]).enumerate() {
        let engine_dies = i % 2 == 0;
        let name = format!("{i}.png");
        // Written elsewhere and moved in, as a careful program does it.
        let fresh = house.path("fresh.png");
        picture(&fresh, 60, 40 + i as u32);
        fs::rename(&fresh, house.path("inbox").join(&name)).expect("moved in");
        pictures += 1;
        let finished = format!("SELECT count(*) FROM job WHERE state = 'done' HAVING count(*) = {pictures}");
        // The stage may be over before it is seen; then the death comes later, which is a test as well.
        house.until("in its stage", |house| {
            house.stage().contains(&format!("\"{stage}\"")) || house.ledger(&finished).is_some()
        });
        if engine_dies {
            if let Some(engine) = house.engine() {
                let _ = kill_process(engine, Signal::KILL);
            }
        } else {
            house.restart();
        }
        house.until("done", |house| house.ledger(&finished).is_some());
    }
    // Neither lost nor doubled, and nothing unfinished lies about.
    let expected: Vec<String> = (0..pictures).map(|i| format!("{i}-7.mp4")).collect();
    house.until("tidy", |house| names(&house.path("outbox")) == expected);
    for name in &expected {
        assert_eq!(ffprobe(&house.path("outbox").join(name))["streams"][0]["nb_read_frames"], "13", "{name}");
    }
    house.until("moved", |house| names(&house.path("inbox/done")).len() == pictures);
    assert_eq!(house.ledger("SELECT count(*) FROM job").as_deref(), Some(&*format!("Integer({pictures})")));
}

#[test]
fn a_picture_that_is_none_fails_with_a_note_and_the_next_one_runs() {
    let house = House::new();
    fs::write(house.path("inbox/broken.jpg"), "no picture at all").expect("written");
    house.until("failed", |house| house.path("inbox/failed/broken.jpg").exists());
    house.until("explained", |house| house.path("inbox/failed/broken.jpg.error.txt").exists());
    let note = fs::read_to_string(house.path("inbox/failed/broken.jpg.error.txt")).expect("a note");
    assert!(note.contains("not") && note.len() > 20, "{note}");
    picture(&house.path("inbox/good.png"), 50, 50);
    house.until("made", |house| house.path("outbox/good-7.mp4").exists());
    assert!(names(&house.path("outbox")).iter().all(|n| n == "good-7.mp4"));
}
