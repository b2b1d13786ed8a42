//! Where a network's weights come from.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::ahead::{Places, Region};
use super::check::ignorable;
use super::coded::Coded;
use super::layouts::{Contents, Described, Layout};
use super::names;
use super::stored::Stored;
use super::{Component, DType, Encoding, Granularity, HostTensor, LowRank, Matrix, RowTable};
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

    /// Returns a weight as [`Self::matrix`] does, but without the products of low rank that are to be added to it, and these,
    /// for a device that adds them faster than the host does.
    ///
    /// # Errors
    /// The errors are those of [`WeightSource::tensor`].
    fn with_products(&self, name: &str) -> Result<(Matrix<'_>, Vec<LowRank>)> {
        Ok((self.matrix(name)?, Vec::new()))
    }

    /// Returns a weight of which a few rows at a time are needed.
    ///
    /// # Errors
    /// The errors are those of [`WeightSource::tensor`].
    fn row_table(&self, name: &str) -> Result<RowTable> {
        Ok(RowTable::of(self.matrix(name)?.into_owned()))
    }

    /// Returns where the tensors lie in files, for reading ahead; nowhere if they are made up.
    fn places(&self) -> Places {
        Places::default()
    }
}

impl<S: WeightSource + Send + ?Sized> WeightSource for Arc<S> {
    fn tensor(&self, name: &str) -> Result<HostTensor> {
        (**self).tensor(name)
    }

    fn matrix(&self, name: &str) -> Result<Matrix<'_>> {
        (**self).matrix(name)
    }

    fn with_products(&self, name: &str) -> Result<(Matrix<'_>, Vec<LowRank>)> {
        (**self).with_products(name)
    }

    fn places(&self) -> Places {
        (**self).places()
    }
}

/// The checked tensors of one component, read straight from its memory-mapped files.
pub struct Weights {
    component: Component,
    layout: Layout,
    tensors: BTreeMap<String, Described>,
    /// The bytes of tensors that were handed out so far.
    handed: Arc<AtomicU64>,
}

impl Weights {
    /// Returns the weights that were found in a component's files and passed all checks.
    pub(super) fn new(component: Component, layout: Layout, contents: Contents) -> Result<Self> {
        let mut tensors = contents.tensors;
        tensors.retain(|name, _| !ignorable(component, name));
        if let Some((name, _)) = tensors.iter().find(|(_, tensor)| !tensor.misfits.is_empty()) {
            return Err(Error::Internal(format!("`{name}` was let through, and cannot be read")));
        }
        Ok(Self { component, layout, tensors, handed: Arc::default() })
    }

    /// Returns which part of the model this is.
    pub fn component(&self) -> Component {
        self.component
    }

    /// Returns the layout by which the files name and quantise the component.
    pub fn layout(&self) -> Layout {
        self.layout
    }

    /// Returns the official names, in order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// Returns a tensor's extents.
    pub fn shape(&self, name: &str) -> Option<&[usize]> {
        self.tensors.get(name).map(|tensor| &tensor.shape[..])
    }

    /// Returns how a tensor is stored; `None` if there is no such tensor, or if it consists of parts that are stored
    /// differently.
    pub fn encoding(&self, name: &str) -> Option<Encoding> {
        self.tensors.get(name)?.encoding()
    }

    /// Returns the number of parameters, scales not counted.
    pub fn parameters(&self) -> usize {
        self.tensors.values().flat_map(|tensor| &tensor.parts).map(Coded::elements).sum()
    }

    /// Returns the bytes that the tensors take in their files.
    pub fn stored_bytes(&self) -> usize {
        let parts = self.tensors.values().flat_map(|tensor| &tensor.parts);
        parts.flat_map(Coded::parts).map(|stored| stored.size).sum()
    }

    /// Returns the component's file, or the first of several.
    pub fn file(&self) -> Option<&Path> {
        self.tensors.values().next()?.parts.first().map(|part| &*part.stored.file.path)
    }

    /// Returns the component's files, each once.
    pub fn files(&self) -> Vec<&Path> {
        let stored = self.tensors.values().flat_map(|tensor| &tensor.parts).flat_map(Coded::parts);
        let mut files: Vec<&Path> = stored.map(|stored| &*stored.file.path).collect();
        files.sort_unstable();
        files.dedup();
        files
    }

    /// Returns a tensor that is about to be read.
    fn find(&self, name: &str) -> Result<&Described> {
        let found = self.tensors.get(name).ok_or_else(|| {
            Error::Internal(format!("the {} has no tensor `{name}`", self.component.title()))
        })?;
        self.handed.fetch_add(found.stored_bytes(), Ordering::Relaxed);
        Ok(found)
    }
}

/// Returns the number of the block that a tensor belongs to. Networks load what is around their blocks first, then block
/// by block.
fn block_of(name: &str) -> Option<usize> {
    let (before, rest) = name.split_once("blocks.").or_else(|| name.split_once("transformer."))?;
    let whole = before.is_empty() || before.ends_with('.');
    rest.split('.').next().filter(|_| whole)?.parse().ok()
}

impl Described {
    /// Returns the bytes that the tensor takes in its files.
    fn stored_bytes(&self) -> u64 {
        self.parts.iter().flat_map(Coded::parts).map(|stored| stored.size as u64).sum()
    }

    /// Returns the tensor's only part, if its rows can be read one by one.
    fn rows_apart(&self) -> Option<&Coded> {
        match &self.parts[..] {
            [one] if one.has_rows_apart() => Some(one),
            _ => None,
        }
    }

    /// Returns the tensor as a matrix: the first axis gives the rows, the others together the columns.
    fn matrix(&self, name: &str) -> Result<Matrix<'_>> {
        let cols = self.shape.get(1..).map_or(1, |rest| rest.iter().product());
        // The first axis of a part is its own; extents of 1 that were put before it belong to the whole.
        let rows_of = |part: &Coded| part.elements().checked_div(cols).unwrap_or(0);
        match &self.parts[..] {
            [one] => one.matrix(name, rows_of(one), cols),
            parts => {
                let parts = parts.iter().map(|part| part.matrix(name, rows_of(part), cols));
                Ok(one_after_the_other(&parts.collect::<Result<Vec<_>>>()?, cols))
            }
        }
    }
}

/// Returns one matrix of the rows of several with as many columns. It keeps their encoding if they all have the same
/// and each row brings its own scales.
fn one_after_the_other(parts: &[Matrix<'_>], cols: usize) -> Matrix<'static> {
    let rows = parts.iter().map(|part| part.rows).sum();
    let by_rows = |encoding| match encoding {
        Encoding::Plain(_) | Encoding::Packed(_) => true,
        Encoding::Scaled { by, .. } | Encoding::Rotated { by, .. } => {
            matches!(by, Granularity::Row | Granularity::Block { rows: 1, .. })
        }
    };
    match parts.first().map(|part| part.encoding) {
        Some(encoding) if by_rows(encoding) && parts.iter().all(|part| part.encoding == encoding) => Matrix {
            rows,
            cols,
            encoding,
            bytes: Cow::Owned(parts.iter().flat_map(|part| part.bytes.iter().copied()).collect()),
            scales: parts.iter().flat_map(|part| part.scales.iter().copied()).collect(),
        },
        _ => {
            let values: Vec<f32> = parts.iter().flat_map(Matrix::to_f32).collect();
            Matrix::plain(rows, cols, DType::F32, bytemuck::cast_slice::<_, u8>(&values).to_vec())
        }
    }
}

impl WeightSource for Weights {
    fn tensor(&self, name: &str) -> Result<HostTensor> {
        let tensor = self.find(name)?;
        Ok(HostTensor { data: tensor.matrix(name)?.to_f32(), shape: tensor.shape.clone() })
    }

    fn matrix(&self, name: &str) -> Result<Matrix<'_>> {
        let tensor = self.find(name)?;
        if tensor.shape.is_empty() {
            return Err(Error::Internal(format!("`{name}` is a scalar, not a matrix")));
        }
        tensor.matrix(name)
    }

    fn row_table(&self, name: &str) -> Result<RowTable> {
        let found = self.tensors.get(name);
        match found.and_then(|tensor| Some((tensor.rows_apart()?, &tensor.shape[..]))) {
            Some((part, [rows, rest @ ..])) => {
                if part.is_checked() {
                    self.find(name)?;
                }
                part.row_table(name, *rows, rest.iter().product())
            }
            _ => Ok(RowTable::of(self.matrix(name)?.into_owned())),
        }
    }

    fn places(&self) -> Places {
        // A prompt takes a few rows of a vocabulary, which would cost more to read ahead than all that it saves.
        let by_rows = |name: &str, tensor: &Described| {
            name == names::EMBEDDING && tensor.rows_apart().is_some_and(|part| !part.is_checked())
        };
        let mut stored: Vec<(Option<usize>, &Stored)> = Vec::new();
        for (name, tensor) in self.tensors.iter().filter(|(name, tensor)| !by_rows(name, tensor)) {
            stored.extend(tensor.parts.iter().flat_map(Coded::parts).map(|part| (block_of(name), part)));
        }
        stored.sort_by(|(a, x), (b, y)| (a, &x.file.path, x.start).cmp(&(b, &y.file.path, y.start)));
        let region = |(_, x): (_, &Stored)| Region { file: x.file.clone(), start: x.start, bytes: x.size };
        Places::new(stored.into_iter().map(region).collect(), self.handed.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tensors_of_blocks_are_told_from_those_around() {
        for (name, block) in [
            ("blocks.12.ffn.0.weight", Some(12)),
            ("visual.transformer.3.attn.proj.bias", Some(3)),
            ("img_emb.proj.1.weight", None),
            ("token_embedding.weight", None),
            ("decoder.middle.0.residual.0.gamma", None),
        ] {
            assert_eq!(block_of(name), block, "{name}");
        }
    }
}
