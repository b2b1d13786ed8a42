//! What each large matrix of the transformer loses in 8 bits.

use rayon::prelude::*;
use serde::Serialize;

use crate::Result;
use crate::weights::{DitConfig, Encoding, Matrix, WeightSource, Weights, e4m3, rounding};
use animd_protocol::dims::schema;
use animd_protocol::plan::network::ROTATED;

/// The values that are rounded at a time.
const CHUNK: usize = 1 << 20;
/// A layer is an outlier if it loses so many times as much as the middle one.
const OUTLIER: f64 = 2.0;

/// The distance of a matrix in 8 bits from the matrix itself, over its length.
#[derive(Clone, Debug, Serialize)]
pub struct Rounded {
    /// The weight's official name.
    pub tensor: String,
    /// In rotated int8, if the matrix can be rotated.
    pub int8: Option<f64>,
    /// In fp8 (e4m3).
    pub fp8: f64,
    /// Whether it loses much more than the other layers, in either.
    pub outlier: bool,
}

/// Returns what each large matrix of a transformer loses; none of those that are stored in 8 bits or fewer.
///
/// # Errors
/// Returns the errors of the weights, and those of `go_on`, which gets the number of values.
pub fn costs(
    weights: &Weights,
    config: &DitConfig,
    go_on: &mut dyn FnMut(usize) -> Result<()>,
) -> Result<Vec<Rounded>> {
    let mut all = Vec::new();
    for expected in schema::dit(config).into_iter().filter(|e| e.quantisable) {
        if !weights.encoding(&expected.name).is_some_and(Encoding::is_plain) {
            continue;
        }
        let matrix = weights.matrix(&expected.name)?;
        let [length, fp8, int8] = distances(&matrix, go_on)?;
        let share = |distance: f64| (distance / length.max(f64::MIN_POSITIVE)).sqrt();
        let int8 = matrix.cols.is_multiple_of(ROTATED).then(|| share(int8));
        all.push(Rounded { tensor: expected.name, int8, fp8: share(fp8), outlier: false });
    }
    let middle = |of: &dyn Fn(&Rounded) -> f64| {
        let mut values: Vec<f64> = all.iter().map(of).collect();
        values.sort_by(f64::total_cmp);
        values.get(values.len() / 2).copied().unwrap_or(0.0)
    };
    let (fp8, int8) = (middle(&|r| r.fp8), middle(&|r| r.int8.unwrap_or(0.0)));
    for rounded in &mut all {
        rounded.outlier = rounded.fp8 > OUTLIER * fp8 || rounded.int8.is_some_and(|d| d > OUTLIER * int8);
    }
    Ok(all)
}

/// Returns the squared length of a matrix, and the squared distances of it in fp8 and in rotated int8.
fn distances(matrix: &Matrix<'_>, go_on: &mut dyn FnMut(usize) -> Result<()>) -> Result<[f64; 3]> {
    let (cols, mut sums, mut first) = (matrix.cols.max(1), [0.0; 3], 0);
    while first < matrix.rows {
        let rows = (CHUNK / cols).max(1).min(matrix.rows - first);
        let values = matrix.part(first, rows).to_f32();
        let of_rows = values.par_chunks(cols).map(of_row);
        let part = of_rows.reduce(|| [0.0; 3], |a, b| [a[0] + b[0], a[1] + b[1], a[2] + b[2]]);
        sums.iter_mut().zip(part).for_each(|(sum, part)| *sum += part);
        go_on(values.len())?;
        first += rows;
    }
    Ok(sums)
}

fn of_row(row: &[f32]) -> [f64; 3] {
    let square = |v: f32| f64::from(v) * f64::from(v);
    let mut codes = vec![0; row.len()];
    let scale = rounding::to_e4m3(row, &mut codes);
    let fp8 = row.iter().zip(&codes).map(|(v, code)| square(v - e4m3::decode(*code) * scale)).sum();
    let mut int8 = 0.0;
    if row.len().is_multiple_of(ROTATED) {
        // A rotation keeps distances, so that they can be measured before it is undone. It multiplies lengths by the root
        // of the group, and the scale is that of the values that are not multiplied.
        let root = (ROTATED as f32).sqrt();
        let (mut rotated, mut numbers) = (row.to_vec(), row.to_vec());
        rounding::rotate(&mut rotated, ROTATED);
        let scale = rounding::to_int8(&mut numbers);
        int8 = rotated.iter().zip(&numbers).map(|(v, number)| square(v / root - number * scale)).sum();
    }
    [row.iter().map(|v| square(*v)).sum(), fp8, int8]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::noise;
    use crate::weights::DType;

    #[test]
    fn rounding_costs_what_theory_says() {
        let (rows, cols) = (64, 1024);
        let values = noise::cpu(5).randn(rows * cols);
        let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        let matrix = Matrix::plain(rows, cols, DType::F32, bytes);
        let [length, fp8, int8] = distances(&matrix, &mut |_| Ok(())).expect("nothing stops it");
        let exact: f64 = values.iter().map(|v| f64::from(*v).powi(2)).sum();
        assert!((length / exact - 1.0).abs() < 1e-9);
        // Whole numbers err by a uniform 1/12 of a step squared; a row of 1024 Gaussian values reaches about 3.3, so a step
        // is 3.3 / 127 and the distance 0.0075. Three bits of mantissa err by 2^-4 / sqrt(3) at most and by about 0.72 of
        // that on average over a binade.
        let [fp8, int8] = [fp8, int8].map(|d| (d / length).sqrt());
        assert!((0.0065..0.0090).contains(&int8), "{int8}");
        assert!((0.020..0.036).contains(&fp8), "{fp8}");
    }
}
