//! Device memory: large slabs from the driver, allocated before a job, and pieces of them for tensors.
//!
//! A piece is free as soon as its last user is dropped: everything that still reads it was enqueued earlier, on the
//! same stream as everything that will write it.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use animd_kernels::cuda::cudarc::driver::{CudaContext, CudaStream, result};

use super::error::device;
use super::mapping::Range;
use super::supply::{self, Supply};
use crate::{Error, Result};
use animd_protocol::plan::gib;

/// The alignment of pieces: what kernels ask for, and whole cache lines.
pub(super) const ALIGNMENT: usize = 256;

/// Where tensors get their memory.
pub(super) trait Memory {
    /// Returns a piece of at least one byte.
    ///
    /// # Errors
    /// Returns [`Error::Memory`] if there is no room.
    fn piece(&self, bytes: usize) -> Result<Piece>;
}

/// Memory for one purpose.
pub(super) struct Arena {
    context: Arc<CudaContext>,
    /// The purpose, in sentences.
    purpose: &'static str,
    /// The least number of bytes to allocate from the driver where a piece has no room; 0 allocates none.
    step: AtomicUsize,
    supply: Arc<Supply>,
    /// Fills pieces with NaN before their use, so that a read of unwritten memory shows, and checks the bytes behind
    /// them when they come back, for writes past the end.
    poison: Option<Arc<CudaStream>>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    slabs: Vec<Slab>,
    usage: Usage,
    /// Whether something wrote past the end of a piece.
    overrun: bool,
}

/// The use of an arena's memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Bytes in use.
    pub used: usize,
    /// The peak bytes in use since the last call of [`crate::backend::Backend::peak_memory`].
    pub peak: usize,
    /// The bytes allocated from the driver.
    pub reserved: usize,
    /// The number of allocations from the driver.
    pub reservations: usize,
}

/// One range that the driver allocated.
struct Slab {
    address: u64,
    bytes: usize,
    /// The lengths of the free ranges by their offsets; no two are adjacent.
    free: BTreeMap<usize, usize>,
    /// Whether it gives out no more pieces, and returns to the driver once all of them are free.
    retired: bool,
}

/// A range of memory. One of an arena is free again when this is dropped.
pub(super) struct Piece {
    owner: Owner,
    pub address: u64,
    bytes: usize,
}

enum Owner {
    Arena(Arc<Arena>),
    /// A group of weights, to which the piece belongs for good. The piece keeps the addresses, and the group the memory.
    Group {
        _addresses: Arc<Range>,
    },
}

impl Arena {
    pub fn new(
        context: &Arc<CudaContext>,
        supply: &Arc<Supply>,
        purpose: &'static str,
        step: usize,
        poison: Option<Arc<CudaStream>>,
    ) -> Arc<Self> {
        let step = AtomicUsize::new(step);
        let (context, supply) = (context.clone(), supply.clone());
        Arc::new(Self { context, purpose, step, supply, poison, state: Mutex::default() })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn usage(&self) -> Usage {
        self.state().usage
    }

    pub fn forget_peak(&self) {
        let usage = &mut self.state().usage;
        usage.peak = usage.used;
    }

    /// Sets the least number of bytes to allocate where a piece has no room, because free memory may be fragmented.
    pub fn let_grow(&self, step: usize) {
        self.step.store(step, Ordering::Relaxed);
    }

    /// Allocates so many more bytes from the driver.
    ///
    /// # Errors
    /// Returns [`Error::Memory`] if the driver does not have so many.
    pub fn grow(&self, bytes: usize) -> Result<()> {
        self.add(&mut self.state(), bytes.next_multiple_of(ALIGNMENT))
    }

    /// Ensures that one range has `bytes`, and returns smaller ranges to the driver.
    ///
    /// # Errors
    /// Returns [`Error::Memory`] if the driver does not have so many. Ranges that were in use then remain.
    pub fn reserve(&self, bytes: usize) -> Result<()> {
        let bytes = bytes.next_multiple_of(ALIGNMENT);
        let mut state = self.state();
        if state.slabs.iter().any(|slab| !slab.retired && slab.bytes >= bytes) {
            return Ok(());
        }
        state.slabs.iter_mut().for_each(|slab| slab.retired = true);
        self.release(&mut state);
        let result = self.add(&mut state, bytes);
        if result.is_err() {
            state.slabs.iter_mut().for_each(|slab| slab.retired = false);
        }
        result
    }

    /// Returns all memory to the driver if none of it is in use; returns whether that was so.
    pub fn release_unused(&self) -> bool {
        let mut state = self.state();
        let unused = state.usage.used == 0;
        if unused {
            state.slabs.iter_mut().for_each(|slab| slab.retired = true);
            self.release(&mut state);
        }
        unused
    }

    fn add(&self, state: &mut State, bytes: usize) -> Result<()> {
        if bytes == 0 {
            return Ok(());
        }
        // SAFETY: a context is current. What comes back is given to nobody but in pieces.
        let allocate = || unsafe { result::malloc_sync(bytes) };
        let address = supply::take(&self.supply, self.purpose, [bytes, state.usage.reserved], allocate)?;
        state.slabs.push(Slab { address, bytes, free: BTreeMap::from([(0, bytes)]), retired: false });
        state.usage.reserved += bytes;
        state.usage.reservations += 1;
        Ok(())
    }

    /// Returns retired slabs that are entirely free to the driver.
    fn release(&self, state: &mut State) {
        let usage = &mut state.usage;
        state.slabs.retain(|slab| {
            let whole = slab.free.get(&0) == Some(&slab.bytes);
            if slab.retired && whole {
                self.free(slab);
                usage.reserved -= slab.bytes;
            }
            !(slab.retired && whole)
        });
    }

    fn free(&self, slab: &Slab) {
        // A driver that fails here has failed for good, and the next call says so.
        let _ = self.context.bind_to_thread();
        // SAFETY: the range came from this allocator, and no piece of it is left. The driver waits for what runs.
        let _ = unsafe { result::free_sync(slab.address) };
        self.supply.returned(slab.bytes);
    }

    /// Returns a piece of at least one byte.
    ///
    /// # Errors
    /// Returns [`Error::Memory`] if no free range is long enough: the plan was wrong.
    pub fn take(self: &Arc<Self>, bytes: usize) -> Result<Piece> {
        let guard = if self.poison.is_some() { ALIGNMENT } else { 0 };
        let size = bytes.max(1).next_multiple_of(ALIGNMENT) + guard;
        let mut state = self.state();
        if state.overrun {
            return Err(Error::Internal(format!("{} wrote behind a piece of their memory", self.purpose)));
        }
        let fits = |slab: &Slab| !slab.retired && slab.free.values().any(|len| *len >= size);
        let step = self.step.load(Ordering::Relaxed);
        if step > 0 && !state.slabs.iter().any(fits) {
            let more = self.add(&mut state, size.max(step));
            more.or_else(|e| if size < step { self.add(&mut state, size) } else { Err(e) })?;
        }
        let State { slabs, usage, .. } = &mut *state;
        let ranges = slabs.iter_mut().filter(|slab| !slab.retired).filter_map(|slab| {
            let fitting = slab.free.iter().filter(|(_, len)| **len >= size);
            // The shortest range that is long enough is used, so that long ones stay long.
            fitting.min_by_key(|(_, len)| **len).map(|(at, len)| (*len, *at)).map(|best| (best, slab))
        });
        let Some(((len, at), slab)) = ranges.min_by_key(|(best, _)| *best) else {
            return Err(Error::Memory(format!(
                "{} have {} on the GPU, {} of it in use, and no {} in one piece: use a smaller size or fewer frames, or a \
                 profile for a smaller card",
                self.purpose,
                gib(usage.reserved as u64),
                gib(usage.used as u64),
                gib(size as u64)
            )));
        };
        slab.free.remove(&at);
        if len > size {
            slab.free.insert(at + size, len - size);
        }
        let address = slab.address + at as u64;
        usage.used += size;
        usage.peak = usage.peak.max(usage.used);
        drop(state);
        let piece = Piece { owner: Owner::Arena(self.clone()), address, bytes: size };
        if let Some(stream) = &self.poison {
            self.context.bind_to_thread().map_err(device)?;
            // SAFETY: the piece is nobody else's, and work before it on this stream is done with it.
            unsafe { result::memset_d8_async(address, 0xff, size, stream.cu_stream()) }.map_err(device)?;
        }
        Ok(piece)
    }

    /// Returns whether the bytes behind a piece of a poisoned arena are unchanged.
    fn is_untouched(&self, address: u64, bytes: usize) -> bool {
        let Some(stream) = &self.poison else { return true };
        let mut guard = [0u8; ALIGNMENT];
        let behind = address + (bytes - ALIGNMENT) as u64;
        // SAFETY: the piece has these bytes; the wait follows before anybody reads them.
        let read = self.context.bind_to_thread().and_then(|()| unsafe {
            result::memcpy_dtoh_async(&mut guard, behind, stream.cu_stream())?;
            stream.synchronize()
        });
        read.is_err() || guard == [0xff; ALIGNMENT]
    }

    fn give_back(&self, address: u64, bytes: usize) {
        let untouched = self.is_untouched(address, bytes);
        let mut state = self.state();
        state.overrun |= !untouched;
        state.usage.used -= bytes;
        let inside = |slab: &&mut Slab| (slab.address..slab.address + slab.bytes as u64).contains(&address);
        let Some(slab) = state.slabs.iter_mut().find(inside) else { return };
        let (mut at, mut len) = ((address - slab.address) as usize, bytes);
        if let Some(after) = slab.free.remove(&(at + len)) {
            len += after;
        }
        if let Some((&before, &length)) = slab.free.range(..at).next_back()
            && before + length == at
        {
            slab.free.remove(&before);
            (at, len) = (before, len + length);
        }
        slab.free.insert(at, len);
        if slab.retired {
            self.release(&mut state);
        }
    }
}

impl Drop for Arena {
    fn drop(&mut self) {
        let state = std::mem::take(self.state.get_mut().unwrap_or_else(PoisonError::into_inner));
        state.slabs.iter().for_each(|slab| self.free(slab));
    }
}

impl Memory for Arc<Arena> {
    fn piece(&self, bytes: usize) -> Result<Piece> {
        self.take(bytes)
    }
}

impl Piece {
    /// Returns a piece of a group of weights.
    pub fn of_group(addresses: &Arc<Range>, address: u64, bytes: usize) -> Self {
        Self { owner: Owner::Group { _addresses: addresses.clone() }, address, bytes }
    }

    /// Returns the address behind its last byte.
    pub fn end(&self) -> u64 {
        self.address + self.bytes as u64
    }
}

impl Drop for Piece {
    fn drop(&mut self) {
        if let Owner::Arena(arena) = &self.owner {
            arena.give_back(self.address, self.bytes);
        }
    }
}
