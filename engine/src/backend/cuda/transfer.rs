//! Copies of waiting weights to the device, on a stream of their own.
//!
//! Nothing here waits on the host. Pinned memory is copied as it is. Ordinary memory goes through a ring of small pinned
//! buffers, which the driver fills by calling back in the order of another stream; where not even these can be pinned,
//! the driver copies it by itself, and the caller waits.

use std::ffi::c_void;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use animd_kernels::cuda::cudarc::driver::{CudaContext, CudaEvent, CudaStream, result};

use super::error::device;
use super::pinned::{Pinned, sleeping_event};
use super::slab::Slab;
use crate::Result;

/// The bytes of a buffer of the ring.
const PART: usize = 16 << 20;
/// The number of buffers.
const PARTS: usize = 3;
/// The bytes of the copies by which the link's own rate is measured, and their number.
const PROBE: [usize; 2] = [64 << 20, 4];

/// The stream of copies.
pub(super) struct Transfer {
    pub stream: Arc<CudaStream>,
    /// The stream on which buffers are filled.
    filling: Arc<CudaStream>,
    /// `None` once the system has refused the ring.
    ring: Mutex<Option<Ring>>,
    /// How many times as long as the link itself copies take; `None` if they are as fast as the link.
    slowness: Option<f64>,
}

/// Buffers between ordinary memory and the device.
#[derive(Default)]
struct Ring {
    buffers: Vec<Buffer>,
    next: usize,
}

struct Buffer {
    memory: Pinned,
    filled: CudaEvent,
    copied: CudaEvent,
}

impl Transfer {
    /// Opens the streams. With a rate in bytes per second, copies take as long as they would at that rate: parts of them
    /// are made again. A slower link needs no host to wait for it, and neither must this.
    ///
    /// # Errors
    /// Returns [`crate::Error::Device`] if the driver has failed, and [`crate::Error::Memory`] without memory to measure
    /// the link's own rate.
    pub fn new(context: &Arc<CudaContext>, rate: Option<u64>) -> Result<Self> {
        let stream = || context.new_stream().map_err(device);
        let (stream, filling, ring) = (stream()?, stream()?, Mutex::new(Some(Ring::default())));
        let slowness = rate.map(|rate| rate_of(&stream).map(|own| own / rate.max(1) as f64)).transpose()?;
        Ok(Self { stream, filling, ring, slowness })
    }

    /// Enqueues a copy of a slab to the device.
    ///
    /// # Safety
    /// The slab, and as many bytes at `to`, must stay as they are until the stream has passed the copy.
    pub unsafe fn send(&self, slab: &Slab, to: u64) -> Result<()> {
        self.stream.context().bind_to_thread().map_err(device)?;
        if !slab.is_pinned() && self.ring()? {
            // SAFETY: the caller vouches for both.
            return unsafe { self.send_through(slab.bytes(), to) };
        }
        // SAFETY: the caller vouches for both.
        unsafe { self.copy(slab.bytes(), to) }
    }

    /// Enqueues a copy, and again as much of it as a slower link would take the time for.
    unsafe fn copy(&self, bytes: &[u8], to: u64) -> Result<()> {
        let mut left = (bytes.len() as f64 * self.slowness.unwrap_or(1.0).max(1.0)) as usize;
        while left > 0 {
            let part = &bytes[..left.min(bytes.len())];
            // SAFETY: the caller vouches for both.
            unsafe { result::memcpy_htod_async(to, part, self.stream.cu_stream()) }.map_err(device)?;
            left -= part.len();
        }
        Ok(())
    }

    /// Waits until all copies are done.
    pub fn finish(&self) -> Result<()> {
        self.filling.synchronize().and_then(|()| self.stream.synchronize()).map_err(device)
    }

    /// Returns whether there is a ring, which is made when it is first needed.
    fn ring(&self) -> Result<bool> {
        let mut ring = self.ring.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(Ring { buffers, .. }) = &mut *ring else { return Ok(false) };
        while buffers.len() < PARTS {
            let context = self.stream.context();
            let Ok(memory) = Pinned::new(context, PART) else {
                *ring = None;
                return Ok(false);
            };
            let event = || sleeping_event(context);
            buffers.push(Buffer { memory, filled: event()?, copied: event()? });
        }
        Ok(true)
    }

    /// Enqueues a copy of ordinary memory, part by part.
    unsafe fn send_through(&self, bytes: &[u8], to: u64) -> Result<()> {
        let mut ring = self.ring.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(Ring { buffers, next }) = &mut *ring else { return Ok(()) };
        for (part, to) in bytes.chunks(PART).zip((to..).step_by(PART)) {
            let buffer = &buffers[*next];
            *next = (*next + 1) % PARTS;
            self.filling.wait(&buffer.copied).map_err(device)?;
            let fill = Fill { from: part.as_ptr(), to: buffer.memory.address(), bytes: part.len() };
            // SAFETY: the caller keeps the bytes, this the buffer; the events keep copies in and out apart.
            unsafe { call(&self.filling, Box::new(move || fill.run()))? };
            buffer.filled.record(&self.filling).map_err(device)?;
            self.stream.wait(&buffer.filled).map_err(device)?;
            // SAFETY: the buffer has as many bytes, and is filled again only behind the next event.
            unsafe { self.copy(std::slice::from_raw_parts(buffer.memory.address(), part.len()), to)? };
            buffer.copied.record(&self.stream).map_err(device)?;
        }
        Ok(())
    }
}

impl Drop for Transfer {
    fn drop(&mut self) {
        // A driver that fails here has failed for good, and the next call says so.
        let _ = self.finish();
    }
}

/// Returns the bytes per second that pinned memory is copied with.
fn rate_of(stream: &CudaStream) -> Result<f64> {
    let [bytes, copies] = PROBE;
    let context = stream.context();
    let mut from = Pinned::new(context, bytes)?;
    // SAFETY: a context is current.
    let to = unsafe { result::malloc_sync(bytes) }.map_err(device)?;
    let mut copy = || {
        // SAFETY: both have as many bytes, and the copy is waited for before they go.
        unsafe { from.send(stream, bytes, to) }.and_then(|()| stream.synchronize().map_err(device))
    };
    let mut timed = || {
        let began = Instant::now();
        copy().map(|()| began.elapsed().as_secs_f64())
    };
    let seconds = (0..copies).map(|_| timed()).collect::<Result<Vec<_>>>();
    // SAFETY: nothing copies there any more.
    unsafe { result::free_sync(to) }.map_err(device)?;
    let shortest = seconds?.into_iter().fold(f64::INFINITY, f64::min);
    Ok(bytes as f64 / shortest)
}

/// A copy within the host's memory.
struct Fill {
    from: *const u8,
    to: *mut u8,
    bytes: usize,
}

// SAFETY: whoever makes one vouches that the memory stays until it has run.
unsafe impl Send for Fill {}

impl Fill {
    fn run(&self) {
        // SAFETY: both ranges stay until this has run, and are different memory.
        unsafe { std::ptr::copy_nonoverlapping(self.from, self.to, self.bytes) };
    }
}

type Callback = Box<dyn FnOnce() + Send>;

/// Enqueues a call of a function that uses no CUDA and does not panic.
///
/// # Safety
/// What the function uses must live until the stream has passed it.
unsafe fn call(stream: &CudaStream, function: Callback) -> Result<()> {
    unsafe extern "C" fn run(argument: *mut c_void) {
        // SAFETY: it is the box below, which the driver hands over once.
        let function = unsafe { Box::from_raw(argument.cast::<Callback>()) };
        function();
    }
    let argument = Box::into_raw(Box::new(function));
    // SAFETY: the argument lives until the call, which frees it.
    let enqueued = unsafe { result::stream::launch_host_function(stream.cu_stream(), run, argument.cast()) };
    enqueued.map_err(|e| {
        // SAFETY: the driver has not taken it.
        drop(unsafe { Box::from_raw(argument) });
        device(e)
    })
}
