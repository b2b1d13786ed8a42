//! animctl and the bus interface.

use std::collections::HashMap;
use std::fs;
use std::process::Command;

use crate::harness::{House, PICTURE, program};
use zbus::Variant;

#[test]
fn a_submitted_picture_is_waited_for_and_shown() {
    let house = House::started("");
    let picture = house.picture();
    let done = house.animctl(&["submit", &picture, "-p", "a wave", "--seed", "7", "--steps", "4", "--wait"]);
    assert_eq!(done.status.code(), Some(0), "{}", String::from_utf8_lossy(&done.stderr));
    assert_eq!(
        String::from_utf8(done.stdout).unwrap().trim(),
        house.path("outbox/picture-7.mp4").to_str().unwrap()
    );
    let shown = house.json(&["show", "1"]);
    assert_eq!((&shown["state"], &shown["settings"]["prompt"]), (&"done".into(), &"a wave".into()));
    assert_eq!((&shown["settings"]["steps"], &shown["stages"][1][0]), (&4.into(), &"denoise".into()));
    let listed = house.json(&["list"]);
    assert_eq!(
        (&listed[0]["id"], &listed[0]["state"], &listed[0]["progress"]),
        (&1.into(), &"done".into(), &1.0.into())
    );
    assert_eq!(listed[0]["name"], "picture.png");
    assert!(listed[0].get("prompt").is_none() && listed[0].get("output").is_none(), "private: {listed}");
    assert!(fs::metadata(&picture).is_ok(), "a submitted picture stays where it is");

    let copy = house.path("copy.mp4");
    let link = house.path("link.png");
    std::os::unix::fs::symlink(&picture, &link).unwrap();
    let again = house.animctl(&["submit", link.to_str().unwrap(), "--output", copy.to_str().unwrap()]);
    assert_eq!(again.status.code(), Some(0), "{}", String::from_utf8_lossy(&again.stderr));
    assert!(fs::read_to_string(copy).unwrap().contains("simulated video of job 2"));
}

#[test]
fn failures_and_wrong_calls_have_their_codes_and_sentences() {
    let house = House::started("");
    let picture = house.picture();
    let run = |args: &[&str]| {
        let output = house.animctl(args);
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let (code, text) = run(&["submit", &picture, "-p", "fail", "--wait"]);
    assert_eq!(code, Some(1));
    assert!(text.contains("job 1 failed: the video needs 80 GiB"), "{text}");
    let (code, text) = run(&["submit", &picture, "--frames", "80"]);
    assert_eq!(code, Some(2));
    assert!(text.contains("the nearest to 80 is 81"), "{text}");
    let (code, text) = run(&["show", "99"]);
    assert_eq!(code, Some(1));
    assert!(text.contains("there is no job 99"), "{text}");
    let (code, text) = run(&["submit", "/dev/zero"]);
    assert_eq!(code, Some(1));
    assert!(text.contains("a device, not a regular file"), "{text}");
    let (code, text) = run(&["submit", &picture, "--output", "/nonexistent/x.mp4"]);
    assert_eq!(code, Some(1));
    assert!(text.contains("there is no folder `/nonexistent`"), "{text}");
    assert_eq!(house.json(&["list"]).as_array().map(Vec::len), Some(1), "nothing was submitted");
    for wrong in ["nan", "inf", "-inf"] {
        for verb in ["submit", "plan"] {
            let (code, text) = run(&[verb, &picture, &format!("--shift={wrong}")]);
            assert_eq!(code, Some(2));
            assert!(text.contains("`shift` must be a number from 0.01 to 100"), "{text}");
        }
    }
    let (code, text) = run(&["folder", "add", house.dir.path().to_str().unwrap(), "--poll", "nan"]);
    assert_eq!(code, Some(2));
    assert!(text.contains("it must be a number, such as"), "{text}");
    let pipe = house.path("pipe.png");
    rustix::fs::mknodat(rustix::fs::CWD, &pipe, rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
    for verb in ["submit", "plan"] {
        let (code, text) = run(&[verb, pipe.to_str().unwrap()]);
        assert_eq!(code, Some(1));
        assert!(text.contains("a pipe, not a regular file"), "{text}");
    }
    assert_eq!(run(&["submit"]).0, Some(2));
    let (code, text) = run(&["cancel", "1"]);
    assert_eq!(code, Some(1));
    assert!(text.contains("nothing to cancel"), "{text}");
    let unreached = Command::new(program("animctl"))
        .args(["--user", "status"])
        .env("DBUS_SESSION_BUS_ADDRESS", "unix:path=/nowhere")
        .output()
        .unwrap();
    assert_eq!(unreached.status.code(), Some(3));
}

#[test]
fn jobs_are_cancelled_queued_or_running_or_deaf() {
    let house = House::started("[engine]\ncancel_seconds = 1\n");
    let picture = house.picture();
    let submit =
        |prompt: &str| house.json(&["submit", &picture, "-p", prompt])["id"].as_u64().unwrap().to_string();
    let running = submit("slow=1000");
    let queued = submit("waits");
    house.until("the first runs", |house| {
        house.json(&["list", "--state", "running"])[0]["step"][0].as_u64() > Some(0)
    });
    assert_eq!(house.json(&["list", "--state", "queued"])[0]["position"], 1);
    assert_eq!(house.json(&["cancel", &queued])["state"], "canceled");
    let state = house.json(&["cancel", &running])["state"].clone();
    assert!(state == "canceling" || state == "canceled", "{state}");
    house.until_ended(2);
    assert_eq!(house.number("SELECT count(*) FROM job WHERE state = 'canceled'"), Some(2));
    let deaf = submit("deaf slow=1000");
    house.until("the third runs", |house| {
        house.json(&["list", "--state", "running"])[0]["step"][0].as_u64() > Some(0)
    });
    house.json(&["cancel", &deaf]);
    house.until_ended(3);
    assert_eq!(house.text("SELECT state FROM job WHERE id = 3"), "canceled");
    // A picture from the inbox is moved out of it, too.
    house.drop_picture("photo.png", Some("slow=1000"));
    house.until("it runs", |house| !house.json(&["list", "--state", "running"])[0].is_null());
    house.json(&["cancel", "4"]);
    house.until_ended(4);
    // Nobody wants a cancelled picture to be called failed.
    assert_eq!(house.files("inbox/failed"), Vec::<String>::new());
    assert_eq!(house.files("inbox/cancelled"), ["photo.png", "photo.txt"]);
    assert!(house.text("SELECT error_text FROM job WHERE id = 4").starts_with("cancelled by "));
    assert!(house.files("outbox").is_empty());
}

#[test]
fn the_same_key_is_the_same_job() {
    let house = House::started("");
    let picture = house.picture();
    let submit = || house.json(&["submit", &picture, "--idempotency-key", "once"])["id"].clone();
    assert_eq!((submit(), submit()), (1.into(), 1.into()));
    house.until_ended(1);
    let again = house.json(&["submit", &picture, "--idempotency-key", "once"]);
    assert_eq!((&again["id"], &again["state"]), (&1.into(), &"done".into()));
    assert_eq!(house.files("outbox").len(), 1);
}

#[test]
fn a_known_key_is_found_in_a_full_queue() {
    let house = House::started("[queue]\nper_user = 1\n");
    let picture = house.picture();
    let submit = ["submit", &picture, "-p", "slow=1000", "--idempotency-key", "once"];
    assert_eq!(house.json(&submit)["id"], 1);
    let refused = house.animctl(&["submit", &picture]);
    assert!(String::from_utf8_lossy(&refused.stderr).contains("you have 1 open jobs"), "{refused:?}");
    assert_eq!(house.json(&submit)["id"], 1);
}

#[test]
fn wait_goes_on_over_a_restart() {
    let mut house = House::started("[defaults]\nseed = 7\n");
    let picture = house.picture();
    let client = house
        .animctl_command(&["submit", &picture, "-p", "slow=20", "--wait"])
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    house.until("it runs", |house| {
        house.number("SELECT count(*) FROM job WHERE state = 'running'") == Some(1)
    });
    house.kill();
    house.start();
    let output = client.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(0));
    assert_eq!(house.files("outbox"), ["picture-7.mp4"]);
}

#[test]
fn a_video_that_cannot_be_copied_can_still_be_fetched() {
    let house = House::started("");
    let picture = house.picture();
    let dir = house.path("gone");
    fs::create_dir(&dir).unwrap();
    house.json(&["pause"]);
    let client = house
        .animctl_command(&["submit", &picture, "--output", dir.join("x.mp4").to_str().unwrap()])
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    house.until("it waits", |house| house.number("SELECT count(*) FROM job") == Some(1));
    fs::remove_dir(&dir).unwrap();
    house.json(&["resume"]);
    let output = client.wait_with_output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.contains("`animctl fetch 1 FILE` copies it"), "{text}");
    let copy = house.path("copy.mp4");
    assert_eq!(house.json(&["fetch", "1", copy.to_str().unwrap()])["id"], 1);
}

#[test]
fn a_path_is_taken_only_below_the_watched_folder_and_keys_are_checked() {
    let house = House::started("");
    let picture = house.picture();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let manager = runtime.block_on(house.manager());
    let call = |path: &str, options: HashMap<&str, Variant<'_>>| match runtime
        .block_on(manager.submit_path(path, options))
    {
        Ok(job) => (true, job.to_string()),
        Err(e) => (false, e.to_string()),
    };
    let none = HashMap::new;
    let (taken, text) = call(&picture, none());
    assert!(!taken && text.contains("is not in a watched folder"), "{text}");
    std::os::unix::fs::symlink(&picture, house.path("inbox/link.png")).unwrap();
    let (taken, text) = call(house.path("inbox/link.png").to_str().unwrap(), none());
    assert!(!taken && text.contains("is not in a watched folder"), "{text}");
    let (taken, text) = call(house.path("inbox/../picture.png").to_str().unwrap(), none());
    assert!(!taken, "{text}");
    let kept = house.path("inbox/done/old.png");
    fs::write(&kept, PICTURE).unwrap();
    let (taken, text) = call(kept.to_str().unwrap(), HashMap::from([("promt", "a".into())]));
    assert!(!taken && text.contains("unknown option `promt`; did you mean `prompt`?"), "{text}");
    let (taken, text) = call(kept.to_str().unwrap(), HashMap::from([("seed", 7_i32.into())]));
    assert!(taken && text.contains("/org/animd/Animd1/job/1"), "{text}");
    house.until_ended(1);
    assert_eq!(house.files("outbox"), ["old-7.mp4"]);
    assert!(kept.exists());
}

#[test]
fn the_examples_print_where_the_video_is_or_why_there_is_none() {
    let house = House::started("[defaults]\nseed = 7\n");
    // Before systemd 254 busctl passes no open files; a picture in a watched folder can be named.
    fs::write(house.path("inbox/done/old.png"), PICTURE).unwrap();
    let picture = house.picture();
    let run = |interpreter: &[&str], script: &str, args: &[&str]| {
        let mut command = Command::new(interpreter[0]);
        command
            .args(&interpreter[1..])
            .arg(format!("{}/../packaging/examples/{script}", env!("CARGO_MANIFEST_DIR")));
        command.args(args).current_dir(house.dir.path());
        let output =
            command.env("BUS", "--user").env(house.bus_variable(), house.address()).output().unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
        (output.status.code(), text(&output.stdout), text(&output.stderr))
    };
    let works = |command: &[&str]| {
        Command::new(command[0]).args(&command[1..]).output().is_ok_and(|o| o.status.success())
    };

    if works(&["busctl", "--version"]) {
        let (code, said, why) = run(&["sh"], "submit.sh", &["inbox/done/old.png", "a \"wave\""]);
        assert_eq!(
            (code, said.as_str()),
            (Some(0), house.path("outbox/old-7.mp4").to_str().unwrap()),
            "{why}"
        );
        let (code, said, why) = run(&["sh"], "submit.sh", &["inbox/done/old.png", "fail"]);
        assert_eq!(code, Some(1), "{why}");
        assert_eq!(said, "the video needs 80 GiB, the machine has 8; choose a smaller size");
    } else {
        println!("skipped: there is no busctl");
    }

    // A python that a user has installed often lacks modules that the distribution's has.
    let python = ["python3", "/usr/bin/python3"].into_iter();
    let python = python
        .map(|python| vec![python])
        .find(|python| works(&[&python[..], &["-c", "from gi.repository import Gio"]].concat()));
    let gjs = Some(vec!["gjs", "-m"]).filter(|_| works(&["gjs", "--version"]));
    for (script, interpreter) in [("submit.py", python), ("submit.js", gjs)] {
        let Some(interpreter) = interpreter else {
            println!("skipped: nothing here runs {script}");
            continue;
        };
        let run = |args: &[&str]| run(&interpreter, script, &[&["--user"], args].concat());
        let video = format!("{script}.mp4");
        let (code, _, why) = run(&[picture.as_str(), "a wave", &video]);
        assert_eq!(code, Some(0), "{why}");
        assert!(fs::read_to_string(house.path(&video)).unwrap().starts_with("simulated video"));
        let (code, _, why) = run(&[picture.as_str(), "a wave", &video]);
        assert_eq!((code, why), (Some(1), format!("`{video}` exists already; choose another name")));
        let (code, _, why) = run(&["none.png", "a wave", "other.mp4"]);
        assert_eq!(code, Some(1));
        assert!(why.lines().count() == 1 && why.contains("No such file"), "{why}");
        let (code, _, why) = run(&[picture.as_str(), "fail", "other.mp4"]);
        assert_eq!(code, Some(1));
        assert_eq!(why.matches("org.animd.Animd1.Error.NotEnoughMemory: ").count(), 1, "{why}");
        assert!(!why.contains("GDBus.Error"), "{why}");
    }
}
