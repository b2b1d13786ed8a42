//! Tensors on the host, and how stored matrices become real numbers.

use std::borrow::Cow;

use rayon::prelude::*;

use super::DType;

/// A tensor in host memory as f32, row-major.
#[derive(Clone, Debug, PartialEq)]
pub struct HostTensor {
    /// Extents, outermost first; empty for a scalar.
    pub shape: Vec<usize>,
    /// As many values as the extents' product.
    pub data: Vec<f32>,
}

/// What turns the stored values of a quantised matrix into its real ones.
#[derive(Clone, Debug, PartialEq)]
pub enum Scale {
    /// One factor for each row (output channel).
    PerRow(Vec<f32>),
    /// One factor for the whole matrix.
    PerTensor(f32),
}

/// A weight matrix `[rows, cols]` (out, in) as it is stored, row-major: the bytes are those of the file wherever the
/// file allows it.
#[derive(Clone, Debug)]
pub struct Matrix<'a> {
    /// Output features.
    pub rows: usize,
    /// Input features.
    pub cols: usize,
    /// The type of the stored values.
    pub dtype: DType,
    /// `rows * cols` little-endian values.
    pub bytes: Cow<'a, [u8]>,
    /// For a quantised matrix; real value = stored value * scale.
    pub scale: Option<Scale>,
}

impl Matrix<'_> {
    /// The real values, row-major: `stored * scale`.
    pub fn to_f32(&self) -> Vec<f32> {
        let mut values = super::dtype::to_f32(self.dtype, &self.bytes);
        match &self.scale {
            None => {}
            Some(Scale::PerTensor(scale)) => values.par_iter_mut().for_each(|v| *v *= scale),
            Some(Scale::PerRow(scales)) => {
                let rows = values.par_chunks_mut(self.cols.max(1)).zip(scales);
                rows.for_each(|(row, scale)| row.iter_mut().for_each(|v| *v *= scale));
            }
        }
        values
    }

    /// Some of its rows.
    #[must_use]
    pub fn part(&self, first: usize, rows: usize) -> Matrix<'_> {
        let row = self.cols * self.dtype.size();
        let scale = match &self.scale {
            Some(Scale::PerRow(factors)) => Some(Scale::PerRow(factors[first..first + rows].to_vec())),
            other => other.clone(),
        };
        let bytes = Cow::Borrowed(&self.bytes[first * row..][..rows * row]);
        Matrix { rows, cols: self.cols, dtype: self.dtype, bytes, scale }
    }

    /// The same matrix with its bytes in memory of its own.
    pub fn into_owned(self) -> Matrix<'static> {
        Matrix { bytes: Cow::Owned(self.bytes.into_owned()), ..self }
    }
}
