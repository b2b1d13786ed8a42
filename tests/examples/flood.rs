//! Measures how the service copes with many pictures that are dropped at once: `cargo run --release --example flood
//! [-- PICTURES]`.
//!
//! It starts the real service on a bus of its own (it needs `dbus-daemon`), without a model, so that nothing is made and
//! everything is queued. Each round drops the pictures in another way, waits until the ledger has them all, then waits for
//! one rescan more and counts again. Times are wall-clock, memory is the service's peak resident size, processor time is
//! the service's own.

#![allow(clippy::unwrap_used, reason = "a benchmark may panic")]
#![expect(clippy::print_stdout, reason = "it prints a table")]

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rusqlite::Connection;

const PICTURE: &[u8] = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\0\0\x01\0\0\0\x01\x08\0\0\0\0:~\x9bU\
\0\0\0\nIDATx\xdach\0\0\0\x82\0\x81\xdaE\x08;\0\0\0\0IEND\xaeB`\x82";

struct Service {
    dir: tempfile::TempDir,
    bus: Child,
    animd: Child,
}

impl Drop for Service {
    fn drop(&mut self) {
        for child in [&mut self.animd, &mut self.bus] {
            _ = child.kill();
            _ = child.wait();
        }
    }
}

impl Service {
    fn start(watch: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        let bus_config = format!(
            "<busconfig><type>session</type><listen>unix:path={}</listen><auth>EXTERNAL</auth><policy context=\"default\">\
             <allow send_destination=\"*\" eavesdrop=\"true\"/><allow eavesdrop=\"true\"/><allow own=\"*\"/></policy></busconfig>",
            at("bus").display()
        );
        fs::write(at("bus.conf"), bus_config).unwrap();
        let mut bus = Command::new("dbus-daemon")
            .arg(format!("--config-file={}", at("bus.conf").display()))
            .args(["--nofork", "--print-address"])
            .stdout(Stdio::piped())
            .spawn()
            .expect("dbus-daemon is installed");
        let mut address = String::new();
        BufReader::new(bus.stdout.take().unwrap()).read_line(&mut address).unwrap();
        let config = format!(
            "[folders]\ninbox = \"inbox\"\noutbox = \"outbox\"\nstate = \"state\"\n[inbox]\nrescan_seconds = 20\n{watch}"
        );
        fs::write(at("animd.toml"), config).unwrap();
        fs::create_dir(at("polled")).unwrap();
        let animd = Command::new(program())
            .args(["--user", "--config"])
            .arg(at("animd.toml"))
            .env("DBUS_SESSION_BUS_ADDRESS", address.trim())
            .env("NVML_LIBRARY", "/nonexistent")
            .env_remove("NOTIFY_SOCKET")
            .env_remove("JOURNAL_STREAM")
            .stderr(fs::File::create(at("log")).unwrap())
            .spawn()
            .unwrap();
        let service = Self { dir, bus, animd };
        while !service.path("inbox/failed").exists() {
            std::thread::sleep(Duration::from_millis(20));
        }
        service
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn count(&self, what: &str) -> u64 {
        let Ok(db) = Connection::open(self.path("state/ledger.db")) else { return 0 };
        db.query_row(&format!("SELECT count({what}) FROM job"), [], |row| row.get::<_, i64>(0))
            .map_or(0, |n| n as u64)
    }

    /// Returns the peak resident size in MiB.
    fn peak(&self) -> f64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.animd.id())).unwrap_or_default();
        let kib = status
            .lines()
            .find_map(|line| line.strip_prefix("VmHWM:")?.split_whitespace().next()?.parse().ok());
        kib.unwrap_or(0.0) / 1024.0
    }

    /// Returns the processor seconds so far, at 100 ticks a second.
    fn cpu(&self) -> f64 {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.animd.id())).unwrap_or_default();
        let after = stat.rsplit(')').next().unwrap_or_default();
        let ticks =
            |n: usize| after.split_whitespace().nth(n).and_then(|t| t.parse::<f64>().ok()).unwrap_or(0.0);
        (ticks(11) + ticks(12)) / 100.0
    }
}

/// Returns the path of `animd`, beside the folder of examples.
fn program() -> PathBuf {
    let exe = std::env::current_exe().unwrap();
    let animd = exe.ancestors().nth(2).unwrap().join("animd");
    assert!(animd.exists(), "build `animd` first: cargo build --release");
    animd
}

/// Writes pictures, no two alike, into ten subfolders.
fn write(dir: &Path, count: u64) {
    for n in 0..count {
        let folder = dir.join((n % 10).to_string());
        if n < 10 {
            fs::create_dir_all(&folder).unwrap();
        }
        fs::write(folder.join(format!("{n}.png")), [PICTURE, &n.to_le_bytes()].concat()).unwrap();
    }
}

fn main() {
    let count: u64 = std::env::args().nth(1).and_then(|n| n.parse().ok()).unwrap_or(10_000);
    println!("{count} pictures of 75 bytes; stable_seconds 2 (polled: 5)\n");
    println!("| dropped | drop s | all queued s | pictures/s | jobs | files | CPU s | MiB peak |");
    println!("|---|---|---|---|---|---|---|---|");
    let polled = "[[watch]]\npath = \"polled\"\npoll_seconds = 5\n";
    for (name, watch) in [
        ("copied into the folder", ""),
        ("moved in as a folder", ""),
        ("written twice", ""),
        ("into a polled folder", polled),
    ] {
        let service = Service::start(watch);
        let (start, cpu) = (Instant::now(), service.cpu());
        match name {
            "moved in as a folder" => {
                write(&service.path("ready"), count);
                let start = Instant::now();
                fs::rename(service.path("ready"), service.path("inbox/ready")).unwrap();
                round(name, &service, count, start, cpu);
            }
            "written twice" => {
                write(&service.path("inbox"), count);
                write(&service.path("inbox"), count);
                round(name, &service, count, start, cpu);
            }
            "into a polled folder" => {
                write(&service.path("polled"), count);
                round(name, &service, count, start, cpu);
            }
            _ => {
                write(&service.path("inbox"), count);
                round(name, &service, count, start, cpu);
            }
        }
        if name == "copied into the folder" {
            let log = fs::read_to_string(service.path("log")).unwrap_or_default();
            eprintln!("events lost and looked for: {}", log.matches("were lost").count());
        }
    }
}

fn round(name: &str, service: &Service, count: u64, start: Instant, cpu: f64) {
    let dropped = start.elapsed().as_secs_f64();
    let mut last = (Instant::now(), 0);
    while service.count("*") < count {
        std::thread::sleep(Duration::from_millis(50));
        let now = service.count("*");
        if now != last.1 {
            last = (Instant::now(), now);
        }
        assert!(last.0.elapsed() < Duration::from_secs(120), "it stays at {now} of {count}");
    }
    let queued = start.elapsed().as_secs_f64();
    let spent = service.cpu() - cpu;
    // A rescan finds nothing new.
    std::thread::sleep(Duration::from_secs(25));
    println!(
        "| {name} | {dropped:.1} | {queued:.1} | {:.0} | {} | {} | {spent:.1} | {:.1} |",
        count as f64 / queued,
        service.count("*"),
        service.count("DISTINCT source_path"),
        service.peak(),
    );
}
