//! Loading of weights, apart from the code that computes with them.
//!
//! A [`Loader`] serves one network. The loader decides precision and place, and model code sees neither.
//! Weights that belong together form a [`Group`], which model code enters before it computes with them.

use std::ops::Deref;
use std::sync::Arc;

use super::Backend;
use super::conv::ConvShape;
use crate::weights::{Component, HostTensor, LowRank, Matrix, WeightSource};
use crate::{Error, Result};
use animd_protocol::plan::Setup;
use animd_protocol::profile::{Place, Precision, Sensitive};

/// How the weights of one network are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Keeping {
    /// The type of the large matrices.
    pub weights: Precision,
    /// The type of the small and sensitive parts.
    pub sensitive: Sensitive,
    /// Where the weights are kept between their uses.
    pub place: Place,
}

impl Keeping {
    /// All weights in f32, where operations compute.
    pub const F32: Self = Self { weights: Precision::Fp32, sensitive: Sensitive::Fp32, place: Place::Device };

    /// Returns how a setup keeps a network.
    pub fn of(setup: &Setup, network: Component) -> Self {
        let Setup { precision, residency, .. } = setup;
        let (weights, place) = match network {
            Component::Dit => (precision.dit, residency.dit),
            Component::T5 => (precision.text, residency.text),
            Component::Clip => (precision.clip, residency.clip),
            Component::Vae => (precision.vae, residency.vae),
        };
        Self { weights, sensitive: precision.sensitive, place }
    }
}

/// How sensitive the result is to a linear layer's rounding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Few and sensitive layers: embeddings, modulation, head. Weights and result are f32, or the nearest that the
    /// backend has.
    Sensitive,
    /// The bulk of the work, in the precision of its network.
    Bulk,
}

/// A function that loads a group's tensors again, in the same order, from a source that it owns.
pub type Again<L> = Box<dyn Fn(&L) -> Result<()> + Send + Sync>;

/// A loader takes the weights of one network from a checkpoint to where operations compute with them.
pub trait Loader<B: Backend> {
    /// Loads a linear layer.
    ///
    /// # Errors
    /// Returns [`Error::Memory`] if there is no room, and an error for a layer that the backend does not support.
    fn linear(&self, weights: &LinearWeights<'_>, role: Role) -> Result<B::Linear>;

    /// Loads a linear layer again, with other weights of the same sizes, in the place of a loaded one.
    ///
    /// # Errors
    /// Returns the errors of [`Loader::linear`]; the layer then has weights of either kind.
    fn replace(&self, layer: &mut B::Linear, weights: &LinearWeights<'_>, role: Role) -> Result<()> {
        *layer = self.linear(weights, role)?;
        Ok(())
    }

    /// Returns whether this loader adds products of low rank to weights; otherwise they come with the products in them.
    fn adds_products(&self) -> bool {
        false
    }

    /// Loads a convolution.
    ///
    /// # Errors
    /// Returns the errors of [`Loader::linear`].
    fn conv(&self, weights: ConvWeights) -> Result<B::Conv>;

    /// Loads the gamma `[channels]` of a norm over channels.
    ///
    /// # Errors
    /// Returns the errors of [`Loader::linear`].
    fn channel_norm(&self, gamma: HostTensor) -> Result<B::ChannelNorm>;

    /// Loads a parameter of another kind: norm weights, modulations, tables.
    ///
    /// # Errors
    /// Returns the errors of [`Loader::linear`].
    fn tensor(&self, parameter: HostTensor) -> Result<B::Tensor>;

    /// Loads everything that `load` takes from this loader, as a group.
    ///
    /// # Errors
    /// Returns the errors of `load`.
    fn group<T>(&self, load: impl FnOnce() -> Result<T>) -> Result<Group<B, T>>;

    /// Loads a group as [`Loader::group`] does. The loader may read its weights `again` each time that the group is
    /// entered, and not now.
    ///
    /// # Errors
    /// Returns the errors of `load`.
    fn reread<T>(&self, load: impl FnOnce() -> Result<T>, _: Again<Self>) -> Result<Group<B, T>>
    where
        Self: Sized,
    {
        self.group(load)
    }

    /// Sets the source for weights that are read each time that they are needed.
    #[must_use]
    fn reading(self, _: Arc<dyn WeightSource + Send>) -> Self
    where
        Self: Sized,
    {
        self
    }

    /// Returns the source for weights that are read each time that they are needed, if this loader reads them so.
    fn source(&self) -> Option<Arc<dyn WeightSource + Send>> {
        None
    }

    /// Loads a group that is needed all the time while the network works, around the others.
    ///
    /// # Errors
    /// Returns the errors of `load`.
    fn around<T>(&self, load: impl FnOnce() -> Result<T>) -> Result<Group<B, T>>;
}

/// Weights that are needed together, and are moved together where not all have room. A block of the `DiT` is a group.
pub struct Group<B: Backend, T> {
    weights: T,
    residence: B::Residence,
}

impl<B: Backend, T> Group<B, T> {
    /// Makes a group; only loaders call this.
    pub(super) fn new(weights: T, residence: B::Residence) -> Self {
        Self { weights, residence }
    }

    /// Returns the weights, to put others in their place, if they stay where operations compute.
    pub fn resident_mut(&mut self) -> Option<&mut T> {
        B::stays(&self.residence).then_some(&mut self.weights)
    }

    /// Returns the weights for operations that are called from now on, until the result is dropped.
    ///
    /// # Errors
    /// Returns the backend's error for a group that does not get to where operations compute.
    pub fn enter<'a>(&'a self, backend: &'a B) -> Result<Entered<'a, B, T>> {
        backend.enter(&self.residence)?;
        Ok(Entered { group: self, backend })
    }

    /// Says that this group's network computes after the next pass of another one; see [`Backend::comes_next`].
    pub fn comes_next(&self, backend: &B) {
        backend.comes_next(&self.residence);
    }
}

/// A group's weights, which stay where operations compute while this lives.
pub struct Entered<'a, B: Backend, T> {
    group: &'a Group<B, T>,
    backend: &'a B,
}

impl<B: Backend, T> Deref for Entered<'_, B, T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.group.weights
    }
}

impl<B: Backend, T> Drop for Entered<'_, B, T> {
    fn drop(&mut self) {
        self.backend.leave(&self.group.residence);
    }
}

/// The weights `[out, in]` and biases `[out]` of layers that read one input. They become one layer, with their outputs
/// side by side.
pub struct LinearWeights<'a> {
    layers: Vec<(Matrix<'a>, Option<HostTensor>)>,
    /// What is to be added to each matrix, for loaders that add.
    products: Vec<Vec<LowRank>>,
    inputs: usize,
    outputs: usize,
}

impl<'a> LinearWeights<'a> {
    /// Checks that the layers go together.
    ///
    /// # Errors
    /// Returns [`Error::Internal`] if they do not.
    pub fn new(layers: Vec<(Matrix<'a>, Option<HostTensor>)>) -> Result<Self> {
        let Some(inputs) = layers.first().map(|(matrix, _)| matrix.cols) else {
            return Err(Error::Internal("a linear layer needs a weight".into()));
        };
        for (matrix, bias) in &layers {
            if inputs == 0 || matrix.cols != inputs || !matrix.is_consistent() {
                return Err(Error::Internal(format!("a weight that is not [{}, {inputs}]", matrix.rows)));
            }
            if bias.as_ref().is_some_and(|b| b.data.len() != matrix.rows) {
                return Err(Error::Internal(format!("a bias that has not {} elements", matrix.rows)));
            }
        }
        let outputs = layers.iter().map(|(matrix, _)| matrix.rows).sum();
        let products = layers.iter().map(|_| Vec::new()).collect();
        Ok(Self { layers, products, inputs, outputs })
    }

    /// Adds products of low rank to the layers' matrices, which a loader that [`Loader::adds_products`] computes.
    ///
    /// # Errors
    /// Returns [`Error::Internal`] for a product of other extents than its matrix.
    pub fn plus(mut self, products: Vec<Vec<LowRank>>) -> Result<Self> {
        let fits = |matrix: &Matrix<'_>, product: &LowRank| {
            let (rows, cols, rank) = (matrix.rows, matrix.cols, product.rank());
            rank > 0 && product.up.shape == [rows, rank] && product.down.shape == [rank, cols]
        };
        let mut pairs = self.layers.iter().zip(&products);
        if products.len() != self.layers.len()
            || !pairs.all(|((matrix, _), products)| products.iter().all(|product| fits(matrix, product)))
        {
            return Err(Error::Internal("a product of low rank that does not fit its weight".into()));
        }
        self.products = products;
        Ok(self)
    }

    /// Returns the number of features of the input.
    pub fn inputs(&self) -> usize {
        self.inputs
    }

    /// Returns the number of features of the output, of all layers together.
    pub fn outputs(&self) -> usize {
        self.outputs
    }

    /// Returns the layers' weights.
    pub fn matrices(&self) -> impl Iterator<Item = &Matrix<'a>> {
        self.layers.iter().map(|(matrix, _)| matrix)
    }

    /// Returns the layers' weights, each with the products that are to be added to it.
    pub fn sums(&self) -> impl Iterator<Item = (&Matrix<'a>, &[LowRank])> {
        self.matrices().zip(self.products.iter().map(Vec::as_slice))
    }

    /// Returns the layers' biases, `[out]`, with zeros for a layer without one; `None` if no layer has one.
    pub fn bias(&self) -> Option<Vec<f32>> {
        self.layers.iter().any(|(_, bias)| bias.is_some()).then(|| {
            let one = |(matrix, bias): &(Matrix<'_>, Option<HostTensor>)| {
                bias.as_ref().map_or_else(|| vec![0.0; matrix.rows], |bias| bias.data.clone())
            };
            self.layers.iter().flat_map(one).collect()
        })
    }
}

/// A convolution's weight and bias.
#[derive(Clone)]
pub struct ConvWeights {
    /// The shape of the convolution.
    pub shape: ConvShape,
    /// The weight, `[out, in, kt, kh, kw]`.
    pub weight: Vec<f32>,
    /// The bias, `[out]`.
    pub bias: Vec<f32>,
}

impl ConvWeights {
    /// Makes a convolution from a weight `[out, in, kt, kh, kw]` or, for one frame at a time, `[out, in, kh, kw]`, and
    /// a bias
    /// `[out]`.
    ///
    /// # Errors
    /// Returns [`Error::Internal`] for other extents, and if the number of values does not match.
    pub fn new(weight: HostTensor, bias: HostTensor) -> Result<Self> {
        let (outputs, inputs, kernel) = match *weight.shape {
            [o, i, kt, kh, kw] => (o, i, [kt, kh, kw]),
            [o, i, kh, kw] => (o, i, [1, kh, kw]),
            _ => return Err(Error::Internal(format!("{:?} is no convolution's weight", weight.shape))),
        };
        let known = matches!(kernel, [1 | 3, 1, 1] | [1 | 3, 3, 3]);
        let values = outputs * inputs * kernel.iter().product::<usize>();
        if !known || values == 0 || weight.data.len() != values || bias.data.len() != outputs {
            return Err(Error::Internal(format!(
                "a convolution's weight {:?} and bias {:?} do not go together",
                weight.shape, bias.shape
            )));
        }
        Ok(Self { shape: ConvShape { outputs, inputs, kernel }, weight: weight.data, bias: bias.data })
    }
}
