//! How matrices come to the device: as they lie in their files, through two buffers of pinned host memory, of which all
//! cores fill one while the other is on its way. What they become there is computed there.

use std::borrow::Cow;
use std::sync::{Arc, Mutex, PoisonError};

use animd_kernels::cuda::{Element, Rows, Typed};
use rayon::prelude::*;

use super::deferred::Quantised;
use super::linear::Form;
use super::pinned::Pinned;
use super::tensor::View;
use super::{Gpu, kernel};
use crate::Result;
use crate::weights::{DType, Matrix, Scale};

/// Bytes of a buffer.
const STAGED: usize = 64 << 20;
/// Bytes that a core copies at a time.
const SHARE: usize = 1 << 20;

/// The buffers: taken when the first weights come, given back with the last clone.
#[derive(Clone, Default)]
pub(super) struct Staging(Arc<Mutex<Option<Buffers>>>);

struct Buffers {
    both: [Pinned; 2],
    next: usize,
}

impl Staging {
    /// Enqueues a copy to the device. `bytes` are free again when this returns.
    fn send(&self, gpu: &Gpu, bytes: &[u8], to: u64) -> Result<()> {
        let mut guard = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if guard.is_none() {
            let buffer = || Pinned::new(&gpu.context, STAGED);
            *guard = Some(Buffers { both: [buffer()?, buffer()?], next: 0 });
        }
        let Some(Buffers { both, next }) = guard.as_mut() else { return Ok(()) };
        for (part, to) in bytes.chunks(STAGED).zip((to..).step_by(STAGED)) {
            let buffer = &mut both[*next];
            let shares = buffer.bytes()?.par_chunks_mut(SHARE).zip(part.par_chunks(SHARE));
            shares.for_each(|(to, from)| to[..from.len()].copy_from_slice(from));
            // SAFETY: the caller's piece has as many bytes, and pieces are given back in the order of the stream.
            unsafe { buffer.send(&gpu.stream, part.len(), to)? };
            *next = 1 - *next;
        }
        Ok(())
    }
}

/// Where a matrix goes: rows of a weight from `row` on.
pub(super) struct Destination<'a> {
    pub gpu: &'a Gpu,
    pub staging: &'a Staging,
    pub weight: &'a View,
    pub scale: Option<&'a View>,
    pub row: usize,
}

impl Destination<'_> {
    /// Enqueues all that makes the matrix a weight of this form.
    pub fn load(&self, matrix: &Matrix<'_>, form: Form) -> Result<()> {
        match form {
            Form::Bf16 => self.load_bf16(matrix),
            Form::Fp8 => self.load_fp8(matrix),
            Form::Split => self.load_split(matrix),
        }
    }

    /// Some of the weight's rows.
    fn rows(&self, first: usize, rows: usize) -> View {
        self.weight.slice(0, self.row + first, rows)
    }

    fn load_bf16(&self, matrix: &Matrix<'_>) -> Result<()> {
        let columns = self.weight.shape[1];
        if matrix.dtype == DType::Bf16 && matrix.scale.is_none() && columns == matrix.cols {
            return self.staging.send(self.gpu, &matrix.bytes, self.rows(0, matrix.rows).address);
        }
        each_chunk(matrix, |row, chunk| {
            self.gpu.copy(&self.stage(chunk, columns)?, &self.rows(row, chunk.rows))
        })
    }

    /// Values that are 8-bit go as they are; others are rounded on the GPU.
    fn load_fp8(&self, matrix: &Matrix<'_>) -> Result<()> {
        let gpu = self.gpu;
        let scale = |row: usize| self.scale.map_or(0, |s| s.address + 4 * (self.row + row) as u64);
        if let (DType::F8E4m3, Some(factors)) = (matrix.dtype, &matrix.scale) {
            self.staging.send(gpu, &matrix.bytes, self.rows(0, matrix.rows).address)?;
            let factors = match factors {
                Scale::PerRow(factors) => Cow::Borrowed(factors),
                Scale::PerTensor(factor) => Cow::Owned(vec![*factor; matrix.rows]),
            };
            return gpu.send(&factors[..], scale(0));
        }
        each_chunk(matrix, |row, chunk| {
            let (rows, columns) = (chunk.rows, chunk.cols);
            let staged = self.stage(chunk, columns)?;
            let from = Typed { rows: staged.rows(), element: staged.element, scale: 0 };
            // The scales are written one by one, but their first address has to be that of a vector.
            let own = Quantised::new(gpu, rows, columns)?;
            // SAFETY: both have these extents; the order of the stream keeps them.
            kernel(unsafe { gpu.norms.quantize(&gpu.stream, from, own.typed(), columns) })?;
            gpu.move_bytes(own.rows.address, self.rows(row, rows).address, rows * columns)?;
            gpu.move_bytes(own.scale, scale(row), 4 * rows)
        })
    }

    fn load_split(&self, matrix: &Matrix<'_>) -> Result<()> {
        let (gpu, columns) = (self.gpu, self.weight.shape[1] / 3);
        each_chunk(matrix, |row, chunk| {
            let mut staged = self.stage(chunk, columns)?;
            if staged.element != Element::F32 {
                let wide = gpu.row_major(&staged.shape, Element::F32)?;
                gpu.copy(&staged, &wide)?;
                staged = wide;
            }
            let to = Rows::dense(self.rows(row, chunk.rows).address, chunk.rows, 3 * columns);
            // SAFETY: both have these extents; the order of the stream keeps them.
            kernel(unsafe { gpu.norms.split(&gpu.stream, staged.rows(), to, true, columns) })
        })
    }

    /// Values as the file has them, if they are bf16 or f32 and fill the columns; else made f32 here, zeros after them.
    fn stage(&self, chunk: &Matrix<'_>, columns: usize) -> Result<View> {
        let as_it_is = match chunk.dtype {
            _ if chunk.scale.is_some() || chunk.cols != columns => None,
            DType::Bf16 => Some(Element::Bf16),
            DType::F32 => Some(Element::F32),
            _ => None,
        };
        let staged = self.gpu.row_major(&[chunk.rows, columns], as_it_is.unwrap_or(Element::F32))?;
        match as_it_is {
            Some(_) => self.staging.send(self.gpu, &chunk.bytes, staged.address)?,
            None => {
                let values = filled_up(chunk.to_f32(), chunk.cols, columns);
                self.staging.send(self.gpu, bytemuck::cast_slice(&values), staged.address)?;
            }
        }
        Ok(staged)
    }
}

/// Rows of a matrix, as many at a time as a buffer holds as f32.
fn each_chunk(matrix: &Matrix<'_>, mut f: impl FnMut(usize, &Matrix<'_>) -> Result<()>) -> Result<()> {
    let rows = (STAGED / (4 * matrix.cols)).max(1);
    for first in (0..matrix.rows).step_by(rows) {
        f(first, &matrix.part(first, rows.min(matrix.rows - first)))?;
    }
    Ok(())
}

/// Rows with zeros after them.
fn filled_up(values: Vec<f32>, columns: usize, padded: usize) -> Vec<f32> {
    if columns == padded {
        return values;
    }
    let mut wide = vec![0.0; values.len() / columns * padded];
    for (to, from) in wide.chunks_exact_mut(padded).zip(values.chunks_exact(columns)) {
        to[..columns].copy_from_slice(from);
    }
    wide
}
