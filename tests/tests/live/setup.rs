//! `animctl setup` with homes that have models in the layouts of other programs, and without.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use animd_tests::parity::layouts::files::Files;
use serde_json::Value;

use crate::common::{fixture, picture, tiny_model};
use crate::harness::{House, program, text};

/// A home of its own, with nothing of the machine's in its environment.
struct Home(tempfile::TempDir);

impl Home {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    /// Puts files of the fixture of layouts into `ComfyUI`'s folders.
    fn comfy(&self, parts: &[(&str, &str)]) {
        let folder = fixture("layouts");
        let list = fs::read(folder.join("layouts.json")).unwrap();
        let files = Files::open(&folder, &list).unwrap();
        for (from, to) in parts {
            let to = self.path().join("ComfyUI/models").join(to);
            fs::create_dir_all(&to).unwrap();
            let found = files.get(from).unwrap();
            fs::copy(&found.path, to.join(found.path.file_name().unwrap())).unwrap();
        }
    }

    /// Puts a model's folder into the cache of the hub as this repository.
    fn hub(&self, model: &Path, repository: &str) {
        let repository = self.path().join("hub").join(format!("models--{}", repository.replace('/', "--")));
        let (snapshot, blobs) = (repository.join("snapshots/c0ffee"), repository.join("blobs"));
        fs::create_dir_all(&blobs).unwrap();
        fs::create_dir_all(repository.join("refs")).unwrap();
        fs::write(repository.join("refs/main"), "c0ffee").unwrap();
        for (n, (file, _)) in modified(model).into_iter().enumerate() {
            let (blob, link) =
                (blobs.join(format!("{n:040x}")), snapshot.join(file.strip_prefix(model).unwrap()));
            fs::create_dir_all(link.parent().unwrap()).unwrap();
            fs::copy(&file, &blob).unwrap();
            std::os::unix::fs::symlink(&blob, &link).unwrap();
        }
    }

    /// Runs setup on this house's animd, or where none runs.
    fn setup(&self, house: Option<&House>, args: &[&str]) -> (Value, Option<i32>) {
        let mut command = match house {
            Some(house) => house.animctl_command(&["--json", "setup"]),
            None => {
                let mut command = Command::new(program("animctl"));
                let nowhere = format!("unix:path={}/no-bus", self.path().display());
                command.args(["--user", "--json", "setup"]).env("DBUS_SESSION_BUS_ADDRESS", nowhere);
                command
            }
        };
        command.args(args).env("HOME", self.path());
        for name in ["XDG_CONFIG_HOME", "XDG_STATE_HOME", "XDG_CACHE_HOME", "XDG_DOWNLOAD_DIR", "HF_HOME"] {
            command.env_remove(name);
        }
        let hub = self.path().join("hub");
        let output = command.env("HF_HUB_CACHE", hub).env_remove("CACHE_DIRECTORY").output().unwrap();
        let said = serde_json::from_slice(&output.stdout)
            .unwrap_or_else(|e| panic!("{e}: {}", text(&output.stderr)));
        (said, output.status.code())
    }
}

fn step<'a>(said: &'a Value, name: &str) -> &'a Value {
    let steps = said["steps"].as_array().unwrap();
    steps.iter().find(|step| step["name"] == name).unwrap_or_else(|| panic!("no step {name}: {said}"))
}

fn states(said: &Value) -> Vec<(&str, &str)> {
    let steps = said["steps"].as_array().unwrap().iter();
    steps.map(|step| (step["name"].as_str().unwrap(), step["state"].as_str().unwrap())).collect()
}

const PARTS: [(&str, &str); 4] = [
    ("dit/lightx2v/wan2.1_i2v_480p_nvfp4_lightx2v_4step.safetensors", "diffusion_models"),
    ("t5/comfy/umt5_xxl_fp8_e4m3fn_scaled.safetensors", "text_encoders"),
    ("clip/comfy/clip_vision_h.safetensors", "clip_vision"),
    ("vae/official/Wan2.1_VAE.pth", "vae"),
];

#[test]
fn an_empty_home_is_told_what_to_fetch() {
    let home = Home::new();
    let (said, code) = home.setup(None, &[]);
    assert_eq!((said["ok"].as_bool(), code), (Some(false), Some(1)));
    assert_eq!(step(&said, "machine")["commands"][0], "animd --user");
    let fetch = step(&said, "fetch");
    assert_eq!((&fetch["state"], &fetch["family"]), (&"todo".into(), &"wan2.1-i2v-480p".into()));
    let command = fetch["commands"][0].as_str().unwrap();
    let folder = home.path().join("models/Wan2.1-I2V-14B-480P");
    assert!(command.starts_with("hf download ") && command.ends_with(folder.to_str().unwrap()), "{command}");
    assert!(fetch["parts"].as_array().unwrap().iter().all(|part| part["source"]["repository"].is_string()));
    assert!(fetch["free"].as_u64().is_some() && fetch["bytes"].as_u64() > Some(20_000_000_000));
    for waiting in ["add", "verify", "prepare"] {
        assert!(step(&said, waiting)["message"].as_str().unwrap().contains("files are there"));
    }
    // Nothing is made by looking.
    assert_eq!(fs::read_dir(home.path()).unwrap().count(), 0);

    let (said, _) = home
        .setup(None, &["--family", "wan2.2-i2v-a14b", "--files", "gguf-q4", "--folder", "/mnt/my models"]);
    let fetch = step(&said, "fetch");
    let keys: Vec<_> =
        fetch["parts"].as_array().unwrap().iter().map(|part| part["part"].as_str().unwrap()).collect();
    assert_eq!(keys, ["high_noise", "low_noise", "text", "vae"]);
    let commands = fetch["commands"].to_string();
    assert!(
        commands.contains("HighNoise-Q4_K_M.gguf") && commands.contains("--local-dir '/mnt/my models'"),
        "{commands}"
    );
}

/// A whole model in the Hugging Face cache: links into blobs without names.
#[test]
fn a_model_in_the_hubs_cache_is_set_up_and_then_found_done() {
    let (house, home) = (House::started(""), Home::new());
    home.hub(&tiny_model(), "Wan-AI/Wan2.1-I2V-14B-480P");
    let photo = home.path().join("photo.png");
    picture(&photo, 64, 48);
    let (said, code) = home.setup(Some(&house), &[]);
    assert_eq!(code, Some(1), "{said}");
    assert_eq!(
        states(&said)[..4],
        [("machine", "done"), ("files", "done"), ("fetch", "done"), ("add", "todo")]
    );
    let add = step(&said, "add")["commands"][0].as_str().unwrap();
    assert!(add.starts_with("animctl model add ") && add.ends_with("/snapshots/c0ffee"), "{add}");
    assert!(!home.path().join(".config").exists(), "nobody agreed");

    let args = ["--yes", "--picture", photo.to_str().unwrap()];
    let (said, code) = home.setup(Some(&house), &args);
    let all = [
        ("machine", "done"),
        ("files", "done"),
        ("fetch", "done"),
        ("add", "done"),
        ("verify", "done"),
        ("prepare", "skipped"),
        ("video", "done"),
    ];
    assert_eq!((states(&said), code), (all.to_vec(), Some(0)), "{said}");
    let named = fs::read_dir(home.path().join(".config/animd/models")).unwrap().count();
    assert_eq!(named, 1, "one model file");
    assert!(home.path().join(".local/state/animd/model-hashes.json").exists());
    assert_eq!(house.number("SELECT count(*) FROM job WHERE state = 'done'"), Some(1));

    // The second time nothing is left to do, and nothing is done.
    let before = modified(home.path());
    let (said, code) = home.setup(Some(&house), &["--yes"]);
    assert_eq!((states(&said), code), (all.to_vec(), Some(0)), "{said}");
    assert_eq!(modified(home.path()), before);
    assert_eq!(house.number("SELECT count(*) FROM job"), Some(1));
    assert!(step(&said, "verify")["message"].as_str().unwrap().contains("were verified"));
}

/// Returns all files below a folder with the times of their last change.
fn modified(folder: &Path) -> Vec<(PathBuf, std::time::SystemTime)> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).unwrap().flatten() {
        match entry.file_type().unwrap().is_dir() {
            true => files.extend(modified(&entry.path())),
            false => files.push((entry.path(), entry.metadata().unwrap().modified().unwrap())),
        }
    }
    files.sort();
    files
}

#[test]
fn a_model_that_is_not_whole_is_completed() {
    let home = Home::new();
    home.comfy(&PARTS[..2]);
    let (said, code) = home.setup(None, &[]);
    assert_eq!(code, Some(1));
    let files = step(&said, "files");
    assert_eq!(files["state"], "todo");
    let message = files["message"].as_str().unwrap();
    assert!(message.contains("not whole") && message.contains("no VAE was found"), "{message}");
    let missing: Vec<_> = step(&said, "fetch")["parts"]
        .as_array()
        .unwrap()
        .iter()
        .map(|part| part["part"].as_str().unwrap())
        .collect();
    assert_eq!(missing, ["clip", "vae"]);
}

/// The tiny transformers of the fixture share values, which `verify` takes for copies.
#[test]
fn a_model_with_mistakes_is_never_verified() {
    let home = Home::new();
    home.comfy(&PARTS);
    for _ in 0..2 {
        let (said, code) = home.setup(None, &["--yes", "--skip", "prepare,video"]);
        assert_eq!((code, &step(&said, "add")["state"]), (Some(1), &"done".into()), "{said}");
        assert_eq!(step(&said, "verify")["state"], "failed", "{said}");
    }
    let (said, _) = home.setup(None, &["--skip", "prepare,video"]);
    let add = fs::read_dir(home.path().join(".config/animd/models")).unwrap().flatten().next().unwrap();
    let text = fs::read_to_string(add.path()).unwrap();
    assert!(text.contains("distilled = true"), "its name says so: {text}");
    assert_eq!(step(&said, "verify")["state"], "todo", "only the transformer is left");
}

#[test]
fn a_command_that_fails_ends_with_its_step() {
    let home = Home::new();
    home.comfy(&PARTS);
    // The place of the user's models is taken by a file.
    fs::create_dir_all(home.path().join(".config/animd")).unwrap();
    fs::write(home.path().join(".config/animd/models"), "").unwrap();
    let (said, code) = home.setup(None, &["--yes", "--skip", "verify,prepare,video"]);
    assert_eq!(code, Some(1));
    let add = step(&said, "add");
    assert_eq!(add["state"], "failed", "{said}");
    assert!(add["message"].as_str().unwrap().contains("model add"), "{add}");
    assert_eq!(said["steps"].as_array().unwrap().len(), 4);
}
