//! The words for what cannot be read, and for what the user can do about it. These functions are called once it is
//! clear that a file, a folder or a model cannot be used; other modules decide whether it can.

use std::path::Path;

use super::Component;
use super::config::ConfigFile;
use super::content::Content;
use super::layouts::Contents;
use super::names;
use crate::{Error, Result};
use animd_protocol::recipe::ExpertName;

/// The model whose diffusion transformer is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Asked {
    /// Wan2.1 image-to-video.
    Wan21,
    /// One of the two transformers of Wan2.2 image-to-video.
    Wan22Expert,
}

/// The models that animd runs.
const ONLY: &str = "animd runs image-to-video of Wan2.1 and of Wan2.2 A14B";

/// Returns why a file is not whole, by its name and what lies beside it: a program that fetches files says so there.
pub(super) fn unfinished(path: &Path) -> Option<&'static str> {
    let name = path.file_name()?;
    let mut beside = name.to_owned();
    beside.push(".aria2");
    if path.with_file_name(beside).exists() {
        return Some(
            "is not fetched to its end: aria2's control file lies beside it; let aria2 finish, or fetch it again",
        );
    }
    let ends = ["part", "incomplete", "aria2", "crdownload", "download"];
    let extension = Path::new(name).extension()?;
    ends.iter().any(|end| extension.eq_ignore_ascii_case(end)).then_some(
        "is not fetched to its end, as its name says; let the program that fetches it finish, or fetch it again",
    )
}

/// Returns what kind of file this is, by its first bytes, if it is of no kind that animd reads.
pub(super) fn container(bytes: &[u8], path: &Path) -> Option<&'static str> {
    match bytes {
        [0x80, 2..=5, ..] => {
            Some("in torch's format from before version 1.6; save it again with a newer torch")
        }
        _ if bytes.starts_with(b"version https://git-lfs") => {
            Some("only a pointer that Git LFS left; run `git lfs pull` in its folder")
        }
        _ if bytes.starts_with(b"<") && bytes.len() < 1 << 20 => {
            Some("a web page, not a model; download it again")
        }
        _ if path.extension().is_some_and(|e| e == "pth" || e == "pt") => {
            Some("not a torch file: it does not begin as a zip archive; copy it again")
        }
        _ if path.extension().is_some_and(|e| e.eq_ignore_ascii_case("gguf")) => {
            Some("not a GGUF file: it does not begin with `GGUF`; copy it again")
        }
        _ => None,
    }
}

/// Folders that hold one of the two transformers of Wan2.2, and those that hold the other one. A `transformer` alone may be of
/// another model.
const FOLDERS: [[&str; 2]; 3] = [
    ["high_noise_model", "low_noise_model"],
    ["low_noise_model", "high_noise_model"],
    ["transformer_2", "transformer"],
];

/// Returns that one of the two transformers of Wan2.2 is not where it is looked for.
pub(super) fn absent(path: &Path, expert: Option<ExpertName>) -> String {
    let which = expert.map_or_else(
        || "one of the two transformers of Wan2.2".to_owned(),
        |expert| format!("the {} transformer of Wan2.2", expert.words()),
    );
    format!("{which} is missing: `{}` does not exist; copy it there", path.display())
}

/// Returns what a folder is that holds no DiT.
pub(super) fn folder(path: &Path, names: &[String]) -> String {
    let shown = path.display();
    let has = |name: &str| names.iter().any(|n| n == name);
    if names.is_empty() {
        format!("`{shown}` is empty; it should hold a Wan2.1 or Wan2.2 image-to-video model as downloaded")
    } else if let Some([there, missing]) = FOLDERS.into_iter().find(|[there, _]| has(there)) {
        match has(missing) {
            true => format!(
                "`{shown}` holds both transformers of Wan2.2, and one is wanted; name the folder of one"
            ),
            false => format!(
                "`{shown}` holds one of the two transformers of Wan2.2, `{there}`, and the other one is missing: `{}` does not \
                 exist; copy it there",
                path.join(missing).display()
            ),
        }
    } else if has("model_index.json") || has("transformer") {
        format!("`{shown}` is laid out for diffusers, and its `transformer` holds no model; copy it again")
    } else if let Some(blob) = names.iter().find(|n| n.ends_with(".incomplete")) {
        format!("`{shown}` is still being fetched: `{blob}` is not finished; fetch it again to go on")
    } else {
        format!("`{shown}` holds no transformer: `diffusion_pytorch_model*.safetensors` is missing")
    }
}

/// Returns the name of another model, by its `config.json`.
pub(super) fn config(file: &ConfigFile) -> Option<String> {
    match file.model_type.as_deref() {
        None | Some("i2v" | "flf2v") => None,
        Some("t2v") => Some(format!("says `t2v`: this is the text-to-video model; {ONLY}")),
        Some("ti2v") => Some(format!("says `ti2v`: this is Wan2.2 5B; {ONLY}")),
        Some(other) => Some(format!("says model type `{other}`, not `i2v`; {ONLY}")),
    }
}

/// Describes the content of a file that was expected to hold a component.
pub(super) fn component(component: Component, content: &Content) -> String {
    let tensors = &content.tensors;
    let has = |part: &str| tensors.keys().any(|n| n.contains(part));
    let title = component.title();
    if has(".lora_") || has("lora_A.") || has("_lora.") || has(".lokr_w") || has(".hada_w") {
        return "is a LoRA, not a whole model".to_owned();
    }
    let of_wan_22 = tensors.get("conv2.weight").is_some_and(|tensor| tensor.shape.first() == Some(&48));
    if has(".downsamples.0.downsamples.") || of_wan_22 {
        return "is the VAE of Wan2.2 TI2V-5B (48 channels), and not Wan2.1's; animd needs `Wan2.1_VAE.pth`"
            .to_owned();
    }
    for (blocks, bias) in
        [("encoder.block.", "relative_attention_bias.weight"), ("enc.blk.", "attn_rel_b.weight")]
    {
        let [all, with] = names::t5_biases(tensors, blocks, bias);
        if all > 0 && with < all {
            return "is T5 v1.1, with one relative bias for all layers, as FLUX and SD3 use it; Wan needs umT5-XXL"
                .to_owned();
        }
    }
    if let Some(other) = names::find(tensors) {
        let other = other.component.title();
        return format!("is a {other}, not a {title}");
    }
    if let Some(architecture) = content.architecture.as_deref().filter(|a| !a.is_empty()) {
        let architecture: String = architecture.chars().take(60).collect();
        return format!(
            "is not a {title}: its `general.architecture` is `{}`, not `{}`",
            architecture.escape_debug(),
            if component == Component::T5 { "t5encoder" } else { "wan" }
        );
    }
    if component == Component::Dit {
        return match has("double_blocks.") {
            true => format!("is FLUX, and not a Wan transformer; {ONLY}"),
            false => format!("is not a Wan transformer; {ONLY}"),
        };
    }
    let some: Vec<String> = tensors.keys().take(3).map(|n| format!("`{}`", n.escape_debug())).collect();
    format!("is not a {title}: it has {} tensors ({})", tensors.len(), some.join(", "))
}

/// Tensors that only one variant of Wan's transformer has, and the variant.
const VARIANTS: [(&str, &str); 9] = [
    ("vace_", "Wan2.1 VACE"),
    ("ref_conv.", "Wan Fun Control"),
    ("control_adapter.", "Wan Fun with camera control"),
    ("pose_patch_embedding", "Wan2.2 Animate"),
    ("face_adapter.", "Wan2.2 Animate"),
    ("casual_audio_encoder.", "Wan2.2 S2V (speech to video)"),
    ("audio_injector.", "Wan2.2 S2V (speech to video)"),
    ("audio_proj.", "a model that listens to sound (HuMo)"),
    ("cam_encoder.", "a model with camera control"),
];

/// Returns the name of another Wan model than the one that was asked for, by the official names of a DiT's tensors.
pub(super) fn model(contents: &Contents, asked: Asked) -> Option<String> {
    let has = |part: &str| contents.tensors.keys().any(|n| n.contains(part));
    let extent = |name: &str, axis: usize| Some(*contents.tensors.get(name)?.shape.get(axis)?);
    if let Some((_, variant)) = VARIANTS.iter().find(|(part, _)| has(part)) {
        return Some(format!("is {variant}; {ONLY}"));
    }
    let channels = extent("patch_embedding.weight", 1);
    let pictures = has("img_emb.") || has("cross_attn.k_img");
    match (channels, asked) {
        (Some(48), _) if extent("head.head.weight", 0) == Some(192) => {
            Some(format!("is Wan2.2 TI2V-5B (48 channels in and out); {ONLY}"))
        }
        (Some(16), _) if !pictures => {
            Some(format!("is the text-to-video model (16 channels in, no image embedding); {ONLY}"))
        }
        (_, Asked::Wan21) if !pictures => Some(format!(
            "has no image embedding, as Wan2.2: it is one of that model's two transformers, and needs the other one; \
             {ONLY}"
        )),
        (_, Asked::Wan22Expert) if pictures => {
            Some("has an image embedding: it is Wan2.1, and not one of Wan2.2's two transformers".to_owned())
        }
        _ => None,
    }
}

/// Returns `Ok` if there are no errors, the only error, or one error that lists them all.
pub(super) fn merge(mut errors: Vec<Error>) -> Result<()> {
    match errors.len() {
        0 => Ok(()),
        1 => Err(errors.remove(0)),
        _ => Err(Error::Model(errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))),
    }
}
