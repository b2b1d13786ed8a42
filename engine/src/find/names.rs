//! What models are called: a model's name comes from its transformer's.

use std::path::Path;

use animd_protocol::model_file::MAX_NAME;

use crate::weights;

/// Names of files and folders that say nothing about the model in them.
const PLAIN: [&str; 20] = [
    "diffusion_pytorch_model",
    "model",
    "pytorch_model",
    "non_block",
    "transformer",
    "transformer_2",
    "high_noise_model",
    "low_noise_model",
    "diffusion_models",
    "unet",
    "checkpoints",
    "split_files",
    "models",
    "original",
    "fp8",
    "int8",
    "distill_models",
    "distill_fp8",
    "distill_int8",
    "snapshots",
];

/// Returns a name for a model with these transformers.
pub(super) fn of_model<'a>(mut paths: impl Iterator<Item = &'a Path>) -> String {
    let Some(path) = paths.next() else { return "wan".to_owned() };
    let is_pair = weights::said_by(path).is_some();
    let name = path.ancestors().filter(|path| path.file_name().is_some()).find_map(|path| {
        let name = stem(path);
        let name = if is_pair { weights::without_noise(&name) } else { name };
        let is_plain = name.is_empty() || PLAIN.iter().any(|plain| name.eq_ignore_ascii_case(plain));
        (!is_plain).then_some(name)
    });
    allowed(&name.unwrap_or_default())
}

/// Returns the name of a file without what follows from its format, or a folder's name.
fn stem(path: &Path) -> String {
    let title = weights::title(path);
    if path.is_dir() {
        return title;
    }
    let mut name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    for end in [".index.json", ".safetensors", ".sft", ".gguf", ".pth", ".pt"] {
        name.truncate(name.strip_suffix(end).map_or(name.len(), str::len));
    }
    // `NAME-00001-of-00007`
    match name.rsplit_once("-of-").and_then(|(rest, _)| rest.rsplit_once('-')) {
        Some((base, number)) if number.chars().all(|c| c.is_ascii_digit()) => base.to_owned(),
        _ => name,
    }
}

/// Returns a name of the characters that a model's name may have.
fn allowed(name: &str) -> String {
    let plain = |c: char| if c.is_alphanumeric() || "-_.".contains(c) { c } else { '-' };
    let name: String = name.chars().map(plain).collect();
    let name: String = name.trim_matches(['-', '_', '.']).chars().take(MAX_NAME).collect();
    let name = name.trim_end_matches(['-', '_', '.']);
    if name.is_empty() { "wan".to_owned() } else { name.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_model_is_called_after_its_transformer() {
        for (path, name) in [
            (
                "/m/diffusion_models/wan2.1_i2v_480p_14B_fp8_scaled.safetensors",
                "wan2.1_i2v_480p_14B_fp8_scaled",
            ),
            (
                "/m/Wan2.1-I2V-14B-480P/diffusion_pytorch_model-00001-of-00007.safetensors",
                "Wan2.1-I2V-14B-480P",
            ),
            ("/m/wan2.2_i2v_high_noise_14B_fp8.safetensors", "wan2.2_i2v_14B_fp8"),
            ("/m/Wan2.2-I2V-A14B/high_noise_model", "Wan2.2-I2V-A14B"),
            ("/m/HighNoise/Wan2.2-I2V-A14B-HighNoise-Q4_K_M.gguf", "Wan2.2-I2V-A14B-Q4_K_M"),
            ("/m/my \"best\" model (2).gguf", "my--best--model--2"),
            ("/models/model.gguf", "wan"),
            ("/m/läuft.gguf", "läuft"),
        ] {
            assert_eq!(of_model([Path::new(path)].into_iter()), name, "{path}");
        }
        let long = format!("/m/{}.gguf", "x".repeat(200));
        assert_eq!(of_model([Path::new(&long)].into_iter()).len(), MAX_NAME);
    }
}
