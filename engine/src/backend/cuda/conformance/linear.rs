//! Linear layers: every type of weight, every epilogue.

use super::{
    BF16, Both, Check, FP8, IN_BF16, IN_FP8, IN_INT8, INT8, Options, Pair, ROUNDED, SIMULATED, SPLIT,
    distance, noise,
};
use crate::Result;
use crate::backend::loading::Role;
use crate::backend::sequence::{Activation, Epilogue};
use crate::backend::{Keeping, SequenceOps, TensorOps};
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

    if cuda.has_fp8() {
        let fp8 = Layers { both: &in_fp8, operation: "linear, fp8", tolerance: FP8, ..bf16 };
        for dtype in types {
            fp8.run(dtype, 5, 64, &[24, 16])?;
        }
        fp8.run(DType::Bf16, 130, 272, &[136])?;
        fp8.gated(9, 64, 24)?;
    }
    let in_int8 = both(IN_INT8).simulating_int8();
    let int8 = Layers { both: &in_int8, operation: "linear, int8", tolerance: SIMULATED, ..bf16 };
    for dtype in types {
        int8.run(dtype, 5, 256, &[24, 16])?;
    }
    int8.run(DType::Bf16, 130, 768, &[136])?;
    int8.run(DType::F32, 1, 1024, &[264])?;
    int8.run(DType::Bf16, 131, 512, &[256, 8])?;
    int8.gated(9, 256, 24)?;
    sharp(&in_int8, &both(IN_INT8))?;
    // These sizes do not suit the 8-bit kernels.
    Layers { both: &in_fp8, ..bf16 }.run(DType::F32, 4, 40, &[8])?;
    Layers { both: &in_int8, ..bf16 }.run(DType::F32, 4, 272, &[8])?;
    for (keeping, tolerance) in [(IN_BF16, BF16), (IN_FP8, FP8), (Keeping::F32, SPLIT)] {
        if keeping != IN_FP8 || cuda.has_fp8() {
            // The first layer's error is in what the second one reads, and the rows between them are rounded once more.
            feed_forwards(&both(keeping), 2f64.sqrt() * tolerance + ROUNDED)?;
        }
    }
    // The rows between the layers are rounded to bf16 before they become int8: 0.05 units, where the largest of a row are 4
    // deviations and 127 units. So 0.04 of them are rounded to a neighbour, and the root of that is 6.5e-3 of a deviation.
    feed_forwards(&in_int8, 8e-3)?;
    // Sensitive layers do not have the network's type.
    Layers { both: &in_fp8, ..split }.run(DType::F32, 3, 64, &[16])?;
    Layers { both: &both(Keeping::F32), role: Role::Bulk, ..split }.run(DType::F32, 3, 64, &[16])
}

/// Checks layers in int8 whose inputs and weights have a few columns much larger than the others: the error against f32 may
/// be 1.15 times that of a simulation.
fn sharp(simulated: &Both<'_>, exact: &Both<'_>) -> Result<()> {
    let (rows, cols, out) = (67, 1280, 136);
    for (peak, width) in [(5.0, 32), (30.0, 32), (100.0, 256)] {
        let sharpen = |values: Vec<f32>, every: usize, at: usize| -> Vec<f32> {
            let column = |i: usize| if i % cols % every == at { peak } else { 1.0 };
            values.into_iter().enumerate().map(|(i, v)| v * column(i)).collect()
        };
        let bytes =
            sharpen(noise(out * cols, 21), 3 * width, 7).iter().flat_map(|v| v.to_le_bytes()).collect();
        let layers = || vec![(Matrix::plain(out, cols, DType::F32, Vec::clone(&bytes)), None)];
        let x = simulated.upload(&sharpen(noise(rows * cols, 22), width, 5), &[rows, cols])?;
        let result = |both: &Both<'_>| -> Result<Pair> {
            let layer = both.load(layers(), Role::Bulk)?;
            both.linear(x.plain(), &layer, Activation::None, [None; 2])
        };
        let (simulation, given) = (result(simulated)?, result(exact)?);
        let want = exact.cpu.download(&given.cpu)?;
        let apart = distance(&simulated.cpu.download(&simulation.cpu)?, &want);
        let case = format!("{rows}x{cols}x{out}, columns of {peak}; a simulation: {apart:.2e}");
        exact.compare("linear, int8, sharp inputs", case, &given, 1.15 * apart)?;
    }
    // Without large columns, the error is what rounding to 1/127 of the largest adds up to.
    let plain =
        Layers { both: exact, operation: "linear, int8, against f32", role: Role::Bulk, tolerance: INT8 };
    plain.run(DType::Bf16, 33, 1280, &[264])
}

/// Checks two layers with an activation between them, with more rows than are computed at a time.
fn feed_forwards(both: &Both<'_>, tolerance: f64) -> Result<()> {
    for (rows, width, inner) in [(5, 64, 144), (33, 256, 512), (2200, 16, 256)] {
        let layer = |outputs, inputs, seed| {
            let weight = weight(outputs, inputs, DType::Bf16, seed);
            both.load(vec![(weight, Some(bias(outputs, seed + 1)))], Role::Bulk)
        };
        let (up, down) = (layer(inner, width, 31)?, layer(width, inner, 33)?);
        let x = both.noise(&[rows, width], 35)?;
        let (gate, residual) = (both.noise(&[1, width], 36)?, both.noise(&[rows, width], 37)?);
        for (name, activation, gate, residual) in [
            ("gelu", Activation::GeluTanh, None, None),
            ("erf, gate and residual", Activation::GeluErf, Some(&gate), Some(&residual)),
            ("silu, residual", Activation::Silu, None, Some(&residual)),
        ] {
            let (cpu, cuda) = (&both.cpu, both.cuda);
            let on_cpu = Epilogue {
                gate: gate.map(|g| &g.cpu),
                residual: residual.map(|r| &r.cpu),
                ..Epilogue::default()
            };
            let on_cuda = Epilogue {
                gate: gate.map(|g| &g.cuda),
                residual: residual.map(|r| &r.cuda),
                ..Epilogue::default()
            };
            let result = Pair {
                cpu: cpu.feed_forward(x.plain().cpu, [&up.cpu, &down.cpu], activation, &on_cpu)?,
                cuda: cuda.feed_forward(x.plain().cuda, [&up.cuda, &down.cuda], activation, &on_cuda)?,
            };
            let case = format!("{rows}x{width}x{inner}, {name}");
            both.compare("feed-forward", case, &result, tolerance)?;
        }
    }
    Ok(())
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
