//! Each layout is told from all others, and its files hold the expected model.

use super::*;

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
        }
    }
    // The scale of activations and the marker belong to ComfyUI's layout even where no weight's scale is left.
    let mut tensors = official_dit();
    tensors.push(f32s("scaled_fp8", &[0]));
    assert_eq!(open_dit(&file(&tensors).1).unwrap().0.layout().name(), "comfy-fp8");
    // A weight's own type says what its scale is for, whoever wrote it.
    for (tensors, layout) in [(lightx2v(), "lightx2v-int8"), (comfy(), "comfy-fp8")] {
        let (dit, _) = open_dit(&file(&retyped(tensors, "F8_E4M3", "I8")).1).unwrap();
        assert_eq!(dit.layout().name(), layout);
        let encoding = dit.encoding("blocks.0.ffn.0.weight");
        assert!(matches!(encoding, Some(Encoding::Scaled { dtype: DType::I8, .. })), "{encoding:?}");
    }
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
            ["`blocks.1.cross_attn.k.weight_scale` of LightX2V", "`blocks.0.cross_attn.k.scale_weight` of"],
        ),
        (
            both,
            ["`blocks.0.cross_attn.k.weight_scale` of LightX2V", "`blocks.0.cross_attn.k.scale_weight` of"],
        ),
        (marker, ["`blocks.0.cross_attn.k.weight_scale` of LightX2V", "`scaled_fp8` of ComfyUI fp8_scaled"]),
    ] {
        let text = refusal(&tensors);
        for part in marks.into_iter().chain(["not clear which scales apply"]) {
            assert!(text.contains(part), "no {part:?} in {text}");
        }
    }
}

#[test]
fn what_no_layout_reads_has_a_sentence() {
    let bytes = "`blocks.0.cross_attn.k.weight` is U8 beside a scale";
    let mut halves = retyped(lightx2v(), "F8_E4M3", "U8");
    halves.push(f32s("blocks.0.ffn.0.weight_global_scale", &[]));
    let mut described = lightx2v();
    described.push(("blocks.0.ffn.0.comfy_quant".into(), "U8".into(), vec![2], b"{}".to_vec()));
    let mut turbo = official_dit();
    turbo.push(("blocks.0.ffn.0.int8_weight".into(), "I8".into(), vec![1], vec![0]));
    let mut smoothed = lightx2v();
    smoothed.push(f32s("blocks.0.ffn.0.pre_quant_scale", &[256]));
    let mut lora = vec![f32s("blocks.0.self_attn.q.lora_A.weight", &[1])];
    lora.push(f32s("blocks.0.self_attn.q.lora_B.weight", &[1]));
    for (tensors, text) in [
        (retyped(lightx2v(), "F8_E4M3", "U8"), bytes),
        (halves, bytes),
        (described, "has the marks of two layouts"),
        (turbo, "has two tensors for `blocks.0.ffn.0.weight`"),
        (smoothed, "is for inputs that are smoothed by `pre_quant_scale`"),
        (lora, "is a LoRA, not a whole model"),
        (vec![f32s("condition_embedder.time_proj.bias", &[1])], "is not a Wan transformer"),
        (
            vec![f32s("norm.weight", &[1])],
            "is not a Wan transformer; animd runs image-to-video of Wan2.1 and of Wan2.2 A14B",
        ),
    ] {
        let refusal = refusal(&tensors);
        assert!(refusal.contains(text), "no {text:?} in {refusal}");
    }
}

/// Returns the tensors of a file whose layers `ComfyUI` describes by these words, with the scales of the old layout.
fn described(words: &str, retype: &str) -> Raw {
    let mut tensors: Raw = retyped(comfy(), "F8_E4M3", retype)
        .into_iter()
        .filter(|(name, ..)| name != "scaled_fp8" && !name.ends_with(".scale_input"))
        .collect();
    for (name, ..) in &mut tensors {
        *name = name.replace(".scale_weight", ".weight_scale");
    }
    let layers: Vec<String> =
        tensors.iter().filter_map(|(name, ..)| Some(name.strip_suffix("weight_scale")?.to_owned())).collect();
    for layer in layers {
        let bytes = words.as_bytes().to_vec();
        tensors.push((format!("{layer}comfy_quant"), "U8".into(), vec![bytes.len()], bytes));
    }
    tensors
}

#[test]
fn descriptions_say_how_a_layer_is_quantised() {
    let by = Granularity::Tensor;
    for (words, retype, encoding) in [
        (r#"{"format": "float8_e4m3fn"}"#, "F8_E4M3", Encoding::Scaled { dtype: DType::F8E4m3, by }),
        (r#"{"format": "float8_e5m2"}"#, "F8_E5M2", Encoding::Scaled { dtype: DType::F8E5m2, by }),
        (r#"{"format": "int8_tensorwise"}"#, "I8", Encoding::Scaled { dtype: DType::I8, by }),
        (
            r#"{"format": "int8_tensorwise", "convrot": true}"#,
            "I8",
            Encoding::Rotated { dtype: DType::I8, by, group: 256 },
        ),
        (
            r#"{"format": "int8_tensorwise", "params": {"convrot": true, "convrot_groupsize": 64}}"#,
            "I8",
            Encoding::Rotated { dtype: DType::I8, by, group: 64 },
        ),
    ] {
        let (_dir, path) = file(&described(words, retype));
        let (dit, _) = open_dit(&path).unwrap();
        assert_eq!(dit.layout().name(), "comfy-quant");
        assert_eq!(dit.encoding("blocks.1.ffn.2.weight"), Some(encoding), "{words}");
    }
    for (words, retype, text) in [
        (r#"{"format": "awq_w4a16"}"#, "I8", "has ComfyUI's format `awq_w4a16`, which animd does not read"),
        (r#"{"format": "int8_tensorwise"}"#, "F8_E4M3", "is F8_E4M3, not I8 as its description says"),
        (r#"{"format": "nvfp4"}"#, "F8_E4M3", "is F8_E4M3, not U8 as NVFP4 is"),
        (
            r#"{"format": "mxfp8"}"#,
            "F8_E4M3",
            "the scale of `blocks.0.cross_attn.k.weight` is F32, not F8_E8M0",
        ),
        (
            r#"{"format": "int8_tensorwise", "convrot": true, "convrot_groupsize": 128}"#,
            "I8",
            "rotated in groups of 128, which is not a power of 4",
        ),
        ("nonsense", "I8", "the description of `blocks.0.cross_attn.k.weight` cannot be read"),
        (r#"{"form": 1}"#, "I8", "missing field `format`"),
    ] {
        let refusal = refusal(&described(words, retype));
        assert!(refusal.contains(text), "no {text:?} in {refusal}");
    }
}

#[test]
fn another_model_is_named_in_every_layout() {
    for tensors in [official_dit(), lightx2v(), comfy()] {
        let with = |name: &str| [tensors.clone(), vec![f32s(name, &[1])]].concat();
        assert!(refusal(&with("vace_blocks.0.norm3.bias")).contains("is Wan2.1 VACE"));
        let without: Raw = tensors.into_iter().filter(|(name, ..)| !name.contains("img")).collect();
        assert!(refusal(&without).contains("has no image embedding, as Wan2.2"));
    }
}

#[test]
fn eight_bit_floats_need_a_scale_and_the_right_type() {
    let cast: Raw = comfy().into_iter().filter(|(name, ..)| !name.ends_with("scale_weight")).collect();
    let text = refusal(&cast);
    assert!(text.contains("36 missing: the scale of `blocks.0.self_attn.q.weight`"), "{text}");
    let (_dir, path) = file(&retyped(comfy(), "F8_E4M3", "F8_E5M2"));
    let encoding = open_dit(&path).unwrap().0.encoding("blocks.0.ffn.0.weight");
    assert_eq!(encoding, Some(Encoding::Scaled { dtype: DType::F8E5m2, by: Granularity::Tensor }));
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
fn a_file_without_any_scale_was_only_rounded() {
    let mut cast: Raw = comfy().into_iter().filter(|(name, ..)| !name.contains("scale")).collect();
    for (name, dtype, _, bytes) in &mut cast {
        // Weights that were not scaled are far from the largest value of their type.
        if dtype == "F8_E4M3" {
            for byte in bytes {
                *byte &= 0xbf;
            }
        } else if name == "blocks.0.norm3.bias" {
            *dtype = "F8_E4M3".into();
            *bytes = vec![0x20; 256];
        }
    }
    let (_dir, path) = file(&cast);
    let (dit, _) = open_dit(&path).unwrap();
    assert_eq!(dit.layout().name(), "fp8-cast");
    let name = "blocks.0.ffn.0.weight";
    assert_eq!(dit.encoding(name), Some(Encoding::Plain(DType::F8E4m3)));
    let (_, _, _, bytes) = cast.iter().find(|(n, ..)| n == name).unwrap();
    let expected: Vec<f32> = bytes.iter().map(|b| e4m3::decode(*b)).collect();
    assert_eq!(dit.matrix(name).unwrap().to_f32(), expected);
    assert_eq!(dit.tensor("blocks.0.norm3.bias").unwrap().data, vec![e4m3::decode(0x20); 256]);
    // Values as large as only scaled weights have them show that the scales were lost, and a NaN that there is damage.
    for (byte, text) in [(0x7e, "the scales were lost"), (0xff, "not finite")] {
        let mut wrong = cast.clone();
        wrong.iter_mut().find(|(n, ..)| n == name).unwrap().3[77] = byte;
        let (_dir, path) = file(&wrong);
        let (dit, _) = open_dit(&path).unwrap();
        let error = dit.matrix(name).unwrap_err().to_string();
        assert!(error.contains(text) && error.contains(name), "{error}");
    }
}

#[test]
fn the_length_of_a_header_is_not_taken_for_another_kind_of_file() {
    let (_dir, path) = file(&vec![f32s("norm.weight", &[1])]);
    let bytes = fs::read(&path).unwrap();
    let header = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    // As bytes, these lengths are the beginnings of a pickle, a web page, a zip archive and a vocabulary.
    for length in [0x280u64, 0x13c, 0x4b50, 0x10a] {
        let mut longer = length.to_le_bytes().to_vec();
        longer.extend(&bytes[8..header]);
        longer.resize(8 + length as usize, b' ');
        longer.extend(&bytes[header..]);
        fs::write(&path, longer).unwrap();
        assert!(sentence(open_dit(&path)).contains("is not a Wan transformer"));
        assert!(sentence(read_vocabulary(&path)).contains("carries no tokenizer"));
    }
}

#[test]
fn squares_with_a_scale_and_a_branch_of_zeros_are_read() {
    let mut tensors = Raw::new();
    for (name, dtype, shape, bytes) in official_dit() {
        let Some(layer) =
            name.strip_suffix(".weight").filter(|n| n.contains("ffn") || n.ends_with("_attn.q"))
        else {
            let shape = if name == "patch_embedding.weight" { vec![256, 144] } else { shape };
            tensors.push((name, dtype, shape, bytes));
            continue;
        };
        let squares = [shape[0] / 128, shape[1] / 128];
        let numbers: Vec<u8> = (0..shape[0] * shape[1]).map(|i| (i * 7 % 251) as u8).collect();
        let scales = (0..squares[0] * squares[1]).flat_map(|i| (0.5 + i as f32).to_le_bytes()).collect();
        tensors.push((format!("{layer}.int8_weight"), "I8".into(), shape, numbers));
        tensors.push((format!("{layer}.scale"), "F32".into(), squares.to_vec(), scales));
    }
    let branch = "blocks.0.self_attn.attn_op.local_attn.proj_l.weight";
    tensors.push(f32s(branch, &[128, 128]));
    let (_dir, path) = file(&tensors);
    let (dit, _) = open_dit(&path).unwrap();
    assert_eq!(dit.layout().name(), "turbodiffusion");
    assert_eq!(dit.shape("patch_embedding.weight"), Some(&[256, 36, 1, 2, 2][..]));
    let values = dit.tensor("blocks.1.ffn.0.weight").unwrap().data;
    for (row, col) in [(0, 0), (127, 128), (128, 127), (511, 255)] {
        let number = f32::from(((row * 256 + col) * 7 % 251) as u8 as i8);
        let scale = 0.5 + (row / 128 * 2 + col / 128) as f32;
        assert_eq!(values[row * 256 + col], number * scale, "{row}, {col}");
    }
    tensors.last_mut().unwrap().3[0] = 1;
    assert!(refusal(&tensors).contains("was trained with sparse-linear attention"));
    for (name, _, shape, _) in &mut tensors {
        if name.ends_with("ffn.0.scale") {
            shape.reverse();
        }
    }
    tensors.pop();
    assert!(refusal(&tensors).contains("the scale of `blocks.0.ffn.0.weight` is [2, 4], not [4, 2]"));
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

#[test]
fn every_format_gives_its_rows_one_by_one() {
    use clap::ValueEnum;

    use crate::synth::{Format, Size, synth_dit};
    let dir = tempfile::tempdir().unwrap();
    for format in Format::value_variants() {
        let folder = dir.path().join(format!("{format:?}"));
        let paths = synth_dit(&folder, Size::Tiny, *format, 5, &mut |_, _| Ok(())).unwrap();
        let (weights, _) = open_dit(&paths[0]).unwrap();
        for name in ["blocks.0.ffn.0.weight", "blocks.0.ffn.2.weight", "patch_embedding.weight"] {
            let (matrix, table) = (weights.matrix(name).unwrap(), weights.row_table(name).unwrap());
            assert_eq!(table.rows, matrix.rows, "{format:?} {name}");
            for (row, values) in matrix.to_f32().chunks_exact(matrix.cols).enumerate() {
                assert!(table.row(row).unwrap() == values, "row {row} of {name} in {format:?}");
            }
        }
    }
}

#[test]
fn a_vocabulary_stays_in_its_file() {
    let (text, config) = open_t5(&fixture().join("official")).unwrap();
    let embedding = text.matrix(EMBEDDING).unwrap();
    assert!(matches!(embedding.bytes, Cow::Borrowed(_)));
    assert_eq!(text.places().bytes(), (text.stored_bytes() - embedding.bytes.len()) as u64);
    let table = text.row_table(EMBEDDING).unwrap();
    assert_eq!((table.rows, table.row(7).unwrap().len()), (config.rows, config.dim));
    assert_eq!(table.row(7).unwrap(), embedding.part(7, 1).to_f32());
    // A table of 8-bit floats is checked when it is opened, and read ahead for that.
    for (byte, words) in [(0x7f, Some("not finite")), (0x7e, Some("the scales were lost")), (0x3f, None)] {
        let mut cast: Raw = comfy().into_iter().filter(|(name, ..)| !name.contains("scale")).collect();
        for (_, dtype, _, bytes) in &mut cast {
            if dtype == "F8_E4M3" {
                for byte in bytes.iter_mut() {
                    *byte &= 0xbf;
                }
                *bytes.last_mut().unwrap() = byte;
            }
        }
        let (_dir, path) = file(&cast);
        let (dit, _) = open_dit(&path).unwrap();
        let opened = dit.row_table("blocks.0.ffn.0.weight");
        match words {
            Some(words) => assert!(sentence(opened).contains(words)),
            None => assert!(opened.is_ok()),
        }
    }
}
