//! A model with `LoRA`s: the changes are computed in f32 and added to the values, whatever these were stored as.

use rayon::prelude::*;

use super::super::stored::Stored;
use super::super::{DType, HostTensor, Matrix, Places, WeightSource, dtype};
use super::{Change, Lora, Product};
use crate::{Error, Result};

/// A model's weights with the changes of `LoRA`s, each with a strength. A tensor that none of them changes stays as it
/// is stored; a quantised one that changes is given as f32, for the loader to round once.
pub struct Merged<S> {
    inner: S,
    loras: Vec<(Lora, f32)>,
}

impl<S: WeightSource> Merged<S> {
    /// Returns the model with these changes, each times its strength.
    pub fn new(inner: S, loras: Vec<(Lora, f32)>) -> Self {
        Self { inner, loras }
    }

    /// Returns the changes of a tensor, each with its strength.
    fn changes(&self, name: &str) -> Vec<(&Lora, &Change, f32)> {
        let active = self.loras.iter().filter(|(_, strength)| *strength != 0.0);
        active.filter_map(|(lora, strength)| Some((lora, lora.changes.get(name)?, *strength))).collect()
    }

    /// Adds changes to the values of a tensor with so many columns.
    fn add(name: &str, values: &mut [f32], cols: usize, changes: &[(&Lora, &Change, f32)]) -> Result<()> {
        for (lora, change, strength) in changes {
            if let Some(product) = &change.product {
                add_product(values, cols, product, *strength)?;
            }
            if let Some(difference) = &change.difference {
                let difference = numbers(difference)?;
                let pairs = values.par_iter_mut().zip(difference.par_iter());
                pairs.for_each(|(value, difference)| *value += strength * difference);
            }
            if let Some(bad) = values.iter().find(|value| !value.is_finite()) {
                return Err(Error::Model(format!(
                    "`{}` makes a value of `{name}` {bad}; copy it again",
                    lora.path.display()
                )));
            }
        }
        Ok(())
    }
}

/// Adds `strength * scale * up * down` to a matrix.
fn add_product(values: &mut [f32], cols: usize, product: &Product, strength: f32) -> Result<()> {
    let Product { down, up, rank, scale } = product;
    let (down, up) = (numbers(down)?, numbers(up)?);
    let factor = scale * strength;
    values.par_chunks_mut(cols.max(1)).zip(up.par_chunks(*rank)).for_each_init(
        || vec![0.0f32; cols],
        |sums, (row, up)| {
            sums.fill(0.0);
            for (up, down) in up.iter().zip(down.chunks(cols)) {
                sums.iter_mut().zip(down).for_each(|(sum, down)| *sum += up * down);
            }
            row.iter_mut().zip(&*sums).for_each(|(value, sum)| *value += factor * sum);
        },
    );
    Ok(())
}

fn numbers(stored: &Stored) -> Result<Vec<f32>> {
    let dtype =
        stored.dtype().ok_or_else(|| Error::Internal("a LoRA that is packed in blocks".to_owned()))?;
    Ok(dtype::to_f32(dtype, &stored.bytes()?))
}

impl<S: WeightSource> WeightSource for Merged<S> {
    fn tensor(&self, name: &str) -> Result<HostTensor> {
        let mut tensor = self.inner.tensor(name)?;
        let cols = tensor.shape.get(1..).map_or(1, |rest| rest.iter().product());
        Self::add(name, &mut tensor.data, cols, &self.changes(name))?;
        Ok(tensor)
    }

    fn matrix(&self, name: &str) -> Result<Matrix<'_>> {
        let matrix = self.inner.matrix(name)?;
        let changes = self.changes(name);
        if changes.is_empty() {
            return Ok(matrix);
        }
        let (rows, cols, mut values) = (matrix.rows, matrix.cols, matrix.to_f32());
        Self::add(name, &mut values, cols, &changes)?;
        Ok(Matrix::plain(rows, cols, DType::F32, bytemuck::cast_slice::<f32, u8>(&values).to_vec()))
    }

    fn places(&self) -> Places {
        self.inner.places()
    }
}
