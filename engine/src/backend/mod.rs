//! The vocabulary of operations in which the model is written, and the backends that speak it.
//!
//! [`cpu`] defines what every operation means, in f32. A GPU backend fuses, quantises and lays out as it likes, and is
//! tested operation by operation against it. Model code never asks which backend it runs on.
//!
//! An operation is computed where it is called. What can be computed together is one operation: a linear layer reads the
//! norm of a tensor, ends with bias, activation, gate and residual, and cuts and norms queries and keys.
//!
//! How weights come to the device, in which precision and when, is apart from all this: see [`loading`].

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

/// A whole backend; clones share the device.
pub trait Backend: SequenceOps + ConvOps + Clone + Send + Sync + 'static {
    /// What loads a network's weights.
    type Loader: Loader<Self>;
    /// Where a group of weights is between its uses.
    type Residence: Send + Sync + 'static;

    /// `cpu` or `cuda`.
    fn name(&self) -> &'static str;

    /// What this backend makes of a wish how to run the model. Where it does something else, it says so in the log.
    fn resolve(&self, wanted: &Setup) -> Setup;

    /// A loader for one network.
    fn loader(&self, keeping: Keeping) -> Self::Loader;

    /// Waits until a group of weights is where operations compute with it; see [`loading::Group::enter`].
    ///
    /// # Errors
    /// What keeps it from getting there.
    fn enter(&self, residence: &Self::Residence) -> Result<()>;

    /// Takes the memory of a job, so that none need be taken while it runs.
    ///
    /// # Errors
    /// [`crate::Error::Memory`] if the device has not so much.
    fn reserve(&self, _: &plan::Memory) -> Result<()> {
        Ok(())
    }

    /// The most bytes of a GPU's memory that were in use since this was asked last; 0 without a GPU.
    fn peak_memory(&self) -> u64 {
        0
    }
}

/// Values that are on their way to the host: waits for them.
pub type Fetched = Box<dyn FnOnce() -> Result<Vec<f32>> + Send>;

/// Moving tensors and adding them up.
pub trait TensorOps {
    /// A tensor on the device; cloning it copies a handle, not the values.
    type Tensor: Clone + Send + Sync + 'static;

    /// Copies values to the device. `data` is row-major and as long as the product of `shape`.
    fn upload(&self, data: &[f32], shape: &[usize]) -> Result<Self::Tensor>;

    /// Copies a tensor's values back, row-major.
    fn download(&self, tensor: &Self::Tensor) -> Result<Vec<f32>>;

    /// Begins to copy a tensor's values back, row-major. What is begun after it does not delay it.
    fn fetch(&self, tensor: &Self::Tensor) -> Result<Fetched> {
        let values = self.download(tensor)?;
        Ok(Box::new(|| Ok(values)))
    }

    /// Extents, outermost first.
    fn shape(&self, tensor: &Self::Tensor) -> Vec<usize>;

    /// The sum of `factor * tensor` over tensors of one shape, in f32, from left to right.
    fn linear_combination(&self, terms: &[(f32, &Self::Tensor)]) -> Result<Self::Tensor>;

    /// Elements `start..start + len` along `axis`: a view of the tensor, which it keeps, or a copy.
    fn slice(&self, tensor: &Self::Tensor, axis: usize, start: usize, len: usize) -> Result<Self::Tensor>;

    /// The same values in memory of their own: of a slice that outlives its tensor.
    fn contiguous(&self, tensor: &Self::Tensor) -> Result<Self::Tensor> {
        Ok(tensor.clone())
    }

    /// Tensors one after the other along `axis`.
    fn concat(&self, parts: &[&Self::Tensor], axis: usize) -> Result<Self::Tensor>;

    /// Waits where the device has fallen behind, so that nobody waits long for what was begun: what was begun before the
    /// call before last is done when this returns.
    fn throttle(&self) -> Result<()> {
        Ok(())
    }
}
