//! Every operation on this backend and on the reference, then the tiny model's goldens.
//!
//! With the feature `emulator` the kernels run on the CPU. Without it these tests take a GPU: they are reported as ignored,
//! and `-- --ignored` runs them on a machine that has one. Memory is poisoned, so that whatever is read before it was
//! written shows as NaN.

mod conformance;
mod goldens;
mod made_up;
mod memory;
mod speed;

use super::conformance::{distance, noise};
use super::{Cuda, Options};

/// Bytes for the work of a test.
const WORK: usize = 64 << 20;

/// The backend.
fn open(options: &Options) -> Cuda {
    let options = Options { poison: true, ..*options };
    Cuda::open(0, &options, 0, WORK).expect("there is a GPU or the emulator")
}
