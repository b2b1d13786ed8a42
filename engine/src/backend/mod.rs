//! The vocabulary of operations in which the model is written, and the backends that implement it.
//!
//! [`cpu`] defines what every operation means, in f32. A GPU backend may fuse, quantise and lay out as it likes, and is
//! tested operation by operation against it. Model code never asks which backend it runs on.
//!
//! An operation is computed where it is called. Steps that can be computed together are one operation: a linear layer
//! reads the norm of a tensor, ends with bias, activation, gate and residual, and splits and norms queries and keys.
//!
//! Loading weights to the device (in which precision, and when) is separate from these operations: see [`loading`].

pub mod conv;
pub mod cpu;
#[cfg(feature = "cuda")]
pub mod cuda;
pub mod loading;
pub mod sequence;

use crate::Result;
use animd_protocol::plan::{self, Setup};

pub use conv::ConvOps;
pub use loading::{Keeping, Loader};
pub use sequence::SequenceOps;

/// A backend; its clones share the device.
pub trait Backend: SequenceOps + ConvOps + Clone + Send + Sync + 'static {
    /// The loader of a network's weights.
    type Loader: Loader<Self>;
    /// The place of a group of weights between its uses.
    type Residence: Send + Sync + 'static;

    /// Returns `cpu` or `cuda`.
    fn name(&self) -> &'static str;

    /// Returns how this backend runs a model for the wanted setup. It logs where it deviates from that.
    fn resolve(&self, wanted: &Setup) -> Setup;

    /// Returns a loader for the network that the recipe and its plans call by this name.
    fn loader_of(&self, network: &str, keeping: Keeping) -> Self::Loader;

    /// Returns a loader for a network that no plan knows.
    fn loader(&self, keeping: Keeping) -> Self::Loader {
        self.loader_of("", keeping)
    }

    /// Makes sure that operations that are called from now on find a group of weights where they compute; see
    /// [`loading::Group::enter`].
    ///
    /// # Errors
    /// Returns the error that keeps the weights from getting there.
    fn enter(&self, residence: &Self::Residence) -> Result<()>;

    /// Returns whether a group of weights is always where operations compute.
    fn stays(_: &Self::Residence) -> bool {
        true
    }

    /// Says that operations that are called from now on do not need a group that was entered, unless it is entered again.
    fn leave(&self, _: &Self::Residence) {}

    /// Says that the network of this group computes as soon as the pass that is about to begin, of another network, is over. Its
    /// weights may come to where operations compute meanwhile.
    fn comes_next(&self, _: &Self::Residence) {}

    /// Reserves the memory of a job, so that the job need not allocate from the driver while it runs.
    ///
    /// # Errors
    /// Returns [`crate::Error::Memory`] if the device does not have enough.
    fn reserve(&self, _: &plan::Memory) -> Result<()> {
        Ok(())
    }

    /// Returns the bytes of a GPU's memory that weights and work could have, those that they have included; `None` without
    /// a GPU, or if it does not say.
    fn room(&self) -> Option<u64> {
        None
    }

    /// Returns what there is to say about memory since the last call: where it went otherwise than planned.
    fn notes(&self) -> Vec<String> {
        Vec::new()
    }

    /// Returns the peak use of a GPU's memory in bytes since the last call; 0 without a GPU.
    fn peak_memory(&self) -> u64 {
        0
    }
}

/// A closure that waits for values that are being copied to the host, and returns them.
pub type Fetched = Box<dyn FnOnce() -> Result<Vec<f32>> + Send>;

/// The operations that move tensors and add them up.
pub trait TensorOps {
    /// A tensor on the device; cloning it copies a handle, not the values.
    type Tensor: Clone + Send + Sync + 'static;

    /// Copies values to the device. `data` is row-major and as long as the product of `shape`.
    fn upload(&self, data: &[f32], shape: &[usize]) -> Result<Self::Tensor>;

    /// Copies a tensor's values back, row-major.
    fn download(&self, tensor: &Self::Tensor) -> Result<Vec<f32>>;

    /// Begins to copy a tensor's values back, row-major. Operations that start later do not delay the copy.
    fn fetch(&self, tensor: &Self::Tensor) -> Result<Fetched> {
        let values = self.download(tensor)?;
        Ok(Box::new(|| Ok(values)))
    }

    /// Returns the extents, outermost first.
    fn shape(&self, tensor: &Self::Tensor) -> Vec<usize>;

    /// Returns the sum of `factor * tensor` over tensors of one shape, in f32, from left to right.
    fn linear_combination(&self, terms: &[(f32, &Self::Tensor)]) -> Result<Self::Tensor>;

    /// Returns the elements `start..start + len` along `axis`: a copy, or a view that keeps the tensor alive.
    fn slice(&self, tensor: &Self::Tensor, axis: usize, start: usize, len: usize) -> Result<Self::Tensor>;

    /// Returns the same values in memory of their own, for a slice that outlives its tensor.
    fn contiguous(&self, tensor: &Self::Tensor) -> Result<Self::Tensor> {
        Ok(tensor.clone())
    }

    /// Joins tensors in order along `axis`.
    fn concat(&self, parts: &[&Self::Tensor], axis: usize) -> Result<Self::Tensor>;

    /// Waits if the device has fallen behind, so that later waits are short: operations from before the call before
    /// last are done when this returns.
    fn throttle(&self) -> Result<()> {
        Ok(())
    }
}
