//! A model with `LoRA`s: the changes are computed in f32 and added to the values, whatever these were stored as.

use std::collections::BTreeSet;
use std::sync::Arc;

use rayon::prelude::*;

use super::product::numbers;
use super::{Change, Lora, LowRank};
use crate::weights::{DType, HostTensor, Matrix, Places, WeightSource};
use crate::{Error, Result};

/// A `LoRA` and its strength.
type Added = (Arc<Lora>, f32);

/// A transformer's weights with the changes of `LoRA`s, each with a strength. A tensor that none of them changes stays as it
/// is stored; a quantised one that changes is given as f32, for the loader to round once.
pub struct Merged<S> {
    /// What changes is made of these.
    pub(super) exact: S,
    /// What does not change is taken from these, which may have been rounded for the device.
    prepared: Option<S>,
    pub(super) loras: Vec<(Arc<Lora>, f32)>,
}

impl<S: WeightSource> Merged<S> {
    /// Returns the transformer with these changes, each times its strength.
    pub fn new<L: Into<Arc<Lora>>>(exact: S, loras: Vec<(L, f32)>) -> Self {
        let active = loras.into_iter().filter(|(_, strength)| *strength != 0.0);
        Self {
            exact,
            prepared: None,
            loras: active.map(|(lora, strength)| (lora.into(), strength)).collect(),
        }
    }

    /// Takes the tensors that do not change from another source, whose values are rounded as the device has them.
    #[must_use]
    pub fn beside(self, prepared: Option<S>) -> Self {
        Self { prepared, ..self }
    }

    /// Returns the names of the tensors that differ between this and the same transformer with `other` changes.
    pub fn differs(&self, other: &[(Arc<Lora>, f32)]) -> BTreeSet<String> {
        let (mine, other) = (&self.loras, other.iter().filter(|(_, strength)| *strength != 0.0));
        let other: Vec<_> = other.cloned().collect();
        let of = |loras: &[(Arc<Lora>, f32)]| -> BTreeSet<String> {
            loras.iter().flat_map(|(lora, _)| lora.names()).map(str::to_owned).collect()
        };
        // Sums are rounded in their order, so changes that both begin with are no difference.
        let same = |((a, s), (b, t)): &(&Added, &Added)| Arc::ptr_eq(a, b) && s == t;
        let common = mine.iter().zip(&other).take_while(same).count();
        of(&mine[common..]).union(&of(&other[common..])).cloned().collect()
    }

    /// Returns the changes of a tensor, each with its strength.
    pub(super) fn changes(&self, name: &str) -> Vec<(&Lora, &Change, f32)> {
        let loras = self.loras.iter();
        loras.filter_map(|(lora, strength)| Some((&**lora, lora.changes.get(name)?, *strength))).collect()
    }

    /// Returns the source of a tensor that no `LoRA` changes.
    fn unchanged(&self) -> &S {
        self.prepared.as_ref().unwrap_or(&self.exact)
    }

    /// Adds changes to the values of a tensor with so many columns.
    fn add(name: &str, values: &mut [f32], cols: usize, changes: &[(&Lora, &Change, f32)]) -> Result<()> {
        for (lora, change, strength) in changes {
            match (&change.product, &change.magnitude) {
                (Some(product), None) => product.add_to(values, cols, *strength)?,
                (Some(product), Some(magnitude)) => {
                    let mut changed = values.to_vec();
                    product.add_to(&mut changed, cols, 1.0)?;
                    magnitude.give_to(&mut changed, cols)?;
                    let pairs = values.par_iter_mut().zip(changed);
                    pairs.for_each(|(value, changed)| *value += strength * (changed - *value));
                }
                (None, _) => {}
            }
            if let Some(difference) = &change.difference {
                let difference = numbers(difference)?;
                let pairs = values.par_iter_mut().zip(difference.par_iter());
                pairs.for_each(|(value, difference)| *value += strength * difference);
            }
            finite(lora, name, values)?;
        }
        Ok(())
    }
}

/// Refuses changes that do not leave numbers behind.
fn finite(lora: &Lora, name: &str, values: &[f32]) -> Result<()> {
    match values.iter().find(|value| !value.is_finite()) {
        Some(bad) => Err(Error::Model(format!(
            "`{}` makes a value of `{name}` {bad}; copy it again",
            lora.path.display()
        ))),
        None => Ok(()),
    }
}

impl<S: WeightSource> WeightSource for Merged<S> {
    fn tensor(&self, name: &str) -> Result<HostTensor> {
        let changes = self.changes(name);
        if changes.is_empty() {
            return self.unchanged().tensor(name);
        }
        let mut tensor = self.exact.tensor(name)?;
        let cols = tensor.shape.get(1..).map_or(1, |rest| rest.iter().product());
        Self::add(name, &mut tensor.data, cols, &changes)?;
        Ok(tensor)
    }

    fn matrix(&self, name: &str) -> Result<Matrix<'_>> {
        let changes = self.changes(name);
        if changes.is_empty() {
            return self.unchanged().matrix(name);
        }
        let matrix = self.exact.matrix(name)?;
        let (rows, cols, mut values) = (matrix.rows, matrix.cols, matrix.to_f32());
        Self::add(name, &mut values, cols, &changes)?;
        Ok(Matrix::plain(rows, cols, DType::F32, bytemuck::cast_slice::<f32, u8>(&values).to_vec()))
    }

    fn with_products(&self, name: &str) -> Result<(Matrix<'_>, Vec<LowRank>)> {
        let mut products = Vec::new();
        for (lora, change, strength) in self.changes(name) {
            // What is no matrix of low rank is added on the host, with all that is added to the same weight.
            let Some(product) = change.low_rank(strength)? else {
                return Ok((self.matrix(name)?, Vec::new()));
            };
            finite(lora, name, &product.up.data)?;
            finite(lora, name, &product.down.data)?;
            products.push(product);
        }
        let source = if products.is_empty() { self.unchanged() } else { &self.exact };
        Ok((source.matrix(name)?, products))
    }

    fn places(&self) -> Places {
        if self.loras.is_empty() { self.unchanged() } else { &self.exact }.places()
    }
}
