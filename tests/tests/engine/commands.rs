//! The commands beside `generate`.

use std::io::Write;
use std::process::{Command, Stdio};

use super::common::{fixture, program, run, stderr, tiny_model};
use super::{generate, scene};

#[test]
fn a_made_up_model_is_inspected_and_runs() {
    let (folder, image) = scene();
    let model = folder.path().join("model");
    let engine = || Command::new(program("animd-engine"));
    let output = run(engine().arg("synth-model").arg(&model).args(["--size", "tiny"]));
    assert!(output.status.success(), "{}", stderr(&output));
    let output = run(engine().arg("inspect").arg(&model).arg("--json"));
    assert!(output.status.success(), "{}", stderr(&output));
    let found: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert!(found.to_string().contains("official"), "{found}");
    // Existing files are not overwritten.
    let output = run(engine().arg("synth-model").arg(&model).args(["--size", "tiny"]));
    assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));

    let out = folder.path().join("out.mp4");
    let output = run(generate(&image, &out, &["-p", "x", "--model"]).arg(&model));
    assert!(output.status.success(), "{}", stderr(&output));

    std::fs::remove_file(model.join("Wan2.1_VAE.pth")).expect("removed");
    let output = run(engine().arg("inspect").arg(&model));
    assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
}

#[test]
fn a_plan_says_what_fits() {
    let plan = |args: &[&str]| run(Command::new(program("animd-engine")).arg("plan").args(args));
    let output = plan(&["--size", "480p", "--vram", "48GiB"]);
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && text.contains("32760 tokens") && text.contains("fits"), "{text}");
    // What does not stay on a card passes through it; that, too, needs room.
    assert!(plan(&["--size", "480p", "--profile", "h200", "--vram", "24GB"]).status.success());
    let dir = tempfile::tempdir().unwrap();
    let own = include_str!("../../../configs/h100.toml").replace("\ndit = \"int8\"", "\ndit = \"fp8\"");
    std::fs::write(dir.path().join("own.toml"), own.replace("name = \"h100\"", "name = \"own\"")).unwrap();
    let in_fp8 = dir.path().join("own.toml").to_string_lossy().into_owned();
    for (args, words) in [
        (&["--size", "480p", "--vram", "8GB"][..], &["needs", " GiB weights + ", "can be used: "][..]),
        (&["--size", "16384x16384", "--frames", "4093"], &["16384x16384 with 4093 frames needs", " fits"]),
        (&["--gpu", "rtx3060", "--host-memory", "8GB"], &["of the machine's memory", "can be used"]),
        (&["--gpu", "rtx3090", "--profile", &in_fp8], &["`fp8`", "8.6", "int8"]),
    ] {
        let output = plan(args);
        // A profile that the card cannot run is a wrong setting; too little memory is not.
        let code = if args.contains(&&*in_fp8) { 2 } else { 1 };
        assert_eq!(output.status.code(), Some(code), "{args:?}");
        assert!(words.iter().all(|w| stderr(&output).contains(w)), "{}", stderr(&output));
    }
    let output = plan(&["--gpu", "RTX 4090", "--size", "720p", "--sampler", "distill", "--json"]);
    let said: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(
        (&said["profile"], &said["gpu"], &said["fits"]),
        (&"rtx4090".into(), &"rtx4090".into(), &true.into())
    );
    let dit = &said["plan"]["memory"]["networks"][0];
    assert_eq!((&dit["place"], &dit["slots"]), (&"host".into(), &2.into()));
    assert!(
        said["prediction"]["seconds"].as_f64().is_some_and(|seconds| seconds > 50.0),
        "{}",
        said["prediction"]
    );
    assert_eq!(plan(&["--gpu", "rtx4091"]).status.code(), Some(2));

    // Another model and a custom profile.
    let folder = tempfile::tempdir().expect("a temporary folder");
    let profile = folder.path().join("mine.toml");
    let own = std::fs::read_to_string(fixture("../../configs/cpu.toml")).expect("it comes with animd");
    std::fs::write(&profile, own.replacen("\"cpu\"", "\"mine\"", 1)).expect("written");
    let path = profile.to_str().expect("a plain path");
    let model = tiny_model();
    let model = model.to_str().expect("a plain path");
    let output = plan(&["--model", model, "--profile", path, "--size", "64x48", "--frames", "5", "--json"]);
    assert!(output.status.success(), "{}", stderr(&output));
    let said: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!((&said["profile"], &said["plan"]["tokens"]), (&"mine".into(), &24.into()));
    assert_eq!(said["plan"]["forwards"]["computed"], 80);

    // What changes nothing is said, and what the family cannot do is refused as `generate` does.
    let remark = "there are no steps of `steps_base`, so `guidance_base` changes nothing";
    let idle = ["--family", "wan22", "--guidance-base", "2"];
    let output = plan(&[&idle[..], &["--json"]].concat());
    let said: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(said["remarks"], serde_json::json!([remark]));
    assert!(String::from_utf8_lossy(&plan(&idle).stdout).contains(remark));

    for (args, code, words) in [
        (&["--profile", "h2000"][..], 2, &["h2000", "h200"][..]),
        (&["--steps-base", "2"], 2, &["has one transformer", "`steps_base`"]),
        (&["--model", "/nonexistent"], 1, &["/nonexistent"]),
        (&["--frames", "80"], 2, &["`frames` must be 4n+1"]),
    ] {
        let output = plan(args);
        assert_eq!(output.status.code(), Some(code));
        assert!(words.iter().all(|w| stderr(&output).contains(w)), "{}", stderr(&output));
    }
    assert_eq!(plan(&["--vram", "24GHz"]).status.code(), Some(2));
    std::fs::write(&profile, own.replacen("kind = \"exact\"", "kind = \"7bit\"", 1)).expect("written");
    let output = plan(&["--profile", path]);
    assert!(stderr(&output).contains("mine.toml`, line"), "{}", stderr(&output));
}

#[test]
fn a_bench_of_a_made_up_model() {
    let bench = |args: &[&str]| {
        let tiny = ["bench", "--profile", "cpu", "--size", "64x48", "--frames", "5", "--runs", "2"];
        run(Command::new(program("animd-engine")).args(tiny).args(args))
    };
    let output =
        bench(&["--synthetic", "tiny", "--whole", "--rows", "distill,fp8-teacache,fp8-magcache", "--json"]);
    assert!(output.status.success(), "{}", stderr(&output));
    let said: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(
        (&said["tokens"], &said["model"], &said["backend"]),
        (&24.into(), &"made-up".into(), &"cpu".into())
    );
    let rows = said["rows"].as_array().expect("rows");
    let names: Vec<_> = rows.iter().map(|row| row["row"].as_str().unwrap_or_default()).collect();
    assert_eq!(names, ["distill", "fp8-teacache", "fp8-magcache"]);
    let forwards: Vec<_> =
        rows.iter().map(|row| (row["computed"].as_u64(), row["skipped"].as_u64())).collect();
    assert_eq!(forwards, [(Some(4), Some(0)), (Some(44), Some(36)), (Some(34), Some(46))]);
    for row in rows {
        let all = row["forward"]["all"].as_array().expect("runs");
        let (median, job) = (row["forward"]["median"].as_f64(), row["job"].as_f64());
        assert_eq!(all.len(), 2);
        assert!(median.is_some_and(|s| s > 0.0) && job > median, "{row}");
    }
    // `TeaCache` has nothing to base its decisions on, so no such job is measured.
    let measured: Vec<_> = rows.iter().map(|row| row["job_measured"].as_f64().is_some()).collect();
    assert_eq!(measured, [true, false, true]);
    assert!(said["notes"].to_string().contains("44 of 80"), "{said}");

    // The bench of an existing model, as a table.
    let model = tiny_model();
    let output =
        bench(&["--model", model.to_str().expect("a plain path"), "--rows", "bf16-exact,fp8-teacache"]);
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{}", stderr(&output));
    for word in ["bf16-exact", "fp8-teacache", "forward", "peak GiB", "64x48, 5 frames, 24 tokens"] {
        assert!(text.contains(word), "no {word:?} in {text}");
    }
    assert!(!text.contains("nothing to decide by"), "{text}");

    for (args, status, word) in [
        (&["--synthetic", "tiny", "--rows", "fp7"][..], 2, "fp7"),
        (&["--synthetic", "tiny", "--model", "/nonexistent"], 2, "--model"),
        (&["--model", "/nonexistent"], 1, "/nonexistent"),
        (&["--synthetic", "tiny", "--profile", "h2000"], 2, "h2000"),
    ] {
        let output = bench(args);
        assert_eq!(output.status.code(), Some(status), "{}", stderr(&output));
        assert!(stderr(&output).contains(word), "{}", stderr(&output));
    }
}

#[test]
fn a_selftest_without_a_gpu_is_a_sentence() {
    let output = run(Command::new(program("animd-engine")).arg("selftest"));
    let errors = stderr(&output);
    assert_eq!(output.status.code(), Some(1), "{errors}");
    assert!(
        errors.starts_with("error: ") && errors.lines().count() == 1 && errors.contains("GPU"),
        "{errors}"
    );
}

#[test]
fn help_has_an_example_for_every_command() {
    for command in ["generate", "inspect", "plan", "bench", "selftest", "synth-model", "prepare", "cache"] {
        let output = run(Command::new(program("animd-engine")).args([command, "--help"]));
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(
            output.status.success() && text.contains("Example") && text.contains("animd-engine"),
            "{text}"
        );
    }
    // A reader that goes away is not an error.
    let mut child = Command::new(program("animd-engine"))
        .args(["inspect", "--json"])
        .arg(tiny_model())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|e| panic!("cannot start: {e}"));
    drop(child.stdout.take());
    let output = child.wait_with_output().expect("it ends");
    assert!(output.status.success(), "{}", stderr(&output));
    let _ = std::io::stderr().flush();
}

#[test]
fn prepared_copies_are_shown_limited_and_cleared() {
    let folder = tempfile::tempdir().expect("a folder");
    let (model, cache) = (folder.path().join("tiny"), folder.path().join("cache"));
    let engine =
        |args: &[&str]| run(Command::new(program("animd-engine")).args(args).env("CACHE_DIRECTORY", &cache));
    let json = |args: &[&str]| {
        let output = engine(args);
        assert!(output.status.success(), "{args:?}: {}", stderr(&output));
        serde_json::from_slice::<serde_json::Value>(&output.stdout).expect("JSON")
    };
    let path = model.to_str().expect("UTF-8");
    assert!(engine(&["synth-model", path, "--size", "tiny"]).status.success());
    let none = json(&["cache", "--json"]);
    assert_eq!((&none["bytes"], &none["copies"]), (&0.into(), &serde_json::json!([])));
    assert!(!cache.exists(), "looking makes nothing");
    let made = json(&["prepare", path, "--precision", "fp8", "--json"]);
    let listed = json(&["cache", "--json"]);
    let copy = &listed["copies"][0];
    assert_eq!(
        (&copy["precision"], &copy["state"], &copy["in_use"]),
        (&"fp8".into(), &"current".into(), &false.into())
    );
    assert!(
        made[0]["folder"].as_str().is_some_and(|made| made.ends_with(copy["name"].as_str().unwrap_or("?")))
    );
    assert_eq!(listed["limit"], 64u64 << 30);
    let shown = String::from_utf8_lossy(&engine(&["cache"]).stdout).into_owned();
    assert!(shown.contains("of 64 GiB") && shown.contains("last used just now"), "{shown}");
    assert_eq!(json(&["cache", "--limit", "1", "--json"])["dropped"], serde_json::json!([]));
    let refused = engine(&["cache", "--clear", "other"]);
    assert!(
        refused.status.code() == Some(2) && stderr(&refused).contains("no prepared copy"),
        "{}",
        stderr(&refused)
    );
    let cleared = json(&["cache", "--clear", "--json"]);
    assert_eq!((&cleared["dropped"][0]["name"], &cleared["copies"]), (&copy["name"], &serde_json::json!([])));
}
