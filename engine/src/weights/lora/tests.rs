//! Every way of naming gives the same merged model, and what does not fit is refused.

use std::fs;
use std::path::{Path, PathBuf};

use animd_protocol::profile::Precision;
use serde_json::{Map, Value, json};

use super::*;
use crate::weights::{DitConfig, WeightSource, Weights, names, open_dit};

fn base() -> (Weights, DitConfig) {
    open_dit(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/tiny-a/official")).unwrap()
}

const LAYER: &str = "blocks.1.cross_attn.k_img";
const RANK: usize = 3;

/// Returns a value that differs for each place.
fn value(i: usize, salt: usize) -> f32 {
    ((i * 37 + salt * 11) % 23) as f32 / 64.0 - 0.17
}

/// Writes a file of these tensors, with this metadata.
fn file(folder: &Path, tensors: &[(String, Vec<usize>, Vec<f32>)], metadata: Value) -> PathBuf {
    let (mut header, mut data) = (Map::new(), Vec::new());
    header.insert("__metadata__".to_owned(), metadata);
    for (name, shape, values) in tensors {
        let from = data.len();
        data.extend(values.iter().flat_map(|v| v.to_le_bytes()));
        let info = json!({"dtype": "F32", "shape": shape, "data_offsets": [from, data.len()]});
        header.insert(name.clone(), info);
    }
    let header = Value::Object(header).to_string();
    let path = folder.join("adapter.safetensors");
    fs::write(&path, [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &data].concat()).unwrap();
    path
}

/// Returns the pair of matrices of a layer under names with these endings.
fn pair(layer: &str, [down, up]: [&str; 2], width: usize) -> Vec<(String, Vec<usize>, Vec<f32>)> {
    let values = |salt| (0..RANK * width).map(|i| value(i, salt)).collect();
    vec![
        (format!("{layer}{down}"), vec![RANK, width], values(1)),
        (format!("{layer}{up}"), vec![width, RANK], values(2)),
    ]
}

/// Returns the merged values of the layer: what is stored plus the scaled product.
fn expected(scale: f32) -> Vec<f32> {
    let stored = base().0.tensor(&format!("{LAYER}.weight")).unwrap().data;
    let product = |i: usize| {
        let (row, col) = (i / 256, i % 256);
        (0..RANK)
            .map(|r| f64::from(value(row * RANK + r, 2)) * f64::from(value(r * 256 + col, 1)))
            .sum::<f64>()
    };
    stored.iter().enumerate().map(|(i, v)| v + scale * product(i) as f32).collect()
}

fn near(a: &[f32], b: &[f32]) {
    assert_eq!(a.len(), b.len());
    for (a, b) in a.iter().zip(b) {
        // Three products of at most 0.04 each, and a sum of at most 2, are each rounded to 24 bits.
        assert!((a - b).abs() <= 4e-7, "{a} is not {b}");
    }
}

fn merged(path: &Path, strength: f32) -> Merged<Weights> {
    let (weights, config) = base();
    Merged::new(weights, vec![(Lora::open(path, &config).unwrap(), strength)])
}

const PEFT: [&str; 2] = [".lora_A.weight", ".lora_B.weight"];
const KOHYA: [&str; 2] = [".lora_down.weight", ".lora_up.weight"];

#[test]
fn every_way_of_naming_is_read() {
    let underscored = LAYER.replace('.', "_");
    for (name, endings) in [
        (LAYER.to_owned(), PEFT),
        (format!("diffusion_model.{LAYER}"), KOHYA),
        (format!("model.diffusion_model.{LAYER}"), PEFT),
        (format!("base_model.model.{LAYER}"), PEFT),
        (format!("pipe.dit.{LAYER}"), [".lora_A.default.weight", ".lora_B.default.weight"]),
        ("transformer.blocks.1.attn2.add_k_proj".to_owned(), PEFT),
        (format!("lora_unet_{underscored}"), KOHYA),
        (format!("lora_unet__{underscored}"), KOHYA),
        (format!("lycoris_{underscored}"), KOHYA),
        ("lycoris_blocks_1_attn2_add_k_proj".to_owned(), KOHYA),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let path = file(dir.path(), &pair(&name, endings, 256), json!({}));
        let merged = merged(&path, 0.5);
        let weight = format!("{LAYER}.weight");
        near(&merged.matrix(&weight).unwrap().to_f32(), &expected(0.5));
        near(&merged.tensor(&weight).unwrap().data, &expected(0.5));
        // Everything else is handed through as it is stored.
        let other = merged.matrix("blocks.0.ffn.0.weight").unwrap();
        assert!(matches!(other.bytes, std::borrow::Cow::Borrowed(_)), "{name}");
    }
}

#[test]
fn each_layer_of_the_model_has_names_of_its_own() {
    let model = animd_protocol::dims::schema::dit(&base().1);
    let layers = keys::Layers::of(&model);
    for expected in model.iter().filter(|e| e.name.ends_with(".weight")) {
        let layer = expected.name.trim_end_matches(".weight");
        for name in [layer.to_owned(), names::dit_in_diffusers(layer)] {
            for name in [name.replace('.', "_"), name] {
                let key = layers.key(&format!("lora_unet_{name}.lora_down.weight"));
                assert_eq!(key.map(|key| key.tensor), Some(expected.name.clone()), "{name}");
            }
        }
    }
}

#[test]
fn an_alpha_and_a_configuration_scale() {
    let metadata = |alpha: f64, more: &str| {
        let text = format!(r#"{{"transformer.r": 3, "transformer.lora_alpha": {alpha}{more}}}"#);
        json!({"lora_adapter_metadata": text})
    };
    let rank_stable = r#", "transformer.use_rslora": true"#;
    let pattern = r#", "transformer.alpha_pattern": {"k_img": 9}"#;
    for (alpha, metadata, scale) in [
        (None, json!({}), 1.0),
        (Some(1.5), json!({}), 0.5),
        (None, metadata(6.0, ""), 2.0),
        (None, metadata(3.0, rank_stable), 3.0f32.sqrt()),
        (None, metadata(6.0, pattern), 3.0),
        (Some(1.5), metadata(6.0, ""), 0.5),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let mut tensors = pair(LAYER, PEFT, 256);
        tensors.extend(alpha.map(|alpha| (format!("{LAYER}.alpha"), vec![], vec![alpha])));
        let path = file(dir.path(), &tensors, metadata);
        near(&merged(&path, 1.0).tensor(&format!("{LAYER}.weight")).unwrap().data, &expected(scale));
    }
    let dir = tempfile::tempdir().unwrap();
    let path = file(dir.path(), &pair(LAYER, PEFT, 256), json!({}));
    let beside = dir.path().join("adapter_config.json");
    fs::write(&beside, r#"{"peft_type": "LORA", "r": 3, "lora_alpha": 6, "use_rslora": false}"#).unwrap();
    near(&merged(&path, 1.0).tensor(&format!("{LAYER}.weight")).unwrap().data, &expected(2.0));
}

#[test]
fn differences_are_added_whole_and_several_loras_add_up() {
    let dir = tempfile::tempdir().unwrap();
    let ones = |n| vec![1.0; n];
    let tensors = [
        ("diffusion_model.head.head.diff".to_owned(), vec![64, 256], ones(64 * 256)),
        ("diffusion_model.head.head.diff_b".to_owned(), vec![64], ones(64)),
        ("diffusion_model.blocks.0.diff_m".to_owned(), vec![1, 6, 256], ones(6 * 256)),
        ("diffusion_model.blocks.1.modulation.diff".to_owned(), vec![1, 6, 256], ones(6 * 256)),
        ("diffusion_model.blocks.0.norm3.diff".to_owned(), vec![256], ones(256)),
        ("diffusion_model.patch_embedding.diff".to_owned(), vec![256, 36, 1, 2, 2], ones(256 * 144)),
    ];
    let path = file(dir.path(), &tensors, json!({}));
    let (original, config) = base();
    let open = || Lora::open(&path, &config).unwrap();
    assert_eq!(open().names().count(), 6);
    let merged = Merged::new(base().0, vec![(open(), 0.25), (open(), 0.5), (open(), 0.0)]);
    for name in [
        "head.head.weight",
        "head.head.bias",
        "blocks.0.modulation",
        "blocks.1.modulation",
        "blocks.0.norm3.weight",
        "patch_embedding.weight",
    ] {
        let before = original.tensor(name).unwrap();
        let after = merged.tensor(name).unwrap();
        assert_eq!(after.shape, before.shape);
        let expected: Vec<f32> = before.data.iter().map(|v| v + 0.25 + 0.5).collect();
        near(&after.data, &expected);
    }
    assert_eq!(
        merged.tensor("blocks.0.norm3.bias").unwrap(),
        original.tensor("blocks.0.norm3.bias").unwrap()
    );
}

#[test]
fn what_does_not_fit_is_refused_in_words() {
    let one = |name: &str, shape: &[usize]| {
        vec![(name.to_owned(), shape.to_vec(), vec![0.0; shape.iter().product::<usize>()])]
    };
    let with = |more: Vec<(String, Vec<usize>, Vec<f32>)>| [pair(LAYER, PEFT, 256), more].concat();
    for (tensors, text) in [
        (pair(LAYER, PEFT, 128), "where the model has [256, 256]: it is for another one"),
        (pair("transformer.single_transformer_blocks.0.attn.to_q", PEFT, 64), "has no layer of this model"),
        (
            with(pair("blocks.7.self_attn.q", PEFT, 256)),
            "has tensors for layers that this model does not have",
        ),
        (with(one("blocks.0.self_attn.q.lora_A.weight", &[3, 256])), "without the second (B, up)"),
        (with(one("blocks.0.self_attn.q.lora_B.weight", &[256, 3])), "without the first (A, down)"),
        (with(one("blocks.0.self_attn.q.alpha", &[])), "an alpha of `blocks.0.self_attn.q.weight` without"),
        (with(one("blocks.0.ffn.0.diff_b", &[3])), "changes `blocks.0.ffn.0.bias` by [3]"),
        (with(pair(&format!("diffusion_model.{LAYER}"), KOHYA, 256)), "has two changes of one kind"),
        (with(one(&format!("{LAYER}.dora_scale"), &[256, 1])), "is DoRA, which animd does not read"),
        (with(one("lora_unet_x.hada_w1_a", &[1])), "is LoHa"),
        (with(one("lycoris_x.lokr_w1", &[1])), "is LoKr"),
        (with(one("x.oft_blocks", &[1])), "is OFT"),
        (Vec::new(), "has no tensors"),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let path = file(dir.path(), &tensors, json!({}));
        let error = Lora::open(&path, &base().1).err().expect("refused").to_string();
        assert!(error.contains(text) && error.contains("adapter.safetensors"), "no {text:?} in {error}");
    }
}

#[test]
fn values_that_are_not_finite_are_noticed() {
    let dir = tempfile::tempdir().unwrap();
    let mut tensors = pair(LAYER, PEFT, 256);
    tensors[0].2[5] = f32::NAN;
    let path = file(dir.path(), &tensors, json!({}));
    let error = merged(&path, 1.0).matrix(&format!("{LAYER}.weight")).unwrap_err().to_string();
    assert!(error.contains(LAYER) && error.contains("NaN"), "{error}");
}

#[test]
fn a_file_says_which_transformer_it_is_for() {
    let base = base().1;
    let range = |range: &str| json!({"modelspec.timestep_range": range});
    for (folder, metadata, expert) in [
        ("x", range("900,1000"), Some(ExpertName::HighNoise)),
        ("x", range("0, 875"), Some(ExpertName::LowNoise)),
        ("x", range("0,1000"), None),
        ("x", range("many"), None),
        ("x", json!({}), None),
        ("wan_high_noise", json!({}), Some(ExpertName::HighNoise)),
        ("LowNoise", json!({}), Some(ExpertName::LowNoise)),
        // What the trainer has written says more than a name.
        ("wan_high_noise", range("0,900"), Some(ExpertName::LowNoise)),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join(folder);
        fs::create_dir(&folder).unwrap();
        let path = file(&folder, &pair(LAYER, PEFT, 256), metadata);
        assert_eq!(Lora::open(&path, &base).unwrap().expert, expert, "{}", path.display());
    }
}

#[test]
fn what_rounding_once_more_costs_is_known() {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/tiny-a");
    let dir = tempfile::tempdir().unwrap();
    let path = file(dir.path(), &pair(LAYER, PEFT, 256), json!({}));
    let cost = |folder: &str, precision| {
        let (weights, config) = open_dit(&fixtures.join(folder)).unwrap();
        let lora = Lora::open(&path, &config).unwrap();
        Merged::new(weights, vec![(lora, 0.5)]).rounded_again(precision).unwrap()
    };
    let fp8 = cost("lightx2v_fp8", Precision::Fp8).unwrap();
    assert_eq!(fp8.name, format!("{LAYER}.weight"));
    // Three bits of mantissa err by 2^-4 of a value at most, evenly spread, and by at least half of that on average.
    assert!((0.018..0.0361).contains(&fp8.error), "{fp8:?}");
    // Units of 1/127 of the largest of 256 rotated values, which is 2 to 5 deviations, evenly spread.
    let int8 = cost("lightx2v_fp8", Precision::Int8).unwrap();
    assert!((2.0 / 127.0 / 3.47..5.0 / 127.0 / 3.46).contains(&int8.error), "{int8:?}");
    assert_eq!(cost("lightx2v_fp8", Precision::Bf16), None);
    assert_eq!(cost("official", Precision::Fp8), None);
}
