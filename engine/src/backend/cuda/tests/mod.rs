//! Every operation on this backend and on the reference, then the tiny model's goldens.
//!
//! With the feature `emulator` the kernels run on the CPU; without it on this machine's GPU, and if it has none the tests
//! say so and do nothing. Memory is poisoned, so that whatever is read before it was written shows as NaN.

mod conformance;
mod goldens;
mod memory;
mod speed;

use super::conformance::{distance, noise};
use super::{Cuda, Options};

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
