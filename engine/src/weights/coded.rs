//! A tensor as its file codes it: the numbers, and what makes values of them.

use std::borrow::Cow;

use rayon::prelude::*;

use super::matrix::scales_of_part;
use super::stored::Stored;
use super::{DType, Encoding, Matrix, RowTable, dtype};
use crate::{Error, Result};

/// The bytes that one thread checks or changes at a time.
const CHUNK: usize = 1 << 17;

/// A tensor's numbers, with everything that is needed to make its values of them.
#[derive(Clone)]
pub(crate) struct Coded {
    /// Where the numbers lie.
    pub stored: Stored,
    /// The extents of the values, outermost first. Files store some types of numbers under other extents.
    pub shape: Vec<usize>,
    /// How the numbers are stored.
    pub encoding: Encoding,
    /// Where the scales lie that the encoding asks for.
    pub scales: Scales,
    /// Whether the first of the two 4-bit numbers in a byte has the upper half; [`DType::F4E2m1`] has it in the lower.
    pub upper_first: bool,
}

/// Where the scales of a tensor lie.
#[derive(Clone)]
pub(crate) enum Scales {
    /// There are none.
    None,
    /// In a tensor, in the order of the values.
    Listed(Stored),
    /// In a tensor in the order of the tensor cores' tiles; each is to be multiplied by a factor.
    Tiled {
        /// The scales.
        stored: Stored,
        /// The type of the scales, which the file may call bytes.
        dtype: DType,
        /// The numbers that make the factor.
        factor: Factor,
    },
}

/// A number by which all scales of a tensor are multiplied.
#[derive(Clone)]
pub(crate) enum Factor {
    /// The product of scalars; 1 for none.
    Product(Vec<Stored>),
    /// The inverse of a scalar.
    Inverse(Stored),
}

impl Coded {
    /// Returns a tensor whose encoding is its file's own: plain numbers, or blocks that hold their scales.
    pub fn plain(stored: Stored) -> Self {
        Self {
            shape: stored.shape.clone(),
            encoding: stored.encoding,
            stored,
            scales: Scales::None,
            upper_first: false,
        }
    }

    /// Returns the tensors that this one is made of.
    pub fn parts(&self) -> impl Iterator<Item = &Stored> {
        let scales: Vec<&Stored> = match &self.scales {
            Scales::None => Vec::new(),
            Scales::Listed(stored) => vec![stored],
            Scales::Tiled { stored, factor: Factor::Product(more), .. } => {
                std::iter::once(stored).chain(more).collect()
            }
            Scales::Tiled { stored, factor: Factor::Inverse(one), .. } => vec![stored, one],
        };
        std::iter::once(&self.stored).chain(scales)
    }

    /// Returns the number of values.
    pub fn elements(&self) -> usize {
        self.shape.iter().product()
    }

    /// Returns the tensor as a matrix with the given numbers of rows and columns; errors call it `name`.
    ///
    /// # Errors
    /// [`Error::Model`] if a number or a scale is not finite.
    pub fn matrix(&self, name: &str, rows: usize, cols: usize) -> Result<Matrix<'_>> {
        let bytes = self.stored.bytes()?;
        self.check(name, &bytes)?;
        let bytes = if self.upper_first { Cow::Owned(exchanged(&bytes)) } else { bytes };
        let matrix =
            Matrix { rows, cols, encoding: self.encoding, bytes, scales: self.scales(name, rows, cols)? };
        if !matrix.is_consistent() {
            return Err(Error::Internal(format!("`{name}` does not have the bytes of its encoding")));
        }
        Ok(matrix)
    }

    /// Returns whether the numbers are looked at before they are used.
    pub fn is_checked(&self) -> bool {
        self.small_float().is_some()
    }

    /// Returns whether rows can be read one by one, without the others.
    pub fn has_rows_apart(&self) -> bool {
        self.stored.strides.is_none()
    }

    /// Returns the tensor as a table of so many rows and columns, each row of which is read when it is asked for; errors
    /// call it `name`. The tensor's [`Self::has_rows_apart`] must be true.
    ///
    /// # Errors
    /// The errors are those of [`Self::matrix`].
    pub fn row_table(&self, name: &str, rows: usize, cols: usize) -> Result<RowTable> {
        let bytes = self.stored.bytes()?;
        self.check(name, &bytes)?;
        let (coded, scales) = (self.clone(), self.scales(name, rows, cols)?);
        let row_bytes = coded.encoding.row_bytes(cols);
        let row_bytes = row_bytes.filter(|row| row.checked_mul(rows) == Some(bytes.len()));
        let (Some(row_bytes), true) = (row_bytes, scales.len() == coded.encoding.scales(rows, cols)) else {
            return Err(Error::Internal(format!("`{name}` does not have the bytes of its encoding")));
        };
        Ok(RowTable::new(rows, move |row| {
            let all = coded.stored.bytes()?;
            let bytes = &all[row * row_bytes..][..row_bytes];
            let bytes = if coded.upper_first { Cow::Owned(exchanged(bytes)) } else { Cow::Borrowed(bytes) };
            let (encoding, scales) = scales_of_part(coded.encoding, cols, &scales, [row, 1]);
            Ok(Matrix { rows: 1, cols, encoding, bytes, scales }.to_f32())
        }))
    }

    /// Returns the type of the numbers if it is one of the 8-bit floats.
    fn small_float(&self) -> Option<DType> {
        match self.encoding {
            Encoding::Plain(dtype) | Encoding::Scaled { dtype, .. } | Encoding::Rotated { dtype, .. } => {
                Some(dtype).filter(|dtype| matches!(dtype, DType::F8E4m3 | DType::F8E5m2))
            }
            Encoding::Packed(_) => None,
        }
    }

    /// Checks that 8-bit floats are finite, and that those without scales are not as large as only scaled ones are.
    fn check(&self, name: &str, bytes: &[u8]) -> Result<()> {
        let Some(dtype) = self.small_float() else { return Ok(()) };
        let file = self.stored.file.path.display();
        // Without its sign, a code is the greater the larger its value is. A maximum without an early end takes whole
        // vectors at a time.
        let most_of = |part: &[u8]| part.iter().fold(0, |most: u8, code| most.max(code & 0x7f));
        let most = bytes.par_chunks(CHUNK).map(most_of).max().unwrap_or_default();
        let (finite, last) = match dtype {
            DType::F8E5m2 => (most < 0x7c, 0x7b),
            _ => (most < 0x7f, 0x7e),
        };
        if !finite {
            return Err(Error::Model(format!(
                "`{file}` has values in `{name}` that are not finite; copy it again"
            )));
        }
        if matches!(self.encoding, Encoding::Plain(_)) && most == last {
            return Err(Error::Model(format!(
                "`{file}` has `{name}` in {} without a scale, and yet with the largest value of that type, as only \
                 scaled weights have it: the scales were lost; get a file that has them",
                dtype.name()
            )));
        }
        Ok(())
    }

    /// Returns the scales in the order of the values.
    fn scales(&self, name: &str, rows: usize, cols: usize) -> Result<Vec<f32>> {
        let values = match &self.scales {
            Scales::None => return Ok(Vec::new()),
            Scales::Listed(stored) => numbers(stored)?,
            Scales::Tiled { stored, dtype, factor } => {
                let factor = match factor {
                    Factor::Product(scalars) => {
                        let mut product = 1.0;
                        for scalar in scalars {
                            product *= numbers(scalar)?.first().copied().unwrap_or(f32::NAN);
                        }
                        product
                    }
                    Factor::Inverse(scalar) => 1.0 / numbers(scalar)?.first().copied().unwrap_or(f32::NAN),
                };
                let across = self.encoding.scales(1, cols);
                let mut values = untiled(&dtype::to_f32(*dtype, &stored.bytes()?), rows, across);
                values.par_iter_mut().for_each(|value| *value *= factor);
                values
            }
        };
        if let Some(bad) = values.iter().find(|v| !v.is_finite()) {
            let file = self.stored.file.path.display();
            return Err(Error::Model(format!(
                "`{file}` has {bad} among the scales of `{name}`; copy it again"
            )));
        }
        Ok(values)
    }
}

/// Returns a tensor of plain numbers as f32.
fn numbers(stored: &Stored) -> Result<Vec<f32>> {
    let Encoding::Plain(dtype) = stored.encoding else {
        return Err(Error::Internal("a scale that is packed in blocks".to_owned()));
    };
    Ok(dtype::to_f32(dtype, &stored.bytes()?))
}

/// Returns bytes whose two halves are exchanged.
fn exchanged(bytes: &[u8]) -> Vec<u8> {
    let mut all = vec![0; bytes.len()];
    all.par_chunks_mut(CHUNK).zip(bytes.par_chunks(CHUNK)).for_each(|(to, from)| {
        for (to, from) in to.iter_mut().zip(from) {
            *to = from.rotate_left(4);
        }
    });
    all
}

/// The rows and columns of a tile of scales.
pub(super) const TILE: [usize; 2] = [128, 4];

/// Returns scales `[rows, across]`, row-major, from the order in which tensor cores read them: tiles of 128 rows and 4
/// columns one after the other, row by row of tiles; in a tile, the four rows that are 32 apart follow each other.
fn untiled(tiled: &[f32], rows: usize, across: usize) -> Vec<f32> {
    let [height, width] = TILE;
    let tiles = across.div_ceil(width);
    let mut values = vec![0.0; rows * across];
    values.par_chunks_mut(across.max(1)).enumerate().for_each(|(row, values)| {
        let within = row % 32 * 16 + row % height / 32 * width;
        for (col, value) in values.iter_mut().enumerate() {
            let tile = row / height * tiles + col / width;
            // A tensor that is too short has been refused before.
            *value = tiled.get(tile * height * width + within + col % width).copied().unwrap_or(f32::NAN);
        }
    });
    values
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scales_come_out_of_their_tiles() {
        for (rows, across) in [(128usize, 4usize), (256, 8), (130, 5), (7, 3)] {
            let (high, wide) = (rows.next_multiple_of(128), across.next_multiple_of(4));
            let mut tiled = vec![-1.0; high * wide];
            for r in 0..rows {
                for c in 0..across {
                    let offset =
                        (r / 128 * (wide / 4) + c / 4) * 512 + (r % 32) * 16 + (r % 128 / 32) * 4 + c % 4;
                    tiled[offset] = (r * across + c) as f32;
                }
            }
            let expected: Vec<f32> = (0..rows * across).map(|i| i as f32).collect();
            assert_eq!(untiled(&tiled, rows, across), expected, "{rows}x{across}");
        }
        assert!(untiled(&[1.0; 8], 1, 9)[8].is_nan());
    }

    #[test]
    fn halves_are_exchanged() {
        let bytes: Vec<u8> = (0..CHUNK + 3).map(|i| (i * 7) as u8).collect();
        let expected: Vec<u8> = bytes.iter().map(|b| b % 16 * 16 + b / 16).collect();
        assert_eq!(exchanged(&bytes), expected);
    }
}
