//! Rounding of rows to 8 bits, as 8-bit matrix units see them.

use rayon::prelude::*;

use crate::weights::e4m3;
use crate::weights::rounding::{largest, to_int8};

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

fn to_e4m3(row: &mut [f32]) -> f32 {
    let scale = largest(row) / e4m3::MAX;
    for v in row {
        *v = e4m3::decode(e4m3::encode(*v / scale));
    }
    scale
}

#[cfg(test)]
mod tests {
    use super::*;

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
