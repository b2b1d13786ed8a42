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

    /// Adds changes to the values of a tensor.
    fn add(name: &str, values: &mut [f32], changes: &[(&Lora, &Change, f32)]) -> Result<()> {
        for (lora, change, strength) in changes {
            if let Some(product) = &change.product {
                LowRank::read(product, *strength)?.add_to(values, 0);
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
        Self::add(name, &mut tensor.data, &changes)?;
        Ok(tensor)
    }

    fn matrix(&self, name: &str) -> Result<Matrix<'_>> {
        let changes = self.changes(name);
        if changes.is_empty() {
            return self.unchanged().matrix(name);
        }
        let matrix = self.exact.matrix(name)?;
        let (rows, cols, mut values) = (matrix.rows, matrix.cols, matrix.to_f32());
        Self::add(name, &mut values, &changes)?;
        Ok(Matrix::plain(rows, cols, DType::F32, bytemuck::cast_slice::<f32, u8>(&values).to_vec()))
    }

    fn with_products(&self, name: &str) -> Result<(Matrix<'_>, Vec<LowRank>)> {
        let changes = self.changes(name);
        if changes.is_empty() || changes.iter().any(|(_, change, _)| change.difference.is_some()) {
            return Ok((self.matrix(name)?, Vec::new()));
        }
        let product = |(lora, change, strength): &(&Lora, &Change, f32)| {
            let product =
                change.product.as_ref().map(|product| LowRank::read(product, *strength)).transpose()?;
            if let Some(LowRank { up, down }) = &product {
                finite(lora, name, &up.data)?;
                finite(lora, name, &down.data)?;
            }
            Ok(product)
        };
        let products = changes.iter().map(product).collect::<Result<Vec<_>>>()?;
        Ok((self.exact.matrix(name)?, products.into_iter().flatten().collect()))
    }

    fn places(&self) -> Places {
        if self.loras.is_empty() { self.unchanged() } else { &self.exact }.places()
    }
}
