//! Kills the service and its engine at random moments under load, and counts what was lost or made twice.
//!
//! `cargo build --release --workspace && cargo run --release --example torture -- [KILLS [SEED]]` (200 and 1). It prints a table, and fails
//! when a job was lost, a video doubled, or a file left behind.

#![allow(clippy::unwrap_used, reason = "a bench may panic")]

#[path = "../tests/common/mod.rs"]
mod common;
#[path = "../tests/live/harness.rs"]
#[allow(dead_code, reason = "a part of it is enough here")]
mod harness;

use std::fs;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use harness::{House, PICTURE};
use rustix::process::{Pid, Signal, kill_process};

/// How many pictures wait or run at a time.
const LOAD: i64 = 12;

/// Seconds that a picture should lie unchanged. Some words come after their picture, within this time.
const STABLE: f64 = 2.0;

/// Pseudo-random numbers, the same for the same seed.
struct Dice(u64);

impl Dice {
    /// Returns a number below `sides` (splitmix64).
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut x = self.0;
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (x ^ (x >> 31)) % sides
    }
}

/// What the kills hit.
#[derive(Default)]
struct Kills {
    service: u32,
    engine: u32,
    starting: u32,
    running: u32,
    finishing: u32,
    idle: u32,
}

struct Load {
    house: House,
    dice: Dice,
    dropped: i64,
}

impl Load {
    fn open(&self) -> Option<i64> {
        let ended = "SELECT count(*) FROM job WHERE state IN ('done','failed','canceled')";
        Some(self.dropped - self.house.number(ended)?)
    }

    /// Drops pictures until enough wait. No two pictures are the same; some jobs are short and some very short.
    fn fill(&mut self) {
        let Some(open) = self.open() else { return };
        for _ in open..LOAD {
            let n = self.dropped;
            let slow = [0, 2, 5, 15, 40][self.dice.roll(5) as usize];
            let words = |house: &House| {
                fs::write(house.path(&format!("inbox/p{n}.txt")), format!("slow={slow}")).unwrap();
            };
            let come_late = self.dice.roll(3) == 0;
            if !come_late {
                words(&self.house);
            }
            let picture = [PICTURE, format!("{n}").as_bytes()].concat();
            // Writes the picture elsewhere and moves it in complete, as a careful program does.
            fs::write(self.house.path("whole"), picture).unwrap();
            fs::rename(self.house.path("whole"), self.house.path(&format!("inbox/p{n}.png"))).unwrap();
            if come_late {
                std::thread::sleep(Duration::from_millis(self.dice.roll(600)));
                words(&self.house);
            }
            self.dropped += 1;
        }
    }
}

fn main() -> ExitCode {
    let args: Vec<u64> =
        std::env::args().skip(1).map(|a| a.parse().expect("KILLS and SEED are numbers")).collect();
    let (count, seed) = (args.first().copied().unwrap_or(200), args.get(1).copied().unwrap_or(1));
    let config = "[queue]\ninterruptions = 10000\nattempts = 100\n[defaults]\nsteps = 10\n";
    let mut load = Load { house: House::new(config), dice: Dice(seed), dropped: 0 };
    let mut kills = Kills::default();
    let start = Instant::now();
    load.house.set_stable(STABLE);
    load.house.start();
    for n in 0..count {
        load.fill();
        // Up to 1.6 s: a start of the service, the pause before another engine, and a few jobs.
        std::thread::sleep(Duration::from_millis(load.dice.roll(1600)));
        let state = "SELECT CASE WHEN EXISTS (SELECT 1 FROM job WHERE state = 'finishing') THEN 2
          ELSE EXISTS (SELECT 1 FROM job WHERE state = 'running') END";
        match load.house.number(state) {
            Some(2) => kills.finishing += 1,
            Some(1) => kills.running += 1,
            _ => kills.idle += 1,
        }
        if n % 2 == 0 {
            match load.house.engine().and_then(|pid| Pid::from_raw(pid as i32)) {
                Some(pid) if kill_process(pid, Signal::KILL).is_ok() => kills.engine += 1,
                _ => kills.starting += 1,
            }
        } else {
            load.house.kill();
            load.house.spawn();
            kills.service += 1;
        }
    }
    load.house.until("all jobs have ended", |_| load.open() == Some(0));
    report(&load, &kills, start.elapsed(), seed)
}

/// Prints the table; fails if anything is not as it should be.
fn report(load: &Load, kills: &Kills, took: Duration, seed: u64) -> ExitCode {
    let house = &load.house;
    let number = |sql: &str| house.number(sql).expect("the ledger can be read");
    let videos = house.files("outbox");
    let of = |n: i64| videos.iter().filter(|video| video.starts_with(&format!("p{n}-"))).count();
    let lost = (0..load.dropped).filter(|n| of(*n) == 0).count();
    let doubled = (0..load.dropped).filter(|n| of(*n) > 1).count();
    let all = fs::read_dir(house.path("outbox")).unwrap().count();
    let litter = all - videos.iter().filter(|video| video.contains(".mp4")).count()
        + house.files("inbox").len()
        + house.files("inbox/failed").len();
    for folder in ["inbox", "inbox/failed"] {
        for name in house.files(folder) {
            println!("left behind: {folder}/{name}");
        }
    }
    let rows = number("SELECT count(*) FROM job");
    let wordless = number("SELECT count(*) FROM job WHERE settings_json ->> 'prompt' NOT LIKE 'slow=%'");
    let done = number("SELECT count(*) FROM job WHERE state = 'done'");
    for (what, value) in [
        ("seed", seed as i64),
        ("seconds", took.as_secs() as i64),
        ("kills of the service", kills.service.into()),
        ("kills of the engine", kills.engine.into()),
        ("kills with no engine there to hit", kills.starting.into()),
        ("... while a job ran", kills.running.into()),
        ("... while a job was being finished", kills.finishing.into()),
        ("... while none ran", kills.idle.into()),
        ("pictures dropped", load.dropped),
        ("jobs in the ledger", rows),
        ("jobs done", done),
        ("starts of jobs", number("SELECT sum(attempt) FROM job")),
        ("jobs run again after the engine's death", number("SELECT sum(crashes) FROM job")),
        ("jobs run again after the service's death", number("SELECT sum(interruptions) FROM job")),
        ("videos", videos.len() as i64),
        ("jobs lost", lost as i64),
        ("videos doubled", doubled as i64),
        ("jobs without their words", wordless),
        (
            "jobs that began again with late words",
            number("SELECT count(*) FROM event WHERE text = 'it begins again with them'"),
        ),
        ("files left behind", litter as i64),
    ] {
        println!("{what:42} {value:6}");
    }
    let fine = rows == load.dropped && done == rows && lost + doubled + litter == 0 && wordless == 0;
    if fine { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
