//! The backend for NVIDIA GPUs: the kernels of `animd-kernels` behind the vocabulary of operations.
//!
//! - [`supply`] takes memory from the driver, within a budget. [`memory`] has two arenas of it, for work and for weights
//!   that stay, filled before a job from its plan.
//! - [`residency`] keeps weights in host memory ([`slab`]) and brings them to the device ([`mapping`], [`transfer`]) before
//!   operations compute with them.
//! - [`tensor`] defines tensors: elements with a type and strides. Volumes have their channels innermost wherever a
//!   convolution made them, latents and frames outermost.
//! - [`gpu`] allocates, copies and converts them; [`moves`], [`norms`], [`linear`], [`attention`], [`sequence`] and
//!   [`volumes`] are the operations.
//! - [`loader`] loads weights to the device; [`expand`] makes values of stored numbers there, and [`low_rank`] adds products to
//!   them; [`assembly`] takes weights that do not stay.
//!
//! All work is enqueued on one stream, in the order of the calls, and copies of weights on another, which events keep in
//! step with it. Only downloads wait for the work, and [`super::TensorOps::throttle`] for work that is two blocks old.

mod assembly;
mod attention;
pub mod conformance;
mod error;
mod expand;
mod facts;
mod gpu;
mod linear;
mod loader;
mod low_rank;
mod mapping;
mod memory;
mod moves;
mod norms;
mod pinned;
mod raw_heads;
mod residency;
mod sequence;
mod slab;
mod staging;
mod supply;
mod tensor;
#[cfg(test)]
mod tests;
mod transfer;
mod volumes;

use std::sync::{Arc, Mutex, PoisonError};

use animd_kernels::cuda::{
    self, AnyAttention, Attention, Conv, Copies, CrossAttention, Expand, Gemm, Norms, Volumes,
};

use super::{Backend, Keeping};
use crate::Result;
use animd_protocol::plan::{self, Setup};
use animd_protocol::profile::{Place, Profile};

use error::{device, kernel};
use gpu::Gpu;
use memory::Arena;
use pinned::sleeping_event;
use residency::{Layout, Networks};
use slab::Pinning;
use supply::Supply;
use transfer::Transfer;

pub use animd_kernels::cuda::OLDEST_DRIVER;
pub use linear::Linear;
pub use loader::Loader;
pub use memory::Usage;
pub use norms::Rope;
pub use tensor::Tensor;
pub use volumes::{ChannelNorm, Conv as Convolution};

/// The bytes that an arena grows by where the plan was too low, or free memory is fragmented.
const STEP: usize = 64 << 20;

/// How the GPU is used, whatever it computes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Options {
    /// The number of keys from which on attention counts as self-attention; with fewer keys its kind has no effect.
    pub long_context: usize,
    /// Quantises queries and keys of 8-bit self-attention as their product leaves them, instead of norming them in memory
    /// first, where the kernels can.
    pub raw_heads: bool,
    /// Sums 8-bit products up in the tensor cores alone, which keep some 14 bits, instead of in f32 every 128 products.
    pub fast_sums: bool,
    /// The bytes of the GPU's memory that are left to others.
    pub leave: usize,
    /// The most bytes of host memory to pin for weights.
    pub pinned: Option<usize>,
    /// The bytes per second that copies of weights keep to, to measure how a slower link would do.
    pub copy_rate: Option<u64>,
    /// The compute capability (major, minor) whose kernels are used, if not the GPU's own: an older one, for tests and
    /// measurements of cards that are not there.
    pub capability: Option<(u32, u32)>,
    /// Fills memory with NaN before its use, to find reads of memory that nobody wrote.
    pub poison: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            long_context: 1024,
            raw_heads: true,
            fast_sums: true,
            leave: 0,
            pinned: None,
            copy_rate: None,
            capability: None,
            poison: false,
        }
    }
}

impl Options {
    /// The options that a profile asks for.
    pub fn of(profile: &Profile) -> Self {
        Self { leave: (profile.memory.reserve_mib as usize) << 20, ..Self::default() }
    }
}

/// The backend; its clones share the GPU and its memory.
#[derive(Clone)]
pub struct Cuda {
    gpu: Arc<Gpu>,
    networks: Arc<Networks>,
}

impl Cuda {
    /// Opens the GPU of this number and allocates `weights` and `work` bytes of its memory at once;
    /// [`Backend::reserve`] allocates more.
    ///
    /// # Errors
    /// Returns [`crate::Error::Device`] without a driver, with one that is too old, and for a GPU that the kernels do
    /// not run on; [`crate::Error::Memory`] if it has too little memory.
    pub fn open(ordinal: usize, options: &Options, weights: usize, work: usize) -> Result<Self> {
        let card = kernel(cuda::open(ordinal, options.capability))?;
        let context = card.context().clone();
        let stream = context.new_stream().map_err(device)?;
        let poison = options.poison.then(|| stream.clone());
        let supply = Supply::new(&context, options.leave);
        let arena = |purpose, step| Arena::new(&context, &supply, purpose, step, poison.clone());
        let gpu = Gpu {
            weights: arena("the weights", STEP),
            work: arena("the computations", 0),
            gemm: kernel(Gemm::load(&card))?,
            norms: kernel(Norms::load(&card))?,
            attention: kernel(Attention::load(&card))?,
            cross_attention: kernel(CrossAttention::load(&card))?,
            any_attention: kernel(AnyAttention::load(&card))?,
            conv: kernel(Conv::load(&card))?,
            volumes: kernel(Volumes::load(&card))?,
            expand: kernel(Expand::load(&card))?,
            copies: kernel(Copies::load(&card))?,
            pace: Mutex::new([sleeping_event(&context)?, sleeping_event(&context)?]),
            landing: Mutex::default(),
            long_context: options.long_context,
            raw_heads: options.raw_heads,
            fast_sums: options.fast_sums,
            granularity: mapping::granularity(&context)?,
            transfer: Transfer::new(&context, options.copy_rate)?,
            pinning: Arc::new(Pinning::new(options.pinned)),
            notes: Mutex::default(),
            card,
            context,
            stream,
            supply,
        };
        gpu.weights.grow(weights)?;
        gpu.work.reserve(work)?;
        Ok(Self { gpu: Arc::new(gpu), networks: Arc::default() })
    }

    /// Returns the GPU memory of the weights' and the work's arenas.
    pub fn usage(&self) -> [Usage; 2] {
        [self.gpu.weights.usage(), self.gpu.work.usage()]
    }

    /// Returns the bytes that are taken from the driver for weights and work.
    pub fn taken(&self) -> usize {
        self.gpu.supply.taken()
    }

    /// Returns whether layers can be in precision `fp8`; all GPUs have `int8`.
    pub fn has_fp8(&self) -> bool {
        self.gpu.card.support().e4m3
    }

    /// Returns the GPU's name, as its driver reports it.
    ///
    /// # Errors
    /// Returns [`crate::Error::Device`] if the driver has failed.
    pub fn gpu_name(&self) -> Result<String> {
        self.gpu.context.name().map_err(device)
    }
}

impl Backend for Cuda {
    type Loader = Loader;
    /// `None` for a group that stays on the device.
    type Residence = Option<residency::Place>;

    fn name(&self) -> &'static str {
        "cuda"
    }

    fn resolve(&self, wanted: &Setup) -> Setup {
        // The backend itself leaves memory to others; see [`Options::leave`].
        Setup { reserve: 0, ..*wanted }
    }

    fn loader_of(&self, network: &str, keeping: Keeping) -> Loader {
        let gpu = &self.gpu;
        let network = match (keeping.place, gpu.granularity) {
            (Place::Device, _) => None,
            (Place::Host | Place::Disk, None) => {
                gpu.note("this GPU's driver cannot map memory, so all weights must stay on the GPU");
                None
            }
            (Place::Host | Place::Disk, Some(granularity)) => {
                Some(self.networks.start(gpu, granularity, network))
            }
        };
        Loader::new(gpu.clone(), keeping, network)
    }

    fn enter(&self, residence: &Self::Residence) -> Result<()> {
        residence.as_ref().map_or(Ok(()), residency::Place::enter)
    }

    fn stays(residence: &Self::Residence) -> bool {
        residence.is_none()
    }

    fn leave(&self, residence: &Self::Residence) {
        if let Some(place) = residence {
            place.leave();
        }
    }

    fn comes_next(&self, residence: &Self::Residence) {
        if let Some(place) = residence {
            place.is_next();
        }
    }

    fn reserve(&self, memory: &plan::Memory) -> Result<()> {
        let Gpu { weights, work, supply, .. } = &*self.gpu;
        supply.set_limit(memory.budget.map(|budget| budget.saturating_sub(memory.context) as usize));
        if let Some(most) = memory.host_budget {
            self.gpu.pinning.restrict(most as usize);
        }
        self.lay_out(memory);
        // Memory that was reserved for other weights may be too much for these.
        let unused = weights.release_unused();
        if unused {
            let stay = memory.networks.iter().filter(|network| network.placement.place == Place::Device);
            weights.reserve(stay.map(|network| network.bytes as usize).sum())?;
        }
        let wanted = memory.work_to_take() as usize;
        if memory.budget.is_some() && work.usage().reserved > wanted {
            // What the work does not need is for weights.
            work.release_unused();
        }
        let taken = work.reserve(wanted);
        if taken.is_err() && unused {
            weights.release_unused();
        }
        work.let_grow(STEP);
        taken
    }

    fn room(&self) -> Option<u64> {
        self.gpu.supply.room().ok().map(|room| room as u64)
    }

    fn notes(&self) -> Vec<String> {
        std::mem::take(&mut *self.gpu.notes.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn peak_memory(&self) -> u64 {
        let Gpu { weights, work, supply, .. } = &*self.gpu;
        let arenas: usize = self.usage().iter().map(|usage| usage.peak).sum();
        let peak = arenas + supply.most_mapped();
        weights.forget_peak();
        work.forget_peak();
        supply.forget_peak();
        peak as u64
    }
}

impl Cuda {
    /// Gives every network that is not kept on the device the layout that the plan has for it, now or when it is loaded.
    fn lay_out(&self, memory: &plan::Memory) {
        let layout = |network: &plan::Network| match network.placement.place {
            Place::Device => Layout::WHOLE,
            Place::Host | Place::Disk => Layout {
                resident: network.placement.resident,
                slots: network.placement.slots,
                turns: network.placement.turns,
            },
        };
        let layouts = memory.networks.iter().map(|network| (network.name.clone(), layout(network)));
        self.networks.plan(layouts.collect());
    }
}
