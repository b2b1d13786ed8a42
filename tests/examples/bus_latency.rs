//! Measures how long a submission takes until `JobNew` announces its job: a 2 MB JPEG by descriptor, with 500 jobs
//! waiting. Prints a table. The service that is measured is the `animd` of the same build, on a bus of its own.
//!
//! `cargo run --release --example bus_latency [DIR]`: DIR is where its folders are made, and so whose disk is measured.

use std::collections::HashMap;
use std::error::Error;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use animd_client::{ManagerProxy, id_of};
use futures_util::StreamExt;
use futures_util::future::try_join_all;

type Result<T, E = Box<dyn Error + Send + Sync>> = std::result::Result<T, E>;

const WAITING: usize = 500;
const PICTURE_BYTES: usize = 2_000_000;

struct Processes(Vec<Child>);

impl Drop for Processes {
    fn drop(&mut self) {
        for child in self.0.iter_mut().rev() {
            _ = child.kill();
            _ = child.wait();
        }
    }
}

/// When `JobNew` came, by the job's number.
type Told = Arc<Mutex<HashMap<u64, Instant>>>;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let dir = match std::env::args_os().nth(1) {
        Some(parent) => tempfile::tempdir_in(parent)?,
        None => tempfile::tempdir()?,
    };
    let (address, _processes) = start(dir.path())?;
    let manager = connect(&address).await?;
    manager.pause().await?;
    let told: Told = Arc::default();
    let listener = connect(&address).await?;
    let mut new = listener.receive_job_new().await?;
    let heard = told.clone();
    tokio::spawn(async move {
        while let Some(signal) = new.next().await {
            let now = Instant::now();
            if let (Ok(args), Ok(mut told)) = (signal.args(), heard.lock()) {
                told.insert(args.id, now);
            }
        }
    });
    println!("2 MB written and synced here: {}", table(synced(dir.path())?));
    for _ in 0..WAITING {
        submit(&manager, picture(dir.path(), PICTURE_BYTES / 200)?).await?;
    }
    for (clients, each) in [(1, 300), (50, 10)] {
        let connections = try_join_all((0..clients).map(|_| connect(&address))).await?;
        // The pictures are made before, so that this program's own work does not count as the service's.
        let mut pictures = Vec::new();
        for _ in 0..clients {
            let own: Result<Vec<File>> = (0..each).map(|_| picture(dir.path(), PICTURE_BYTES)).collect();
            pictures.push(own?);
        }
        let begun = Instant::now();
        let clients_at_once = connections.iter().zip(pictures).map(|(manager, own)| client(manager, own));
        let sent = try_join_all(clients_at_once).await?;
        let wall = begun.elapsed();
        let mut times = Vec::new();
        for (id, start) in sent.into_iter().flatten() {
            times.push(arrival(&told, id).await?.duration_since(start));
        }
        let rate = times.len() as f64 / wall.as_secs_f64();
        println!(
            "{clients:3} clients, {} waiting: {}, {rate:.0} jobs a second",
            manager.queued().await?,
            table(times)
        );
    }
    Ok(())
}

/// Submits pictures one after the other, and returns each job with the time when its call began.
async fn client(manager: &ManagerProxy<'_>, pictures: Vec<File>) -> Result<Vec<(u64, Instant)>> {
    let mut sent = Vec::with_capacity(pictures.len());
    for picture in pictures {
        sent.push(submit(manager, picture).await?);
    }
    Ok(sent)
}

async fn submit(manager: &ManagerProxy<'_>, picture: File) -> Result<(u64, Instant)> {
    let start = Instant::now();
    let path = manager.submit(picture.as_fd().into(), HashMap::new()).await?;
    Ok((id_of(&path).ok_or("no number")?, start))
}

async fn arrival(told: &Told, id: u64) -> Result<Instant> {
    for _ in 0..1000 {
        if let Some(at) = told.lock().map_err(|_| "poisoned")?.get(&id) {
            return Ok(*at);
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    Err(format!("nobody was told of job {id}").into())
}

/// Returns a file with a JPEG's header and comments up to the wanted size, unlike any before it.
fn picture(dir: &Path, bytes: usize) -> Result<File> {
    let mut jpeg = vec![0xff, 0xd8];
    while jpeg.len() < bytes {
        jpeg.extend([0xff, 0xfe, 0xff, 0xff]);
        jpeg.extend(uuid::Uuid::new_v4().as_bytes());
        jpeg.resize(jpeg.len() + 0xffff - 2 - 16, b'x');
    }
    // 832x480, three components.
    jpeg.extend([0xff, 0xc0, 0, 17, 8, 1, 0xe0, 3, 0x40, 3, 1, 0x11, 0, 2, 0x11, 0, 3, 0x11, 0, 0xff, 0xd9]);
    let mut file = tempfile::tempfile_in(dir)?;
    file.write_all(&jpeg)?;
    Ok(file)
}

/// Returns how long the disk alone takes.
fn synced(dir: &Path) -> Result<Vec<Duration>> {
    let bytes = vec![1; PICTURE_BYTES];
    let mut times = Vec::new();
    for _ in 0..100 {
        let mut file = tempfile::tempfile_in(dir)?;
        let start = Instant::now();
        file.write_all(&bytes)?;
        file.sync_all()?;
        times.push(start.elapsed());
    }
    Ok(times)
}

fn table(mut times: Vec<Duration>) -> String {
    times.sort();
    let at = |part: f64| {
        let index = ((times.len() as f64 * part).ceil() as usize).clamp(1, times.len()) - 1;
        times[index].as_secs_f64() * 1e3
    };
    format!("p50 {:.1} ms, p99 {:.1} ms, most {:.1} ms ({} times)", at(0.5), at(0.99), at(1.0), times.len())
}

async fn connect(address: &str) -> Result<ManagerProxy<'static>> {
    let bus = zbus::connection::Builder::address(address).build().await?;
    Ok(ManagerProxy::builder(&bus).cache_properties(zbus::proxy::CacheProperties::No).build().await?)
}

/// Starts a bus and the service on it.
fn start(dir: &Path) -> Result<(String, Processes)> {
    let bus_config = dir.join("bus.conf");
    let socket = dir.join("bus").display().to_string();
    fs::write(
        &bus_config,
        format!(
            "<busconfig><type>session</type><listen>unix:path={socket}</listen><policy context=\"default\">\
             <allow send_destination=\"*\" eavesdrop=\"true\"/><allow eavesdrop=\"true\"/><allow own=\"*\"/></policy>\
             </busconfig>"
        ),
    )?;
    let mut bus = Command::new("dbus-daemon")
        .arg(format!("--config-file={}", bus_config.display()))
        .args(["--nofork", "--print-address"])
        .stdout(Stdio::piped())
        .spawn()?;
    let mut address = String::new();
    BufReader::new(bus.stdout.take().ok_or("no output")?).read_line(&mut address)?;
    let address = address.trim().to_owned();
    let mut processes = Processes(vec![bus]);
    let config = dir.join("animd.toml");
    fs::create_dir(dir.join("model"))?;
    fs::write(
        &config,
        "[model]\npath = \"model\"\n[folders]\ninbox = \"inbox\"\noutbox = \"outbox\"\nstate = \"state\"\n\
         [queue]\nper_user = 100000\n[log]\nlevel = \"warn\"\n",
    )?;
    let programs = programs()?;
    let service = Command::new(programs.join("animd"))
        .args(["--user", "--config"])
        .arg(&config)
        .arg("--engine")
        .arg(programs.join("animd-engine-sim"))
        .env("DBUS_SESSION_BUS_ADDRESS", &address)
        .env("HOME", dir)
        .env_remove("NOTIFY_SOCKET")
        .spawn()?;
    processes.0.push(service);
    for _ in 0..200 {
        std::thread::sleep(Duration::from_millis(50));
        let status = Command::new(programs.join("animctl"))
            .args(["--user", "status"])
            .env("DBUS_SESSION_BUS_ADDRESS", &address)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()?;
        if status.success() {
            return Ok((address, processes));
        }
    }
    Err("the service does not answer".into())
}

/// Returns the folder with this build's programs.
fn programs() -> Result<PathBuf> {
    let own = std::env::current_exe()?;
    Ok(own.parent().and_then(Path::parent).ok_or("no folder")?.to_owned())
}
