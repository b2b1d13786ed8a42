//! Expansion of stored numbers on the device: weights travel as their files hold them, and become f32 there. The values
//! are those of [`Matrix::to_f32`] to the bit.

use animd_kernels::cuda::{Block, BlockScales, Element, Expand, Number};

use super::error::kernel;
use super::gpu::Gpu;
use super::staging::Staging;
use super::tensor::Tensor;
use crate::Result;
use crate::weights::{DType, Encoding, Granularity, Matrix};

/// The numbers of a matrix, as the kernels know them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    /// Numbers, each of which is expanded by itself, and the rectangle whose values share a scale.
    Numbers(Number, Option<[usize; 2]>),
    /// Blocks that hold their scales.
    Blocks(Block),
}

/// Returns how the kernels expand a matrix and the columns that they rotate together, or `None` for an encoding that
/// only the CPU expands.
fn form(matrix: &Matrix<'_>) -> Option<(Form, Option<usize>)> {
    let rectangle = |by| match by {
        Granularity::Tensor if matrix.scales.is_empty() => None,
        Granularity::Tensor => Some([matrix.rows, matrix.cols]),
        Granularity::Row => Some([1, matrix.cols]),
        Granularity::Block { rows, cols } => Some([rows, cols]),
    };
    match matrix.encoding {
        Encoding::Plain(dtype) => Some((Form::Numbers(number(dtype)?, None), None)),
        Encoding::Scaled { dtype, by } => Some((Form::Numbers(number(dtype)?, rectangle(by)), None)),
        Encoding::Rotated { dtype, by, group } if Expand::rotates(matrix.cols, group) => {
            Some((Form::Numbers(number(dtype)?, rectangle(by)), Some(group)))
        }
        Encoding::Rotated { .. } => None,
        Encoding::Packed(packing) => Some((Form::Blocks(block(packing.name)?), None)),
    }
}

fn number(dtype: DType) -> Option<Number> {
    Some(match dtype {
        DType::F16 => Number::F16,
        DType::F8E4m3 => Number::E4m3,
        DType::F8E5m2 => Number::E5m2,
        DType::F4E2m1 => Number::E2m1,
        DType::I8 => Number::Int8,
        _ => return None,
    })
}

fn block(name: &str) -> Option<Block> {
    Some(match name {
        "Q4_0" => Block::Q4_0,
        "Q4_1" => Block::Q4_1,
        "Q5_0" => Block::Q5_0,
        "Q5_1" => Block::Q5_1,
        "Q8_0" => Block::Q8_0,
        "Q2_K" => Block::Q2_K,
        "Q3_K" => Block::Q3_K,
        "Q4_K" => Block::Q4_K,
        "Q5_K" => Block::Q5_K,
        "Q6_K" => Block::Q6_K,
        _ => return None,
    })
}

impl Gpu {
    /// Copies a matrix to the device as it is stored, and enqueues its expansion. Returns its values `[rows, cols]` in
    /// f32, or `None` for an encoding that only the CPU expands.
    pub fn expanded(&self, staging: &Staging, matrix: &Matrix<'_>) -> Result<Option<Tensor>> {
        let Some((form, rotated)) = form(matrix) else { return Ok(None) };
        let extents = [matrix.rows, matrix.cols];
        let stored = self.row_major(&[matrix.bytes.len()], Element::Int8)?;
        staging.send(self, &matrix.bytes, &stored)?;
        let scales = match matrix.scales.len() {
            0 => None,
            n => Some(self.row_major(&[n], Element::F32)?),
        };
        if let Some(to) = &scales {
            staging.send(self, bytemuck::cast_slice(&matrix.scales), to)?;
        }
        let values = self.row_major(&extents, Element::F32)?;
        let (stream, from, to) = (&self.stream, stored.address, values.address);
        match form {
            Form::Numbers(number, rectangle) => {
                let scales = scales.as_ref().zip(rectangle);
                let scales = scales.map(|(scales, extents)| BlockScales { address: scales.address, extents });
                // SAFETY: the tensors have these extents, and as many scales as a consistent matrix has; the order of the
                // stream keeps them.
                kernel(unsafe { self.expand.numbers(stream, number, from, scales, to, extents) })?;
            }
            // SAFETY: a consistent matrix has these blocks; the order of the stream keeps them.
            Form::Blocks(block) => kernel(unsafe { self.expand.blocks(stream, block, from, to, extents) })?,
        }
        if let Some(group) = rotated {
            // SAFETY: as above.
            kernel(unsafe { self.expand.rotate(stream, to, extents, group) })?;
        }
        Ok(Some(values))
    }
}
