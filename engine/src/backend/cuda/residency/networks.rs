//! The networks of a GPU whose weights do not stay there, and what plans say of them.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use super::{LaneGroups, Member, Network, Place, Source, State, Traffic};
use crate::Result;
use crate::backend::cuda::assembly::Assembly;
use crate::backend::cuda::error::device;
use crate::backend::cuda::gpu::Gpu;
use crate::backend::cuda::mapping::Range;

/// What of a network is on the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::backend::cuda) struct Layout {
    /// The number of leading groups that stay while the network works.
    pub resident: usize,
    /// The number of slots that the other groups pass through.
    pub slots: usize,
    /// For a network that takes turns with others in one memory: the number of its leading groups that stay while the others
    /// work, too. What is around its groups stays with the first of them.
    pub turns: Option<usize>,
}

impl Layout {
    /// Everything stays.
    pub const WHOLE: Self = Self { resident: usize::MAX, slots: 0, turns: None };

    /// Returns the number of leading groups whose memory is theirs alone.
    pub(super) fn own(&self) -> usize {
        self.turns.unwrap_or(usize::MAX)
    }
}

/// All networks of a GPU whose weights do not stay there, and what plans say of them.
#[derive(Default)]
pub(in crate::backend::cuda) struct Networks(Mutex<Known>);

#[derive(Default)]
struct Known {
    networks: Vec<Weak<Network>>,
    /// The layouts of the current plan, by the networks' names.
    layouts: BTreeMap<String, Layout>,
    /// The layout that a test gives networks that take turns, whatever plans say.
    #[cfg(test)]
    insisted: Option<Layout>,
}

impl Networks {
    /// Starts a network with the layout that the current plan has for it, or else with all of its groups on the device. A
    /// network that takes turns shares the memory of those that it takes turns with.
    pub fn start(&self, gpu: &Arc<Gpu>, granularity: usize, name: &str) -> Lane {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let layout = known.layouts.get(name).copied().unwrap_or(Layout::WHOLE);
        known.networks.retain(|network| network.strong_count() > 0);
        let others = known.networks.iter().filter_map(Weak::upgrade);
        let partner = others.filter(|_| layout.turns.is_some()).find(|network| {
            let state = network.state();
            state.planned.turns.is_some() && state.lanes.iter().all(|lane| lane.name != name)
        });
        let network = partner.unwrap_or_else(|| {
            let network = Network::new(gpu, granularity, layout);
            known.networks.push(Arc::downgrade(&network));
            network
        });
        let mut state = network.state();
        state.lanes.push(LaneGroups::new(name));
        let lane = state.lanes.len() - 1;
        drop(state);
        Lane { network, lane }
    }

    /// Gives networks the layouts of another plan, now or when they are started.
    pub fn plan(&self, layouts: BTreeMap<String, Layout>) {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        #[cfg(test)]
        let layouts = match known.insisted {
            Some(insisted) => {
                let as_insisted = |layout: Layout| if layout.turns.is_some() { insisted } else { layout };
                layouts.into_iter().map(|(name, layout)| (name, as_insisted(layout))).collect()
            }
            None => layouts,
        };
        for network in known.networks.iter().filter_map(Weak::upgrade) {
            let mut state = network.state();
            // Networks that share their memory have the same layout.
            if let Some(layout) = state.lanes.iter().find_map(|lane| layouts.get(&lane.name)) {
                state.plan(*layout);
            }
        }
        known.layouts = layouts;
    }

    /// Gives networks that take turns a layout, whatever later plans say.
    #[cfg(test)]
    pub fn insist(&self, layout: Layout) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insisted = Some(layout);
    }

    /// Returns how often groups came to the memory that a network has alone or shares.
    #[cfg(test)]
    pub fn traffic(&self, name: &str) -> Traffic {
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut all = known.networks.iter().filter_map(Weak::upgrade);
        let traffic = |network: Arc<Network>| {
            let state = network.state();
            state.lanes.iter().any(|lane| lane.name == name).then_some(state.traffic)
        };
        all.find_map(traffic).unwrap_or_default()
    }
}

#[cfg(test)]
impl Networks {
    /// Returns how many groups that stay while a network works are on the device, or on their way.
    pub fn there(&self, name: &str) -> usize {
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut all = known.networks.iter().filter_map(Weak::upgrade);
        let there = |network: Arc<Network>| {
            let state = network.state();
            let lane = state.lanes.iter().find(|lane| lane.name == name)?;
            let leading = lane.order.iter().take(state.leading.len());
            Some(leading.filter(|group| state.groups[**group].there).count())
        };
        all.find_map(there).unwrap_or_default()
    }
}

impl State {
    /// Sets what is to be on the device from the next computation on. A job that ended before its turn leaves nothing to be
    /// expected.
    fn plan(&mut self, planned: Layout) {
        let wanted = planned.resident.min(self.ranks());
        let own = if self.lanes.len() > 1 { planned.own().min(wanted) } else { 0 };
        self.unsettled |=
            planned != self.planned || self.leading.len() != wanted || self.split_ranks() != own;
        self.planned = planned;
        self.next = None;
        let Traffic { brought, late } = self.traffic;
        tracing::debug!(brought, late, "groups of {} that came to the GPU so far", self.names());
    }
}

/// A network that is being loaded, in the memory that it has alone or shares.
#[derive(Clone)]
pub(in crate::backend::cuda) struct Lane {
    network: Arc<Network>,
    lane: usize,
}

impl Lane {
    /// Starts a group; see [`Assembly::new`].
    ///
    /// # Errors
    /// Returns [`crate::Error::Device`] if the driver has failed.
    pub fn start(&self, with_memory: bool) -> Result<Assembly> {
        Assembly::new(&self.network.gpu, self.network.granularity, with_memory)
    }

    /// Adds a group with tensors in this range of addresses. A group that is `around` the others is on the device whenever
    /// the network works.
    ///
    /// # Errors
    /// Returns [`crate::Error::Device`] if the driver has failed.
    pub fn add(&self, range: &Arc<Range>, source: Source, around: bool) -> Result<Place> {
        let network = &self.network;
        let copied = network.gpu.context.new_event(None).map_err(device)?;
        let (range, home, there, on_its_way, entered) = (range.clone(), None, false, false, 0);
        let mut state = network.state();
        if !state.slots.is_empty() {
            // The memory was laid out without this group: it is laid out anew, for all of them, before the next computation.
            network.quiesce()?;
            state.lend(usize::MAX)?;
        }
        let group = state.groups.len();
        state.groups.push(Member { range, source, home, there, on_its_way, copied, entered });
        let lane = &mut state.lanes[self.lane];
        if around { &mut lane.around } else { &mut lane.order }.push(group);
        state.unsettled = true;
        drop(state);
        Ok(Place { network: network.clone(), group })
    }
}
