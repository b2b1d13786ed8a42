//! Linear layers: every type of weight, every epilogue.

use super::{BF16, Both, Check, FP8, IN_BF16, IN_FP8, Options, Pair, ROUNDED, SPLIT, noise};
use crate::Result;
use crate::backend::loading::Role;
use crate::backend::sequence::Activation;
use crate::backend::{Keeping, SequenceOps};
use crate::weights::{DType, Encoding, Granularity, HostTensor, Matrix, e4m3};

pub(super) fn check(check: &Check) -> Result<()> {
    let types = [DType::F32, DType::F16, DType::Bf16, DType::F8E4m3];
    let cuda = check.open(&Options::default())?;
    let both = |keeping: Keeping| Both::new(check, &cuda, keeping);
    let (in_bf16, in_fp8) = (both(IN_BF16), both(IN_FP8));
    let bf16 = Layers { both: &in_bf16, operation: "linear, bf16", role: Role::Bulk, tolerance: BF16 };
    for dtype in types {
        bf16.run(dtype, 3, 40, &[24, 16])?;
    }
    bf16.run(DType::Bf16, 1, 16, &[8])?;
    bf16.run(DType::F32, 130, 588, &[264])?;
    bf16.gated(9, 40, 24)?;
    bf16.gated(1, 40, 24)?;

    let split = Layers { operation: "linear, split f32", role: Role::Sensitive, tolerance: SPLIT, ..bf16 };
    for dtype in types {
        split.run(dtype, 3, 40, &[24, 16])?;
    }
    split.run(DType::F32, 17, 588, &[160])?;
    split.run(DType::F32, 1, 256, &[64])?;

    let fp8 = Layers { both: &in_fp8, operation: "linear, fp8", tolerance: FP8, ..bf16 };
    for dtype in types {
        fp8.run(dtype, 5, 64, &[24, 16])?;
    }
    fp8.run(DType::Bf16, 130, 272, &[136])?;
    fp8.gated(9, 64, 24)?;
    // These sizes do not suit the 8-bit kernels.
    Layers { both: &in_fp8, ..bf16 }.run(DType::F32, 4, 40, &[8])?;
    // Sensitive layers do not have the network's type.
    Layers { both: &in_fp8, ..split }.run(DType::F32, 3, 64, &[16])?;
    Layers { both: &both(Keeping::F32), role: Role::Bulk, ..split }.run(DType::F32, 3, 64, &[16])
}

/// Returns a weight `[rows, cols]` as it is stored in files.
pub(super) fn weight(rows: usize, cols: usize, dtype: DType, seed: u64) -> Matrix<'static> {
    let values = noise(rows * cols, seed);
    let bytes: Vec<u8> = match dtype {
        DType::F32 => values.iter().flat_map(|v| v.to_le_bytes()).collect(),
        DType::F16 => values.iter().flat_map(|v| half::f16::from_f32(*v).to_le_bytes()).collect(),
        DType::Bf16 => values.iter().flat_map(|v| half::bf16::from_f32(*v).to_le_bytes()).collect(),
        DType::F8E4m3 => values.iter().map(|v| e4m3::encode(448.0 * v)).collect(),
        _ => unreachable!("no weight is {}", dtype.name()),
    };
    if dtype != DType::F8E4m3 {
        return Matrix::plain(rows, cols, dtype, bytes);
    }
    let (by, scales) = match seed % 2 {
        0 => (Granularity::Tensor, vec![1.0 / 448.0]),
        _ => (Granularity::Row, (0..rows).map(|i| (1 + i % 5) as f32 / 448.0).collect()),
    };
    Matrix { rows, cols, encoding: Encoding::Scaled { dtype, by }, bytes: bytes.into(), scales }
}

pub(super) fn bias(len: usize, seed: u64) -> HostTensor {
    HostTensor { shape: vec![len], data: noise(len, seed) }
}

/// Checks layers of one kind.
#[derive(Clone, Copy)]
struct Layers<'a> {
    both: &'a Both<'a>,
    operation: &'static str,
    role: Role,
    tolerance: f64,
}

impl Layers<'_> {
    /// Checks layers side by side, with every epilogue.
    fn run(&self, dtype: DType, rows: usize, cols: usize, outs: &[usize]) -> Result<()> {
        let both = self.both;
        let layers = outs
            .iter()
            .enumerate()
            .map(|(i, &out)| (weight(out, cols, dtype, i as u64), (i == 0).then(|| bias(out, 7))));
        let layer = both.load(layers.collect(), self.role)?;
        let out: usize = outs.iter().sum();
        let x = both.noise(&[rows, cols], 11)?;
        let (gate, residual) = (both.noise(&[1, out], 12)?, both.noise(&[rows, out], 14)?);
        for (name, activation, gate, residual) in [
            ("plain", Activation::None, None, None),
            ("silu", Activation::Silu, None, None),
            ("gelu", Activation::GeluTanh, None, None),
            ("erf, gate by column", Activation::GeluErf, Some(&gate), None),
            ("gate and residual", Activation::None, Some(&gate), Some(&residual)),
            ("silu and residual", Activation::Silu, None, Some(&residual)),
        ] {
            let result = both.linear(x.plain(), &layer, activation, [gate, residual])?;
            let case = format!("{rows}x{cols}x{out}, weights {}, {name}", dtype.name());
            both.compare(self.operation, case, &result, self.tolerance)?;
        }
        Ok(())
    }

    /// Checks a gated linear unit.
    fn gated(&self, rows: usize, cols: usize, out: usize) -> Result<()> {
        let both = self.both;
        let load = |seed| both.load(vec![(weight(out, cols, DType::F32, seed), None)], self.role);
        let (gate, up) = (load(1)?, load(2)?);
        let x = both.noise(&[rows, cols], 11)?;
        for (name, activation) in [("gelu", Activation::GeluTanh), ("silu", Activation::Silu)] {
            let (cpu, cuda) = (&both.cpu, both.cuda);
            let result = Pair {
                cpu: cpu.gated_linear(x.plain().cpu, &gate.cpu, &up.cpu, activation)?,
                cuda: cuda.gated_linear(x.plain().cuda, &gate.cuda, &up.cuda, activation)?,
            };
            // Both factors have the error of a layer, and the factor that is a gate is rounded to bf16.
            let tolerance = 2f64.sqrt() * self.tolerance + ROUNDED;
            both.compare("gated linear unit", format!("{rows}x{cols}x{out}, {name}"), &result, tolerance)?;
        }
        Ok(())
    }
}
