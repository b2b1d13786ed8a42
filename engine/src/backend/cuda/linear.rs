//! Linear layers: products in bf16, in 8 bits, or, for the sensitive ones, of sums of two bf16 numbers.

use animd_kernels::cuda::{self, Element, Gate, Operands, Squares};

use super::error::{device, kernel};
use super::gpu::Gpu;
use super::norms::Quantised;
use super::tensor::Tensor;
use crate::backend::sequence::{Activation, Epilogue, Input};
use crate::{Error, Result};
use animd_protocol::plan::memory::BAND;
use animd_protocol::profile::Precision;

/// A linear layer's weight and bias on the GPU.
pub struct Linear {
    pub(super) form: Form,
    pub(super) weight: Tensor,
    /// The factor of each row, `[outputs]`, for 8-bit weights.
    pub(super) scale: Option<Tensor>,
    pub(super) bias: Option<Tensor>,
    /// The number of features of the input; the weight's are padded with zeros to a multiple of 16 bytes.
    pub(super) inputs: usize,
    pub(super) outputs: usize,
    /// The type of the result.
    pub(super) result: Element,
}

/// How a layer is computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    /// bf16 by bf16.
    Bf16,
    /// e4m3 by e4m3, with a scale for each row of both.
    Fp8,
    /// int8 by int8, both rotated within groups of columns, with a scale for each row of both.
    Int8,
    /// Sums of two bf16 numbers, as near to f32 as 16 bits come: three times as wide.
    Split,
}

impl Form {
    /// Returns how layers with weights of this type are computed.
    pub fn of(weights: Precision) -> Self {
        match weights {
            Precision::Bf16 => Self::Bf16,
            Precision::Fp8 => Self::Fp8,
            Precision::Int8 => Self::Int8,
            Precision::Fp32 => Self::Split,
        }
    }

    /// Returns the type of both operands.
    pub fn element(self) -> Element {
        match self {
            Self::Bf16 | Self::Split => Element::Bf16,
            Self::Fp8 => Element::E4m3,
            Self::Int8 => Element::Int8,
        }
    }
}

impl Linear {
    /// Returns `residual + gate * activation(x W^T + b)`.
    pub(super) fn forward(
        &self,
        gpu: &Gpu,
        x: Input<'_, Tensor>,
        epilogue: &Epilogue<'_, Tensor>,
    ) -> Result<Tensor> {
        self.finish(gpu, &self.operand(gpu, x)?, epilogue)
    }

    /// Returns the product with everything that follows it.
    fn finish(&self, gpu: &Gpu, operand: &Operand, epilogue: &Epilogue<'_, Tensor>) -> Result<Tensor> {
        // The kernel has either an activation or a residual.
        if epilogue.activation != Activation::None
            && let Some(residual) = epilogue.residual
        {
            let inner = self.product(gpu, operand, &Epilogue { residual: None, ..*epilogue })?;
            return gpu.add(residual, &inner);
        }
        self.product(gpu, operand, epilogue)
    }

    /// Returns `activation(gate(x)) * up(x)`.
    pub(super) fn gated(
        gpu: &Gpu,
        x: Input<'_, Tensor>,
        [gate, up]: [&Self; 2],
        activation: Activation,
    ) -> Result<Tensor> {
        let operand = up.operand(gpu, x)?;
        let factors = up.product(gpu, &operand, &Epilogue::default())?;
        let epilogue = Epilogue { activation, gate: Some(&factors), residual: None };
        match gate.form == up.form && gate.inputs == up.inputs {
            true => gate.product(gpu, &operand, &epilogue),
            false => gate.product(gpu, &gate.operand(gpu, x)?, &epilogue),
        }
    }

    /// Returns `down(activation(up(x)))`, with an epilogue after the second layer.
    ///
    /// Between layers in int8 the wide rows exist as int8 alone: bands of them become bf16, in memory that the next band
    /// reuses, and then activated, rotated int8. So they take a byte an element instead of three, and a band may still be
    /// in the L2 cache when it is read. The result is the same to the bit whatever the bands.
    pub(super) fn feed_forward(
        gpu: &Gpu,
        x: Input<'_, Tensor>,
        [up, down]: [&Self; 2],
        activation: Activation,
        epilogue: &Epilogue<'_, Tensor>,
    ) -> Result<Tensor> {
        if down.form != Form::Int8 || up.outputs != down.inputs {
            let activated = Epilogue { activation, ..Epilogue::default() };
            let inner = up.forward(gpu, x, &activated)?;
            let operand = down.operand(gpu, Input::Plain(&inner))?;
            // What has become another operand makes room for the result.
            drop(inner);
            return down.finish(gpu, &operand, epilogue);
        }
        let operand = up.operand(gpu, x)?;
        let rows = operand.rows();
        let inner = Quantised::new(gpu, [rows, down.inputs], Element::Int8)?;
        let band = band(rows, up.outputs, gpu.gemm.int8_tiles());
        for first in (0..rows).step_by(band) {
            let rows = band.min(rows - first);
            let wide = up.product(gpu, &operand.part(first, rows), &Epilogue::default())?;
            gpu.quantise(&wide, activation, inner.part(first, rows)?)?;
        }
        drop(operand);
        down.finish(gpu, &Operand::Quantised(inner), epilogue)
    }

    /// Returns the input in the form that the product reads.
    pub(super) fn operand(&self, gpu: &Gpu, x: Input<'_, Tensor>) -> Result<Operand> {
        let shape = &x.tensor().shape;
        if shape.len() != 2 || shape[1] != self.inputs || shape[0] == 0 {
            return Err(Error::Internal(format!("{shape:?} for a layer of {} features", self.inputs)));
        }
        let rows = |element| match &x {
            Input::Plain(x) => gpu.rows(x, element),
            Input::Normed(x, norm) => gpu.norm(x, norm, element),
        };
        Ok(match self.form {
            Form::Bf16 => Operand::Rows(gpu.filled_up(rows(Element::Bf16)?, self.weight.shape[1])?),
            Form::Split => {
                let x = gpu.filled_up(rows(Element::F32)?, self.weight.shape[1] / 3)?;
                let split = gpu.matrix([x.shape[0], self.weight.shape[1]], Element::Bf16)?;
                gpu.split(&x, &split, false)?;
                Operand::Rows(split)
            }
            Form::Fp8 | Form::Int8 => Operand::Quantised(match &x {
                Input::Plain(x) => gpu.quantised(x, self.form.element())?,
                Input::Normed(x, norm) => gpu.quantised_norm(x, norm, self.form.element())?,
            }),
        })
    }

    /// Returns the operands of the product as the kernels take them, how many products a sum has, and the rows.
    fn operands(&self, gpu: &Gpu, operand: &Operand) -> (Operands, usize, usize) {
        let b = self.weight.rows();
        match operand {
            Operand::Rows(x) => (Operands::Bf16 { a: x.rows(), b }, self.weight.shape[1], x.shape[0]),
            Operand::Quantised(Quantised { values, scales }) => {
                let b_scale = self.scale.as_ref().map_or(0, |scale| scale.address);
                let (a, a_scale, fast) = (values.rows(), scales.address, gpu.fast_sums);
                let operands = match self.form {
                    Form::Int8 => Operands::Int8 { a, a_scale, b, b_scale },
                    _ => Operands::E4m3 { a, a_scale, b, b_scale, fast },
                };
                (operands, self.inputs, values.shape[0])
            }
        }
    }

    /// Returns the product in bf16, and of each row the sums of squares over its first `tiles` times [`Gemm::SQUARED`]
    /// columns, `[rows, tiles]` f32.
    ///
    /// # Errors
    /// Returns [`Error::Internal`] if the kernels leave no such sums of a product of this kind.
    pub(super) fn squared(&self, gpu: &Gpu, operand: &Operand, tiles: usize) -> Result<[Tensor; 2]> {
        let (operands, inner, rows) = self.operands(gpu, operand);
        let y = gpu.matrix([rows, self.outputs], Element::Bf16)?;
        let squares = gpu.row_major(&[rows, tiles], Element::F32)?;
        let last = cuda::Epilogue {
            bias: self.bias.as_ref().map(|bias| bias.address),
            squares: Some(Squares { to: squares.address, tiles }),
            ..cuda::Epilogue::default()
        };
        // SAFETY: all tensors have these extents; the order of the stream keeps them.
        kernel(unsafe { gpu.gemm.run(&gpu.stream, &operands, inner, &last, y.rows(), Element::Bf16) })?;
        Ok([y, squares])
    }

    /// Returns the product, with a gate for each column or each element, and an activation or a residual.
    fn product(&self, gpu: &Gpu, operand: &Operand, epilogue: &Epilogue<'_, Tensor>) -> Result<Tensor> {
        let (operands, inner, rows) = self.operands(gpu, operand);
        let out = self.outputs;
        let gate = epilogue.gate.map(|gate| gpu.gate(gate, rows, out)).transpose()?;
        let residual = epilogue.residual.map(|residual| gpu.any_rows(residual)).transpose()?;
        if residual.as_ref().is_some_and(|r| r.shape != [rows, out]) {
            return Err(Error::Internal(format!("a residual that is not [{rows}, {out}]")));
        }
        let element = match &residual {
            Some(residual) => residual.element,
            // A single row becomes a modulation or a gate, which kernels read as f32.
            None if rows == 1 => Element::F32,
            None => self.result,
        };
        let y = gpu.matrix([rows, out], element)?;
        let last = cuda::Epilogue {
            bias: self.bias.as_ref().map(|bias| bias.address),
            activation: epilogue.activation,
            gate: gate.as_ref().map(Factors::gate),
            residual: residual.as_ref().map(Tensor::rows),
            squares: None,
        };
        // SAFETY: all tensors have these extents; the order of the stream keeps them.
        kernel(unsafe { gpu.gemm.run(&gpu.stream, &operands, inner, &last, y.rows(), element) })?;
        Ok(y)
    }
}

/// A linear layer's input in the form that its product reads.
pub(super) enum Operand {
    /// bf16, or sums of two bf16 numbers, as wide as the weight.
    Rows(Tensor),
    Quantised(Quantised),
}

impl Operand {
    /// Returns the number of rows.
    fn rows(&self) -> usize {
        match self {
            Self::Rows(x) => x.shape[0],
            Self::Quantised(Quantised { values, .. }) => values.shape[0],
        }
    }

    /// Returns some of the rows.
    fn part(&self, first: usize, rows: usize) -> Self {
        match self {
            Self::Rows(x) => Self::Rows(x.slice(0, first, rows)),
            Self::Quantised(Quantised { values, scales }) => Self::Quantised(Quantised {
                values: values.slice(0, first, rows),
                scales: scales.slice(0, first, rows),
            }),
        }
    }
}

/// Returns how many rows of a product of so many columns are computed at a time: whole tiles of `[down, across]` elements, of
/// which `at_once` run at a time, so that the last wave leaves as few multiprocessors idle as possible.
fn band(rows: usize, columns: usize, ([down, across], at_once): ([usize; 2], usize)) -> usize {
    if rows <= BAND {
        return rows;
    }
    let across = columns.div_ceil(across);
    let idle = |tiles: usize| {
        let tiles = tiles * across;
        (tiles.next_multiple_of(at_once) - tiles) as f64 / tiles as f64
    };
    let bands = (1..=BAND / down).rev();
    bands.min_by(|a, b| idle(*a).total_cmp(&idle(*b))).map_or(rows, |tiles| tiles * down)
}

/// Returns a gate as the kernel takes it.
enum Factors {
    Columns(Tensor),
    Elements(Tensor),
}

impl Factors {
    fn gate(&self) -> Gate {
        match self {
            Self::Columns(factors) => Gate::Columns(factors.address),
            Self::Elements(factors) => Gate::Elements(factors.rows()),
        }
    }
}

impl Gpu {
    /// Checks that this GPU has kernels for layers of this form.
    ///
    /// # Errors
    /// Returns [`Error::Device`] for e4m3 on a GPU that does not know it.
    pub fn check_form(&self, form: Form) -> Result<()> {
        if form != Form::Fp8 || self.card.support().e4m3 {
            return Ok(());
        }
        let ((major, minor), name) = (self.card.capability(), self.context.name().map_err(device)?);
        Err(Error::Device(format!(
            "the GPU `{name}` (compute capability {major}.{minor}) cannot multiply in e4m3, which precision `fp8` needs; \
             write `int8` or `bf16` in the profile, or use a GPU of compute capability 8.9 (RTX 40 series) or newer"
        )))
    }

    fn gate(&self, gate: &Tensor, rows: usize, out: usize) -> Result<Factors> {
        if gate.elements() == out {
            return Ok(Factors::Columns(self.vector(gate, out)?));
        }
        if gate.shape != [rows, out] {
            return Err(Error::Internal(format!("a gate that is neither [{out}] nor [{rows}, {out}]")));
        }
        Ok(Factors::Elements(self.rows(gate, Element::Bf16)?))
    }

    /// Returns `a + b` in the type of `a`.
    fn add(&self, a: &Tensor, b: &Tensor) -> Result<Tensor> {
        if a.shape != b.shape {
            return Err(Error::Internal(format!("cannot add {:?} to {:?}", b.shape, a.shape)));
        }
        let (a, b) = (self.dense(a, a.element)?, self.dense(b, a.element)?);
        let y = self.row_major(&a.shape, a.element)?;
        self.sum(&[(1.0, &a), (1.0, &b)], &y, y.elements())?;
        Ok(y)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bands_fill_the_multiprocessors() {
        // 14 rows of 54 tiles are 5.9 waves of an RTX 4090; 6 are 4.9 of the 66 clusters of an H200, and 5 are 6.9 of an H20's 39.
        assert_eq!(band(32_760, 13_824, ([128, 256], 128)), 14 * 128);
        assert_eq!(band(32_760, 13_824, ([256, 256], 66)), 6 * 256);
        assert_eq!(band(32_760, 13_824, ([256, 256], 39)), 5 * 256);
        let sync = [1, 46, 82, 108, 128, 170].map(|at_once| (128, at_once));
        for (down, at_once) in sync.into_iter().chain([57, 66].map(|at_once| (256, at_once))) {
            let rows = band(32_760, 13_824, ([down, 256], at_once));
            assert!(rows.is_multiple_of(down) && (down..=BAND).contains(&rows));
            let tiles = rows / down * 54;
            let waves = tiles.div_ceil(at_once);
            let idle = waves * at_once - tiles;
            // All bands of the 57 clusters of an H100 with PCIe leave one in nineteen idle.
            assert!(19 * idle <= waves * at_once, "{at_once}: {rows} rows, {idle} idle");
        }
        assert_eq!(band(1, 13_824, ([128, 256], 128)), 1);
        assert_eq!(band(2048, 512, ([128, 256], 4)), 2048);
    }
}
