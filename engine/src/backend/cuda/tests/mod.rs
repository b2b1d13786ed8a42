//! Every operation on this backend and on the reference, then the tiny model's goldens.
//!
//! With the feature `emulator` the kernels run on the CPU; without it on this machine's GPU, and if it has none the tests
//! say so and do nothing. Memory is poisoned, so that whatever is read before it was written shows as NaN.

mod conformance;
mod goldens;
mod memory;
mod speed;
mod wide_volumes;

use super::{Cuda, Options};
use crate::backend::TensorOps;
use crate::backend::cpu::Cpu;

/// Bytes for the work of a test.
const WORK: usize = 64 << 20;

/// The backend, if there is a GPU or the emulator.
fn open(options: &Options) -> Option<Cuda> {
    let options = Options { poison: true, ..*options };
    match Cuda::open(0, &options, 0, WORK) {
        Ok(cuda) => Some(cuda),
        Err(e) if cfg!(feature = "emulator") => panic!("the emulator does not start: {e}"),
        Err(e) => {
            eprintln!("nothing is tested: {e}");
            None
        }
    }
}

/// Values without a pattern, about -1 to 1.
fn noise(len: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let next = |_| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..len).map(next).collect()
}

/// The relative L2 distance.
fn distance(got: &[f32], want: &[f32]) -> f64 {
    assert_eq!(got.len(), want.len());
    let square = |v: f64| v * v;
    let apart: f64 = got.iter().zip(want).map(|(g, w)| square(f64::from(*g) - f64::from(*w))).sum();
    let all: f64 = want.iter().map(|w| square(f64::from(*w))).sum();
    (apart / all.max(1e-30)).sqrt()
}

/// The same values on both backends.
struct Both<'a> {
    cpu: Cpu,
    cuda: &'a Cuda,
}

/// A tensor on both.
#[derive(Clone)]
struct Pair {
    cpu: <Cpu as TensorOps>::Tensor,
    cuda: <Cuda as TensorOps>::Tensor,
}

impl<'a> Both<'a> {
    fn new(cuda: &'a Cuda) -> Self {
        Self { cpu: Cpu::new(), cuda }
    }

    fn upload(&self, data: &[f32], shape: &[usize]) -> Pair {
        Pair {
            cpu: self.cpu.upload(data, shape).expect("it has this shape"),
            cuda: self.cuda.upload(data, shape).expect("there is room"),
        }
    }

    fn noise(&self, shape: &[usize], seed: u64) -> Pair {
        self.upload(&noise(shape.iter().product(), seed), shape)
    }

    /// Checks the shape and the distance of a result.
    #[track_caller]
    fn compare(&self, name: &str, pair: &Pair, tolerance: f64) {
        assert_eq!(self.cuda.shape(&pair.cuda), self.cpu.shape(&pair.cpu), "{name}");
        let got = self.cuda.download(&pair.cuda).expect("it can be read");
        let want = self.cpu.download(&pair.cpu).expect("it can be read");
        let distance = distance(&got, &want);
        println!("{name:60} {distance:.1e}");
        // Not `>`: NaN is wrong, too.
        assert!(distance <= tolerance, "{name} is {distance:.1e} away, {tolerance:.0e} allowed");
    }
}
