//! `animctl model` on files as people have them, for a user's own service: found, named, chosen, shown, removed.

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use animd_protocol::model_file::ModelFile;
use common::{fixture, program, run, stderr, tiny_model};
use serde::Deserialize;
use serde_json::Value;
use tempfile::TempDir;

/// A home with a user's own configuration, and places for model files.
struct Home(TempDir);

impl Home {
    fn new() -> Self {
        Self(tempfile::tempdir().expect("a temporary folder"))
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Returns a path in a folder that exists.
    fn place(&self, name: &str) -> PathBuf {
        let path = self.path(name);
        fs::create_dir_all(path.parent().expect("a folder")).expect("made");
        path
    }

    fn animctl(&self, words: &[&str]) -> Output {
        let mut command = Command::new(program("animctl"));
        command.args(["--user", "model"]).args(words).env_clear().stdin(Stdio::null());
        // No bus: nothing but files is needed.
        run(command.env("HOME", self.0.path()).env("PATH", "/usr/bin:/bin"))
    }

    /// Runs a verb that succeeds, and returns what it prints with --json.
    #[track_caller]
    fn json(&self, words: &[&str]) -> Value {
        let output = self.animctl(&[words, &["--json"]].concat());
        assert!(output.status.success(), "{words:?}: {}", stderr(&output));
        serde_json::from_slice(&output.stdout).expect("JSON")
    }

    /// Runs a verb that fails, and returns what it says.
    #[track_caller]
    fn refused(&self, words: &[&str]) -> String {
        let output = self.animctl(words);
        assert!(!output.status.success(), "{words:?}: {}", String::from_utf8_lossy(&output.stdout));
        stderr(&output)
    }

    fn file(&self, name: &str) -> PathBuf {
        self.path(&format!(".config/animd/models/{name}.toml"))
    }

    fn read(&self, name: &str) -> ModelFile {
        ModelFile::read(&self.file(name)).expect("a model file")
    }

    fn configured(&self) -> String {
        fs::read_to_string(self.path(".config/animd/conf.d/animctl-model.toml")).unwrap_or_default()
    }

    fn text(&self, name: &str) -> String {
        self.path(name).to_str().expect("UTF-8").to_owned()
    }

    /// Writes a file of `fixtures/layouts` to a place.
    fn put(&self, from: &str, to: &str) -> PathBuf {
        #[derive(Deserialize)]
        struct List {
            files: BTreeMap<String, Pieces>,
        }
        #[derive(Deserialize)]
        struct Pieces {
            segments: Vec<usize>,
        }
        let text = fs::read(fixture("layouts/layouts.json")).expect("the list");
        let list: List = serde_json::from_slice(&text).expect("the list");
        let pool = fs::read(fixture("layouts/pool.bin")).expect("the pool");
        let pieces = list.files[from].segments.as_chunks::<2>().0;
        let bytes: Vec<u8> = pieces.iter().flat_map(|[at, count]| &pool[*at..at + count]).copied().collect();
        let to = self.place(to);
        fs::write(&to, bytes).expect("written");
        to
    }

    /// Puts files of several makers into `ComfyUI`'s folders.
    fn comfy(&self, folder: &str) -> String {
        for (from, to) in [
            ("dit/comfy/Wan2.1-I2V-14B-480P-mixed.safetensors", "diffusion_models/mixed.safetensors"),
            ("dit/gguf/wan2.1-i2v-14b-480p-Q4_K_M.gguf", "unet/wan-Q4_K_M.gguf"),
            ("t5/comfy/umt5_xxl_fp8_e4m3fn_scaled.safetensors", "text_encoders/umt5_fp8.safetensors"),
            ("t5/gguf/umt5-xxl-encoder-Q8_0.gguf", "text_encoders/umt5-Q8_0.gguf"),
            ("clip/comfy/clip_vision_h.safetensors", "clip_vision/clip_vision_h.safetensors"),
            ("vae/official/Wan2.1_VAE.pth", "vae/wan.pth"),
        ] {
            self.put(from, &format!("{folder}/{to}"));
        }
        self.text(folder)
    }
}

#[test]
fn a_released_folder_is_added_by_one_command_wherever_it_lies() {
    let home = Home::new();
    // A path that a shell, TOML and systemd each could misread.
    let folder = home.place("my models: 100%/\"wän\" it's $HOME \\x20/x");
    let folder = folder.parent().expect("a folder");
    copy(&tiny_model(), folder);
    let name = home.json(&["add", folder.to_str().expect("UTF-8"), "--name", "wan"]);
    assert_eq!(name["models"][0]["name"], "wan");
    assert_eq!(name["models"][0]["file"], home.file("wan").to_str().expect("UTF-8"));
    let model = home.read("wan");
    assert!(model.parts.named().all(|(_, path)| path.starts_with(folder) && path.exists()), "{model:?}");
    assert!(home.configured().contains("models/wan.toml"));
    let shown = home.json(&["show"]);
    assert_eq!((&shown["usable"], &shown["configured"]), (&true.into(), &true.into()));
    // The configuration that was written is read as it was meant.
    let checked = run(Command::new(program("animctl"))
        .args(["--user", "config", "show", "--json"])
        .env_clear()
        .env("HOME", home.0.path()));
    let config: Value = serde_json::from_slice(&checked.stdout).expect("JSON");
    assert_eq!(config["model"]["path"], home.file("wan").to_str().expect("UTF-8"));
}

fn copy(from: &Path, to: &Path) {
    for entry in fs::read_dir(from).expect("a folder") {
        let entry = entry.expect("an entry");
        let to = to.join(entry.file_name());
        if entry.path().is_dir() {
            fs::create_dir_all(&to).expect("made");
            copy(&entry.path(), &to);
        } else {
            fs::copy(entry.path(), &to).expect("copied");
        }
    }
}

#[test]
fn of_a_tree_with_several_models_one_is_chosen_or_all_are_added() {
    let home = Home::new();
    let tree = home.comfy("ComfyUI/models");
    let said = home.refused(&["add", &tree]);
    assert!(said.contains("2 models are there") && said.contains("--all"), "{said}");
    let gguf = home.text("ComfyUI/models/unet/wan-Q4_K_M.gguf");
    assert!(said.contains(&format!("--dit {gguf}")), "{said}");
    assert!(!home.file("mixed").exists(), "nothing is written");

    let added = home.json(&["add", &tree, "--dit", &gguf, "--distilled", "no"]);
    assert_eq!(added["models"][0]["distilled"], false);
    let model = home.read("wan-Q4_K_M");
    assert_eq!(model.parts.dit.as_deref(), Some(Path::new(&gguf)));
    assert!(model.parts.text.ends_with("umt5_fp8.safetensors"), "it is a little more precise than Q8_0");
    assert_eq!(model.parts.tokenizer, None, "the encoder carries it");
    assert!(added["notes"].to_string().contains("--text takes another one"), "the choice is said");

    let added = home.json(&["add", &tree, "--all", "--no-use", "--replace"]);
    let names: Vec<_> =
        added["models"].as_array().into_iter().flatten().map(|model| &model["name"]).collect();
    assert_eq!(names, ["mixed", "wan-Q4_K_M"]);
    let listed = home.json(&["list"]);
    let of = |name: &str| {
        let models = listed.as_array().into_iter().flatten();
        models.clone().find(|model| model["name"] == name).cloned().unwrap_or_default()
    };
    assert_eq!((&of("mixed")["configured"], &of("wan-Q4_K_M")["configured"]), (&false.into(), &true.into()));

    home.json(&["use", "mixed"]);
    assert!(home.configured().contains("models/mixed.toml"));
    assert!(home.refused(&["use", "mixt"]).contains("did you mean `mixed`?"));
    home.json(&["remove", "mixed"]);
    assert!(!home.file("mixed").exists() && home.configured().is_empty());
    assert!(
        home.path("ComfyUI/models/diffusion_models/mixed.safetensors").exists(),
        "no weights are removed"
    );
    home.json(&["remove", "wan-Q4_K_M"]);
    assert!(Path::new(&gguf).exists());
}

#[test]
fn a_name_says_that_a_model_is_distilled_and_it_is_remembered() {
    let home = Home::new();
    let tree = home.comfy("m");
    let dit = home.put(
        "dit/lightx2v/wan2.1_i2v_480p_nvfp4_lightx2v_4step.safetensors",
        "apart/wan2.1_i2v_480p_nvfp4_lightx2v_4step.safetensors",
    );
    let added = home.json(&["add", &tree, "--dit", dit.to_str().expect("UTF-8"), "--name", "fast"]);
    assert!(added["notes"].to_string().contains("--distilled no"), "{added}");
    assert_eq!(home.read("fast").sampling.distilled, Some(true));
    // Another answer makes another file, which replaces the first only if that is wanted.
    let other = ["add", &*tree, "--dit", dit.to_str().expect("UTF-8"), "--name", "fast", "--distilled", "no"];
    assert!(home.refused(&other).contains("--replace"));
    assert_eq!(home.read("fast").sampling.distilled, Some(true));
    home.json(&[&other[..], &["--replace"]].concat());
    assert_eq!(home.read("fast").sampling.distilled, Some(false));
}

#[test]
fn the_cache_of_the_hub_is_added_under_the_repositorys_name() {
    let home = Home::new();
    let repository = home.path(".cache/huggingface/hub/models--Wan-AI--Wan2.1-I2V-14B-480P");
    let snapshot = repository.join("snapshots").join("c".repeat(40));
    let mut files = Vec::new();
    let mut folders = vec![tiny_model()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).expect("a folder") {
            let path = entry.expect("an entry").path();
            if path.is_dir() { folders.push(path) } else { files.push(path) }
        }
    }
    for (n, file) in files.iter().enumerate() {
        let below = file.strip_prefix(tiny_model()).expect("below");
        let (blob, link) = (repository.join(format!("blobs/{n:064}")), snapshot.join(below));
        for path in [&blob, &link] {
            fs::create_dir_all(path.parent().expect("a folder")).expect("made");
        }
        fs::copy(file, &blob).expect("copied");
        let up = "../".repeat(1 + below.components().count());
        symlink(format!("{up}blobs/{n:064}"), &link).expect("linked");
    }
    let added = home.json(&["add", snapshot.to_str().expect("UTF-8")]);
    assert_eq!(added["models"][0]["name"], "Wan2.1-I2V-14B-480P");
    let text = String::from_utf8_lossy(&home.animctl(&["show", "Wan2.1-I2V-14B-480P"]).stdout).into_owned();
    assert!(text.contains("all parts are there"), "{text}");
}

#[test]
fn what_cannot_be_used_changes_nothing() {
    let home = Home::new();
    let tree = home.comfy("m");
    fs::remove_file(home.path("m/unet/wan-Q4_K_M.gguf")).expect("removed");
    // As long as it should be, and half of it fetched.
    let dit = home.path("m/diffusion_models/mixed.safetensors");
    let mut bytes = fs::read(&dit).expect("it is there");
    let half = bytes.len() / 2;
    bytes[half..].fill(0);
    fs::write(&dit, bytes).expect("written");
    fs::write(home.path("m/diffusion_models/mixed.safetensors.aria2"), [0, 1]).expect("written");
    let said = home.refused(&["add", &tree]);
    assert!(said.contains("no model was found") && said.contains("aria2's control file"), "{said}");

    fs::remove_file(home.path("m/diffusion_models/mixed.safetensors.aria2")).expect("removed");
    fs::remove_file(home.path("m/vae/wan.pth")).expect("removed");
    let said = home.refused(&["add", &tree]);
    assert!(
        said.contains("no whole model was found") && said.contains("missing: no VAE was found"),
        "{said}"
    );
    let said = home.refused(&["add", &tree, "--vae", dit.to_str().expect("UTF-8")]);
    assert!(said.contains("is a transformer, and not a VAE"), "{said}");
    assert!(home.refused(&["add", "/nowhere/at all"]).contains("`/nowhere/at all` cannot be found"));
    assert!(home.refused(&["add"]).contains("name a folder or a file"));
    let file = home.place("m/model.toml");
    fs::write(&file, "name = \"a\"\n").expect("written");
    assert!(home.refused(&["add", file.to_str().expect("UTF-8")]).contains("is a model file already"));
    assert!(!home.path(".config").exists(), "nothing is written");
}

#[test]
fn a_dry_run_says_everything_and_writes_nothing() {
    let home = Home::new();
    let tree = home.comfy("m");
    let found = home.json(&["add", "--dry-run", &tree]);
    assert_eq!(found["models"].as_array().map(Vec::len), Some(2));
    let text = String::from_utf8_lossy(&home.animctl(&["add", "--dry-run", &tree]).stdout).into_owned();
    for words in ["mixed: Wan2.1 image-to-video, all parts are there", "text", "--text takes another one"] {
        assert!(text.contains(words), "no {words:?} in {text}");
    }
    assert!(!home.path(".config").exists());
}
