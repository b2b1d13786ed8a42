//! A group of weights while it is loaded: one range of addresses, from which tensors are cut one after the other.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use animd_kernels::cuda::cudarc::driver::result;

use super::error::device;
use super::gpu::Gpu;
use super::mapping::{Physical, Range};
use super::memory::{ALIGNMENT, Memory, Piece};
use crate::{Error, Result};

/// The addresses that a group has: more than any group needs. They are only numbers.
const ADDRESSES: usize = 8 << 30;

/// The group.
pub(super) struct Assembly {
    gpu: Arc<Gpu>,
    granularity: usize,
    pub range: Arc<Range>,
    /// The bytes that tensors may have, if somebody else has mapped memory to the range; otherwise the assembly does.
    room: Option<usize>,
    contents: Mutex<Contents>,
}

#[derive(Default)]
struct Contents {
    /// The bytes of all tensors.
    used: usize,
    /// The bytes of all memory.
    mapped: usize,
    memory: Vec<Physical>,
}

impl Assembly {
    /// Starts a group: it is loaded to memory which it takes as it grows by multiples of `granularity` or, without memory,
    /// its tensors only get their addresses.
    ///
    /// # Errors
    /// Returns [`Error::Device`] if the driver has failed.
    pub fn new(gpu: &Arc<Gpu>, granularity: usize, with_memory: bool) -> Result<Self> {
        let range = Arc::new(Range::new(&gpu.context, ADDRESSES.next_multiple_of(granularity))?);
        let room = (!with_memory).then_some(ADDRESSES);
        Ok(Self { gpu: gpu.clone(), granularity, range, room, contents: Mutex::default() })
    }

    /// Starts to load a group again, to memory of so many bytes that is mapped to its range.
    pub fn again(gpu: &Arc<Gpu>, range: &Arc<Range>, bytes: usize) -> Self {
        let (gpu, range, granularity) = (gpu.clone(), range.clone(), ALIGNMENT);
        Self { gpu, granularity, range, room: Some(bytes), contents: Mutex::default() }
    }

    /// Returns the bytes of all tensors.
    pub fn bytes(&self) -> usize {
        self.contents().used
    }

    /// Copies all tensors to the host, and gives their memory back. `to` has [`Self::bytes`].
    ///
    /// # Errors
    /// Returns [`Error::Device`] if the driver has failed.
    pub fn take_out(&self, to: &mut [u8]) -> Result<()> {
        let stream = &self.gpu.stream;
        if !to.is_empty() {
            self.gpu.context.bind_to_thread().map_err(device)?;
            // SAFETY: the range has as many bytes; the wait follows before anybody reads them.
            unsafe { result::memcpy_dtoh_async(to, self.range.address, stream.cu_stream()) }
                .map_err(device)?;
        }
        self.clear()
    }

    fn clear(&self) -> Result<()> {
        if self.room.is_some() {
            return Ok(());
        }
        self.gpu.stream.synchronize().map_err(device)?;
        let mut contents = self.contents();
        if contents.mapped > 0 {
            // SAFETY: the stream has done everything that wrote here.
            unsafe { self.range.unmap(contents.mapped)? };
        }
        (contents.mapped, contents.used) = (0, 0);
        contents.memory.clear();
        Ok(())
    }

    fn contents(&self) -> MutexGuard<'_, Contents> {
        self.contents.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Memory for Assembly {
    fn piece(&self, bytes: usize) -> Result<Piece> {
        let mut contents = self.contents();
        let size = bytes.max(1).next_multiple_of(ALIGNMENT);
        let used = contents.used + size;
        let missing = used.saturating_sub(contents.mapped);
        if self.room.is_some_and(|room| used > room) {
            return Err(Error::Internal(format!(
                "a group of weights has {used} bytes or more, and had fewer before"
            )));
        }
        if self.room.is_none() && missing > 0 {
            let more = missing.next_multiple_of(self.granularity);
            if contents.mapped + more > ADDRESSES {
                return Err(Error::Internal(format!("a group of weights of more than {ADDRESSES} bytes")));
            }
            let memory = Physical::new(&self.gpu.context, &self.gpu.supply, more).map_err(|refusal| {
                refusal.error("the weights that are being loaded", more, contents.mapped)
            })?;
            self.range.map(contents.mapped, &memory)?;
            contents.mapped += more;
            contents.memory.push(memory);
        }
        let address = self.range.address + contents.used as u64;
        contents.used += size;
        Ok(Piece::of_group(&self.range, address, size))
    }
}

impl Drop for Assembly {
    fn drop(&mut self) {
        // A driver that fails here has failed for good, and the next call says so.
        let _ = self.clear();
    }
}
