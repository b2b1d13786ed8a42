//! What every reader of model files has in common: a pipe, a file that was cut after it was opened, and claims of more than a
//! file can hold are refused in words, whichever format they are in.

use super::gguf::{self, Gguf};
use super::*;
use crate::weights::lora::Lora;
use crate::weights::read_vocabulary;

/// Returns what is said of a file by each of those who read one.
fn said(path: &Path) -> [(&'static str, Option<String>); 5] {
    let (_, config) = open_dit(&fixture().join("official")).unwrap();
    let text = |e: Error| e.to_string();
    [
        ("DiT", open_dit(path).err().map(text)),
        ("umT5", open_t5(path).err().map(text)),
        ("VAE", open_vae(path).err().map(text)),
        ("LoRA", Lora::open(path, &config).err().map(text)),
        ("tokenizer", read_vocabulary(path).err().map(text)),
    ]
}

#[test]
fn a_pipe_is_waited_for_by_none() {
    let dir = tempfile::tempdir().unwrap();
    for name in
        ["a.safetensors", "a.gguf", "a.pth", "a.pt", "tokenizer.json", "spiece.model", "lora.safetensors"]
    {
        let path = dir.path().join(name);
        assert!(std::process::Command::new("mkfifo").arg(&path).status().unwrap().success());
        for (who, said) in said(&path) {
            let said = said.unwrap_or_else(|| panic!("{name} as a {who}: nothing"));
            assert!(said.contains("not a file"), "{name} as a {who}: {said}");
        }
    }
}

#[test]
fn a_file_that_shrinks_after_it_was_opened_is_noticed_in_every_format() {
    let dir = tempfile::tempdir().unwrap();
    let whole = |name: &str, bytes: &[u8]| {
        let path = dir.path().join(name);
        fs::write(&path, bytes).unwrap();
        path
    };
    let gguf = whole("dit.gguf", &gguf::dit().bytes(32));
    let torch =
        whole("t5.pth", &fs::read(fixture().join("official/models_t5_umt5-xxl-enc-bf16.pth")).unwrap());
    let (dit, t5) = (open_dit(&gguf).unwrap().0, open_t5(&torch).unwrap().0);
    for (path, weights) in [(&gguf, &dit), (&torch, &t5)] {
        let length = fs::metadata(path).unwrap().len();
        fs::OpenOptions::new().write(true).open(path).unwrap().set_len(4096).unwrap();
        for name in weights.names() {
            let told = format!("had {length} bytes when it was opened and now has 4096");
            assert!(sentence(weights.tensor(name)).contains(&told), "{name}");
            assert!(sentence(weights.matrix(name)).contains(&told), "{name}");
        }
    }
}

#[test]
fn claims_of_more_than_a_file_can_hold_are_refused_before_they_are_believed() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model");
    let gguf = |tensors: u64, keys: u64| {
        [&b"GGUF\x03\0\0\0"[..], &tensors.to_le_bytes(), &keys.to_le_bytes(), &[0; 64]].concat()
    };
    let mut list = Gguf::default();
    list.key("tokenizer.ggml.model", 8, b"\x02\0\0\0\0\0\0\0t5");
    list.key("tokenizer.ggml.tokens", 9, &[&8u32.to_le_bytes()[..], &u64::MAX.to_le_bytes()].concat());
    let header = |length: u64| {
        [&length.to_le_bytes()[..], br#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}"#].concat()
    };
    let huge = |shape: &str, end: u64| {
        let header = format!(r#"{{"a":{{"dtype":"F32","shape":{shape},"data_offsets":[0,{end}]}}}}"#);
        [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &[0; 64]].concat()
    };
    // A million pieces of a sentencepiece model, two bytes each.
    let pieces = [0x0a, 0x00].repeat(1_100_000);
    for (what, bytes) in [
        ("GGUF with tensors without end", gguf(u64::MAX, 1)),
        ("GGUF with a million tensors", gguf(1_000_000, 1)),
        ("GGUF with keys without end", gguf(1, u64::MAX)),
        ("GGUF with a list without end", list.bytes(32)),
        ("safetensors with a header without end", header(u64::MAX)),
        ("safetensors with a header of 99 MB", header(99_000_000)),
        ("safetensors with a tensor without end", huge("[18446744073709551615]", u64::MAX)),
        ("safetensors whose extents overflow", huge("[4294967296,4294967296,4294967296]", 64)),
        ("a sentencepiece model with a million pieces", pieces),
    ] {
        fs::write(&path, &bytes).unwrap();
        for (who, said) in said(&path) {
            assert!(said.is_some_and(|said| !said.is_empty()), "{what} as a {who}");
        }
    }
}
