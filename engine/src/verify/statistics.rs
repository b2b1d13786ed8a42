//! What there is to say about the values of a tensor without knowing what it is for.

use rayon::prelude::*;

use crate::Result;
use crate::weights::Matrix;

/// The values that are expanded at a time, so that memory does not grow with a tensor.
const CHUNK: usize = 1 << 20;
/// The values of a piece that one thread looks at.
const PIECE: usize = 1 << 14;

/// The statistics of a tensor's values.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Statistics {
    /// The number of values.
    pub count: usize,
    /// The number of values that are infinite or no numbers; the other figures are without them.
    pub not_finite: usize,
    /// The sum of the values' magnitudes.
    pub magnitudes: f64,
    /// The sum of the values' squares.
    pub squares: f64,
    /// The greatest magnitude.
    pub largest: f64,
    /// The zeros.
    zeros: Zeros,
}

/// The runs of zeros in a stretch of values, with what is needed to join stretches.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Zeros {
    first: usize,
    last: usize,
    longest: usize,
}

impl Statistics {
    /// Returns the statistics of a matrix's real values; `go_on` is asked between pieces and can stop the work.
    ///
    /// # Errors
    /// Returns the errors of `go_on`.
    pub fn of(matrix: &Matrix<'_>, go_on: &mut dyn FnMut(usize) -> Result<()>) -> Result<Self> {
        let rows = (CHUNK / matrix.cols.max(1)).max(1);
        let mut all = Self::default();
        let mut first = 0;
        while first < matrix.rows {
            let rows = rows.min(matrix.rows - first);
            let values = matrix.part(first, rows).to_f32();
            let parts: Vec<Self> = values.par_chunks(PIECE).map(Self::of_values).collect();
            all = parts.into_iter().fold(all, Self::followed_by);
            go_on(values.len())?;
            first += rows;
        }
        Ok(all)
    }

    /// Returns the statistics of some values.
    pub fn of_values(values: &[f32]) -> Self {
        let mut found = Self { count: values.len(), ..Self::default() };
        let mut run = 0;
        for (i, &value) in values.iter().enumerate() {
            if value == 0.0 {
                run += 1;
            } else {
                found.zeros.end(run, i);
                run = 0;
            }
            if !value.is_finite() {
                found.not_finite += 1;
                continue;
            }
            let value = f64::from(value);
            found.magnitudes += value.abs();
            found.squares += value * value;
            found.largest = found.largest.max(value.abs());
        }
        found.zeros.end(run, values.len());
        found.zeros.last = run;
        found
    }

    /// Returns the statistics of these values with others after them.
    fn followed_by(self, next: Self) -> Self {
        let Self { zeros: Zeros { first, last, longest }, count, .. } = self;
        let zeros = Zeros {
            first: if first == count { first + next.zeros.first } else { first },
            last: if next.zeros.last == next.count { last + next.count } else { next.zeros.last },
            longest: longest.max(next.zeros.longest).max(last + next.zeros.first),
        };
        Self {
            count: count + next.count,
            not_finite: self.not_finite + next.not_finite,
            magnitudes: self.magnitudes + next.magnitudes,
            squares: self.squares + next.squares,
            largest: self.largest.max(next.largest),
            zeros,
        }
    }

    /// Returns the root of the mean square.
    pub fn rms(&self) -> f64 {
        (self.squares / (self.count - self.not_finite).max(1) as f64).sqrt()
    }

    /// Returns the mean magnitude.
    pub fn magnitude(&self) -> f64 {
        self.magnitudes / (self.count - self.not_finite).max(1) as f64
    }

    /// Returns the length of the longest run of zeros.
    pub fn zeros(&self) -> usize {
        self.zeros.longest
    }
}

impl Zeros {
    /// Notes that a run of zeros ended before the value at `at`.
    fn end(&mut self, run: usize, at: usize) {
        self.longest = self.longest.max(run);
        if run == at {
            self.first = run;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::weights::DType;

    fn of(values: &[f32], cols: usize) -> Statistics {
        let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        let matrix = Matrix::plain(values.len() / cols, cols, DType::F32, bytes);
        Statistics::of(&matrix, &mut |_| Ok(())).expect("nothing stops it")
    }

    #[test]
    fn figures_are_those_of_all_values() {
        let found = of(&[3.0, -4.0, 0.0, f32::NAN, 0.0, f32::INFINITY], 3);
        assert_eq!((found.count, found.not_finite), (6, 2));
        assert_eq!((found.magnitudes, found.squares, found.largest), (7.0, 25.0, 4.0));
        assert_eq!(found.rms(), 2.5);
    }

    #[test]
    fn runs_of_zeros_go_on_from_piece_to_piece() {
        // Lengths around the borders of pieces and of chunks.
        let cols = 1 << 10;
        for (from, to) in
            [(0, 5), (PIECE - 3, PIECE + 4), (10, 3 * PIECE + 7), (CHUNK - 9, CHUNK + PIECE + 2)]
        {
            let mut values = vec![1.0; CHUNK + 2 * PIECE];
            values[from..to].fill(0.0);
            values[2] = 0.0;
            let longest = to.max(if from == 0 { 5 } else { 0 }) - from;
            assert_eq!(of(&values, cols).zeros(), longest, "{from}..{to}");
        }
        let all = vec![0.0; CHUNK + PIECE];
        assert_eq!(of(&all, cols).zeros(), all.len());
        assert_eq!(of(&[1.0; 4], 2).zeros(), 0);
    }
}
