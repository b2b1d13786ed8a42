//! Norms of rows in the form that their reader takes, and rows in 8 bits.

use std::sync::Arc;

use animd_kernels::cuda::{self, Activation, Element, Int8Rows, RopeTables, Typed};

use super::error::kernel;
use super::gpu::Gpu;
use super::tensor::{Tensor, row_major};
use crate::backend::sequence::{Affine, Norm};
use crate::{Error, Result};
use animd_protocol::plan::network::ROTATED;

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
    pub(super) fn tables(&self) -> RopeTables {
        RopeTables { cosines: self.cosines.address, sines: self.sines.address, pairs: self.cosines.shape[1] }
    }
}

/// Rows in 8 bits, with the factor of each row.
pub(super) struct Quantised {
    /// `[rows, columns]`, e4m3 or, rotated in groups of columns, int8.
    pub values: Tensor,
    /// `[rows]`, f32.
    pub scales: Tensor,
}

impl Quantised {
    /// Allocates memory for so many rows of e4m3 or int8.
    pub fn new(gpu: &Gpu, [rows, columns]: [usize; 2], element: Element) -> Result<Self> {
        let bytes = (rows * columns).next_multiple_of(256);
        let piece = Arc::new(gpu.work.take(bytes + 4 * rows)?);
        let part = |offset: usize, element, shape: &[usize]| Tensor {
            address: piece.address + offset as u64,
            piece: piece.clone(),
            element,
            shape: shape.to_vec(),
            strides: row_major(shape),
        };
        let values = part(0, element, &[rows, columns]);
        Ok(Self { values, scales: part(bytes, Element::F32, &[rows]) })
    }

    /// Returns some of the rows, as a kernel writes them.
    ///
    /// # Errors
    /// Returns [`Error::Internal`] if the first row's scale is not where a kernel can begin.
    pub fn part(&self, first: usize, rows: usize) -> Result<Rows8> {
        let (values, scale) = (self.values.slice(0, first, rows).rows(), self.scales.slice(0, first, rows));
        match self.values.element {
            Element::E4m3 => Ok(Rows8::E4m3(Typed::e4m3(values, scale.address))),
            Element::Int8 => Ok(Rows8::Int8(Int8Rows { rows: values, scale: scale.address, group: ROTATED })),
            other => Err(Error::Internal(format!("rows in 8 bits are not {other:?}"))),
        }
    }

    /// Returns all rows, as a kernel writes them.
    fn all(&self) -> Result<Rows8> {
        self.part(0, self.values.shape[0])
    }
}

/// What a norm multiplies with and adds.
enum Factors {
    /// A layer norm's; the tensors are those of `affine`.
    Layer { affine: cuda::Affine, eps: f32, _held: [Tensor; 2] },
    /// An RMS norm's.
    Rms { weight: Tensor, eps: f32 },
}

/// Rows in 8 bits, as kernels take them.
#[derive(Clone, Copy)]
pub(super) enum Rows8 {
    E4m3(Typed),
    Int8(Int8Rows),
}

impl Gpu {
    /// Returns a norm of a matrix, as bf16 or f32.
    pub fn norm(&self, x: &Tensor, norm: &Norm<'_, Tensor>, element: Element) -> Result<Tensor> {
        let shape @ [_, columns] = x.matrix()?;
        let (x, y) = (self.any_rows(x)?, self.matrix(shape, element)?);
        match self.norm_factors(norm, columns)? {
            Factors::Layer { affine, eps, .. } => {
                // SAFETY: the tensors have these extents, and `y` is new; the order of the stream keeps them.
                kernel(unsafe {
                    self.norms.layer_norm(&self.stream, x.typed(), &affine, eps, y.typed(), columns)
                })?;
            }
            Factors::Rms { weight, eps } => {
                let matrices = [(x.typed(), weight.address, y.typed())];
                // SAFETY: as above.
                kernel(unsafe { self.norms.rms_norm(&self.stream, &matrices, eps, None, columns) })?;
            }
        }
        Ok(y)
    }

    /// Returns a norm of a matrix in 8 bits: in e4m3, or rotated and in int8.
    pub fn quantised_norm(&self, x: &Tensor, norm: &Norm<'_, Tensor>, element: Element) -> Result<Quantised> {
        let shape @ [_, columns] = x.matrix()?;
        let (from, y) = (self.any_rows(x)?, Quantised::new(self, shape, element)?);
        let (x, stream, norms) = (from.typed(), &self.stream, &self.norms);
        // SAFETY: the tensors have these extents, and `y` is new; the order of the stream keeps them.
        kernel(unsafe {
            match (self.norm_factors(norm, columns)?, y.all()?) {
                (Factors::Layer { affine, eps, .. }, Rows8::E4m3(y)) => {
                    norms.layer_norm(stream, x, &affine, eps, y, columns)
                }
                (Factors::Layer { affine, eps, .. }, Rows8::Int8(y)) => {
                    norms.layer_norm_int8(stream, x, &affine, eps, y, columns)
                }
                (Factors::Rms { weight, eps }, Rows8::E4m3(y)) => {
                    norms.rms_norm(stream, &[(x, weight.address, y)], eps, None, columns)
                }
                (Factors::Rms { weight, eps }, Rows8::Int8(y)) => {
                    norms.rms_norm_int8(stream, x, weight.address, eps, y, columns)
                }
            }
        })?;
        Ok(y)
    }

    /// Returns what a norm multiplies with and adds, as kernels take it.
    fn norm_factors(&self, norm: &Norm<'_, Tensor>, columns: usize) -> Result<Factors> {
        Ok(match *norm {
            Norm::Layer { affine, eps } => {
                let (factor, summand, modulated) = match affine {
                    Affine::Learned { weight, bias } => (weight, bias, false),
                    Affine::Modulated { shift, scale } => (scale, shift, true),
                };
                let (factor, summand) = (self.vector(factor, columns)?, self.vector(summand, columns)?);
                let affine = cuda::Affine { factor: factor.address, summand: summand.address, modulated };
                Factors::Layer { affine, eps: eps as f32, _held: [factor, summand] }
            }
            Norm::Rms { weight, eps } => {
                Factors::Rms { weight: self.vector(weight, columns)?, eps: eps as f32 }
            }
        })
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

    /// Returns rows rounded to 8 bits, each with its own scale: in e4m3, or rotated and in int8.
    pub fn quantised(&self, x: &Tensor, element: Element) -> Result<Quantised> {
        let y = Quantised::new(self, x.matrix()?, element)?;
        self.quantise(x, Activation::None, y.all()?)?;
        Ok(y)
    }

    /// Rounds rows to 8 bits, each with its own scale, after an activation, which only int8 can have.
    pub fn quantise(&self, x: &Tensor, activation: Activation, to: Rows8) -> Result<()> {
        let [_, columns] = x.matrix()?;
        let x = self.any_rows(x)?;
        // SAFETY: both have these extents; the order of the stream keeps them.
        kernel(unsafe {
            match to {
                Rows8::Int8(y) => self.norms.quantize_int8(&self.stream, x.typed(), activation, y, columns),
                Rows8::E4m3(y) if activation == Activation::None => {
                    self.norms.quantize(&self.stream, x.typed(), y, columns)
                }
                Rows8::E4m3(_) => {
                    return Err(Error::Internal(format!("{activation:?} of rows that become e4m3")));
                }
            }
        })
    }

    /// Returns f32 rows as sums of two bf16 numbers, three times as wide: in the layout of an input, or of a weight.
    pub fn split(&self, x: &Tensor, to: &Tensor, weight: bool) -> Result<()> {
        let [rows, columns] = x.matrix()?;
        to.check_room(2 * 3 * rows * columns)?;
        // SAFETY: both have these extents; the order of the stream keeps them.
        kernel(unsafe { self.norms.split(&self.stream, x.rows(), to.rows(), weight, columns) })
    }
}
