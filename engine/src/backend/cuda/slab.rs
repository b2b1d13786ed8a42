//! Host memory in which a group of weights waits for the GPU: exactly its bytes in whole pages, pinned where the system
//! allows it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use animd_kernels::cuda::cudarc::driver::{CudaContext, sys};
use memmap2::{Advice, MmapMut};
use rayon::prelude::*;

use crate::{Error, Result};
use animd_protocol::plan::gib;

/// The bytes that a core touches at a time.
const SHARE: usize = 4 << 20;
const PAGE: usize = 4096;

/// How much host memory may be pinned for weights.
pub(super) struct Pinning {
    most: AtomicUsize,
    pinned: AtomicUsize,
    /// Whether it was said that weights wait in memory that is not pinned.
    told: AtomicBool,
}

impl Pinning {
    /// At most so many bytes; without a number as many as the system allows.
    pub fn new(most: Option<usize>) -> Self {
        let most = AtomicUsize::new(most.unwrap_or(usize::MAX));
        Self { most, pinned: AtomicUsize::new(0), told: AtomicBool::new(false) }
    }

    /// Sets the most bytes, if they are fewer than before; what is pinned already stays.
    pub fn restrict(&self, most: usize) {
        self.most.fetch_min(most, Ordering::Relaxed);
    }

    fn claim(&self, bytes: usize) -> bool {
        let most = self.most.load(Ordering::Relaxed);
        let within = |pinned: usize| pinned.checked_add(bytes).filter(|all| *all <= most);
        self.pinned.fetch_update(Ordering::Relaxed, Ordering::Relaxed, within).is_ok()
    }

    /// Says once that copies will be slower.
    fn tell(&self) {
        if !self.told.swap(true, Ordering::Relaxed) {
            let pinned = gib(self.pinned.load(Ordering::Relaxed) as u64);
            tracing::warn!(
                pinned,
                "some weights wait in ordinary memory, because no more can be pinned: their copies to the GPU are slower"
            );
        }
    }
}

/// The memory of one group.
pub(super) struct Slab {
    context: Arc<CudaContext>,
    pinning: Arc<Pinning>,
    memory: MmapMut,
    bytes: usize,
    pinned: bool,
}

impl Slab {
    /// Takes memory of zeros.
    ///
    /// # Errors
    /// Returns [`Error::Memory`] if the system does not have it.
    pub fn new(context: &Arc<CudaContext>, pinning: &Arc<Pinning>, bytes: usize) -> Result<Self> {
        let mapped = bytes.next_multiple_of(PAGE);
        let mut memory = MmapMut::map_anon(mapped).map_err(|e| {
            Error::Memory(format!(
                "the machine has no {} of memory for weights that wait for the GPU ({e}): end other programs, or use a \
                 profile for a larger card",
                gib(bytes as u64)
            ))
        })?;
        // Fewer, larger pages are pinned faster. A system without them ignores the advice.
        let _ = memory.advise(Advice::HugePage);
        // A fork copies pinned pages at once, to keep the card's copies apart from the child's: a program that is started, like
        // the video's encoder, would take twice the memory, and as long as copying it does. No child needs it.
        let _ = memory.advise(Advice::DontFork);
        // All cores fetch the pages; pinning would fetch them one by one.
        memory
            .par_chunks_mut(SHARE)
            .for_each(|share| share.iter_mut().step_by(PAGE).for_each(|byte| *byte = 0));
        let mut slab =
            Self { context: context.clone(), pinning: pinning.clone(), memory, bytes, pinned: false };
        slab.pinned = slab.pin();
        if !slab.pinned {
            slab.pinning.tell();
        }
        Ok(slab)
    }

    fn pin(&mut self) -> bool {
        let bytes = self.memory.len();
        if !self.pinning.claim(bytes) {
            return false;
        }
        let registered = self.context.bind_to_thread().and_then(|()| {
            // SAFETY: these are whole pages of this slab, which unpins them before it frees them.
            unsafe { sys::cuMemHostRegister_v2(self.memory.as_mut_ptr().cast(), bytes, 0) }.result()
        });
        if registered.is_err() {
            self.pinning.pinned.fetch_sub(bytes, Ordering::Relaxed);
        }
        registered.is_ok()
    }

    pub fn is_pinned(&self) -> bool {
        self.pinned
    }

    pub fn bytes(&self) -> &[u8] {
        &self.memory[..self.bytes]
    }

    pub fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.memory[..self.bytes]
    }
}

impl Drop for Slab {
    fn drop(&mut self) {
        if self.pinned {
            // A driver that fails here has failed for good, and the next call says so.
            let _ = self.context.bind_to_thread();
            // SAFETY: the slab has registered this memory, and its owner has waited for all copies.
            let _ = unsafe { sys::cuMemHostUnregister(self.memory.as_mut_ptr().cast()) };
            self.pinning.pinned.fetch_sub(self.memory.len(), Ordering::Relaxed);
        }
    }
}
