//! The official weights, quantised as the fixtures' fp8 layouts are, for a fixture that was written without them.

use std::borrow::Cow;

use animd_engine::Result;
use animd_engine::weights::{DType, Encoding, Granularity, HostTensor, Matrix, WeightSource, Weights, e4m3};

/// Weights whose block matrices are 8-bit.
pub struct Quantised {
    /// The official weights.
    pub inner: Weights,
    /// One scale for each row, as in `LightX2V`'s layout; or one for the whole matrix, as in `ComfyUI`'s.
    pub per_row: bool,
}

/// Returns whether the layouts quantise a tensor: they quantise the matrices of the blocks' attentions and FFN.
fn is_quantised(name: &str) -> bool {
    let parts: Vec<_> = name.split('.').collect();
    matches!(&parts[..], ["blocks", _, "self_attn" | "cross_attn" | "ffn", layer, .., "weight"] if !layer.starts_with("norm"))
}

fn largest(values: &[f32]) -> f32 {
    values.iter().fold(0.0, |max: f32, v| max.max(v.abs()))
}

impl WeightSource for Quantised {
    fn tensor(&self, name: &str) -> Result<HostTensor> {
        self.inner.tensor(name)
    }

    fn matrix(&self, name: &str) -> Result<Matrix<'_>> {
        let matrix = self.inner.matrix(name)?;
        if !is_quantised(name) {
            return Ok(matrix);
        }
        let (rows, cols, values) = (matrix.rows, matrix.cols, matrix.to_f32());
        let each = if self.per_row { cols } else { rows * cols };
        let floor = if self.per_row { 1e-5 } else { 0.0 };
        let scales: Vec<f32> = values.chunks(each).map(|part| largest(part).max(floor) / e4m3::MAX).collect();
        let codes = values
            .chunks(each)
            .zip(&scales)
            .flat_map(|(part, s)| part.iter().map(move |v| e4m3::encode(v / s)));
        let bytes = Cow::Owned(codes.collect());
        let by = if self.per_row { Granularity::Row } else { Granularity::Tensor };
        let encoding = Encoding::Scaled { dtype: DType::F8E4m3, by };
        Ok(Matrix { rows, cols, encoding, bytes, scales })
    }
}
