//! animctl's verbs on a real service: their output for people and as JSON, and their exit codes.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::process::{Command, Output, Stdio};

use crate::harness::{House, PICTURE, program, says, text};
use serde_json::{Value, json};

/// A user that every Linux knows.
const ALICE: u32 = 1;

/// Runs a verb, and returns its exit code and its error message.
fn refused(house: &House, args: &[&str]) -> (Option<i32>, String) {
    let output = house.animctl(args);
    (output.status.code(), text(&output.stderr))
}

fn submit(house: &House, prompt: &str) -> String {
    let picture = house.picture();
    house.json(&["submit", &picture, "-p", prompt])["id"].to_string()
}

fn runs(house: &House, id: &str) {
    house.until("it runs", |house| {
        let running = house.json(&["list", "--state", "running"]);
        running[0]["id"].as_u64() == id.parse().ok() && running[0]["step"][0].as_u64() > Some(0)
    });
}

#[test]
fn progress_that_is_piped_is_lines() {
    let house = House::started("");
    let picture = house.picture();
    let done = house.animctl(&["submit", &picture, "-p", "slow=300", "--steps", "4", "--wait"]);
    let lines = text(&done.stderr);
    assert!(done.status.success(), "{lines}");
    assert!(!lines.contains('\x1b') && !lines.contains('\r'), "{lines:?}");
    assert!(lines.lines().any(|line| line.contains("% denoise ")), "{lines}");
    let watched = house.animctl(&["watch", "1"]);
    assert_eq!((watched.status.code(), text(&watched.stdout).as_str()), (Some(0), "job 1 done\n"));

    let slow = submit(&house, "slow=200");
    let watched = house.animctl(&["--json", "watch", &slow]);
    assert_eq!(watched.status.code(), Some(0));
    let moments: Vec<Value> =
        text(&watched.stdout).lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert!(moments.len() > 2, "{moments:?}");
    assert!(moments.iter().any(|moment| moment["stage"] == "denoise" && moment["step"][1] == 40));
    assert_eq!(moments.last().unwrap()["state"], "done");
    assert!(!text(&watched.stdout).contains('\x1b'), "no picture where there is no terminal");
}

#[test]
fn a_watched_job_ends_with_its_own_code() {
    let house = House::started("");
    assert_eq!(submit(&house, "fail"), "1");
    house.until_ended(1);
    assert_eq!(house.animctl(&["watch", "1"]).status.code(), Some(1));
    let slow = submit(&house, "slow=1000");
    let client = house.animctl_command(&["watch", &slow]).stdout(Stdio::piped()).spawn().unwrap();
    runs(&house, &slow);
    house.animctl(&["cancel", &slow]);
    assert_eq!(client.wait_with_output().unwrap().status.code(), Some(4));
}

#[test]
fn the_queue_is_watched_until_it_is_empty() {
    let house = House::started("");
    house.json(&["pause"]);
    // Slow enough for a client that starts late on a busy machine.
    let (first, second) = (submit(&house, "slow=100"), submit(&house, "fail"));
    let client =
        house.animctl_command(&["--json", "watch", "--until-idle"]).stdout(Stdio::piped()).spawn().unwrap();
    house.json(&["resume"]);
    let output = client.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(0));
    let lines = text(&output.stdout);
    for (id, state) in [(&first, "done"), (&second, "failed")] {
        let line = format!("{{\"id\":{id},\"state\":\"{state}\"}}");
        assert!(lines.lines().any(|l| l == line), "{line} in {lines}");
    }
}

#[test]
fn the_queue_obeys() {
    let house = House::started("");
    assert_eq!(house.json(&["pause"])["paused"], true);
    assert_eq!(house.json(&["status"])["paused"], true);
    let ids: Vec<String> = (0..3).map(|n| submit(&house, &format!("number {n}"))).collect();
    assert_eq!(house.json(&["priority", &ids[2], "10"]), json!({"id": 3, "priority": 10}));
    assert_eq!(says(&house, &["priority", &ids[0], "-5"]), "job 1 has priority -5\n");
    let place = |id: usize, position: u64| {
        house.until("the queue is in order", |house| {
            house
                .json(&["list", "--state", "queued"])
                .as_array()
                .unwrap()
                .iter()
                .any(|job| job["id"].as_u64() == ids[id].parse().ok() && job["position"] == position)
        });
    };
    place(2, 1);
    place(0, 3);
    let (code, why) = refused(&house, &["priority", &ids[0], "500"]);
    assert_eq!(code, Some(2));
    assert!(why.contains("must be a whole number from -100 to 100, not 500"), "{why}");
    // Several jobs at once, one of which is unknown.
    let output = house.animctl(&["--json", "cancel", &ids[1], "99"]);
    assert_eq!(output.status.code(), Some(1));
    let told: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(told, json!([{"id": 2, "state": "canceled"}]));
    assert!(text(&output.stderr).contains("no job 99"));
    assert_eq!(says(&house, &["resume"]), "the queue continues\n");
    house.until_ended(3);
    let order = "SELECT group_concat(id) FROM (SELECT id FROM job WHERE state = 'done' ORDER BY started_us)";
    assert_eq!(house.text(order), "3,1");

    let again = house.json(&["retry", "1", "--new-seed", "--wait"]);
    assert_eq!((&again["state"], &again["retry_of"]), (&json!("done"), &json!(1)));
    assert_ne!(again["settings"]["seed"], house.json(&["show", "1"])["settings"]["seed"]);
    assert_eq!(says(&house, &["forget", "1"]), "job 1 is forgotten\n");
    assert_eq!(refused(&house, &["show", "1"]).0, Some(1));
    assert_eq!(house.json(&["unload"])["unloaded"], true);
    house.until("it is unloaded", |house| house.engine().is_none());
}

#[test]
fn a_command_runs_with_the_model_warm_or_with_nothing_running() {
    let house = House::started("[engine]\nidle_unload_seconds = 1\n");
    let warm = house.animctl(&["warm", "--", "sh", "-c", "echo ran; exit 7"]);
    assert_eq!((warm.status.code(), text(&warm.stdout).as_str()), (Some(7), "ran\n"));
    assert_eq!(house.animctl(&["warm", "--", "/nowhere/program"]).status.code(), Some(1));
    assert_eq!(house.json(&["warm", "--seconds", "0"]), json!({"warm": true, "seconds": 0}));
    assert!(says(&house, &["warm", "--seconds", "1"]).contains("for 1 second;"));

    let slow = submit(&house, "slow=50");
    let waiting = submit(&house, "slow=1000");
    runs(&house, &slow);
    // Nothing runs while the command does.
    let status = format!("{} --user --json status", program("animctl").display());
    let drained = house.animctl(&["drain", "--", "sh", "-c", &status]);
    assert!(drained.status.success(), "{}", text(&drained.stderr));
    let seen: Value = serde_json::from_slice(&drained.stdout).unwrap();
    assert_eq!((&seen["running"], &seen["queued"], &seen["paused"]), (&json!([]), &json!(1), &json!(true)));
    assert_eq!(house.json(&["show", &slow])["state"], "done");
    runs(&house, &waiting);
    let (code, why) = refused(&house, &["drain", "--timeout", "0"]);
    assert_eq!(code, Some(1));
    assert!(why.contains("job 2 still runs"), "{why}");
    assert_eq!(house.json(&["status"])["paused"], true);
    house.animctl(&["cancel", &waiting]);
    assert_eq!(house.json(&["drain"]), json!({"drained": true, "paused": true}));
}

#[test]
fn what_was_done_is_told_in_every_form() {
    let house = House::started("");
    submit(&house, "a \"wave\", twice");
    submit(&house, "fail");
    house.until_ended(2);

    let history = house.json(&["history"]);
    assert_eq!(
        (&history[0]["id"], &history[1]["settings"]["prompt"]),
        (&json!(2), &json!("a \"wave\", twice"))
    );
    assert_eq!(house.json(&["history", "--state", "failed", "--limit", "5"]).as_array().unwrap().len(), 1);
    let table = says(&house, &["history"]);
    assert!(table.lines().next().unwrap().contains("ENERGY") && table.contains("832x480"), "{table}");

    for by in ["day", "model", "profile"] {
        let sums = house.json(&["stats", "--by", by]);
        assert_eq!(sums.as_array().unwrap().len(), 1, "{sums}");
        assert_eq!(
            (&sums[0]["done"], &sums[0]["failed"], &sums[0]["frames"]),
            (&json!(1), &json!(1), &json!(81))
        );
    }
    assert_eq!(house.json(&["stats", "--by", "model"])[0]["key"], "simulated");
    assert!(says(&house, &["stats", "--days", "3"]).starts_with("DAY"));

    let exported = house.json(&["export", "--timeline"]);
    let timeline = &exported[1]["timeline"];
    assert_eq!((&timeline["stages"][1][0], &timeline["steps"][39][1]), (&json!("denoise"), &json!(true)));
    assert!(timeline["events"].as_array().unwrap().iter().any(|event| event[1] == "ended"), "{timeline}");
    let csv = says(&house, &["export", "--csv"]);
    let lines: Vec<&str> = csv.lines().collect();
    assert!(lines[0].starts_with("id,uuid,state,") && lines[0].ends_with(",tiling"), "{csv}");
    assert_eq!(lines.len(), 3);
    assert!(lines[2].contains("\"a \"\"wave\"\", twice\""), "{csv}");

    let page = house.path("report.html");
    std::os::unix::fs::symlink("elsewhere.html", house.path("link.html")).unwrap();
    assert_eq!(house.animctl(&["report", house.path("link.html").to_str().unwrap()]).status.code(), Some(1));
    let report = house.json(&["report", page.to_str().unwrap()]);
    assert_eq!(report["jobs"], 2);
    let html = fs::read_to_string(&page).unwrap();
    assert_eq!(report["bytes"].as_u64(), Some(html.len() as u64));
    assert!(
        html.contains("a &quot;wave&quot;, twice")
            && html.contains("<svg")
            && html.contains("data:image/jpeg")
    );
    assert_eq!(fs::metadata(&page).unwrap().permissions().mode() & 0o777, 0o600, "it has prompts in it");

    let shown = says(&house, &["show", "1", "--timeline"]);
    assert!(
        shown.lines().any(|line| line.starts_with("output size ") && line.ends_with(" bytes")),
        "{shown}"
    );
    assert!(shown.contains("denoise") && shown.contains("  ended"), "{shown}");
    let copy = house.path("copy.mp4");
    let fetched = house.json(&["fetch", "1", copy.to_str().unwrap()]);
    assert_eq!(fetched["bytes"].as_u64(), Some(fs::metadata(&copy).unwrap().len()));
    let (code, why) = refused(&house, &["fetch", "1", copy.to_str().unwrap()]);
    assert_eq!(code, Some(1));
    assert!(why.contains("exists already"), "{why}");
    let (code, why) =
        refused(&house, &["fetch", "1", house.path("preview.jpg").to_str().unwrap(), "--preview"]);
    assert_eq!(code, Some(1));
    assert!(why.contains("job 1 is done; it no longer has a preview"), "{why}");
    let thumbnail = house.path("small.jpg");
    house.json(&["fetch", "1", thumbnail.to_str().unwrap(), "--thumbnail"]);
    assert_eq!(fs::read_to_string(thumbnail).unwrap(), "thumbnail of job 1\n");
}

#[test]
fn plans_profiles_and_folders_are_listed() {
    let house = House::started("");
    let picture = house.picture();
    let plan = house.json(&["plan", &picture, "--steps", "7"]);
    assert_eq!((&plan["steps"], &plan["forwards"], &plan["profile"]), (&json!(7), &json!(14), &json!("cpu")));
    assert!(says(&house, &["plan"]).contains("40 steps, 80 passes"));
    assert!(!says(&house, &["plan"]).contains("note"));
    // What a setting does that does nothing is told before the job, and after it.
    let idle = ["--shift-low", "3", "--steps", "2"];
    let said = says(&house, &[&["plan"], &idle[..]].concat());
    let note = said.lines().find_map(|line| line.strip_prefix("note")).expect("a note").trim().to_owned();
    assert!(note.contains("one transformer") && note.contains("`shift_low`"), "{note}");
    let output = house.animctl(&[&["submit", &picture, "--wait"], &idle[..]].concat());
    let told = String::from_utf8(output.stderr).unwrap();
    assert!(told.contains(&format!("job 1: {note}\n")), "{told}");
    assert_eq!(house.json(&["show", "1"])["notes"], json!([note]));
    let events = house.json(&["show", "1", "--timeline"])["timeline"]["events"].take();
    assert!(
        events.as_array().unwrap().iter().any(|event| event[1] == "note" && event[2] == note),
        "{events}"
    );
    house.json(&["submit", &picture, "--steps", "2", "--wait"]);
    assert_eq!(house.json(&["show", "2"])["notes"], Value::Null);
    let (code, why) = refused(&house, &["plan", "--frames", "80"]);
    assert_eq!(code, Some(2));
    assert!(why.contains("the nearest to 80 is 81"), "{why}");

    let profiles = house.json(&["profile"]);
    let cpu = profiles.as_array().unwrap().iter().find(|profile| profile["name"] == "cpu").unwrap();
    assert_eq!((&cpu["chosen"], &cpu["fits"]), (&json!(true), &json!(true)));
    for profile in profiles.as_array().unwrap() {
        assert!(!profile["why"].as_str().unwrap().contains("jobs wait"), "the CPU's is in use: {profile}");
    }
    assert!(says(&house, &["profile", "cpu"]).contains("\nin use: "));
    let (code, why) = refused(&house, &["profile", "nonesuch"]);
    assert_eq!(code, Some(1));
    assert!(why.contains("known are "), "{why}");

    let more = house.path("more");
    fs::create_dir(&more).unwrap();
    let more = more.canonicalize().unwrap();
    let added = house.json(&["folder", "add", more.to_str().unwrap(), "--poll", "0.1"]);
    assert_eq!(added["path"], more.to_str().unwrap());
    let listed = house.json(&["folder", "list"]);
    assert_eq!((&listed[1]["path"], &listed[1]["poll_seconds"]), (&json!(more), &json!(0.1)));
    assert!(says(&house, &["folder", "list"]).contains(more.to_str().unwrap()));
    fs::write(more.join("photo.png"), PICTURE).unwrap();
    house.until_ended(3);
    house.json(&["folder", "remove", more.to_str().unwrap()]);
    assert_eq!(house.json(&["folder", "list"]).as_array().unwrap().len(), 1);
    let (code, why) = refused(&house, &["folder", "add", "/nowhere/at/all"]);
    assert_eq!(code, Some(1));
    assert!(why.contains("cannot find `/nowhere/at/all`"), "{why}");
}

#[test]
fn the_configuration_is_checked_and_read_again() {
    let house = House::started("");
    let file = house.path("animd.toml");
    let path = file.to_str().unwrap();
    let right = house.json(&["config", "check", path]);
    assert_eq!((&right["ok"], &right["files"][0]), (&json!(true), &json!(path)));
    assert_eq!(house.json(&["config", "show", path])["inbox"]["stable_seconds"], 0.2);
    let shown = says(&house, &["config", "show", path, "--origins"]);
    assert!(shown.contains("stable_seconds = 0.2 # ") && shown.contains("animd.toml:"), "{shown}");
    assert_eq!(house.json(&["reload"])["reloaded"], true);

    fs::write(&file, "[queue]\natempts = 3\n").unwrap();
    let output = house.animctl(&["--json", "config", "check", path]);
    assert_eq!(output.status.code(), Some(1));
    let wrong: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(wrong["ok"], false);
    let error = wrong["error"].as_str().unwrap();
    assert!(error.contains("animd.toml:2") && error.contains("attempts"), "{error}");
    assert_eq!(refused(&house, &["config", "check", path]).0, Some(1));
    let (code, why) = refused(&house, &["reload"]);
    assert_eq!(code, Some(1));
    assert!(why.contains("attempts"), "{why}");
}

#[test]
fn every_verb_asks_the_same_animd() {
    let house = House::started("");
    let mut config = Command::new(program("animctl"));
    config.args(["--json", "config", "show"]).env("DBUS_SESSION_BUS_ADDRESS", house.address());
    config.env("HOME", house.dir.path()).env_remove("ANIMD_CONFIG");
    config.env_remove("XDG_CONFIG_HOME").env_remove("XDG_STATE_HOME").env_remove("XDG_VIDEOS_DIR");
    let output = config.output().unwrap();
    let shown: Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|e| panic!("{e}: {output:?}"));
    let inbox = shown["folders"]["inbox"].as_str().unwrap();
    assert!(
        inbox.starts_with(house.dir.path().to_str().unwrap()),
        "the session's, not the system's: {inbox}"
    );
}

#[test]
fn the_doctor_names_what_is_wrong_with_its_remedy() {
    let house = House::started("");
    let run = |command: &mut Command| -> Output {
        command.env("ANIMD_CONFIG", house.path("animd.toml")).env("HOME", house.dir.path()).output().unwrap()
    };
    let output = run(&mut house.animctl_command(&["--json", "doctor"]));
    let told: Value = serde_json::from_slice(&output.stdout).unwrap();
    let check = |name: &str| {
        told["checks"]
            .as_array()
            .unwrap()
            .iter()
            .find(|check| check["name"] == name)
            .unwrap_or_else(|| panic!("{name} in {told}"))
    };
    for name in ["configuration", "inbox", "outbox", "state", "disk", "service"] {
        assert_eq!(check(name)["status"], "ok", "{told}");
    }
    // The folder is there, and no model in it.
    assert_eq!(check("model")["status"], "fail");
    assert!(check("model")["remedy"].as_str().is_some_and(|remedy| !remedy.is_empty()));
    assert_eq!((output.status.code(), &told["ok"]), (Some(1), &json!(false)));

    fs::remove_dir_all(house.path("outbox")).unwrap();
    let lines = text(&run(&mut house.animctl_command(&["doctor"])).stdout);
    assert!(lines.contains("outbox` is made when animd starts"), "{lines}");
    fs::write(house.path("outbox"), "").unwrap();
    let lines = text(&run(&mut house.animctl_command(&["doctor"])).stdout);
    let at =
        lines.lines().position(|line| line.starts_with("fail  outbox")).unwrap_or_else(|| panic!("{lines}"));
    assert!(lines.lines().nth(at + 1).unwrap().contains("choose another folder"), "{lines}");
}

#[test]
fn codes_are_as_documented() {
    let house = House::started("");
    let code = |args: &[&str]| house.animctl(args).status.code();
    assert_eq!(code(&["status"]), Some(0));
    assert_eq!(code(&["show", "99"]), Some(1));
    assert_eq!(code(&["no-such-verb"]), Some(2));
    assert_eq!(code(&["export", "--csv", "--timeline"]), Some(2));
    for args in [&["status"][..], &["watch"], &["warm", "--", "true"], &["stats"], &["folder", "list"]] {
        let output = Command::new(program("animctl"))
            .arg("--user")
            .args(args)
            .env("DBUS_SESSION_BUS_ADDRESS", "unix:path=/nowhere")
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(3), "{args:?}");
    }
    for args in [&["status"][..], &["export", "--csv"], &["--json", "list"]] {
        let full = fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
        let output = house.animctl_command(args).stdout(full).output().unwrap();
        assert_eq!(output.status.code(), Some(1), "{args:?}");
        assert!(text(&output.stderr).contains("cannot write to standard output"), "{output:?}");
    }
    let none = Command::new(program("animctl"))
        .arg("status")
        .env("DBUS_SESSION_BUS_ADDRESS", "unix:path=/nowhere")
        .env("DBUS_SYSTEM_BUS_ADDRESS", "unix:path=/nowhere")
        .output()
        .unwrap();
    assert_eq!(none.status.code(), Some(3));
    let why = text(&none.stderr);
    assert!(why.contains("`animd --user`") && why.contains("`systemctl start animd`"), "{why}");
    let help = says(&house, &["--help"]);
    for line in
        ["  0    done", "  3    no animd can be reached", "  4    the job was cancelled", "  130  Ctrl-C"]
    {
        assert!(help.contains(line), "{help}");
    }
}

#[test]
fn everybody_sees_sums_and_timelines_of_their_own_jobs() {
    if !rustix::process::geteuid().is_root() {
        println!("skipped: only root can start processes of other users");
        return;
    }
    let house = House::system("");
    let animctl = house.animctl_for_all();
    let picture = house.picture();
    fs::set_permissions(&picture, fs::Permissions::from_mode(0o644)).unwrap();
    let alice = |args: &[&str]| {
        let mut command = Command::new(&animctl);
        command.args(["--system", "--json"]).args(args).env("DBUS_SYSTEM_BUS_ADDRESS", house.address());
        command.uid(ALICE).gid(ALICE).current_dir("/").output().unwrap()
    };
    assert!(alice(&["submit", &picture, "--wait"]).status.success());
    house.json(&["submit", &picture, "--wait"]);
    let sums = |output: &[u8]| serde_json::from_slice::<Value>(output).unwrap()[0]["done"].clone();
    assert_eq!(sums(&alice(&["stats"]).stdout), 1);
    assert_eq!(house.json(&["stats"])[0]["done"], 2, "root sees all");
    assert_eq!(house.json(&["stats", "--owner", "1"])[0]["done"], 1);
    let root = alice(&["stats", "--owner", "0"]);
    assert!(text(&root.stderr).contains("managing other users' jobs"), "{}", text(&root.stderr));
    assert!(alice(&["show", "1", "--timeline"]).status.success());
    let exported: Value = serde_json::from_slice(&alice(&["export", "--timeline"]).stdout).unwrap();
    assert_eq!(exported.as_array().unwrap().len(), 1);
    let manager = async {
        let manager = house.manager().await;
        manager.timeline(99).await
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    assert!(runtime.block_on(manager).unwrap_err().to_string().contains("there is no job 99"));
    // This does not go through animctl, which would not call the service.
    let refused = Command::new("busctl")
        .args([&format!("--address={}", house.address()), "call", "org.animd.Animd1", "/org/animd/Animd1"])
        .args(["org.animd.Animd1.Manager", "Timeline", "t", "2"])
        .uid(ALICE)
        .gid(ALICE)
        .output()
        .unwrap();
    assert!(text(&refused.stderr).contains("managing other users' jobs"), "{}", text(&refused.stderr));
}

#[test]
fn figures_for_prometheus_follow_the_jobs() {
    let mut house = House::new("");
    let file = house.path("animd.prom");
    house.configure(&format!("[metrics]\ntextfile = {:?}\n", file.to_str().unwrap()));
    house.start();
    let says = |house: &House, line: &str| {
        house.until(line, |_| fs::read_to_string(&file).is_ok_and(|text| text.lines().any(|l| l == line)));
    };
    says(&house, "animd_jobs_ended_total{result=\"done\"} 0");
    submit(&house, "a wave");
    submit(&house, "fail");
    says(&house, "animd_jobs_ended_total{result=\"done\"} 1");
    says(&house, "animd_jobs_ended_total{result=\"failed\"} 1");
    says(&house, "animd_stage_seconds_total{stage=\"load\"} 0.5");
    submit(&house, "crash");
    says(&house, "animd_engine_restarts_total 3");
    says(&house, "animd_jobs_ended_total{result=\"failed\"} 2");
    // Looking at an old job makes no new one.
    house.json(&["show", "1"]);
    let slow = submit(&house, "slow=1000");
    submit(&house, "waits");
    says(&house, "animd_jobs{state=\"running\"} 1");
    says(&house, "animd_jobs{state=\"queued\"} 1");
    says(&house, "animd_jobs_ended_total{result=\"done\"} 1");
    house.json(&["cancel", &slow]);
    says(&house, "animd_jobs_ended_total{result=\"canceled\"} 1");
    assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o644);
    house.stop();
    says(&house, "animd_state{state=\"stopping\"} 1");
}
