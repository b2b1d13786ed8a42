//! Trees as people have them, of the small model's files.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use animd_protocol::dims::{DitConfig, schema};
use animd_protocol::findings::{Findings, FoundModel, PartKind};
use animd_protocol::recipe::{ExpertName, Recipe};

use super::Named;
use crate::synth::{Family, Size, synth_model};
use crate::weights::safetensors;
use crate::weights::{Adapter, DType, Model, Strength, made_up_lora};

fn find(paths: &[PathBuf], named: &[Named]) -> crate::Result<Findings> {
    super::find(paths, named, &[])
}

const COMFY: &str = "comfy_fp8/wan2.1_i2v_tiny_fp8_scaled.safetensors";
const TEXT: &str = "official/models_t5_umt5-xxl-enc-bf16.pth";
const CLIP: &str = "official/models_clip_open-clip-xlm-roberta-large-vit-huge-14.pth";
const VAE: &str = "official/Wan2.1_VAE.pth";
const TOKENIZER: &str = "official/google/umt5-xxl/tokenizer.json";

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/tiny-a").join(name)
}

/// A folder for a test.
struct Tree(tempfile::TempDir);

impl Tree {
    fn new() -> Self {
        Self(tempfile::tempdir().expect("a folder"))
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Returns a path in the folder, in a folder that exists.
    fn place(&self, name: &str) -> PathBuf {
        let path = self.path(name);
        fs::create_dir_all(path.parent().expect("a folder")).expect("made");
        path
    }

    /// Puts a file of the small model into the tree.
    fn put(&self, from: &str, name: &str) -> PathBuf {
        let to = self.place(name);
        fs::copy(fixture(from), &to).expect("copied");
        to
    }

    fn write(&self, name: &str, bytes: impl AsRef<[u8]>) -> PathBuf {
        let to = self.place(name);
        fs::write(&to, bytes).expect("written");
        to
    }

    /// Puts a whole model into `ComfyUI`'s folders.
    fn comfy(&self) -> &Self {
        self.put(COMFY, "models/diffusion_models/wan-a.safetensors");
        self.put(TEXT, "models/text_encoders/text.pth");
        self.put(CLIP, "models/clip_vision/vision.pth");
        self.put(VAE, "models/vae/vae.pth");
        self.put(TOKENIZER, "models/text_encoders/tokenizer.json");
        self
    }

    fn find(&self) -> Findings {
        find(&[self.0.path().to_owned()], &[]).expect("a search")
    }
}

/// Writes a file with the tensors of a network and no values: a hole has no size on a disk.
fn hollow(path: &Path, tensors: &[schema::Expected], dtype: DType) {
    let named = tensors.iter().map(|one| (one.name.as_str(), dtype, &one.shape[..]));
    let header = safetensors::header(named);
    let count: usize = tensors.iter().map(|one| one.shape.iter().product::<usize>()).sum();
    fs::write(path, &header).expect("written");
    let file = fs::File::options().write(true).open(path).expect("it is there");
    file.set_len((header.len() + dtype.bytes(count)) as u64).expect("a file with a hole");
}

/// Returns the sizes of a small transformer of Wan2.2.
fn expert() -> DitConfig {
    let recipe = Recipe::wan22_i2v_a14b();
    let released = recipe.experts[0].network.config.clone();
    DitConfig { dim: 256, ffn_dim: 512, num_heads: 2, num_layers: 2, text_dim: 64, ..released }
}

/// Writes a transformer of Wan2.2.
fn put_expert(path: &Path, config: &DitConfig) {
    hollow(path, &schema::dit(config), DType::Bf16);
}

fn names(found: &Findings) -> Vec<&str> {
    found.models.iter().map(|model| model.name.as_str()).collect()
}

/// Opens a model by the model file that would be written for it.
fn open(model: &FoundModel) -> Model {
    use animd_protocol::model_file::ModelFile;
    assert!(model.is_whole(), "{model}");
    let dir = tempfile::tempdir().expect("a folder");
    let file = dir.path().join("model.toml");
    let text = ModelFile { name: model.name.clone(), parts: model.paths(), ..ModelFile::default() };
    fs::write(&file, text.to_toml()).expect("written");
    Model::open(&file, None).expect("what was found can be opened")
}

#[test]
fn a_released_folder_is_one_model() {
    let found = find(&[fixture("official")], &[]).expect("a search");
    assert_eq!(names(&found), ["official"]);
    let model = open(&found.models[0]);
    assert!(model.tokenizer.ends_with("tokenizer.json") && model.low_noise.is_none());
    assert!(found.passed_over.is_empty() && found.unclear.is_empty(), "{found}");
}

#[test]
fn comfyuis_tree_has_two_models_and_a_part_in_two_precisions() {
    let tree = Tree::new();
    tree.comfy();
    tree.write("main.py", "");
    // What ComfyUI keeps besides is not searched.
    tree.put(COMFY, "output/not-a-model.safetensors");
    tree.put("official/diffusion_pytorch_model.safetensors", "models/unet/sub/wan-b.safetensors");
    let half = T5Halves::write(&tree.place("models/text_encoders/half.safetensors"));
    let found = tree.find();
    assert_eq!(names(&found), ["wan-a", "wan-b"], "{found}");
    for model in &found.models {
        open(model);
        let text = model.part("text").expect("there is one");
        assert!(text.part.path.ends_with("text.pth"), "16 bits before 8: {model}");
        assert_eq!(text.because.as_deref(), Some("it is the most precise one"));
        assert_eq!(text.others.iter().map(|other| &other.path).collect::<Vec<_>>(), [&half]);
    }
    // The choice can be made otherwise.
    let named = [Named { key: "text", path: half.clone() }];
    let found = find(&[tree.0.path().to_owned()], &named).expect("a search");
    assert!(found.models.iter().all(|model| model.part("text").is_some_and(|text| text.part.path == half)));
    let named = [Named { key: "dit", path: tree.path("models/unet/sub/wan-b.safetensors") }];
    assert_eq!(names(&find(&[tree.0.path().to_owned()], &named).expect("a search")), ["wan-b"]);
}

/// The small text encoder with 8 bits for each number.
struct T5Halves;

impl T5Halves {
    fn write(path: &Path) -> PathBuf {
        let (_, config) = crate::weights::open_t5(&fixture(TEXT)).expect("it is right");
        hollow(path, &schema::t5(&config), DType::F8E4m3);
        path.to_owned()
    }
}

#[test]
fn parts_that_lie_apart_are_put_together() {
    let tree = Tree::new();
    let (dit, text) = (tree.put(COMFY, "downloads/dit.bin"), tree.put(TEXT, "text only/t5.pth"));
    tree.put(TOKENIZER, "text only/deeper/tokenizer.json");
    tree.put(CLIP, "a/vision.pth");
    tree.put(VAE, "a/b/vae.pth");
    let paths = [dit.clone(), text, tree.path("text only"), tree.path("a")];
    let found = find(&paths, &[]).expect("a search");
    assert_eq!(names(&found), ["dit.bin"], "a file that is named is read whatever it is called");
    open(&found.models[0]);
    assert_eq!(found.models[0].part("dit").expect("there is one").part.files, [dit]);
}

#[test]
fn both_transformers_are_found_and_paired() {
    let tree = Tree::new();
    tree.comfy();
    for name in ["wan2.2_high_noise_Q8", "wan2.2_low_noise_Q8", "other_HIGH", "other_LOW"] {
        put_expert(&tree.path(&format!("models/diffusion_models/{name}.safetensors")), &expert());
    }
    let found = tree.find();
    assert_eq!(names(&found), ["wan-a", "other", "wan2.2_Q8"], "{found}");
    for (model, stem) in found.models[1..].iter().zip(["other", "wan2.2"]) {
        let part = |key| model.part(key).expect("there is one").part.clone();
        let (high, low) = (part("high_noise"), part("low_noise"));
        assert_eq!((high.noise, low.noise), (Some(ExpertName::HighNoise), Some(ExpertName::LowNoise)));
        for path in [&high.path, &low.path] {
            assert!(path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(stem)), "{model}");
        }
        assert!(model.part("clip").is_none(), "Wan2.2 has none");
        assert!(open(model).low_noise.is_some());
    }
}

#[test]
fn transformers_whose_names_do_not_tell_are_asked_for() {
    let tree = Tree::new();
    tree.comfy();
    fs::remove_file(tree.path("models/diffusion_models/wan-a.safetensors")).expect("removed");
    let [one, two] =
        ["one", "two"].map(|name| tree.path(&format!("models/diffusion_models/{name}.safetensors")));
    put_expert(&one, &expert());
    put_expert(&two, &expert());
    let found = tree.find();
    assert_eq!((found.models.len(), &found.unclear), (0, &vec![one.clone(), two.clone()]));
    assert!(found.to_string().contains("--high-noise"));
    for named in [
        vec![Named { key: "high_noise", path: two.clone() }, Named { key: "low_noise", path: one.clone() }],
        // One answer tells both.
        vec![Named { key: "high_noise", path: two.clone() }],
        vec![Named { key: "low_noise", path: one.clone() }],
    ] {
        let found = find(&[tree.0.path().to_owned()], &named).expect("a search");
        let [model] = &found.models[..] else { panic!("{named:?}: {found}") };
        assert_eq!(model.part("high_noise").expect("there is one").part.path, two, "{named:?}");
        assert_eq!(model.part("low_noise").expect("there is one").part.path, one);
    }
}

#[test]
fn transformers_of_different_models_are_no_pair() {
    let tree = Tree::new();
    tree.comfy();
    put_expert(&tree.path("models/diffusion_models/x_high.safetensors"), &expert());
    put_expert(
        &tree.path("models/diffusion_models/x_low.safetensors"),
        &DitConfig { num_layers: 3, ..expert() },
    );
    let found = tree.find();
    let missing: Vec<_> = found.models[1..]
        .iter()
        .map(|model| model.missing.iter().map(|one| &*one.key).collect::<Vec<_>>())
        .collect();
    assert_eq!(missing, [["low_noise"], ["high_noise"]], "{found}");
}

#[test]
fn the_hubs_cache_is_read_through_its_links() {
    let tree = Tree::new();
    let hub = tree.place("hub/models--Wan-AI--Wan2.1-I2V-14B-480P/x");
    let repository = hub.parent().expect("a folder").to_owned();
    let snapshot = repository.join("snapshots/0123abcd");
    fs::create_dir_all(repository.join("blobs")).expect("made");
    fs::create_dir_all(repository.join("refs")).expect("made");
    fs::write(repository.join("refs/main"), "0123abcd").expect("written");
    let files = [
        "Wan2.1_VAE.pth",
        "config.json",
        "diffusion_pytorch_model.safetensors",
        "google/umt5-xxl/tokenizer.json",
        "models_clip_open-clip-xlm-roberta-large-vit-huge-14.pth",
        "models_t5_umt5-xxl-enc-bf16.pth",
    ];
    for (n, name) in files.iter().enumerate() {
        fs::copy(fixture("official").join(name), repository.join(format!("blobs/{n:040}"))).expect("copied");
        let link = snapshot.join(name);
        fs::create_dir_all(link.parent().expect("a folder")).expect("made");
        let up = "../".repeat(2 + name.matches('/').count());
        symlink(format!("{up}blobs/{n:040}"), &link).expect("linked");
    }
    // The cache, the repository, and its snapshot.
    for path in [tree.path("hub"), repository.clone(), snapshot.clone()] {
        let found = find(std::slice::from_ref(&path), &[]).expect("a search");
        assert_eq!(names(&found), ["Wan2.1-I2V-14B-480P"], "{}", path.display());
        open(&found.models[0]);
        assert!(found.notes.is_empty(), "{found}");
    }
    fs::write(repository.join("blobs/77.incomplete"), "x").expect("written");
    for path in [tree.path("hub"), repository, snapshot] {
        let found = find(&[path], &[]).expect("a search");
        assert!(
            found.notes.iter().any(|note| note.contains("1 file of `Wan2.1-I2V-14B-480P` is not fetched")),
            "{found}"
        );
    }
}

#[test]
fn what_is_broken_is_said_and_passed_over() {
    let tree = Tree::new();
    tree.comfy();
    let whole = fs::read(fixture(COMFY)).expect("it is there");
    let dir = "models/diffusion_models";
    tree.write(&format!("{dir}/half.safetensors"), &whole[..whole.len() / 2]);
    tree.write(&format!("{dir}/pointer.safetensors"), "version https://git-lfs.github.com/spec/v1\n");
    tree.write(&format!("{dir}/page.safetensors"), "<!doctype html>");
    tree.write(&format!("{dir}/empty.gguf"), "");
    tree.write(&format!("{dir}/coming.safetensors.part"), "x");
    // Half fetched: as long as it should be, with aria2's file beside it.
    let mut zeroed = whole.clone();
    zeroed[whole.len() / 2..].fill(0);
    tree.write(&format!("{dir}/aria.safetensors"), &zeroed);
    tree.write(&format!("{dir}/aria.safetensors.aria2"), [0, 1, 0, 0]);
    symlink("nowhere", tree.path(&format!("{dir}/gone.safetensors"))).expect("linked");
    let found = tree.find();
    assert_eq!(names(&found), ["wan-a"], "{found}");
    for (name, why) in [
        ("half", "only partly there"),
        ("pointer", "git lfs pull"),
        ("page", "web page"),
        ("empty", "is empty"),
        ("coming", "not fetched to its end"),
        ("aria.safetensors", "aria2's control file"),
        ("gone", "leads nowhere"),
    ] {
        let of_it = found
            .passed_over
            .iter()
            .find(|passed| passed.path.to_string_lossy().contains(&format!("/{name}")));
        let passed = of_it.unwrap_or_else(|| panic!("nothing is said of {name}: {found}"));
        assert!(passed.why.contains(why) && passed.why.contains(&format!("/{name}")), "{}", passed.why);
    }
}

#[test]
fn eight_bits_without_scales_have_one_sentence() {
    let tree = Tree::new();
    tree.comfy();
    let (_, config) = crate::weights::open_dit(&fixture(COMFY)).expect("it is right");
    let mut tensors = schema::dit(&config);
    tensors.push(schema::Expected {
        name: "blocks.0.self_attn.q.weight_scale".into(),
        shape: vec![256, 1],
        ..tensors[0].clone()
    });
    hollow(&tree.place("models/unet/x.safetensors"), &tensors, DType::F8E4m3);
    let found = tree.find();
    let [passed] = &found.passed_over[..] else { panic!("{found}") };
    assert!(passed.why.contains("x.safetensors") && passed.why.contains("scale"), "{}", passed.why);
    assert!(found.to_string().lines().all(|line| line.chars().count() < 600), "{found}");
}

#[test]
fn parts_of_other_sizes_are_said_not_to_fit() {
    let tree = Tree::new();
    tree.comfy();
    fs::remove_file(tree.path("models/text_encoders/text.pth")).expect("removed");
    let (_, config) = crate::weights::open_t5(&fixture(TEXT)).expect("it is right");
    let config = animd_protocol::dims::T5Config { dim: 128, ..config };
    hollow(&tree.path("models/text_encoders/wide.safetensors"), &schema::t5(&config), DType::Bf16);
    let found = tree.find();
    let [model] = &found.models[..] else { panic!("{found}") };
    let [missing] = &model.missing[..] else { panic!("{model}") };
    assert_eq!(missing.key, "text");
    assert!(
        missing.sentence.contains("wide.safetensors` gives text of width 128, and the transformer takes 64"),
        "{model}"
    );
    assert_eq!(missing.source, None, "nobody has published parts of these sizes");
}

#[test]
fn what_a_released_model_lacks_can_be_fetched() {
    let tree = Tree::new();
    let recipe = Recipe::wan21_i2v_14b();
    let config = recipe.experts[0].network.config.clone();
    hollow(
        &tree.place("models/diffusion_models/wan2.1_i2v_720p_14B.safetensors"),
        &schema::dit(&config),
        DType::Bf16,
    );
    let found = tree.find();
    let [model] = &found.models[..] else { panic!("{found}") };
    let keys: Vec<_> = model.missing.iter().map(|missing| &*missing.key).collect();
    assert_eq!(keys, ["vae", "text", "clip"]);
    for missing in &model.missing {
        let fetch = missing.source.as_ref().expect("it is published");
        assert!(
            fetch.command.starts_with("hf download ")
                && fetch.command.contains(&*tree.0.path().to_string_lossy())
        );
        assert!(fetch.bytes.is_some_and(|bytes| bytes > 100_000_000), "{fetch:?}");
    }
    let none =
        find(&[tree.place("elsewhere/none").parent().expect("a folder").to_owned()], &[]).expect("a search");
    assert!(
        none.notes
            .iter()
            .any(|note| note.contains("no transformer was found") && note.contains("hf download"))
    );
}

#[test]
fn links_and_loops_end() {
    let tree = Tree::new();
    tree.comfy();
    symlink("..", tree.path("models/vae/up")).expect("linked");
    symlink(tree.0.path(), tree.path("models/around")).expect("linked");
    symlink("b", tree.path("models/a")).expect("linked");
    symlink("a", tree.path("models/b")).expect("linked");
    symlink("wan-a.safetensors", tree.path("models/diffusion_models/again.safetensors")).expect("linked");
    let found = tree.find();
    assert_eq!(found.models.len(), 1, "a file is found once: {found}");
    assert_eq!(found.parts.iter().filter(|part| part.kind == PartKind::Vae).count(), 1);
}

#[test]
fn many_files_are_looked_into_and_deep_folders_are_not_followed_for_ever() {
    let tree = Tree::new();
    tree.comfy();
    for n in 0..2000 {
        tree.write(&format!("models/loras/{}/{n}.safetensors", n % 40), b"\x02\0\0\0\0\0\0\0{}");
    }
    let deep = format!("models/{}x.safetensors", "d/".repeat(40));
    tree.write(&deep, "x");
    let found = tree.find();
    assert_eq!(names(&found), ["wan-a"]);
    assert_eq!(found.passed_over.iter().filter(|passed| passed.other_model).count(), 2000);
    assert!(found.notes.iter().any(|note| note.contains("folders deep")), "{:?}", found.notes);
    assert!(found.to_string().contains("2000 files are of other models"));
}

#[test]
fn folders_that_comfyui_is_told_of_are_searched_too() {
    let tree = Tree::new();
    tree.comfy();
    tree.write("main.py", "");
    fs::rename(tree.path("models/vae"), tree.path("apart")).expect("moved");
    let text = format!("mine:\n    base_path: {}\n    vae: apart\n", tree.0.path().display());
    tree.write("extra_model_paths.yaml", text);
    let found = tree.find();
    open(&found.models[0]);
    assert!(found.notes.iter().any(|note| note.contains("extra_model_paths.yaml") && note.contains("apart")));
}

#[test]
fn what_is_named_for_a_part_must_be_one() {
    let tree = Tree::new();
    tree.comfy();
    let refused = |key, name: &str| {
        let named = [Named { key, path: tree.path(name) }];
        find(&[tree.0.path().to_owned()], &named).expect_err("it is something else").to_string()
    };
    assert!(refused("vae", "models/text_encoders/text.pth").contains("is a text encoder, and not a VAE"));
    assert!(refused("dit", "models/nothing").contains("cannot be found"));
    put_expert(&tree.path("models/expert.safetensors"), &expert());
    assert!(refused("dit", "models/expert.safetensors").contains("name both"));
    tree.put(COMFY, "models/diffusion_models/wan-b.safetensors");
    let many = refused("dit", "models/diffusion_models");
    assert!(many.contains("holds 2 of the kind transformer; name the file"), "{many}");
}

/// Writes a `LoRA` for one square layer of so wide a transformer.
fn put_lora(path: &Path, width: usize) {
    let folder = path.parent().expect("a folder");
    fs::create_dir_all(folder).expect("made");
    let name = path.file_name().and_then(|name| name.to_str()).expect("a name");
    made_up_lora::write(folder, name, &[("blocks.0.self_attn.q", [width, width])], &[], 7);
}

#[test]
fn loras_are_matched_with_the_models_that_were_found() {
    let tree = Tree::new();
    tree.comfy();
    put_lora(&tree.path("models/loras/wan/detail.safetensors"), 256);
    put_lora(&tree.path("models/loras/wide_lightx2v_4steps.safetensors"), 512);
    put_lora(&tree.path("models/loras/a,b.safetensors"), 256);
    let found = tree.find();
    let models: Vec<_> = found.loras.iter().map(|lora| (&*lora.name, &lora.models[..])).collect();
    let wan = ["wan-a".to_owned()];
    assert_eq!(models, [("detail", &wan[..]), ("a,b", &[]), ("wide_lightx2v_4steps", &[])], "{found}");
    assert!(found.parts.iter().all(|part| part.kind != PartKind::Lora));
    assert!(found.loras[1].why.as_ref().is_some_and(|why| why.contains("must be renamed")), "{found}");
    let wide = &found.loras[2];
    assert!(
        wide.called_distilled && wide.why.as_ref().is_some_and(|why| why.contains("for another one")),
        "{found}"
    );
    assert!(found.to_string().contains("detail.safetensors`, for wan-a\n"), "{found}");
}

#[test]
fn a_pair_of_loras_goes_with_the_models_of_two_transformers() {
    let tree = Tree::new();
    tree.comfy();
    for noise in ["high", "low"] {
        put_expert(&tree.path(&format!("models/diffusion_models/wan22_{noise}.safetensors")), &expert());
        put_lora(&tree.path(&format!("models/loras/four_{noise}_noise.safetensors")), 256);
    }
    put_lora(&tree.path("models/loras/low_poly.safetensors"), 256);
    let found = tree.find();
    let told: Vec<_> = found
        .loras
        .iter()
        .map(|lora| (&*lora.name, lora.noise, lora.partner.as_deref(), lora.models.len()))
        .collect();
    let (high, low) = (Some(ExpertName::HighNoise), Some(ExpertName::LowNoise));
    assert_eq!(
        told,
        [
            ("four_high_noise", high, Some("four_low_noise"), 1),
            ("four_low_noise", low, Some("four_high_noise"), 1),
            // A name may say `low` of something else.
            ("low_poly", low, None, 2),
        ],
        "{found}"
    );
    assert_eq!(found.loras[0].models, ["wan22"]);
}

#[test]
fn loras_alone_are_matched_with_models_that_are_known() {
    let tree = Tree::new();
    let (lora, other) = (tree.path("detail.safetensors"), tree.path("other.safetensors"));
    put_lora(&lora, 256);
    put_lora(&other, 128);
    let known = [fixture("official"), tree.path("gone.toml")];
    let found = super::find(&[lora.clone(), other], &[], &known).expect("a search");
    assert_eq!(found.loras.iter().map(|lora| lora.models.len()).collect::<Vec<_>>(), [1, 0], "{found}");
    assert_eq!(found.loras[0].models, ["official"]);
    assert!(!found.to_string().contains("no transformer"), "{found}");
    let alone = super::find(std::slice::from_ref(&lora), &[], &[]).expect("a search");
    assert!(alone.loras[0].why.is_none() && alone.to_string().contains("when there is one"), "{alone}");

    let model = &known[0];
    let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
    let places = [tree.0.path().to_owned()];
    let usable = super::by_names(model, &names(&["detail"]), &places).expect("it fits");
    assert_eq!((&usable[0].path, usable[0].tensors), (&lora.canonicalize().expect("it is there"), 1));
    let refused =
        |name: &str| super::by_names(model, &names(&[name]), &places).expect_err("refused").to_string();
    assert!(refused("other").contains("for another one"));
    assert!(refused("detial").contains("did you mean `detail`?"));
    assert!(refused("detail:1:1").contains("the model has one"));
    let nowhere = super::by_names(model, &names(&["detail"]), &[]).expect_err("no folder").to_string();
    assert!(nowhere.ends_with("the model has none of its own; give one with `--lora-folder`"), "{nowhere}");
}

#[test]
fn of_a_lora_for_either_transformer_it_is_said_that_jobs_must_give_two_strengths() {
    let tree = Tree::new();
    let folder = tree.path("model");
    let recipe = Size::Tiny.recipe_of(Family::Wan22);
    synth_model(&folder, recipe, DType::Bf16, None, 1, &mut |_, _| Ok(())).expect("it can be written");
    put_lora(&tree.path("loras/detail.safetensors"), 256);
    put_lora(&tree.path("loras/detail_low.safetensors"), 256);
    let open = |name: &str| super::by_names(&folder, &[name.to_owned()], &[tree.path("loras")]);
    let needs_two = |name: &str| open(name).expect("it fits")[0].needs_two_strengths;
    assert_eq!(
        ["detail", "detail:0.5", "detail:1:0.5", "detail_low"].map(needs_two),
        [true, true, false, false]
    );
    let choice = "detail".parse().expect("a name");
    let path = tree.path("loras/detail.safetensors");
    let config = Size::Tiny.recipe_of(Family::Wan22).experts[0].network.config.clone();
    let job = Adapter::open(&path, &config, 2, Strength::chosen(&choice)).map(drop);
    assert!(job.is_err_and(|e| e.to_string().contains("give two strengths")), "so a job refuses it");
}

#[test]
fn a_transformer_for_two_pictures_is_called_by_its_own_family() {
    let tree = Tree::new();
    let folder = tree.path("model");
    let recipe = Size::Tiny.recipe_of(Family::Flf2v);
    synth_model(&folder, recipe, DType::Bf16, None, 1, &mut |_, _| Ok(())).expect("it can be written");
    let found = super::find(&[folder], &[], &[]).expect("a search");
    assert_eq!(found.models[0].family, "Wan2.1 first-and-last-frame", "{found}");
    assert!(found.models[0].part("clip").is_some(), "{found}");
}
