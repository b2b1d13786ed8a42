//! Which memory lies behind the groups of a network: the planned layout is made, memory is lent, and given up at work.
//!
//! Groups of networks that take turns share a slot at first; a second pass gives as many of them as planned a slot of their
//! own. Memory is given back the other way round: before a group has to be copied in each pass, groups are shared again.
//!
//! Everything here changes mappings, so the streams must be at rest.

use super::{Network, SLOTS, Slot, SlotId, State};
use crate::backend::cuda::error::device;
use crate::backend::cuda::mapping::Physical;
use crate::backend::cuda::supply::Refusal;
use crate::{Error, Result};

impl Network {
    /// Makes the planned layout, or what comes next to it with the memory that there is.
    pub(super) fn settle(&self, state: &mut State) -> Result<()> {
        self.quiesce()?;
        let ranks = state.ranks();
        let wanted = state.planned.resident.min(ranks);
        let own = state.planned.own().min(wanted);
        while state.split_ranks() > own && state.merge()? > 0 {}
        if own == 0 {
            state.merge_arounds()?;
        }
        while state.leading.len() > wanted {
            state.evict()?;
        }
        let slots = if wanted < ranks { state.planned.slots.max(1) } else { 0 };
        if state.passing.len() != slots {
            state.clear_passing()?;
        }
        for members in state.arounds() {
            if state.slots_of(&members).is_empty() {
                let slot = self.slot(state, &members).map_err(|refusal| Self::refused(refusal, state))?;
                state.share(&members, slot)?;
            }
        }
        self.make_passing(state, slots)?;
        while state.leading.len() < wanted {
            let members = state.rank(state.leading.len());
            match self.slot(state, &members) {
                Ok(slot) => {
                    for member in &members {
                        state.unmap(*member)?;
                    }
                    state.share(&members, slot)?;
                    state.leading.push(vec![slot]);
                }
                // Memory comes in large pages, which the plan does not count, so that one group may have no room.
                Err(Refusal::Shortage(_)) if state.leading.len() + 1 == wanted => break,
                Err(Refusal::Shortage(_)) => {
                    self.gpu.note(&format!(
                        "{} of the {wanted} groups of {} that were planned to stay on the GPU do: it has less memory than \
                         was planned for, so the others are copied each time",
                        state.leading.len(),
                        state.names()
                    ));
                    break;
                }
                Err(refusal) => return Err(Self::refused(refusal, state)),
            }
        }
        if state.leading.len() < ranks && state.passing.is_empty() {
            self.trade(state)?;
        }
        state.map_passing()?;
        self.split(state, own)?;
        state.unsettled = false;
        Ok(())
    }

    /// Gives leading groups of networks that take turns slots of their own, and what is around the groups before them.
    fn split(&self, state: &mut State, own: usize) -> Result<()> {
        if own == 0 {
            return Ok(());
        }
        let arounds = state.arounds();
        let ranks = (0..own.min(state.leading.len())).map(|rank| state.rank(rank));
        let all: Vec<(Option<usize>, Vec<usize>)> = arounds
            .into_iter()
            .map(|members| (None, members))
            .chain(ranks.enumerate().map(|(rank, members)| (Some(rank), members)))
            .collect();
        for (rank, members) in all {
            while state.slots_of(&members).len() < members.len() {
                // The last member that shares a slot leaves it.
                let shared = |member: &&usize| {
                    let home = state.groups[**member].home;
                    members.iter().filter(|other| state.groups[**other].home == home).count() > 1
                };
                let Some(&member) = members.iter().rev().find(shared) else { break };
                match self.slot(state, &[member]) {
                    Ok(slot) => {
                        state.unmap(member)?;
                        state.share(&[member], slot)?;
                        if let Some(rank) = rank {
                            state.leading[rank].push(slot);
                        }
                    }
                    Err(Refusal::Shortage(_)) => {
                        let kept = state.split_ranks();
                        // As above, one group may have no room.
                        if kept + 1 < own {
                            self.gpu.note(&format!(
                                "{kept} of the {own} groups that were planned to stay on the GPU for each of {} do: it has less \
                                 memory than was planned for, so the others are copied when the networks take turns",
                                state.names()
                            ));
                        }
                        return Ok(());
                    }
                    Err(refusal) => return Err(Self::refused(refusal, state)),
                }
            }
        }
        Ok(())
    }

    /// Gives up leading groups for the slots that all others need.
    fn trade(&self, state: &mut State) -> Result<()> {
        loop {
            match self.make_passing(state, SLOTS) {
                Err(Error::Memory(_)) if !state.leading.is_empty() => drop(state.evict()?),
                other => return other,
            }
        }
    }

    /// Takes memory until the groups that do not stay have so many slots.
    fn make_passing(&self, state: &mut State, count: usize) -> Result<()> {
        let all: Vec<usize> = state.lanes.iter().flat_map(|lane| lane.order.clone()).collect();
        while state.passing.len() < count {
            let slot = self.slot(state, &all).map_err(|refusal| Self::refused(refusal, state))?;
            state.passing.push(slot);
        }
        Ok(())
    }

    /// Takes memory for a slot that holds any of some groups.
    fn slot(&self, state: &mut State, members: &[usize]) -> std::result::Result<SlotId, Refusal> {
        let largest = members.iter().map(|group| state.groups[*group].source.bytes()).max();
        let bytes = largest.unwrap_or_default().max(1).next_multiple_of(self.granularity);
        let left = self.gpu.context.new_event(None).map_err(Refusal::Driver)?;
        let memory = Physical::new(&self.gpu.context, &self.gpu.supply, bytes)?;
        let id = state.slots.last_key_value().map_or(0, |(last, _)| last + 1);
        state.slots.insert(id, Slot { memory, holder: None, left });
        Ok(id)
    }

    fn refused(refusal: Refusal, state: &State) -> Error {
        let largest = state.groups.iter().map(|member| member.source.bytes()).max().unwrap_or_default();
        refusal.error(&format!("the weights of {}", state.names()), largest, 0)
    }

    /// Waits until nothing that is enqueued uses a group.
    pub(super) fn quiesce(&self) -> Result<()> {
        self.gpu.transfer.finish()?;
        self.gpu.stream.synchronize().map_err(device)
    }

    /// Gives back memory of a network at work: leading groups are shared or pass through slots from now on.
    pub(super) fn retreat(&self, state: &mut State, bytes: usize) -> Result<usize> {
        let groups = state.lanes.iter().flat_map(|lane| &lane.order);
        let slot = groups.map(|group| state.groups[*group].source.bytes()).max();
        let slot = slot.unwrap_or_default().next_multiple_of(self.granularity);
        let mut freed = 0;
        while freed < bytes {
            match state.merge()? {
                0 => break,
                merged => freed += merged,
            }
        }
        if freed >= bytes {
            self.gpu.note(&format!(
                "the GPU has less memory than was planned for: from now on only {} groups stay there for each of {}, and the \
                 others are copied when the networks take turns",
                state.split_ranks(),
                state.names()
            ));
            return Ok(freed);
        }
        let needed = bytes + if state.passing.is_empty() { SLOTS * slot } else { 0 };
        while freed < needed {
            let last = state.leading.len().checked_sub(1).map(|last| state.rank(last));
            match last {
                Some(last) if last.iter().all(|group| state.groups[*group].entered == 0) => {
                    freed += state.evict()?;
                }
                _ => break,
            }
        }
        if freed == 0 {
            return Ok(0);
        }
        // Should there be no room for slots, the next group that is entered looks for some again.
        state.unsettled = true;
        if state.leading.len() < state.ranks() && state.passing.is_empty() {
            self.trade(state)?;
            freed = freed.saturating_sub(SLOTS * slot);
        }
        state.map_passing()?;
        state.unsettled = false;
        self.gpu.note(&format!(
            "the GPU has less memory than was planned for: from now on only {} groups of {} stay there, and the others are \
             copied each time",
            state.leading.len(),
            state.names()
        ));
        Ok(freed)
    }
}

impl State {
    /// Returns the group with this number in each lane.
    pub(super) fn rank(&self, rank: usize) -> Vec<usize> {
        self.lanes.iter().filter_map(|lane| lane.order.get(rank).copied()).collect()
    }

    /// Returns the groups around the others that take turns with each other.
    fn arounds(&self) -> Vec<Vec<usize>> {
        let most = self.lanes.iter().map(|lane| lane.around.len()).max().unwrap_or_default();
        let of = |i| self.lanes.iter().filter_map(|lane| lane.around.get(i).copied()).collect();
        (0..most).map(of).collect()
    }

    /// Returns the slots of some groups, each once.
    fn slots_of(&self, members: &[usize]) -> Vec<SlotId> {
        let mut slots: Vec<SlotId> = members.iter().filter_map(|member| self.groups[*member].home).collect();
        slots.dedup();
        slots
    }

    /// Returns the number of leading groups that have a slot in each of several lanes.
    pub(super) fn split_ranks(&self) -> usize {
        self.leading.iter().filter(|slots| slots.len() > 1).count()
    }

    /// Gives back memory of a network at rest.
    pub(super) fn lend(&mut self, bytes: usize) -> Result<usize> {
        let mut freed = 0;
        while freed < bytes && self.split_ranks() > 0 {
            freed += self.merge()?;
        }
        while freed < bytes && !self.leading.is_empty() {
            freed += self.evict()?;
        }
        if freed < bytes {
            for group in 0..self.groups.len() {
                self.unmap(group)?;
            }
            freed += self.slots.values().map(|slot| slot.memory.bytes()).sum::<usize>();
            self.slots.clear();
            self.passing.clear();
        }
        self.unsettled |= freed > 0;
        Ok(freed)
    }

    /// Maps groups that have no memory to a slot.
    fn share(&mut self, members: &[usize], slot: SlotId) -> Result<()> {
        let Self { groups, slots, .. } = self;
        let Some(Slot { memory, .. }) = slots.get(&slot) else { return Ok(()) };
        for member in members {
            groups[*member].range.map(0, memory)?;
            groups[*member].home = Some(slot);
        }
        Ok(())
    }

    /// Maps all groups that have no memory to the slots that they pass through.
    fn map_passing(&mut self) -> Result<()> {
        if self.passing.is_empty() {
            return Ok(());
        }
        for rank in self.leading.len()..self.ranks() {
            let slot = self.passing[rank % self.passing.len()];
            let homeless = self.rank(rank).into_iter().filter(|group| self.groups[*group].home.is_none());
            self.share(&homeless.collect::<Vec<_>>(), slot)?;
        }
        Ok(())
    }

    /// Gives back the slots that groups pass through. The streams must be at rest.
    fn clear_passing(&mut self) -> Result<usize> {
        let passing = std::mem::take(&mut self.passing);
        passing.into_iter().map(|slot| self.remove(slot)).sum()
    }

    /// Gives back the memory of the last of the leading groups, and returns its bytes. The streams must be at rest.
    fn evict(&mut self) -> Result<usize> {
        let slots = self.leading.pop().unwrap_or_default();
        slots.into_iter().map(|slot| self.remove(slot)).sum()
    }

    /// Has the last of the leading groups that have several slots share one again, and returns the bytes that this gives back: 0
    /// if there is none, or its groups are in use. The streams must be at rest.
    fn merge(&mut self) -> Result<usize> {
        let Some(rank) = self.leading.iter().rposition(|slots| slots.len() > 1) else { return Ok(0) };
        let freed = self.merge_members(&self.rank(rank))?;
        if freed > 0 {
            self.leading[rank].truncate(1);
        }
        Ok(freed)
    }

    /// Has the groups around the others share their slots again. The streams must be at rest.
    fn merge_arounds(&mut self) -> Result<()> {
        self.arounds().iter().try_for_each(|members| self.merge_members(members).map(drop))
    }

    /// Moves groups to the slot of the first of them, and returns the bytes that this gives back: 0 if they share it already, or
    /// one that would move is in use.
    fn merge_members(&mut self, members: &[usize]) -> Result<usize> {
        let Some((kept, given)) = self.slots_of(members).split_first().map(|(k, g)| (*k, g.to_vec())) else {
            return Ok(0);
        };
        let moved: Vec<usize> =
            members.iter().copied().filter(|group| self.groups[*group].home != Some(kept)).collect();
        if moved.iter().any(|group| self.groups[*group].entered > 0) {
            return Ok(0);
        }
        let freed = given.into_iter().map(|slot| self.remove(slot)).sum::<Result<usize>>()?;
        self.share(&moved, kept)?;
        Ok(freed)
    }

    /// Gives back a slot, and returns its bytes. The streams must be at rest.
    fn remove(&mut self, slot: SlotId) -> Result<usize> {
        for group in 0..self.groups.len() {
            if self.groups[group].home == Some(slot) {
                self.unmap(group)?;
            }
        }
        Ok(self.slots.remove(&slot).map_or(0, |slot| slot.memory.bytes()))
    }

    /// Takes a group's addresses from the memory of its slot. The streams must be at rest.
    pub(super) fn unmap(&mut self, group: usize) -> Result<()> {
        let Self { groups, slots, .. } = self;
        let member = &mut groups[group];
        let Some(slot) = member.home.and_then(|home| slots.get_mut(&home)) else { return Ok(()) };
        // SAFETY: the caller has waited for both streams, and nothing has been enqueued since.
        unsafe { member.range.unmap(slot.memory.bytes())? };
        (member.there, member.on_its_way, member.home) = (false, false, None);
        slot.holder.take_if(|holder| *holder == group);
        Ok(())
    }
}
