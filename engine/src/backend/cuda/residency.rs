//! The weights of networks that wait in host memory, or in their files: which of their groups are on the device, and how the others
//! come there in time.
//!
//! The leading groups stay on the device. The others take turns in a few slots: group `i` always in slot `i % slots`, so
//! that neighbours never share one. Every group has addresses of its own (see [`super::mapping`]), behind which there is
//! memory of its own, that of a slot, or none.
//!
//! Networks that take turns, such as the two transformers of Wan2.2, are the [`Lane`]s of one memory: the leading group `i` of
//! each has the same slot, as far as there is no room for both. While the last forward of one runs, the groups of the next one
//! come into the slots that it leaves ([`ahead`]), so that the change costs neither memory nor time.
//!
//! Two events order copies and computing, and the host waits for neither: a copy waits until the stream of computations
//! has left the group that was in the slot before, and the first computation with a group waits for its copy. When a
//! group is entered or left, the copies of the next ones are enqueued, so that they run beside the computations; after the
//! last group come those of the next pass.
//!
//! A network at rest keeps its memory until somebody else needs it (see [`super::supply`]), and takes it again when its
//! next group is entered. Only then, and when a plan changes, does the host wait for the device.

mod ahead;
mod layout;
mod networks;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use animd_kernels::cuda::cudarc::driver::CudaEvent;

use super::error::device;
use super::gpu::Gpu;
use super::mapping::{Physical, Range};
use super::slab::Slab;
use super::supply::Lender;
use crate::{Error, Result};

pub(super) use networks::{Lane, Layout, Networks};

/// The slots of networks that have to give up memory that was planned to stay.
const SLOTS: usize = 2;

/// The number of times that any group was entered.
static USES: AtomicU64 = AtomicU64::new(0);

/// The groups of one network, or of several that take turns.
pub(super) struct Network {
    gpu: Arc<Gpu>,
    granularity: usize,
    /// The value of [`USES`] when a group was last entered.
    last_used: AtomicU64,
    state: Mutex<State>,
}

struct State {
    groups: Vec<Member>,
    /// The networks' groups.
    lanes: Vec<LaneGroups>,
    slots: BTreeMap<SlotId, Slot>,
    /// The slots of the leading groups that stay while their network works: for group `i` of all lanes together one slot, or
    /// one for each lane.
    leading: Vec<Vec<SlotId>>,
    /// The slots that the other groups pass through.
    passing: Vec<SlotId>,
    /// What the plan says.
    planned: Layout,
    /// Whether the planned layout is to be made before the next computation.
    unsettled: bool,
    /// The lane whose turn is next, if the pass that is under way is the last one of the current lane.
    next: Option<usize>,
    traffic: Traffic,
}

/// The groups of one network.
struct LaneGroups {
    /// The network's name in the recipe.
    name: String,
    /// The groups that are entered one after the other.
    order: Vec<usize>,
    /// The groups that are on the device whenever the network works.
    around: Vec<usize>,
}

impl LaneGroups {
    fn new(name: &str) -> Self {
        Self { name: name.to_owned(), order: Vec::new(), around: Vec::new() }
    }
}

/// How often groups came to the device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Traffic {
    /// The number of groups that were copied or read.
    pub brought: usize,
    /// Those of them whose copy began only when the group was entered.
    pub late: usize,
}

struct Member {
    range: Arc<Range>,
    source: Source,
    /// The slot whose memory is behind its addresses.
    home: Option<SlotId>,
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

/// The number of a slot among those that there are.
type SlotId = usize;

/// Memory behind the addresses of one group, or of several that take turns there.
struct Slot {
    memory: Physical,
    /// The group whose weights are there, or on their way.
    holder: Option<usize>,
    /// Passed when nothing uses the slot's last group any more.
    left: CudaEvent,
}

impl State {
    /// Returns the state of a network without groups.
    fn empty(planned: Layout) -> Self {
        Self {
            groups: Vec::new(),
            lanes: Vec::new(),
            slots: BTreeMap::new(),
            leading: Vec::new(),
            passing: Vec::new(),
            planned,
            unsettled: true,
            next: None,
            traffic: Traffic::default(),
        }
    }

    /// Returns the number of groups of the longest lane.
    fn ranks(&self) -> usize {
        self.lanes.iter().map(|lane| lane.order.len()).max().unwrap_or_default()
    }

    /// Returns the lanes' names, for messages.
    fn names(&self) -> String {
        self.lanes.iter().map(|lane| &*lane.name).collect::<Vec<_>>().join(" and ")
    }

    /// Returns the lane that a group belongs to.
    fn lane_of(&self, group: usize) -> Option<usize> {
        self.lanes.iter().position(|lane| lane.order.contains(&group) || lane.around.contains(&group))
    }

    fn works(&self) -> bool {
        self.groups.iter().any(|member| member.entered > 0)
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

    /// Says that the pass that is about to begin is the last one of its network's turn, and that the turn of this group's
    /// network comes then.
    pub(super) fn is_next(&self) {
        let mut state = self.network.state();
        let lane = state.lane_of(self.group);
        // A network alone comes after itself anyway.
        state.next = lane.filter(|_| state.lanes.len() > 1);
    }
}

impl Network {
    /// Returns a network without groups.
    fn new(gpu: &Arc<Gpu>, granularity: usize, planned: Layout) -> Arc<Self> {
        let network = Arc::new(Self {
            gpu: gpu.clone(),
            granularity,
            last_used: AtomicU64::new(0),
            state: Mutex::new(State::empty(planned)),
        });
        let lender: Weak<Self> = Arc::downgrade(&network);
        gpu.supply.add_lender(lender);
        network
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
        if !state.groups[group].there {
            state.traffic.late += 1;
            self.bring(&mut state, group)?;
        }
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
        if let Some(slot) = member.home.and_then(|home| slots.get(&home)) {
            // A driver that fails here has failed for good, and the next call says so.
            let _ = slot.left.record(&self.gpu.stream);
        }
        self.prefetch(&mut state, group);
    }

    /// Enqueues the copy of a group that is not on the device.
    fn bring(&self, state: &mut State, group: usize) -> Result<()> {
        let transfer = &self.gpu.transfer;
        let home = state.groups[group].home.and_then(|home| state.slots.get_mut(&home));
        let Some(slot) = home else {
            return Err(Error::Internal(format!("group {group} of {} has no memory", state.names())));
        };
        if let Some(holder) = slot.holder.filter(|holder| *holder != group) {
            if state.groups[holder].entered > 0 {
                return Err(Error::Internal(format!(
                    "groups {holder} and {group} of {} are used at once, and share a slot",
                    state.names()
                )));
            }
            state.groups[holder].there = false;
        }
        slot.holder = Some(group);
        transfer.stream.wait(&slot.left).map_err(device)?;
        let member = &mut state.groups[group];
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
        state.traffic.brought += 1;
        Ok(())
    }
}

impl Lender for Network {
    fn give_back(&self, bytes: usize, in_need: bool) -> usize {
        // A network that is locked is the one that asks.
        let Ok(mut state) = self.state.try_lock() else { return 0 };
        let works = state.works();
        if state.slots.is_empty() || (works && !in_need) {
            return 0;
        }
        let freed = self.quiesce().and_then(|()| match works {
            true => self.retreat(&mut state, bytes),
            false => state.lend(bytes),
        });
        freed.unwrap_or_else(|e| {
            tracing::warn!("{} keeps its memory on the GPU: {e}", state.names());
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
        let mut state = std::mem::replace(&mut *self.state(), State::empty(Layout::WHOLE));
        let all = state.groups.len();
        for group in 0..all {
            let _ = state.unmap(group);
        }
    }
}
