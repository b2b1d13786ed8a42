//! Products of low rank, added to weights on the device on their way to their places.
//!
//! A product is a linear layer whose input is one matrix, whose weight is the other one and whose residual is the weight that it
//! is added to. Both are sums of two bf16 numbers, so a product errs by about 2^-16 of its terms, and the sum is rounded
//! to f32 as on the host.

use animd_kernels::cuda::Element;
use rayon::prelude::*;

use super::gpu::{Gpu, take};
use super::linear::{Form, Linear};
use super::tensor::Tensor;
use crate::Result;
use crate::backend::sequence::{Epilogue, Input};
use crate::weights::LowRank;

/// The products that are added to one weight.
pub(super) struct Products<'a>(Vec<(&'a LowRank, Linear)>);

impl<'a> Products<'a> {
    /// Copies the matrices that all rows share to the device; a weight has so many `columns` there, of which the last ones may
    /// be zeros.
    pub fn new(gpu: &Gpu, products: &'a [LowRank], columns: usize) -> Result<Self> {
        let one = |product: &'a LowRank| Ok((product, layer(gpu, product, columns)?));
        products.iter().map(one).collect::<Result<_>>().map(Self)
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Returns rows of the weight, from `first` on, with the products in f32.
    pub fn added(&self, gpu: &Gpu, mut rows: Tensor, first: usize) -> Result<Tensor> {
        for (product, layer) in &self.0 {
            let (count, rank) = (rows.shape[0], product.rank());
            let up =
                gpu.upload(&gpu.work, &product.up.data[first * rank..][..count * rank], &[count, rank])?;
            rows = gpu.dense(&rows, Element::F32)?;
            let residual = Epilogue { residual: Some(&rows), ..Epilogue::default() };
            let sum = layer.forward(gpu, Input::Plain(&up), &residual)?;
            rows = sum;
        }
        Ok(rows)
    }
}

/// Returns the layer that multiplies by a product's second matrix, with columns of zeros up to so many.
fn layer(gpu: &Gpu, product: &LowRank, columns: usize) -> Result<Linear> {
    let (rank, cols) = (product.rank(), product.down.shape[1]);
    let inputs = rank.next_multiple_of(8);
    let mut transposed = vec![0.0; columns * inputs];
    let down = &product.down.data;
    transposed.par_chunks_mut(inputs).take(cols).enumerate().for_each(|(c, column)| {
        for (r, value) in column.iter_mut().take(rank).enumerate() {
            *value = down[r * cols + c];
        }
    });
    let dense = gpu.upload(&gpu.work, &transposed, &[columns, inputs])?;
    let weight = take(&gpu.work, columns * 3 * inputs, Element::Bf16, &[columns, 3 * inputs])?;
    gpu.split(&dense, &weight, true)?;
    let (scale, bias, form, result) = (None, None, Form::Split, Element::F32);
    Ok(Linear { form, weight, scale, bias, inputs: rank, outputs: columns, result })
}
