//! The four networks of Wan2.1 image-to-video, written once in the operations of [`crate::backend`].

pub mod clip;
pub mod dit;
pub mod t5;
pub mod vae;

#[cfg(test)]
mod tests;

use crate::Result;
use crate::backend::SequenceOps;
use crate::backend::sequence::{NormParams, Role};
use crate::weights::{HostTensor, WeightSource};

/// Sees intermediate results by name, for comparisons; with none nothing is computed for it.
pub type Probe<'a, T> = Option<&'a mut dyn FnMut(&str, &T)>;

/// Shows `tensor` to the probe, if there is one.
fn show<T>(probe: &mut Probe<'_, T>, name: impl FnOnce() -> String, tensor: &T) {
    if let Some(probe) = probe {
        probe(&name(), tensor);
    }
}

/// Takes tensors from files to a backend by the names that they have below a prefix.
struct Loader<'a, B> {
    backend: &'a B,
    weights: &'a dyn WeightSource,
    prefix: String,
}

impl<'a, B: SequenceOps> Loader<'a, B> {
    fn new(backend: &'a B, weights: &'a dyn WeightSource, prefix: &str) -> Self {
        Self { backend, weights, prefix: prefix.to_owned() }
    }

    /// What lies below `name`.
    fn below(&self, name: &str) -> Self {
        Self { prefix: format!("{}{name}.", self.prefix), ..*self }
    }

    /// To host memory, in another shape with as many elements.
    fn host(&self, name: &str, shape: &[usize]) -> Result<HostTensor> {
        let tensor = self.weights.tensor(&format!("{}{name}", self.prefix))?;
        Ok(HostTensor { shape: shape.to_vec(), data: tensor.data })
    }

    /// A vector; its extents of one are dropped.
    fn vector(&self, name: &str) -> Result<B::Tensor> {
        let tensor = self.weights.tensor(&format!("{}{name}", self.prefix))?;
        self.backend.load(HostTensor { shape: vec![tensor.data.len()], data: tensor.data })
    }

    fn norm(&self, name: &str, eps: f64) -> Result<Norm<B>> {
        let (weight, bias) = (self.vector(&format!("{name}.weight"))?, self.vector(&format!("{name}.bias"))?);
        Ok(Norm { weight, bias, eps })
    }

    /// Layers with `weight` and `bias`, side by side.
    fn linear(&self, names: &[&str], role: Role) -> Result<B::Linear> {
        self.layers(names, true, role)
    }

    /// Layers with only a `weight`, side by side.
    fn linear_without_bias(&self, names: &[&str], role: Role) -> Result<B::Linear> {
        self.layers(names, false, role)
    }

    fn layers(&self, names: &[&str], bias: bool, role: Role) -> Result<B::Linear> {
        let layers = names.iter().map(|name| {
            let weight = self.weights.matrix(&format!("{}{name}.weight", self.prefix))?;
            let bias =
                bias.then(|| self.weights.tensor(&format!("{}{name}.bias", self.prefix))).transpose()?;
            Ok((weight, bias))
        });
        self.backend.load_linear(&layers.collect::<Result<Vec<_>>>()?, role)
    }
}

/// A layer norm with learned factors.
struct Norm<B: SequenceOps> {
    weight: B::Tensor,
    bias: B::Tensor,
    eps: f64,
}

impl<B: SequenceOps> Norm<B> {
    fn apply(&self, b: &B, x: &B::Tensor) -> Result<B::Tensor> {
        b.layer_norm(x, &NormParams::Affine { weight: &self.weight, bias: &self.bias }, self.eps)
    }
}

/// Parts of `x` `[rows, features]`, as wide as each other.
fn columns<B: SequenceOps, const N: usize>(b: &B, x: &B::Tensor) -> Result<[B::Tensor; N]> {
    let width = b.shape(x)[1] / N;
    let parts: Vec<_> = (0..N).map(|i| b.slice(x, 1, i * width, width)).collect::<Result<_>>()?;
    parts.try_into().map_err(|_| crate::Error::Internal("parts were lost".into()))
}
