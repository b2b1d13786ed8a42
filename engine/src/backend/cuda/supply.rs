//! What the driver has of the GPU's memory for this process, counted to the byte.

use std::sync::{Arc, Mutex, PoisonError, Weak};

use animd_kernels::cuda::cudarc::driver::sys::CUresult;
use animd_kernels::cuda::cudarc::driver::{CudaContext, DriverError};

use super::error::device;
use crate::{Error, Result};
use animd_protocol::plan::gib;

/// An owner of memory that can do with less.
pub(super) trait Lender: Send + Sync {
    /// Gives memory back to the driver; returns the number of bytes. A lender whose memory is in use gives only if
    /// `in_need`, when no other has anything left.
    fn give_back(&self, bytes: usize, in_need: bool) -> usize;

    /// Returns when the lender's memory was last used, as a count of uses.
    fn last_used(&self) -> u64;
}

/// The source of all memory that is taken from the driver.
pub(super) struct Supply {
    context: Arc<CudaContext>,
    /// The bytes of the GPU's memory that are left to others.
    leave: usize,
    state: Mutex<State>,
}

struct State {
    taken: usize,
    /// The bytes of weights that are mapped, and the most that were since the last call of [`Supply::forget_peak`].
    mapped: usize,
    most_mapped: usize,
    /// The most bytes to take.
    limit: Option<usize>,
    lenders: Vec<Weak<dyn Lender>>,
}

/// Why there is no room.
pub(super) struct Shortage {
    free: usize,
    total: usize,
    leave: usize,
    taken: usize,
    limit: Option<usize>,
}

impl Shortage {
    /// Returns the error, for the `purpose` of `bytes` beside the `reserved` ones that it has.
    pub fn error(&self, purpose: &str, bytes: usize, reserved: usize) -> Error {
        let gib = |bytes: usize| gib(bytes as u64);
        let need = format!("{purpose} need {} more than the {} that they have", gib(bytes), gib(reserved));
        let advice = "use a smaller size or fewer frames, or a profile for a smaller card";
        if let Some(limit) = self.limit.filter(|limit| self.taken + bytes > *limit) {
            return Error::Memory(format!(
                "the engine may take {} of the GPU's memory for weights and work, and has taken {}; {need}: raise the \
                 budget, {advice}",
                gib(limit),
                gib(self.taken)
            ));
        }
        let left_alone = match self.leave {
            0 => String::new(),
            leave => format!(", and leave {} to others", gib(leave)),
        };
        Error::Memory(format!(
            "the GPU has {} of {} free; {need}{left_alone}: end other programs on the GPU, {advice}",
            gib(self.free),
            gib(self.total)
        ))
    }
}

/// Why the driver gave nothing.
pub(super) enum Refusal {
    Shortage(Shortage),
    Driver(DriverError),
}

impl Supply {
    pub fn new(context: &Arc<CudaContext>, leave: usize) -> Arc<Self> {
        let state = State { taken: 0, mapped: 0, most_mapped: 0, limit: None, lenders: Vec::new() };
        Arc::new(Self { context: context.clone(), leave, state: Mutex::new(state) })
    }

    /// Adds an owner of memory that others may need more.
    pub fn add_lender(&self, lender: Weak<dyn Lender>) {
        let lenders = &mut self.state().lenders;
        lenders.retain(|lender| lender.strong_count() > 0);
        lenders.push(lender);
    }

    /// Returns the bytes that this process could have of the GPU's memory: what it has taken, and what is free and not
    /// left to others.
    ///
    /// # Errors
    /// Returns [`Error::Device`] if the driver has failed.
    pub fn room(&self) -> Result<usize> {
        self.context.bind_to_thread().map_err(device)?;
        let (free, _) = self.context.mem_get_info().map_err(device)?;
        Ok(self.taken() + free.saturating_sub(self.leave))
    }

    /// Returns the bytes that are taken from the driver.
    pub fn taken(&self) -> usize {
        self.state().taken
    }

    /// Returns the most bytes of weights that were mapped since the last call of [`Self::forget_peak`].
    pub fn most_mapped(&self) -> usize {
        self.state().most_mapped
    }

    pub fn forget_peak(&self) {
        let mut state = self.state();
        state.most_mapped = state.mapped;
    }

    /// Notes that so many of the bytes that were taken are for weights that come and go.
    pub fn mapped(&self, bytes: usize) {
        let mut state = self.state();
        state.mapped += bytes;
        state.most_mapped = state.most_mapped.max(state.mapped);
    }

    /// Notes that the driver has such bytes back.
    pub fn unmapped(&self, bytes: usize) {
        let mut state = self.state();
        state.mapped -= bytes;
        state.taken -= bytes;
    }

    /// Sets the most bytes that may be taken; what is taken already stays.
    pub fn set_limit(&self, limit: Option<usize>) {
        self.state().limit = limit;
    }

    /// Takes memory by `allocate`. Where there is not enough, lenders give theirs back: first those that are not in
    /// use, the one that has rested longest first.
    ///
    /// # Errors
    /// Returns the refusal if there is not enough even then, or the driver has failed.
    pub fn take<T>(
        &self,
        bytes: usize,
        allocate: impl Fn() -> std::result::Result<T, DriverError>,
    ) -> std::result::Result<T, Refusal> {
        loop {
            match self.try_take(bytes, &allocate) {
                Err(Refusal::Shortage(_)) if self.borrow(bytes) => {}
                other => return other,
            }
        }
    }

    /// Does what [`Self::take`] does, with what there is.
    fn try_take<T>(
        &self,
        bytes: usize,
        allocate: &impl Fn() -> std::result::Result<T, DriverError>,
    ) -> std::result::Result<T, Refusal> {
        let memory = self.context.bind_to_thread().and_then(|()| self.context.mem_get_info());
        let (free, total) = memory.map_err(Refusal::Driver)?;
        let mut state = self.state();
        let shortage = |state: &State| {
            let (leave, taken, limit) = (self.leave, state.taken, state.limit);
            Refusal::Shortage(Shortage { free, total, leave, taken, limit })
        };
        let within = state.limit.is_none_or(|limit| state.taken.saturating_add(bytes) <= limit);
        if !within || bytes.saturating_add(self.leave) > free {
            return Err(shortage(&state));
        }
        match allocate() {
            Ok(taken) => {
                state.taken += bytes;
                Ok(taken)
            }
            Err(e) if e.0 == CUresult::CUDA_ERROR_OUT_OF_MEMORY => Err(shortage(&state)),
            Err(e) => Err(Refusal::Driver(e)),
        }
    }

    /// Notes that the driver has bytes back.
    pub fn returned(&self, bytes: usize) {
        self.state().taken -= bytes;
    }

    /// Asks lenders for memory; returns whether one gave something.
    fn borrow(&self, bytes: usize) -> bool {
        let mut lenders: Vec<_> = self.state().lenders.iter().filter_map(Weak::upgrade).collect();
        lenders.sort_by_key(|lender| lender.last_used());
        [false, true].iter().any(|in_need| lenders.iter().any(|l| l.give_back(bytes, *in_need) > 0))
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Refusal {
    /// Returns the error, for the `purpose` of `bytes` beside the `reserved` ones that it has.
    pub fn error(self, purpose: &str, bytes: usize, reserved: usize) -> Error {
        match self {
            Self::Shortage(shortage) => shortage.error(purpose, bytes, reserved),
            Self::Driver(e) => device(e),
        }
    }
}

/// Takes memory by `allocate`, with the error of `purpose`.
pub(super) fn take<T>(
    supply: &Supply,
    purpose: &str,
    [bytes, reserved]: [usize; 2],
    allocate: impl Fn() -> std::result::Result<T, DriverError>,
) -> Result<T> {
    supply.take(bytes, allocate).map_err(|refusal| refusal.error(purpose, bytes, reserved))
}
