//! The four networks of Wan2.1 image-to-video, written once in the operations of [`crate::backend`].

pub mod clip;
pub mod dit;
pub mod t5;
pub mod vae;

#[cfg(test)]
mod tests;

use std::sync::Arc;

use crate::Result;
use crate::backend::loading::{ConvWeights, Group, LinearWeights, Role};
use crate::backend::sequence::{Activation, Affine, Epilogue, Input, Norm};
use crate::backend::{Backend, Loader};
use crate::weights::{HostTensor, WeightSource};

/// An optional callback that sees intermediate results by name, for comparisons. Without it, nothing is computed for
/// comparisons.
pub type Probe<'a, T> = Option<&'a mut dyn FnMut(&str, &T)>;

/// Shows `tensor` to the probe, if there is one.
fn show<T>(probe: &mut Probe<'_, T>, name: impl FnOnce() -> String, tensor: &T) {
    if let Some(probe) = probe {
        probe(&name(), tensor);
    }
}

/// The source of a network's tensors below a prefix of their names, with the loader that takes them.
struct Checkpoint<'a, B: Backend> {
    loader: &'a B::Loader,
    weights: &'a dyn WeightSource,
    prefix: String,
}

impl<'a, B: Backend> Checkpoint<'a, B> {
    fn new(loader: &'a B::Loader, weights: &'a dyn WeightSource, prefix: &str) -> Self {
        Self { loader, weights, prefix: prefix.to_owned() }
    }

    /// Returns the part below `name`.
    fn below(&self, name: &str) -> Self {
        Self { prefix: format!("{}{name}.", self.prefix), ..*self }
    }

    /// Loads everything that `load` takes as a group.
    fn group<T>(&self, load: impl FnOnce(&Self) -> Result<T>) -> Result<Group<B, T>> {
        self.loader.group(|| load(self))
    }

    /// Loads everything that `load` takes as a group of a network that works once a job: its weights may be read each time
    /// that they are needed.
    fn reread<T>(
        &self,
        load: impl Fn(&Checkpoint<'_, B>) -> Result<T> + Send + Sync + 'static,
    ) -> Result<Group<B, T>> {
        let Some(source) = self.loader.source() else { return self.group(|l| load(l)) };
        let (load, prefix) = (Arc::new(load), self.prefix.clone());
        let now = load.clone();
        let again = move |loader: &B::Loader| {
            let weights: &dyn WeightSource = &*source;
            load(&Checkpoint { loader, weights, prefix: prefix.clone() }).map(drop)
        };
        self.loader.reread(|| now(self), Box::new(again))
    }

    /// Loads everything that `load` takes as a group that is needed all the time.
    fn around<T>(&self, load: impl FnOnce(&Self) -> Result<T>) -> Result<Group<B, T>> {
        self.loader.around(|| load(self))
    }

    fn tensor(&self, name: &str) -> Result<HostTensor> {
        self.weights.tensor(&format!("{}{name}", self.prefix))
    }

    /// Reads a tensor to host memory, in another shape with as many elements.
    fn host(&self, name: &str, shape: &[usize]) -> Result<HostTensor> {
        Ok(HostTensor { shape: shape.to_vec(), data: self.tensor(name)?.data })
    }

    /// Reads a vector to host memory; its extents of one are dropped.
    fn host_vector(&self, name: &str) -> Result<HostTensor> {
        let HostTensor { data, .. } = self.tensor(name)?;
        Ok(HostTensor { shape: vec![data.len()], data })
    }

    /// Loads a vector; its extents of one are dropped.
    fn vector(&self, name: &str) -> Result<B::Tensor> {
        self.loader.tensor(self.host_vector(name)?)
    }

    fn norm(&self, name: &str, eps: f64) -> Result<LayerNorm<B>> {
        let (weight, bias) = (self.vector(&format!("{name}.weight"))?, self.vector(&format!("{name}.bias"))?);
        Ok(LayerNorm { weight, bias, eps })
    }

    /// Loads layers with `weight` and `bias`, side by side.
    fn linear(&self, names: &[&str], role: Role) -> Result<B::Linear> {
        self.layers(names, true, role)
    }

    /// Loads layers with only a `weight`, side by side.
    fn linear_without_bias(&self, names: &[&str], role: Role) -> Result<B::Linear> {
        self.layers(names, false, role)
    }

    fn layers(&self, names: &[&str], bias: bool, role: Role) -> Result<B::Linear> {
        self.loader.linear(&self.linear_weights(names, bias)?, role)
    }

    /// Reads layers that stand side by side.
    fn linear_weights(&self, names: &[&str], bias: bool) -> Result<LinearWeights<'a>> {
        let (mut layers, mut products) = (Vec::new(), Vec::new());
        for name in names {
            let weight = format!("{}{name}.weight", self.prefix);
            let (matrix, added) = match self.loader.adds_products() {
                true => self.weights.with_products(&weight)?,
                false => (self.weights.matrix(&weight)?, Vec::new()),
            };
            layers.push((matrix, bias.then(|| self.tensor(&format!("{name}.bias"))).transpose()?));
            products.push(added);
        }
        LinearWeights::new(layers)?.plus(products)
    }

    /// Loads a convolution with `weight` and `bias`.
    fn conv(&self, name: &str) -> Result<B::Conv> {
        self.loader.conv(self.conv_weights(name)?)
    }

    /// Reads a convolution to host memory.
    fn conv_weights(&self, name: &str) -> Result<ConvWeights> {
        ConvWeights::new(self.tensor(&format!("{name}.weight"))?, self.tensor(&format!("{name}.bias"))?)
    }

    /// Loads a norm over channels, with its `gamma` `[channels, 1, ..]`.
    fn channel_norm(&self, name: &str) -> Result<B::ChannelNorm> {
        self.loader.channel_norm(self.host_vector(&format!("{name}.gamma"))?)
    }
}

/// Loads a layer norm with learned factors.
struct LayerNorm<B: Backend> {
    weight: B::Tensor,
    bias: B::Tensor,
    eps: f64,
}

impl<B: Backend> LayerNorm<B> {
    fn norm(&self) -> Norm<'_, B::Tensor> {
        let Self { weight, bias, eps } = self;
        Norm::Layer { affine: Affine::Learned { weight, bias }, eps: *eps }
    }

    /// Returns the norm of `x`, for a layer to read.
    fn of<'a>(&'a self, x: &'a B::Tensor) -> Input<'a, B::Tensor> {
        Input::Normed(x, self.norm())
    }
}

/// Returns an epilogue with only an activation.
fn activated<T>(activation: Activation) -> Epilogue<'static, T> {
    Epilogue { activation, ..Epilogue::default() }
}

/// Returns an epilogue with only a residual.
fn added<T>(residual: &T) -> Epilogue<'_, T> {
    Epilogue { residual: Some(residual), ..Epilogue::default() }
}
