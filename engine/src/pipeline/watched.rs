//! A source of weights that reports how much is loaded, and asks whether to continue.

use std::sync::{Mutex, PoisonError};

use super::clock::Clock;
use crate::Result;
use crate::weights::{HostTensor, LowRank, Matrix, RowTable, WeightSource};

/// Counts the parameters of all networks as they are loaded.
pub struct Count<'a, 'c> {
    state: Mutex<State<'a, 'c>>,
    total: usize,
}

struct State<'a, 'c> {
    clock: &'a mut Clock<'c>,
    done: usize,
    /// The number of parameters at the last report.
    told: usize,
}

impl<'a, 'c> Count<'a, 'c> {
    /// Returns a counter for `total` parameters, of which so many are loaded.
    pub fn new(clock: &'a mut Clock<'c>, done: usize, total: usize) -> Self {
        Self { state: Mutex::new(State { clock, done, told: done }), total }
    }

    /// Returns the source of one network's weights, which counts towards the total.
    pub fn of<'s>(&'s self, weights: &'s dyn WeightSource) -> impl WeightSource {
        Watched { weights, count: self }
    }

    fn add(&self, parameters: usize) -> Result<()> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.done += parameters;
        // More frequent reports would not be visible.
        if (state.done - state.told) * 100 >= self.total {
            state.told = state.done;
            let part = state.done as f64 / self.total.max(1) as f64;
            state.clock.part(part);
        }
        state.clock.observer().check()
    }
}

struct Watched<'s, 'a, 'c> {
    weights: &'s dyn WeightSource,
    count: &'s Count<'a, 'c>,
}

impl WeightSource for Watched<'_, '_, '_> {
    fn tensor(&self, name: &str) -> Result<HostTensor> {
        let tensor = self.weights.tensor(name)?;
        self.count.add(tensor.data.len())?;
        Ok(tensor)
    }

    fn matrix(&self, name: &str) -> Result<Matrix<'_>> {
        let matrix = self.weights.matrix(name)?;
        self.count.add(matrix.rows * matrix.cols)?;
        Ok(matrix)
    }

    fn with_products(&self, name: &str) -> Result<(Matrix<'_>, Vec<LowRank>)> {
        let (matrix, products) = self.weights.with_products(name)?;
        self.count.add(matrix.rows * matrix.cols)?;
        Ok((matrix, products))
    }

    fn row_table(&self, name: &str) -> Result<RowTable> {
        self.count.add(0)?;
        self.weights.row_table(name)
    }
}
