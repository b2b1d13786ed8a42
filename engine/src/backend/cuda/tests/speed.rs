//! What blocks of the 14B model, and its VAE, take on this machine's GPU in time and memory, on made-up weights.
//!
//! Nothing here can fail by being slow: `--ignored --nocapture speed` prints the figures.

use std::borrow::Cow;
use std::collections::HashMap;
use std::time::{Duration, Instant};

use half::bf16;

use super::{Cuda, Options, noise};
use crate::Result;
use crate::backend::{Backend, TensorOps};
use crate::dims::{Dims, schema};
use crate::model::dit::{Blocks, Dit};
use crate::model::vae::{self, Vae};
use crate::plan::Plan;
use crate::profile::{AttentionKind, Weights};
use crate::progress::{Quiet, Stage};
use crate::request::Settings;
use crate::weights::{Component, DType, HostTensor, Matrix, WeightSource};

/// Blocks of the `DiT`, which has 40.
const BLOCKS: usize = 4;
const SIZE: [usize; 2] = [832, 480];
const FRAMES: u32 = 81;

/// Weights that keep activations finite.
struct MadeUp {
    shapes: HashMap<String, Vec<usize>>,
    /// bf16 values, about as large as weights of 5,120 inputs are, of which each matrix gets as many as it needs.
    pattern: Vec<u8>,
}

impl MadeUp {
    fn new(tensors: Vec<schema::Expected>) -> Self {
        let values = noise(160 << 20, 1).into_iter().map(|v| bf16::from_f32(0.02 * v));
        Self {
            shapes: tensors.into_iter().map(|e| (e.name, e.shape)).collect(),
            pattern: values.flat_map(bf16::to_le_bytes).collect(),
        }
    }
}

impl WeightSource for MadeUp {
    fn tensor(&self, name: &str) -> Result<HostTensor> {
        let shape = self.shapes[name].clone();
        let elements: usize = shape.iter().product();
        let inputs = elements / shape[0].max(1);
        let data = match inputs {
            // Norms' factors, and biases.
            1 => vec![if name.ends_with("bias") { 0.01 } else { 1.0 }; elements],
            _ => noise(elements, 2).into_iter().map(|v| v / (inputs as f32 / 3.0).sqrt()).collect(),
        };
        Ok(HostTensor { shape, data })
    }

    fn matrix(&self, name: &str) -> Result<Matrix<'_>> {
        let shape = &self.shapes[name];
        let (rows, cols) = (shape[0], shape[1..].iter().product::<usize>());
        let bytes = Cow::Borrowed(&self.pattern[..2 * rows * cols]);
        Ok(Matrix { rows, cols, dtype: DType::Bf16, bytes, scale: None })
    }
}

fn gib(bytes: usize) -> f64 {
    bytes as f64 / (1u64 << 30) as f64
}

/// The median of some runs: until all is enqueued, and until all is done.
fn median(b: &Cuda, mut run: impl FnMut()) -> [Duration; 2] {
    let mut times: Vec<[Duration; 2]> = (0..5)
        .map(|_| {
            b.gpu.stream.synchronize().unwrap();
            let began = Instant::now();
            run();
            let enqueued = began.elapsed();
            b.gpu.stream.synchronize().unwrap();
            [enqueued, began.elapsed()]
        })
        .collect();
    times.sort_by_key(|[_, done]| *done);
    times[2]
}

#[test]
#[ignore = "it takes a GPU of 24 GiB, and says how fast that is"]
fn speed_of_blocks() {
    let dims = Dims::wan_14b();
    let config = crate::dims::DitConfig { num_layers: BLOCKS, ..dims.dit.clone() };
    let source = MadeUp::new(schema::dit(&config));
    for (weights, attention) in [
        (Weights::Fp8, AttentionKind::EightBit),
        (Weights::Bf16, AttentionKind::EightBit),
        (Weights::Bf16, AttentionKind::Exact),
    ] {
        let mut precision = Options::BF16.precision;
        precision.dit = weights;
        let Ok(b) = Cuda::open(0, &Options { precision, attention, ..Options::BF16 }, 0, 10 << 30) else {
            return;
        };
        let began = Instant::now();
        let dit = Dit::load(&b, &source, &config).unwrap();
        b.gpu.stream.synchronize().unwrap();
        let seconds = began.elapsed().as_secs_f64();
        let bytes: usize = source.shapes.values().map(|s| 2 * s.iter().product::<usize>()).sum();
        println!("\n{weights:?} {attention:?}: {:.2} GB loaded in {seconds:.2} s", bytes as f64 / 1e9);

        let request = Settings { frames: Some(FRAMES), ..Settings::default() }.resolve(|| 1).unwrap();
        let plan = Plan::new(&Dims { dit: config.clone(), ..dims.clone() }, &request, SIZE, &b.setup());
        println!(
            "weights planned {:.3} GiB, taken {:.3}",
            gib(plan.memory.networks[0].bytes as usize),
            gib(b.usage()[0].used)
        );
        let [t, h, w] = plan.latent;
        let of = |channels: usize| b.upload(&noise(channels * t * h * w, 1), &[channels, t, h, w]).unwrap();
        let (x, y) = (of(16), of(20));
        let text = b.upload(&noise(60 * config.text_dim, 2), &[60, config.text_dim]).unwrap();
        let image = b.upload(&noise(257 * config.image_dim, 3), &[257, config.image_dim]).unwrap();
        let context = dit.context(&b, &text, &image).unwrap();
        let (time, grid) = (dit.time(&b, 500.0).unwrap(), dit.grid(&b, t, h, w).unwrap());
        let forward = |blocks: Blocks<'_, Cuda>| {
            dit.forward(&b, &x, &y, &time, &context, &grid, blocks, &Quiet, None).unwrap().velocity
        };
        let compute = Blocks::Compute { keep_residual: false };
        forward(compute);
        let (before, _) = (b.usage()[1].used, b.peak_memory());
        let out = b.download(&forward(compute)).unwrap();
        assert!(out.iter().all(|v| v.is_finite()));
        let taken = b.usage()[1].peak - before;
        let planned = plan.memory.phases.iter().find(|p| p.stage == Stage::Denoise).unwrap().activations;
        println!("activations planned {:.3} GiB, taken {:.3}", gib(planned as usize), gib(taken));

        let residual = b.upload(&noise(plan.tokens * config.dim, 4), &[plan.tokens, config.dim]).unwrap();
        let [enqueued, all] = median(&b, || drop(forward(compute)));
        let [_, ends] = median(&b, || drop(forward(Blocks::Reuse(&residual))));
        let block = (all - ends) / BLOCKS as u32;
        println!(
            "{BLOCKS} blocks {all:.1?} (enqueued in {enqueued:.1?}), without blocks {ends:.1?}: a block {block:.2?}, 40 of them {:.3?}",
            40 * block + ends
        );
        let again = b.download(&forward(compute)).unwrap();
        assert!(again == out, "the same twice is not the same");
    }
}

#[test]
#[ignore = "it takes a GPU of 24 GiB, and says how fast that is"]
fn speed_of_the_vae() {
    let dims = Dims::wan_14b();
    let Ok(b) = Cuda::open(0, &Options::BF16, 0, 14 << 30) else { return };
    let source = MadeUp::new(schema::vae(&dims.vae));
    let vae = Vae::load(&b.loading(Component::Vae), &source, &dims.vae).unwrap();
    let request = Settings { frames: Some(FRAMES), ..Settings::default() }.resolve(|| 1).unwrap();
    let plan = Plan::new(&dims, &request, SIZE, &b.setup());
    let phase = |stage| plan.memory.phases.iter().find(|p| p.stage == stage).unwrap().activations as usize;
    println!(
        "\nweights planned {:.3} GiB, taken {:.3}",
        gib(plan.memory.networks[3].bytes as usize),
        gib(b.usage()[0].used)
    );
    let [t, h, w] = plan.latent;
    let picture = b.upload(&noise(3 * SIZE[0] * SIZE[1], 1), &[3, 1, SIZE[1], SIZE[0]]).unwrap();
    let latents = b.upload(&noise(16 * t * h * w, 2), &[16, t, h, w]).unwrap();
    let encode = || drop(vae.encode_picture(&b, &picture, t, &Quiet).unwrap());
    let decode = || vae.decode(&b, &latents, &mut |_| Ok(())).unwrap();
    let decode_to_bytes = || vae.decode(&b, &latents, &mut |x| vae::to_u8(&b, &x).map(drop)).unwrap();
    let tiled = || vae.decode_tiled(&b, &latents, &mut |_| Ok(())).unwrap();
    for (name, stage, run) in [
        ("encode", Stage::VaeEncode, &encode as &dyn Fn()),
        ("decode", Stage::VaeDecode, &decode),
        ("decode to bytes", Stage::VaeDecode, &decode_to_bytes),
        ("decode tiled", Stage::VaeDecode, &tiled),
    ] {
        let (before, _) = (b.usage()[1].used, b.peak_memory());
        run();
        let taken = b.usage()[1].peak - before;
        let [enqueued, all] = median(&b, run);
        println!(
            "{name:16} {all:.1?} (enqueued in {enqueued:.1?}), activations planned {:.3} GiB, taken {:.3}",
            gib(phase(stage)),
            gib(taken)
        );
    }
}
