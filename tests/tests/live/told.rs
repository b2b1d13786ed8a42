//! What animctl tells of jobs, and how it refuses: places, times, owners, reasons, several things at once, and the same
//! exit code for the same mistake.

use std::fs;
use std::process::{Command, Output, Stdio};

use crate::harness::{House, PICTURE, says, text};
use serde_json::{Value, json};

fn line_of(table: &str, id: &str) -> String {
    let line = table.lines().find(|line| line.split_whitespace().next() == Some(id));
    line.unwrap_or_else(|| panic!("job {id} in {table}")).to_owned()
}

#[test]
fn each_job_is_told_with_its_place_time_owner_and_reason() {
    let house = House::started("");
    let long = house.path(&format!("{}.png", "a very long name of a picture ".repeat(6)));
    fs::write(&long, PICTURE).unwrap();
    let long = long.to_str().unwrap();
    // A first job says how long such jobs take.
    says(&house, &["submit", long, "-p", "slow=20", "--wait"]);
    says(&house, &["submit", long, "-p", "slow=1000"]);
    says(&house, &["submit", long, long, "-p", "fail"]);
    house.until("the second runs", |house| {
        house.json(&["list", "--state", "running"])[0]["step"][0].as_u64() > Some(0)
    });
    let jobs = house.json(&["list"]);
    assert_eq!((&jobs[0]["position"], &jobs[1]["position"]), (&json!(2), &json!(1)));
    let (first, second) = (jobs[1]["expected_end"].as_u64(), jobs[0]["expected_end"].as_u64());
    assert!(first > jobs[2]["expected_end"].as_u64() && second > first, "{jobs}");
    let owner = animd_common::users::name(rustix::process::geteuid().as_raw());
    assert_eq!(jobs[0]["owner_name"], owner.as_str());

    let table = says(&house, &["list"]);
    for line in table.lines() {
        assert!(line.chars().count() <= 80, "{line}");
    }
    let queued = line_of(&table, "4");
    for part in ["queued", "number 2 in the queue", " left", "..."] {
        assert!(queued.contains(part), "{part} in {queued}");
    }
    assert!(line_of(&table, "2").contains("denoise "), "{table}");
    let shown = says(&house, &["show", "4"]);
    assert!(shown.contains("number 2 in the queue, ") && shown.contains(&owner), "{shown}");
    assert!(shown.lines().all(|line| line.chars().count() <= 80), "{shown}");
    let status = says(&house, &["status"]);
    assert!(status.contains("2 queued") && status.contains("number 1 in the queue"), "{status}");

    assert!(says(&house, &["cancel", "2"]).contains("job 2 is"));
    house.until_ended(4);
    let table = says(&house, &["list"]);
    assert!(line_of(&table, "4").contains("failed"), "{table}");
    assert!(line_of(&table, "2").contains("cancelled"), "{table}");
    assert!(house.json(&["list", "--state", "failed"])[0]["error_text"].as_str().is_some());
    let status = says(&house, &["status"]);
    assert!(status.contains("failed at ") && status.contains("80"), "{status}");
}

#[test]
fn a_running_job_that_is_being_cancelled_says_so() {
    let house = House::started("[engine]\ncancel_seconds = 5\n");
    let picture = house.picture();
    says(&house, &["submit", &picture, "-p", "deaf slow=2000"]);
    house.until("it runs", |house| {
        house.json(&["list", "--state", "running"])[0]["step"][0].as_u64() > Some(0)
    });
    says(&house, &["cancel", "1"]);
    let table = says(&house, &["list"]);
    assert!(line_of(&table, "1").contains("cancelling"), "{table}");
    assert_eq!(house.json(&["show", "1"])["state"], "canceling");
    house.until_ended(1);
    assert_eq!(house.json(&["list"])[0]["state"], "canceled");
}

#[test]
fn several_things_are_done_at_once() {
    let house = House::started("");
    let picture = house.picture();
    let submitted = house.json(&["submit", &picture, &picture, "-p", "fail"]);
    assert_eq!(submitted, json!([{"id": 1, "state": "queued"}, {"id": 2, "state": "queued"}]));
    house.until_ended(2);
    let output = house.animctl(&["--json", "retry", "1", "99", "2", "-p", "a wave", "--wait"]);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert!(text(&output.stderr).contains("no job 99"), "{}", text(&output.stderr));
    let retried: Value = serde_json::from_slice(&output.stdout).unwrap();
    let outcomes: Vec<_> =
        retried.as_array().unwrap().iter().map(|job| (&job["retry_of"], &job["state"])).collect();
    assert_eq!(outcomes, [(&json!(1), &json!("done")), (&json!(2), &json!("done"))]);

    let ids = |args: &[&str]| -> Vec<u64> {
        let jobs = house.json(args);
        jobs.as_array().unwrap().iter().filter_map(|job| job["id"].as_u64()).collect()
    };
    assert_eq!(ids(&["list", "--state", "done,failed"]), [4, 3, 2, 1]);
    assert_eq!(ids(&["list", "--state", "failed"]), [2, 1]);
    assert_eq!(ids(&["history", "--state", "failed,cancelled"]), [2, 1]);
    assert_eq!(ids(&["list", "--state", "queued,running"]), Vec::<u64>::new());
    let me = animd_common::users::name(rustix::process::geteuid().as_raw());
    assert_eq!(ids(&["list", "--owner", &me]).len(), 4);
    assert_eq!(ids(&["list", "--owner", "nobody"]), Vec::<u64>::new());
    let unknown = house.animctl(&["list", "--owner", "no-such-user"]);
    assert_eq!(unknown.status.code(), Some(2));
    assert!(text(&unknown.stderr).contains("there is no such user"), "{unknown:?}");
    assert_eq!(house.json(&["forget", "1", "2"]).as_array().map(Vec::len), Some(2));
    assert_eq!(ids(&["list"]), [4, 3]);
}

#[test]
fn the_same_mistake_has_the_same_answer_everywhere() {
    let house = House::started("");
    let picture = house.picture();
    says(&house, &["submit", &picture, "--wait"]);
    let told = |args: &[&str]| {
        let output = house.animctl(args);
        (output.status.code(), text(&output.stderr))
    };
    for (mistake, sentence) in [
        (&["--seed", "-1"][..], "`seed` must be a whole number from 0 to 9223372036854775807, not -1"),
        (&["--frames", "80"], "`frames` must be 4n+1, up to 4093; the nearest to 80 is 81"),
        (&["--steps", "2.5"], "`steps` must be a whole number from 1 to 1000, not 2.5"),
        (&["--steps", "99999999999999999999"], "`steps` must be a whole number from 1 to 1000"),
        (&["--sampler", "distil"], "distill"),
        (&["--size", "800x601"], "the nearest to 601 is 608"),
        // What does not fit together only the service can say.
        (
            &["--sampler", "distill", "--steps", "9"],
            "`steps` must be from 1 to 8 for the distilled samplers, not 9",
        ),
    ] {
        for verb in [&["submit", &picture][..], &["plan", &picture], &["retry", "1"]] {
            let (code, why) = told(&[verb, mistake].concat());
            assert_eq!(code, Some(2), "{verb:?} {mistake:?}: {why}");
            assert!(why.contains(sentence), "{verb:?} {mistake:?}: {why}");
        }
    }
    // The inbox refuses with the same sentences, all at once, each with its line.
    fs::write(house.path("inbox/photo.toml"), "seed = -1\nsteps = 2.5\nsteeps = 1\n").unwrap();
    fs::write(house.path("inbox/photo.png"), PICTURE).unwrap();
    house.until_ended(2);
    let note = fs::read_to_string(house.path("inbox/failed/photo.png.error.txt")).unwrap();
    for sentence in [
        "photo.toml:1: `seed` must be a whole number from 0 to ",
        "photo.toml:2: `steps` must be a whole number from 1 to 1000, not 2.5",
        "photo.toml:3: unknown key `steeps`; did you mean `steps`?",
    ] {
        assert!(note.contains(sentence), "{note}");
    }
}

#[test]
fn ctrl_c_ends_the_wait_and_not_the_job() {
    let house = House::started("");
    let picture = house.picture();
    let mut command = house.animctl_command(&["submit", &picture, "-p", "slow=300", "--wait"]);
    let client = command.stderr(Stdio::piped()).spawn().unwrap();
    house.until("it runs", |house| {
        house.json(&["list", "--state", "running"])[0]["step"][0].as_u64() > Some(0)
    });
    let pid = rustix::process::Pid::from_child(&client);
    rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
    let output = client.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(130), "{output:?}");
    let said = text(&output.stderr);
    assert!(said.contains("job 1 goes on") && said.contains("`animctl cancel 1`"), "{said}");
    assert_eq!(house.json(&["show", "1"])["state"], "running");
}

/// Runs animctl on a terminal that `script` makes, with these variables.
fn on_a_terminal(house: &House, words: &str, vars: &[(&str, &str)]) -> Option<String> {
    let animctl = house.animctl_command(&[]);
    let program = animctl.get_program().to_str().unwrap().to_owned();
    let mut script = Command::new("script");
    script.args(["-qec", &format!("{program} --user {words}"), "/dev/null"]).stdin(Stdio::null());
    script.env(house.bus_variable(), house.address()).env_remove("NO_COLOR").envs(vars.iter().copied());
    let output: Output = script.output().ok()?;
    Some(text(&output.stdout))
}

#[test]
fn terminals_get_what_they_can_show() {
    let house = House::started("");
    let picture = house.picture();
    let submit = format!("submit {picture} -p slow=50 --wait");
    let Some(dumb) = on_a_terminal(&house, &submit, &[("TERM", "dumb"), ("LC_ALL", "C.UTF-8")]) else {
        println!("not run: there is no `script`");
        return;
    };
    assert!(dumb.contains("% denoise ") && !dumb.contains('\x1b'), "{dumb:?}");
    let ascii = on_a_terminal(&house, &submit, &[("TERM", "xterm"), ("LC_ALL", "C")]).unwrap();
    assert!(ascii.is_ascii() && ascii.contains("denoise ") && ascii.contains(">-"), "{ascii:?}");
    let boxes = on_a_terminal(&house, &submit, &[("TERM", "xterm"), ("LC_ALL", "C.UTF-8")]).unwrap();
    assert!(boxes.contains('━'), "{boxes:?}");
    let colored = on_a_terminal(&house, "list", &[("TERM", "xterm")]).unwrap();
    assert!(colored.contains("\x1b[32mdone"), "{colored:?}");
    for plain in [("NO_COLOR", "1"), ("TERM", "dumb")] {
        let plain = on_a_terminal(&house, "list", &[("TERM", "xterm"), plain]).unwrap();
        assert!(plain.contains("done") && !plain.contains('\x1b'), "{plain:?}");
    }
}

#[test]
fn a_bundle_helps_and_keeps_secrets() {
    let house = House::started("");
    let secret = house.path("aunt-mathilda.png");
    fs::write(&secret, PICTURE).unwrap();
    says(&house, &["submit", secret.to_str().unwrap(), "-p", "the secret garden blooms", "--wait"]);
    let file = house.path("animd.tar");
    let told = house.json(&["doctor", "--bundle", file.to_str().unwrap()]);
    let names: Vec<&str> =
        told["contents"].as_array().unwrap().iter().filter_map(|part| part["name"].as_str()).collect();
    for name in [
        "versions.txt",
        "doctor.json",
        "configuration.toml",
        "journal.txt",
        "jobs.json",
        "plan.json",
        "driver.txt",
    ] {
        assert!(names.contains(&format!("animd/{name}").as_str()), "{name} in {told}");
    }
    let bytes = text(&fs::read(&file).unwrap());
    for secret in ["mathilda", "secret garden", "gently to life"] {
        assert!(!bytes.contains(secret), "{secret} in the bundle");
    }
    assert!(bytes.contains("[24 characters]") && bytes.contains(env!("CARGO_PKG_VERSION")));
    let listed = Command::new("tar").arg("tf").arg(&file).output().unwrap();
    assert_eq!(text(&listed.stdout).lines().collect::<Vec<_>>(), names, "{listed:?}");
    let again = house.animctl(&["doctor", "--bundle", file.to_str().unwrap()]);
    assert_eq!(again.status.code(), Some(1), "a file is not replaced");
}

#[test]
fn doctor_looks_at_what_the_running_service_uses() {
    let house = House::started("");
    let output =
        house.animctl_command(&["--json", "doctor"]).env("HOME", house.path("nowhere")).output().unwrap();
    let told: Value = serde_json::from_slice(&output.stdout).unwrap();
    let find = |name: &str| {
        let mut checks = told["checks"].as_array().unwrap().iter();
        checks.find(|check| check["name"] == name).unwrap()["message"].as_str().unwrap().to_owned()
    };
    // Neither the model nor the folders are in a file that animctl would find by itself.
    assert!(
        find("model").contains(house.dir.path().to_str().unwrap()) || !find("model").contains("no model"),
        "{told}"
    );
    assert!(find("inbox").contains(house.path("inbox").to_str().unwrap()), "{told}");
    assert!(find("engine").contains("animd-engine-sim"), "{told}");
    assert!(
        !find("configuration").contains("1 files") && find("configuration").contains("animd.toml"),
        "{told}"
    );
    assert!(!told.to_string().contains(" DIR"), "{told}");
}

#[test]
fn numbers_on_the_command_line_are_asked_for_in_words() {
    let house = House::new("");
    let job = "a job has a whole number; `animctl list` shows the jobs";
    for (args, words) in [
        (&["show", "first"][..], job),
        (&["show", "99999999999999999999"], job),
        (&["cancel", "1", "all"], job),
        (&["history", "--before", "yesterday"], job),
        (&["list", "--limit", "0"], "must be a whole number, 1 or more, not 0"),
        (&["report", "x.html", "--limit", "few"], "must be a whole number, 1 or more, not few"),
        (&["stats", "--days", "1.5"], "must be a whole number, 0 or more, not 1.5"),
        (&["drain", "--timeout", "5m"], "must be a whole number, 0 or more, not 5m"),
    ] {
        let output = house.animctl(args);
        let said = text(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{args:?}: {said}");
        assert!(said.contains(words) && !said.contains("digit"), "{args:?}: {said}");
    }
}

#[test]
fn a_name_that_turns_the_text_is_shown_in_its_own_order() {
    let house = House::started("");
    let turned = "\u{202e}gnp.exe";
    house.drop_picture(format!("{turned}.png"), Some(&format!("a {turned} prompt fail")));
    house.until_ended(1);
    for args in [&["list"][..], &["show", "1"], &["history"], &["--json", "show", "1"], &["export"]] {
        let said = says(&house, args);
        assert!(said.contains("202e") && !said.contains('\u{202e}'), "{args:?}: {said}");
    }
    // Programs get the prompt as it was written.
    let prompt = format!("a {turned} prompt fail");
    assert_eq!(house.json(&["show", "1"])["settings"]["prompt"], prompt);
    let csv = says(&house, &["export", "--csv"]);
    assert!(csv.contains(&prompt) && !csv.contains("\\u202e"), "{csv}");
}

#[test]
fn models_are_those_of_the_running_service() {
    let house = House::started("");
    fs::create_dir_all(house.path("models/one")).unwrap();
    assert_eq!(house.json(&["model", "list"])[0]["name"], "one");
    assert!(text(&house.animctl(&["model", "show", "two"]).stderr).contains("known are one"));
}
