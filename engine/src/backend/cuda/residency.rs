//! The weights of one network that waits in host memory, or in its files: which of its groups are on the device, and how the others come
//! there in time.
//!
//! The leading groups stay on the device. The others take turns in a few slots: group `i` always in slot `i % slots`, so
//! that neighbours never share one. Every group has addresses of its own (see [`super::mapping`]), behind which there is
//! memory of its own, a slot's, or none.
//!
//! Two events order copies and computing, and the host waits for neither: a copy waits until the stream of computations
//! has left the group that was in the slot before, and the first computation with a group waits for its copy. When a
//! group is entered or left, the copies of the next ones are enqueued, so that they run beside the computations; after the
//! last group come those of the next pass.
//!
//! A network at rest keeps its memory until somebody else needs it (see [`super::supply`]), and takes it again when its
//! next group is entered. Only then, and when a plan changes, does the host wait for the device.

mod layout;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use animd_kernels::cuda::cudarc::driver::CudaEvent;

use super::assembly::Assembly;
use super::error::device;
use super::gpu::Gpu;
use super::mapping::{Physical, Range};
use super::slab::Slab;
use super::supply::Lender;
use crate::{Error, Result};

/// The most groups whose copies are enqueued ahead of the computations.
const AHEAD: usize = 4;
/// The slots of a network that has to give up memory that was planned to stay.
const SLOTS: usize = 2;

/// What of a network is on the device while it works.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Layout {
    /// The number of leading groups that stay.
    pub resident: usize,
    /// The number of slots that the other groups pass through.
    pub slots: usize,
}

impl Layout {
    /// Everything stays.
    pub const WHOLE: Self = Self { resident: usize::MAX, slots: 0 };
}

/// The number of times that any group was entered.
static USES: AtomicU64 = AtomicU64::new(0);

/// All networks of a GPU whose weights do not stay there, and what plans say of them.
#[derive(Default)]
pub(super) struct Networks(Mutex<Known>);

#[derive(Default)]
struct Known {
    networks: Vec<Weak<Network>>,
    /// The layouts of the current plan, by the networks' names.
    layouts: BTreeMap<String, Layout>,
}

impl Networks {
    /// Starts a network with the layout that the current plan has for it, or else with all of its groups on the device.
    pub fn start(&self, gpu: &Arc<Gpu>, granularity: usize, name: &str) -> Arc<Network> {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let layout = known.layouts.get(name).copied().unwrap_or(Layout::WHOLE);
        let network = Network::new(gpu, granularity, name, layout);
        known.networks.retain(|network| network.strong_count() > 0);
        known.networks.push(Arc::downgrade(&network));
        network
    }

    /// Gives networks the layouts of another plan, now or when they are started.
    pub fn plan(&self, layouts: BTreeMap<String, Layout>) {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for network in known.networks.iter().filter_map(Weak::upgrade) {
            if let Some(layout) = layouts.get(&network.name) {
                network.plan(*layout);
            }
        }
        known.layouts = layouts;
    }
}

/// The groups of one network.
pub(super) struct Network {
    gpu: Arc<Gpu>,
    granularity: usize,
    name: String,
    /// The value of [`USES`] when a group was last entered.
    last_used: AtomicU64,
    state: Mutex<State>,
}

struct State {
    groups: Vec<Member>,
    /// The groups that are entered one after the other; the others are around them.
    order: Vec<usize>,
    slots: Vec<Slot>,
    /// What the plan says.
    planned: Layout,
    /// The number of leading groups in `order` that have memory of their own.
    resident: usize,
    /// Whether the planned layout is to be made before the next computation.
    unsettled: bool,
}

struct Member {
    range: Arc<Range>,
    source: Source,
    home: Home,
    /// Whether its weights are on the device, or on their way.
    there: bool,
    /// Whether computations must wait for the copy.
    on_its_way: bool,
    copied: CudaEvent,
    /// The number of times that it is entered.
    entered: usize,
}

/// Where a group's weights wait.
pub(super) enum Source {
    /// In host memory, as they are on the device.
    Slab(Slab),
    /// In files, from which they are read each time. `read` enqueues that among the computations, with whatever converts
    /// them, to the `bytes` at the group's addresses.
    File { bytes: usize, read: Box<dyn Fn() -> Result<()> + Send + Sync> },
}

impl Source {
    /// Returns the bytes of the weights on the device.
    fn bytes(&self) -> usize {
        match self {
            Self::Slab(slab) => slab.bytes().len(),
            Self::File { bytes, .. } => *bytes,
        }
    }
}

/// The memory behind a group's addresses.
enum Home {
    Nowhere,
    Own(Physical),
    /// That of the slot with this number.
    Slot(usize),
}

struct Slot {
    memory: Physical,
    /// The group whose weights are there, or on their way.
    holder: Option<usize>,
    /// Passed when nothing uses the slot's last group any more.
    left: CudaEvent,
}

impl State {
    /// Returns the state of a network without groups.
    fn empty() -> Self {
        let (planned, resident, unsettled) = (Layout::WHOLE, 0, true);
        Self { groups: Vec::new(), order: Vec::new(), slots: Vec::new(), planned, resident, unsettled }
    }
}

/// A group of a network.
pub struct Place {
    network: Arc<Network>,
    group: usize,
}

impl Place {
    pub(super) fn enter(&self) -> Result<()> {
        self.network.enter(self.group)
    }

    pub(super) fn leave(&self) {
        self.network.leave(self.group);
    }
}

impl Network {
    /// Returns a network without groups.
    fn new(gpu: &Arc<Gpu>, granularity: usize, name: &str, planned: Layout) -> Arc<Self> {
        let state = State { planned, ..State::empty() };
        let network = Arc::new(Self {
            gpu: gpu.clone(),
            granularity,
            name: name.to_owned(),
            last_used: AtomicU64::new(0),
            state: Mutex::new(state),
        });
        let lender: Weak<Self> = Arc::downgrade(&network);
        gpu.supply.add_lender(lender);
        network
    }

    /// Starts a group; see [`Assembly::new`].
    ///
    /// # Errors
    /// Returns [`Error::Device`] if the driver has failed.
    pub fn start(&self, with_memory: bool) -> Result<Assembly> {
        Assembly::new(&self.gpu, self.granularity, with_memory)
    }

    /// Adds a group with tensors in this range of addresses. A group that is `around` the others is on the device whenever
    /// the network works.
    ///
    /// # Errors
    /// Returns [`Error::Device`] if the driver has failed.
    pub fn add(self: &Arc<Self>, range: &Arc<Range>, source: Source, around: bool) -> Result<Place> {
        let copied = self.gpu.context.new_event(None).map_err(device)?;
        let (range, home, there, on_its_way, entered) = (range.clone(), Home::Nowhere, false, false, 0);
        let mut state = self.state();
        let group = state.groups.len();
        state.groups.push(Member { range, source, home, there, on_its_way, copied, entered });
        if !around {
            state.order.push(group);
        }
        state.unsettled = true;
        drop(state);
        Ok(Place { network: self.clone(), group })
    }

    /// Sets what is to be on the device from the next computation on.
    fn plan(&self, planned: Layout) {
        let mut state = self.state();
        let wanted = planned.resident.min(state.order.len());
        state.unsettled |= planned != state.planned || state.resident != wanted;
        state.planned = planned;
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn enter(&self, group: usize) -> Result<()> {
        self.last_used.store(USES.fetch_add(1, Ordering::Relaxed), Ordering::Relaxed);
        let mut state = self.state();
        if state.unsettled {
            self.settle(&mut state)?;
        }
        self.bring(&mut state, group)?;
        let member = &mut state.groups[group];
        if member.on_its_way {
            self.gpu.stream.wait(&member.copied).map_err(device)?;
            member.on_its_way = false;
        }
        member.entered += 1;
        self.prefetch(&mut state, group);
        Ok(())
    }

    fn leave(&self, group: usize) {
        let mut state = self.state();
        let State { groups, slots, .. } = &mut *state;
        let member = &mut groups[group];
        member.entered = member.entered.saturating_sub(1);
        if member.entered > 0 {
            return;
        }
        if let Home::Slot(slot) = member.home {
            // A driver that fails here has failed for good, and the next call says so.
            let _ = slots[slot].left.record(&self.gpu.stream);
        }
        self.prefetch(&mut state, group);
    }

    /// Enqueues the copies of the groups that follow. Where that fails, the group is copied when it is entered, which says
    /// what is wrong.
    fn prefetch(&self, state: &mut State, group: usize) {
        if let Err(e) = self.look_ahead(state, group) {
            tracing::debug!("no copy ahead of the computations: {e}");
        }
    }

    /// Enqueues the copy of a group that is not on the device.
    fn bring(&self, state: &mut State, group: usize) -> Result<()> {
        let State { groups, slots, .. } = state;
        if groups[group].there {
            return Ok(());
        }
        let transfer = &self.gpu.transfer;
        match groups[group].home {
            Home::Nowhere => {
                return Err(Error::Internal(format!("group {group} of {} has no memory", self.name)));
            }
            Home::Own(_) => {}
            Home::Slot(slot) => {
                let slot = &mut slots[slot];
                if let Some(holder) = slot.holder.replace(group).filter(|holder| *holder != group) {
                    if groups[holder].entered > 0 {
                        slot.holder = Some(holder);
                        return Err(Error::Internal(format!(
                            "groups {holder} and {group} of {} are used at once, and share a slot",
                            self.name
                        )));
                    }
                    groups[holder].there = false;
                }
                transfer.stream.wait(&slot.left).map_err(device)?;
            }
        }
        let member = &mut groups[group];
        match &member.source {
            Source::Slab(slab) => {
                // SAFETY: the slab lives as long as this network, which waits for all copies before its end, and the
                // range has memory until the network has waited for them. The event keeps the slot's last group until it
                // is left.
                unsafe { transfer.send(slab, member.range.address)? };
                member.copied.record(&transfer.stream).map_err(device)?;
                member.on_its_way = true;
            }
            // The order of the stream keeps the slot's last group.
            Source::File { read, .. } => read()?,
        }
        member.there = true;
        Ok(())
    }

    /// Enqueues the copies of the groups that follow, until one would have to go where another is needed sooner.
    fn look_ahead(&self, state: &mut State, group: usize) -> Result<()> {
        let count = state.order.len();
        let Some(at) = state.order.iter().position(|g| *g == group) else { return Ok(()) };
        let mut copies = 0;
        for distance in 1..count {
            let next = state.order[(at + distance) % count];
            let member = &state.groups[next];
            if member.there {
                continue;
            }
            // Reading a file takes the host's time, which the computations of this group should get first.
            if matches!(member.source, Source::File { .. }) {
                break;
            }
            let holder = match member.home {
                Home::Nowhere => break,
                Home::Own(_) => None,
                Home::Slot(slot) => state.slots[slot].holder,
            };
            if let Some(holder) = holder {
                let turn = state.order.iter().position(|g| *g == holder).unwrap_or_default();
                let sooner = (1..distance).contains(&((turn + count - at) % count));
                if state.groups[holder].entered > 0 || (sooner && state.groups[holder].there) {
                    break;
                }
            }
            self.bring(state, next)?;
            copies += 1;
            if copies == AHEAD {
                break;
            }
        }
        Ok(())
    }
}

impl Lender for Network {
    fn give_back(&self, bytes: usize, in_need: bool) -> usize {
        // A network that is locked is the one that asks.
        let Ok(mut state) = self.state.try_lock() else { return 0 };
        let works = state.groups.iter().any(|member| member.entered > 0);
        let has = state.groups.iter().any(|member| !matches!(member.home, Home::Nowhere));
        if !has || (works && !in_need) {
            return 0;
        }
        let freed = self.quiesce().and_then(|()| match works {
            true => self.retreat(&mut state, bytes),
            false => state.lend(bytes),
        });
        freed.unwrap_or_else(|e| {
            tracing::warn!("{} keeps its memory on the GPU: {e}", self.name);
            0
        })
    }

    fn last_used(&self) -> u64 {
        self.last_used.load(Ordering::Relaxed)
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        // A driver that fails here has failed for good, and the next call says so.
        let _ = self.quiesce();
        let mut state = std::mem::replace(&mut *self.state(), State::empty());
        let all = state.groups.len();
        for group in 0..all {
            let _ = state.unmap(group);
        }
    }
}
