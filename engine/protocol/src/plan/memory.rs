//! How much memory a job takes, and whose.
//!
//! Weights are counted tensor by tensor. Activations are a model of what is alive at once, and therefore an estimate:
//! see [`Estimate`].

use std::collections::BTreeMap;

use serde::Serialize;

use super::{Setup, vae};
use crate::dims::schema::Expected;
use crate::dims::{DitConfig, STRIDE, TILE};
use crate::profile::{AttentionKind, Backend, Place, Precision, Sensitive};
use crate::progress::Stage;
use crate::recipe::{Component, Part, Recipe, Sizes};
use crate::request::{Request, StepCache, Tiling};

/// One network's weights.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Network {
    /// Its name in the recipe: `DiT`, `umT5`.
    pub name: String,
    /// The kind of network that it is.
    #[serde(skip)]
    pub component: Component,
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
    /// All networks.
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
        recipe: &Recipe,
        request: &Request,
        latent: [usize; 3],
        branches: u32,
        setup: &Setup,
    ) -> Self {
        let cpu = setup.backend == Backend::Cpu;
        let (embedding, networks) = networks(recipe, setup);
        // A CPU computes where the weights are.
        let stays = |n: &Network| cpu || n.place == Place::Device;
        let resident: u64 = networks.iter().filter(|n| stays(n)).map(|n| n.bytes).sum();
        let resident = resident + if cpu { embedding } else { 0 };
        // Of networks that come for a stage there is one at a time.
        let visiting = |component| {
            let visitors = networks.iter().filter(|n| n.component == component && !stays(n));
            visitors.map(|n| n.working).max().unwrap_or_default()
        };
        let Estimate { text, clip, vae_encode, denoise, vae_decode, context, residuals } =
            Estimate::new(recipe, request, latent, branches, setup);
        let phase = |stage, component, kept, activations| Phase {
            stage,
            weights: resident + visiting(component),
            kept,
            activations,
        };
        let latents = 4 * latent.iter().product::<usize>() as u64;
        // The mask and the picture's latents; the noisy latents and what the solver remembers.
        let channels = recipe.vae.config.z_dim as u64;
        let condition = (recipe.input_channels() as u64 - channels) * latents;
        let samples = 6 * channels * latents;
        let mut phases = vec![phase(Stage::Text, Component::T5, 0, text)];
        phases.extend(clip.map(|clip| phase(Stage::Image, Component::Clip, context, clip)));
        phases.extend([
            phase(Stage::VaeEncode, Component::Vae, context, vae_encode),
            phase(Stage::Denoise, Component::Dit, context + condition + samples + residuals, denoise),
            phase(Stage::VaeDecode, Component::Vae, channels * latents, vae_decode),
        ]);
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
fn size(precision: Precision) -> u64 {
    match precision {
        Precision::Fp32 => 4,
        Precision::Bf16 => 2,
        Precision::Fp8 => 1,
    }
}

/// Bytes of umT5's embedding, and all networks without it.
fn networks(recipe: &Recipe, setup: &Setup) -> (u64, Vec<Network>) {
    let (mut embedding, mut networks) = (0, Vec::new());
    for part in recipe.networks() {
        let mut tensors = part.schema();
        match part.sizes {
            Sizes::T5(_) => tensors.retain(|e| {
                let rows = e.name == "token_embedding.weight";
                // In the type of the released file, bf16, on every backend.
                embedding += if rows { 2 * elements(e) } else { 0 };
                !rows
            }),
            // Of CLIP all blocks but the last.
            Sizes::Clip(c) => {
                let last = format!("visual.transformer.{}.", c.layers.saturating_sub(1));
                tensors.retain(|e| !e.name.starts_with(&last));
            }
            Sizes::Dit(_) | Sizes::Vae(_) => {}
        }
        networks.push(network(part, &tensors, setup));
    }
    (embedding, networks)
}

/// A network that uses these tensors.
fn network(part: Part<'_>, tensors: &[Expected], setup: &Setup) -> Network {
    let component = part.component();
    let (precision, place) = (setup.precision.of(component), setup.residency.of(component));
    let cuda = setup.backend == Backend::Cuda;
    // On a GPU, f32 matrices are sums of two bf16 numbers, of which one is there twice.
    let whole = |e: &Expected| if cuda && e.shape.len() > 1 { 6 } else { 4 };
    // Large matrices in the network's type, an f32 for each row beside 8 bits; the rest in another type.
    let tensor = |e: &Expected, large: bool, rest: u64| match large {
        true if precision == Precision::Fp8 => elements(e) + 4 * e.shape[0] as u64,
        true if precision == Precision::Fp32 => elements(e) * whole(e),
        true => elements(e) * size(precision),
        false if rest == 4 => elements(e) * whole(e),
        false => elements(e) * rest,
    };
    let sensitive = match (setup.precision.sensitive, precision) {
        (Sensitive::Same, Precision::Bf16 | Precision::Fp8) => 2,
        _ => 4,
    };
    // A GPU has 3x3 convolutions of single frames as four of 2x2, too, for pixels that become four.
    let folded = |e: &Expected| if cuda && e.shape.len() == 4 && e.shape.ends_with(&[3, 3]) { 16 } else { 0 };
    let bytes = |e: &Expected| match component {
        Component::Dit => tensor(e, e.quantisable, sensitive),
        Component::T5 => tensor(e, e.name.contains(".attn.") || e.name.contains(".ffn."), 4),
        Component::Clip => tensor(e, true, 4),
        Component::Vae => tensor(e, true, 4) + folded(e) * tensor(e, true, 4) / 9,
    };
    let all = tensors.iter().map(bytes).sum();
    Network {
        name: part.name.to_owned(),
        component,
        parameters: tensors.iter().map(elements).sum(),
        bytes: all,
        place,
        working: match place {
            Place::Device => all,
            Place::Host | Place::Disk => streamed(tensors, &bytes),
        },
    }
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
    /// None without an image encoder.
    clip: Option<u64>,
    vae_encode: u64,
    denoise: u64,
    vae_decode: u64,
    context: u64,
    residuals: u64,
}

impl Estimate {
    fn new(recipe: &Recipe, request: &Request, latent: [usize; 3], branches: u32, setup: &Setup) -> Self {
        let cpu = setup.backend == Backend::Cpu;
        let act: u64 = if cpu { 4 } else { 2 };
        let stream = if cpu || setup.precision.sensitive == Sensitive::Fp32 { 4 } else { 2 };
        let eight_bit = setup.attention == AttentionKind::EightBit;
        let transformer = |rows: usize, dim: usize, ffn: usize, component: Component, eight_bit: bool| {
            let [rows, dim, ffn] = [rows, dim, ffn].map(|n| n as u64);
            if cpu {
                return 4 * rows * (8 * dim + 2 * ffn);
            }
            let precision = setup.precision.of(component);
            let operand = size(precision).min(2);
            let attention = (stream + 4 * 2 + if eight_bit { 3 } else { 0 }) * dim;
            let inner = if precision == Precision::Fp8 { 3 } else { 2 };
            let feed_forward = (2 * stream + operand) * dim + inner * ffn;
            rows * attention.max(feed_forward)
        };
        let tokens = latent.iter().product::<usize>() / 4;
        let image = recipe.image_tokens();
        // The stream, its norm and that as sums of two bf16 numbers; the patches before, and the velocity twice.
        let head = |dit: &DitConfig| match cpu {
            true => 0,
            false => {
                let normed = if stream == 4 { 4 + 6 } else { 2 };
                (tokens * ((stream + normed) as usize * dit.dim + 16 * (dit.in_dim + 2 * dit.out_dim))) as u64
            }
        };
        let denoise = |dit: &DitConfig| {
            transformer(tokens, dit.dim, dit.ffn_dim, Component::Dit, eight_bit).max(head(dit))
        };
        let experts = || recipe.experts.iter().map(|expert| &expert.network.config);
        let branches = u64::from(branches);
        // Of every expert, until the job ends.
        let keys: u64 =
            experts().map(|dit| ((dit.text_len + image) * 2 * dit.dim * dit.num_layers) as u64).sum();
        // Of one expert at a time.
        let residuals = match request.step_cache {
            StepCache::None => 0,
            _ => branches * stream * experts().map(|dit| (tokens * dit.dim) as u64).max().unwrap_or_default(),
        };
        let (volume, times) = if cpu { (4, 2) } else { (size(setup.precision.vae), 1) };
        let copies = !cpu && setup.precision.vae == Precision::Fp32;
        let (tile, covered) = tiles(latent, request.tiling);
        let vae = |walk: vae::Walk| volume * (times * walk.live + walk.kept) as u64;
        // The picture and a black frame; what the tiles' frames take, if there are any.
        let pictures = (2 * 12 * 64 * tile[1] * tile[2]) as u64;
        let frames = (12 * 64 * covered * (4 * latent[0] - 3)) as u64;
        let (t5, rows) = (&recipe.text_encoder.config, experts().map(|dit| dit.text_len).max());
        Self {
            text: transformer(rows.unwrap_or_default(), t5.dim, t5.ffn_dim, Component::T5, false),
            clip: recipe.conditioning.image_encoder.as_ref().map(|network| {
                let c = &network.config;
                transformer(image, c.dim, c.mlp_dim, Component::Clip, false)
            }),
            vae_encode: vae(vae::encoder(&recipe.vae.config, tile, copies)) + pictures,
            denoise: experts().map(denoise).max().unwrap_or_default(),
            vae_decode: vae(vae::decoder(&recipe.vae.config, tile, copies)) + frames,
            context: branches * if cpu { act * keys } else { act * keys * 3 / 2 },
            residuals,
        }
    }
}

/// The largest tile of a latent, and the latent pixels of all tiles together; 0 of a frame that is not divided.
fn tiles([t, h, w]: [usize; 3], tiling: Tiling) -> ([usize; 3], usize) {
    // Sides of a tile and from tile to tile, in latent pixels.
    let (tile, stride) = (TILE / 8, STRIDE / 8);
    if tiling == Tiling::Whole || (h <= tile && w <= tile) {
        return ([t, h, w], 0);
    }
    let covered = |n: usize| -> usize { (0..n).step_by(stride).map(|at| n.min(at + tile) - at).sum() };
    ([t, h.min(tile), w.min(tile)], covered(h) * covered(w))
}
