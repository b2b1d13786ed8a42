//! Rounding of rows to 8 bits, as 8-bit matrix units see them.

use animd_protocol::plan::network::ROTATED;
use rayon::prelude::*;

use crate::weights::e4m3;

/// How the operands of large layers are rounded to 8 bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rounding {
    /// To e4m3, with a scale for each row; only where the weights are stored in this form.
    Fp8,
    /// To int8, with a scale for each row, after both operands were rotated within blocks of 256 columns ("`ConvRot`",
    /// arXiv 2512.03673). Weights of any type are rounded.
    Int8,
}

impl Rounding {
    /// Rounds rows in place and returns their scales. A scale maps the row's largest magnitude to the largest 8-bit value.
    pub(super) fn round(self, values: &mut [f32], columns: usize) -> Vec<f32> {
        let mut scales = vec![0.0; values.len() / columns];
        values.par_chunks_exact_mut(columns).zip(&mut scales).for_each(|(row, scale)| {
            *scale = match self {
                Self::Fp8 => to_e4m3(row),
                Self::Int8 => to_int8(row),
            };
        });
        scales
    }
}

fn largest(row: &[f32]) -> f32 {
    row.iter().fold(1e-10f32, |largest, v| largest.max(v.abs()))
}

fn to_e4m3(row: &mut [f32]) -> f32 {
    let scale = largest(row) / e4m3::MAX;
    for v in row {
        *v = e4m3::decode(e4m3::encode(*v / scale));
    }
    scale
}

fn to_int8(row: &mut [f32]) -> f32 {
    const MAX: f32 = 127.0;
    /// Added to a number below 2^22, it rounds that number to a whole one.
    const ROUNDING: f32 = 12_582_912.0;
    rotate(row, ROTATED);
    let largest = largest(row);
    let inverse = MAX / largest;
    for v in row {
        *v = v.mul_add(inverse, ROUNDING) - ROUNDING;
    }
    largest / MAX / (ROTATED as f32).sqrt()
}

/// Rotates each `group` elements by the Kronecker power of [[1, 1, 1, -1], [1, 1, -1, 1], [1, -1, 1, 1], [-1, 1, 1, 1]],
/// which multiplies lengths by the root of `group`.
fn rotate(row: &mut [f32], group: usize) {
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
    fn one_large_column_is_spread_over_its_group() {
        let mut row = vec![0.0; 512];
        row[300] = 3.0;
        let scale = Rounding::Int8.round(&mut row, 512)[0];
        assert!(row[..256].iter().all(|v| *v == 0.0));
        assert!(row[256..].iter().all(|v| v.abs() == 127.0));
        // 256 equal magnitudes of the length 3 are 3/16 each.
        assert!((scale * 127.0 - 3.0 / 16.0).abs() < 1e-6);
    }

    #[test]
    fn a_row_of_zeros_has_a_scale() {
        for rounding in [Rounding::Fp8, Rounding::Int8] {
            let mut row = vec![0.0; 256];
            let scales = rounding.round(&mut row, 256);
            assert!(scales[0] > 0.0 && row.iter().all(|v| *v == 0.0), "{rounding:?}");
        }
    }
}
