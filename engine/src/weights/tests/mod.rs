//! The fixture's layouts load, and no broken file does more than give an error.

mod every_reader;
mod gguf;
mod hostile;
mod identify;
mod layouts;

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::*;
use crate::{Error, Result};

fn fixture() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/tiny-a")
}

/// Returns the sentence of the error that a call is expected to give.
fn sentence<T>(result: Result<T>) -> String {
    match result {
        Ok(_) => panic!("this should have been refused"),
        Err(Error::Model(text)) => text,
        Err(e) => panic!("not an error about a model: {e:?}"),
    }
}

/// Returns a safetensors file in memory: dtype, shape and bytes of each tensor, in the order of the data.
pub(crate) type Raw = Vec<(String, String, Vec<usize>, Vec<u8>)>;

pub(super) fn load(path: &Path) -> Raw {
    let bytes = fs::read(path).unwrap();
    let data = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let header: BTreeMap<String, Value> = serde_json::from_slice(&bytes[8..data]).unwrap();
    let mut tensors = Vec::new();
    for (name, info) in header.into_iter().filter(|(name, _)| name != "__metadata__") {
        let at = |i: usize| data + info["data_offsets"][i].as_u64().unwrap() as usize;
        let shape = info["shape"].as_array().unwrap().iter().map(|e| e.as_u64().unwrap() as usize).collect();
        tensors.push((name, info["dtype"].as_str().unwrap().to_owned(), shape, bytes[at(0)..at(1)].to_vec()));
    }
    tensors
}

pub(super) fn store(path: &Path, tensors: &Raw) {
    let (mut header, mut data) = (serde_json::Map::new(), Vec::new());
    for (name, dtype, shape, bytes) in tensors {
        let from = data.len();
        data.extend_from_slice(bytes);
        header.insert(
            name.clone(),
            json!({"dtype": dtype, "shape": shape, "data_offsets": [from, data.len()]}),
        );
    }
    let header = Value::Object(header).to_string();
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend_from_slice(header.as_bytes());
    file.extend_from_slice(&data);
    fs::write(path, file).unwrap();
}

pub(super) fn official_dit() -> Raw {
    load(&fixture().join("official/diffusion_pytorch_model.safetensors"))
}

/// Writes an expert of Wan2.2, a transformer without what looks at CLIP's tokens, after a change of its tensors.
pub(crate) fn expert(path: &Path, change: impl FnOnce(&mut Raw)) {
    let mut tensors = official_dit();
    tensors.retain(|(name, ..)| !["img_emb.", "k_img", "v_img"].iter().any(|part| name.contains(part)));
    change(&mut tensors);
    store(path, &tensors);
}

/// Returns a folder with a DiT of these tensors, and the fixture's `config.json`.
fn dit_folder(tensors: &Raw) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    store(&dir.path().join("diffusion_pytorch_model.safetensors"), tensors);
    fs::copy(fixture().join("official/config.json"), dir.path().join("config.json")).unwrap();
    dir
}

fn relative_l2(a: &[f32], b: &[f32]) -> f64 {
    assert_eq!(a.len(), b.len());
    let square = |x: f64| x * x;
    let error: f64 = a.iter().zip(b).map(|(a, b)| square(f64::from(a - b))).sum();
    (error / b.iter().map(|b| square(f64::from(*b))).sum::<f64>()).sqrt()
}

#[test]
fn the_official_folder_loads_with_its_sizes() {
    let model = Model::open(&fixture().join("official"), None).unwrap();
    let (dit, config) = model.dit;
    assert_eq!(
        config,
        DitConfig {
            dim: 256,
            ffn_dim: 512,
            freq_dim: 256,
            in_dim: 36,
            out_dim: 16,
            num_heads: 2,
            num_layers: 3,
            eps: 1e-6,
            text_len: 512,
            text_dim: 64,
            image_dim: Some(160),
            image_positions: None,
        }
    );
    assert_eq!((dit.layout().name(), dit.names().count()), ("official", 119));
    let (t5, config) = model.t5;
    let T5Config { dim, rows, heads, inner, ffn_dim, layers, buckets } = config;
    assert_eq!((dim, rows, heads, inner, ffn_dim, layers, buckets), (64, 1280, 4, 64, 160, 3, 32));
    assert_eq!(t5.encoding("norm.weight"), Some(Encoding::Plain(DType::Bf16)));
    let (clip, config) = model.clip.unwrap();
    let ClipConfig { dim, patch, image_size, heads, mlp_dim, layers } = config;
    assert_eq!((dim, patch, image_size, heads, mlp_dim, layers), (160, 14, 224, 2, 192, 3));
    assert_eq!(clip.encoding("visual.cls_embedding"), Some(Encoding::Plain(DType::F16)));
    assert!(clip.shape("visual.head").is_none() && !clip.names().any(|n| n.starts_with("textual.")));
    let (vae, config) = model.vae;
    assert_eq!((config.base, config.z_dim, config.multipliers), (8, 16, vec![1, 2, 4, 4]));
    assert_eq!((vae.names().count(), vae.encoding("conv1.weight")), (194, Some(Encoding::Plain(DType::F32))));
}

#[test]
fn values_are_those_of_the_file() {
    let (dit, _) = open_dit(&fixture().join("official")).unwrap();
    for (name, dtype, shape, bytes) in official_dit() {
        let tensor = dit.tensor(&name).unwrap();
        let expected: Vec<f32> = match dtype.as_str() {
            "F32" => bytes.chunks(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect(),
            "BF16" => bytes
                .chunks(2)
                .map(|b| f32::from_bits(u32::from(u16::from_le_bytes(b.try_into().unwrap())) << 16))
                .collect(),
            _ => panic!("{dtype}"),
        };
        assert_eq!((tensor.shape, tensor.data), (shape, expected), "{name}");
    }
    let name = "blocks.0.ffn.0.weight";
    let matrix = dit.matrix(name).unwrap();
    assert!(matches!(matrix.bytes, Cow::Borrowed(_)), "a matrix is not copied");
    assert_eq!((matrix.rows, matrix.cols, matrix.encoding), (512, 256, Encoding::Plain(DType::Bf16)));
    assert_eq!(matrix.to_f32(), dit.tensor(name).unwrap().data);
    let patch = dit.matrix("patch_embedding.weight").unwrap();
    assert_eq!((patch.rows, patch.cols), (256, 144));
    assert!(matches!(dit.tensor("nothing"), Err(Error::Internal(_))));
}

/// Writes the official DiT in three files with an index.
fn sharded() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    fs::copy(fixture().join("official/config.json"), dir.path().join("config.json")).unwrap();
    let mut map = serde_json::Map::new();
    for (i, part) in official_dit().chunks(40).enumerate() {
        let file = format!("diffusion_pytorch_model-{:05}-of-00003.safetensors", i + 1);
        store(&dir.path().join(&file), &part.to_vec());
        map.extend(part.iter().map(|(name, ..)| (name.clone(), json!(file))));
    }
    let index = json!({"metadata": {}, "weight_map": map}).to_string();
    fs::write(dir.path().join("diffusion_pytorch_model.safetensors.index.json"), index).unwrap();
    dir
}

#[test]
fn shards_load_with_and_without_their_index() {
    let dir = sharded();
    let (whole, _) = open_dit(&fixture().join("official")).unwrap();
    for step in 0..2 {
        let (parts, _) = open_dit(dir.path()).unwrap();
        for name in whole.names() {
            assert_eq!(parts.tensor(name).unwrap(), whole.tensor(name).unwrap());
        }
        if step == 0 {
            fs::remove_file(dir.path().join("diffusion_pytorch_model.safetensors.index.json")).unwrap();
        }
    }
    fs::remove_file(dir.path().join("diffusion_pytorch_model-00002-of-00003.safetensors")).unwrap();
    let text = sentence(open_dit(dir.path()));
    assert!(text.contains("2 of the 3 files"), "{text}");
}

#[test]
fn one_error_lists_everything_that_is_wrong() {
    let mut tensors = official_dit();
    tensors.retain(|(name, ..)| name != "blocks.1.norm3.bias");
    tensors.push(("blocks.0.surplus".into(), "F32".into(), vec![1], vec![0; 4]));
    for (name, dtype, shape, _) in &mut tensors {
        match name.as_str() {
            "time_embedding.0.weight" => *shape = vec![128, 512],
            "head.head.bias" => (*dtype, *shape) = ("I64".into(), vec![32]),
            "blocks.2.ffn.0.weight" => *shape = vec![256, 512],
            _ => {}
        }
    }
    let dir = dit_folder(&tensors);
    let text = sentence(open_dit(dir.path()));
    for part in [
        "1 missing: `blocks.1.norm3.bias`",
        "1 not of this model: `blocks.0.surplus`",
        "`blocks.2.ffn.0.weight` is [256, 512], not [512, 256]",
        "`time_embedding.0.weight` is [128, 512], not [256, 256]",
        "`head.head.bias` is I64, not F32, F16 or BF16",
        &dir.path().display().to_string(),
    ] {
        assert!(text.contains(part), "no {part:?} in {text}");
    }
}

#[test]
fn a_long_list_is_cut() {
    let mut tensors = official_dit();
    tensors.retain(|(name, ..)| !name.ends_with("bias"));
    let dir = dit_folder(&tensors);
    let text = sentence(open_dit(dir.path()));
    // There are eleven biases outside of the blocks, and thirteen in each of three blocks.
    assert!(text.contains("50 missing: ") && text.contains(" and 30 more"), "{text}");
}

#[test]
fn a_config_that_disagrees_is_an_error() {
    let dir = dit_folder(&official_dit());
    let path = dir.path().join("config.json");
    let config = fs::read_to_string(&path).unwrap();
    fs::write(&path, config.replace("\"num_layers\": 3", "\"num_layers\": 4")).unwrap();
    let text = sentence(open_dit(dir.path()));
    assert!(text.contains("`config.json` says `num_layers` 4, the tensors say 3"), "{text}");
    assert!(text.contains("32 missing"), "{text}");
    fs::write(&path, config.replace("\"text_len\": 512", "\"text_len\": 123456789")).unwrap();
    assert!(sentence(open_dit(dir.path())).contains("`text_len` 123456789"));
    fs::write(&path, &config[..40]).unwrap();
    assert!(sentence(open_dit(dir.path())).contains("config.json"));
    for (model_type, word) in [("t2v", "text-to-video"), ("vace", "vace")] {
        fs::write(&path, config.replace("i2v", model_type)).unwrap();
        let text = sentence(open_dit(dir.path()));
        assert!(text.contains(word), "{text}");
    }
}

#[test]
fn positions_of_two_pictures_make_a_first_and_last_frame_model() {
    let mut flf2v = official_dit();
    flf2v.push(("img_emb.emb_pos".into(), "F32".into(), vec![1, 514, 160], vec![0; 4 * 514 * 160]));
    let (_, config) = open_dit(dit_folder(&flf2v).path()).expect("a supported model");
    assert_eq!(config.image_positions, Some(514));
    let (_, config) = open_dit(dit_folder(&official_dit()).path()).expect("a supported model");
    assert_eq!(config.image_positions, None);
}

#[test]
fn other_models_are_named() {
    let without = |part: &str| {
        let mut tensors = official_dit();
        tensors.retain(|(name, ..)| !name.contains(part));
        tensors
    };
    let mut t2v = without("img");
    let wan22 = t2v.clone();
    for (name, _, shape, bytes) in &mut t2v {
        if name == "patch_embedding.weight" {
            *shape = vec![256, 16, 1, 2, 2];
            bytes.truncate(2 * 256 * 16 * 4);
        }
    }
    let lora = vec![(
        "diffusion_model.blocks.0.self_attn.q.lora_down.weight".into(),
        "F32".into(),
        vec![1],
        vec![0; 4],
    )];
    let diffusers = vec![("condition_embedder.time_proj.bias".into(), "F32".into(), vec![1], vec![0; 4])];
    for (tensors, word) in [
        (t2v, "text-to-video"),
        (wan22, "Wan2.2"),
        (lora, "LoRA"),
        (diffusers, "not a Wan transformer"),
        (vec![("x".into(), "F32".into(), vec![1], vec![0; 4])], "not a Wan transformer"),
    ] {
        let text = sentence(open_dit(dit_folder(&tensors).path()));
        assert!(text.contains(word), "{text}");
    }
    let dir = tempfile::tempdir().unwrap();
    assert!(sentence(Model::open(dir.path(), None)).contains("is empty"));
    assert!(
        sentence(Model::open(&dir.path().join("gone"), None)).contains("does not exist; mount its disk, or")
    );
    fs::create_dir(dir.path().join("transformer")).unwrap();
    assert!(sentence(Model::open(dir.path(), None)).contains("diffusers"));
    assert!(
        sentence(open_vae(&fixture().join("official/models_t5_umt5-xxl-enc-bf16.pth"))).contains("is a umT5")
    );
}

/// Returns a copy of the fixture's official folder.
fn copy_official() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir_all(dir.path().join("google/umt5-xxl")).unwrap();
    for name in fs::read_dir(fixture().join("official")).unwrap().map(|e| e.unwrap()) {
        if name.path().is_file() {
            fs::copy(name.path(), dir.path().join(name.file_name())).unwrap();
        }
    }
    let tokenizer = "google/umt5-xxl/tokenizer.json";
    fs::copy(fixture().join("official").join(tokenizer), dir.path().join(tokenizer)).unwrap();
    dir
}

#[test]
fn everything_missing_of_a_folder_is_said_at_once() {
    let dir = copy_official();
    assert!(Model::open(dir.path(), None).is_ok());
    for name in ["Wan2.1_VAE.pth", "google/umt5-xxl/tokenizer.json", "models_t5_umt5-xxl-enc-bf16.pth"] {
        fs::remove_file(dir.path().join(name)).unwrap();
    }
    let text = sentence(Model::open(dir.path(), None));
    for part in ["Wan2.1_VAE.pth", "tokenizer.json", "models_t5_umt5-xxl-enc-bf16.pth"] {
        assert!(text.contains(part), "{text}");
    }
    let dir = copy_official();
    fs::remove_file(dir.path().join("diffusion_pytorch_model.safetensors")).unwrap();
    let text = sentence(Model::open(dir.path(), None));
    assert!(text.contains("no transformer"), "{text}");
    let elsewhere = fixture().join("lightx2v_fp8");
    assert_eq!(Model::open(dir.path(), Some(&elsewhere)).unwrap().dit.0.layout().name(), "lightx2v-fp8");
}

#[test]
fn a_tree_of_comfyui_with_one_model_of_each_kind_is_a_model() {
    let dir = tempfile::tempdir().unwrap();
    let put = |from: &str, to: &str| {
        let to = dir.path().join(to);
        fs::create_dir_all(to.parent().unwrap()).unwrap();
        fs::copy(fixture().join(from), to).unwrap();
    };
    put("comfy_fp8/wan2.1_i2v_tiny_fp8_scaled.safetensors", "models/diffusion_models/a.safetensors");
    put("official/models_t5_umt5-xxl-enc-bf16.pth", "models/text_encoders/b.pth");
    put("official/models_clip_open-clip-xlm-roberta-large-vit-huge-14.pth", "models/clip_vision/c.pth");
    put("official/Wan2.1_VAE.pth", "models/vae/d.pth");
    put("official/google/umt5-xxl/tokenizer.json", "tokenizer/tokenizer.json");
    fs::write(dir.path().join("models/vae/put_vae_here"), "").unwrap();
    let model = Model::open(dir.path(), None).unwrap();
    assert_eq!(model.dit.0.layout().name(), "comfy-fp8");
    assert_eq!(model.tokenizer, dir.path().join("tokenizer/tokenizer.json"));
    put("official/diffusion_pytorch_model.safetensors", "models/diffusion_models/e.safetensors");
    let text = sentence(Model::open(dir.path(), None));
    assert!(text.contains("both hold a") && text.contains("name the file"), "{text}");
}

#[test]
fn a_model_file_names_parts_that_lie_in_many_places() {
    let dir = tempfile::tempdir().unwrap();
    let official = fs::canonicalize(fixture().join("official")).unwrap();
    let write = |parts: &str| {
        let path = dir.path().join("model.toml");
        fs::write(&path, format!("name = \"tiny\"\n[parts]\n{parts}")).unwrap();
        path
    };
    let encoders = format!(
        "text = {:?}\nvae = {:?}\n",
        official.join("models_t5_umt5-xxl-enc-bf16.pth"),
        official.join("Wan2.1_VAE.pth")
    );
    let rest = format!("{encoders}clip = {official:?}\n");
    let dit = fs::canonicalize(fixture().join("lightx2v_fp8")).unwrap();
    let whole = write(&format!("dit = {dit:?}\n{rest}"));
    for path in [&whole, dir.path()] {
        let model = Model::open(path, None).unwrap();
        assert_eq!(model.dit.0.layout().name(), "lightx2v-fp8");
        assert_eq!(model.tokenizer, official.join("google/umt5-xxl/tokenizer.json"));
    }
    assert_eq!(Model::open(&whole, Some(&official)).unwrap().dit.0.layout().name(), "official");
    for (parts, said) in [
        (format!("dit = {dit:?}\n{encoders}"), "names no `clip` in [parts]"),
        (
            format!("high_noise = {dit:?}\nlow_noise = {dit:?}\n{rest}"),
            "not one of Wan2.2's two transformers",
        ),
        (format!("dit = \"/gone\"\n{rest}"), "`/gone`"),
        (format!("dit = {official:?}\n{rest}[[lora]]\nfile = \"/l\"\n"), "`/l`"),
        (
            format!("dit = {official:?}\n{rest}[[lora]]\nfile = \"/l\"\nexpert = \"low_noise\"\n"),
            "its model has one transformer; leave `expert` out",
        ),
        (format!("dit = {official:?}\n"), "line 2: `vae` is missing in [parts]"),
    ] {
        let sentence = Model::open(&write(&parts), None).err().unwrap().to_string();
        assert!(sentence.contains(said), "{sentence}");
    }
    let gone = sentence(Model::open(&dir.path().join("gone.toml"), None));
    assert!(gone.contains("gone.toml") && gone.contains("cannot read"), "{gone}");
}

#[test]
fn a_snapshot_has_the_name_of_its_repository() {
    let dir = tempfile::tempdir().unwrap();
    let repository = dir.path().join("models--Wan-AI--Wan2.1-I2V-14B-480P");
    let snapshot = repository.join("snapshots/6f1b24a0c5d7e8b9");
    fs::create_dir_all(&snapshot).unwrap();
    for path in [&repository, &snapshot] {
        assert_eq!(title(path), "Wan2.1-I2V-14B-480P");
    }
    assert_eq!(title(&dir.path().join("wan.gguf")), "wan.gguf");
}

/// Cuts a file at many lengths; none of the cut files may load, and each error must name the file.
fn cut_everywhere(path: &Path, open: impl Fn() -> Option<String>) {
    let whole = fs::read(path).unwrap();
    let steps = (0..64).chain((1..40).map(|i| whole.len() * i / 40)).chain((1..200).map(|i| whole.len() - i));
    let name = path.file_name().unwrap().to_str().unwrap();
    for length in steps {
        fs::write(path, &whole[..length]).unwrap();
        let text = open().unwrap_or_else(|| panic!("{length} of {} bytes of {name} loaded", whole.len()));
        assert!(text.contains(name), "{text}");
    }
    fs::write(path, &whole).unwrap();
    assert_eq!(open(), None);
}

#[test]
fn half_copied_files_are_refused() {
    let dir = copy_official();
    let root = dir.path();
    let (dit, vae) = (root.join("diffusion_pytorch_model.safetensors"), root.join("Wan2.1_VAE.pth"));
    cut_everywhere(&dit, || open_dit(root).err().map(|e| e.to_string()));
    cut_everywhere(&vae, || open_vae(&vae).err().map(|e| e.to_string()));
    assert!(sentence(open_dit(&root.join("config.json"))).contains("config.json"));
}

/// Flips bytes of a file's metadata; it may still load, but must not panic.
#[test]
fn damaged_files_do_not_panic() {
    let dir = copy_official();
    let root = dir.path();
    let clip = root.join("models_clip_open-clip-xlm-roberta-large-vit-huge-14.pth");
    let dit = root.join("diffusion_pytorch_model.safetensors");
    let mut refused = 0;
    for (path, is_dit) in [(&clip, false), (&dit, true)] {
        let whole = fs::read(path).unwrap();
        let file = fs::OpenOptions::new().write(true).open(path).unwrap();
        // The header or the pickle is at the beginning, the zip directory at the end.
        let places = (0..8000).step_by(7).chain((1..4000).step_by(7).map(|i| whole.len() - i));
        for (n, place) in places.enumerate() {
            file.write_all_at(&[whole[place] ^ 1 << (n % 8)], place as u64).unwrap();
            let result =
                if is_dit { open_dit(root).map(|(w, _)| w) } else { open_clip(path).map(|(w, _)| w) };
            match result {
                Ok(weights) if n % 50 == 0 => {
                    weights.names().for_each(|name| assert!(!weights.tensor(name).unwrap().data.is_empty()));
                }
                Ok(_) => {}
                Err(e) => {
                    refused += 1;
                    assert!(matches!(e, Error::Model(_)), "{e:?}");
                }
            }
            file.write_all_at(&whole[place..=place], place as u64).unwrap();
        }
    }
    assert!(refused > 500, "{refused}");
}

#[test]
fn other_files_are_told_by_their_content() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("diffusion_pytorch_model.safetensors");
    for (content, word) in [
        (&b""[..], "is empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
        (b"<!DOCTYPE html><html></html>", "web page"),
        (b"GGUF\x03\0\0\0", "GGUF"),
        (b"\x80\x02}q\0.", "before version 1.6"),
        (b"\xff\xff\xff\xff\xff\xff\xff\x7f{}", "claims"),
        (b"\x02\0\0\0\0\0\0\0{}", "not a Wan transformer"),
        (b"\x02\0\0\0\0\0\0\0[]", "not JSON"),
    ] {
        fs::write(&path, content).unwrap();
        let text = sentence(open_dit(dir.path()));
        assert!(text.contains(word), "{text}");
    }
    // A header with wrong sizes must not make the reader allocate memory for them.
    let huge = r#"{"a":{"dtype":"F32","shape":[4611686018427387904,4],"data_offsets":[0,0]}}"#;
    let mut file = (huge.len() as u64).to_le_bytes().to_vec();
    file.extend_from_slice(huge.as_bytes());
    fs::write(&path, file).unwrap();
    assert!(sentence(open_dit(dir.path())).contains("gives `a`"));
}

#[test]
fn an_index_speaks_of_its_own_folder_only() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("diffusion_pytorch_model.safetensors.index.json");
    for (index, word) in [
        (json!({"weight_map": {"a": "../../etc/passwd"}}), "not the name of a file"),
        (json!({"weight_map": {"a": ".."}}), "not the name of a file"),
        (json!({"weight_map": {}}), "names no file"),
        (json!({"weight_map": 3}), "not an index"),
        (json!({"weight_map": {"a": "gone.safetensors"}}), "1 of the 1 files"),
    ] {
        fs::write(&path, index.to_string()).unwrap();
        let text = sentence(open_dit(dir.path()));
        assert!(text.contains(word), "{text}");
    }
}
