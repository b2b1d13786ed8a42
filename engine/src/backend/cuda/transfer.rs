//! Copies of waiting weights to the device, on a stream of their own.
//!
//! Nothing here waits on the host. Pinned memory is copied as it is. Ordinary memory goes through a ring of small pinned
//! buffers, which the driver fills by calling back in the order of another stream; where not even these can be pinned,
//! the driver copies it by itself, and the caller waits.

use std::ffi::c_void;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use animd_kernels::cuda::cudarc::driver::{CudaContext, CudaEvent, CudaStream, result};

use super::error::device;
use super::pinned::{Pinned, sleeping_event};
use super::slab::Slab;
use crate::Result;

/// The bytes of a buffer of the ring.
const PART: usize = 16 << 20;
/// The number of buffers.
const PARTS: usize = 3;
/// The bytes that are copied at a time where the rate is limited.
const PACED: usize = 4 << 20;
/// The time before a deadline that a thread spends awake, because sleeping threads wake late.
const AWAKE: Duration = Duration::from_micros(150);

/// The stream of copies.
pub(super) struct Transfer {
    pub stream: Arc<CudaStream>,
    /// The stream on which buffers are filled.
    filling: Arc<CudaStream>,
    /// `None` once the system has refused the ring.
    ring: Mutex<Option<Ring>>,
    pace: Option<Arc<Pace>>,
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

/// A rate that copies keep to.
struct Pace {
    bytes_per_second: f64,
    /// When the link is free again.
    free: Mutex<Instant>,
}

impl Transfer {
    /// Opens the streams. With a rate in bytes per second, copies take as long as they would at that rate.
    ///
    /// # Errors
    /// Returns [`crate::Error::Device`] if the driver has failed.
    pub fn new(context: &Arc<CudaContext>, rate: Option<u64>) -> Result<Self> {
        let stream = || context.new_stream().map_err(device);
        let pace = rate.map(|rate| {
            Arc::new(Pace { bytes_per_second: rate.max(1) as f64, free: Mutex::new(Instant::now()) })
        });
        Ok(Self { stream: stream()?, filling: stream()?, ring: Mutex::new(Some(Ring::default())), pace })
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
        let part = if self.pace.is_some() { PACED } else { usize::MAX };
        let parts = slab.bytes().chunks(part.min(slab.bytes().len().max(1)));
        for (bytes, to) in parts.zip((to..).step_by(PACED)) {
            self.keep_pace(bytes.len())?;
            // SAFETY: the caller vouches for both.
            unsafe { result::memcpy_htod_async(to, bytes, self.stream.cu_stream()) }.map_err(device)?;
        }
        self.keep_pace(0)
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
            self.keep_pace(part.len())?;
            // SAFETY: the buffer has as many bytes, and is filled again only behind the next event.
            unsafe {
                let part = std::slice::from_raw_parts(buffer.memory.address(), part.len());
                result::memcpy_htod_async(to, part, self.stream.cu_stream()).map_err(device)?;
            }
            buffer.copied.record(&self.stream).map_err(device)?;
        }
        self.keep_pace(0)
    }

    /// Enqueues a wait until the link would be free at the rate that copies keep to.
    fn keep_pace(&self, bytes: usize) -> Result<()> {
        let Some(pace) = self.pace.clone() else { return Ok(()) };
        // SAFETY: the closure owns all that it uses.
        unsafe { call(&self.stream, Box::new(move || pace.wait(bytes))) }
    }
}

impl Drop for Transfer {
    fn drop(&mut self) {
        // A driver that fails here has failed for good, and the next call says so.
        let _ = self.finish();
    }
}

impl Pace {
    /// Waits until the link is free, and takes it for so many bytes.
    fn wait(&self, bytes: usize) {
        let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            let left = free.saturating_duration_since(Instant::now());
            match left {
                Duration::ZERO => break,
                left if left > 2 * AWAKE => std::thread::sleep(left.saturating_sub(AWAKE)),
                _ => std::hint::spin_loop(),
            }
        }
        // A short delay of this thread is made up for: the next copies begin as if it had not been.
        let begin = (*free).max(Instant::now().checked_sub(AWAKE).unwrap_or(*free));
        *free = begin + Duration::from_secs_f64(bytes as f64 / self.bytes_per_second);
    }
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
