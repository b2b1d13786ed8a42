//! The words for what cannot be read, and for what the user can do about it. These functions are called once it is
//! clear that a file, a folder or a model cannot be used; other modules decide whether it can.

use std::path::Path;

use super::Component;
use super::config::ConfigFile;
use super::layouts::{self, Contents, Layout};
use super::stored::Tensors;
use crate::{Error, Result};

/// The models that animd runs.
const ONLY: &str = "animd runs Wan2.1 image-to-video";

/// Returns what kind of file this is, by its first bytes, if neither safetensors nor torch wrote it.
pub(super) fn container(bytes: &[u8], path: &Path) -> Option<&'static str> {
    match bytes {
        [0x80, 2..=5, ..] => {
            Some("in torch's format from before version 1.6; save it again with a newer torch")
        }
        _ if bytes.starts_with(b"version https://git-lfs") => {
            Some("only a pointer that Git LFS left; run `git lfs pull` in its folder")
        }
        _ if bytes.starts_with(b"GGUF") => Some("a GGUF file, which animd does not read"),
        _ if bytes.starts_with(b"<") && bytes.len() < 1 << 20 => {
            Some("a web page, not a model; download it again")
        }
        _ if path.extension().is_some_and(|e| e == "pth" || e == "pt") => {
            Some("not a torch file: it does not begin as a zip archive; copy it again")
        }
        _ => None,
    }
}

/// Returns what a folder is that holds no DiT.
pub(super) fn folder(path: &Path, names: &[String]) -> String {
    let shown = path.display();
    let has = |name: &str| names.iter().any(|n| n == name);
    if names.is_empty() {
        format!("`{shown}` is empty; it should hold a Wan2.1 image-to-video model as downloaded")
    } else if has("model_index.json") || has("transformer") {
        format!(
            "`{shown}` is laid out for diffusers; animd reads the official layout \
             (`Wan-AI/Wan2.1-I2V-14B-480P`, without `-Diffusers`), and LightX2V's and ComfyUI's fp8 files"
        )
    } else if has("high_noise_model") || has("low_noise_model") {
        format!("`{shown}` is Wan2.2, which has two transformers; animd runs Wan2.1 image-to-video")
    } else if names.iter().any(|n| Path::new(n).extension().is_some_and(|e| e.eq_ignore_ascii_case("gguf"))) {
        format!("`{shown}` holds GGUF files; animd reads safetensors")
    } else {
        format!("`{shown}` holds no transformer: `diffusion_pytorch_model*.safetensors` is missing")
    }
}

/// Returns the name of another model, by its `config.json`.
pub(super) fn config(file: &ConfigFile) -> Option<String> {
    if file.class_name.as_deref() == Some("WanTransformer3DModel") {
        return Some("belongs to the diffusers layout; animd reads the official one".to_owned());
    }
    match file.model_type.as_deref() {
        None | Some("i2v") => None,
        Some("t2v") => {
            Some("says `t2v`: this is the text-to-video model; animd needs Wan2.1 image-to-video".to_owned())
        }
        Some("flf2v") => Some(
            "says `flf2v`: this is the first-and-last-frame model; animd needs image-to-video".to_owned(),
        ),
        Some("ti2v") => Some("says `ti2v`: this is Wan2.2 5B; animd needs Wan2.1 image-to-video".to_owned()),
        Some(other) => Some(format!("says model type `{other}`; animd needs Wan2.1 image-to-video (`i2v`)")),
    }
}

/// Describes the content of a file that was expected to hold another component.
pub(super) fn component(component: Component, tensors: &Tensors) -> String {
    let has = |part: &str| tensors.keys().any(|n| n.contains(part));
    let title = component.title();
    if has("down_blocks.") || has("encoder.block.") || has("vision_model.") {
        format!("has the tensor names of diffusers and transformers; animd reads the official {title}")
    } else if component == Component::Vae && has(".downsamples.0.downsamples.") {
        "is the VAE of Wan2.2; animd runs Wan2.1".to_owned()
    } else if let Some(other) = layouts::component(tensors) {
        format!("is a {}, not a {title}", other.title())
    } else {
        let some: Vec<String> = tensors.keys().take(3).map(|n| format!("`{n}`")).collect();
        format!("is not a {title}: it has {} tensors ({})", tensors.len(), some.join(", "))
    }
}

/// Describes a file whose tensors were expected to be a DiT's but that has the marks of no layout; `None` if it may be
/// official.
pub(super) fn layout(tensors: &Tensors) -> Option<String> {
    let has = |part: &str| tensors.keys().any(|n| n.contains(part));
    let what = if has("condition_embedder.") {
        "has diffusers' tensor names; animd reads the official layout, and LightX2V's and ComfyUI's fp8 files"
            .to_owned()
    } else if has(".lora_") || has("lora_A.") || has("_lora.") {
        "is a LoRA, not a whole model".to_owned()
    } else if layouts::component(tensors) != Some(Component::Dit) {
        match layouts::component(tensors) {
            Some(other) => format!("is a {}, not a transformer", other.title()),
            None => format!("is not a Wan transformer; {ONLY}"),
        }
    } else if has("weight_global_scale") || has(".comfy_quant") || layouts::has_integers(tensors) {
        "is quantised in a way that animd does not read; it reads LightX2V's fp8 and ComfyUI's fp8_scaled"
            .to_owned()
    } else {
        return None;
    };
    Some(what)
}

/// Describes a file that has the marks of more than one layout.
pub(super) fn contradiction((one, of_one): (&Layout, &str), (other, of_other): (&Layout, &str)) -> String {
    format!(
        "has the marks of two layouts, `{of_one}` of {} and `{of_other}` of {}, so that it is not clear which scales \
         apply; use a file as one program wrote it",
        one.title(),
        other.title()
    )
}

/// Returns the name of another Wan model, by the official names of a DiT's tensors.
pub(super) fn model(contents: &Contents) -> Option<String> {
    let has = |part: &str| contents.tensors.keys().any(|n| n.contains(part));
    let what = if has("vace_blocks.") {
        format!("is Wan2.1 VACE; {ONLY}")
    } else if has("img_emb.emb_pos") {
        format!("is the first-and-last-frame model (FLF2V); {ONLY}")
    } else if !has("img_emb.") && !has("cross_attn.k_img") {
        match contents.tensors.get("patch_embedding.weight").and_then(|t| t.shape().get(1)) {
            Some(16) => format!("is the text-to-video model (16 channels in, no image embedding); {ONLY}"),
            _ => format!("has no image embedding, as Wan2.2; {ONLY}"),
        }
    } else {
        return None;
    };
    Some(what)
}

/// Returns `Ok` if there are no errors, the only error, or one error that lists them all.
pub(super) fn merge(mut errors: Vec<Error>) -> Result<()> {
    match errors.len() {
        0 => Ok(()),
        1 => Err(errors.remove(0)),
        _ => Err(Error::Model(errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))),
    }
}
