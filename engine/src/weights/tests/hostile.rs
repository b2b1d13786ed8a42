//! Files that want more than they have, or that change: no time, no memory and no panic for them.

use super::gguf::{self, Gguf};
use super::*;
use crate::weights::read_vocabulary;

/// Returns numbers that look random and are the same each time.
struct Numbers(u64);

impl Numbers {
    /// Returns the next number below a limit.
    fn below(&mut self, limit: usize) -> usize {
        // Knuth's constants for a linear congruential generator; the upper bits are the good ones.
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((self.0 >> 33) as usize) % limit.max(1)
    }
}

/// Changes a file a little: some bits, some bytes, a piece that is taken out or put in twice, or its end.
fn changed(whole: &[u8], header: usize, numbers: &mut Numbers) -> Vec<u8> {
    let mut file = whole.to_vec();
    for _ in 0..=numbers.below(4) {
        let at = numbers.below(header.min(file.len()));
        let length = numbers.below(64).min(file.len().saturating_sub(at));
        match numbers.below(6) {
            0 => file[at] ^= 1 << numbers.below(8),
            1 => file[at] = numbers.below(256) as u8,
            2 => {
                let extreme = [0, u64::MAX, 1 << 63, 1 << 31, 0xff][numbers.below(5)].to_le_bytes();
                let end = file.len().min(at + 8);
                file[at..end].copy_from_slice(&extreme[..end - at]);
            }
            3 => drop(file.drain(at..at + length)),
            4 => {
                let piece = file[at..at + length].to_vec();
                file.splice(at..at, piece);
            }
            _ => file.truncate(numbers.below(file.len())),
        }
        if file.is_empty() {
            file.push(0);
        }
    }
    file
}

/// Opens many changed copies of a file as each component; every tensor that then can be read is read.
fn fuzz(whole: &[u8], header: usize, seed: u64, rounds: usize, open: impl Fn(&Path) -> Result<()>) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("file");
    let mut numbers = Numbers(seed);
    let mut refused = 0;
    for _ in 0..rounds {
        fs::write(&path, changed(whole, header, &mut numbers)).unwrap();
        match open(&path) {
            Ok(()) => {}
            Err(Error::Model(_)) => refused += 1,
            Err(e) => panic!("not an error about a model: {e:?}"),
        }
    }
    assert!(refused > rounds / 4, "{refused} of {rounds} were refused");
}

fn read_all<C>((weights, _): (Weights, C)) -> Result<()> {
    for name in weights.names() {
        weights.tensor(name)?;
    }
    Ok(())
}

#[test]
fn changed_safetensors_do_not_panic() {
    let path = fixture().join("comfy_fp8/wan2.1_i2v_tiny_fp8_scaled.safetensors");
    let whole = fs::read(path).unwrap();
    let header = 8 + u64::from_le_bytes(whole[..8].try_into().unwrap()) as usize;
    fuzz(&whole, header, 1, 150, |path| open_dit(path).and_then(read_all));
}

#[test]
fn changed_gguf_files_do_not_panic() {
    let whole = gguf::dit().bytes(32);
    fuzz(&whole, 9000, 2, 150, |path| open_dit(path).and_then(read_all));
    let mut tokens = Gguf::default();
    tokens.key("tokenizer.ggml.model", 8, b"\x02\0\0\0\0\0\0\0t5");
    let list = |kind: u32, items: &[u8]| [&kind.to_le_bytes()[..], &2u64.to_le_bytes(), items].concat();
    tokens.key("tokenizer.ggml.tokens", 9, &list(8, b"\x01\0\0\0\0\0\0\0a\x01\0\0\0\0\0\0\0b"));
    tokens.key("tokenizer.ggml.scores", 9, &list(6, &[0; 8]));
    tokens.key("tokenizer.ggml.token_type", 9, &list(5, &[1, 0, 0, 0, 1, 0, 0, 0]));
    let whole = tokens.bytes(32);
    fuzz(&whole, whole.len(), 3, 2000, |path| read_vocabulary(path).map(|_| ()));
}

#[test]
fn changed_torch_files_do_not_panic() {
    let path = fixture().join("official/models_t5_umt5-xxl-enc-bf16.pth");
    let whole = fs::read(path).unwrap();
    fuzz(&whole, 9000, 4, 300, |path| open_t5(path).and_then(read_all));
}

#[test]
fn changed_loras_do_not_panic() {
    let mut tensors = Raw::new();
    for layer in ["blocks.0.self_attn.q", "blocks.2.ffn.0"] {
        let rows = if layer.ends_with("ffn.0") { 512 } else { 256 };
        tensors.push((
            format!("diffusion_model.{layer}.lora_down.weight"),
            "F16".into(),
            vec![4, 256],
            vec![1; 2048],
        ));
        tensors.push((
            format!("diffusion_model.{layer}.lora_up.weight"),
            "F16".into(),
            vec![rows, 4],
            vec![1; 8 * rows],
        ));
        tensors.push((
            format!("diffusion_model.{layer}.alpha"),
            "F32".into(),
            vec![],
            vec![0, 0, 0x80, 0x40],
        ));
        tensors.push((
            format!("diffusion_model.{layer}.diff_b"),
            "F16".into(),
            vec![rows],
            vec![0; 2 * rows],
        ));
    }
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("lora");
    store(&path, &tensors);
    let whole = fs::read(&path).unwrap();
    let header = 8 + u64::from_le_bytes(whole[..8].try_into().unwrap()) as usize;
    let base = || open_dit(&fixture().join("official")).unwrap();
    let config = base().1;
    fuzz(&whole, header, 5, 1000, |path| Lora::open(path, &config).map(|_| ()));
    // A file that is let through can be merged.
    let lora = Lora::open(&path, &config).unwrap();
    assert_eq!(lora.names().count(), 4);
    assert!(Merged::new(base().0, vec![(lora, 1.0)]).tensor("blocks.2.ffn.0.weight").is_ok());
}

#[test]
fn a_header_of_a_million_tensors_is_refused() {
    let entry = |i: usize| format!(r#""{i}":{{"dtype":"F32","shape":[0],"data_offsets":[0,0]}}"#);
    let header = format!("{{{}}}", (0..1_000_000).map(entry).collect::<Vec<_>>().join(","));
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend(header.as_bytes());
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.safetensors");
    fs::write(&path, &file).unwrap();
    assert!(sentence(open_dit(&path)).contains("more than 65536 tensors"));
}

#[test]
fn names_that_occur_twice_or_have_no_end_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.safetensors");
    let info = r#"{"dtype":"F32","shape":[0],"data_offsets":[0,0]}"#;
    let long = "x".repeat(513);
    for (header, text) in [
        (format!(r#"{{"a":{info},"a":{info}}}"#), "has `a` twice"),
        (format!(r#"{{"{long}":{info}}}"#), "a name longer than 512 bytes"),
        (r#"{"a":3}"#.to_owned(), "`a`: "),
    ] {
        let mut file = (header.len() as u64).to_le_bytes().to_vec();
        file.extend(header.as_bytes());
        fs::write(&path, &file).unwrap();
        let text_of = sentence(open_dit(&path));
        assert!(text_of.contains(text), "{text_of}");
    }
}

#[test]
fn a_pipe_is_no_file() {
    let dir = tempfile::tempdir().unwrap();
    let pipe = |name: &str| {
        let path = dir.path().join(name);
        let made = std::process::Command::new("mkfifo").arg(&path).status().unwrap();
        assert!(made.success());
        path
    };
    let model = pipe("model.safetensors");
    for path in [&model, dir.path()] {
        let text = sentence(open_dit(path));
        assert!(text.contains("model.safetensors` is not a file"), "{text}");
    }
    fs::remove_file(&model).unwrap();
    store(&model, &official_dit());
    assert!(open_dit(&model).is_ok());
    pipe("config.json");
    let text = open_dit(&model).err().unwrap().to_string();
    assert!(text.contains("config.json"), "{text}");
}

#[test]
fn a_file_that_shrinks_is_noticed() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.safetensors");
    store(&path, &official_dit());
    let (dit, _) = open_dit(&path).unwrap();
    let name = dit.names().next().unwrap().to_owned();
    assert!(dit.tensor(&name).is_ok());
    let length = fs::metadata(&path).unwrap().len();
    fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(length / 2).unwrap();
    let text = sentence(dit.tensor(&name));
    assert!(text.contains(&format!("had {length} bytes when it was opened")), "{text}");
}

#[test]
fn what_is_being_fetched_is_not_read() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.safetensors");
    store(&path, &official_dit());
    assert!(open_dit(&path).is_ok());
    fs::write(dir.path().join("model.safetensors.aria2"), "").unwrap();
    for path in [&path, dir.path()] {
        let text = sentence(open_dit(path));
        assert!(text.contains("aria2's control file lies beside it"), "{text}");
    }
    fs::remove_file(dir.path().join("model.safetensors.aria2")).unwrap();
    for end in ["part", "incomplete", "crdownload"] {
        let unfinished = dir.path().join(format!("other.safetensors.{end}"));
        fs::copy(&path, &unfinished).unwrap();
        let text = sentence(open_dit(&unfinished));
        assert!(text.contains("is not fetched to its end"), "{text}");
    }
    assert!(open_dit(dir.path()).is_ok(), "other files do not disturb");
}
