//! Each layout is told from all others, and its files hold the expected model.

use super::*;
use crate::weights::stored::Tensors;
use crate::weights::{container, layouts};

const COMFY: &str = "comfy_fp8/wan2.1_i2v_tiny_fp8_scaled.safetensors";

fn comfy() -> Raw {
    load(&fixture().join(COMFY))
}

fn lightx2v() -> Raw {
    let parts = ["block_0", "block_1", "block_2", "non_block"];
    parts.iter().flat_map(|name| load(&fixture().join(format!("lightx2v_fp8/{name}.safetensors")))).collect()
}

/// Returns a file of these tensors whose name says nothing.
fn file(tensors: &Raw) -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("anything.safetensors");
    store(&path, tensors);
    (dir, path)
}

fn refusal(tensors: &Raw) -> String {
    sentence(open_dit(&file(tensors).1))
}

/// Returns the tensors of a file, without the prefixes of their names.
fn contents(tensors: &Raw) -> Tensors {
    let (_dir, path) = file(tensors);
    layouts::without_prefix(container::read_files(&[path]).unwrap()).unwrap()
}

fn f32s(name: &str, shape: &[usize]) -> (String, String, Vec<usize>, Vec<u8>) {
    (name.into(), "F32".into(), shape.to_vec(), vec![0; 4 * shape.iter().product::<usize>()])
}

/// Returns the tensors with one type replaced by another one of the same size.
fn retyped(tensors: Raw, from: &str, to: &str) -> Raw {
    let retype = |(name, dtype, shape, bytes): (String, String, Vec<usize>, Vec<u8>)| {
        (name, if dtype == from { to.to_owned() } else { dtype }, shape, bytes)
    };
    tensors.into_iter().map(retype).collect()
}

fn prefixed(tensors: Raw, prefix: &str) -> Raw {
    tensors.into_iter().map(|(name, d, s, b)| (format!("{prefix}{name}"), d, s, b)).collect()
}

#[test]
fn a_layout_is_told_by_what_is_in_the_file() {
    for (tensors, layout) in
        [(official_dit(), "official"), (lightx2v(), "lightx2v-fp8"), (comfy(), "comfy-fp8")]
    {
        for prefix in ["", "diffusion_model.", "model.diffusion_model."] {
            let tensors = prefixed(tensors.clone(), prefix);
            let (dit, _) = open_dit(&file(&tensors).1).unwrap();
            assert_eq!((dit.layout().name(), dit.names().count()), (layout, 119), "{prefix}");
            let found = contents(&tensors);
            let marked = layouts::marked(Component::Dit, &found);
            let names: Vec<_> = marked.iter().map(|(layout, _)| layout.name()).collect();
            let expected: &[&str] = if layout == "official" { &[] } else { &[layout] };
            assert_eq!(names, expected, "a file has the marks of its own layout only");
        }
    }
    // The scale of activations and the marker belong to ComfyUI's layout even where no weight's scale is left.
    let mut tensors = official_dit();
    tensors.push(f32s("scaled_fp8", &[0]));
    assert_eq!(open_dit(&file(&tensors).1).unwrap().0.layout().name(), "comfy-fp8");
}

#[test]
fn marks_of_two_layouts_are_refused_in_words() {
    let mut mixed = comfy();
    for (name, ..) in &mut mixed {
        if name.starts_with("blocks.1.") {
            *name = name.replace(".scale_weight", ".weight_scale");
        }
    }
    let mut both = lightx2v();
    both.extend(comfy().into_iter().filter(|(name, ..)| name.ends_with(".scale_weight")));
    let mut marker = lightx2v();
    marker.push(f32s("scaled_fp8", &[0]));
    for (tensors, marks) in [
        (
            mixed,
            [
                "`blocks.1.cross_attn.k.weight_scale` of LightX2V fp8",
                "`blocks.0.cross_attn.k.scale_weight` of",
            ],
        ),
        (
            both,
            [
                "`blocks.0.cross_attn.k.weight_scale` of LightX2V fp8",
                "`blocks.0.cross_attn.k.scale_weight` of",
            ],
        ),
        (
            marker,
            ["`blocks.0.cross_attn.k.weight_scale` of LightX2V fp8", "`scaled_fp8` of ComfyUI fp8_scaled"],
        ),
    ] {
        let text = refusal(&tensors);
        for part in marks.into_iter().chain(["not clear which scales apply"]) {
            assert!(text.contains(part), "no {part:?} in {text}");
        }
    }
}

#[test]
fn what_no_layout_reads_has_a_sentence() {
    let unread =
        "is quantised in a way that animd does not read; it reads LightX2V's fp8 and ComfyUI's fp8_scaled";
    let mut nvfp4 = retyped(lightx2v(), "F8_E4M3", "U8");
    nvfp4.push(f32s("blocks.0.ffn.0.weight_global_scale", &[]));
    let mut described = lightx2v();
    described.push(("blocks.0.ffn.0.comfy_quant".into(), "U8".into(), vec![2], b"{}".to_vec()));
    let mut turbo = official_dit();
    turbo.push(("blocks.0.ffn.0.int8_weight".into(), "I8".into(), vec![1], vec![0]));
    let mut lora = vec![f32s("blocks.0.self_attn.q.lora_A.weight", &[1])];
    lora.push(f32s("blocks.0.self_attn.q.lora_B.weight", &[1]));
    for (tensors, text) in [
        (retyped(lightx2v(), "F8_E4M3", "I8"), unread),
        (retyped(comfy(), "F8_E4M3", "I8"), unread),
        (retyped(lightx2v(), "F8_E4M3", "U8"), unread),
        (nvfp4, unread),
        (described, unread),
        (turbo, unread),
        (lora, "is a LoRA, not a whole model"),
        (vec![f32s("condition_embedder.time_proj.bias", &[1])], "has diffusers' tensor names"),
        (vec![f32s("norm.weight", &[1])], "is not a Wan transformer; animd runs Wan2.1 image-to-video"),
    ] {
        assert!(layouts::marked(Component::Dit, &contents(&tensors)).is_empty(), "{text}");
        let refusal = refusal(&tensors);
        assert!(refusal.contains(text), "no {text:?} in {refusal}");
    }
}

#[test]
fn another_model_is_named_in_every_layout() {
    for tensors in [official_dit(), lightx2v(), comfy()] {
        let with = |name: &str| [tensors.clone(), vec![f32s(name, &[1])]].concat();
        assert!(refusal(&with("vace_blocks.0.norm3.bias")).contains("is Wan2.1 VACE"));
        assert!(refusal(&with("img_emb.emb_pos")).contains("(FLF2V)"));
        let without: Raw = tensors.into_iter().filter(|(name, ..)| !name.contains("img")).collect();
        assert!(refusal(&without).contains("has no image embedding, as Wan2.2"));
    }
}

#[test]
fn eight_bit_floats_need_a_scale_and_the_right_type() {
    let cast: Raw = comfy().into_iter().filter(|(name, ..)| !name.contains("scale")).collect();
    let text = refusal(&cast);
    assert!(text.contains("36 missing: the scale of `blocks.0.self_attn.q.weight`"), "{text}");
    let text = refusal(&retyped(comfy(), "F8_E4M3", "F8_E5M2"));
    assert!(text.contains("`blocks.0.ffn.0.weight` is F8_E5M2, not F32, F16 or BF16"), "{text}");
    let mut norm = lightx2v();
    for (name, dtype, _, bytes) in &mut norm {
        if name == "blocks.0.norm3.bias" {
            *dtype = "F8_E4M3".into();
            bytes.truncate(256);
        }
    }
    let text = refusal(&norm);
    assert!(text.contains("`blocks.0.norm3.bias` is F8_E4M3, not F32, F16 or BF16"), "{text}");
}

#[test]
fn what_a_scale_is_for_follows_from_its_shape() {
    for (tensors, suffix) in [(lightx2v(), "weight_scale"), (comfy(), "scale_weight")] {
        let scale = format!("blocks.0.ffn.0.{suffix}");
        let with = |shape: &[usize], dtype: &str| {
            let mut tensors = tensors.clone();
            let entry = tensors.iter_mut().find(|(name, ..)| *name == scale).unwrap();
            let bytes = 0.5f32.to_le_bytes().repeat(shape.iter().product());
            (entry.1, entry.2, entry.3) = (dtype.to_owned(), shape.to_vec(), bytes);
            tensors
        };
        for (shape, by) in [
            (&[][..], Granularity::Tensor),
            (&[1], Granularity::Tensor),
            (&[512], Granularity::Row),
            (&[512, 1], Granularity::Row),
        ] {
            let (dit, _) = open_dit(&file(&with(shape, "F32")).1).unwrap();
            let name = "blocks.0.ffn.0.weight";
            assert_eq!(dit.encoding(name), Some(Encoding::Scaled { dtype: DType::F8E4m3, by }), "{shape:?}");
            let matrix = dit.matrix(name).unwrap();
            let halves: Vec<f32> = matrix.numbers().iter().map(|number| number * 0.5).collect();
            assert_eq!(matrix.to_f32(), halves);
        }
        for (shape, dtype, text) in [
            (&[2][..], "F32", "the scale of `blocks.0.ffn.0.weight` is [2], not [512, 1]"),
            (&[512, 2], "F32", "the scale of `blocks.0.ffn.0.weight` is [512, 2], not [512, 1]"),
            (&[512, 1], "I32", "the scale of `blocks.0.ffn.0.weight` is I32, not F32"),
        ] {
            let refusal = refusal(&with(shape, dtype));
            assert!(refusal.contains(text), "no {text:?} in {refusal}");
        }
    }
}

#[test]
fn the_quantised_layouts_hold_the_same_model() {
    let (official, config) = open_dit(&fixture().join("official")).unwrap();
    for (folder, layout, by) in
        [("lightx2v_fp8", "lightx2v-fp8", Granularity::Row), ("comfy_fp8", "comfy-fp8", Granularity::Tensor)]
    {
        let (dit, quantised_config) = open_dit(&fixture().join(folder)).unwrap();
        assert_eq!((dit.layout().name(), &quantised_config), (layout, &config));
        assert_eq!(dit.names().count(), 119);
        let mut quantised = 0;
        for name in official.names() {
            let reference = official.tensor(name).unwrap().data;
            if dit.encoding(name).unwrap().is_plain() {
                assert_eq!(dit.tensor(name).unwrap().data, reference, "{folder} {name}");
                continue;
            }
            quantised += 1;
            let matrix = dit.matrix(name).unwrap();
            assert_eq!(matrix.encoding, Encoding::Scaled { dtype: DType::F8E4m3, by }, "{name}");
            assert!(matches!(matrix.bytes, Cow::Borrowed(_)), "a quantised matrix stays as it is");
            // Rounding to 3 bits of mantissa errs by 2^-4 at most, evenly spread: 2^-4 / sqrt(3) = 0.036 at worst.
            assert!(relative_l2(&matrix.to_f32(), &reference) < 0.036, "{folder} {name}");
            assert_eq!(matrix.to_f32(), dit.tensor(name).unwrap().data);
        }
        assert_eq!(quantised, 36);
    }
}

#[test]
fn comfy_files_load_by_name_and_with_a_prefix() {
    let file = fixture().join("comfy_fp8/wan2.1_i2v_tiny_fp8_scaled.safetensors");
    let (plain, config) = open_dit(&file).unwrap();
    let mut tensors = load(&file);
    for (name, _, shape, _) in &mut tensors {
        *name = format!("model.diffusion_model.{name}");
        if name.ends_with("scale_weight") {
            shape.push(1);
        }
    }
    tensors.push((
        "model.diffusion_model.blocks.0.ffn.0.scale_input".into(),
        "F32".into(),
        vec![],
        vec![0; 4],
    ));
    let dir = tempfile::tempdir().unwrap();
    store(&dir.path().join("anything.safetensors"), &tensors);
    let (prefixed, prefixed_config) = open_dit(dir.path()).unwrap();
    assert_eq!(config, prefixed_config);
    for name in plain.names() {
        assert_eq!(plain.tensor(name).unwrap(), prefixed.tensor(name).unwrap());
    }
}

#[test]
fn bf16_scales_are_read() {
    let dir = tempfile::tempdir().unwrap();
    let mut tensors: Raw = Vec::new();
    for name in ["block_0", "block_1", "block_2", "non_block"] {
        tensors.extend(load(&fixture().join(format!("lightx2v_fp8/{name}.safetensors"))));
    }
    for (name, dtype, _, bytes) in &mut tensors {
        if name.ends_with("weight_scale") {
            *dtype = "BF16".into();
            *bytes = bytes.chunks(4).flat_map(|b| [b[2], b[3]]).collect();
        }
    }
    store(&dir.path().join("model.safetensors"), &tensors);
    let (dit, _) = open_dit(dir.path()).unwrap();
    let (exact, _) = open_dit(&fixture().join("lightx2v_fp8")).unwrap();
    let name = "blocks.1.ffn.2.weight";
    // Cutting a scale to 8 bits makes it smaller by 2^-7 at most.
    assert!(
        relative_l2(&dit.matrix(name).unwrap().to_f32(), &exact.matrix(name).unwrap().to_f32()) < 1.0 / 128.0
    );
}

#[test]
fn a_scale_without_its_matrix_or_the_other_way_round_is_an_error() {
    let file = fixture().join("comfy_fp8/wan2.1_i2v_tiny_fp8_scaled.safetensors");
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.safetensors");
    let mut tensors = load(&file);
    tensors.retain(|(name, ..)| name != "blocks.0.ffn.0.scale_weight");
    store(&path, &tensors);
    assert!(sentence(open_dit(&path)).contains("missing: the scale of `blocks.0.ffn.0.weight`"));
    let mut tensors = load(&file);
    for (name, dtype, _, bytes) in &mut tensors {
        if name == "blocks.0.ffn.0.weight" {
            *dtype = "BF16".into();
            *bytes = vec![0; 2 * bytes.len()];
        }
    }
    store(&path, &tensors);
    assert!(sentence(open_dit(&path)).contains("`blocks.0.ffn.0.weight` is BF16, not F8_E4M3"));
    let mut tensors = load(&file);
    for (name, _, _, bytes) in &mut tensors {
        if name == "blocks.0.ffn.0.scale_weight" {
            *bytes = f32::NAN.to_le_bytes().to_vec();
        }
    }
    store(&path, &tensors);
    let (dit, _) = open_dit(&path).unwrap();
    assert!(matches!(dit.matrix("blocks.0.ffn.0.weight"), Err(Error::Model(_))));
}
