//! `LoRAs` of jobs: on every way in, in what is told of a job, and when their files change.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};

use crate::common::tiny_model;
use crate::harness::{House, PICTURE, says, text};

/// Starts a service whose folder of `LoRAs` has two, of which one says that it distils the model.
fn house() -> House {
    let mut house = House::new("");
    let folder = house.path("loras");
    fs::create_dir(&folder).unwrap();
    fs::write(folder.join("detail.safetensors"), "abc").unwrap();
    fs::write(folder.join("fast.safetensors"), "fast").unwrap();
    fs::write(folder.join("fast.toml"), "[sampling]\ndistilled = true\nsteps = 6\n").unwrap();
    house.configure("[lora]\nfolders = [\"loras\"]\n");
    house.start();
    house
}

/// The SHA-256 of `abc`.
const ABC: &str = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";

#[test]
fn a_jobs_loras_are_kept_and_told() {
    let house = house();
    let picture = house.picture();
    says(&house, &["submit", &picture, "--lora", "detail:0.5", "--lora", "fast", "--wait"]);
    let shown = house.json(&["show", "1"]);
    assert_eq!(shown["loras"][0], json!(["detail", [0.5], ABC]));
    assert_eq!((&shown["loras"][1][0], &shown["loras"][1][1]), (&json!("fast"), &json!([1.0])));
    assert_eq!((&shown["settings"]["sampler"], &shown["settings"]["steps"]), (&json!("distill"), &json!(6)));
    assert_eq!(house.json(&["list"])[0]["loras"], shown["loras"]);
    assert!(says(&house, &["show", "1"]).contains("detail x 0.5 ba7816bf8f01, fast x 1.0 "));
    let rows = "SELECT count(*) FROM job_lora WHERE job = 1 AND length(sha256) = 32";
    assert_eq!(house.number(rows), Some(2));

    // A sidecar names them as well, as a list or as a text.
    for (id, name, lora) in
        [(2, "list", "[\"detail:0.25\", \"fast:2\"]"), (3, "text", "\"detail:0.25, fast:2\"")]
    {
        fs::write(house.path("inbox").join(format!("{name}.toml")), format!("lora = {lora}\n")).unwrap();
        fs::write(house.path("inbox").join(format!("{name}.png")), PICTURE).unwrap();
        house.until_ended(id);
        let shown = house.json(&["show", &id.to_string()]);
        assert_eq!(shown["state"], "done", "{shown}");
        assert_eq!((&shown["loras"][0][1], &shown["loras"][1][1]), (&json!([0.25]), &json!([2.0])));
    }

    // A retry keeps them, or takes others.
    says(&house, &["retry", "1", "--wait"]);
    assert_eq!(house.json(&["show", "4"])["loras"], shown["loras"]);
    says(&house, &["retry", "1", "--lora", "", "--wait"]);
    let plain = house.json(&["show", "5"]);
    assert!(plain["loras"].is_null(), "{plain}");
    assert_eq!(plain["settings"]["sampler"], "unipc", "{plain}");
}

#[test]
fn names_are_no_paths_and_changed_files_are_noticed() {
    let house = house();
    let picture = house.picture();
    let refused = |args: &[&str], why: &str| {
        let output = house.animctl(args);
        let said = text(&output.stderr);
        assert!(!output.status.success() && said.contains(why), "{args:?}: {said}");
    };
    fs::write(house.path("secret.safetensors"), "secret").unwrap();
    std::os::unix::fs::symlink(house.path("secret.safetensors"), house.path("loras/link.safetensors"))
        .unwrap();
    refused(&["submit", &picture, "--lora", "detial"], "no LoRA is called `detial`; did you mean `detail`?");
    refused(&["submit", &picture, "--lora", "../secret"], "without a path");
    refused(&["submit", &picture, "--lora", "/etc/passwd"], "without a path");
    refused(&["submit", &picture, "--lora", "link"], "no LoRA is called `link`");
    refused(&["submit", &picture, "--lora", "detail:99"], "from -16 to 16, not 99");
    refused(&["submit", &picture, "--lora", &format!("detail#{}", "0".repeat(64))], "`detail` has changed");

    says(&house, &["submit", &picture, "--lora", "detail", "--wait"]);
    says(&house, &["pause"]);
    says(&house, &["submit", &picture, "--lora", "detail"]);
    fs::write(house.path("loras/detail.safetensors"), "abd").unwrap();
    says(&house, &["resume"]);
    house.until_ended(2);
    let shown = house.json(&["show", "2"]);
    let why = shown["error_text"].as_str().unwrap_or_default();
    assert!(why.contains("`detail` has changed") && why.contains(ABC), "{shown}");
    refused(&["retry", "1"], "`detail` has changed");
    // Submitted anew, the other file is what was asked for.
    says(&house, &["submit", &picture, "--lora", "detail", "--wait"]);
    let hash = &house.json(&["show", "3"])["loras"][0][2];
    assert!(hash.as_str().is_some_and(|hash| hash.len() == 64 && hash != ABC), "{hash}");
}

#[test]
fn the_loras_of_a_model_are_kept_beside_those_of_the_job() {
    let house = house();
    says(&house, &["submit", &house.picture(), "--lora", "detail", "-p", "model-lora=four_steps", "--wait"]);
    let shown = house.json(&["show", "1"]);
    assert_eq!(shown["model_loras"], json!([["four_steps", [0.8, 0.5], "ab".repeat(32)]]));
    assert_eq!(shown["loras"].as_array().unwrap().len(), 1);
    assert!(says(&house, &["show", "1"]).contains("four_steps x 0.8 and 0.5 abababababab"));
    assert_eq!(house.number("SELECT count(*) FROM job_lora WHERE sha256 = unhex(hex(sha256))"), Some(2));
    says(&house, &["submit", &house.picture(), "--wait"]);
    assert!(house.json(&["show", "2"])["model_loras"].is_null());
}

/// Writes a `LoRA` for one square layer of so wide a transformer.
fn write_lora(path: &Path, width: usize) {
    let bytes = 4 * 2 * width;
    let tensor = |shape: [usize; 2], from: usize| json!({"dtype": "F32", "shape": shape, "data_offsets": [from, from + bytes]});
    let layer = "diffusion_model.blocks.0.self_attn.q";
    let mut header = serde_json::Map::new();
    header.insert(format!("{layer}.lora_down.weight"), tensor([2, width], 0));
    header.insert(format!("{layer}.lora_up.weight"), tensor([width, 2], bytes));
    let header = Value::Object(header).to_string();
    let data = vec![0; 2 * bytes];
    fs::write(path, [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &data].concat()).unwrap();
}

#[test]
fn loras_are_added_with_a_model_and_by_themselves() {
    let mut house = House::new("");
    let comfy = house.path("ComfyUI/models");
    fs::create_dir_all(comfy.join("loras")).unwrap();
    for (name, width) in [("loras/detail", 256), ("loras/of_another_model", 320), ("../../alone", 256)] {
        write_lora(&comfy.join(format!("{name}.safetensors")), width);
    }
    house.start();
    let (picture, alone) = (house.picture(), house.path("alone.safetensors"));
    let (alone, tree) = (alone.to_str().unwrap(), house.path("ComfyUI"));
    let tree = tree.to_str().unwrap();
    // What animctl writes is what the service of this house reads.
    let animctl = |args: &[&str]| {
        let mut command = house.animctl_command(args);
        command.env("ANIMD_CONFIG", house.path("animd.toml")).env("HOME", house.path("")).output().unwrap()
    };
    let refused = |args: &[&str], why: &str| {
        let output = animctl(args);
        let said = text(&output.stderr);
        assert!(!output.status.success() && said.contains(why), "{args:?}: {said}");
    };
    let says = |args: &[&str]| {
        let output = animctl(args);
        assert!(output.status.success(), "{args:?}: {}", text(&output.stderr));
        text(&output.stdout)
    };
    let json =
        |args: &[&str]| -> Value { serde_json::from_str(&says(&[&["--json"], args].concat())).unwrap() };
    // Without a model there is nothing that says whether they can be used.
    refused(&["model", "add", alone], "no model was found");
    let model = tiny_model();
    let added = json(&["model", "add", model.to_str().unwrap(), tree, "--name", "tiny", "--no-use"]);
    assert_eq!(added["loras"][0]["name"], "detail", "{added}");
    assert_eq!(added["loras"].as_array().unwrap().len(), 1, "{added}");
    let said = says(&["model", "add", alone]);
    assert!(said.contains("--lora alone  for tiny") && said.contains("opened them with a model"), "{said}");

    says(&["submit", &picture, "--lora", "detail:0.5", "--lora", "alone", "--wait"]);
    assert_eq!(json(&["show", "1"])["loras"].as_array().unwrap().len(), 2);
    let listed = json(&["model", "list"]);
    let names: Vec<_> = listed.as_array().unwrap().iter().filter(|one| one["kind"] == "lora").collect();
    let names: Vec<_> = names.iter().map(|one| one["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["alone", "detail", "of_another_model"], "a folder is added as it is");

    refused(&["model", "remove", "detail"], "which was added as a whole");
    refused(&["model", "remove", "nothing"], "nor was a LoRA of this name");
    says(&["model", "remove", "alone"]);
    refused(&["submit", &picture, "--lora", "alone"], "no LoRA is called `alone`");
    says(&["model", "remove", comfy.join("loras").to_str().unwrap()]);
    refused(&["submit", &picture, "--lora", "detail"], "no LoRA is called `detail`");
    assert!(fs::exists(alone).unwrap(), "the files stay");
}
