//! How a tensor's values are stored, and how many bytes they take.
//!
//! A file format says how the numbers of a tensor lie; a layout says which numbers are scaled, and with what. Code that
//! moves or computes with weights asks the encoding and needs to know neither.

use std::fmt;

use super::DType;

/// The way in which a tensor's values are stored, row by row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Encoding {
    /// Each value is a number.
    Plain(DType),
    /// Each value is a number times a scale; the scales are stored apart from the numbers.
    Scaled {
        /// The type of the numbers.
        dtype: DType,
        /// The values that share a scale.
        by: Granularity,
    },
    /// Each value is a number times a scale, in a rotated basis: each `group` neighbouring columns of a row are to be
    /// multiplied by [`expand::rotate`](super::expand::rotate)'s matrix, which is its own inverse. A product with rows
    /// that are rotated alike needs no rotation of the values.
    Rotated {
        /// The type of the numbers.
        dtype: DType,
        /// The values that share a scale, before the rotation.
        by: Granularity,
        /// The number of columns that are rotated together: a power of 4 that divides the columns.
        group: usize,
    },
    /// A row consists of blocks, each of which holds its numbers beside what scales them.
    Packed(&'static Packing),
}

/// The values of a matrix that share a scale.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Granularity {
    /// All values share one scale.
    Tensor,
    /// The values of each row (an output channel) share a scale.
    Row,
    /// The values of each rectangle share a scale; rectangles at the matrix's ends may be cut off.
    Block {
        /// The rectangle's height.
        rows: usize,
        /// The rectangle's width.
        cols: usize,
    },
}

/// A format of packed blocks.
pub struct Packing {
    /// The format's name, as its file format gives it.
    pub name: &'static str,
    /// The number of values in a block; they follow each other in a row.
    pub values: usize,
    /// The size of a block in bytes.
    pub bytes: usize,
    /// Returns the values of one block.
    pub expand: fn(&[u8], &mut [f32]),
}

impl PartialEq for Packing {
    fn eq(&self, other: &Self) -> bool {
        self.name == other.name
    }
}

impl Eq for Packing {}

impl fmt::Debug for Packing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name)
    }
}

impl Encoding {
    /// Returns the bytes of a row of `cols` values without the scales that are stored apart, or `None` if such a row
    /// does not end with a byte or a block.
    pub fn row_bytes(self, cols: usize) -> Option<usize> {
        match self {
            Self::Plain(dtype) | Self::Scaled { dtype, .. } | Self::Rotated { dtype, .. } => {
                let bits = cols.checked_mul(dtype.bits())?;
                bits.is_multiple_of(8).then_some(bits / 8)
            }
            Self::Packed(packing) => {
                let whole = cols.is_multiple_of(packing.values);
                whole.then_some(cols / packing.values)?.checked_mul(packing.bytes)
            }
        }
    }

    /// Returns the number of scales that are stored apart from the numbers of a matrix.
    pub fn scales(self, rows: usize, cols: usize) -> usize {
        match self {
            Self::Plain(_) | Self::Packed(_) => 0,
            Self::Scaled { by, .. } | Self::Rotated { by, .. } => match by {
                Granularity::Tensor => 1,
                Granularity::Row => rows,
                Granularity::Block { rows: height, cols: width } => {
                    rows.div_ceil(height) * cols.div_ceil(width)
                }
            },
        }
    }

    /// Returns whether the numbers are the values, with nothing lost to a quantisation.
    pub fn is_plain(self) -> bool {
        matches!(self, Self::Plain(_))
    }
}

/// The name of the type that the numbers have.
impl fmt::Display for Encoding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Plain(dtype) | Self::Scaled { dtype, .. } | Self::Rotated { dtype, .. } => dtype.name(),
            Self::Packed(packing) => packing.name,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn packing(name: &'static str, values: usize, bytes: usize) -> Packing {
        Packing { name, values, bytes, expand: |_, _| {} }
    }

    static Q4_0: Packing = packing("Q4_0", 32, 18);
    static Q8_0: Packing = packing("Q8_0", 32, 34);
    static Q4_K: Packing = packing("Q4_K", 256, 144);
    static Q6_K: Packing = packing("Q6_K", 256, 210);

    const fn scaled(dtype: DType, by: Granularity) -> Encoding {
        Encoding::Scaled { dtype, by }
    }

    #[test]
    fn rows_take_the_bytes_that_their_encoding_says() {
        let [tensor, row] = [Granularity::Tensor, Granularity::Row];
        let block = |rows, cols| Granularity::Block { rows, cols };
        // The 14B model's `ffn.0` has 13824 rows of 5120 values. The figures are the bytes of a row and the number of
        // scales.
        for (what, encoding, bytes, scales) in [
            ("bf16", Encoding::Plain(DType::Bf16), 10_240, 0),
            ("ComfyUI fp8", scaled(DType::F8E4m3, tensor), 5_120, 1),
            ("LightX2V fp8", scaled(DType::F8E4m3, row), 5_120, 13_824),
            ("int8 rows", scaled(DType::I8, row), 5_120, 13_824),
            (
                "int8 rows, rotated",
                Encoding::Rotated { dtype: DType::I8, by: row, group: 256 },
                5_120,
                13_824,
            ),
            ("int8 blocks of 128x128", scaled(DType::I8, block(128, 128)), 5_120, 108 * 40),
            ("mxfp8", scaled(DType::F8E4m3, block(1, 32)), 5_120, 13_824 * 160),
            ("nvfp4", scaled(DType::F4E2m1, block(1, 16)), 2_560, 13_824 * 320),
            ("GGUF Q4_0", Encoding::Packed(&Q4_0), 2_880, 0),
            ("GGUF Q8_0", Encoding::Packed(&Q8_0), 5_440, 0),
            ("GGUF Q4_K", Encoding::Packed(&Q4_K), 2_880, 0),
            ("GGUF Q6_K", Encoding::Packed(&Q6_K), 4_200, 0),
        ] {
            assert_eq!(encoding.row_bytes(5_120), Some(bytes), "{what}");
            assert_eq!(encoding.scales(13_824, 5_120), scales, "{what}");
        }
    }

    #[test]
    fn a_row_that_ends_within_a_block_has_no_length() {
        assert_eq!(Encoding::Packed(&Q4_K).row_bytes(1_000), None);
        assert_eq!(Encoding::Packed(&Q4_0).row_bytes(0), Some(0));
        assert_eq!(Encoding::Plain(DType::F4E2m1).row_bytes(3), None);
        assert_eq!(Encoding::Plain(DType::F64).row_bytes(usize::MAX), None);
        // A rectangle that the matrix's end cuts off has a scale, too.
        let by = Granularity::Block { rows: 128, cols: 128 };
        assert_eq!(scaled(DType::I8, by).scales(130, 256), 4);
    }
}
