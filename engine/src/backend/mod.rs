//! The vocabulary of operations in which the model is written, and the backends that speak it.
//!
//! [`cpu`] defines what every operation means, in f32. A GPU backend fuses, quantises and lays out as it likes, and is
//! tested operation by operation against it. Model code never asks which backend it runs on.

pub mod conv;
pub mod cpu;
pub mod sequence;

use crate::Result;
use crate::weights::HostTensor;

pub use conv::ConvOps;
pub use sequence::SequenceOps;

/// A whole backend.
pub trait Backend: SequenceOps + ConvOps + Send + Sync + 'static {
    /// `cpu` or `cuda`.
    fn name(&self) -> &'static str;
}

/// Moving tensors and adding them up.
pub trait TensorOps {
    /// A tensor on the device; cloning it copies a handle, not the values.
    type Tensor: Clone + Send + Sync + 'static;

    /// Copies values to the device. `data` is row-major and as long as the product of `shape`.
    fn upload(&self, data: &[f32], shape: &[usize]) -> Result<Self::Tensor>;

    /// Copies a tensor's values back, row-major.
    fn download(&self, tensor: &Self::Tensor) -> Result<Vec<f32>>;

    /// Extents, outermost first.
    fn shape(&self, tensor: &Self::Tensor) -> Vec<usize>;

    /// The sum of `factor * tensor` over tensors of one shape, in f32, from left to right.
    fn combine(&self, terms: &[(f32, &Self::Tensor)]) -> Result<Self::Tensor>;

    /// Elements `start..start + len` along `axis`.
    fn narrow(&self, tensor: &Self::Tensor, axis: usize, start: usize, len: usize) -> Result<Self::Tensor>;

    /// Tensors one after the other along `axis`.
    fn concat(&self, parts: &[&Self::Tensor], axis: usize) -> Result<Self::Tensor>;

    /// A loaded parameter that is not a matrix: norm weights, modulations, tables.
    fn load(&self, parameter: HostTensor) -> Result<Self::Tensor> {
        self.upload(&parameter.data, &parameter.shape)
    }
}
