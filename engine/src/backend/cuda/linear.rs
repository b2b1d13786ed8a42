//! Linear layers: products in bf16, in 8 bits, or, for the sensitive ones, of sums of two bf16 numbers.

use animd_kernels::cuda::{self, Element, Ending, Gate, Operands, Term};

use super::deferred::Quantised;
use super::loading::{Destination, Staging};
use super::tensor::{Tensor, Value, View};
use super::{Gpu, kernel, take};
use crate::backend::sequence::{Activation, Epilogue};
use crate::profile::Weights;
use crate::weights::{HostTensor, Matrix};
use crate::{Error, Result};

/// Columns that the row kernels take.
const MOST_COLUMNS: usize = 16_384;

/// A linear layer's weight and bias on the GPU.
pub struct Linear {
    form: Form,
    weight: View,
    /// Of 8-bit weights, `[outputs]`: what each row is to be multiplied with.
    scale: Option<View>,
    bias: Option<View>,
    /// Features of the input; the weight's are filled up with zeros to whole pieces of 16 bytes.
    inputs: usize,
    outputs: usize,
    /// The type of the result.
    result: Element,
}

/// How a layer is computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    /// bf16 by bf16.
    Bf16,
    /// e4m3 by e4m3, a scale for each row of both.
    Fp8,
    /// Sums of two bf16 numbers, as near to f32 as 16 bits: three times as wide.
    Split,
}

impl Form {
    /// For weights of this type.
    pub fn of(weights: Weights) -> Self {
        match weights {
            Weights::Bf16 => Self::Bf16,
            Weights::Fp8 => Self::Fp8,
            Weights::Fp32 => Self::Split,
        }
    }
}

impl Linear {
    /// Takes layers of one input to the device, side by side.
    pub(super) fn load(
        gpu: &Gpu,
        staging: &Staging,
        layers: &[(Matrix<'_>, Option<HostTensor>)],
        form: Form,
        result: Element,
    ) -> Result<Self> {
        let Some((first, _)) = layers.first() else {
            return Err(Error::Internal("a linear layer needs a weight".into()));
        };
        let inputs = first.cols;
        let outputs: usize = layers.iter().map(|(matrix, _)| matrix.rows).sum();
        for (matrix, bias) in layers {
            if matrix.cols != inputs || matrix.bytes.len() != matrix.rows * inputs * matrix.dtype.size() {
                return Err(Error::Internal(format!("a weight that is not [{}, {inputs}]", matrix.rows)));
            }
            if bias.as_ref().is_some_and(|b| b.data.len() != matrix.rows) {
                return Err(Error::Internal(format!("a bias that has not {} elements", matrix.rows)));
            }
        }
        if inputs == 0 || !outputs.is_multiple_of(8) {
            return Err(Error::Internal(format!(
                "a linear layer of {outputs} features from {inputs}: the GPU computes multiples of 8"
            )));
        }
        // What the 8-bit kernels do not take is computed in bf16.
        let form = match form {
            Form::Fp8 if !inputs.is_multiple_of(16) || inputs > MOST_COLUMNS => Form::Bf16,
            form => form,
        };
        let arena = &gpu.weights;
        let padded = inputs.next_multiple_of(8);
        let (element, columns) = match form {
            Form::Bf16 => (Element::Bf16, padded),
            Form::Fp8 => (Element::E4m3, inputs),
            Form::Split => (Element::Bf16, 3 * padded),
        };
        let weight = take(arena, outputs * columns, element, &[outputs, columns])?;
        let scale = match form {
            Form::Fp8 => Some(take(arena, outputs, Element::F32, &[outputs])?),
            _ => None,
        };
        let mut row = 0;
        for (matrix, _) in layers {
            Destination { gpu, staging, weight: &weight, scale: scale.as_ref(), row }.load(matrix, form)?;
            row += matrix.rows;
        }
        let bias = layers.iter().any(|(_, bias)| bias.is_some()).then(|| -> Vec<f32> {
            let zeros = |rows| HostTensor { shape: vec![rows], data: vec![0.0; rows] };
            layers.iter().flat_map(|(m, b)| b.clone().unwrap_or_else(|| zeros(m.rows)).data).collect()
        });
        let bias = bias.map(|bias| gpu.upload_to(arena, &bias, &[outputs])).transpose()?;
        Ok(Self { form, weight, scale, bias, inputs, outputs, result })
    }

    /// `residual + gate * activation(x W^T + b)`.
    pub(super) fn forward(&self, gpu: &Gpu, x: &Tensor, epilogue: &Epilogue<'_, Tensor>) -> Result<Tensor> {
        let [rows, columns] = *x.extents() else {
            return Err(Error::Internal(format!("{:?} is no input of a linear layer", x.extents())));
        };
        if columns != self.inputs || rows == 0 {
            return Err(Error::Internal(format!(
                "[{rows}, {columns}] for a layer of {} features",
                self.inputs
            )));
        }
        // The kernel has an activation or a residual.
        if epilogue.activation != Activation::None
            && let Some(residual) = epilogue.residual
        {
            let inner = Epilogue { activation: epilogue.activation, gate: epilogue.gate, residual: None };
            let inner = self.forward(gpu, x, &inner)?;
            return gpu.add(residual, &inner);
        }

        // Before the result has memory: the input may be an attention that nobody has computed yet.
        let b = self.weight.rows();
        let (operands, inner, _input) = match self.form {
            Form::Bf16 => {
                let x = gpu.filled_up(gpu.rows(x, Element::Bf16)?, self.weight.shape[1])?;
                (Operands::Bf16 { a: x.rows(), b }, self.weight.shape[1], Input::View(x))
            }
            Form::Split => {
                let x = gpu.filled_up(gpu.rows(x, Element::F32)?, self.weight.shape[1] / 3)?;
                let split = gpu.matrix([rows, self.weight.shape[1]], Element::Bf16)?;
                // SAFETY: the views have these extents; the order of the stream keeps them.
                kernel(unsafe { gpu.norms.split(&gpu.stream, x.rows(), split.rows(), false, x.shape[1]) })?;
                (Operands::Bf16 { a: split.rows(), b }, self.weight.shape[1], Input::View(split))
            }
            Form::Fp8 => {
                let x = gpu.quantised(x)?;
                let scale = self.scale.as_ref().map_or(0, |scale| scale.address);
                let fast = gpu.fast_sums;
                let operands = Operands::E4m3 { a: x.rows, a_scale: x.scale, b, b_scale: scale, fast };
                (operands, self.inputs, Input::Quantised(x))
            }
        };

        let out = self.outputs;
        let gate = epilogue.gate.map(|gate| gpu.gate(gate, rows, out)).transpose()?;
        let residual = epilogue.residual.map(|residual| gpu.any_rows(residual)).transpose()?;
        if residual.as_ref().is_some_and(|r| r.shape != [rows, out]) {
            return Err(Error::Internal(format!("a residual that is not [{rows}, {out}]")));
        }
        let element = match &residual {
            Some(residual) => residual.element,
            // What is a single row becomes a modulation or a gate, which kernels read as f32.
            None if rows == 1 => Element::F32,
            None => self.result,
        };
        let y = gpu.matrix([rows, out], element)?;
        let ending = Ending {
            bias: self.bias.as_ref().map(|bias| bias.address),
            activation: match epilogue.activation {
                Activation::None => cuda::Activation::None,
                Activation::Silu => cuda::Activation::Silu,
                Activation::GeluTanh => cuda::Activation::GeluTanh,
                Activation::GeluErf => cuda::Activation::GeluErf,
            },
            gate: gate.as_ref().map(Factors::gate),
            residual: residual.as_ref().map(View::rows),
        };
        // SAFETY: all views have these extents, and pieces are given back in the order of the stream.
        kernel(unsafe { gpu.gemm.run(&gpu.stream, &operands, inner, &ending, y.rows(), element) })?;
        Ok(y.into())
    }
}

/// Keeps a product's input while it is launched.
enum Input {
    View(#[expect(dead_code, reason = "kept, not read")] View),
    Quantised(#[expect(dead_code, reason = "kept, not read")] Quantised),
}

/// A gate as the kernel takes it, with its memory.
enum Factors {
    Columns(View),
    Elements(View),
}

impl Factors {
    fn gate(&self) -> Gate {
        match self {
            Self::Columns(view) => Gate::Columns(view.address),
            Self::Elements(view) => Gate::Elements(view.rows()),
        }
    }
}

impl Gpu {
    fn gate(&self, gate: &Tensor, rows: usize, out: usize) -> Result<Factors> {
        let elements: usize = gate.extents().iter().product();
        if elements == out {
            return Ok(Factors::Columns(self.vector(gate, out)?));
        }
        if gate.extents() != [rows, out] {
            return Err(Error::Internal(format!("a gate that is neither [{out}] nor [{rows}, {out}]")));
        }
        Ok(Factors::Elements(self.rows(gate, Element::Bf16)?))
    }

    /// `a + b` in the type of `a`.
    fn add(&self, a: &Tensor, b: &Tensor) -> Result<Tensor> {
        let a = self.view(a)?;
        if a.shape != b.extents() {
            return Err(Error::Internal(format!("cannot add {:?} to {:?}", b.extents(), a.shape)));
        }
        let (element, shape) = (a.element, a.shape.clone());
        let (a, b) = (self.dense(&a.into(), element)?, self.dense(b, element)?);
        let y = self.row_major(&shape, element)?;
        let term = |view: &View| Term { address: view.address, element, factor: 1.0 };
        // SAFETY: all views have as many elements; the order of the stream keeps them.
        kernel(unsafe {
            let terms = [term(&a), term(&b)];
            self.volumes.combine(&self.stream, &terms, y.address, element, y.elements())
        })?;
        Ok(y.into())
    }

    /// A matrix with zeros after its columns, up to so many.
    fn filled_up(&self, x: View, columns: usize) -> Result<View> {
        if x.shape[1] == columns {
            return Ok(x);
        }
        let wide = self.matrix([x.shape[0], columns], x.element)?;
        self.clear(wide.address, x.shape[0] * wide.strides[0] * x.element.bytes())?;
        self.copy(&x, &wide.slice(1, 0, x.shape[1]))?;
        Ok(wide)
    }

    /// Rows in 8 bits: of a norm as it writes them, of anything else by rounding it.
    fn quantised(&self, x: &Tensor) -> Result<Quantised> {
        if let Value::Deferred(deferred) = &x.0
            && let Some(quantised) = deferred.quantised(self)?
        {
            return Ok(quantised);
        }
        let x = match &x.0 {
            Value::Deferred(_) => self.rows(x, Element::Bf16)?,
            Value::View(_) => self.any_rows(x)?,
        };
        let made = Quantised::new(self, x.shape[0], x.shape[1])?;
        // SAFETY: both have these extents; the order of the stream keeps them.
        kernel(unsafe { self.norms.quantize(&self.stream, x.typed(), made.typed(), x.shape[1]) })?;
        Ok(made)
    }
}
