//! Fuzzes the engine's reading of model files: safetensors, GGUF and torch files, as each network, and as a LoRA. Every
//! tensor of a file that is let through is read.
#![no_main]

use std::io::Write as _;

use animd_engine::Error;
use animd_engine::weights::{DitConfig, Lora, WeightSource, Weights};
use animd_engine::weights::{open_clip, open_dit, open_expert, open_t5, open_vae};
use libfuzzer_sys::fuzz_target;

/// The sizes of the model that a LoRA is opened for.
const DIT: DitConfig = DitConfig {
    dim: 128,
    ffn_dim: 256,
    freq_dim: 256,
    in_dim: 36,
    out_dim: 16,
    num_heads: 1,
    num_layers: 2,
    eps: 1e-6,
    text_len: 512,
    text_dim: 64,
    image_dim: Some(80),
    image_positions: None,
};

fuzz_target!(|data: &[u8]| {
    let mut file = tempfile::NamedTempFile::new_in("/dev/shm").expect("a temporary file");
    file.write_all(data).expect("it can be written");
    let path = file.path();
    check(open_dit(path).map(|(weights, _)| weights));
    check(open_expert(path).map(|(weights, _)| weights));
    check(open_t5(path).map(|(weights, _)| weights));
    check(open_clip(path).map(|(weights, _)| weights));
    check(open_vae(path).map(|(weights, _)| weights));
    if let Err(e) = Lora::open(path, &DIT) {
        refused(&e);
    }
});

fn check(opened: animd_engine::Result<Weights>) {
    let read = opened.and_then(|weights| {
        for name in weights.names() {
            weights.tensor(name)?;
        }
        Ok(())
    });
    if let Err(e) = read {
        refused(&e);
    }
}

/// A file can only be wrong; what the engine calls a fault of its own is one.
fn refused(e: &Error) {
    assert!(matches!(e, Error::Model(_)), "{e:?}");
}
