//! A pipeline's weights are those of the model's files, with what its model file adds.

use std::fs;
use std::path::Path;

use animd_protocol::request::Settings;

use super::super::own_loras::OwnLoras;
use super::*;
use crate::backend::cpu::Cpu;
use crate::progress::Quiet;

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

    // What it was is in the metadata of the model's videos, as for a LoRA that a job chooses.
    let mut pipeline = Pipeline::open(Cpu::new(), &Setup::CPU, folder.path(), None, None)?;
    let metadata: serde_json::Value =
        serde_json::from_str(&pipeline.metadata(&Settings::default().resolve(|| 1)?, &Quiet)?)?;
    let own = &metadata["model_loras"][0];
    assert_eq!(
        (&own["name"], &own["strength"], &own["strength_low"]),
        (&"lora".into(), &0.5.into(), &().into())
    );
    assert_eq!(own["sha256"], crate::verify::hash_of(&lora)?);
    // A file that is gone before it was read is an error of every job, not only of the first.
    let adapter = weights::Model::open(folder.path(), None)?.loras;
    fs::remove_file(&lora)?;
    let mut own = OwnLoras::of(&adapter);
    for _ in 0..2 {
        assert!(own.get(&Quiet).is_err_and(|e| e.to_string().contains("lora.safetensors")));
    }
    Ok(())
}
