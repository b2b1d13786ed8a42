//! A matrix of which a few rows at a time are needed, such as the embedding of a vocabulary.

use crate::Result;

use super::Matrix;

/// A matrix whose rows are made when they are asked for: from its file, where that allows it.
pub struct RowTable {
    /// The number of rows.
    pub rows: usize,
    read: Box<dyn Fn(usize) -> Result<Vec<f32>> + Send + Sync>,
}

impl RowTable {
    /// Returns a table of so many rows, each of which `read` returns.
    pub fn new(rows: usize, read: impl Fn(usize) -> Result<Vec<f32>> + Send + Sync + 'static) -> Self {
        Self { rows, read: Box::new(read) }
    }

    /// Returns a table that keeps the whole matrix, in the type that it is stored in.
    pub fn of(matrix: Matrix<'static>) -> Self {
        Self::new(matrix.rows, move |row| Ok(matrix.part(row, 1).to_f32()))
    }

    /// Returns the values of a row, which must be less than [`Self::rows`].
    ///
    /// # Errors
    /// Returns [`crate::Error::Model`] if the file does not have the row any more, or the row is not finite.
    pub fn row(&self, index: usize) -> Result<Vec<f32>> {
        (self.read)(index)
    }
}
