//! Host memory that the GPU reads and writes by itself, while the program continues.

use std::ptr::NonNull;
use std::sync::Arc;

use animd_kernels::cuda::cudarc::driver::sys::CUevent_flags;
use animd_kernels::cuda::cudarc::driver::{CudaContext, CudaEvent, CudaStream, result};

use super::error::device;
use crate::{Error, Result};
use animd_protocol::plan::gib;

/// Returns an event whose waiting threads sleep.
pub(super) fn sleeping_event(context: &Arc<CudaContext>) -> Result<CudaEvent> {
    context.new_event(Some(CUevent_flags::CU_EVENT_BLOCKING_SYNC)).map_err(device)
}

/// Pinned memory.
pub(super) struct Pinned {
    context: Arc<CudaContext>,
    memory: NonNull<u8>,
    len: usize,
    /// The event after the last copy.
    copied: CudaEvent,
}

// SAFETY: the memory is its own.
unsafe impl Send for Pinned {}

impl Pinned {
    /// Allocates pinned memory of zeros.
    ///
    /// # Errors
    /// Returns [`Error::Memory`] if the system does not have enough of it.
    pub fn new(context: &Arc<CudaContext>, len: usize) -> Result<Self> {
        let copied = sleeping_event(context)?;
        // SAFETY: the context has just been made current.
        let memory = unsafe { result::malloc_host(len, 0) };
        let memory = memory.ok().and_then(|memory| NonNull::new(memory.cast::<u8>())).ok_or_else(|| {
            Error::Memory(format!(
                "the machine has no {} of memory left that can be pinned, through which data come to the GPU and back: \
                 end other programs",
                gib(len as u64)
            ))
        })?;
        // SAFETY: so many bytes were asked for.
        unsafe { memory.write_bytes(0, len) };
        Ok(Self { context: context.clone(), memory, len, copied })
    }

    pub fn len(&self) -> usize {
        self.len
    }

    /// Returns the address of the first byte, for an owner who knows what copies are under way.
    pub fn address(&self) -> *mut u8 {
        self.memory.as_ptr()
    }

    /// Returns the bytes, as soon as the last copy is done.
    pub fn bytes(&mut self) -> Result<&mut [u8]> {
        self.copied.synchronize().map_err(device)?;
        // SAFETY: there are so many bytes, which are initialised, and no copy is under way.
        Ok(unsafe { std::slice::from_raw_parts_mut(self.memory.as_ptr(), self.len) })
    }

    /// Enqueues a copy of the first `len` bytes to the device.
    ///
    /// # Safety
    /// So many bytes at `to` must belong to the stream's GPU until the stream has passed this copy.
    pub unsafe fn send(&mut self, stream: &CudaStream, len: usize, to: u64) -> Result<()> {
        let bytes = &self.bytes()?[..len];
        // SAFETY: the caller vouches for the device's memory; this one stays as it is until the event.
        unsafe { result::memcpy_htod_async(to, bytes, stream.cu_stream()) }.map_err(device)?;
        self.copied.record(stream).map_err(device)
    }

    /// Enqueues a copy of `len` bytes from the device to the start of this memory.
    ///
    /// # Safety
    /// As [`Self::send`].
    pub unsafe fn receive(&mut self, stream: &CudaStream, len: usize, from: u64) -> Result<()> {
        let bytes = &mut self.bytes()?[..len];
        // SAFETY: as above.
        unsafe { result::memcpy_dtoh_async(bytes, from, stream.cu_stream()) }.map_err(device)?;
        self.copied.record(stream).map_err(device)
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        // A driver that fails here has failed for good, and the next call says so.
        let _ = self.copied.synchronize();
        let _ = self.context.bind_to_thread();
        // SAFETY: it came from there, and no copy is under way.
        let _ = unsafe { result::free_host(self.memory.as_ptr().cast()) };
    }
}
