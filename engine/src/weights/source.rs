//! Where a network's weights come from.

use std::collections::BTreeMap;
use std::path::Path;

use super::check::ignorable;
use super::layouts::{Contents, Described, Layout};
use super::stored::Stored;
use super::{Component, Encoding, HostTensor, Matrix, dtype};
use crate::{Error, Result};

/// The checked tensors of one component, under their official names.
///
/// A source can wrap another one and change what passes through: it can count tensors, or add to a weight.
pub trait WeightSource: Sync {
    /// Returns any tensor as f32; a quantised matrix is dequantised.
    ///
    /// # Errors
    /// `Internal` for a name that the component's schema does not have; `File` or `Model` if the file cannot be read.
    fn tensor(&self, name: &str) -> Result<HostTensor>;

    /// Returns a weight as it is stored: the first axis gives the rows, the others together the columns.
    ///
    /// # Errors
    /// The errors are those of [`WeightSource::tensor`].
    fn matrix(&self, name: &str) -> Result<Matrix<'_>>;
}

/// The checked tensors of one component, read straight from its memory-mapped files.
pub struct Weights {
    component: Component,
    layout: &'static Layout,
    tensors: BTreeMap<String, Tensor>,
}

/// A tensor that can be read.
struct Tensor {
    stored: Stored,
    encoding: Encoding,
    scale: Option<Stored>,
}

impl Weights {
    /// Returns the weights that were found in a component's files and passed all checks.
    pub(super) fn new(component: Component, layout: &'static Layout, contents: Contents) -> Result<Self> {
        let readable = |(name, tensor): (String, Described)| {
            let Described { stored, scale, encoding } = tensor;
            let encoding = encoding
                .map_err(|_| Error::Internal(format!("`{name}` was let through, and cannot be read")))?;
            Ok((name, Tensor { stored, encoding, scale }))
        };
        let needed = contents.tensors.into_iter().filter(|(name, _)| !ignorable(component, name));
        Ok(Self { component, layout, tensors: needed.map(readable).collect::<Result<_>>()? })
    }

    /// Returns which part of the model this is.
    pub fn component(&self) -> Component {
        self.component
    }

    /// Returns the layout by which the files name and quantise the component.
    pub fn layout(&self) -> &'static Layout {
        self.layout
    }

    /// Returns the official names, in order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// Returns a tensor's extents.
    pub fn shape(&self, name: &str) -> Option<&[usize]> {
        self.tensors.get(name).map(|tensor| &tensor.stored.shape[..])
    }

    /// Returns how a tensor is stored.
    pub fn encoding(&self, name: &str) -> Option<Encoding> {
        self.tensors.get(name).map(|tensor| tensor.encoding)
    }

    /// Returns the number of parameters, scales not counted.
    pub fn parameters(&self) -> usize {
        self.tensors.values().map(|tensor| tensor.stored.elements()).sum()
    }

    /// Returns the bytes that the tensors take in their files.
    pub fn stored_bytes(&self) -> usize {
        let bytes = |tensor: &Tensor| tensor.stored.size + tensor.scale.as_ref().map_or(0, |s| s.size);
        self.tensors.values().map(bytes).sum()
    }

    /// Returns the component's file, or the first of several.
    pub fn file(&self) -> Option<&Path> {
        self.tensors.values().next().map(|tensor| &*tensor.stored.file.path)
    }

    fn find(&self, name: &str) -> Result<&Tensor> {
        self.tensors
            .get(name)
            .ok_or_else(|| Error::Internal(format!("the {} has no tensor `{name}`", self.component.title())))
    }
}

impl Tensor {
    /// Returns the tensor as a matrix with the given numbers of rows and columns.
    fn matrix(&self, name: &str, rows: usize, cols: usize) -> Result<Matrix<'_>> {
        let bytes = self.stored.bytes()?;
        let matrix = Matrix { rows, cols, encoding: self.encoding, bytes, scales: self.scales(name)? };
        if !matrix.is_consistent() {
            return Err(Error::Internal(format!("`{name}` does not have the bytes of its encoding")));
        }
        Ok(matrix)
    }

    /// Returns the values of the tensor's scale, if it has one.
    fn scales(&self, name: &str) -> Result<Vec<f32>> {
        let Some(stored) = &self.scale else { return Ok(Vec::new()) };
        let dtype = stored
            .dtype()
            .ok_or_else(|| Error::Internal(format!("the scale of `{name}` is packed in blocks")))?;
        let values = dtype::to_f32(dtype, &stored.bytes()?);
        if let Some(bad) = values.iter().find(|v| !v.is_finite()) {
            let file = stored.file.path.display();
            return Err(Error::Model(format!(
                "`{file}` has {bad} among the scales of `{name}`; copy it again"
            )));
        }
        Ok(values)
    }
}

impl WeightSource for Weights {
    fn tensor(&self, name: &str) -> Result<HostTensor> {
        let tensor = self.find(name)?;
        let shape = tensor.stored.shape.clone();
        let (cols, rows) = shape.split_last().map_or((1, 1), |(cols, outer)| (*cols, outer.iter().product()));
        Ok(HostTensor { data: tensor.matrix(name, rows, cols)?.to_f32(), shape })
    }

    fn matrix(&self, name: &str) -> Result<Matrix<'_>> {
        let tensor = self.find(name)?;
        let [rows, rest @ ..] = &tensor.stored.shape[..] else {
            return Err(Error::Internal(format!("`{name}` is a scalar, not a matrix")));
        };
        tensor.matrix(name, *rows, rest.iter().product())
    }
}
