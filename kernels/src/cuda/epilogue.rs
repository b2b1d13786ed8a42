//! What follows a matrix product or a convolution, and how the kernels get it.

use cudarc::driver::DeviceRepr;
use cudarc::driver::sys::CUdeviceptr;

use super::Rows;
use crate::Activation;

/// Factors of a product's results.
#[derive(Clone, Copy, Debug)]
pub enum Gate {
    /// For each column, `[columns]` f32.
    Columns(CUdeviceptr),
    /// For each element, `[rows, columns]` bf16.
    Elements(Rows),
}

/// What follows a product: `residual + gate * activation(A Bᵀ + bias)`.
#[derive(Clone, Copy, Debug, Default)]
pub struct Epilogue {
    /// `[columns]` f32.
    pub bias: Option<CUdeviceptr>,
    /// The activation; it cannot be combined with `residual`.
    pub activation: Activation,
    /// Factors of the activated results.
    pub gate: Option<Gate>,
    /// A matrix of the output's type and shape that is added. It may be the output itself.
    pub residual: Option<Rows>,
    /// Where the sums of squares of the results go; it cannot be combined with anything but `bias`.
    pub squares: Option<Squares>,
}

/// Where a product leaves sums of squares of its results, so that a norm over the rows need not read these first.
#[derive(Clone, Copy, Debug)]
pub struct Squares {
    /// `[rows, tiles]` f32: of each row the sums over its first, second, ... [`super::Gemm::SQUARED`] columns.
    pub to: CUdeviceptr,
    /// How many times so many columns are summed up, from the first column on.
    pub tiles: usize,
}

/// The kernels' argument for what follows a product: `gemm::Epilogue` of `epilogue.cuh`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub(super) struct RawEpilogue {
    pub row_scale: CUdeviceptr,
    pub column_scale: CUdeviceptr,
    pub bias: CUdeviceptr,
    pub gate: CUdeviceptr,
    pub element_gate: CUdeviceptr,
    pub gamma: CUdeviceptr,
    pub residual: CUdeviceptr,
    pub output: CUdeviceptr,
    pub squares: CUdeviceptr,
    pub gate_stride: i64,
    pub residual_stride: i64,
    pub output_stride: i64,
    pub width: i32,
    pub half_step: i32,
    pub activation: i32,
    pub squared: i32,
}

// SAFETY: plain numbers in the layout of the kernels' structure.
unsafe impl DeviceRepr for RawEpilogue {}

impl RawEpilogue {
    /// Returns what follows a matrix product whose rows and columns have scales at these addresses.
    pub fn new(
        (row_scale, column_scale): (CUdeviceptr, CUdeviceptr),
        epilogue: &Epilogue,
        output: Rows,
    ) -> Self {
        let (gate, element_gate) = match epilogue.gate {
            Some(Gate::Columns(gate)) => (gate, None),
            Some(Gate::Elements(gate)) => (0, Some(gate)),
            None => (0, None),
        };
        Self {
            row_scale,
            column_scale,
            bias: epilogue.bias.unwrap_or(0),
            gate,
            element_gate: element_gate.map_or(0, |g| g.address),
            gamma: 0,
            residual: epilogue.residual.map_or(0, |r| r.address),
            output: output.address,
            squares: epilogue.squares.map_or(0, |squares| squares.to),
            gate_stride: element_gate.map_or(0, |g| g.stride as i64),
            residual_stride: epilogue.residual.map_or(0, |r| r.stride as i64),
            output_stride: output.stride as i64,
            width: i32::MAX,
            half_step: 0,
            activation: epilogue.activation as i32,
            squared: epilogue.squares.map_or(0, |squares| squares.tiles as i32),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_epilogue_has_the_kernels_layout() {
        assert_eq!(size_of::<RawEpilogue>(), 112);
        assert_eq!(std::mem::offset_of!(RawEpilogue, width), 96);
    }
}
