//! Linear layers: every type of weight, every epilogue.

use super::{BF16, Both, Check, Cuda, FP8, Options, Pair, ROUNDED, SPLIT, noise, with};
use crate::Result;
use crate::backend::sequence::{Activation, Epilogue, Role};
use crate::backend::{Backend, SequenceOps};
use crate::profile::Weights;
use crate::weights::{Component, DType, HostTensor, Matrix, Scale, e4m3};

pub(super) fn check(check: &Check) -> Result<()> {
    let types = [DType::F32, DType::F16, DType::Bf16, DType::F8E4m3];
    let (compute, full) = (Role::Bulk, Role::Sensitive);
    let cuda = check.open(&Options::BF16)?;
    let one = Layers { check, cuda: &cuda, operation: "linear, bf16", role: compute, tolerance: BF16 };
    for dtype in types {
        one.run(dtype, 3, 40, &[24, 16])?;
    }
    one.run(DType::Bf16, 1, 16, &[8])?;
    one.run(DType::F32, 130, 588, &[264])?;

    let one = Layers { operation: "linear, split f32", role: full, tolerance: SPLIT, ..one };
    for dtype in types {
        one.run(dtype, 3, 40, &[24, 16])?;
    }
    one.run(DType::F32, 17, 588, &[160])?;
    one.run(DType::F32, 1, 256, &[64])?;

    let cuda = check.open(&with(Weights::Fp8))?;
    let one = Layers { check, cuda: &cuda, operation: "linear, fp8", role: compute, tolerance: FP8 };
    for dtype in types {
        one.run(dtype, 5, 64, &[24, 16])?;
    }
    one.run(DType::Bf16, 130, 272, &[136])?;
    // Too odd for 8 bits.
    let bf16 = Layers { operation: "linear, bf16", tolerance: BF16, ..one };
    bf16.run(DType::F32, 4, 40, &[8])?;
    // Each network has its own type.
    let [t5, dit] = [Component::T5, Component::Dit].map(|component| cuda.loading(component));
    Layers { cuda: &t5, ..bf16 }.run(DType::F32, 3, 64, &[16])?;
    let split = Layers { operation: "linear, split f32", role: full, tolerance: SPLIT, ..bf16 };
    Layers { cuda: &dit, ..split }.run(DType::F32, 3, 64, &[16])
}

/// A weight `[rows, cols]` as it lies in files.
pub(super) fn weight(rows: usize, cols: usize, dtype: DType, seed: u64) -> Matrix<'static> {
    let values = noise(rows * cols, seed);
    let bytes: Vec<u8> = match dtype {
        DType::F32 => values.iter().flat_map(|v| v.to_le_bytes()).collect(),
        DType::F16 => values.iter().flat_map(|v| half::f16::from_f32(*v).to_le_bytes()).collect(),
        DType::Bf16 => values.iter().flat_map(|v| half::bf16::from_f32(*v).to_le_bytes()).collect(),
        DType::F8E4m3 => values.iter().map(|v| e4m3::encode(448.0 * v)).collect(),
    };
    let scales = || (0..rows).map(|i| (1 + i % 5) as f32 / 448.0).collect();
    let scale = (dtype == DType::F8E4m3).then(|| match seed % 2 {
        0 => Scale::PerTensor(1.0 / 448.0),
        _ => Scale::PerRow(scales()),
    });
    Matrix { rows, cols, dtype, bytes: bytes.into(), scale }
}

pub(super) fn bias(len: usize, seed: u64) -> HostTensor {
    HostTensor { shape: vec![len], data: noise(len, seed) }
}

/// Layers of one kind.
#[derive(Clone, Copy)]
struct Layers<'a> {
    check: &'a Check,
    cuda: &'a Cuda,
    operation: &'static str,
    role: Role,
    tolerance: f64,
}

impl Layers<'_> {
    /// Layers side by side, with every epilogue.
    fn run(&self, dtype: DType, rows: usize, cols: usize, outs: &[usize]) -> Result<()> {
        let both = Both::new(self.check, self.cuda);
        let layers: Vec<_> = outs
            .iter()
            .enumerate()
            .map(|(i, &out)| (weight(out, cols, dtype, i as u64), (i == 0).then(|| bias(out, 7))))
            .collect();
        let on_cpu = both.cpu.load_linear(&layers, self.role)?;
        let on_cuda = self.cuda.load_linear(&layers, self.role)?;
        let out: usize = outs.iter().sum();
        let x = both.noise(&[rows, cols], 11)?;
        let (column, element) = (both.noise(&[1, out], 12)?, both.noise(&[rows, out], 13)?);
        let residual = both.noise(&[rows, out], 14)?;
        for (name, activation, gate, residual) in [
            ("plain", Activation::None, None, None),
            ("silu", Activation::Silu, None, None),
            ("gelu, gate by element", Activation::GeluTanh, Some(&element), None),
            ("erf, gate by column", Activation::GeluErf, Some(&column), None),
            ("gate and residual", Activation::None, Some(&column), Some(&residual)),
            ("silu and residual", Activation::Silu, None, Some(&residual)),
        ] {
            let cpu = Epilogue { activation, gate: gate.map(|g| &g.cpu), residual: residual.map(|r| &r.cpu) };
            let gpu =
                Epilogue { activation, gate: gate.map(|g| &g.cuda), residual: residual.map(|r| &r.cuda) };
            let result = Pair {
                cpu: both.cpu.linear(&x.cpu, &on_cpu, &cpu)?,
                cuda: self.cuda.linear(&x.cuda, &on_cuda, &gpu)?,
            };
            // A gate for each element is rounded to bf16.
            let by_element = gate.is_some_and(|g| g.cpu.dims() == [rows, out]);
            let tolerance = if by_element { self.tolerance.max(ROUNDED) } else { self.tolerance };
            let case = format!("{rows}x{cols}x{out}, weights {}, {name}", dtype.name());
            both.compare(self.operation, case, &result, tolerance)?;
        }
        Ok(())
    }
}
