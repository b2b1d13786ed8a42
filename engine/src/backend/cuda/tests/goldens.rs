//! The tiny model's four networks against the reference implementation's results, in each precision.
//!
//! The limits are what the roundings of the precision add up to over the few layers of the tiny model, twice what was
//! seen; the goldens themselves are f32.

use std::path::Path;

use super::{Cuda, Options, distance, open};
use crate::backend::{Backend, Keeping, TensorOps};
use crate::goldens::{Golden, folder};
use crate::model::Probe;
use crate::model::clip::Clip;
use crate::model::dit::{Blocks, Dit, Inputs};
use crate::model::t5::T5;
use crate::model::vae::{self, Footage, Vae};
use crate::profile::{AttentionKind, Sensitive, Weights};
use crate::progress::Quiet;
use crate::request::Tiling;
use crate::weights;

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

    /// What the DiT in this folder, with large matrices in 8 bits, makes of the goldens' inputs.
    fn velocity(&self, path: &Path) -> Tensor {
        let cuda = self.cuda;
        let (source, config) = weights::open_dit(path).unwrap();
        let dit = Dit::load(&cuda.loader(IN_FP8), &source, &config).unwrap();
        let fact = |key: &str| self.golden.json.pointer(&format!("/dit/0/{key}")).unwrap();
        let tensor = |key: &str| self.upload(fact(key).as_str().unwrap());
        let x = tensor("x");
        let context = &dit.context(cuda, &tensor("context"), &tensor("clip")).unwrap();
        let time = &dit.time(cuda, fact("t").as_f64().unwrap()).unwrap();
        let [f, h, w] = [1, 2, 3].map(|i| cuda.shape(&x)[i]);
        let grid = &dit.grid(cuda, f, h, w).unwrap();
        let blocks = Blocks::Compute { keep_residual: false };
        let (x, y, attention) = (&x, &tensor("y"), AttentionKind::Exact);
        let inputs = Inputs { x, y, time, context, grid, attention };
        dit.forward(cuda, &inputs, blocks, &Quiet, None).unwrap().velocity
    }
}

const IN_BF16: Keeping = Keeping { weights: Weights::Bf16, ..Keeping::F32 };
const IN_FP8: Keeping = Keeping { weights: Weights::Fp8, ..Keeping::F32 };

/// A way to run the `DiT`.
#[derive(Clone, Copy)]
struct Way {
    what: &'static str,
    keeping: Keeping,
    attention: AttentionKind,
    /// Keys from which on attention counts as self-attention.
    long_context: usize,
    limit: f64,
}

/// A forward of the `DiT`, twice: to the same bits, without asking the driver for memory, and giving all back.
fn forward(way: &Way) -> Option<()> {
    let &Way { what, keeping, attention, long_context, limit } = way;
    let cuda = &open(&Options { long_context, ..Options::default() })?;
    let golden = &Golden::open();
    let judge = Judge { cuda, golden, what, limit };
    let (source, config) = weights::open_dit(&folder().join("official")).unwrap();
    let dit = Dit::load(&cuda.loader(keeping), &source, &config).unwrap();
    let fact = |key: &str| golden.json.pointer(&format!("/dit/0/{key}")).unwrap();
    let tensor = |key: &str| judge.upload(fact(key).as_str().unwrap());
    let (x, y, text, image) = (tensor("x"), tensor("y"), tensor("context"), tensor("clip"));
    let context = dit.context(cuda, &text, &image).unwrap();
    let time = dit.time(cuda, fact("t").as_f64().unwrap()).unwrap();
    let [f, h, w] = [1, 2, 3].map(|i| cuda.shape(&x)[i]);
    let grid = dit.grid(cuda, f, h, w).unwrap();
    let run = |probe: Probe<'_, Tensor>| {
        let blocks = Blocks::Compute { keep_residual: false };
        let inputs = Inputs { x: &x, y: &y, time: &time, context: &context, grid: &grid, attention };
        dit.forward(cuda, &inputs, blocks, &Quiet, probe).unwrap().velocity
    };
    let before = cuda.usage();
    let mut probe = |name: &str, tensor: &Tensor| judge.see(&format!("dit.0.{name}"), tensor);
    run(Some(&mut probe));
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

const BF16: Way = Way {
    what: "bf16 mixed",
    keeping: IN_BF16,
    attention: AttentionKind::Exact,
    long_context: 1024,
    limit: 8e-3,
};

#[test]
fn the_dit_in_bf16() {
    forward(&BF16);
    let keeping = Keeping { sensitive: Sensitive::Same, ..IN_BF16 };
    forward(&Way { what: "bf16", keeping, limit: 1.2e-2, ..BF16 });
}

#[test]
fn the_dit_in_f32() {
    // Attention is computed in bf16 all the same.
    forward(&Way { what: "fp32", keeping: Keeping::F32, limit: 5e-3, ..BF16 });
}

#[test]
fn the_dit_in_8_bits() {
    forward(&Way { what: "fp8 exact", keeping: IN_FP8, limit: 1.5e-1, ..BF16 });
    let eight = Way { attention: AttentionKind::EightBit, long_context: 1, ..BF16 };
    forward(&Way { what: "fp8 8bit", keeping: IN_FP8, limit: 1.5e-1, ..eight });
    forward(&Way { what: "bf16 8bit", limit: 3.2e-2, ..eight });
}

/// What `animd-engine prepare` writes is what the GPU makes of the same files with every start.
#[test]
fn a_prepared_dit_is_the_same_to_the_last_bit() {
    let Some(cuda) = open(&Options::default()) else { return };
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
    let Some(cuda) = open(&Options::default()) else { return };
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
    for (what, keeping, limit) in [("bf16", IN_BF16, 8e-3), ("fp8", IN_FP8, 1.4e-1)] {
        let Some(cuda) = open(&Options::default()) else { return };
        let golden = Golden::open();
        let judge = Judge { cuda: &cuda, golden: &golden, what, limit };
        let file = "official/models_t5_umt5-xxl-enc-bf16.pth";
        let (source, config) = weights::open_t5(&folder().join(file)).unwrap();
        let t5 = T5::load(&cuda.loader(keeping), &source, &config).unwrap();
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
    let Some(cuda) = open(&Options::default()) else { return };
    let golden = Golden::open();
    let judge = Judge { cuda: &cuda, golden: &golden, what: "bf16", limit: 6e-3 };
    let file = "official/models_clip_open-clip-xlm-roberta-large-vit-huge-14.pth";
    let (source, config) = weights::open_clip(&folder().join(file)).unwrap();
    let clip = Clip::load(&cuda.loader(IN_BF16), &source, &config).unwrap();
    let mut probe = |name: &str, tensor: &Tensor| judge.see(&format!("clip.0.{name}"), tensor);
    clip.encode(&cuda, &golden.f32("clip.0.pixel_values"), Some(&mut probe)).unwrap();
}

#[test]
fn the_autoencoder() {
    autoencoder("bf16", IN_BF16, 3e-2);
    // Attention is computed in bf16 all the same: all but nothing comes from there.
    autoencoder("fp32", Keeping::F32, 5e-3);
}

fn autoencoder(what: &'static str, keeping: Keeping, limit: f64) {
    let Some(cuda) = open(&Options::default()) else { return };
    let golden = Golden::open();
    let judge = Judge { cuda: &cuda, golden: &golden, what, limit };
    let (source, config) = weights::open_vae(&folder().join("official/Wan2.1_VAE.pth")).unwrap();
    let vae = Vae::load(&cuda.loader(keeping), &source, &config).unwrap();

    let shape = golden.shape("vae.enc.first_frame");
    let picture = cuda.upload(&golden.f32("vae.enc.first_frame"), &[3, 1, shape[1], shape[2]]).unwrap();
    let footage = Footage::Picture { picture: &picture, latent_frames: golden.shape("vae.enc.mu")[1] };
    let latents = vae.encode(&cuda, footage, Tiling::Whole, &Quiet, None).unwrap();
    judge.see("vae.enc.out", &latents);
    judge.see("y", &vae::condition(&cuda, &latents).unwrap());
    let video = judge.upload("vae.enc2.in");
    let latents = vae.encode(&cuda, Footage::Video(&video), Tiling::Whole, &Quiet, None).unwrap();
    judge.see("vae.enc2.out", &latents);

    let join = |chunks: &[Tensor]| cuda.concat(&chunks.iter().collect::<Vec<_>>(), 1).unwrap();
    let (mut frames, mut seen) = (Vec::new(), std::collections::BTreeMap::<String, Vec<Tensor>>::new());
    let mut sink = |x: Tensor| {
        frames.push(x);
        Ok(())
    };
    let mut probe = |name: &str, x: &Tensor| seen.entry(name.to_owned()).or_default().push(x.clone());
    let latents = judge.upload("vae.dec.in");
    vae.decode(&cuda, &latents, Tiling::Whole, &Quiet, &mut sink, Some(&mut probe)).unwrap();
    for (name, chunks) in &seen {
        judge.see(&format!("vae.{name}"), &join(chunks));
    }
    judge.see("vae.dec.out_unclamped", &join(&frames));
}

/// Tiles on this backend are near tiles on the reference.
#[test]
fn the_autoencoder_in_tiles() {
    in_tiles(IN_BF16, 3e-2);
    in_tiles(Keeping::F32, 8e-3);
}

fn in_tiles(keeping: Keeping, limit: f64) {
    let Some(cuda) = open(&Options::default()) else { return };
    let cpu = crate::backend::cpu::Cpu::new();
    let (source, config) = weights::open_vae(&folder().join("official/Wan2.1_VAE.pth")).unwrap();
    let on_cuda = Vae::load(&cuda.loader(keeping), &source, &config).unwrap();
    let on_cpu = Vae::load(&cpu.loader(Keeping::F32), &source, &config).unwrap();
    // One column of tiles and a rest.
    let latents = super::noise(16 * 2 * 34 * 4, 3);
    let mut got = Vec::new();
    let mut sink = |x: Tensor| {
        got.extend(cuda.download(&x)?);
        Ok(())
    };
    let tensor = cuda.upload(&latents, &[16, 2, 34, 4]).unwrap();
    on_cuda.decode(&cuda, &tensor, Tiling::Tiled, &Quiet, &mut sink, None).unwrap();
    let mut want = Vec::new();
    let mut sink = |x| {
        want.extend(cpu.download(&x)?);
        Ok(())
    };
    let tensor = cpu.upload(&latents, &[16, 2, 34, 4]).unwrap();
    on_cpu.decode(&cpu, &tensor, Tiling::Tiled, &Quiet, &mut sink, None).unwrap();
    let distance = distance(&got, &want);
    println!("tiles {:?} {distance:.1e}", keeping.weights);
    assert!(distance <= limit, "{distance:.1e}");
}
