//! Whole models, sound ones and each kind of wrong one.

use std::fs;
use std::path::{Path, PathBuf};

use safetensors::tensor::{Dtype, TensorView};
use safetensors::{SafeTensors, serialize};

use super::*;
use crate::progress::Quiet;
use crate::synth::{Family, Size, synth_model};
use crate::weights::DType;

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures").join(name)
}

fn run(path: &Path, list: Option<&Path>) -> Verification {
    verify(path, None, list, &Quiet, &|_| ()).expect("it can be read")
}

/// Returns the transformer of the tiny model, with `change` made to the tensors' bytes.
fn changed(change: impl Fn(&str, &mut Vec<u8>)) -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let from = fixture("tiny-a/comfy_fp8");
    for entry in fs::read_dir(&from).expect("a fixture") {
        let path = entry.expect("an entry").path();
        let to = folder.path().join(path.file_name().expect("a name"));
        let bytes = fs::read(&path).expect("readable");
        if path.extension().is_none_or(|extension| extension != "safetensors") {
            fs::write(to, bytes).expect("writable");
            continue;
        }
        let tensors = SafeTensors::deserialize(&bytes).expect("a model");
        let tensors: Vec<(String, Dtype, Vec<usize>, Vec<u8>)> = tensors
            .tensors()
            .into_iter()
            .map(|(name, view)| {
                let mut data = view.data().to_vec();
                change(&name, &mut data);
                (name, view.dtype(), view.shape().to_vec(), data)
            })
            .collect();
        let views = tensors.iter().map(|(name, dtype, shape, data)| {
            (name, TensorView::new(*dtype, shape.clone(), data).expect("as long as before"))
        });
        fs::write(to, serialize(views, None).expect("it can be written")).expect("writable");
    }
    folder
}

/// Applies a function to the f32 in some bytes.
fn each(data: &mut [u8], f: impl Fn(f32) -> f32) {
    for bytes in data.as_chunks_mut::<4>().0 {
        *bytes = f(f32::from_le_bytes(*bytes)).to_le_bytes();
    }
}

#[track_caller]
fn says(folder: &tempfile::TempDir, tensor: &str, words: &str) {
    let found = run(folder.path(), None);
    assert!(!found.is_sound());
    let mistakes = &found.parts[0].mistakes;
    let said = mistakes.iter().find(|m| m.tensor.as_deref() == Some(tensor));
    let said = said.unwrap_or_else(|| panic!("nothing of {tensor}: {found}"));
    assert!(said.what.contains(words), "{said}");
}

const SCALE: &str = "blocks.1.ffn.0.scale_weight";
const WEIGHT: &str = "blocks.1.ffn.0.weight";

#[test]
fn sound_models_are_sound() {
    let found = run(&fixture("tiny-a/official"), None);
    assert!(found.is_sound(), "{found}");
    assert_eq!(found.parts.len(), 4);
    assert_eq!(found.parts[0].tensors, 119);
    assert!(found.files.iter().all(|file| file.change == Change::New && file.sha256.len() == 64));
    assert!(run(changed(|_, _| ()).path(), None).is_sound());
}

#[test]
fn models_that_are_made_up_are_sound() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let target = folder.path().join("tiny");
    synth_model(&target, Size::Tiny, DType::Bf16, None, 3, &mut |_, _| Ok(())).expect("it can be written");
    let found = run(&target, None);
    assert!(found.is_sound(), "{found}");
}

/// Writes a tiny model of a family into a folder.
fn made(family: Family) -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let target = folder.path().join("tiny");
    let recipe = Size::Tiny.recipe_of(family);
    synth_model(&target, recipe, DType::Bf16, None, 3, &mut |_, _| Ok(())).expect("it can be written");
    (folder, target)
}

#[test]
fn what_a_model_lacks_is_a_mistake() {
    for (family, gone, part, words) in [
        (Family::Wan21, "diffusion_pytorch_model.safetensors", "DiT", "holds no transformer"),
        (Family::Wan21, "models_clip_open-clip-xlm-roberta-large-vit-huge-14.pth", "CLIP", "models_clip"),
        (Family::Wan22, "Wan2.1_VAE.pth", "VAE", "`Wan2.1_VAE.pth` is missing"),
        (
            Family::Wan22,
            "low_noise_model",
            "DiT for low noise",
            "the low-noise transformer of Wan2.2 is missing",
        ),
        (
            Family::Wan22,
            "high_noise_model",
            "DiT for high noise",
            "the high-noise transformer of Wan2.2 is missing",
        ),
        (Family::Flf2v, "models_t5_umt5-xxl-enc-bf16.pth", "umT5", "models_t5"),
    ] {
        let (_folder, model) = made(family);
        let whole = run(&model, None);
        assert!(whole.is_sound(), "{whole}");
        let path = model.join(gone);
        if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) }.expect("removable");
        let found = run(&model, None);
        assert!(!found.is_sound(), "{gone}: {found}");
        assert_eq!(found.parts.len(), whole.parts.len(), "{found}");
        let broken: Vec<_> = found.parts.iter().filter(|part| !part.mistakes.is_empty()).collect();
        let [one] = &broken[..] else { panic!("{gone}: {found}") };
        assert!(one.name.contains(part) && one.mistakes[0].what.contains(words), "{gone}: {found}");
        assert!(found.verdict().is_some_and(|what| what == one.mistakes[0].what), "{found}");
        assert!(found.to_string().contains(&format!("\n{}: not usable\n", one.name)), "{found}");
        // What is there was looked at.
        assert_eq!(found.parts.iter().filter(|part| part.tensors > 0).count(), whole.parts.len() - 1);
    }
}

#[test]
fn two_transformers_are_verified_by_their_names_in_one_folder() {
    let (_folder, model) = made(Family::Wan22);
    for noise in ["high", "low"] {
        let from = model.join(format!("{noise}_noise_model"));
        fs::rename(
            from.join("diffusion_pytorch_model.safetensors"),
            model.join(format!("wan_{noise}.safetensors")),
        )
        .expect("renamed");
        fs::remove_dir_all(from).expect("removable");
    }
    let found = run(&model, None);
    assert!(found.is_sound() && found.parts.len() == 4, "{found}");
    fs::remove_file(model.join("wan_low.safetensors")).expect("removable");
    let found = run(&model, None);
    assert!(
        found.verdict().is_some_and(|what| what.contains("wan_low.safetensors` does not exist")),
        "{found}"
    );
    // A network of its own needs no other one.
    let one = run(&model.join("wan_high.safetensors"), None);
    assert!(one.is_sound() && one.parts.len() == 1, "{one}");
    fs::rename(model.join("wan_high.safetensors"), model.join("wan.safetensors")).expect("renamed");
    let found = run(&model, None);
    assert!(found.verdict().is_some_and(|what| what.contains("needs the other one")), "{found}");
    assert!(found.parts[0].tensors > 0 && found.parts[0].mistakes.is_empty(), "{found}");
}

#[test]
fn wrong_scales_are_named() {
    let scales = |f: fn(f32) -> f32| {
        changed(move |name, data| {
            if name == SCALE {
                each(data, f);
            }
        })
    };
    says(&scales(|_| 1.0), WEIGHT, "without its scale");
    says(&scales(|s| s * s), WEIGHT, "applied twice");
    says(&scales(|s| 1.0 / s), WEIGHT, "inverted");
    says(&scales(|_| f32::NAN), WEIGHT, "NaN");
    // All layers of a file: no other block is right.
    let all = changed(|name, data| {
        if name.ends_with(".scale_weight") {
            each(data, |_| 1.0);
        }
    });
    says(&all, "blocks.0.self_attn.q.weight", "without its scale");
}

#[test]
fn parts_that_were_not_copied_are_named() {
    let zeroed = changed(|name, data| {
        if name == WEIGHT {
            data[1000..].fill(0);
        }
    });
    says(&zeroed, WEIGHT, "zeros in a row");
    let gone = changed(|name, data| {
        if name == "blocks.2.norm3.weight" {
            data.fill(0);
        }
    });
    says(&gone, "blocks.2.norm3.weight", "all zeros");
    let swapped = changed(|name, data| {
        if name == "patch_embedding.weight" {
            data.as_chunks_mut::<4>().0.iter_mut().for_each(|bytes| bytes.reverse());
        }
    });
    assert!(!run(swapped.path(), None).is_sound());
}

#[test]
fn a_file_that_is_cut_is_hashed_and_named() {
    let folder = changed(|_, _| ());
    let file = fs::read_dir(folder.path()).expect("readable").map(|e| e.expect("an entry").path());
    let file =
        file.into_iter().find(|p| p.extension().is_some_and(|e| e == "safetensors")).expect("the model");
    let bytes = fs::read(&file).expect("readable");
    // Under its released name it is known for what it is although it cannot be read.
    fs::remove_file(&file).expect("removable");
    let file = folder.path().join("diffusion_pytorch_model.safetensors");
    fs::write(&file, &bytes[..bytes.len() - 1000]).expect("writable");
    let found = run(folder.path(), None);
    assert!(found.verdict().is_some_and(|what| what.contains("only partly there")), "{found}");
    assert!(found.to_string().contains("\nDiT: not usable\n"), "{found}");
    assert_eq!(found.files.len(), 1);
    // The same length again, filled up with zeros, opens.
    fs::write(&file, [&bytes[..bytes.len() / 2], &vec![0; bytes.len() - bytes.len() / 2]].concat())
        .expect("writable");
    let found = run(folder.path(), None);
    assert!(found.parts[0].mistakes.iter().any(|m| m.what.contains("zeros")), "{found}");
}

#[test]
fn a_change_since_the_last_time_is_said() {
    let state = tempfile::tempdir().expect("a temporary folder");
    let list = state.path().join("hashes.json");
    let folder = changed(|_, _| ());
    let changes = |found: &Verification| found.files.iter().map(|file| file.change).collect::<Vec<_>>();
    assert_eq!(changes(&run(folder.path(), Some(&list))), [Change::New]);
    assert_eq!(changes(&run(folder.path(), Some(&list))), [Change::Same]);
    let file = run(folder.path(), None).files.remove(0).path;
    let is_sound = || Known::read(&list).is_sound(&file);
    assert!(is_sound());
    let other = changed(|name, data| {
        if name == SCALE {
            each(data, |s| s * 1.5);
        }
    });
    for entry in fs::read_dir(other.path()).expect("readable") {
        let path = entry.expect("an entry").path();
        fs::copy(&path, folder.path().join(path.file_name().expect("a name"))).expect("copied");
    }
    assert!(!is_sound(), "it has been written since");
    let found = run(folder.path(), Some(&list));
    assert_eq!(changes(&found), [Change::Replaced]);
    assert!(found.is_sound(), "a plausible change is no mistake");
    assert!(is_sound());
    let broken = changed(|name, data| {
        if name == SCALE {
            each(data, |s| s * s);
        }
    });
    let of_broken = run(broken.path(), Some(&list)).files.remove(0).path;
    assert!(is_sound() && !Known::read(&list).is_sound(&of_broken), "it was seen, and is not sound");
}

#[test]
fn work_can_be_stopped_and_nothing_is_an_error() {
    struct Stopped;
    impl Observer for Stopped {
        fn progress(&self, _: &crate::progress::Progress) {}
        fn canceled(&self) -> bool {
            true
        }
    }
    let stopped = verify(&fixture("tiny-a/official"), None, None, &Stopped, &|_| ());
    assert!(matches!(stopped, Err(Error::Canceled)));
    let empty = tempfile::tempdir().expect("a temporary folder");
    assert!(
        verify(empty.path(), None, None, &Quiet, &|_| ()).is_err_and(|e| e.to_string().contains("empty"))
    );
}

#[test]
fn a_model_file_is_verified_by_the_parts_that_it_names() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let official = fixture("tiny-a/official").canonicalize().expect("a fixture");
    let dit = changed(|name, data| {
        if name == "blocks.1.norm3.bias" {
            each(data, |v| 1e4 * (v + 1.0));
        }
    });
    let (dit, path) = (dit.path(), folder.path().join("tiny.toml"));
    let text = format!(
        "name = \"tiny\"\n[parts]\ndit = {dit:?}\ntext = {official:?}\nclip = {official:?}\nvae = {official:?}\n"
    );
    fs::write(&path, text).expect("writable");
    let found = run(&path, None);
    let components: Vec<_> = found.parts.iter().map(|part| part.component).collect();
    assert_eq!(components, [Component::Dit, Component::T5, Component::Clip, Component::Vae]);
    assert_eq!(found.files.len(), 4, "{found}");
    let wrong: Vec<_> = found.parts.iter().filter(|part| !part.mistakes.is_empty()).collect();
    assert_eq!(wrong.len(), 1, "{found}");
    assert_eq!(wrong[0].component, Component::Dit);
    assert!(found.verdict().is_some());
    fs::write(&path, "name = \"tiny\"\n[parts]\ndit = \"gone\"\n").expect("writable");
    assert!(verify(&path, None, None, &Quiet, &|_| ()).is_err());
}
