//! Made-up `LoRA`s for tests.

use std::fs;
use std::path::{Path, PathBuf};

use crate::weights::{DType, safetensors};

/// The rank of the matrices of [`write`]: a number that no kernel likes.
pub const RANK: usize = 5;

/// Writes a `LoRA` with a product for each of these layers, `[rows, cols]`, and with whole differences of other tensors, and
/// returns its path. Another seed gives other values.
pub fn write(
    folder: &Path,
    name: &str,
    products: &[(&str, [usize; 2])],
    whole: &[(&str, usize)],
    seed: u64,
) -> PathBuf {
    let mut tensors: Vec<(String, Vec<usize>, f32)> = Vec::new();
    for (layer, [rows, cols]) in products {
        tensors.push((format!("diffusion_model.{layer}.lora_down.weight"), vec![RANK, *cols], 0.2));
        tensors.push((format!("diffusion_model.{layer}.lora_up.weight"), vec![*rows, RANK], 0.2));
    }
    tensors.extend(whole.iter().map(|(name, len)| (format!("diffusion_model.{name}"), vec![*len], 0.1)));
    let entries = tensors.iter().map(|(name, shape, _)| (&**name, DType::F32, &**shape));
    let mut bytes = safetensors::header(entries);
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    for (_, shape, scale) in &tensors {
        for _ in 0..shape.iter().product() {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let unit = (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0;
            bytes.extend((unit * scale).to_le_bytes());
        }
    }
    let path = folder.join(name);
    fs::write(&path, bytes).expect("it can be written");
    path
}
