//! Every way of naming gives the same merged model, and what does not fit is refused.

use std::fs;
use std::path::{Path, PathBuf};

use animd_protocol::profile::Precision;
use serde_json::{Map, Value, json};

use super::scale::Scaling;
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
        (
            with(one(&format!("{LAYER}.dora_scale"), &[255, 1])),
            "the lengths [255, 1], where the model has [256, 256]",
        ),
        (one(&format!("{LAYER}.dora_scale"), &[256, 1]), "has lengths of the rows or columns"),
        (one(&format!("{LAYER}.hada_w1_a"), &[256, 2]), "lacks a part of the change"),
        (one(&format!("{LAYER}.lokr_w1"), &[2, 2]), "lacks a part of the change"),
        (
            [one(&format!("{LAYER}.lokr_w1"), &[2, 2]), one(&format!("{LAYER}.lokr_w2"), &[128, 64])]
                .concat(),
            "by [[2, 2]] with [[128, 64]], where the model has [256, 256]",
        ),
        (
            with(
                [one(&format!("{LAYER}.lokr_w1"), &[2, 2]), one(&format!("{LAYER}.lokr_w2"), &[128, 128])]
                    .concat(),
            ),
            "in two ways at once",
        ),
        (with(one("lora_unet_x.hada_t1", &[1])), "is a LoHa of convolutions"),
        (with(one("lycoris_x.lokr_t2", &[1])), "is a LoKr of convolutions"),
        (
            with(one("x.oft_blocks", &[1])),
            "is OFT, which animd does not read; it reads LoRA, LoHa, LoKr and DoRA",
        ),
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

/// A tensor of a file: its name's ending, its shape and its values.
type Piece = (&'static str, [usize; 2], Vec<f32>);

fn piece(ending: &'static str, shape: [usize; 2], salt: usize) -> Piece {
    (ending, shape, (0..shape[0] * shape[1]).map(|i| value(i, salt)).collect())
}

/// Returns the product of two pieces in f64.
fn times((_, [rows, rank], left): &Piece, (_, [_, cols], right): &Piece) -> Vec<f64> {
    let at = |values: &[f32], i: usize| f64::from(values[i]);
    let one =
        |i: usize| (0..*rank).map(|r| at(left, i / cols * rank + r) * at(right, r * cols + i % cols)).sum();
    (0..rows * cols).map(one).collect()
}

/// Returns the Kronecker product of two matrices with so many columns, whose rows are `height` in the second one.
fn kronecker(first: &[f64], blocks: usize, second: &[f64], width: usize) -> Vec<f64> {
    let height = second.len() / width;
    let cols = blocks * width;
    let rows = first.len() / blocks * height;
    let one = |i: usize| {
        let (row, col) = (i / cols, i % cols);
        first[row / height * blocks + col / width] * second[row % height * width + col % width]
    };
    (0..rows * cols).map(one).collect()
}

/// Writes a file with these pieces for [`LAYER`], and returns the merged weight of it.
fn merged_with(pieces: &[Piece], alpha: Option<f32>, strength: f32, prefix: &str) -> Vec<f32> {
    let dir = tempfile::tempdir().unwrap();
    let named =
        |(ending, shape, values): &Piece| (format!("{prefix}{ending}"), shape.to_vec(), values.clone());
    let mut tensors: Vec<_> = pieces.iter().map(named).collect();
    tensors.extend(alpha.map(|alpha| (format!("{prefix}.alpha"), vec![], vec![alpha])));
    let path = file(dir.path(), &tensors, json!({}));
    let merged = merged(&path, strength);
    let weight = format!("{LAYER}.weight");
    let values = merged.tensor(&weight).unwrap().data;
    assert_eq!(merged.matrix(&weight).unwrap().to_f32(), values);
    // Where it is no product of two matrices, it is given as the changed weight.
    let (matrix, products) = merged.with_products(&weight).unwrap();
    let is_low_rank = pieces.len() == 2 && pieces[0].0.contains("lora");
    assert_eq!((products.len(), matrix.to_f32() == values), (usize::from(is_low_rank), !is_low_rank));
    values
}

/// Compares with what is stored plus a difference in f64, each value of which is rounded so many times to 24 bits.
#[track_caller]
fn adds_up(merged: &[f32], difference: &[f64], scale: f64, roundings: f64) {
    let stored = base().0.tensor(&format!("{LAYER}.weight")).unwrap().data;
    let largest = difference.iter().fold(0.0f64, |most, d| most.max((scale * d).abs()));
    assert!(largest > 1e-5, "the change is too small to be seen");
    for ((merged, stored), difference) in merged.iter().zip(stored).zip(difference) {
        let exact = f64::from(stored) + scale * difference;
        let bound = (roundings * largest + exact.abs()) * f64::from(f32::EPSILON);
        assert!((f64::from(*merged) - exact).abs() <= bound, "{merged} is not {exact}, within {bound}");
    }
}

#[test]
fn lohas_are_products_element_by_element() {
    let hada = |rank| {
        [
            piece(".hada_w1_a", [256, rank], 1),
            piece(".hada_w1_b", [rank, 256], 2),
            piece(".hada_w2_a", [256, rank], 3),
            piece(".hada_w2_b", [rank, 256], 4),
        ]
    };
    for (prefix, rank, alpha, scale) in [
        (LAYER.to_owned(), 5, None, 1.0),
        (format!("lycoris_{}", LAYER.replace('.', "_")), 4, Some(2.0), 0.5),
        (format!("diffusion_model.{LAYER}"), 1, Some(3.0), 3.0),
    ] {
        let pieces = hada(rank);
        let [first, second] = [times(&pieces[0], &pieces[1]), times(&pieces[2], &pieces[3])];
        let difference: Vec<f64> = first.iter().zip(&second).map(|(a, b)| a * b).collect();
        let merged = merged_with(&pieces, alpha, 0.75, &prefix);
        // Two sums of at most five products each, whose terms are no larger than twice the largest sum, and four more products.
        adds_up(&merged, &difference, 0.75 * scale, 4.0 * (2.0 * rank as f64 + 4.0));
    }
}

#[test]
fn lokrs_are_kronecker_products() {
    /// The pieces of a file, the two matrices that they make, and their scale.
    type Case = (Vec<Piece>, Vec<f64>, Vec<f64>, f64);

    let whole = |piece: &Piece| piece.2.iter().map(|value| f64::from(*value)).collect::<Vec<f64>>();
    let (first, second) = (piece(".lokr_w1", [8, 4], 1), piece(".lokr_w2", [32, 64], 2));
    let pair1 = [piece(".lokr_w1_a", [8, 2], 3), piece(".lokr_w1_b", [2, 4], 4)];
    let pair2 = [piece(".lokr_w2_a", [32, 3], 5), piece(".lokr_w2_b", [3, 64], 6)];
    let cases: [Case; 4] = [
        // Matrices that are no products have no scale, whatever the alpha is.
        (vec![first.clone(), second.clone()], whole(&first), whole(&second), 1.0),
        (
            vec![first.clone(), pair2[0].clone(), pair2[1].clone()],
            whole(&first),
            times(&pair2[0], &pair2[1]),
            6.0 / 3.0,
        ),
        (
            vec![pair1[0].clone(), pair1[1].clone(), second.clone()],
            times(&pair1[0], &pair1[1]),
            whole(&second),
            6.0 / 2.0,
        ),
        (
            [pair1.clone(), pair2.clone()].concat(),
            times(&pair1[0], &pair1[1]),
            times(&pair2[0], &pair2[1]),
            6.0 / 3.0,
        ),
    ];
    for (pieces, first, second, scale) in cases {
        let merged = merged_with(&pieces, Some(6.0), -0.5, &format!("lycoris_{}", LAYER.replace('.', "_")));
        // Sums of two and three products, and three more products.
        adds_up(&merged, &kronecker(&first, 4, &second, 64), -0.5 * scale, 32.0);
    }
}

/// PEFT has no alpha beside a `LoKr`'s tensors, and scales whole matrices, too: by its configuration alone.
#[test]
fn lokrs_of_peft_have_the_scale_of_their_configuration() {
    let configured = |text: &str, layer: &str, alpha, rank| {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("adapter_config.json"), text).unwrap();
        Scaling::read(&dir.path().join("adapter_model.safetensors"), None)
            .unwrap()
            .of_kronecker(layer, alpha, rank)
    };
    let lokr = r#"{"peft_type": "LOKR", "r": 16, "alpha": 32, "alpha_pattern": {"blocks.1.ffn.0": 8}}"#;
    assert_eq!(configured(lokr, LAYER, None, Some(4)), 2.0);
    assert_eq!(configured(lokr, LAYER, None, None), 2.0);
    assert_eq!(configured(lokr, "blocks.1.ffn.0", None, Some(4)), 0.5);
    // A tensor outranks the configuration, and that of a LoRA is about something else.
    assert_eq!(configured(lokr, LAYER, Some(6.0), Some(4)), 1.5);
    let lora = r#"{"peft_type": "LORA", "r": 16, "lora_alpha": 32}"#;
    assert_eq!(configured(lora, LAYER, None, Some(4)), 1.0);
}

#[test]
fn doras_have_the_lengths_that_were_trained() {
    let stored = base().0.tensor(&format!("{LAYER}.weight")).unwrap().data;
    let matrices = [piece(".lora_down.weight", [RANK, 256], 1), piece(".lora_up.weight", [256, RANK], 2)];
    let product = times(&matrices[1], &matrices[0]);
    let lengths: Vec<f32> = (0..256).map(|i| 0.5 + (i % 7) as f32 / 4.0).collect();
    for (ending, shape, of_rows, strength) in [
        (".dora_scale", [256, 1], true, 1.0),
        (".dora_scale", [1, 256], false, 1.0),
        (".lora_magnitude_vector.weight", [256, 1], true, 0.25),
    ] {
        let pieces = [&matrices[..], &[(ending, shape, lengths.clone())]].concat();
        let merged = merged_with(&pieces, Some(1.5), strength, LAYER);
        let changed: Vec<f64> = stored.iter().zip(&product).map(|(w, p)| f64::from(*w) + 0.5 * p).collect();
        let line = |i: usize| if of_rows { i / 256 } else { i % 256 };
        let mut squares = vec![0.0; 256];
        changed.iter().enumerate().for_each(|(i, value)| squares[line(i)] += value * value);
        let difference: Vec<f64> = (0..changed.len())
            .map(|i| {
                changed[i] * f64::from(lengths[line(i)]) / squares[line(i)].sqrt() - f64::from(stored[i])
            })
            .collect();
        // The changed value, its factor, their product and the difference are each rounded once.
        adds_up(&merged, &difference, f64::from(strength), 16.0);
    }
    // The configuration says that there are lengths.
    let dir = tempfile::tempdir().unwrap();
    let path = file(dir.path(), &pair(LAYER, PEFT, 256), json!({}));
    fs::write(dir.path().join("adapter_config.json"), r#"{"peft_type": "LORA", "r": 3, "use_dora": true}"#)
        .unwrap();
    let error = Lora::open(&path, &base().1).err().expect("refused").to_string();
    assert!(error.contains("is DoRA by its configuration"), "{error}");
}

#[test]
fn rows_without_values_keep_no_length() {
    // A row of zeros has no direction, and stays what it is instead of becoming no number.
    let lengths: Vec<u8> = [2.0f32, 3.0].iter().flat_map(|length| length.to_le_bytes()).collect();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.safetensors");
    let header = r#"{"m":{"dtype":"F32","shape":[2,1],"data_offsets":[0,8]}}"#;
    fs::write(&path, [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &lengths].concat())
        .unwrap();
    let stored = crate::weights::container::read_file(&path).unwrap().tensors.remove("m").unwrap();
    let magnitude = Magnitude::new(stored, &[2, 3]).ok().expect("one for each row");
    let mut values = [0.0, 0.0, 0.0, 0.0, 4.0, 3.0];
    magnitude.give_to(&mut values, 3).unwrap();
    near(&values, &[0.0, 0.0, 0.0, 0.0, 2.4, 1.8]);
}
