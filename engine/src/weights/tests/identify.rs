//! What single files are is told by what is in them, never by their names.

use super::*;
use crate::weights::{IdentifiedKind as Kind, identify};

/// Copies a file of the official folder under a name that says nothing.
fn nameless(dir: &Path, name: &str) -> PathBuf {
    let to = dir.join(format!("{}.bin", name.len()));
    fs::copy(fixture().join("official").join(name), &to).unwrap();
    to
}

#[test]
fn each_part_is_told_by_its_tensors() {
    let dir = tempfile::tempdir().unwrap();
    let lora = dir.path().join("vae.safetensors");
    let factor = |name: &str, shape: [usize; 2]| {
        (
            format!("blocks.0.self_attn.q.{name}.weight"),
            "F32".to_owned(),
            shape.to_vec(),
            vec![0; 4 * shape[0] * shape[1]],
        )
    };
    store(&lora, &vec![factor("lora_down", [4, 256]), factor("lora_up", [256, 4])]);
    let pair = dir.path().join("dit.safetensors");
    expert(&pair, |_| {});
    for (path, kind) in [
        (nameless(dir.path(), "diffusion_pytorch_model.safetensors"), Kind::Dit),
        (nameless(dir.path(), "models_t5_umt5-xxl-enc-bf16.pth"), Kind::Text),
        (nameless(dir.path(), "models_clip_open-clip-xlm-roberta-large-vit-huge-14.pth"), Kind::Clip),
        (nameless(dir.path(), "Wan2.1_VAE.pth"), Kind::Vae),
        (pair, Kind::Expert),
        (lora, Kind::Lora),
    ] {
        let found = identify(&path);
        assert_eq!((found.kind, found.refusal.as_deref()), (kind, None), "{}", path.display());
        let part = found.part.as_ref().map(|part| (part.usable, part.parameters > 0));
        assert_eq!(part, (kind != Kind::Lora).then_some((true, true)), "{}", path.display());
        assert!(!found.tokenizer, "the released encoder carries none");
    }
}

#[test]
fn shards_are_one_part() {
    let found = identify(sharded().path());
    assert_eq!((found.kind, found.refusal), (Kind::Dit, None));
    let part = found.part.unwrap();
    assert_eq!((part.tensors, part.files.len() > 1), (119, true));
    // A folder of other files is no part, and says so.
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("notes.txt"), "nothing").unwrap();
    let found = identify(folder.path());
    assert_eq!(found.kind, Kind::Other);
    assert!(found.refusal.unwrap().contains("no shards of one part"));
}

#[test]
fn what_cannot_be_used_says_why() {
    let dir = tempfile::tempdir().unwrap();
    let whole = fs::read(fixture().join("official/Wan2.1_VAE.pth")).unwrap();
    let dit = fs::read(fixture().join("official/diffusion_pytorch_model.safetensors")).unwrap();
    for (name, bytes, words) in [
        ("half.pth", &whole[..whole.len() / 2], ""),
        ("half.safetensors", &dit[..dit.len() / 2], ""),
        ("empty.safetensors", &[][..], "empty"),
        ("pointer.safetensors", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "LFS"),
        ("page.safetensors", b"<!DOCTYPE html><html>not found</html>", "page"),
    ] {
        let path = dir.path().join(name);
        fs::write(&path, bytes).unwrap();
        let found = identify(&path);
        let why = found.refusal.unwrap_or_else(|| panic!("{name} was let through"));
        assert_eq!(found.kind, Kind::Damaged, "{name}");
        assert!(why.contains(name) && why.contains(words), "{why}");
    }
    // A part that lacks a tensor is still known for what it is.
    let broken = dir.path().join("broken.safetensors");
    let mut tensors = official_dit();
    tensors.retain(|(name, ..)| name != "head.head.bias");
    store(&broken, &tensors);
    let found = identify(&broken);
    assert_eq!(found.kind, Kind::Dit);
    assert!(found.refusal.unwrap().contains("head.head.bias"));
    assert!(identify(&dir.path().join("none")).refusal.is_some());
}
