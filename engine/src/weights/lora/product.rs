//! The product of two small matrices, on the host.

use rayon::prelude::*;

use super::Product;
use crate::weights::stored::Stored;
use crate::weights::{HostTensor, dtype};
use crate::{Error, Result};

/// A matrix of low rank that is to be added to a weight: `up` times `down`.
#[derive(Clone, Debug, PartialEq)]
pub struct LowRank {
    /// `[rows, rank]`, with all scales and the strength in it.
    pub up: HostTensor,
    /// `[rank, cols]`.
    pub down: HostTensor,
}

impl LowRank {
    /// Reads a product, times a strength.
    pub(super) fn read(product: &Product, strength: f32) -> Result<Self> {
        let Product { down, up, rank, scale } = product;
        let (down, mut up) = (numbers(down)?, numbers(up)?);
        let factor = scale * strength;
        for value in &mut up {
            *value *= factor;
        }
        let shape = |values: &[f32]| values.len() / (*rank).max(1);
        Ok(Self {
            up: HostTensor { shape: vec![shape(&up), *rank], data: up },
            down: HostTensor { shape: vec![*rank, shape(&down)], data: down },
        })
    }

    /// Returns the number of columns of `up` and of rows of `down`.
    pub fn rank(&self) -> usize {
        self.down.shape[0]
    }

    /// Adds the product's rows from `first` on to as many rows as `values` has.
    pub fn add_to(&self, values: &mut [f32], first: usize) {
        let (rank, cols) = (self.rank(), self.down.shape[1]);
        let rows = values.par_chunks_mut(cols.max(1)).zip(self.up.data[first * rank..].par_chunks(rank));
        rows.for_each_init(
            || vec![0.0f32; cols],
            |sums, (row, up)| {
                sums.fill(0.0);
                for (up, down) in up.iter().zip(self.down.data.chunks(cols)) {
                    sums.iter_mut().zip(down).for_each(|(sum, down)| *sum += up * down);
                }
                row.iter_mut().zip(&*sums).for_each(|(value, sum)| *value += sum);
            },
        );
    }
}

/// Returns the values of a tensor of a `LoRA`.
pub(super) fn numbers(stored: &Stored) -> Result<Vec<f32>> {
    let dtype =
        stored.dtype().ok_or_else(|| Error::Internal("a LoRA that is packed in blocks".to_owned()))?;
    Ok(dtype::to_f32(dtype, &stored.bytes()?))
}
