//! The time and memory that blocks of the 14B model, and its VAE, take on this machine's GPU, on made-up weights.
//!
//! No test here fails for being slow: `--ignored --nocapture speed` prints the figures.

use std::borrow::Cow;
use std::collections::HashMap;
use std::io::Write;
use std::time::{Duration, Instant};

use half::bf16;
use memmap2::Mmap;

use super::{Cuda, Options, noise};
use crate::Result;
use crate::backend::{Backend, Keeping, TensorOps};
use crate::finite::Outputs;
use crate::model::dit::{Blocks, Dit, Inputs, Prefix};
use crate::model::vae::{Footage, Rendered, Vae};
use crate::progress::{Quiet, Stage};
use crate::weights::{Component, DType, HostTensor, Matrix, WeightSource};
use animd_protocol::dims::schema;
use animd_protocol::plan::{Plan, Setup};
use animd_protocol::profile::{AttentionKind, Precision, Profile};
use animd_protocol::recipe::Recipe;
use animd_protocol::request::{Settings, Tiling};

/// The number of measured blocks of the `DiT`, which has 40.
const BLOCKS: usize = 4;
/// How often each is measured.
const RUNS: u32 = 5;
const SIZE: [usize; 2] = [832, 480];
const FRAMES: u32 = 81;

/// Made-up weights that keep activations finite.
pub(super) struct MadeUp {
    shapes: HashMap<String, Vec<usize>>,
    /// The bf16 matrices, as in a model's file; `None` where nobody asks for matrices.
    file: Option<Mmap>,
    starts: HashMap<String, usize>,
}

impl MadeUp {
    pub fn new(tensors: Vec<schema::Expected>) -> Self {
        let shapes = tensors.into_iter().map(|e| (e.name, e.shape)).collect();
        Self { shapes, file: None, starts: HashMap::new() }
    }

    /// Returns weights with a file of all matrices.
    fn on_disk(tensors: Vec<schema::Expected>) -> Self {
        let (mut file, mut end) = (tempfile::tempfile().unwrap(), 0);
        // The values are about as large as weights of 5,120 inputs.
        let pattern: Vec<u8> =
            noise(1 << 22, 1).into_iter().flat_map(|v| bf16::from_f32(0.02 * v).to_le_bytes()).collect();
        let mut starts = HashMap::new();
        for tensor in tensors.iter().filter(|e| e.shape.len() > 1) {
            let bytes = 2 * tensor.shape.iter().product::<usize>();
            starts.insert(tensor.name.clone(), end);
            for left in (1..=bytes).rev().step_by(pattern.len()) {
                file.write_all(&pattern[..left.min(pattern.len())]).unwrap();
            }
            end += bytes;
        }
        // SAFETY: nobody else has the file.
        let file = Some(unsafe { Mmap::map(&file) }.unwrap());
        Self { file, starts, ..Self::new(tensors) }
    }
}

impl WeightSource for MadeUp {
    fn tensor(&self, name: &str) -> Result<HostTensor> {
        let shape = self.shapes[name].clone();
        let elements: usize = shape.iter().product();
        let inputs = elements / shape[0].max(1);
        let data = match inputs {
            // These are the norms' factors, and biases.
            1 => vec![if name.ends_with("bias") { 0.01 } else { 1.0 }; elements],
            _ => noise(elements, 2).into_iter().map(|v| v / (inputs as f32 / 3.0).sqrt()).collect(),
        };
        Ok(HostTensor { shape, data })
    }

    fn matrix(&self, name: &str) -> Result<Matrix<'_>> {
        let shape = &self.shapes[name];
        let (rows, cols) = (shape[0], shape[1..].iter().product::<usize>());
        let file = self.file.as_deref().expect("a file of matrices");
        let bytes = Cow::Borrowed(&file[self.starts[name]..][..2 * rows * cols]);
        Ok(Matrix::plain(rows, cols, DType::Bf16, bytes))
    }
}

/// Returns the backend, with memory for only this stage and network of a plan.
fn reserved(plan: &Plan, stages: &[Stage], network: &str) -> Cuda {
    let b = Cuda::open(0, &Options::default(), 0, 0).expect("there is a GPU");
    let mut memory = plan.memory.clone();
    memory.networks.retain(|n| n.name == network);
    memory.phases.retain(|p| stages.contains(&p.stage));
    memory.phases.iter_mut().for_each(|p| p.held.retain(|held| held.network == network));
    b.reserve(&memory).unwrap();
    let (free, total) = b.gpu.context.mem_get_info().unwrap();
    let reserved: usize = b.usage().iter().map(|usage| usage.reserved).sum();
    println!(
        "reserved {:.3} GiB; {:.3} GiB are others' and the driver's",
        gib(reserved),
        gib(total - free - reserved)
    );
    b
}

fn gib(bytes: usize) -> f64 {
    bytes as f64 / (1u64 << 30) as f64
}

/// Returns the medians of some runs: the time until all work is enqueued, and until it is done.
fn median(b: &Cuda, mut run: impl FnMut()) -> [Duration; 2] {
    let mut times: Vec<[Duration; 2]> = (0..RUNS)
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
    times[times.len() / 2]
}

#[test]
#[ignore = "it takes a GPU of 24 GiB, and says how fast that is"]
fn speed_of_blocks() {
    let mut recipe = Recipe::wan21_i2v_14b();
    recipe.experts[0].network.config.num_layers = BLOCKS;
    let config = recipe.experts[0].network.config.clone();
    let source = MadeUp::on_disk(schema::dit(&config));
    let mut same = true;
    for (weights, attention) in [
        (Precision::Int8, AttentionKind::EightBit),
        (Precision::Fp8, AttentionKind::EightBit),
        (Precision::Bf16, AttentionKind::EightBit),
        (Precision::Bf16, AttentionKind::Exact),
    ] {
        let mut setup = Setup { attention, ..Setup::from(&Profile::built_in("h200").unwrap()) };
        setup.precision.dit = weights;
        let request = Settings { frames: Some(FRAMES), ..Settings::default() }.resolve(|| 1).unwrap();
        let plan = Plan::new(&recipe, &request, SIZE, &setup);
        println!("\n{weights:?} {attention:?}");
        let b = reserved(&plan, &[Stage::Denoise], "DiT");
        let began = Instant::now();
        let dit = Dit::load(&b.loader(Keeping::of(&setup, Component::Dit)), &source, &config).unwrap();
        b.gpu.stream.synchronize().unwrap();
        let seconds = began.elapsed().as_secs_f64();
        let gigabytes = source.file.as_ref().map_or(0, |file| file.len()) as f64 / 1e9;
        println!("{gigabytes:.2} GB loaded in {seconds:.2} s: {:.1} GB/s", gigabytes / seconds);
        println!(
            "weights planned {:.3} GiB, taken {:.3}",
            gib(plan.memory.networks[0].bytes as usize),
            gib(b.usage()[0].used)
        );
        let [t, h, w] = plan.latent;
        let of = |channels: usize| b.upload(&noise(channels * t * h * w, 1), &[channels, t, h, w]).unwrap();
        let (x, y) = (of(16), of(20));
        let text = b.upload(&noise(60 * config.text_dim, 2), &[60, config.text_dim]).unwrap();
        let image_dim = config.image_dim.unwrap();
        let image = b.upload(&noise(257 * image_dim, 3), &[257, image_dim]).unwrap();
        let context = dit.context(&b, &text, Some(&image)).unwrap();
        let (time, grid) = (dit.time(&b, 500.0).unwrap(), dit.grid(&b, t, h, w).unwrap());
        let branch = |blocks: Blocks<'_, Cuda>, prefix: &mut Prefix<Cuda>| {
            let inputs = Inputs { x: &x, y: &y, time: &time, context: &context, grid: &grid, attention };
            dit.branch(&b, &inputs, blocks, prefix, &Quiet, None).unwrap().velocity
        };
        let forward = |blocks: Blocks<'_, Cuda>| branch(blocks, &mut Prefix::Own);
        let compute = Blocks::Compute { keep_residual: false };
        forward(compute);
        let (before, _) = (b.usage()[1].used, b.peak_memory());
        let out = b.download(&forward(compute)).unwrap();
        assert!(out.iter().all(|v| v.is_finite()));
        let taken = b.usage()[1].peak - before;
        let planned = plan.memory.phases.iter().find(|p| p.stage == Stage::Denoise).unwrap().activations;
        println!("activations planned {:.3} GiB, taken {:.3}", gib(planned as usize), gib(taken));

        let [enqueued, all] = median(&b, || drop(forward(compute)));
        let residual = b.upload(&noise(plan.tokens * config.dim, 4), &[plan.tokens, config.dim]).unwrap();
        let [_, ends] = median(&b, || drop(forward(Blocks::Reuse(&residual))));
        drop(residual);
        let mut prefix = Prefix::Wanted;
        branch(compute, &mut prefix);
        let Prefix::Kept(tokens) = prefix else { panic!("it was wanted") };
        let second = || branch(compute, &mut Prefix::Kept(tokens.clone()));
        assert!(b.download(&second()).unwrap() == out, "a prefix of another branch changes the numbers");
        let [_, rest] = median(&b, || drop(second()));
        println!(
            "a branch that begins with another one's prefix {rest:.1?}: {:.2?} less",
            all.saturating_sub(rest)
        );
        drop(tokens);
        println!("the driver was asked {} times for the work's memory", b.usage()[1].reservations);
        let block = all.saturating_sub(ends) / BLOCKS as u32;
        println!(
            "{BLOCKS} blocks {all:.1?} (enqueued in {enqueued:.1?}), without blocks {ends:.1?}: a block {block:.2?}, 40 of them {:.3?}",
            40 * block + ends
        );
        let kept = median(&b, || drop(forward(Blocks::Compute { keep_residual: true })))[1];
        println!("with a residual that is kept {kept:.1?}");
        let (velocity, mut outputs) = (forward(compute), Outputs::default());
        let watch = |outputs: &mut Outputs| {
            median(&b, || outputs.watch(&b, Component::Dit, Some(1), &velocity).unwrap())
        };
        // The first copies make the host memory that later ones find.
        watch(&mut outputs);
        outputs.check().unwrap();
        let [_, copied] = watch(&mut outputs);
        let began = Instant::now();
        outputs.check().unwrap();
        println!(
            "looking for numbers that are none: the stream is kept {copied:.2?} a forward, a thread of the host {:.1?}",
            began.elapsed() / RUNS
        );
        for _ in 0..4 {
            let again = b.download(&forward(compute)).unwrap();
            let other: Vec<usize> = (0..out.len()).filter(|&i| again[i] != out[i]).collect();
            let most = other.iter().map(|&i| (again[i] - out[i]).abs()).fold(0.0, f32::max);
            println!("{} of {} other numbers, by at most {most:e}", other.len(), out.len());
            same &= other.is_empty();
        }
    }
    assert!(same, "the same inputs do not give the same numbers each time");
}

#[test]
#[ignore = "it takes a GPU of 24 GiB, and says how fast that is"]
fn speed_of_the_vae() {
    for weights in [Precision::Bf16, Precision::Fp32] {
        for size in [SIZE, [1280, 720]] {
            vae_in(weights, size);
        }
    }
}

fn vae_in(weights: Precision, size: [usize; 2]) {
    println!("\n{weights:?} at {size:?}");
    let recipe = Recipe::wan21_i2v_14b();
    let settings = |tiling| Settings { frames: Some(FRAMES), tiling: Some(tiling), ..Settings::default() };
    let mut setup = Setup::from(&Profile::built_in("h200").unwrap());
    setup.precision.vae = weights;
    let plan = |tiling| Plan::new(&recipe, &settings(tiling).resolve(|| 1).unwrap(), size, &setup);
    let (plan, in_tiles) = (plan(Tiling::Whole), plan(Tiling::Tiled));
    let stages = [Stage::VaeEncode, Stage::VaeDecode];
    let b = reserved(&plan, &stages, "VAE");
    let source = MadeUp::new(schema::vae(&recipe.vae.config));
    let began = Instant::now();
    let vae = Vae::load(&b.loader(Keeping::of(&setup, Component::Vae)), &source, &recipe.vae.config).unwrap();
    b.gpu.stream.synchronize().unwrap();
    println!("loaded, and made up, in {:.2} s", began.elapsed().as_secs_f64());
    let phase = |plan: &Plan, stage| {
        plan.memory.phases.iter().find(|p| p.stage == stage).unwrap().activations as usize
    };
    println!(
        "\nweights planned {:.3} GiB, taken {:.3}",
        gib(plan.memory.networks[3].bytes as usize),
        gib(b.usage()[0].used)
    );
    let [t, h, w] = plan.latent;
    let picture = b.upload(&noise(3 * size[0] * size[1], 1), &[3, 1, size[1], size[0]]).unwrap();
    let latents = b.upload(&noise(16 * t * h * w, 2), &[16, t, h, w]).unwrap();
    let encode_in = |plan: &Plan| {
        let footage = Footage::Picture { picture: &picture, last: None, latent_frames: t };
        vae.encode(&b, footage, plan.tile, &Quiet, None).unwrap()
    };
    let decode_in = |plan: &Plan| vae.decode(&b, &latents, plan.tile, &Quiet, &mut |_| Ok(()), None).unwrap();
    let (encode, decode) = (|| drop(encode_in(&plan)), || decode_in(&plan));
    let to_bytes = |plan: &Plan| vae.render(&b, &latents, plan.tile, &Quiet, &mut |_| Ok(())).unwrap();
    let (decode_to_bytes, tiled_to_bytes) = (|| to_bytes(&plan), || to_bytes(&in_tiles));
    let (encode_tiled, tiled) = (|| drop(encode_in(&in_tiles)), || decode_in(&in_tiles));
    println!("tiles of {:?} latent pixels", in_tiles.tile);
    let encoded = |plan: &Plan| b.download(&encode_in(plan)).unwrap();
    assert!(encoded(&plan) == encoded(&in_tiles), "tiles are not encoded as the whole is");
    let rendered = |plan: &Plan| {
        let mut bytes = Vec::new();
        let mut sink = |part: Rendered| {
            bytes.extend(part.frames);
            Ok(())
        };
        vae.render(&b, &latents, plan.tile, &Quiet, &mut sink).unwrap();
        bytes
    };
    assert!(rendered(&plan) == rendered(&in_tiles), "tiles are not decoded as the whole is");
    for (name, plan, stage, run) in [
        ("encode", &plan, Stage::VaeEncode, &encode as &dyn Fn()),
        ("decode", &plan, Stage::VaeDecode, &decode),
        ("decode to bytes", &plan, Stage::VaeDecode, &decode_to_bytes),
        ("encode tiled", &in_tiles, Stage::VaeEncode, &encode_tiled),
        ("decode tiled", &in_tiles, Stage::VaeDecode, &tiled),
        ("tiled to bytes", &in_tiles, Stage::VaeDecode, &tiled_to_bytes),
    ] {
        let (before, _) = (b.usage()[1].used, b.peak_memory());
        run();
        let taken = b.usage()[1].peak - before;
        let [enqueued, all] = median(&b, run);
        println!(
            "{name:16} {all:.1?} (enqueued in {enqueued:.1?}), activations planned {:.3} GiB, taken {:.3}",
            gib(phase(plan, stage)),
            gib(taken)
        );
    }
}
