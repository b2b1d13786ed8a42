//! Dequantises stored numbers to real values on the CPU, with one function for each encoding.

use rayon::prelude::*;

use super::encoding::Packing;
use super::rounding;

/// Multiplies all values by one scale.
pub(super) fn by_tensor(values: &mut [f32], scale: f32) {
    values.par_iter_mut().for_each(|v| *v *= scale);
}

/// Multiplies each row by a scale of its own.
pub(super) fn by_row(values: &mut [f32], cols: usize, scales: &[f32]) {
    let rows = values.par_chunks_mut(cols.max(1)).zip(scales);
    rows.for_each(|(row, scale)| row.iter_mut().for_each(|v| *v *= scale));
}

/// Multiplies each rectangle of `height` rows and `width` columns by a scale of its own; the scales are row-major.
pub(super) fn by_block(values: &mut [f32], cols: usize, [height, width]: [usize; 2], scales: &[f32]) {
    let across = cols.div_ceil(width).max(1);
    let bands = values.par_chunks_mut((cols * height).max(1)).zip(scales.par_chunks(across));
    bands.for_each(|(band, scales)| {
        for row in band.chunks_mut(cols.max(1)) {
            for (part, scale) in row.chunks_mut(width).zip(scales) {
                for value in part {
                    *value *= scale;
                }
            }
        }
    });
}

/// Multiplies each `group` neighbouring values by the Kronecker power of
/// h4 = [[1, 1, 1, -1], [1, 1, -1, 1], [1, -1, 1, 1], [-1, 1, 1, 1]], over the square root of `group`, a power of 4. The
/// matrix is symmetric and its own inverse.
pub(super) fn rotate(values: &mut [f32], group: usize) {
    let norm = 1.0 / (group as f32).sqrt();
    values.par_chunks_mut(group.max(1)).for_each(|values| {
        rounding::rotate(values, group);
        for value in values {
            *value *= norm;
        }
    });
}

/// Returns the values of packed blocks.
pub(super) fn packed(packing: &Packing, bytes: &[u8]) -> Vec<f32> {
    let mut values = vec![0.0; bytes.len() / packing.bytes * packing.values];
    let blocks = values.par_chunks_mut(packing.values).zip(bytes.par_chunks_exact(packing.bytes));
    blocks.for_each(|(values, block)| (packing.expand)(block, values));
    values
}

#[cfg(test)]
mod tests {
    use half::f16;

    use super::*;

    fn numbers(count: usize) -> Vec<f32> {
        (0..count).map(|i| (i * 37 % 101) as f32 - 50.0).collect()
    }

    #[test]
    fn one_scale_is_for_all_values() {
        let mut values = numbers(35);
        by_tensor(&mut values, 0.3);
        for (value, number) in values.iter().zip(numbers(35)) {
            assert_eq!(*value, number * 0.3);
        }
    }

    #[test]
    fn each_row_has_its_scale() {
        let (cols, scales) = (7, [0.5, -2.0, 0.1, 3.0]);
        let mut values = numbers(28);
        by_row(&mut values, cols, &scales);
        for (i, number) in numbers(28).into_iter().enumerate() {
            assert_eq!(values[i], number * scales[i / cols]);
        }
    }

    #[test]
    fn each_block_has_its_scale() {
        // The rectangles fill the matrix, are cut off at its ends, have one row, or have a row's whole width.
        for (rows, cols, height, width) in
            [(4usize, 6usize, 2, 3), (5, 7, 2, 3), (3, 32, 1, 16), (6, 5, 4, 5)]
        {
            let across = cols.div_ceil(width);
            let scales: Vec<f32> =
                (0..rows.div_ceil(height) * across).map(|i| 0.25 + i as f32 / 3.0).collect();
            let mut values = numbers(rows * cols);
            by_block(&mut values, cols, [height, width], &scales);
            for (i, number) in numbers(rows * cols).into_iter().enumerate() {
                let (row, col) = (i / cols, i % cols);
                let scale = scales[row / height * across + col / width];
                assert_eq!(values[i], number * scale, "{rows}x{cols} by {height}x{width} at {row}, {col}");
            }
        }
    }

    #[test]
    fn a_rotation_is_the_power_of_its_matrix_and_its_own_inverse() {
        const H4: [[f32; 4]; 4] =
            [[1.0, 1.0, 1.0, -1.0], [1.0, 1.0, -1.0, 1.0], [1.0, -1.0, 1.0, 1.0], [-1.0, 1.0, 1.0, 1.0]];
        for (group, digits) in [(4usize, 1), (16, 2), (64, 3), (256, 4)] {
            let original = numbers(2 * group);
            let mut values = original.clone();
            rotate(&mut values, group);
            for (at, value) in values.iter().enumerate() {
                let (base, row) = (at / group * group, at % group);
                let entry = |col: usize| {
                    (0..digits).map(|d| H4[row >> (2 * d) & 3][col >> (2 * d) & 3]).product::<f32>()
                };
                let sum: f32 = (0..group).map(|col| entry(col) * original[base + col]).sum();
                // The numbers are whole and the square roots powers of two, so that every step is exact.
                assert_eq!(*value, sum / (group as f32).sqrt(), "{group} at {at}");
            }
            rotate(&mut values, group);
            assert_eq!(values, original);
        }
    }

    #[test]
    fn packed_blocks_are_expanded_by_their_own_rule() {
        // An f16 factor, then four signed bytes.
        static SMALL: Packing = Packing {
            name: "small",
            values: 4,
            bytes: 6,
            expand: |block, values| {
                let factor = f16::from_le_bytes([block[0], block[1]]).to_f32();
                for (value, code) in values.iter_mut().zip(&block[2..]) {
                    *value = factor * f32::from(code.cast_signed());
                }
            },
        };
        let block = |factor: f32, codes: [i8; 4]| {
            [&f16::from_f32(factor).to_le_bytes()[..], &codes.map(i8::cast_unsigned)].concat()
        };
        let bytes = [block(0.5, [1, -2, 3, 127]), block(-4.0, [0, -128, 5, 6])].concat();
        assert_eq!(packed(&SMALL, &bytes), [0.5, -1.0, 1.5, 63.5, 0.0, 512.0, -20.0, -24.0]);
    }
}
