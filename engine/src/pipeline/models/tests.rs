//! A pipeline's weights are those of the model's files, with what its model file adds.

use std::fs;
use std::path::Path;

use super::*;

#[test]
fn a_lora_of_a_model_file_is_merged_into_the_transformer() -> Result<(), Box<dyn std::error::Error>> {
    const BIAS: &str = "blocks.0.self_attn.q.bias";
    let official = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/tiny-a/official");
    let plain = Sources::from(weights::Model::open(&official, None)?);
    let before = plain.of(&plain.recipe.experts[0].network)?.tensor(BIAS)?.data;

    let folder = tempfile::tempdir()?;
    let difference = "diffusion_model.blocks.0.self_attn.q.diff_b";
    let bytes = 4 * before.len();
    let header =
        serde_json::json!({difference: {"dtype": "F32", "shape": [before.len()], "data_offsets": [0, bytes]}})
            .to_string();
    let ones = 1.0f32.to_le_bytes().repeat(before.len());
    let lora = folder.path().join("lora.safetensors");
    fs::write(&lora, [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &ones].concat())?;
    let official = fs::canonicalize(official)?;
    let part = |name| format!("{name} = {official:?}\n");
    let text = format!(
        "name = \"tiny\"\n[parts]\n{}[[lora]]\nfile = {lora:?}\nstrength = 0.5\n",
        ["dit", "text", "clip", "vae"].map(part).concat()
    );
    fs::write(folder.path().join("model.toml"), text)?;

    let merged = Sources::from(weights::Model::open(folder.path(), None)?);
    let after = merged.of(&merged.recipe.experts[0].network)?.tensor(BIAS)?.data;
    // One sum in f32, of the same operands on both sides.
    let expected: Vec<f32> = before.iter().map(|value| value + 0.5).collect();
    assert_eq!(after, expected);
    Ok(())
}
