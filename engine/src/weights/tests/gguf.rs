//! GGUF files: what is read of them, and how wrong ones are refused.

use super::*;
use crate::weights::vocabulary::Kind;

/// A GGUF file in memory.
#[derive(Clone, Default)]
pub(super) struct Gguf {
    keys: Vec<u8>,
    key_count: u64,
    /// The name, the extents outermost first, the number of the type, and the bytes of each tensor.
    pub tensors: Vec<(String, Vec<usize>, u32, Vec<u8>)>,
}

fn text(text: &str) -> Vec<u8> {
    [&(text.len() as u64).to_le_bytes()[..], text.as_bytes()].concat()
}

impl Gguf {
    /// Adds a key with the bytes of a value of this type.
    pub fn key(&mut self, name: &str, kind: u32, value: &[u8]) {
        self.keys.extend([&text(name)[..], &kind.to_le_bytes(), value].concat());
        self.key_count += 1;
    }

    fn list(&mut self, name: &str, kind: u32, items: &[Vec<u8>]) {
        let head = [&kind.to_le_bytes()[..], &(items.len() as u64).to_le_bytes()].concat();
        self.key(name, 9, &[head, items.concat()].concat());
    }

    pub fn bytes(&self, alignment: usize) -> Vec<u8> {
        let mut file = b"GGUF\x03\0\0\0".to_vec();
        file.extend((self.tensors.len() as u64).to_le_bytes());
        file.extend(self.key_count.to_le_bytes());
        file.extend(&self.keys);
        let mut data = Vec::new();
        for (name, shape, kind, bytes) in &self.tensors {
            file.extend(text(name));
            file.extend((shape.len() as u32).to_le_bytes());
            shape.iter().rev().for_each(|extent| file.extend((*extent as u64).to_le_bytes()));
            file.extend(kind.to_le_bytes());
            file.extend((data.len() as u64).to_le_bytes());
            data.extend(bytes);
            data.resize(data.len().next_multiple_of(alignment), 0);
        }
        file.resize(file.len().next_multiple_of(alignment), 0);
        file.extend(data);
        file
    }
}

/// Returns the fixture's DiT: matrices of the blocks in `Q8_0`, the rest as it is.
pub(super) fn dit() -> Gguf {
    let mut gguf = Gguf::default();
    gguf.key("general.architecture", 8, &text("wan"));
    for (name, dtype, shape, bytes) in official_dit() {
        let (kind, bytes) = match dtype.as_str() {
            "F32" => (0, bytes),
            // A scale of 1 and 32 numbers, which are not the values but different ones for each block.
            "BF16" if name.starts_with("blocks.") && shape.len() == 2 => {
                let blocks = bytes.chunks_exact(64);
                let block = |b: &[u8]| [&[0, 0x3c][..], &b[..32]].concat();
                (8, blocks.flat_map(block).collect())
            }
            "BF16" => (30, bytes),
            other => panic!("{other}"),
        };
        gguf.tensors.push((name, shape, kind, bytes));
    }
    gguf
}

fn write(bytes: &[u8]) -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("file");
    fs::write(&path, bytes).unwrap();
    (dir, path)
}

fn refusal(bytes: &[u8]) -> String {
    sentence(open_dit(&write(bytes).1))
}

#[test]
fn tensors_stay_as_they_are_stored() {
    let gguf = dit();
    for alignment in [32, 64] {
        let mut gguf = gguf.clone();
        if alignment == 64 {
            gguf.key("general.alignment", 4, &64u32.to_le_bytes());
        }
        let (_dir, path) = write(&gguf.bytes(alignment));
        let (dit, config) = open_dit(&path).unwrap();
        assert_eq!((dit.layout().name(), config.num_layers, dit.names().count()), ("gguf", 3, 119));
        for (name, shape, kind, bytes) in &gguf.tensors {
            let matrix = dit.matrix(name).unwrap();
            assert_eq!((dit.shape(name).unwrap(), &*matrix.bytes), (&shape[..], &bytes[..]), "{name}");
            assert_eq!(matrix.encoding.is_plain(), *kind != 8, "{name}");
        }
        let name = "blocks.0.ffn.0.weight";
        assert_eq!(dit.encoding(name).unwrap().to_string(), "Q8_0");
        let (_, _, _, bytes) = gguf.tensors.iter().find(|(n, ..)| n == name).unwrap();
        let expected: Vec<f32> = bytes
            .chunks(34)
            .flat_map(|block| block[2..].iter().map(|b| f32::from(b.cast_signed())))
            .collect();
        assert_eq!(dit.tensor(name).unwrap().data, expected);
    }
}

#[test]
fn extents_can_be_said_apart_and_prefixes_are_allowed() {
    let mut gguf = dit();
    let extents = [256i32, 36, 1, 2, 2].map(|e| e.to_le_bytes().to_vec());
    gguf.list("comfy.gguf.orig_shape.diffusion_model.patch_embedding.weight", 5, &extents);
    for (name, shape, ..) in &mut gguf.tensors {
        if name == "patch_embedding.weight" {
            *shape = vec![256, 144];
        }
        *name = format!("diffusion_model.{name}");
    }
    let (_dir, path) = write(&gguf.bytes(32));
    let (dit, _) = open_dit(&path).unwrap();
    assert_eq!(dit.shape("patch_embedding.weight"), Some(&[256, 36, 1, 2, 2][..]));
    let (official, _) = open_dit(&fixture().join("official")).unwrap();
    let name = "patch_embedding.weight";
    assert_eq!(dit.tensor(name).unwrap(), official.tensor(name).unwrap());
    gguf.list("comfy.gguf.orig_shape.diffusion_model.head.head.bias", 5, &[7i32.to_le_bytes().to_vec()]);
    assert!(refusal(&gguf.bytes(32)).contains("as [64] and as [7]"));
}

#[test]
fn another_network_is_named() {
    for (architecture, words) in
        [("llama", "`general.architecture` is `llama`, not `wan`"), ("", "not a Wan")]
    {
        let mut gguf = Gguf::default();
        gguf.key("general.architecture", 8, &text(architecture));
        gguf.tensors.push(("blk.0.attn_q.weight".to_owned(), vec![1], 0, vec![0; 4]));
        let refusal = refusal(&gguf.bytes(32));
        assert!(refusal.contains(words), "{refusal}");
    }
    let mut gguf = dit();
    gguf.tensors.retain(|(name, ..)| name != "patch_embedding.weight");
    let refusal = refusal(&gguf.bytes(32));
    assert!(refusal.contains("1 missing: `patch_embedding.weight`"), "{refusal}");
}

#[test]
fn headers_that_cannot_be_true_are_refused() {
    let whole = dit().bytes(32);
    let with = |at: usize, bytes: &[u8]| {
        let mut file = whole.clone();
        file[at..at + bytes.len()].copy_from_slice(bytes);
        file
    };
    let many = u64::MAX.to_le_bytes();
    let mut nested = Gguf::default();
    nested.key("a", 9, &[&9u32.to_le_bytes()[..], &1u64.to_le_bytes(), &[0; 16]].concat());
    let mut endless = Gguf::default();
    endless.key("a", 9, &[&12u32.to_le_bytes()[..], &(u64::MAX / 4).to_le_bytes()].concat());
    let mut typed = dit();
    typed.tensors[3].2 = 39;
    let mut cut = dit();
    cut.tensors[0].1 = vec![1 << 62, 4];
    let mut ragged = dit();
    ragged.tensors.push(("x".to_owned(), vec![2, 33], 8, vec![0; 136]));
    let mut twice = dit();
    twice.tensors.push(twice.tensors[0].clone());
    for (file, text) in [
        (with(4, &[1, 0, 0, 0]), "version 1 of GGUF"),
        (with(4, &[0, 0, 0, 3]), "big-endian"),
        (with(8, &many), "claims 18446744073709551615 tensors"),
        (with(16, &many), "claims 18446744073709551615 keys"),
        (nested.bytes(32), "a list of lists"),
        (endless.bytes(32), "a list without an end"),
        (typed.bytes(32), "is of GGUF's type 39; animd reads F32"),
        (cut.bytes(32), "whole blocks"),
        (ragged.bytes(32), "which are not whole blocks of Q8_0"),
        (twice.bytes(32), "twice"),
        (whole[..whole.len() - 2000].to_vec(), "only partly there"),
    ] {
        let refusal = refusal(&file);
        assert!(refusal.contains(text), "no {text:?} in {refusal}");
    }
    for length in (0..600).chain((1..60).map(|i| whole.len() * i / 60)) {
        refusal(&whole[..length]);
    }
}

#[test]
fn a_vocabulary_is_read_without_what_fills_it_up() {
    let mut gguf = Gguf::default();
    gguf.key("tokenizer.ggml.model", 8, &text("t5"));
    let pieces = [("<pad>", 0.0f32, 3i32), ("<unk>", 0.0, 2), ("▁a", -1.5, 1), ("<0x0A>", 0.0, 6)];
    let filled = pieces.into_iter().chain([("[PAD4]", -10_000.0, 5), ("[PAD5]", -10_000.0, 5)]);
    let filled: Vec<_> = filled.collect();
    gguf.list("tokenizer.ggml.tokens", 8, &filled.iter().map(|p| text(p.0)).collect::<Vec<_>>());
    gguf.list(
        "tokenizer.ggml.scores",
        6,
        &filled.iter().map(|p| p.1.to_le_bytes().to_vec()).collect::<Vec<_>>(),
    );
    gguf.list(
        "tokenizer.ggml.token_type",
        5,
        &filled.iter().map(|p| p.2.to_le_bytes().to_vec()).collect::<Vec<_>>(),
    );
    let (_dir, path) = write(&gguf.bytes(32));
    let vocabulary = read_vocabulary(&path).unwrap();
    let found: Vec<_> = vocabulary.pieces.iter().map(|p| (&*p.text, p.score, p.kind)).collect();
    let expected = [
        ("<pad>", 0.0, Kind::Control),
        ("<unk>", 0.0, Kind::Unknown),
        ("▁a", -1.5, Kind::Normal),
        ("<0x0A>", 0.0, Kind::Byte),
    ];
    assert_eq!((&found[..], &vocabulary.charsmap[..]), (&expected[..], &[][..]));
    assert!(sentence(read_vocabulary(&write(&dit().bytes(32)).1)).contains("carries no tokenizer"));
}
