//! Tensors on the host: real values, and matrices as they are stored.

use std::borrow::Cow;

use super::encoding::{Encoding, Granularity};
use super::{DType, dtype, expand};

/// A tensor in host memory as f32, row-major.
#[derive(Clone, Debug, PartialEq)]
pub struct HostTensor {
    /// Extents, outermost first; empty for a scalar.
    pub shape: Vec<usize>,
    /// The values; their number is the product of the extents.
    pub data: Vec<f32>,
}

/// A weight matrix `[rows, cols]` (out, in) as it is stored, row-major. Wherever the file allows it, the bytes are
/// those of the file, so that a quantised weight stays quantised on its way to a device.
#[derive(Clone, Debug)]
pub struct Matrix<'a> {
    /// The number of output features.
    pub rows: usize,
    /// The number of input features.
    pub cols: usize,
    /// How the matrix's values are stored.
    pub encoding: Encoding,
    /// The bytes of the rows; each row has [`Encoding::row_bytes`].
    pub bytes: Cow<'a, [u8]>,
    /// The scales, row-major; their number is [`Encoding::scales`].
    pub scales: Vec<f32>,
}

impl<'a> Matrix<'a> {
    /// Returns a matrix whose numbers are its values.
    pub fn plain(rows: usize, cols: usize, dtype: DType, bytes: impl Into<Cow<'a, [u8]>>) -> Self {
        Self { rows, cols, encoding: Encoding::Plain(dtype), bytes: bytes.into(), scales: Vec::new() }
    }

    /// Returns whether the numbers of bytes and scales are those that the encoding requires.
    pub fn is_consistent(&self) -> bool {
        let bytes = self.encoding.row_bytes(self.cols).and_then(|row| row.checked_mul(self.rows));
        bytes == Some(self.bytes.len()) && self.scales.len() == self.encoding.scales(self.rows, self.cols)
    }

    /// Returns the real values, row-major.
    pub fn to_f32(&self) -> Vec<f32> {
        let mut values = self.numbers();
        if let Encoding::Scaled { by, .. } | Encoding::Rotated { by, .. } = self.encoding {
            match (by, &self.scales[..]) {
                (Granularity::Tensor, []) => {}
                (Granularity::Tensor, [scale, ..]) => expand::by_tensor(&mut values, *scale),
                (Granularity::Row, scales) => expand::by_row(&mut values, self.cols, scales),
                (Granularity::Block { rows, cols }, scales) => {
                    expand::by_block(&mut values, self.cols, [rows, cols], scales);
                }
            }
        }
        if let Encoding::Rotated { group, .. } = self.encoding {
            expand::rotate(&mut values, group);
        }
        values
    }

    /// Returns the numbers, row-major, without the scales that are stored apart from them.
    pub fn numbers(&self) -> Vec<f32> {
        match self.encoding {
            Encoding::Plain(dtype) | Encoding::Scaled { dtype, .. } | Encoding::Rotated { dtype, .. } => {
                dtype::to_f32(dtype, &self.bytes)
            }
            Encoding::Packed(packing) => expand::packed(packing, &self.bytes),
        }
    }

    /// Returns the type of the numbers and a scale for each row, if these make up the values.
    pub fn scaled_rows(&self) -> Option<(DType, Cow<'_, [f32]>)> {
        match self.encoding {
            Encoding::Scaled { dtype, by: Granularity::Row } => Some((dtype, Cow::Borrowed(&self.scales))),
            Encoding::Scaled { dtype, by: Granularity::Tensor } => {
                Some((dtype, Cow::Owned(vec![*self.scales.first()?; self.rows])))
            }
            _ => None,
        }
    }

    /// Returns what [`Self::scaled_rows`] returns and the number of columns that are rotated together, of a matrix
    /// whose values are in a rotated basis.
    pub fn rotated_rows(&self) -> Option<(DType, Cow<'_, [f32]>, usize)> {
        let Encoding::Rotated { dtype, by, group } = self.encoding else { return None };
        let scales = match by {
            Granularity::Row => Cow::Borrowed(&self.scales[..]),
            Granularity::Tensor => Cow::Owned(vec![*self.scales.first()?; self.rows]),
            Granularity::Block { .. } => return None,
        };
        Some((dtype, scales, group))
    }

    /// Returns some rows of the matrix.
    #[must_use]
    pub fn part(&self, first: usize, rows: usize) -> Matrix<'_> {
        let row = self.bytes.len() / self.rows.max(1);
        let bytes = Cow::Borrowed(&self.bytes[first * row..][..rows * row]);
        let (encoding, scales) = scales_of_part(self.encoding, self.cols, &self.scales, [first, rows]);
        Matrix { rows, cols: self.cols, encoding, bytes, scales }
    }

    /// Returns the same matrix with its bytes in memory of its own.
    pub fn into_owned(self) -> Matrix<'static> {
        Matrix { bytes: Cow::Owned(self.bytes.into_owned()), ..self }
    }
}

/// Returns the encoding and the scales of some rows of a matrix, the first one and their number, from those of the matrix.
pub(super) fn scales_of_part(
    encoding: Encoding,
    cols: usize,
    scales: &[f32],
    [first, rows]: [usize; 2],
) -> (Encoding, Vec<f32>) {
    let of_rows = |by: Granularity| match by {
        Granularity::Tensor => (by, scales.to_vec()),
        Granularity::Row => (by, scales[first..][..rows].to_vec()),
        // The part can begin within a rectangle, so each of its rows gets the scales of the rectangle that it is in.
        Granularity::Block { rows: height, cols: width } => {
            let across = cols.div_ceil(width);
            let of_row = |row: usize| &scales[row / height * across..][..across];
            let scales = (first..first + rows).flat_map(of_row).copied().collect();
            (Granularity::Block { rows: 1, cols: width }, scales)
        }
    };
    match encoding {
        Encoding::Scaled { dtype, by } => {
            let (by, scales) = of_rows(by);
            (Encoding::Scaled { dtype, by }, scales)
        }
        Encoding::Rotated { dtype, by, group } => {
            let (by, scales) = of_rows(by);
            (Encoding::Rotated { dtype, by, group }, scales)
        }
        Encoding::Plain(_) | Encoding::Packed(_) => (encoding, Vec::new()),
    }
}

#[cfg(test)]
mod tests {
    use super::super::encoding::Packing;
    use super::*;

    static BYTES: Packing = Packing {
        name: "halves",
        values: 2,
        bytes: 1,
        expand: |block, values| values.copy_from_slice(&[f32::from(block[0] >> 4), f32::from(block[0] & 15)]),
    };

    /// Six rows of four 8-bit values in every encoding.
    fn matrices() -> Vec<Matrix<'static>> {
        let scaled = |by| {
            let encoding = Encoding::Scaled { dtype: DType::I8, by };
            let scales = (0..encoding.scales(6, 4)).map(|i| 1.0 + i as f32).collect();
            Matrix { rows: 6, cols: 4, encoding, bytes: (0..24).collect(), scales }
        };
        vec![
            Matrix::plain(6, 4, DType::U8, (0..24).collect::<Vec<u8>>()),
            scaled(Granularity::Tensor),
            scaled(Granularity::Row),
            scaled(Granularity::Block { rows: 4, cols: 3 }),
            scaled(Granularity::Block { rows: 1, cols: 2 }),
            Matrix {
                encoding: Encoding::Rotated { dtype: DType::I8, by: Granularity::Row, group: 4 },
                ..scaled(Granularity::Row)
            },
            Matrix {
                encoding: Encoding::Packed(&BYTES),
                ..Matrix::plain(6, 4, DType::U8, (0..12).collect::<Vec<u8>>())
            },
        ]
    }

    #[test]
    fn parts_have_the_values_of_their_rows() {
        for matrix in matrices() {
            assert!(matrix.is_consistent(), "{matrix:?}");
            let whole = matrix.to_f32();
            assert_eq!(whole.len(), 24);
            for first in 0..6 {
                for rows in 0..=6 - first {
                    let part = matrix.part(first, rows);
                    assert!(part.is_consistent(), "{part:?}");
                    assert_eq!(part.to_f32(), whole[4 * first..][..4 * rows], "{:?}", matrix.encoding);
                }
            }
        }
    }

    #[test]
    fn scales_of_rows_are_told_where_they_are_all() {
        let [plain, tensor, row, block, _, rotated, packed] = &matrices()[..] else {
            panic!("seven matrices")
        };
        assert_eq!(tensor.scaled_rows(), Some((DType::I8, Cow::Owned(vec![1.0; 6]))));
        assert_eq!(row.scaled_rows(), Some((DType::I8, Cow::Borrowed(&[1.0, 2.0, 3.0, 4.0, 5.0, 6.0][..]))));
        for other in [plain, block, rotated, packed] {
            assert_eq!(other.scaled_rows(), None);
        }
        assert_eq!(row.numbers(), plain.to_f32());
        let scales = Cow::Borrowed(&[1.0, 2.0, 3.0, 4.0, 5.0, 6.0][..]);
        assert_eq!(rotated.rotated_rows(), Some((DType::I8, scales, 4)));
        assert_eq!((row.rotated_rows(), rotated.numbers()), (None, row.numbers()));
    }

    #[test]
    fn too_few_bytes_or_scales_are_noticed() {
        let [_, tensor, row, ..] = &matrices()[..] else { panic!("seven matrices") };
        assert!(!Matrix { scales: Vec::new(), ..tensor.clone() }.is_consistent());
        assert!(!Matrix { scales: vec![1.0; 5], ..row.clone() }.is_consistent());
        assert!(!Matrix { rows: 7, ..tensor.clone() }.is_consistent());
        assert!(!Matrix::plain(1, 3, DType::F4E2m1, vec![0; 2]).is_consistent());
    }
}
