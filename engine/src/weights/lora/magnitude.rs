//! Weights in two parts, a direction and a length for each row or column: `DoRA` (Liu et al., "Weight-decomposed low-rank
//! adaptation", 2024).
//!
//! The changed matrix gets the lengths that were trained. They are of the matrix with its change, as in the paper, in PEFT and in
//! `LyCORIS`; `ComfyUI` divides by the lengths of the unchanged rows, which is a little off.

use rayon::prelude::*;

use super::product::numbers;
use crate::Result;
use crate::weights::stored::Stored;

/// The columns whose lengths are summed up at a time, so that a row's are read together.
const COLUMNS: usize = 256;

/// The lengths that the rows, or the columns, of a changed matrix get.
pub(super) struct Magnitude {
    lengths: Stored,
    of_rows: bool,
}

impl Magnitude {
    /// Returns the lengths of a matrix of this shape: one for each row `[rows, 1]` or `[rows]`, or one for each column `[1, cols]`.
    pub fn new(lengths: Stored, shape: &[usize]) -> Result<Self, Stored> {
        let first = lengths.shape.first().copied();
        let (rows, cols) = (shape.first().copied(), shape.get(1).copied());
        let of_rows = first == rows && Some(lengths.elements()) == rows;
        let of_columns = shape.len() == 2 && first == Some(1) && Some(lengths.elements()) == cols;
        if of_rows || of_columns { Ok(Self { lengths, of_rows }) } else { Err(lengths) }
    }

    /// Gives the rows or columns of a matrix with so many columns their lengths. What is nothing stays nothing.
    pub fn give_to(&self, values: &mut [f32], cols: usize) -> Result<()> {
        let lengths = numbers(&self.lengths)?;
        let factor = |length: f32, squares: f64| {
            if squares > 0.0 { (f64::from(length) / squares.sqrt()) as f32 } else { 1.0 }
        };
        let rows = values.par_chunks_mut(cols.max(1));
        if self.of_rows {
            rows.zip(&lengths).for_each(|(row, length)| {
                let factor = factor(*length, row.iter().map(|value| f64::from(*value).powi(2)).sum());
                for value in row {
                    *value *= factor;
                }
            });
            return Ok(());
        }
        // Sums in the order of the rows, so that they are the same every time.
        let firsts: Vec<usize> = (0..cols).step_by(COLUMNS).collect();
        let squares = firsts.par_iter().flat_map_iter(|first| {
            let count = COLUMNS.min(cols - first);
            let mut sums = vec![0.0f64; count];
            for row in values.chunks(cols) {
                sums.iter_mut()
                    .zip(&row[*first..][..count])
                    .for_each(|(sum, value)| *sum += f64::from(*value).powi(2));
            }
            sums
        });
        let squares: Vec<f64> = squares.collect();
        let factors: Vec<f32> =
            lengths.iter().zip(&squares).map(|(length, squares)| factor(*length, *squares)).collect();
        values.par_chunks_mut(cols.max(1)).for_each(|row| {
            row.iter_mut().zip(&factors).for_each(|(value, factor)| *value *= factor);
        });
        Ok(())
    }
}
