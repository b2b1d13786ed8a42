//! The memory that a job takes, by place and stage.
//!
//! Weights are counted tensor by tensor. Activations come from a model of what is alive at once, and are an estimate:
//! see [`Estimate`].

use serde::Serialize;

use super::network::{self, Held, Network, size};
use super::{Setup, budget, vae};
use crate::dims::DitConfig;
use crate::profile::{AttentionKind, Backend, Place, Precision, Sensitive};
use crate::progress::Stage;
use crate::recipe::{Component, Recipe};
use crate::request::{Request, StepCache};

/// The most rows between two layers in int8 that are in bf16 at once on a GPU.
pub const BAND: usize = 2048;

/// The working memory of one stage.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Phase {
    /// The stage.
    pub stage: Stage,
    /// What each network has on the device.
    pub held: Vec<Held>,
    /// The bytes of earlier stages' results that this stage needs, and of what it keeps from step to step.
    pub kept: u64,
    /// The estimated bytes of activations.
    pub activations: u64,
}

impl Phase {
    /// Returns the bytes of weights.
    pub fn weights(&self) -> u64 {
        self.held.iter().map(|held| held.bytes).sum()
    }

    /// Returns the bytes of all else.
    pub fn work(&self) -> u64 {
        self.kept + self.activations
    }

    /// Returns the sum of all bytes.
    pub fn bytes(&self) -> u64 {
        self.weights() + self.work()
    }
}

/// The bytes of the machine's memory that a job takes beside its working memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Host {
    /// The bytes of weights that wait there for the GPU, pinned where the system allows it.
    pub pinned: u64,
    /// The bytes of files that are read during a job, which the page cache keeps if it has room: the networks with the
    /// place `disk`, and umT5's embedding, of which a prompt needs only a few rows.
    pub page_cache: u64,
}

impl Host {
    /// Returns what a GPU's job takes.
    fn of_gpu(networks: &[Network], embedding: u64) -> Self {
        let at = |place| networks.iter().filter(move |n| n.placement.place == place);
        // Files have the encoders in 16 bits.
        let read: u64 = at(Place::Disk).map(|n| 2 * n.parameters).sum();
        Self { pinned: at(Place::Host).map(|n| n.bytes).sum(), page_cache: read + embedding }
    }
}

/// The memory of a job. The working memory is the GPU's or, with the backend `cpu`, the machine's.
///
/// On a GPU it is two ranges that stay as they are for a whole job: one for weights, which the networks share as
/// [`Phase::held`] says, and one for everything else, as large as the largest stage needs.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Memory {
    /// The weights of all networks.
    pub networks: Vec<Network>,
    /// The stages that compute, in their order.
    pub phases: Vec<Phase>,
    /// The machine's memory for waiting weights, of which a CPU has none, and for what is read from files.
    pub host: Host,
    /// The bytes of the working memory that the job may take.
    pub budget: Option<u64>,
    /// The bytes of the machine's memory in which weights may wait.
    pub host_budget: Option<u64>,
    /// The bytes that the driver and the kernels take of the working memory.
    pub context: u64,
}

/// The bytes that the work takes beside the plan: staging, and the small decode that fits the previews' colours.
const MORE_WORK: u64 = 256 << 20;
/// The bytes that the driver and the kernels take of a GPU's memory.
const CONTEXT: u64 = 640 << 20;

impl Memory {
    /// Returns the bytes that the GPU backend reserves for weights before a job.
    pub fn weights_to_take(&self) -> u64 {
        self.phases.iter().map(Phase::weights).max().unwrap_or_default()
    }

    /// Returns the bytes that the GPU backend reserves for all else before a job. They exceed the plan, because
    /// activations are an estimate and allocations leave gaps.
    pub fn work_to_take(&self) -> u64 {
        work_to_take(self.phases.iter().map(|phase| [phase.kept, phase.activations]))
    }

    /// Returns the bytes of the working memory that a job takes in all.
    pub fn total(&self) -> u64 {
        self.weights_to_take() + self.work_to_take() + self.context
    }

    /// Returns the bytes that the work of a stage is reserved with, or 0 for a stage that the job does not have.
    pub(super) fn work_of(&self, stage: Stage) -> u64 {
        let those = self.phases.iter().filter(|phase| phase.stage == stage);
        work_to_take(those.map(|phase| [phase.kept, phase.activations]))
    }

    /// Returns the bytes of activations that the VAE may have without taking the place of weights: as many as the DiT's
    /// work takes. `None` if it has no more, or if the job has room for all its weights anyway.
    pub(super) fn room_for_vae(&self) -> Option<u64> {
        let all_there =
            self.fits() && self.phases.iter().all(|phase| phase.held.len() == self.networks.len());
        let most = self.work_of(Stage::Denoise);
        let vae = [Stage::VaeEncode, Stage::VaeDecode].map(|stage| self.work_of(stage)).into_iter().max()?;
        if self.budget.is_none() || all_there || vae <= most {
            return None;
        }
        let kept = self.phases.iter().filter(|phase| phase.stage == Stage::VaeEncode).map(|phase| phase.kept);
        let free = most.saturating_sub(MORE_WORK + kept.max().unwrap_or_default());
        Some(free / 9 * 8)
    }

    /// Returns whether the job keeps to its budgets.
    pub fn fits(&self) -> bool {
        self.budget.is_none_or(|budget| self.total() <= budget) && self.fits_host()
    }

    /// Returns whether the same weights are on the device at each stage as in another plan of the job.
    pub fn holds_the_same(&self, other: &Self) -> bool {
        let (these, those) = (self.phases.iter(), other.phases.iter());
        self.networks == other.networks && these.map(|phase| &phase.held).eq(those.map(|phase| &phase.held))
    }

    /// Returns whether the weights that wait in the machine's memory have room there.
    pub(super) fn fits_host(&self) -> bool {
        self.host_budget.is_none_or(|budget| self.host.pinned <= budget)
    }

    pub(super) fn new(
        recipe: &Recipe,
        request: &Request,
        latent: [usize; 3],
        branches: u32,
        tile: Option<usize>,
        share_prefix: bool,
        setup: &Setup,
    ) -> Self {
        let cpu = setup.backend == Backend::Cpu;
        let context_bytes = if cpu { 0 } else { CONTEXT };
        let Estimate { text, clip, vae_encode, denoise, vae_decode, context, residuals, prefix } =
            Estimate::new(recipe, request, latent, branches, tile, setup);
        let latents = 4 * latent.iter().product::<usize>() as u64;
        // These are the mask and the picture's latents, the noisy latents, and the solver's history.
        let channels = recipe.vae.config.z_dim as u64;
        let condition = (recipe.input_channels() as u64 - channels) * latents;
        let samples = 6 * channels * latents;
        let between_forwards = residuals + if share_prefix { prefix } else { 0 };
        let mut work = vec![(Stage::Text, Component::T5, [0, text])];
        work.extend(clip.map(|clip| (Stage::Image, Component::Clip, [context, clip])));
        work.extend([
            (Stage::VaeEncode, Component::Vae, [context, vae_encode]),
            (Stage::Denoise, Component::Dit, [context + condition + samples + between_forwards, denoise]),
            (Stage::VaeDecode, Component::Vae, [channels * latents, vae_decode]),
        ]);

        let (embedding, mut networks) = network::networks(recipe, setup);
        let most_work = work_to_take(work.iter().map(|(_, _, bytes)| *bytes));
        let room = setup.budget.map(|budget| budget.saturating_sub(context_bytes + most_work));
        if !cpu {
            budget::place(&mut networks, branches, room, setup.host_memory);
        }
        let phases = work.into_iter().map(|(stage, component, [kept, activations])| Phase {
            stage,
            held: budget::held(&networks, component, room, cpu),
            kept,
            activations,
        });
        // A CPU computes where the weights are, and reads the rows of the embedding that it needs as a GPU's engine does.
        let host = match cpu {
            true => Host { pinned: 0, page_cache: embedding },
            false => Host::of_gpu(&networks, embedding),
        };
        let (budget, host_budget) = (setup.budget, setup.host_memory);
        Self { phases: phases.collect(), host, networks, budget, host_budget, context: context_bytes }
    }

    /// Returns the largest working memory of any stage, and that stage.
    pub fn peak(&self) -> (u64, Stage) {
        let most = self.phases.iter().max_by_key(|phase| phase.bytes());
        most.map_or((0, Stage::Load), |phase| (phase.bytes(), phase.stage))
    }
}

/// Returns the bytes to reserve for the work of stages that keep and compute with so many.
fn work_to_take(stages: impl Iterator<Item = [u64; 2]>) -> u64 {
    stages.map(|[kept, activations]| kept + activations + activations / 8).max().unwrap_or_default()
        + MORE_WORK
}

/// The bytes of activations at each stage's largest moment, and of what is kept between stages.
///
/// For the transformers these are rows of tokens times the widths that are alive together. On the CPU that is eight
/// times the model's width (input, norm, q, k, v and their normed copies, result) and twice the feed-forward's, in f32.
/// On a GPU the residual stream with either q, k, v and the result of attention (with 8-bit attention its copies of q,
/// k and v too), or the feed-forward's inner rows with a norm before them, in 8 bits beside bf16, or the new stream after
/// them; all but the stream in bf16, norms in the type of the matrices that read them; or what the last layer reads, in
/// f32 and as sums of two bf16 numbers.
///
/// For the context of the blocks these are the embedded text and picture, in f32, and keys and values of them; prompts are as
/// long as the model reads.
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
    /// What a step cache keeps between steps.
    residuals: u64,
    /// What the first branch of a step keeps for the second, beside the residuals.
    prefix: u64,
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
            // Before the second layer, the inner rows become 8-bit ones: all at once or, in int8, band by band while the first
            // layer computes them. Then they are alone beside the stream and the result.
            let [first, between, second] = match precision {
                Precision::Fp32 | Precision::Bf16 => [2 * rows, 2 * rows, 2 * rows],
                Precision::Fp8 => [2 * rows, 3 * rows, rows],
                Precision::Int8 => [rows + 2 * rows.min(BAND as u64), rows, rows],
            };
            let feed_forward = (rows * (stream + operand) * dim + first * ffn)
                .max(rows * stream * dim + between * ffn)
                .max(rows * 2 * stream * dim + second * ffn);
            (rows * attention).max(feed_forward)
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
        // Only the expert whose turn it is has contexts.
        let context = |dit: &DitConfig| {
            let values = ((dit.text_len + image) * dit.dim) as u64;
            4 * values + act * 2 * values * dit.num_layers as u64
        };
        let context = experts().map(context).max().unwrap_or_default();
        // Only one expert at a time keeps tokens between forwards.
        let kept = stream * experts().map(|dit| (tokens * dit.dim) as u64).max().unwrap_or_default();
        let [residuals, prefix] = match request.step_cache {
            StepCache::None => [0, kept],
            // A prefix is kept while the first branch computes its residual, and has its place until then.
            _ => [branches * kept, 0],
        };
        let (vae, volumes) = (&recipe.vae.config, vae::Volumes::of(setup));
        let (t5, rows) = (&recipe.text_encoder.config, experts().map(|dit| dit.text_len).max());
        Self {
            text: transformer(rows.unwrap_or_default(), t5.dim, t5.ffn_dim, Component::T5, false),
            clip: recipe.conditioning.image_encoder.as_ref().map(|network| {
                let c = &network.config;
                transformer(image, c.dim, c.mlp_dim, Component::Clip, false)
            }),
            vae_encode: vae::encoder(vae, latent, tile, volumes, request.has_last_frame()).bytes,
            denoise: experts().map(denoise).max().unwrap_or_default(),
            vae_decode: vae::decoder(vae, latent, tile, volumes).bytes,
            context: branches * context,
            residuals,
            prefix,
        }
    }
}
