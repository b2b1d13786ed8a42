//! The tiny model's four networks against the reference implementation's results, in each precision.
//!
//! The limits are what the roundings of the precision add up to over the few layers of the tiny model, twice what was
//! seen; the goldens themselves are f32.

use std::path::Path;

use super::{Cuda, Options, distance, open};
use crate::backend::{Backend, TensorOps};
use crate::goldens::{Golden, folder};
use crate::model::Probe;
use crate::model::clip::Clip;
use crate::model::dit::{Blocks, Dit};
use crate::model::t5::T5;
use crate::model::vae::{self, Vae};
use crate::profile::{self, AttentionKind, Sensitive, Weights};
use crate::progress::Quiet;
use crate::weights::{self, Component};

type Tensor = <Cuda as TensorOps>::Tensor;

/// Checks results and prints how far they are away.
struct Judge<'a> {
    cuda: &'a Cuda,
    golden: &'a Golden,
    what: &'static str,
    limit: f64,
}

impl Judge<'_> {
    #[track_caller]
    fn see(&self, name: &str, tensor: &Tensor) {
        let mut got = self.cuda.download(tensor).expect("it can be read");
        let want: Vec<f32> = self.golden.numbers(name).iter().map(|v| *v as f32).collect();
        // The reference keeps one of the padding's rows, which are all alike.
        got.truncate(want.len());
        let distance = distance(&got, &want);
        println!("{:12} {name:32} {distance:.1e}", self.what);
        assert!(
            distance <= self.limit,
            "{} {name} is {distance:.1e} away, {:.0e} allowed",
            self.what,
            self.limit
        );
    }

    fn upload(&self, name: &str) -> Tensor {
        let values: Vec<f32> = self.golden.numbers(name).iter().map(|v| *v as f32).collect();
        self.cuda.upload(&values, &self.golden.shape(name)).expect("there is room")
    }

    /// What the DiT in this folder makes of the goldens' inputs.
    fn velocity(&self, path: &Path) -> Tensor {
        let cuda = self.cuda;
        let (source, config) = weights::open_dit(path).unwrap();
        let dit = Dit::load(&cuda.loading(Component::Dit), &source, &config).unwrap();
        let fact = |key: &str| self.golden.json.pointer(&format!("/dit/0/{key}")).unwrap();
        let tensor = |key: &str| self.upload(fact(key).as_str().unwrap());
        let x = tensor("x");
        let context = dit.context(cuda, &tensor("context"), &tensor("clip")).unwrap();
        let time = dit.time(cuda, fact("t").as_f64().unwrap()).unwrap();
        let [f, h, w] = [1, 2, 3].map(|i| cuda.shape(&x)[i]);
        let grid = dit.grid(cuda, f, h, w).unwrap();
        let blocks = Blocks::Compute { keep_residual: false };
        dit.forward(cuda, &x, &tensor("y"), &time, &context, &grid, blocks, &Quiet, None).unwrap().velocity
    }
}

fn precision(weights: Weights, sensitive: Sensitive) -> profile::Precision {
    let text = weights;
    profile::Precision { dit: weights, sensitive, text, ..Options::BF16.precision }
}

/// A forward of the `DiT`, twice: to the same bits, without asking the driver for memory, and giving all back.
fn forward(what: &'static str, options: &Options, layout: &str, limit: f64) -> Option<()> {
    let cuda = &open(options)?;
    let golden = &Golden::open();
    let judge = Judge { cuda, golden, what, limit };
    let (source, config) = weights::open_dit(&folder().join(layout)).unwrap();
    let dit = Dit::load(&cuda.loading(Component::Dit), &source, &config).unwrap();
    let fact = |key: &str| golden.json.pointer(&format!("/dit/0/{key}")).unwrap();
    let tensor = |key: &str| judge.upload(fact(key).as_str().unwrap());
    let (x, y, text, image) = (tensor("x"), tensor("y"), tensor("context"), tensor("clip"));
    let context = dit.context(cuda, &text, &image).unwrap();
    let time = dit.time(cuda, fact("t").as_f64().unwrap()).unwrap();
    let [f, h, w] = [1, 2, 3].map(|i| cuda.shape(&x)[i]);
    let grid = dit.grid(cuda, f, h, w).unwrap();
    let run = |probe: Probe<'_, Tensor>| {
        let blocks = Blocks::Compute { keep_residual: false };
        dit.forward(cuda, &x, &y, &time, &context, &grid, blocks, &Quiet, probe).unwrap().velocity
    };
    let mut probe = |name: &str, tensor: &Tensor| judge.see(&format!("dit.0.{name}"), tensor);
    run(Some(&mut probe));

    // The norms of the context's keys were computed by the first forward, and stay.
    let before = cuda.usage();
    let values = cuda.download(&run(None)).unwrap();
    let after = cuda.usage();
    assert_eq!((before[1].used, before[1].reservations), (after[1].used, after[1].reservations));
    assert_eq!((before[0].used, before[0].reservations), (after[0].used, after[0].reservations));
    assert!(cuda.download(&run(None)).unwrap() == values, "the same twice is not the same");
    println!("{what:12} work at most {:.2} MB", cuda.usage()[1].peak as f64 / 1e6);
    drop((dit, context, time, grid, x, y, text, image));
    assert_eq!(cuda.usage().map(|usage| usage.used), [0, 0]);
    Some(())
}

#[test]
fn the_dit_in_bf16() {
    let options = Options { precision: precision(Weights::Bf16, Sensitive::Fp32), ..Options::BF16 };
    forward("bf16 mixed", &options, "official", 8e-3);
    let options = Options { precision: precision(Weights::Bf16, Sensitive::Same), ..options };
    forward("bf16", &options, "official", 1.2e-2);
}

#[test]
fn the_dit_in_f32() {
    let options = Options { precision: precision(Weights::Fp32, Sensitive::Fp32), ..Options::BF16 };
    // Attention is computed in bf16 all the same.
    forward("fp32", &options, "official", 5e-3);
}

#[test]
fn the_dit_in_8_bits() {
    let exact = Options { precision: precision(Weights::Fp8, Sensitive::Fp32), ..Options::BF16 };
    forward("fp8 exact", &exact, "official", 1.5e-1);
    let eight = Options { attention: AttentionKind::EightBit, long_context: 1, ..exact };
    forward("fp8 8bit", &eight, "official", 1.5e-1);
    forward("bf16 8bit", &Options { precision: Options::BF16.precision, ..eight }, "official", 3.2e-2);
}

/// What `animd-engine prepare` writes is what the GPU makes of the same files with every start.
#[test]
fn a_prepared_dit_is_the_same_to_the_last_bit() {
    let options = Options { precision: precision(Weights::Fp8, Sensitive::Fp32), ..Options::BF16 };
    let Some(cuda) = open(&options) else { return };
    let golden = Golden::open();
    let dir = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(folder().join("official")).unwrap().flatten() {
        let name = entry.file_name();
        if name.to_string_lossy().starts_with("diffusion") || name == "config.json" {
            std::fs::copy(entry.path(), dir.path().join(name)).unwrap();
        }
    }
    let prepared = weights::prepare(dir.path(), &mut |_, _| Ok(())).unwrap();
    let judge = Judge { cuda: &cuda, golden: &golden, what: "prepared", limit: 0.0 };
    let velocity = |path: &Path| cuda.download(&judge.velocity(path)).unwrap();
    assert!(velocity(dir.path()) == velocity(&prepared.folder));
}

/// Weights that come in 8 bits, and what the reference makes of them with inputs in 8 bits.
#[test]
fn the_dit_from_files_in_8_bits() {
    let options = Options { precision: precision(Weights::Fp8, Sensitive::Fp32), ..Options::BF16 };
    let Some(cuda) = open(&options) else { return };
    let golden = Golden::open();
    for (layout, key, limit) in [
        ("lightx2v_fp8", "dit.0.out_lightx2v_fp8_w8a8", 4e-2),
        ("comfy_fp8", "dit.0.out_comfy_fp8_dequant", 4e-2),
    ] {
        let judge = Judge { cuda: &cuda, golden: &golden, what: "fp8 files", limit };
        judge.see(key, &judge.velocity(&folder().join(layout)));
    }
}

#[test]
fn the_text_encoder() {
    for (what, weights, limit) in [("bf16", Weights::Bf16, 8e-3), ("fp8", Weights::Fp8, 1.4e-1)] {
        let options = Options { precision: precision(weights, Sensitive::Fp32), ..Options::BF16 };
        let Some(cuda) = open(&options) else { return };
        let golden = Golden::open();
        let judge = Judge { cuda: &cuda, golden: &golden, what, limit };
        let file = "official/models_t5_umt5-xxl-enc-bf16.pth";
        let (source, config) = weights::open_t5(&folder().join(file)).unwrap();
        let t5 = T5::load(&cuda.loading(Component::T5), &source, &config).unwrap();
        for fact in golden.json["t5"].as_array().unwrap() {
            let (prompt, len) = (fact["prompt"].as_u64().unwrap(), fact["len"].as_u64().unwrap() as usize);
            let ids = golden.numbers(&format!("tok.{prompt}.ids"));
            let ids: Vec<u32> = ids[..len].iter().map(|id| *id as u32).collect();
            let mut probe = |name: &str, tensor: &Tensor| judge.see(&format!("t5.{prompt}.{name}"), tensor);
            t5.encode(&cuda, &ids, Some(&mut probe)).unwrap();
        }
    }
}

#[test]
fn the_image_encoder() {
    let Some(cuda) = open(&Options::BF16) else { return };
    let golden = Golden::open();
    let judge = Judge { cuda: &cuda, golden: &golden, what: "bf16", limit: 6e-3 };
    let file = "official/models_clip_open-clip-xlm-roberta-large-vit-huge-14.pth";
    let (source, config) = weights::open_clip(&folder().join(file)).unwrap();
    let clip = Clip::load(&cuda.loading(Component::Clip), &source, &config).unwrap();
    let mut probe = |name: &str, tensor: &Tensor| judge.see(&format!("clip.0.{name}"), tensor);
    clip.encode(&cuda, &golden.f32("clip.0.pixel_values"), Some(&mut probe)).unwrap();
}

fn with_vae(vae: Weights) -> Options {
    Options { precision: profile::Precision { vae, ..Options::BF16.precision }, ..Options::BF16 }
}

#[test]
fn the_autoencoder() {
    autoencoder("bf16", Weights::Bf16, 3e-2);
    // Attention is computed in bf16 all the same: all but nothing comes from there.
    autoencoder("fp32", Weights::Fp32, 5e-3);
}

fn autoencoder(what: &'static str, weights: Weights, limit: f64) {
    let Some(cuda) = open(&with_vae(weights)) else { return };
    let golden = Golden::open();
    let judge = Judge { cuda: &cuda, golden: &golden, what, limit };
    let (source, config) = weights::open_vae(&folder().join("official/Wan2.1_VAE.pth")).unwrap();
    let vae = Vae::load(&cuda.loading(Component::Vae), &source, &config).unwrap();

    let shape = golden.shape("vae.enc.first_frame");
    let picture = cuda.upload(&golden.f32("vae.enc.first_frame"), &[3, 1, shape[1], shape[2]]).unwrap();
    let latents = vae.encode_picture(&cuda, &picture, golden.shape("vae.enc.mu")[1], &Quiet).unwrap();
    judge.see("vae.enc.out", &latents);
    judge.see("y", &vae::condition(&cuda, &latents).unwrap());
    judge.see("vae.enc2.out", &vae.encode(&cuda, &judge.upload("vae.enc2.in"), &Quiet).unwrap());

    let join = |chunks: &[Tensor]| cuda.concat(&chunks.iter().collect::<Vec<_>>(), 1).unwrap();
    let (mut frames, mut seen) = (Vec::new(), std::collections::BTreeMap::<String, Vec<Tensor>>::new());
    let mut sink = |x: Tensor| {
        frames.push(x);
        Ok(())
    };
    let mut probe = |name: &str, x: &Tensor| seen.entry(name.to_owned()).or_default().push(x.clone());
    vae.decode_probed(&cuda, &judge.upload("vae.dec.in"), &mut sink, Some(&mut probe)).unwrap();
    for (name, chunks) in &seen {
        judge.see(&format!("vae.{name}"), &join(chunks));
    }
    judge.see("vae.dec.out_unclamped", &join(&frames));
}

/// Tiles on this backend are near tiles on the reference.
#[test]
fn the_autoencoder_in_tiles() {
    in_tiles(Weights::Bf16, 3e-2);
    in_tiles(Weights::Fp32, 8e-3);
}

fn in_tiles(weights: Weights, limit: f64) {
    let Some(cuda) = open(&with_vae(weights)) else { return };
    let cpu = crate::backend::cpu::Cpu::new();
    let (source, config) = weights::open_vae(&folder().join("official/Wan2.1_VAE.pth")).unwrap();
    let on_cuda = Vae::load(&cuda.loading(Component::Vae), &source, &config).unwrap();
    let on_cpu = Vae::load(&cpu, &source, &config).unwrap();
    // One column of tiles and a rest.
    let latents = super::noise(16 * 2 * 34 * 4, 3);
    let mut got = Vec::new();
    let mut sink = |x: Tensor| {
        got.extend(cuda.download(&x)?);
        Ok(())
    };
    on_cuda.decode_tiled(&cuda, &cuda.upload(&latents, &[16, 2, 34, 4]).unwrap(), &Quiet, &mut sink).unwrap();
    let mut want = Vec::new();
    let mut sink = |x| {
        want.extend(cpu.download(&x)?);
        Ok(())
    };
    on_cpu.decode_tiled(&cpu, &cpu.upload(&latents, &[16, 2, 34, 4]).unwrap(), &Quiet, &mut sink).unwrap();
    let distance = distance(&got, &want);
    println!("tiles {weights:?} {distance:.1e}");
    assert!(distance <= limit, "{distance:.1e}");
}
