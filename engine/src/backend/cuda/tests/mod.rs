//! Compares every operation on this backend with the reference, then the tiny model with its goldens.
//!
//! With the feature `emulator` the kernels run on the CPU. Without it these tests need a GPU: they are reported as
//! ignored, and `-- --ignored` runs them on a machine that has one. Memory is poisoned, so that a read of unwritten
//! memory shows as NaN.

mod conformance;
mod expand;
mod experts;
mod goldens;
mod low_rank;
mod made_up;
mod memory;
mod residency;
mod rounding;
mod shortage;
mod speed;
mod streaming;

use super::conformance::{distance, noise};
use super::{Cuda, Options};

/// The bytes of work memory for a test.
const WORK: usize = 64 << 20;

/// Returns the backend.
fn open(options: &Options) -> Cuda {
    let options = Options { poison: true, ..*options };
    Cuda::open(0, &options, 0, WORK).expect("there is a GPU or the emulator")
}
