//! Prints what NVIDIA's driver says of this machine, and which profile an engine with code for its cards would get.
//!
//! `cargo run --release --example gpu -- [SECONDS]`: with seconds, each card's energy over that time, as a job is metered.

use std::time::{Duration, Instant};

use animd::store::ledger::Ledger;
use animd::supervisor::gpu::meter::Meter;
use animd::supervisor::gpu::nvml::Driver;
use animd::supervisor::gpu::{Machine, gib};
use animd::supervisor::profile::{Wish, choose};
use animd_common::profiles::load;
use animd_protocol::messages::{Kernels, Target};
use animd_protocol::progress::Stage;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let driver = Driver::default();
    let start = Instant::now();
    let machine = driver.look(None).await;
    println!("asked in {:.1} ms", start.elapsed().as_secs_f64() * 1e3);
    match &machine {
        Machine::Driver { version, .. } => println!("driver {version}"),
        other => println!("{other:?}"),
    }
    for card in machine.cards() {
        println!(
            "{}: {} {}, compute capability {}.{}, {} of {} free, MIG {}, at most {:?} mW, {} processes",
            card.title(),
            card.uuid,
            card.bus_id,
            card.capability.0,
            card.capability.1,
            gib(card.memory_free),
            gib(card.memory_total),
            card.mig,
            card.power_limit_mw,
            card.processes.len()
        );
    }
    let native = |major, minor, exact| Target { capability: (major, minor), exact };
    let kernels = Kernels {
        native: vec![native(8, 9, false), native(9, 0, true)],
        ptx: Some((8, 9)),
        driver: Some(580),
    };
    let (profiles, mistakes) = load(&[]);
    assert!(mistakes.is_empty());
    for kernels in [kernels, Kernels::default()] {
        let choice = choose(&machine, &kernels, &Wish::default(), &profiles);
        let name = choice.profile.as_ref().map_or("none", |p| &p.name);
        println!("{name} ({}): {}", choice.state.name(), choice.text());
    }
    let Some(seconds) = std::env::args().nth(1).and_then(|s| s.parse().ok()) else { return Ok(()) };
    let path = std::env::temp_dir().join(format!("animd-gpu-{}.db", std::process::id()));
    let ledger = Ledger::open(&path)?;
    for card in machine.cards() {
        let start = Instant::now();
        let meter = Meter::start(&driver, &card.uuid, &ledger, 0, 1).ok_or("no thread")?;
        meter.stage(Stage::Load);
        tokio::time::sleep(Duration::from_secs(seconds)).await;
        let spent = meter.end().sum().await;
        println!("{}: {spent:?} in {:.2} s", card.title(), start.elapsed().as_secs_f64());
    }
    for end in ["", "-wal", "-shm"] {
        _ = std::fs::remove_file(format!("{}{end}", path.display()));
    }
    Ok(())
}
