//! Norms of rows in the form that their reader takes, and rows in 8 bits.

use std::sync::Arc;

use animd_kernels::cuda::{self, Element, RopeTables, Typed};

use super::error::kernel;
use super::gpu::Gpu;
use super::tensor::{Tensor, row_major};
use crate::Result;
use crate::backend::sequence::{Affine, Norm};

/// Cosines and sines of the rotary embedding, `[tokens, pairs]` each, f32.
pub struct Rope {
    pub(super) cosines: Tensor,
    pub(super) sines: Tensor,
}

impl Rope {
    /// Returns the tokens and pairs.
    pub(super) fn shape(&self) -> [usize; 2] {
        [self.cosines.shape[0], self.cosines.shape[1]]
    }

    /// Returns the tables as the kernels take them.
    fn tables(&self) -> RopeTables {
        RopeTables { cosines: self.cosines.address, sines: self.sines.address, pairs: self.cosines.shape[1] }
    }
}

/// Rows in 8 bits, with the factor of each row.
pub(super) struct Quantised {
    /// `[rows, columns]`, e4m3.
    pub values: Tensor,
    /// `[rows]`, f32.
    pub scales: Tensor,
}

impl Quantised {
    /// Allocates memory for so many rows.
    pub fn new(gpu: &Gpu, rows: usize, columns: usize) -> Result<Self> {
        let bytes = (rows * columns).next_multiple_of(256);
        let piece = Arc::new(gpu.work.take(bytes + 4 * rows)?);
        let part = |offset: usize, element, shape: &[usize]| Tensor {
            address: piece.address + offset as u64,
            piece: piece.clone(),
            element,
            shape: shape.to_vec(),
            strides: row_major(shape),
        };
        let values = part(0, Element::E4m3, &[rows, columns]);
        Ok(Self { values, scales: part(bytes, Element::F32, &[rows]) })
    }

    fn typed(&self) -> Typed {
        Typed::e4m3(self.values.rows(), self.scales.address)
    }
}

impl Gpu {
    /// Returns a norm of a matrix, as bf16 or f32.
    pub fn norm(&self, x: &Tensor, norm: &Norm<'_, Tensor>, element: Element) -> Result<Tensor> {
        let y = self.matrix(x.matrix()?, element)?;
        self.norm_to(x, norm, y.typed())?;
        Ok(y)
    }

    /// Returns a norm of a matrix, in 8 bits.
    pub fn quantised_norm(&self, x: &Tensor, norm: &Norm<'_, Tensor>) -> Result<Quantised> {
        let [rows, columns] = x.matrix()?;
        let y = Quantised::new(self, rows, columns)?;
        self.norm_to(x, norm, y.typed())?;
        Ok(y)
    }

    fn norm_to(&self, x: &Tensor, norm: &Norm<'_, Tensor>, y: Typed) -> Result<()> {
        let [_, columns] = x.matrix()?;
        match *norm {
            Norm::Layer { affine, eps } => {
                let (factor, summand, modulated) = match affine {
                    Affine::Learned { weight, bias } => (weight, bias, false),
                    Affine::Modulated { shift, scale } => (scale, shift, true),
                };
                let (factor, summand) = (self.vector(factor, columns)?, self.vector(summand, columns)?);
                let affine = cuda::Affine { factor: factor.address, summand: summand.address, modulated };
                let x = self.any_rows(x)?;
                // SAFETY: the tensors have these extents, and `y` is the callers' own; the order of the stream keeps
                // them.
                kernel(unsafe {
                    self.norms.layer_norm(&self.stream, x.typed(), &affine, eps as f32, y, columns)
                })
            }
            Norm::Rms { weight, eps } => {
                let weight = self.vector(weight, columns)?;
                let x = self.any_rows(x)?;
                let matrices = [(x.typed(), weight.address, y)];
                // SAFETY: as above.
                kernel(unsafe { self.norms.rms_norm(&self.stream, &matrices, eps as f32, None, columns) })
            }
        }
    }

    /// Applies RMS norms to parts of one product, with a rotary embedding if there is one. Each part and its factors
    /// become bf16, in place if the part is bf16. The product must be the caller's own, so that nobody else sees the
    /// parts.
    pub fn norm_parts(
        &self,
        parts: &mut [(&mut Tensor, &Tensor)],
        eps: f64,
        rope: Option<&Rope>,
    ) -> Result<()> {
        // One launch takes two parts.
        for two in parts.chunks_mut(2) {
            let mut launch = Vec::with_capacity(2);
            for (part, weight) in two.iter() {
                let [_, columns] = part.matrix()?;
                let x = self.any_rows(part)?;
                let y = match x.element {
                    Element::Bf16 => x.clone(),
                    _ => self.matrix(part.matrix()?, Element::Bf16)?,
                };
                launch.push((x, self.vector(weight, columns)?, y));
            }
            let columns = launch[0].0.shape[1];
            let matrices: Vec<_> = launch.iter().map(|(x, w, y)| (x.typed(), w.address, y.typed())).collect();
            // SAFETY: the tensors have these extents, as do the tables; a part is written where it is read or to memory
            // of its own. The order of the stream keeps them.
            kernel(unsafe {
                self.norms.rms_norm(&self.stream, &matrices, eps as f32, rope.map(Rope::tables), columns)
            })?;
            for ((part, _), (_, _, y)) in two.iter_mut().zip(launch) {
                **part = y;
            }
        }
        Ok(())
    }

    /// Returns rows rounded to 8 bits, each with its own scale.
    pub fn quantised(&self, x: &Tensor) -> Result<Quantised> {
        let [rows, columns] = x.matrix()?;
        let x = self.any_rows(x)?;
        let y = Quantised::new(self, rows, columns)?;
        // SAFETY: both have these extents; the order of the stream keeps them.
        kernel(unsafe { self.norms.quantize(&self.stream, x.typed(), y.typed(), columns) })?;
        Ok(y)
    }

    /// Returns f32 rows as sums of two bf16 numbers, three times as wide: in the layout of an input, or of a weight.
    pub fn split(&self, x: &Tensor, to: &Tensor, weight: bool) -> Result<()> {
        let [rows, columns] = x.matrix()?;
        to.check_room(2 * 3 * rows * columns)?;
        // SAFETY: both have these extents; the order of the stream keeps them.
        kernel(unsafe { self.norms.split(&self.stream, x.rows(), to.rows(), weight, columns) })
    }
}
