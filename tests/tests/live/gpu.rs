//! GPUs as the driver reports them, with a fake driver library that a text file controls.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::harness::House;
use animd::supervisor::gpu::nvml::Driver;
use animd::supervisor::gpu::{Card, Machine, Process};
use animd_protocol::profile::BUILT_IN;

/// A fake driver library, and the file that it reads.
struct Fake {
    library: PathBuf,
    text: PathBuf,
}

impl Fake {
    fn in_folder(dir: &Path) -> Self {
        let library = dir.join("libnvidia-ml.so.1");
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("nvml/nvml.c");
        let cc =
            Command::new("cc").args(["-O1", "-shared", "-fPIC", "-o"]).arg(&library).arg(source).status();
        assert!(cc.expect("cc is installed").success());
        let text = dir.join("libnvidia-ml.so.1.txt");
        Self { library, text }
    }

    /// Replaces the machine that the library reports, atomically.
    fn set(&self, text: &str) {
        let new = self.text.with_extension("new");
        fs::write(&new, text).unwrap();
        fs::rename(&new, &self.text).unwrap();
    }
}

const H200: &str = "driver 580.82.07\ncard GPU-1111 9.0 143771 143100 0 400000 1 NVIDIA H200\n";

/// Returns a service whose engine has code for an H200.
fn house(machine: Option<&str>) -> (House, Fake) {
    let mut house = House::new("");
    let fake = Fake::in_folder(house.dir.path());
    if let Some(text) = machine {
        fake.set(text);
    }
    house.set_env("NVML_LIBRARY", fake.library.to_str().unwrap());
    house.set_env("SIM_KERNELS", "1");
    (house, fake)
}

fn done(house: &House, jobs: i64) {
    house.until(&format!("{jobs} jobs are done"), |house| {
        house.number("SELECT count(*) FROM job WHERE state = 'done'") == Some(jobs)
    });
}

#[tokio::test]
async fn what_the_driver_says_is_read() {
    let dir = tempfile::tempdir().unwrap();
    let fake = Fake::in_folder(dir.path());
    let driver = Driver::new(&fake.library);
    let Machine::NoDriver { why, .. } = driver.look(None).await else { panic!("there is none") };
    assert!(why.contains("not loaded"), "{why}");

    let own = std::process::id();
    fake.set(&format!(
        "driver 580.82.07\ncard GPU-1 9.0 143771 100000 0 400000 1 NVIDIA H200\n\
         card GPU-2 8.9 24564 20000 1 50000 0 NVIDIA GeForce RTX 4090\nprocess 0 {own} 30000\nprocess 0 4194303 5000\n"
    ));
    let name = fs::read_to_string("/proc/self/comm").unwrap().trim_end().to_owned();
    let mib = 1 << 20;
    let of = |pid, name: Option<&str>, bytes: u64| Process {
        pid,
        name: name.map(str::to_owned),
        bytes: Some(bytes),
    };
    let h200 = Card {
        index: 0,
        uuid: "GPU-1".into(),
        name: "NVIDIA H200".into(),
        bus_id: "00000000:01:00.0".into(),
        capability: (9, 0),
        memory_total: 143_771 * mib,
        memory_free: 100_000 * mib,
        mig: false,
        processes: vec![of(own, Some(&name), 30_000 * mib), of(4_194_303, None, 5_000 * mib)],
        power_limit_mw: Some(700_000),
    };
    let machine = driver.look(None).await;
    assert_eq!(machine.driver(), Some("580.82.07"));
    let [first, second] = machine.cards() else { panic!("{machine:?}") };
    // The thread that asks has another name than this process.
    assert_eq!(first.processes[1], h200.processes[1]);
    assert_eq!(*first, Card { processes: first.processes.clone(), ..h200.clone() });
    assert_eq!((second.mig, second.index, &*second.name), (true, 1, "NVIDIA GeForce RTX 4090"));

    // Memory that the engine holds counts as free.
    let machine = driver.look(Some(own)).await;
    assert_eq!(machine.cards()[0].memory_free, 130_000 * mib);
    assert_eq!(machine.cards()[0].processes, h200.processes[1..]);

    fake.set("init 4\n");
    assert!(matches!(driver.look(None).await, Machine::Refused { .. }));
    fake.set("init 18\n");
    let Machine::Failed { why } = driver.look(None).await else { panic!("an error") };
    assert!(why.contains("two versions"), "{why}");
    fake.set("init 15\n");
    assert!(matches!(driver.look(None).await, Machine::Failed { .. }));
    let missing = Driver::new(dir.path().join("missing.so"));
    let Machine::NoDriver { why, .. } = missing.look(None).await else { panic!("there is no library") };
    assert!(why.contains("not installed") && why.contains("missing.so"), "{why}");
}

#[tokio::test]
async fn a_driver_that_does_not_answer_holds_nobody_up() {
    let dir = tempfile::tempdir().unwrap();
    let fake = Fake::in_folder(dir.path());
    let driver = Driver::new(&fake.library).with_patience(Duration::from_millis(50));
    fake.set(&format!("hang 3600\n{H200}"));
    for _ in 0..2 {
        let Machine::Failed { why } = driver.look(None).await else { panic!("it answered") };
        assert!(why.contains("has not answered for"), "{why}");
    }
}

#[test]
fn a_job_has_its_profile_its_gpu_and_its_energy() {
    for (counter, method) in [(1, "counter"), (0, "sampled")] {
        let machine = H200.replace("400000 1", &format!("400000 {counter}"));
        let (mut house, _fake) = house(Some(&machine));
        house.start();
        house.json(&["submit", &house.picture(), "-p", "slow=60", "--wait"]);
        let text = |column: &str| house.text(&format!("SELECT {column} FROM job"));
        assert_eq!(
            text("profile || ' ' || gpu_uuid || ' ' || gpu_name || ' ' || driver || ' ' || backend"),
            "h200 GPU-1111 NVIDIA H200 580.82.07 cuda"
        );
        assert_eq!(text("energy_method"), method);
        // 400 W from the first sample to the last, whatever the time was.
        let sampled = house.number("SELECT (max(at_us) - min(at_us)) * 400 / 1000 FROM sample").unwrap();
        let energy = house.number("SELECT energy_mj FROM job").unwrap();
        assert!(
            sampled > 0 && (energy - sampled).abs() * 5 < sampled,
            "{energy} mJ, {sampled} by the samples"
        );
        let whole = "power_mw = 400000 AND sm_clock_mhz = 1980 AND memory_clock_mhz = 2619 AND temperature_c = 61 \
                     AND gpu_percent = 97 AND memory_percent = 42 AND memory_bytes = 703594496 AND attempt = 1";
        let count =
            |filter: &str| house.number(&format!("SELECT count(*) FROM sample WHERE {filter}")).unwrap();
        assert!(count("1") >= 2 && count("1") == count(whole), "{} of {}", count(whole), count("1"));
        // Nearly all of the energy is denoising, and the stages do not add up to more than the whole.
        let denoise = house.number("SELECT energy_mj FROM stage WHERE name = 'denoise'").unwrap();
        assert!(denoise * 2 > energy, "{denoise} of {energy} mJ");
        assert!(house.number("SELECT sum(energy_mj) FROM stage") <= Some(energy));
        assert_eq!(
            house.number("SELECT count(*) FROM stage WHERE name = 'denoise' AND wall_us > 0"),
            Some(1)
        );
        let shown = house.json(&["show", "1"]);
        assert_eq!(shown["energy_method"], method);
        assert_eq!(
            shown["energy_joules"].as_f64().map(|j| (j * 1e3).round() as i64),
            Some(energy),
            "{shown}"
        );
        assert_eq!((&shown["profile"], &shown["gpu"]), (&"h200".into(), &"NVIDIA H200".into()));
        let joules = shown["stage_joules"].as_array().unwrap();
        assert!(
            joules.iter().any(|of| of[0] == "denoise" && of[1].as_f64() == Some(denoise as f64 / 1e3)),
            "{shown}"
        );
    }
}

#[test]
fn without_a_gpu_the_cpu_is_used_and_a_driver_that_appears_late_is_found() {
    let (mut house, fake) = house(None);
    house.start();
    house.json(&["submit", &house.picture(), "-p", "a", "--wait"]);
    assert_eq!(house.text("SELECT profile || ' ' || backend FROM job"), "cpu cpu");
    assert_eq!(
        house.number("SELECT count(*) FROM job WHERE gpu_uuid IS NULL AND energy_mj IS NULL"),
        Some(1)
    );
    fake.set(H200);
    // A job makes the service ask the driver, but not every job, so that many small ones do not ask again and again.
    house.until("a job runs on the GPU", |house| {
        house.json(&["submit", &house.picture(), "-p", "a", "--wait"]);
        house.number("SELECT count(*) FROM job WHERE profile = 'h200' AND backend = 'cuda'") != Some(0)
    });
}

#[test]
fn jobs_wait_while_another_program_holds_the_card() {
    let busy = H200.replace("143771 143100", "143771 3000") + "process 0 4194303 140000\n";
    let (mut house, fake) = house(Some(&busy));
    house.start();
    let submit =
        |house: &House| assert!(house.animctl(&["submit", &house.picture(), "-p", "a"]).status.success());
    submit(&house);
    house.until("the state tells", |house| {
        let status = house.json(&["status"]);
        status["state"] == "no-gpu"
            && status["state_text"].to_string().contains("process 4194303, holds 136.7 GiB")
    });
    assert_eq!(house.number("SELECT count(*) FROM job WHERE state = 'queued'"), Some(1));
    // Other programs leave some memory: enough for a smaller profile.
    fake.set(&H200.replace("143771 143100", "143771 40000"));
    house.until("it is looked at again", |house| {
        // A new job makes the service ask the driver, but not every one.
        std::thread::sleep(Duration::from_secs(1));
        submit(house);
        house.number("SELECT count(*) FROM job WHERE state = 'done'") > Some(0)
    });
    assert_eq!(house.number("SELECT count(*) FROM job WHERE state = 'done' AND profile != 'h100'"), Some(0));
}

#[test]
fn devices_that_appear_and_are_refused_need_one_new_start() {
    let (mut house, fake) = house(None);
    house.set_env("NOTIFY_SOCKET", "/nonexistent/notify");
    house.start();
    fake.set("init 4\n");
    let mut ended = None;
    for _ in 0..600 {
        ended = house.exited();
        if ended.is_some() {
            break;
        }
        _ = house.animctl(&["submit", &house.picture(), "-p", "a"]);
        std::thread::sleep(Duration::from_millis(100));
    }
    assert_eq!(ended, Some(75));
    // A service that started with the driver present gains nothing by a restart.
    house.start();
    house.until("it says so", |house| house.json(&["status"])["state"] == "no-gpu");
    assert_eq!(house.exited(), None);
    fake.set(H200);
    let jobs = house.number("SELECT count(*) FROM job").unwrap();
    house.until("jobs run again", |house| {
        _ = house.animctl(&["submit", &house.picture(), "-p", "a"]);
        house.number("SELECT count(*) FROM job WHERE profile = 'h200' AND state = 'done'") >= Some(jobs)
    });
}

#[test]
fn a_profile_may_be_asked_for() {
    let (mut house, _fake) = house(Some(H200));
    house.configure("[profile]\nname = \"rtx4090\"\ngpu = 0\n");
    house.start();
    house.json(&["submit", &house.picture(), "-p", "a", "--wait"]);
    assert_eq!(house.text("SELECT profile FROM job"), "rtx4090");
    done(&house, 1);
    house.stop();
    // The settings of a profile are the defaults of jobs, where nothing else sets them.
    let (_, text) = BUILT_IN.iter().find(|(name, _)| *name == "rtx4090").expect("it comes with animd");
    let own = house.path("mine.toml");
    fs::write(&own, text.replacen("#tiling", "tiling", 1)).expect("written");
    house.configure(&format!("[profile]\nname = \"{}\"\n", own.display()));
    house.start();
    house.json(&["submit", &house.picture(), "-p", "a", "--wait"]);
    assert_eq!(house.json(&["show", "2"])["settings"]["tiling"], "tiled");
    house.stop();
    house.configure("[profile]\nname = \"rtx409\"\n");
    house.start();
    house.until("the mistake is told", |house| {
        let text = house.json(&["status"])["state_text"].to_string();
        text.contains("there is no profile `rtx409`; did you mean `rtx4090`?")
    });
}
