//! Matrices that are made of smaller ones, on the host.

use rayon::prelude::*;

use crate::weights::stored::Stored;
use crate::weights::{HostTensor, dtype};
use crate::{Error, Result};

/// A change of a matrix `[rows, cols]` that is made of smaller matrices.
pub(super) enum Product {
    /// `scale * up * down`, `[rows, rank]` and `[rank, cols]`.
    LowRank { down: Stored, up: Stored, rank: usize, scale: f32 },
    /// `scale` times two products of `[rows, rank]` and `[rank, cols]`, multiplied element by element: `LoHa`
    /// (Hyeon-Woo et al., "`FedPara`", 2021).
    Hadamard { factors: [Factor; 2], scale: f32 },
    /// `scale` times the Kronecker product of a small matrix and a larger one: `LoKr` (Yeh et al., "Navigating text-to-image
    /// customization", 2023).
    Kronecker { factors: [Factor; 2], scale: f32 },
}

/// A matrix, as it is or as a product of two.
pub(super) enum Factor {
    Whole(Stored),
    /// `[rows, rank]` and `[rank, cols]`.
    Pair([Stored; 2]),
}

/// A matrix of low rank that is to be added to a weight: `up` times `down`.
#[derive(Clone, Debug, PartialEq)]
pub struct LowRank {
    /// `[rows, rank]`, with all scales and the strength in it.
    pub up: HostTensor,
    /// `[rank, cols]`.
    pub down: HostTensor,
}

impl Product {
    /// Returns it as two matrices, times a strength, if it is one of low rank.
    pub fn low_rank(&self, strength: f32) -> Result<Option<LowRank>> {
        match self {
            Self::LowRank { down, up, rank, scale } => {
                LowRank::read([down, up], *rank, scale * strength).map(Some)
            }
            Self::Hadamard { .. } | Self::Kronecker { .. } => Ok(None),
        }
    }

    /// Adds it, times a strength, to the values of a matrix with so many columns.
    pub fn add_to(&self, values: &mut [f32], cols: usize, strength: f32) -> Result<()> {
        match self {
            Self::LowRank { down, up, rank, scale } => {
                LowRank::read([down, up], *rank, scale * strength)?.add_to(values, 0);
            }
            Self::Hadamard { factors: [first, second], scale } => {
                add_hadamard(&first.values()?, &second.values()?, scale * strength, values);
            }
            Self::Kronecker { factors: [first, second], scale } => {
                add_kronecker(&first.values()?, &second.values()?, scale * strength, values, cols);
            }
        }
        Ok(())
    }
}

impl Factor {
    /// Returns the number of rows, and of columns with everything that follows them.
    pub fn extents(&self) -> [usize; 2] {
        let of = |stored: &Stored| {
            let rows = stored.shape.first().copied().unwrap_or(0);
            [rows, stored.elements().checked_div(rows).unwrap_or(0)]
        };
        match self {
            Self::Whole(whole) => of(whole),
            Self::Pair([left, right]) => [of(left)[0], of(right)[1]],
        }
    }

    /// Returns the rank of a product; `None` for a matrix that is as it is.
    pub fn rank(&self) -> Option<usize> {
        match self {
            Self::Whole(_) => None,
            Self::Pair([_, right]) => Some(right.shape.first().copied().unwrap_or(0)),
        }
    }

    /// Returns the shapes of what it is made of.
    pub fn shapes(&self) -> Vec<&[usize]> {
        match self {
            Self::Whole(whole) => vec![&whole.shape],
            Self::Pair(pair) => pair.iter().map(|stored| &*stored.shape).collect(),
        }
    }

    /// Returns the matrix.
    fn values(&self) -> Result<HostTensor> {
        let shape = self.extents().to_vec();
        let data = match self {
            Self::Whole(whole) => numbers(whole)?,
            Self::Pair([left, right]) => {
                let mut data = vec![0.0; shape.iter().product()];
                let rank = self.rank().unwrap_or(0);
                LowRank::read([right, left], rank, 1.0)?.add_to(&mut data, 0);
                data
            }
        };
        Ok(HostTensor { shape, data })
    }
}

impl LowRank {
    /// Reads `[down, up]` of a rank, times a factor.
    fn read([down, up]: [&Stored; 2], rank: usize, factor: f32) -> Result<Self> {
        let (down, mut up) = (numbers(down)?, numbers(up)?);
        for value in &mut up {
            *value *= factor;
        }
        let shape = |values: &[f32]| values.len() / rank.max(1);
        Ok(Self {
            up: HostTensor { shape: vec![shape(&up), rank], data: up },
            down: HostTensor { shape: vec![rank, shape(&down)], data: down },
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

/// Adds the product, element by element, of two matrices of the same extents, times a scale.
fn add_hadamard(first: &HostTensor, second: &HostTensor, scale: f32, values: &mut [f32]) {
    let factors = first.data.par_iter().zip(&second.data);
    values.par_iter_mut().zip(factors).for_each(|(value, (a, b))| *value += scale * (a * b));
}

/// Adds the Kronecker product of two matrices, times a scale: each element of the first times all of the second.
fn add_kronecker(first: &HostTensor, second: &HostTensor, scale: f32, values: &mut [f32], cols: usize) {
    let (blocks, [height, width]) = (first.shape[1], [second.shape[0], second.shape[1]]);
    values.par_chunks_mut(cols.max(1)).enumerate().for_each(|(row, values)| {
        let left = &first.data[row / height * blocks..][..blocks];
        let right = &second.data[row % height * width..][..width];
        for (values, left) in values.chunks_mut(width).zip(left) {
            let left = scale * left;
            values.iter_mut().zip(right).for_each(|(value, right)| *value += left * right);
        }
    });
}

/// Returns the values of a tensor of a `LoRA`.
pub(super) fn numbers(stored: &Stored) -> Result<Vec<f32>> {
    let dtype =
        stored.dtype().ok_or_else(|| Error::Internal("a LoRA that is packed in blocks".to_owned()))?;
    Ok(dtype::to_f32(dtype, &stored.bytes()?))
}
