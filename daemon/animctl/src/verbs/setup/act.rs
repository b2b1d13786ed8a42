//! The steps that `animctl setup` does itself, by running other verbs: adding a model, verifying its files, preparing
//! its copies, and a first video. Each finds out whether its result is there.

use std::collections::{BTreeSet, HashMap};
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use animd_common::config::Loaded;
use animd_common::files::show;
use animd_common::models;
use animd_protocol::findings::{Findings, FoundLora, FoundModel, PartKind};
use animd_protocol::profile::Precision;
use serde_json::Value;
use zbus::Variant;

use super::super::model::{cache, known_loras};
use super::super::{On, json_of};
use super::machine::Machine;
use super::step::{Run, Step};
use crate::doctor::sandbox::Sandbox;

/// Everything that the steps look at.
pub struct Scene<'a> {
    pub on: On,
    pub loaded: &'a Loaded,
    pub machine: &'a Machine,
    pub model: Option<&'a FoundModel>,
    /// The `LoRAs` that were found, where these places were searched.
    pub loras: &'a [FoundLora],
    pub searched: &'a [PathBuf],
    /// The picture of the first video, if one was given.
    pub picture: Option<&'a Path>,
}

/// The sentence of steps that need a model first.
const WAITS: &str = "when the model's files are there";

/// Returns the paths of the configured model on this machine: its folder, or the parts that its model file names.
pub fn configured(loaded: &Loaded, on: On) -> Vec<PathBuf> {
    let Some(path) = &loaded.config.model.path else { return Vec::new() };
    let sandbox = Sandbox::of(on.user);
    let outside = |path: &Path| sandbox.outside(path).0;
    let path = outside(path);
    match models::model_file(&path) {
        Ok(Some(file)) => file.parts.named().map(|(_, part)| outside(part)).collect(),
        _ => vec![path],
    }
}

/// Returns the model to set up: the configured one, or else the first whole one that fits.
pub fn choose<'a>(
    findings: &'a Findings,
    configured: &[PathBuf],
    fits: impl Fn(&FoundModel) -> bool,
) -> Option<&'a FoundModel> {
    let real = |path: &Path| fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    let configured: Vec<PathBuf> = configured.iter().map(|path| real(path)).collect();
    let transformer = |model: &FoundModel| {
        let part = model.part("dit").or_else(|| model.part("high_noise"));
        part.map(|chosen| real(&chosen.part.path))
    };
    let is_configured = |model: &&FoundModel| {
        transformer(model).is_some_and(|path| configured.iter().any(|one| path.starts_with(one)))
    };
    let whole = || findings.models.iter().filter(|model| model.is_whole());
    whole().find(is_configured).or_else(|| whole().find(|model| fits(model)))
}

/// Returns the step that makes a model the configured one.
pub fn add(scene: &Scene<'_>) -> Step {
    const NAME: &str = "add";
    if let Some(path) = &scene.loaded.config.model.path {
        return match &scene.machine.state {
            Some((state, text)) if state == "no-weights" => {
                Step::todo(NAME, text.clone(), vec!["animctl doctor".to_owned()])
            }
            _ => match new_loras(scene) {
                loras if loras.is_empty() => {
                    Step::done(NAME, format!("`{}` is the configured model", show(path)))
                }
                loras => {
                    let run = Run::new(&["model", "add"], loras.into_iter().map(PathBuf::into_os_string));
                    Step::runs(
                        NAME,
                        "let jobs use the LoRAs that go with the model",
                        vec![run],
                        !scene.on.user,
                    )
                }
            },
        };
    }
    let Some(model) = scene.model else { return Step::todo(NAME, WAITS, Vec::new()) };
    let distilled = model.called_distilled.then(|| ["--distilled", "yes"].map(OsString::from));
    let paths = roots(model).into_iter().chain(new_loras(scene)).map(PathBuf::into_os_string);
    let run = Run::new(&["model", "add"], paths.chain(distilled.into_iter().flatten()));
    Step::runs(NAME, format!("let animd use `{}`", model.name), vec![run], !scene.on.user)
}

/// Returns the folders and files of `LoRAs` that go with the model, and that jobs cannot choose so far.
fn new_loras(scene: &Scene<'_>) -> BTreeSet<PathBuf> {
    let goes_with = |lora: &&FoundLora| scene.model.is_some_and(|model| lora.models.contains(&model.name));
    let (config, sandbox) = (&scene.loaded.config, Sandbox::of(scene.on.user));
    known_loras::unknown(scene.loras.iter().filter(goes_with), scene.searched, config, &sandbox)
}

/// Returns the paths that stand for a model: its folder if all parts are in the folder that has the transformer, else each
/// part's.
fn roots(model: &FoundModel) -> Vec<PathBuf> {
    let paths: Vec<&Path> = model.parts.iter().map(|chosen| &*chosen.part.path).collect();
    let first = paths.first().and_then(|path| if path.is_dir() { Some(*path) } else { path.parent() });
    let folder = first.into_iter().flat_map(|folder| [Some(folder), folder.parent()]).flatten();
    let has_name = |folder: &Path, name: &str| {
        fs::read_dir(folder)
            .into_iter()
            .flatten()
            .flatten()
            .any(|entry| entry.file_name().to_string_lossy().starts_with(name))
    };
    // The layouts of the released models hold one model each; in other folders there may be more.
    let one = folder
        .filter(|folder| paths.iter().all(|path| path.starts_with(folder)))
        .find(|folder| has_name(folder, "models_t5_") || has_name(folder, "model_index.json"));
    match one {
        Some(folder) => vec![folder.to_owned()],
        None => {
            let mut paths: Vec<PathBuf> = paths.into_iter().map(Path::to_owned).collect();
            paths.dedup();
            paths
        }
    }
}

/// Returns the step that checks every tensor and keeps the files' hashes.
pub fn verify(scene: &Scene<'_>) -> Step {
    const NAME: &str = "verify";
    let Some(model) = scene.model else { return Step::todo(NAME, WAITS, Vec::new()) };
    let networks = || model.parts.iter().filter(|chosen| chosen.part.kind != PartKind::Tokenizer);
    let files: Vec<&Path> = networks()
        .flat_map(|chosen| &chosen.part.files)
        .filter(|file| is_weights(file))
        .map(|file| &**file)
        .collect();
    let verified = verified(&scene.loaded.config.engine_program(), &files);
    let fresh = networks().filter(|chosen| {
        !chosen.part.files.iter().filter(|file| is_weights(file)).all(|file| verified.contains(&**file))
    });
    let mut paths: Vec<&Path> =
        fresh.map(|chosen| folder_of(&chosen.part.path, &chosen.part.files)).collect();
    // A folder of shards is verified with the other parts in it.
    let folders: Vec<&Path> = paths.iter().copied().filter(|path| path.is_dir()).collect();
    paths.retain(|path| !path.parent().is_some_and(|parent| folders.contains(&parent)));
    paths.dedup();
    if paths.is_empty() {
        return Step::done(NAME, "the files were verified, and have not changed since");
    }
    let runs = paths.into_iter().map(|path| Run::new(&["model", "verify"], [path.into()])).collect();
    Step::runs(NAME, "check every tensor, and keep the files' hashes; this reads all files once", runs, false)
}

/// Returns what stands for a part on a command line: the folder of shards, else the file.
fn folder_of<'a>(path: &'a Path, files: &[PathBuf]) -> &'a Path {
    let shards = files.iter().filter(|file| is_weights(file)).count();
    match path.parent() {
        Some(folder) if shards > 1 && !path.is_dir() => folder,
        _ => path,
    }
}

/// Returns whether a file has tensors; an index and a configuration have none.
fn is_weights(file: &Path) -> bool {
    !file.extension().is_some_and(|end| end.eq_ignore_ascii_case("json"))
}

/// Returns which of these files the engine has verified, found sound, and not seen written since. Where it cannot be asked, none
/// counts as verified: verifying once more does no harm.
fn verified<'a>(engine: &Path, files: &[&'a Path]) -> BTreeSet<&'a Path> {
    let mut command = Command::new(engine);
    command.args(["verify", "--json", "--seen"]).args(files).stdin(Stdio::null()).stderr(Stdio::null());
    let said = match files.is_empty() {
        true => None,
        false => command.output().ok().and_then(|output| serde_json::from_slice(&output.stdout).ok()),
    };
    let said: Vec<Value> = said.unwrap_or_default();
    // The answer has the files in their order.
    let sound = files.iter().zip(&said).filter(|(_, one)| one["sound"] == true);
    sound.map(|(file, _)| *file).collect()
}

/// Returns the step that writes copies of the transformers in 8 bits.
pub fn prepare(scene: &Scene<'_>) -> Step {
    const NAME: &str = "prepare";
    let Some(model) = scene.model else { return Step::todo(NAME, WAITS, Vec::new()) };
    let precision = match scene.machine.precision() {
        Some(precision @ (Precision::Int8 | Precision::Fp8)) => precision,
        Some(_) => return Step::skipped(NAME, "this machine's profile does not compute in 8 bits"),
        None => return Step::skipped(NAME, "this machine's profile is not known"),
    };
    let word = if precision == Precision::Int8 { "int8" } else { "fp8" };
    let keys = ["dit", "high_noise", "low_noise"].into_iter();
    let transformers: Vec<_> = keys.filter_map(|key| model.part(key)).map(|chosen| &chosen.part).collect();
    if transformers.iter().any(|part| !["BF16", "F16", "F32"].contains(&&*part.precision)) {
        return Step::skipped(NAME, "the transformer is in 8 bits already, or in fewer");
    }
    let place = cache::place(scene.loaded, scene.on);
    let copies = copies(&scene.loaded.config.engine_program(), &place);
    let is_prepared = |files: &[PathBuf]| {
        copies.iter().any(|copy| {
            let of = copy["of"].as_str().and_then(|of| place_of(Path::new(of)));
            copy["state"] == "current"
                && copy["precision"] == word
                && of.is_some_and(|of| {
                    files.iter().filter_map(|file| place_of(file)).any(|file| file.starts_with(&of))
                })
        })
    };
    let missing = transformers.iter().filter(|part| !is_prepared(&part.files));
    let runs: Vec<Run> = missing
        .map(|part| {
            let path = folder_of(&part.path, &part.files).into();
            Run::new(&["model", "prepare"], [path, "--precision".into(), word.into()])
        })
        .collect();
    if runs.is_empty() {
        return Step::done(NAME, format!("the copy in {word} is there"));
    }
    Step::runs(
        NAME,
        format!(
            "write a copy in {word}, so that the engine starts faster; it takes about half of the files' room"
        ),
        runs,
        !scene.on.user,
    )
}

/// Returns the real path of a folder, or of a name in a folder. A link into the Hugging Face cache stays a link: the blob that
/// it leads to is in no folder of the model.
fn place_of(path: &Path) -> Option<PathBuf> {
    if path.is_dir() {
        return fs::canonicalize(path).ok();
    }
    Some(fs::canonicalize(path.parent()?).ok()?.join(path.file_name()?))
}

/// Returns the prepared copies that this user sees.
fn copies(engine: &Path, place: &[OsString]) -> Vec<Value> {
    let mut list = Command::new(engine);
    let output =
        list.arg("cache").args(place).arg("--json").stdin(Stdio::null()).stderr(Stdio::null()).output();
    let listed: Option<Value> = output.ok().and_then(|output| serde_json::from_slice(&output.stdout).ok());
    listed.and_then(|listed| listed["copies"].as_array().cloned()).unwrap_or_default()
}

/// Returns the step that makes a first video: of a picture that was given, with the configured model, else with the small
/// model that comes with animd.
pub async fn video(scene: &Scene<'_>) -> Step {
    const NAME: &str = "video";
    if let Some(id) = newest_done(scene.on).await {
        return Step::done(NAME, format!("job {id} has made one; `animctl history` lists them"));
    }
    if scene.machine.state.is_none() {
        return Step::todo(NAME, "when animd runs", Vec::new());
    }
    match scene.picture.filter(|_| scene.loaded.config.model.path.is_some()) {
        Some(picture) => {
            let run = Run::new(&["submit"], [picture.into(), "--wait".into()]);
            Step::runs(NAME, "make a first video", vec![run], false)
        }
        None => {
            let run = Run::new(&["demo"], []);
            Step::runs(
                NAME,
                "make a first video with the small model, which shows that everything works",
                vec![run],
                false,
            )
        }
    }
}

/// Returns the number of this user's newest job that has made a video.
async fn newest_done(on: On) -> Option<u64> {
    let filter: HashMap<&str, Variant<'_>> = HashMap::from([("state", "done".into())]);
    let jobs = on.connect().await.ok()?.manager.history(filter).await.ok()?;
    json_of(jobs.first()?)["id"].as_u64()
}

#[cfg(test)]
mod tests {
    use super::*;
    use animd_protocol::findings::{Chosen, FoundPart};

    fn model(name: &str, parts: &[(&str, PartKind, &Path)]) -> FoundModel {
        let chosen = parts.iter().map(|(key, kind, path)| Chosen {
            key: (*key).into(),
            part: FoundPart {
                path: path.to_path_buf(),
                kind: *kind,
                files: vec![path.to_path_buf()],
                layout: "official".into(),
                precision: "BF16".into(),
                bytes: 1,
                noise: None,
            },
            others: Vec::new(),
            because: None,
        });
        let parts = chosen.collect();
        FoundModel {
            name: name.into(),
            family: String::new(),
            parts,
            missing: Vec::new(),
            called_distilled: false,
        }
    }

    #[test]
    fn a_released_folder_stands_for_its_model_and_parts_of_others_for_themselves() -> std::io::Result<()> {
        let dir = tempfile::tempdir()?;
        let at = |name: &str| dir.path().join(name);
        let files =
            ["diffusion_pytorch_model.safetensors", "models_t5_umt5-xxl-enc-bf16.pth", "Wan2.1_VAE.pth"]
                .map(at);
        for file in &files {
            fs::write(file, "")?;
        }
        let kinds = [("dit", PartKind::Dit), ("text", PartKind::Text), ("vae", PartKind::Vae)];
        let of = |files: &[PathBuf; 3]| {
            let parts: Vec<_> =
                kinds.iter().zip(files).map(|((key, kind), path)| (*key, *kind, &**path)).collect();
            roots(&model("wan", &parts))
        };
        assert_eq!(of(&files), [dir.path()]);
        // With a part from elsewhere, the folder is not the model.
        let mut apart = files.clone();
        apart[2] = PathBuf::from("/models/vae.safetensors");
        assert_eq!(of(&apart), apart);
        // Of Wan2.2, the transformers lie in folders of the model's.
        fs::create_dir(at("high_noise_model"))?;
        let mut pair = files;
        pair[0] = at("high_noise_model");
        assert_eq!(of(&pair), [dir.path()]);
        Ok(())
    }

    #[test]
    fn the_configured_model_is_chosen_before_the_first_one() {
        let dit = |name: &str, path: &str| model(name, &[("dit", PartKind::Dit, Path::new(path))]);
        let mut broken = dit("broken", "/m/broken");
        broken.missing.push(animd_protocol::findings::Missing {
            key: "vae".into(),
            sentence: "no VAE was found".into(),
            source: None,
        });
        let findings = Findings {
            models: vec![broken, dit("one", "/m/one/a"), dit("two", "/m/two/a")],
            ..Findings::default()
        };
        let chosen = |configured: &[&str], fits: &dyn Fn(&FoundModel) -> bool| {
            let configured: Vec<PathBuf> = configured.iter().map(PathBuf::from).collect();
            choose(&findings, &configured, fits).map(|model| model.name.clone())
        };
        assert_eq!(chosen(&[], &|_| true).as_deref(), Some("one"));
        assert_eq!(chosen(&["/m/two"], &|_| true).as_deref(), Some("two"));
        assert_eq!(chosen(&["/m/three"], &|model| model.name == "two").as_deref(), Some("two"));
        assert_eq!(chosen(&[], &|_| false), None);
    }

    #[test]
    fn shards_are_named_by_their_folder() {
        let files = |names: &[&str]| -> Vec<PathBuf> {
            names.iter().map(|name| Path::new("/m").join(name)).collect()
        };
        let index = Path::new("/m/model.safetensors.index.json");
        let shards = files(&[
            "model.safetensors.index.json",
            "a-00001-of-00002.safetensors",
            "a-00002-of-00002.safetensors",
        ]);
        assert_eq!(folder_of(index, &shards), Path::new("/m"));
        let one = Path::new("/m/a.safetensors");
        assert_eq!(folder_of(one, &files(&["a.safetensors", "config.json"])), one);
    }
}
