//! The tiny model's four networks against the reference implementation's results, in each precision.
//!
//! The goldens are f32. The limits are what the roundings of a precision add up to: see [`branch`] and [`volumes`].

use std::path::Path;

use super::{Cuda, Options, distance, open};
use crate::backend::{Backend, Keeping, TensorOps};
use crate::goldens::{Golden, folder};
use crate::model::Probe;
use crate::model::clip::Clip;
use crate::model::dit::{Blocks, Dit, Inputs};
use crate::model::t5::T5;
use crate::model::vae::{self, Footage, Piece, Vae};
use crate::progress::Quiet;
use crate::weights;
use animd_protocol::profile::{AttentionKind, Precision, Sensitive};

type Tensor = <Cuda as TensorOps>::Tensor;

/// The root mean square of the relative error of rounding to bf16, and to e4m3 with a scale for each row.
pub(super) const TO_BF16: f64 = 1.7e-3;
pub(super) const TO_E4M3: f64 = 0.026;
/// The root mean square error of rounding rotated rows to int8, relative to theirs: units of 1/127 of the largest, which is 4
/// deviations, over the root of 12.
pub(super) const TO_INT8: f64 = 4.0 / 127.0 / 3.46;

/// Returns the error that a branch of a transformer may have, before it is added to the stream, with so many roundings
/// to bf16 and to e4m3 on its way.
pub(super) fn branch(to_bf16: u32, to_e4m3: u32) -> f64 {
    branch_of(to_bf16, to_e4m3, TO_E4M3)
}

/// Returns the error that a branch may have with so many roundings to bf16, and so many with this error each.
///
/// Independent errors add up by their squares, to R. A stream that grows by independent branches, each of which brings
/// its own R and the relative error E that the stream had, follows dE² = (E² + R²) ds, where s is the logarithm of the
/// stream's squares. All three tiny networks grow by less than e: by 2.5 (the `DiT`, from 0.952 to 1.510), 2.5 and 2.5.
/// So E² stays below (e - 1) R², and a branch below (E² + R²) = e R².
fn branch_of(to_bf16: u32, roundings: u32, each: f64) -> f64 {
    let squares = f64::from(to_bf16) * TO_BF16.powi(2) + f64::from(roundings) * each.powi(2);
    (std::f64::consts::E * squares).sqrt()
}

/// Returns the error that volumes may have after so many roundings to bf16: each counts in the volume itself, and in
/// the results of later layers.
fn volumes(roundings: u32) -> f64 {
    (2.0 * f64::from(roundings)).sqrt() * TO_BF16
}

/// The roundings in the longest branch of the `DiT`, cross-attention: the norm, q's weight, q, its norm; the weights of
/// keys and values, keys and values, the keys' norm; the softmax, attention's result, and the last weight.
pub(super) const CROSS_ATTENTION: u32 = 10;
/// Those of these roundings that affect operands: the norm, the text, attention's result, and three weights.
pub(super) const OPERANDS: u32 = 6;
/// The roundings of attention in bf16 among layers in f32: queries, keys, values, softmax, result.
const ATTENTION: u32 = 5;
/// The roundings in a block of umT5 or CLIP: the norm, the weight, queries, keys and values, the softmax, the result,
/// the last weight; the feed-forward has no more.
const ENCODER_BLOCK: u32 = 6;
/// The roundings of operands in umT5's gated feed-forward: the norm counts in both factors, so four times by its
/// square; three weights and the product of the factors count once.
const GATED_OPERANDS: u32 = 8;
/// The roundings from a latent to its frames, which are more than those to a latent: three until the first layer, two
/// of it; five of each of 14 residual blocks (the norm, a weight, the norm after the convolution, a weight, the sum),
/// seven of attention; two of each of the five convolutions that resample, two of the last one.
const DECODER: u32 = 3 + 2 + 14 * 5 + 7 + 5 * 2 + 2;
/// The error that 8-bit attention may have on white noise.
const EIGHT_BIT: f64 = 0.05;

/// Checks results and prints their errors.
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
        // The reference keeps one of the padding's rows, which are all equal.
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

    /// Returns the result of the DiT in this folder, kept so, for the goldens' inputs.
    fn velocity(&self, path: &Path, keeping: Keeping) -> Tensor {
        let cuda = self.cuda;
        let (source, config) = weights::open_dit(path).unwrap();
        let dit = Dit::load(&cuda.loader(keeping), &source, &config).unwrap();
        let fact = |key: &str| self.golden.json.pointer(&format!("/dit/0/{key}")).unwrap();
        let tensor = |key: &str| self.upload(fact(key).as_str().unwrap());
        let x = tensor("x");
        let context = &dit.context(cuda, &tensor("context"), Some(&tensor("clip"))).unwrap();
        let time = &dit.time(cuda, fact("t").as_f64().unwrap()).unwrap();
        let [f, h, w] = [1, 2, 3].map(|i| cuda.shape(&x)[i]);
        let grid = &dit.grid(cuda, f, h, w).unwrap();
        let blocks = Blocks::Compute { keep_residual: false };
        let (x, y, attention) = (&x, &tensor("y"), AttentionKind::Exact);
        let inputs = Inputs { x, y, time, context, grid, attention };
        dit.forward(cuda, &inputs, blocks, &Quiet, None).unwrap().velocity
    }
}

const IN_BF16: Keeping = Keeping { weights: Precision::Bf16, ..Keeping::F32 };
const IN_FP8: Keeping = Keeping { weights: Precision::Fp8, ..Keeping::F32 };
const IN_INT8: Keeping = Keeping { weights: Precision::Int8, ..Keeping::F32 };

/// A way to run the `DiT`.
#[derive(Clone, Copy)]
struct Way {
    what: &'static str,
    keeping: Keeping,
    attention: AttentionKind,
    /// The number of keys from which on attention counts as self-attention.
    long_context: usize,
    limit: f64,
}

/// Runs a forward of the `DiT` twice: it must give the same bits, allocate nothing from the driver, and free
/// everything.
fn forward(way: &Way) {
    let &Way { what, keeping, attention, long_context, limit } = way;
    let cuda = &open(&Options { long_context, ..Options::default() });
    let golden = &Golden::open();
    let judge = Judge { cuda, golden, what, limit };
    let (source, config) = weights::open_dit(&folder().join("official")).unwrap();
    let dit = Dit::load(&cuda.loader(keeping), &source, &config).unwrap();
    let fact = |key: &str| golden.json.pointer(&format!("/dit/0/{key}")).unwrap();
    let tensor = |key: &str| judge.upload(fact(key).as_str().unwrap());
    let (x, y, text, image) = (tensor("x"), tensor("y"), tensor("context"), tensor("clip"));
    let context = dit.context(cuda, &text, Some(&image)).unwrap();
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
}

fn bf16() -> Way {
    let (keeping, attention) = (IN_BF16, AttentionKind::Exact);
    Way { what: "bf16 mixed", keeping, attention, long_context: 1024, limit: branch(CROSS_ATTENTION, 0) }
}

#[test]
#[cfg_attr(not(feature = "emulator"), ignore = "it takes a GPU")]
fn the_dit_in_bf16() {
    forward(&bf16());
    // The stream itself is rounded after each of nine branches, too.
    let (keeping, limit) =
        (Keeping { sensitive: Sensitive::Same, ..IN_BF16 }, branch(CROSS_ATTENTION + 9, 0));
    forward(&Way { what: "bf16", keeping, limit, ..bf16() });
}

#[test]
#[cfg_attr(not(feature = "emulator"), ignore = "it takes a GPU")]
fn the_dit_in_f32() {
    // Attention is computed in bf16 even here.
    forward(&Way { what: "fp32", keeping: Keeping::F32, limit: branch(ATTENTION, 0), ..bf16() });
}

#[test]
#[cfg_attr(not(feature = "emulator"), ignore = "it takes a GPU")]
fn the_dit_in_8_bits() {
    let limit = branch(CROSS_ATTENTION, OPERANDS);
    forward(&Way { what: "fp8 exact", keeping: IN_FP8, limit, ..bf16() });
    // One branch of three has the error of 8-bit attention: a third of the stream's growth contributes it.
    let attention = EIGHT_BIT * (1.0f64 / 3.0).exp().sqrt();
    let eight = Way { attention: AttentionKind::EightBit, long_context: 1, ..bf16() };
    forward(&Way { what: "fp8 8bit", keeping: IN_FP8, limit: limit.hypot(attention), ..eight });
    let limit = branch_of(CROSS_ATTENTION, OPERANDS, TO_INT8);
    forward(&Way { what: "int8 exact", keeping: IN_INT8, limit, ..bf16() });
    forward(&Way { what: "int8 8bit", keeping: IN_INT8, limit: limit.hypot(attention), ..eight });
    forward(&Way { what: "bf16 8bit", limit: bf16().limit.hypot(attention), ..eight });
}

/// `animd-engine prepare` must write what the GPU computes from the same files at every start.
#[test]
#[cfg_attr(not(feature = "emulator"), ignore = "it takes a GPU")]
fn a_prepared_dit_is_the_same_to_the_last_bit() {
    let cuda = open(&Options::default());
    let golden = Golden::open();
    let dir = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(folder().join("official")).unwrap().flatten() {
        let name = entry.file_name();
        if name.to_string_lossy().starts_with("diffusion") || name == "config.json" {
            std::fs::copy(entry.path(), dir.path().join(name)).unwrap();
        }
    }
    let judge = Judge { cuda: &cuda, golden: &golden, what: "prepared", limit: 0.0 };
    let cache = weights::Cache::new(dir.path().join("cache"), 0);
    for keeping in [IN_FP8, IN_INT8] {
        let prepared = weights::prepare(dir.path(), keeping.weights, &cache, &mut |_, _| Ok(())).unwrap();
        let velocity = |path: &Path| cuda.download(&judge.velocity(path, keeping)).unwrap();
        assert!(velocity(dir.path()) == velocity(&prepared[0].folder), "{:?}", keeping.weights);
    }
}

/// The weights are 8-bit, and the reference rounds inputs to 8 bits.
#[test]
#[cfg_attr(not(feature = "emulator"), ignore = "it takes a GPU")]
fn the_dit_from_files_in_8_bits() {
    let cuda = open(&Options::default());
    let golden = Golden::open();
    for (layout, key, limit) in [
        // The reference rounds the inputs of products as this backend does. A value near the border between two numbers
        // falls to either side, as if it were rounded once more.
        ("lightx2v_fp8", "dit.0.out_lightx2v_fp8_w8a8", branch(CROSS_ATTENTION, 1)),
        // The weights are those of the reference; only the inputs of products are rounded here.
        ("comfy_fp8", "dit.0.out_comfy_fp8_dequant", branch(CROSS_ATTENTION, OPERANDS / 2)),
    ] {
        let judge = Judge { cuda: &cuda, golden: &golden, what: "fp8 files", limit };
        judge.see(key, &judge.velocity(&folder().join(layout), IN_FP8));
    }
}

#[test]
#[cfg_attr(not(feature = "emulator"), ignore = "it takes a GPU")]
fn the_text_encoder() {
    for (what, keeping, limit) in [
        ("bf16", IN_BF16, branch(ENCODER_BLOCK, 0)),
        ("fp8", IN_FP8, branch(ENCODER_BLOCK, GATED_OPERANDS)),
        ("int8", IN_INT8, branch_of(ENCODER_BLOCK, GATED_OPERANDS, TO_INT8)),
    ] {
        let cuda = open(&Options::default());
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
#[cfg_attr(not(feature = "emulator"), ignore = "it takes a GPU")]
fn the_image_encoder() {
    let cuda = open(&Options::default());
    let golden = Golden::open();
    let judge = Judge { cuda: &cuda, golden: &golden, what: "bf16", limit: branch(ENCODER_BLOCK, 0) };
    let file = "official/models_clip_open-clip-xlm-roberta-large-vit-huge-14.pth";
    let (source, config) = weights::open_clip(&folder().join(file)).unwrap();
    let clip = Clip::load(&cuda.loader(IN_BF16), &source, &config).unwrap();
    let mut probe = |name: &str, tensor: &Tensor| judge.see(&format!("clip.0.{name}"), tensor);
    clip.encode(&cuda, &golden.f32("clip.0.pixel_values"), Some(&mut probe)).unwrap();
}

#[test]
#[cfg_attr(not(feature = "emulator"), ignore = "it takes a GPU")]
fn the_autoencoder() {
    autoencoder("bf16", IN_BF16, volumes(DECODER));
    // Attention is computed in bf16 even here.
    autoencoder("fp32", Keeping::F32, volumes(ATTENTION));
}

fn autoencoder(what: &'static str, keeping: Keeping, limit: f64) {
    let cuda = open(&Options::default());
    let golden = Golden::open();
    let judge = Judge { cuda: &cuda, golden: &golden, what, limit };
    let (source, config) = weights::open_vae(&folder().join("official/Wan2.1_VAE.pth")).unwrap();
    let vae = Vae::load(&cuda.loader(keeping), &source, &config).unwrap();

    let shape = golden.shape("vae.enc.first_frame");
    let picture = cuda.upload(&golden.f32("vae.enc.first_frame"), &[3, 1, shape[1], shape[2]]).unwrap();
    let footage =
        Footage::Picture { picture: &picture, last: None, latent_frames: golden.shape("vae.enc.mu")[1] };
    let latents = vae.encode(&cuda, footage, None, &Quiet, None).unwrap();
    judge.see("vae.enc.out", &latents);
    judge.see("y", &vae::condition(&cuda, &latents, false).unwrap());
    let video = judge.upload("vae.enc2.in");
    let latents = vae.encode(&cuda, Footage::Video(&video), None, &Quiet, None).unwrap();
    judge.see("vae.enc2.out", &latents);

    let join = |chunks: &[Tensor]| cuda.concat(&chunks.iter().collect::<Vec<_>>(), 1).unwrap();
    let (mut frames, mut seen) = (Vec::new(), std::collections::BTreeMap::<String, Vec<Tensor>>::new());
    let mut sink = |piece: Piece<Tensor>| {
        frames.push(piece.frames);
        Ok(())
    };
    let mut probe = |name: &str, x: &Tensor| seen.entry(name.to_owned()).or_default().push(x.clone());
    let latents = judge.upload("vae.dec.in");
    vae.decode(&cuda, &latents, None, &Quiet, &mut sink, Some(&mut probe)).unwrap();
    for (name, chunks) in &seen {
        judge.see(&format!("vae.{name}"), &join(chunks));
    }
    judge.see("vae.dec.out_unclamped", &join(&frames));
}

/// Every output pixel is summed up in the same order whatever tile it is in, so tiles equal the whole to the bit.
#[test]
#[cfg_attr(not(feature = "emulator"), ignore = "it takes a GPU")]
fn the_autoencoder_in_tiles() {
    // The sides are no divisors, and shorter than a halo; there are one, five and nine frames.
    in_tiles(IN_BF16, &[([9, 4], 1, 5), ([3, 13], 2, 5), ([2, 5], 3, 3)]);
    in_tiles(Keeping::F32, &[([2, 5], 3, 3)]);
}

/// Compares tiles with the whole for latents of `[h, w]`, a number of latent frames, and the longest side of tiles.
fn in_tiles(keeping: Keeping, cases: &[([usize; 2], usize, usize)]) {
    let b = open(&Options::default());
    let (source, config) = weights::open_vae(&folder().join("official/Wan2.1_VAE.pth")).unwrap();
    let vae = Vae::load(&b.loader(keeping), &source, &config).unwrap();
    for &([h, w], latent_frames, side) in cases {
        let what = format!("{h}x{w} in tiles of {side}, {:?}", keeping.weights);
        let noise = |channels: usize, pixels: usize, seed| super::noise(channels * pixels * h * w, seed);
        let latents = b.upload(&noise(16, latent_frames, 3), &[16, latent_frames, h, w]).unwrap();
        let decoded = |side| {
            let mut pieces = Vec::new();
            let mut sink = |piece: Piece<Tensor>| {
                pieces.push((piece.first, piece.area, b.contiguous(&piece.frames)?));
                Ok(())
            };
            vae.decode(&b, &latents, side, &Quiet, &mut sink, None).unwrap();
            pieces
        };
        let whole = decoded(None);
        for (first, area, x) in decoded(Some(side)) {
            let (.., all) = whole.iter().find(|(start, ..)| *start == first).unwrap();
            let rows = b.slice(all, 2, area.rows.start, area.rows.len()).unwrap();
            let part = b.slice(&rows, 3, area.columns.start, area.columns.len()).unwrap();
            let [got, want] = [&x, &part].map(|x| b.download(x).unwrap());
            assert!(got.iter().all(|v| v.is_finite()));
            assert!(got == want, "{what}: {area:?}, frame {first}");
        }
        if latent_frames == 1 {
            let [got, want] = [Some(side), None].map(|side| {
                let mut bytes = Vec::new();
                let mut sink = |part: vae::Rendered| {
                    bytes.extend(part.frames);
                    Ok(())
                };
                vae.render(&b, &latents, side, &Quiet, &mut sink).unwrap();
                bytes
            });
            assert!(got == want, "{what}: 8-bit frames");
        }

        let picture = b.upload(&noise(3, 64, 4), &[3, 1, 8 * h, 8 * w]).unwrap();
        let [got, want] = [Some(side), None].map(|side| {
            let footage = Footage::Picture { picture: &picture, last: None, latent_frames };
            b.download(&vae.encode(&b, footage, side, &Quiet, None).unwrap()).unwrap()
        });
        assert!(got == want, "{what}: encoded");
    }
}
