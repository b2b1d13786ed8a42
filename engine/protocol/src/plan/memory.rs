//! The memory that a job takes, by place and stage.
//!
//! Weights are counted tensor by tensor. Activations come from a model of what is alive at once, and are an estimate:
//! see [`Estimate`].

use std::collections::BTreeMap;

use serde::Serialize;

use super::{Setup, vae};
use crate::dims::DitConfig;
use crate::dims::schema::Expected;
use crate::profile::{AttentionKind, Backend, Place, Precision, Sensitive};
use crate::progress::Stage;
use crate::recipe::{Component, Part, Recipe, Sizes};
use crate::request::{Request, StepCache};

/// The weights of one network.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Network {
    /// Its name in the recipe: `DiT`, `umT5`.
    pub name: String,
    /// The kind of network.
    #[serde(skip)]
    pub component: Component,
    /// The number of parameters that are used.
    pub parameters: u64,
    /// The bytes of all parameters in their stored types, with their scales.
    pub bytes: u64,
    /// Where the weights are kept between their uses.
    pub place: Place,
    /// The bytes of weights in the working memory while the network works: all of them, or the part that is streamed
    /// through.
    pub working: u64,
}

/// The working memory of one stage.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Phase {
    /// The stage.
    pub stage: Stage,
    /// The bytes of weights: those that stay, and those that are loaded for this stage.
    pub weights: u64,
    /// The bytes of earlier stages' results that this stage needs, and of what it keeps from step to step.
    pub kept: u64,
    /// The estimated bytes of activations.
    pub activations: u64,
}

impl Phase {
    /// Returns the sum of all bytes.
    pub fn bytes(&self) -> u64 {
        self.weights + self.kept + self.activations
    }
}

/// The memory of a job. The working memory is the GPU's or, with the backend `cpu`, the machine's.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Memory {
    /// The weights of all networks.
    pub networks: Vec<Network>,
    /// The stages that compute, in their order.
    pub phases: Vec<Phase>,
    /// The bytes of weights that wait in the machine's memory for a GPU: those with the place `host`, and umT5's
    /// embedding, of which a prompt needs only a few rows.
    pub host: u64,
}

/// The bytes that the work takes beside the plan: staging, and the small decode that fits the previews' colours.
const MORE_WORK: u64 = 256 << 20;
/// The bytes that the driver and the kernels take of a GPU's memory.
const CONTEXT: u64 = 640 << 20;

impl Memory {
    /// Returns the bytes that the GPU backend reserves for weights before a job.
    pub fn weights_to_take(&self) -> u64 {
        self.networks.iter().map(|n| n.bytes).sum()
    }

    /// Returns the bytes that the GPU backend reserves for all else before a job. They exceed the plan, because
    /// activations are an estimate and allocations leave gaps.
    pub fn work_to_take(&self) -> u64 {
        let work = self.phases.iter().map(|p| p.kept + p.activations + p.activations / 8).max();
        work.unwrap_or_default() + MORE_WORK
    }

    /// Returns the bytes that must be free on a GPU that keeps all weights.
    pub fn free_to_have(&self) -> u64 {
        self.weights_to_take() + self.work_to_take() + CONTEXT
    }

    pub(super) fn new(
        recipe: &Recipe,
        request: &Request,
        latent: [usize; 3],
        branches: u32,
        tile: Option<usize>,
        setup: &Setup,
    ) -> Self {
        let cpu = setup.backend == Backend::Cpu;
        let (embedding, networks) = networks(recipe, setup);
        // A CPU computes where the weights are.
        let stays = |n: &Network| cpu || n.place == Place::Device;
        let resident: u64 = networks.iter().filter(|n| stays(n)).map(|n| n.bytes).sum();
        let resident = resident + if cpu { embedding } else { 0 };
        // Networks that are loaded for a stage share the memory: only one of them is there at a time.
        let visiting = |component| {
            let visitors = networks.iter().filter(|n| n.component == component && !stays(n));
            visitors.map(|n| n.working).max().unwrap_or_default()
        };
        let Estimate { text, clip, vae_encode, denoise, vae_decode, context, residuals } =
            Estimate::new(recipe, request, latent, branches, tile, setup);
        let phase = |stage, component, kept, activations| Phase {
            stage,
            weights: resident + visiting(component),
            kept,
            activations,
        };
        let latents = 4 * latent.iter().product::<usize>() as u64;
        // These are the mask and the picture's latents, the noisy latents, and the solver's history.
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

    /// Returns the largest working memory of any stage, and that stage.
    pub fn peak(&self) -> (u64, Stage) {
        let most = self.phases.iter().max_by_key(|phase| phase.bytes());
        most.map_or((0, Stage::Load), |phase| (phase.bytes(), phase.stage))
    }
}

/// Returns the bytes of an element.
fn size(precision: Precision) -> u64 {
    match precision {
        Precision::Fp32 => 4,
        Precision::Bf16 => 2,
        Precision::Fp8 => 1,
    }
}

/// Returns the bytes of umT5's embedding, and the weights of all networks without it.
fn networks(recipe: &Recipe, setup: &Setup) -> (u64, Vec<Network>) {
    let (mut embedding, mut networks) = (0, Vec::new());
    for part in recipe.networks() {
        let mut tensors = part.schema();
        match part.sizes {
            Sizes::T5(_) => tensors.retain(|e| {
                let rows = e.name == "token_embedding.weight";
                // Every backend keeps the embedding in bf16, the type of the released file.
                embedding += if rows { 2 * elements(e) } else { 0 };
                !rows
            }),
            // CLIP uses all blocks but the last.
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

/// Returns the weights of a network that uses these tensors.
fn network(part: Part<'_>, tensors: &[Expected], setup: &Setup) -> Network {
    let component = part.component();
    let (precision, place) = (setup.precision.of(component), setup.residency.of(component));
    let cuda = setup.backend == Backend::Cuda;
    // On a GPU, f32 matrices are sums of two bf16 numbers, one of which is stored twice.
    let whole = |e: &Expected| if cuda && e.shape.len() > 1 { 6 } else { 4 };
    // Large matrices have the network's type, 8-bit ones with an f32 for each row; the rest has another type.
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
    // For upsampling, a GPU also stores a 3x3 convolution of single frames as four of 2x2.
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

/// Returns the bytes of a network that is loaded block by block: the current block, the next one, and what is in no
/// block.
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

/// The bytes of activations at each stage's largest moment, and of what is kept between stages.
///
/// For the transformers these are rows of tokens times the widths that are alive together. On the CPU that is eight
/// times the model's width (input, norm, q, k, v and their normed copies, result) and twice the feed-forward's, in f32.
/// On a GPU the residual stream with either q, k, v and the result of attention (with 8-bit attention its copies of q,
/// k and v too), or a norm, the feed-forward's inner rows (before an 8-bit matrix in 8 bits, too) and the new stream;
/// all but the stream in bf16, norms in the type of the matrices that read them; or what the last layer reads, in f32
/// and as sums of two bf16 numbers.
///
/// For the context of the blocks these are keys and values and, on a GPU, keys before their norm.
///
/// For the VAE this is what its largest layer has alive (twice that on the CPU) for a chunk of four frames, or as much
/// at lower resolution, on the largest tile, then the frames that each causal convolution remembers, and the features
/// between the layers of the whole frame and those of a tile. Volumes are f32 on the CPU, else in the VAE's type; on a
/// GPU, kernels read f32 as sums of two bf16 numbers.
struct Estimate {
    text: u64,
    /// `None` without an image encoder.
    clip: Option<u64>,
    vae_encode: u64,
    denoise: u64,
    vae_decode: u64,
    context: u64,
    residuals: u64,
}

impl Estimate {
    fn new(
        recipe: &Recipe,
        request: &Request,
        latent: [usize; 3],
        branches: u32,
        tile: Option<usize>,
        setup: &Setup,
    ) -> Self {
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
        // These are the stream, its norm, the norm as sums of two bf16 numbers, the patches, and the velocity twice.
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
        // The context of every expert stays until the job ends.
        let keys: u64 =
            experts().map(|dit| ((dit.text_len + image) * 2 * dit.dim * dit.num_layers) as u64).sum();
        // Only one expert at a time has its step cache's residuals.
        let residuals = match request.step_cache {
            StepCache::None => 0,
            _ => branches * stream * experts().map(|dit| (tokens * dit.dim) as u64).max().unwrap_or_default(),
        };
        let (vae, volumes) = (&recipe.vae.config, vae::Volumes::of(setup));
        let (t5, rows) = (&recipe.text_encoder.config, experts().map(|dit| dit.text_len).max());
        Self {
            text: transformer(rows.unwrap_or_default(), t5.dim, t5.ffn_dim, Component::T5, false),
            clip: recipe.conditioning.image_encoder.as_ref().map(|network| {
                let c = &network.config;
                transformer(image, c.dim, c.mlp_dim, Component::Clip, false)
            }),
            vae_encode: vae::encoder(vae, latent, tile, volumes).bytes,
            denoise: experts().map(denoise).max().unwrap_or_default(),
            vae_decode: vae::decoder(vae, latent, tile, volumes).bytes,
            context: branches * if cpu { act * keys } else { act * keys * 3 / 2 },
            residuals,
        }
    }
}
