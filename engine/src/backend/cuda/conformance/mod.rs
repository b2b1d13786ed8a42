//! Compares each operation on a GPU with the CPU's result, which counts as right, at awkward sizes.
//!
//! Memory is poisoned: a read of unwritten memory shows as NaN.

mod attention;
mod linear;
mod moves;
mod norms;
mod volumes;

use std::cell::RefCell;

use serde::Serialize;

use super::{Cuda, Options};
use crate::Result;
use crate::backend::cpu::{Cpu, Rounding};
use crate::backend::loading::{LinearWeights, Role};
use crate::backend::sequence::{Activation, Epilogue, Input};
use crate::backend::{Backend, Keeping, Loader, SequenceOps, TensorOps};
use crate::progress::Observer;
use crate::weights::{HostTensor, Matrix};
use animd_protocol::profile::Precision;

/// The bytes of work memory.
const WORK: usize = 64 << 20;

/// The tolerance of products of sums of two bf16 numbers: 2^-16, and the rounding of f32 sums.
const SPLIT: f64 = 3e-5;
/// The tolerance of a result rounded to bf16 once, which is 1.7e-3 in the root mean square.
const ROUNDED: f64 = 2e-3;
/// The tolerance of both operands and the result rounded to bf16: the root of three times that, and a margin.
const BF16: f64 = 4e-3;
/// The tolerance of queries, keys, values, weights and result rounded to bf16.
const ATTENTION: f64 = 6e-3;
/// The tolerance of both operands rounded to e4m3, by 0.026 in the root mean square.
const FP8: f64 = 0.045;
/// The tolerance of the result of a layer in int8 against a simulation of it: one rounding to bf16; and where an operand
/// differs in its last bit, it may be rounded to int8 the other way.
const SIMULATED: f64 = 2.5e-3;
/// The tolerance of both operands rounded to int8: by 1/127 of a row's largest value over the root of 12, which is up to 4
/// deviations of rotated rows; the root of two times that.
const INT8: f64 = 0.0145;

/// A group of operations.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Group {
    /// Parts, wholes, sums, patches: what only moves values
    Moves,
    /// Linear layers, in bf16, in both types of 8 bits and as near to f32 as 16 bits
    Linear,
    /// Layer norms and RMS norms, with the rotary embedding
    Norms,
    /// Attention, in bf16 and in 8 bits
    Attention,
    /// Convolutions, the VAE's norm and attention, fading tiles
    Volumes,
}

impl Group {
    /// All groups.
    pub const ALL: [Self; 5] = [Self::Moves, Self::Linear, Self::Norms, Self::Attention, Self::Volumes];
}

/// The error of one result.
#[derive(Clone, Debug, Serialize)]
pub struct Finding {
    /// The operation and its form.
    pub operation: &'static str,
    /// The sizes.
    pub case: String,
    /// Relative L2 distance.
    pub error: f64,
    /// The largest difference, relative to the largest value.
    pub most: f64,
    /// The relative L2 distance that the roundings add up to.
    pub tolerance: f64,
    /// Returns whether the distance is within the allowed one.
    pub passed: bool,
}

/// Runs groups on the GPU of this number, by the kernels of its own compute capability or of an older one (major, minor).
///
/// # Errors
/// Returns the error that keeps the GPU from being opened or an operation from running; [`crate::Error::Canceled`].
pub fn run(
    ordinal: usize,
    capability: Option<(u32, u32)>,
    groups: &[Group],
    observer: &dyn Observer,
) -> Result<Vec<Finding>> {
    let check = Check { ordinal, capability, findings: RefCell::default() };
    for group in groups {
        observer.check()?;
        match group {
            Group::Moves => moves::check(&check)?,
            Group::Linear => linear::check(&check)?,
            Group::Norms => norms::check(&check)?,
            Group::Attention => attention::check(&check)?,
            Group::Volumes => volumes::check(&check)?,
        }
    }
    Ok(check.findings.into_inner())
}

/// The state of a running check.
struct Check {
    ordinal: usize,
    capability: Option<(u32, u32)>,
    findings: RefCell<Vec<Finding>>,
}

impl Check {
    fn open(&self, options: &Options) -> Result<Cuda> {
        let options = Options { poison: true, capability: self.capability, ..*options };
        Cuda::open(self.ordinal, &options, 0, WORK)
    }
}

/// Weights in bf16, except for the sensitive ones.
const IN_BF16: Keeping = Keeping { weights: Precision::Bf16, ..Keeping::F32 };
/// Weights with large matrices in 8 bits.
const IN_FP8: Keeping = Keeping { weights: Precision::Fp8, ..Keeping::F32 };
/// Weights with large matrices in rotated whole numbers of 8 bits.
const IN_INT8: Keeping = Keeping { weights: Precision::Int8, ..Keeping::F32 };

/// Returns values without a pattern, about -1 to 1.
pub(super) fn noise(len: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let next = |_| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..len).map(next).collect()
}

/// Returns the relative L2 distance.
pub(super) fn distance(got: &[f32], want: &[f32]) -> f64 {
    let square = |v: f64| v * v;
    let apart: f64 = got.iter().zip(want).map(|(g, w)| square(f64::from(*g) - f64::from(*w))).sum();
    let all: f64 = want.iter().map(|w| square(f64::from(*w))).sum();
    (apart / all.max(1e-30)).sqrt()
}

/// Returns the largest difference, relative to the largest value.
fn most(got: &[f32], want: &[f32]) -> f64 {
    let largest = want.iter().fold(0f64, |largest, w| largest.max(f64::from(w.abs())));
    let apart = got.iter().zip(want).map(|(g, w)| (f64::from(*g) - f64::from(*w)).abs());
    // A difference that is NaN counts as the largest.
    apart.fold(0f64, |most, v| if v > most || v.is_nan() { v } else { most }) / largest.max(1e-30)
}

/// A tensor on both backends.
#[derive(Clone)]
struct Pair {
    cpu: <Cpu as TensorOps>::Tensor,
    cuda: <Cuda as TensorOps>::Tensor,
}

/// A linear layer on both backends.
struct Layer {
    cpu: <Cpu as SequenceOps>::Linear,
    cuda: <Cuda as SequenceOps>::Linear,
}

/// The input of a layer, on both backends.
#[derive(Clone, Copy)]
struct Read<'a> {
    cpu: Input<'a, <Cpu as TensorOps>::Tensor>,
    cuda: Input<'a, <Cuda as TensorOps>::Tensor>,
}

impl Pair {
    fn plain(&self) -> Read<'_> {
        Read { cpu: Input::Plain(&self.cpu), cuda: Input::Plain(&self.cuda) }
    }
}

/// Both backends.
struct Both<'a> {
    check: &'a Check,
    cpu: Cpu,
    cuda: &'a Cuda,
    /// How the GPU stores weights.
    keeping: Keeping,
}

impl<'a> Both<'a> {
    fn new(check: &'a Check, cuda: &'a Cuda, keeping: Keeping) -> Self {
        Self { check, cpu: Cpu::new(), cuda, keeping }
    }

    /// Makes the CPU round the operands of layers to int8, as the GPU does, so that only the roundings after the sums are
    /// different.
    fn simulating_int8(self) -> Self {
        Self { cpu: Cpu { simulate: Some(Rounding::Int8) }, keeping: IN_INT8, ..self }
    }

    fn load(&self, layers: Vec<(Matrix<'_>, Option<HostTensor>)>, role: Role) -> Result<Layer> {
        let weights = LinearWeights::new(layers)?;
        Ok(Layer {
            cpu: self.cpu.loader(Keeping::F32).linear(&weights, role)?,
            cuda: self.cuda.loader(self.keeping).linear(&weights, role)?,
        })
    }

    /// Checks a layer with its epilogue.
    fn linear(
        &self,
        x: Read<'_>,
        layer: &Layer,
        activation: Activation,
        [gate, residual]: [Option<&Pair>; 2],
    ) -> Result<Pair> {
        let cpu = Epilogue { activation, gate: gate.map(|g| &g.cpu), residual: residual.map(|r| &r.cpu) };
        let cuda = Epilogue { activation, gate: gate.map(|g| &g.cuda), residual: residual.map(|r| &r.cuda) };
        Ok(Pair {
            cpu: self.cpu.linear(x.cpu, &layer.cpu, &cpu)?,
            cuda: self.cuda.linear(x.cuda, &layer.cuda, &cuda)?,
        })
    }

    fn upload(&self, data: &[f32], shape: &[usize]) -> Result<Pair> {
        Ok(Pair { cpu: self.cpu.upload(data, shape)?, cuda: self.cuda.upload(data, shape)? })
    }

    fn noise(&self, shape: &[usize], seed: u64) -> Result<Pair> {
        self.upload(&noise(shape.iter().product(), seed), shape)
    }

    fn slice(&self, x: &Pair, axis: usize, start: usize, len: usize) -> Result<Pair> {
        Ok(Pair {
            cpu: self.cpu.slice(&x.cpu, axis, start, len)?,
            cuda: self.cuda.slice(&x.cuda, axis, start, len)?,
        })
    }

    fn concat(&self, parts: &[&Pair], axis: usize) -> Result<Pair> {
        Ok(Pair {
            cpu: self.cpu.concat(&parts.iter().map(|p| &p.cpu).collect::<Vec<_>>(), axis)?,
            cuda: self.cuda.concat(&parts.iter().map(|p| &p.cuda).collect::<Vec<_>>(), axis)?,
        })
    }

    /// Notes the distance between the two results. For a wrong shape it is infinite.
    fn compare(
        &self,
        operation: &'static str,
        case: impl Into<String>,
        pair: &Pair,
        tolerance: f64,
    ) -> Result<()> {
        let (mut error, mut most) = (f64::INFINITY, f64::INFINITY);
        if self.cuda.shape(&pair.cuda) == self.cpu.shape(&pair.cpu) {
            let (got, want) = (self.cuda.download(&pair.cuda)?, self.cpu.download(&pair.cpu)?);
            (error, most) = (distance(&got, &want), self::most(&got, &want));
        }
        // The comparison is not `>`, because NaN is wrong, too.
        let passed = error <= tolerance;
        let finding = Finding { operation, case: case.into(), error, most, tolerance, passed };
        self.check.findings.borrow_mut().push(finding);
        Ok(())
    }
}
