//! The backend for NVIDIA GPUs: the kernels of `animd-kernels` behind the vocabulary of operations.
//!
//! - [`memory`] has the device's memory: two arenas, for weights and for work, filled before a job from its plan.
//! - [`tensor`] defines tensors: elements with a type and strides. Volumes have their channels innermost wherever a
//!   convolution made them, latents and frames outermost.
//! - [`gpu`] allocates, copies and converts them; [`moves`], [`norms`], [`linear`], [`attention`], [`sequence`] and
//!   [`volumes`] are the operations.
//! - [`loader`] loads weights to the device.
//!
//! All work is enqueued on one stream, in the order of the calls. Only downloads wait for it, and
//! [`super::TensorOps::throttle`] for work that is two blocks old.

mod attention;
pub mod conformance;
mod error;
mod facts;
mod gpu;
mod linear;
mod loader;
mod memory;
mod moves;
mod norms;
mod pinned;
mod sequence;
mod staging;
mod tensor;
#[cfg(test)]
mod tests;
mod volumes;

use std::sync::{Arc, Mutex};

use animd_kernels::cuda::{
    self, AnyAttention, Attention, Conv, Copies, CrossAttention, Gemm, Norms, Volumes,
};

use super::{Backend, Keeping};
use crate::Result;
use animd_protocol::plan::{self, Setup};
use animd_protocol::profile::{Place, Profile, Residency};

use error::{device, kernel};
use gpu::Gpu;
use memory::Arena;
use pinned::sleeping_event;

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
    /// Sums 8-bit products up in the tensor cores alone, which keep some 14 bits, instead of in f32 every 128 products.
    pub fast_sums: bool,
    /// The bytes of the GPU's memory that are left to others.
    pub leave: usize,
    /// The bytes per second that copies of weights keep to, to measure how a slower link would do.
    pub copy_rate: Option<u64>,
    /// The compute capability (major, minor) whose kernels are used, if not the GPU's own: an older one, for tests and
    /// measurements.
    pub capability: Option<(u32, u32)>,
    /// Fills memory with NaN before its use, to find reads of memory that nobody wrote.
    pub poison: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            long_context: 1024,
            fast_sums: true,
            leave: 0,
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
        let arena = |purpose, step| Arena::new(&context, purpose, [step, options.leave], poison.clone());
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
            copies: kernel(Copies::load(&card))?,
            pace: Mutex::new([sleeping_event(&context)?, sleeping_event(&context)?]),
            landing: Mutex::default(),
            long_context: options.long_context,
            fast_sums: options.fast_sums,
            multiprocessors: kernel(card.multiprocessors())?,
            card,
            context,
            stream,
        };
        gpu.weights.grow(weights)?;
        gpu.work.reserve(work)?;
        Ok(Self { gpu: Arc::new(gpu) })
    }

    /// Returns the GPU memory of the weights' and the work's arenas.
    pub fn usage(&self) -> [Usage; 2] {
        [self.gpu.weights.usage(), self.gpu.work.usage()]
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
    /// All weights stay on the device.
    type Residence = ();

    fn name(&self) -> &'static str {
        "cuda"
    }

    fn resolve(&self, wanted: &Setup) -> Setup {
        let Residency { dit, text, clip, vae } = wanted.residency;
        for (name, place) in [("dit", dit), ("text", text), ("clip", clip), ("vae", vae)] {
            if place != Place::Device {
                tracing::warn!("`{name}` stays on the GPU, though the profile says otherwise");
            }
        }
        let [dit, text, clip, vae] = [Place::Device; 4];
        Setup { residency: Residency { dit, text, clip, vae }, reserve: 0, ..*wanted }
    }

    fn loader(&self, keeping: Keeping) -> Loader {
        Loader::new(self.gpu.clone(), keeping)
    }

    fn enter(&self, (): &()) -> Result<()> {
        Ok(())
    }

    fn reserve(&self, memory: &plan::Memory) -> Result<()> {
        let Gpu { weights, work, .. } = &*self.gpu;
        // Memory that was reserved for other weights may be too much for these.
        let unused = weights.release_unused();
        if unused {
            weights.reserve(memory.weights_to_take() as usize)?;
        }
        let taken = work.reserve(memory.work_to_take() as usize);
        if taken.is_err() && unused {
            weights.release_unused();
        }
        work.let_grow(STEP);
        taken
    }

    fn peak_memory(&self) -> u64 {
        let peak = self.usage().iter().map(|usage| usage.peak as u64).sum();
        self.gpu.weights.forget_peak();
        self.gpu.work.forget_peak();
        peak
    }
}
