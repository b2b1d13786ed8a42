//! How much memory a job takes, and whose.
//!
//! Weights are counted tensor by tensor. Activations are a model of what is alive at once, and therefore an estimate:
//! see [`Estimate`].

use std::collections::BTreeMap;

use serde::Serialize;

use super::work::image_tokens;
use super::{Setup, vae};
use crate::dims::Dims;
use crate::dims::schema::{self, Expected};
use crate::profile::{AttentionKind, Backend, Place, Sensitive, Weights};
use crate::progress::Stage;
use crate::request::{Request, StepCache, Tiling};

/// One network's weights.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Network {
    /// `DiT`, `umT5`, `CLIP` or `VAE`.
    pub name: &'static str,
    /// Parameters that are used.
    pub parameters: u64,
    /// Bytes of all of them in the types that they are kept in, with their scales.
    pub bytes: u64,
    /// Where they are between their uses.
    pub place: Place,
    /// Bytes of them in the working memory while the network works: all, or what is streamed through it.
    pub working: u64,
}

/// One stage's share of the working memory.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Phase {
    /// Which one.
    pub stage: Stage,
    /// Bytes of weights: those that stay, and those that are there for this stage.
    pub weights: u64,
    /// Bytes of what earlier stages made and this one needs, and of what it keeps from step to step.
    pub kept: u64,
    /// Bytes of activations, estimated.
    pub activations: u64,
}

impl Phase {
    /// All of it.
    pub fn bytes(&self) -> u64 {
        self.weights + self.kept + self.activations
    }
}

/// The memory of a job. The working memory is the GPU's, or with the backend `cpu` the machine's.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Memory {
    /// The four networks.
    pub networks: Vec<Network>,
    /// The stages that compute, in their order.
    pub phases: Vec<Phase>,
    /// Bytes of weights that wait in the machine's memory for a GPU: those with the place `host`, and umT5's embedding,
    /// of which a prompt needs a few rows.
    pub host: u64,
}

/// Bytes for the work beside what the plan says: staging, and the small decode that fits the previews' colours.
const MORE_WORK: u64 = 256 << 20;
/// Bytes that the driver and the kernels take of a GPU.
const CONTEXT: u64 = 640 << 20;

impl Memory {
    /// Bytes that the GPU backend takes for weights before a job.
    pub fn weights_to_take(&self) -> u64 {
        self.networks.iter().map(|n| n.bytes).sum()
    }

    /// Bytes that the GPU backend takes for all else before a job: activations are an estimate, and pieces leave gaps.
    pub fn work_to_take(&self) -> u64 {
        let work = self.phases.iter().map(|p| p.kept + p.activations + p.activations / 8).max();
        work.unwrap_or_default() + MORE_WORK
    }

    /// Bytes that have to be free on a GPU that keeps all weights.
    pub fn free_to_have(&self) -> u64 {
        self.weights_to_take() + self.work_to_take() + CONTEXT
    }

    pub(super) fn new(
        dims: &Dims,
        request: &Request,
        latent: [usize; 3],
        branches: u32,
        setup: &Setup,
    ) -> Self {
        let cpu = setup.backend == Backend::Cpu;
        let (embedding, networks) = networks(dims, setup);
        // A CPU computes where the weights are.
        let stays = |n: &Network| cpu || n.place == Place::Device;
        let resident: u64 = networks.iter().filter(|n| stays(n)).map(|n| n.bytes).sum();
        let resident = resident + if cpu { embedding } else { 0 };
        let weights = |i: usize| match stays(&networks[i]) {
            true => resident,
            false => resident + networks[i].working,
        };
        let Estimate { text, clip, vae_encode, denoise, vae_decode, context, residuals } =
            Estimate::new(dims, request, latent, branches, setup);
        let phase =
            |stage, network, kept, activations| Phase { stage, weights: weights(network), kept, activations };
        let latents = 4 * latent.iter().product::<usize>() as u64;
        // The mask and the picture's latents; the noisy latents and what the solver remembers.
        let (condition, samples) = (20 * latents, 6 * 16 * latents);
        let phases = vec![
            phase(Stage::Text, 1, 0, text),
            phase(Stage::Image, 2, context, clip),
            phase(Stage::VaeEncode, 3, context, vae_encode),
            phase(Stage::Denoise, 0, context + condition + samples + residuals, denoise),
            phase(Stage::VaeDecode, 3, 16 * latents, vae_decode),
        ];
        let host: u64 = networks.iter().filter(|n| n.place == Place::Host).map(|n| n.bytes).sum();
        Self { networks, phases, host: if cpu { 0 } else { host + embedding } }
    }

    /// The most that a stage takes of the working memory, and that stage.
    pub fn peak(&self) -> (u64, Stage) {
        let most = self.phases.iter().max_by_key(|phase| phase.bytes());
        most.map_or((0, Stage::Load), |phase| (phase.bytes(), phase.stage))
    }
}

/// Bytes of an element.
fn size(weights: Weights) -> u64 {
    match weights {
        Weights::Fp32 => 4,
        Weights::Bf16 => 2,
        Weights::Fp8 => 1,
    }
}

/// umT5's embedding, and the four networks without it.
fn networks(dims: &Dims, setup: &Setup) -> (u64, Vec<Network>) {
    let precision = &setup.precision;
    let sensitive = match (precision.sensitive, precision.dit) {
        (Sensitive::Same, Weights::Bf16 | Weights::Fp8) => 2,
        _ => 4,
    };
    // On a GPU, f32 matrices are sums of two bf16 numbers, of which one is there twice.
    let whole = |e: &Expected| if setup.backend == Backend::Cuda && e.shape.len() > 1 { 6 } else { 4 };
    // Large matrices in the network's type, an f32 for each row beside 8 bits; the rest in another type.
    let tensor = |e: &Expected, large: bool, weights: Weights, rest: u64| match large {
        true if weights == Weights::Fp8 => elements(e) + 4 * e.shape[0] as u64,
        true if weights == Weights::Fp32 => elements(e) * whole(e),
        true => elements(e) * size(weights),
        false if rest == 4 => elements(e) * whole(e),
        false => elements(e) * rest,
    };
    let network = |name, tensors: &[Expected], place, bytes: &dyn Fn(&Expected) -> u64| Network {
        name,
        parameters: tensors.iter().map(elements).sum(),
        bytes: tensors.iter().map(bytes).sum(),
        place,
        working: match place {
            Place::Device => tensors.iter().map(bytes).sum(),
            Place::Host | Place::Disk => streamed(tensors, bytes),
        },
    };

    let (embedding, t5): (Vec<_>, Vec<_>) =
        schema::t5(&dims.t5).into_iter().partition(|e| e.name == "token_embedding.weight");
    // Of CLIP all blocks but the last.
    let last = format!("visual.transformer.{}.", dims.clip.layers.saturating_sub(1));
    let clip: Vec<_> = schema::clip(&dims.clip).into_iter().filter(|e| !e.name.starts_with(&last)).collect();
    // A GPU has 3x3 convolutions of single frames as four of 2x2, too, for pixels that become four.
    let folded = |e: &Expected| match setup.backend {
        Backend::Cuda if e.shape.len() == 4 && e.shape.ends_with(&[3, 3]) => 16,
        _ => 0,
    };
    let place = &setup.residency;
    let networks = vec![
        network("DiT", &schema::dit(&dims.dit), place.dit, &|e| {
            tensor(e, e.quantisable, precision.dit, sensitive)
        }),
        network("umT5", &t5, place.text, &|e| {
            tensor(e, e.name.contains(".attn.") || e.name.contains(".ffn."), precision.text, 4)
        }),
        network("CLIP", &clip, place.clip, &|e| tensor(e, true, precision.clip, 4)),
        network("VAE", &schema::vae(&dims.vae), place.vae, &|e| {
            tensor(e, true, precision.vae, 4) + folded(e) * tensor(e, true, precision.vae, 4) / 9
        }),
    ];
    // In the type of the released file, bf16, on every backend.
    (2 * embedding.iter().map(elements).sum::<u64>(), networks)
}

fn elements(e: &Expected) -> u64 {
    e.shape.iter().map(|n| *n as u64).product()
}

/// What a network that is brought block by block takes: one block at work, one on its way, and what is in no block.
fn streamed(tensors: &[Expected], bytes: &dyn Fn(&Expected) -> u64) -> u64 {
    let mut blocks = BTreeMap::<&str, u64>::new();
    for e in tensors {
        let block = ["blocks.", "visual.transformer."].iter().find_map(|p| e.name.strip_prefix(p));
        let block = block.and_then(|rest| rest.split('.').next()).unwrap_or_default();
        *blocks.entry(block).or_default() += bytes(e);
    }
    let rest = blocks.remove("").unwrap_or_default();
    rest + 2 * blocks.into_values().max().unwrap_or_default()
}

/// Bytes of activations at each stage's largest moment, and of what is kept between stages.
///
/// The transformers: rows of tokens times the widths that are alive together. On the CPU eight times the model's width
/// (input, norm, q, k, v and their normed copies, result) and twice the feed-forward's, in f32. On a GPU the residual
/// stream with either q, k, v and the result of attention (with 8-bit attention its copies of q, k and v too), or a norm,
/// the feed-forward's inner rows (before an 8-bit matrix in 8 bits, too) and the new stream; all but the stream in bf16,
/// norms in the type of the matrices that read them; or what the last layer reads, in f32 and as sums of two bf16 numbers.
///
/// What blocks attend to: keys and values and, on a GPU, keys before their norm.
///
/// The VAE: what its largest layer has alive (on the CPU twice that) for a chunk of four frames or their equal at lower
/// resolution, the frames that each causal convolution remembers, and of tiles all their frames as f32. In f32 on the
/// CPU, else in the VAE's type; on a GPU kernels read f32 as sums of two bf16 numbers.
struct Estimate {
    text: u64,
    clip: u64,
    vae_encode: u64,
    denoise: u64,
    vae_decode: u64,
    context: u64,
    residuals: u64,
}

impl Estimate {
    fn new(dims: &Dims, request: &Request, latent: [usize; 3], branches: u32, setup: &Setup) -> Self {
        let cpu = setup.backend == Backend::Cpu;
        let act: u64 = if cpu { 4 } else { 2 };
        let stream = if cpu || setup.precision.sensitive == Sensitive::Fp32 { 4 } else { 2 };
        let eight_bit = setup.attention == AttentionKind::EightBit;
        let transformer = |rows: usize, dim: usize, ffn: usize, weights: Weights, eight_bit: bool| {
            let [rows, dim, ffn] = [rows, dim, ffn].map(|n| n as u64);
            if cpu {
                return 4 * rows * (8 * dim + 2 * ffn);
            }
            let operand = size(weights).min(2);
            let attention = (stream + 4 * 2 + if eight_bit { 3 } else { 0 }) * dim;
            let inner = if weights == Weights::Fp8 { 3 } else { 2 };
            let feed_forward = (2 * stream + operand) * dim + inner * ffn;
            rows * attention.max(feed_forward)
        };
        let tokens = latent.iter().product::<usize>() / 4;
        let image = image_tokens(&dims.clip);
        let (dit, t5, clip) = (&dims.dit, &dims.t5, &dims.clip);
        // The stream, its norm and that as sums of two bf16 numbers; the patches before, and the velocity twice.
        let head = match cpu {
            true => 0,
            false => {
                let normed = if stream == 4 { 4 + 6 } else { 2 };
                (tokens * ((stream + normed) as usize * dit.dim + 16 * (dit.in_dim + 2 * dit.out_dim))) as u64
            }
        };
        let branches = u64::from(branches);
        let keys = ((dit.text_len + image) * 2 * dit.dim * dit.num_layers) as u64;
        let residuals = match request.step_cache {
            StepCache::None => 0,
            _ => branches * stream * (tokens * dit.dim) as u64,
        };
        let (volume, times) = if cpu { (4, 2) } else { (size(setup.precision.vae), 1) };
        let copies = !cpu && setup.precision.vae == Weights::Fp32;
        let (tile, covered) = tiles(latent, request.tiling);
        let vae = |walk: vae::Walk| volume * (times * walk.live + walk.kept) as u64;
        // The picture and a black frame; what the tiles' frames take, if there are any.
        let pictures = (2 * 12 * 64 * tile[1] * tile[2]) as u64;
        let frames = (12 * 64 * covered * (4 * latent[0] - 3)) as u64;
        Self {
            text: transformer(dit.text_len, t5.dim, t5.ffn_dim, setup.precision.text, false),
            clip: transformer(image, clip.dim, clip.mlp_dim, setup.precision.clip, false),
            vae_encode: vae(vae::encoder(&dims.vae, tile, copies)) + pictures,
            denoise: transformer(tokens, dit.dim, dit.ffn_dim, setup.precision.dit, eight_bit).max(head),
            vae_decode: vae(vae::decoder(&dims.vae, tile, copies)) + frames,
            context: branches * if cpu { act * keys } else { act * keys * 3 / 2 },
            residuals,
        }
    }
}

/// Sides of a tile and from tile to tile, in latent pixels.
const TILE: usize = 32;
const STRIDE: usize = 24;

/// The largest tile of a latent, and the latent pixels of all tiles together; 0 of a frame that is not divided.
fn tiles([t, h, w]: [usize; 3], tiling: Tiling) -> ([usize; 3], usize) {
    if tiling == Tiling::Whole || (h <= TILE && w <= TILE) {
        return ([t, h, w], 0);
    }
    let covered = |n: usize| -> usize { (0..n).step_by(STRIDE).map(|at| n.min(at + TILE) - at).sum() };
    ([t, h.min(TILE), w.min(TILE)], covered(h) * covered(w))
}
