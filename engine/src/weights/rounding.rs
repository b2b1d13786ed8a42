//! Rounds rows of matrices to 8 bits on the CPU, to the bit as the GPU's kernels do (`kernels/cuda/any/rows.cuh`).

use animd_protocol::plan::network::ROTATED;

use super::e4m3;

/// The least magnitude that a row is assumed to have, so that a row of zeros has a scale, too.
const LEAST: f32 = 1e-10;

/// Returns the greatest magnitude of a row.
pub fn largest(row: &[f32]) -> f32 {
    row.iter().fold(LEAST, |largest, value| largest.max(value.abs()))
}

/// Rounds a row to e4m3 and returns its scale, which maps e4m3's greatest number to the row's greatest magnitude.
pub fn to_e4m3(row: &[f32], codes: &mut [u8]) -> f32 {
    let largest = largest(row);
    let inverse = e4m3::MAX / largest;
    for (code, value) in codes.iter_mut().zip(row) {
        *code = e4m3::encode(value * inverse);
    }
    largest / e4m3::MAX
}

/// Rotates each [`ROTATED`] columns of a row and replaces the values by whole numbers from -127 to 127. Returns the
/// scale: the numbers times the scale are the values, rotated by [`super::expand::rotate`].
pub fn to_int8(row: &mut [f32]) -> f32 {
    const MAX: f32 = 127.0;
    /// Added to a number below 2^51, it rounds that number to a whole one.
    const WHOLE: f64 = 6_755_399_441_055_744.0;
    rotate(row, ROTATED);
    let largest = largest(row);
    let inverse = f64::from(MAX / largest);
    for value in row {
        // The kernels round the product once, within a fused multiply-add. In f64 the product of two f32 is exact.
        *value = ((f64::from(*value) * inverse + WHOLE) - WHOLE) as f32;
    }
    largest / MAX / (ROTATED as f32).sqrt()
}

/// Rotates each `group` elements by the Kronecker power of [[1, 1, 1, -1], [1, 1, -1, 1], [1, -1, 1, 1], [-1, 1, 1, 1]],
/// which multiplies lengths by the root of `group`, a power of 4.
pub fn rotate(row: &mut [f32], group: usize) {
    let mut step = 1;
    while step < group {
        for block in row.chunks_exact_mut(4 * step) {
            for i in 0..step {
                let [a, b, c, d] = [0, 1, 2, 3].map(|digit| block[i + digit * step]);
                let (outer, inner) = (a + d, b + c);
                block[i] = (a - d) + inner;
                block[i + step] = (b - c) + outer;
                block[i + 2 * step] = (c - b) + outer;
                block[i + 3 * step] = (d - a) + inner;
            }
        }
        step *= 4;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The rotation is symmetric and, over the root of its size, its own inverse.
    #[test]
    fn rotating_twice_multiplies_by_the_group() {
        for group in [4, 16, 64, 256] {
            let original: Vec<f32> = (0..512).map(|i| ((i * i) % 37) as f32).collect();
            let mut row = original.clone();
            rotate(&mut row, group);
            assert_ne!(row, original);
            rotate(&mut row, group);
            let wanted: Vec<f32> = original.iter().map(|v| v * group as f32).collect();
            assert_eq!(row, wanted);
        }
    }

    #[test]
    fn whole_numbers_are_those_of_a_fused_multiply_add() {
        const BIAS: f32 = 12_582_912.0;
        let mut row: Vec<f32> = (0..512u32).map(|i| 3.0 * (i * i) as f32 * 0.7).map(f32::sin).collect();
        let mut rotated = row.clone();
        rotate(&mut rotated, ROTATED);
        let inverse = 127.0 / largest(&rotated);
        let wanted: Vec<f32> = rotated.iter().map(|value| value.mul_add(inverse, BIAS) - BIAS).collect();
        let scale = to_int8(&mut row);
        assert_eq!((row, scale), (wanted, largest(&rotated) / 127.0 / 16.0));
    }

    #[test]
    fn ties_go_to_the_even_number() {
        // These halves are what the rotated row consists of; all sums are exact.
        let halves: Vec<f32> = (0..512).map(|i| (i % 509) as f32 / 2.0 - 127.0).collect();
        let mut row = halves.clone();
        rotate(&mut row, ROTATED);
        for value in &mut row {
            *value /= ROTATED as f32;
        }
        assert_eq!(to_int8(&mut row), 1.0 / 16.0);
        assert_eq!(row, halves.iter().map(|value| value.round_ties_even()).collect::<Vec<_>>());
    }
}
