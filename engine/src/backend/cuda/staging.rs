//! Copies of large weights to the device through two buffers of pinned host memory: all cores fill one while the other
//! is being copied.

use std::sync::{Mutex, PoisonError};

use rayon::prelude::*;

use super::gpu::Gpu;
use super::pinned::Pinned;
use super::tensor::Tensor;
use crate::Result;

/// The bytes of a buffer.
pub(super) const STAGED: usize = 64 << 20;
/// The bytes that a core copies at a time.
const SHARE: usize = 1 << 20;

/// The buffers, allocated when the first weights are loaded.
#[derive(Default)]
pub(super) struct Staging(Mutex<Option<Buffers>>);

struct Buffers {
    both: [Pinned; 2],
    next: usize,
}

impl Staging {
    /// Enqueues a copy of bytes to where a tensor begins. The bytes may be reused when this returns.
    pub fn send(&self, gpu: &Gpu, bytes: &[u8], to: &Tensor) -> Result<()> {
        to.check_room(bytes.len())?;
        let mut buffers = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Buffers { both, next } = match &mut *buffers {
            Some(buffers) => buffers,
            none => {
                let buffer = || Pinned::new(&gpu.context, STAGED);
                none.insert(Buffers { both: [buffer()?, buffer()?], next: 0 })
            }
        };
        for (part, to) in bytes.chunks(STAGED).zip((to.address..).step_by(STAGED)) {
            let buffer = &mut both[*next];
            let shares = buffer.bytes()?.par_chunks_mut(SHARE).zip(part.par_chunks(SHARE));
            shares.for_each(|(to, from)| to[..from.len()].copy_from_slice(from));
            // SAFETY: the tensor's memory has room for all parts; the order of the stream keeps it.
            unsafe { buffer.send(&gpu.stream, part.len(), to)? };
            *next = 1 - *next;
        }
        Ok(())
    }
}
