//! The cost of a job before it starts: operations and memory, by component.
//!
//! A plan is a pure function of sizes: it needs no model, no device and no inference. Operations are counted from the
//! shapes of all computations. Memory for weights is counted, too; activations are estimated as [`memory`] says.

mod budget;
pub mod cards;
pub mod memory;
pub mod network;
mod predict;
mod refusal;
mod vae;
pub mod work;

use std::convert::Infallible;
use std::fmt;

use serde::Serialize;

use crate::profile::{AttentionKind, Backend, Place, Precision, Precisions, Profile, Residency, Sensitive};
use crate::progress::Stage;
use crate::recipe::Recipe;
use crate::request::{Request, StepCache};
use crate::step_cache::StepPlan;

pub use memory::Memory;
pub use network::{Held, Network, Placement};
pub use predict::{Exchange, ForwardSeconds, Prediction};
pub use refusal::{Refusal, refusal};
use vae::CHEAP_TILE;
pub use vae::{SMALLEST_TILE, largest_tile, tile, vae_activations};
pub use work::Work;

/// How the model is run, as far as the plan depends on it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Setup {
    /// The device that computes.
    pub backend: Backend,
    /// The types of the weights.
    pub precision: Precisions,
    /// The kind of the DiT's self-attention.
    pub attention: AttentionKind,
    /// Where the weights are between their uses.
    pub residency: Residency,
    /// The bytes of GPU memory that are left alone.
    pub reserve: u64,
    /// All bytes of working memory that the engine may take, the driver's context included; `None` sets no limit. The
    /// working memory is the GPU's or, with the backend `cpu`, the machine's.
    pub budget: Option<u64>,
    /// The bytes of the machine's memory in which weights may wait for the GPU; `None` sets no limit.
    pub host_memory: Option<u64>,
}

impl Setup {
    /// The setup for the CPU in f32.
    pub const CPU: Self = Self {
        backend: Backend::Cpu,
        precision: Precisions::all(Precision::Fp32, Sensitive::Fp32),
        attention: AttentionKind::Exact,
        residency: Residency::all(Place::Host),
        reserve: 0,
        budget: None,
        host_memory: None,
    };
}

impl From<&Profile> for Setup {
    fn from(profile: &Profile) -> Self {
        Self {
            backend: profile.device.backend,
            precision: profile.precision,
            attention: profile.attention.kind,
            residency: profile.residency,
            reserve: profile.memory.reserve_mib << 20,
            budget: profile.memory.budget_mib.map(|mib| mib << 20),
            host_memory: None,
        }
    }
}

/// The number of the DiT's forwards.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Forwards {
    /// Forwards that are computed.
    pub computed: u32,
    /// Forwards that the step cache saves.
    pub skipped: u32,
    /// Whether the numbers are exact. `TeaCache` decides by the model's own weights, and may skip some of the forwards
    /// that count as computed.
    pub exact: bool,
}

/// The cost of a job.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Plan {
    /// The width in pixels.
    pub width: usize,
    /// The height in pixels.
    pub height: usize,
    /// The number of frames of the video.
    pub frames: u32,
    /// The frames, height and width of the latents.
    pub latent: [usize; 3],
    /// The number of the DiT's tokens.
    pub tokens: usize,
    /// The side of the VAE's tiles in latent pixels; none if it works on the whole frame.
    pub tile: Option<usize>,
    /// The number of the sampler's steps.
    pub steps: u32,
    /// Whether each step takes a second forward, for the negative prompt.
    pub guidance: bool,
    /// Whether the two forwards of a step share what they have in common, up to the first block's self-attention. Their
    /// tokens are kept for it where they take no other memory's place; elsewhere each forward computes its own.
    pub share_prefix: bool,
    /// The DiT's forwards, two a step with guidance.
    pub forwards: Forwards,
    /// The forwards that each of the DiT's experts computes, in the order of [`Recipe::of_job`].
    pub forwards_of: Vec<u32>,
    /// The operations.
    pub work: Work,
    /// The memory.
    pub memory: Memory,
}

impl Plan {
    /// Plans a request whose video has `size` pixels, width and height, both multiples of 16.
    pub fn new(recipe: &Recipe, request: &Request, size: [usize; 2], setup: &Setup) -> Self {
        let recipe = &*recipe.of_job(request);
        let [width, height] = size;
        let latent = [request.latent_frames(), height / 8, width / 8];
        let guidance = recipe.uses_guidance(request);
        let branches = if guidance { 2 } else { 1 };
        let exact = !matches!(request.step_cache, StepCache::Teacache | StepCache::TeacacheRet);
        let steps = match exact {
            // `MagCache` does not call the closure, so it cannot fail.
            true => {
                let Ok(plan) = StepPlan::new(recipe, request, |_| Ok::<_, Infallible>(Vec::new()));
                plan
            }
            false => StepPlan::whole(recipe, request),
        };
        let (computed, skipped) = steps.forwards();
        let plan_memory =
            |tile, share_prefix| Memory::new(recipe, request, latent, branches, tile, share_prefix, setup);
        let mut tile = tile(&recipe.vae.config, latent, request.tiling, setup);
        let mut memory = plan_memory(tile, false);
        if let Some(room) = memory.room_for_vae() {
            // Tiles give the same frames, so that weights may have their room: down to a size whose halos are a third of
            // the work, and to the smallest where nothing else fits.
            let fitting = largest_tile(&recipe.vae.config, latent, setup, room).unwrap_or_default();
            for side in [fitting.max(CHEAP_TILE), SMALLEST_TILE] {
                tile = Some(side).filter(|&side| latent[1].max(latent[2]) > side);
                memory = plan_memory(tile, false);
                if memory.fits() {
                    break;
                }
            }
        }
        // Sharing saves one block's self-attention in every second forward: 0.9 % of a job of 32,760 tokens, and at most an
        // eightieth of a longer one. The tokens take 0.63 GiB then, the place of two blocks in 8 bits. Where copies hide beneath
        // the work, two blocks more to copy would cost nothing; where they do not, each forward would wait for them, 5 % longer if
        // it copies all forty. A plan does not know which, so it keeps the tokens only where no weights have to leave for them.
        let shared = guidance.then(|| plan_memory(tile, true));
        let shared = shared.filter(|shared| shared.fits() && shared.holds_the_same(&memory));
        let share_prefix = shared.is_some();
        let memory = shared.unwrap_or(memory);
        let by_expert = steps.forwards_of(&recipe.step_experts(request));
        Self {
            width,
            height,
            frames: request.frames,
            latent,
            tokens: latent.iter().product::<usize>() / 4,
            tile,
            steps: request.total_steps(),
            guidance,
            share_prefix,
            forwards: Forwards { computed, skipped, exact },
            work: Work::new(recipe, latent, branches, &by_expert, tile),
            forwards_of: by_expert,
            memory,
        }
    }
}

/// Returns a number of bytes in GiB, such as `15.51 GiB`.
pub fn gib(bytes: u64) -> String {
    format!("{:.2} GiB", bytes as f64 / (1u64 << 30) as f64)
}

fn what(stage: Stage) -> &'static str {
    match stage {
        Stage::Load => "loading",
        Stage::Text => "reading the prompt",
        Stage::Image => "looking at the picture",
        Stage::VaeEncode => "encoding the picture",
        Stage::Denoise => "denoising",
        Stage::VaeDecode => "decoding the frames",
        Stage::Write => "writing",
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [t, h, w] = self.latent;
        writeln!(
            f,
            "{}x{}, {} frames: latents 16x{t}x{h}x{w}, {} tokens",
            self.width, self.height, self.frames, self.tokens
        )?;
        let Forwards { computed, skipped, exact } = self.forwards;
        let most = if exact { "" } else { "at most " };
        writeln!(
            f,
            "{} steps: {most}{computed} forwards of the DiT, {skipped} saved by the step cache",
            self.steps
        )?;
        if let [high, low] = self.forwards_of[..] {
            writeln!(f, "{high} of them by the high-noise expert, {low} by the low-noise expert")?;
        } else if let [high, low, base] = self.forwards_of[..] {
            writeln!(
                f,
                "{base} of them by the high-noise expert without LoRAs, {high} with them, {low} by the low-noise expert"
            )?;
        }

        let (work, forward) = (&self.work, &self.work.forward);
        writeln!(f, "\noperations                       FLOP")?;
        for (name, flops) in [
            ("prompts (at most)", work.text),
            ("picture", work.clip),
            ("VAE encoder", work.vae_encode),
            ("one forward of the DiT", forward.flops()),
            ("  linear layers", forward.linear),
            ("  self-attention", forward.self_attention),
            ("  cross-attention", forward.cross_attention),
            ("all forwards", work.denoise),
            ("VAE decoder", work.vae_decode),
            ("the whole job", work.flops()),
        ] {
            writeln!(f, "  {name:28} {flops:8.2e}")?;
        }

        writeln!(f, "\nweights            parameters        bytes  kept in       at work  of its groups")?;
        for Network { name, parameters, bytes, placement, .. } in &self.memory.networks {
            let (place, bytes, working) = (placement.place, gib(*bytes), gib(placement.working()));
            let place = format!("{place:?}").to_lowercase();
            let all = placement.groups.len();
            let groups = match (placement.slots, placement.turns) {
                (0, None) => "all".to_owned(),
                (0, Some(own)) if own == all => "all".to_owned(),
                (0, Some(own)) => format!("all, {} of {all} in turns", all - own),
                (slots, None) => format!("{} of {all} stay, {slots} slots", placement.resident),
                (slots, Some(_)) => format!("{} of {all} stay in turns, {slots} slots", placement.resident),
            };
            writeln!(f, "  {name:12} {parameters:14} {bytes:>12}  {place:7} {working:>12}  {groups}")?;
        }

        writeln!(f, "\nmemory at work                 weights         kept  activations        total")?;
        for phase in &self.memory.phases {
            let [weights, kept, activations, total] =
                [phase.weights(), phase.kept, phase.activations, phase.bytes()].map(gib);
            let stage = what(phase.stage);
            writeln!(f, "  {stage:22} {weights:>13} {kept:>12} {activations:>12} {total:>12}")?;
        }
        let memory = &self.memory;
        let [total, weights, work, context] =
            [memory.total(), memory.weights_to_take(), memory.work_to_take(), memory.context].map(gib);
        write!(f, "\n{total} in all: {weights} for weights, {work} for the work")?;
        if memory.context > 0 {
            write!(f, ", {context} for the driver")?;
        }
        if let Some(budget) = memory.budget {
            write!(f, "; {} may be used", gib(budget))?;
        }
        if let Some(side) = self.tile {
            write!(f, "\nthe VAE works on tiles of {0}x{0} pixels", 8 * side)?;
        }
        if memory.host.pinned > 0 {
            write!(f, "\n{} of weights wait in the machine's memory", gib(memory.host.pinned))?;
        }
        match memory.host.page_cache {
            0 => Ok(()),
            read => write!(f, "\n{} are read from the model's files in each job", gib(read)),
        }
    }
}

#[cfg(test)]
mod budget_tests;
#[cfg(test)]
mod experts_tests;
#[cfg(test)]
mod prefix_tests;
#[cfg(test)]
mod tests;
