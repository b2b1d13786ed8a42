//! Which memory lies behind the groups of a network: the planned layout is made, memory is lent, and given up at work.
//!
//! Everything here changes mappings, so the streams must be at rest.

use super::{Home, Network, SLOTS, Slot, State};
use crate::backend::cuda::error::device;
use crate::backend::cuda::mapping::Physical;
use crate::backend::cuda::supply::Refusal;
use crate::{Error, Result};

impl Network {
    /// Makes the planned layout, or what comes next to it with the memory that there is.
    pub(super) fn settle(&self, state: &mut State) -> Result<()> {
        self.quiesce()?;
        let count = state.order.len();
        let wanted = state.planned.resident.min(count);
        while state.resident > wanted {
            state.evict()?;
        }
        let slots = if wanted < count { state.planned.slots.max(1) } else { 0 };
        if state.slots.len() != slots {
            state.clear_slots()?;
        }
        for group in (0..state.groups.len()).filter(|group| !state.order.contains(group)).collect::<Vec<_>>()
        {
            if matches!(state.groups[group].home, Home::Nowhere) {
                let memory = self.memory(state.groups[group].source.bytes());
                state.settle_in(group, memory.map_err(|refusal| self.refused(refusal, state))?)?;
            }
        }
        self.make_slots(state, slots)?;
        while state.resident < wanted {
            let group = state.order[state.resident];
            match self.memory(state.groups[group].source.bytes()) {
                Ok(memory) => {
                    state.unmap(group)?;
                    state.settle_in(group, memory)?;
                    state.resident += 1;
                }
                // Memory comes in large pages, which the plan does not count, so that one group may have no room.
                Err(Refusal::Shortage(_)) if state.resident + 1 == wanted => break,
                Err(Refusal::Shortage(_)) => {
                    self.gpu.note(&format!(
                        "{} of the {wanted} groups of {} that were planned to stay on the GPU do: it has less memory than \
                         was planned for, so the others are copied each time",
                        state.resident, self.name
                    ));
                    break;
                }
                Err(refusal) => return Err(self.refused(refusal, state)),
            }
        }
        if state.resident < count && state.slots.is_empty() {
            self.trade(state)?;
        }
        state.share()?;
        state.unsettled = false;
        Ok(())
    }

    /// Gives up leading groups for the slots that all others need.
    fn trade(&self, state: &mut State) -> Result<()> {
        loop {
            match self.make_slots(state, SLOTS) {
                Err(Error::Memory(_)) if state.resident > 0 => drop(state.evict()?),
                other => return other,
            }
        }
    }

    /// Takes memory for slots until there are so many.
    fn make_slots(&self, state: &mut State, count: usize) -> Result<()> {
        let largest = state.order.iter().map(|group| state.groups[*group].source.bytes()).max();
        while state.slots.len() < count {
            let memory = self.memory(largest.unwrap_or_default());
            let memory = memory.map_err(|refusal| self.refused(refusal, state))?;
            let left = self.gpu.context.new_event(None).map_err(device)?;
            state.slots.push(Slot { memory, holder: None, left });
        }
        Ok(())
    }

    /// Takes memory for so many bytes of weights.
    fn memory(&self, bytes: usize) -> std::result::Result<Physical, Refusal> {
        let bytes = bytes.max(1).next_multiple_of(self.granularity);
        Physical::new(&self.gpu.context, &self.gpu.supply, bytes)
    }

    fn refused(&self, refusal: Refusal, state: &State) -> Error {
        let bytes = |group: usize| state.groups[group].source.bytes();
        let largest = (0..state.groups.len()).map(bytes).max().unwrap_or_default();
        refusal.error(&format!("the weights of {}", self.name), largest, 0)
    }

    /// Waits until nothing that is enqueued uses a group.
    pub(super) fn quiesce(&self) -> Result<()> {
        self.gpu.transfer.finish()?;
        self.gpu.stream.synchronize().map_err(device)
    }

    /// Gives back memory of a network at work: leading groups pass through slots from now on.
    pub(super) fn retreat(&self, state: &mut State, bytes: usize) -> Result<usize> {
        let slot = state.order.iter().map(|group| state.groups[*group].source.bytes()).max();
        let slot = slot.unwrap_or_default().next_multiple_of(self.granularity);
        let needed = bytes + if state.slots.is_empty() { SLOTS * slot } else { 0 };
        let mut freed = 0;
        while freed < needed {
            let last = state.resident.checked_sub(1).map(|last| state.order[last]);
            match last {
                Some(last) if state.groups[last].entered == 0 => freed += state.evict()?,
                _ => break,
            }
        }
        if freed == 0 {
            return Ok(0);
        }
        // Should there be no room for slots, the next group that is entered looks for some again.
        state.unsettled = true;
        if state.slots.is_empty() {
            self.trade(state)?;
            freed = freed.saturating_sub(SLOTS * slot);
        }
        state.share()?;
        state.unsettled = false;
        self.gpu.note(&format!(
            "the GPU has less memory than was planned for: from now on only {} groups of {} stay there, and the others are \
             copied each time",
            state.resident, self.name
        ));
        Ok(freed)
    }
}

impl State {
    /// Gives back memory of a network at rest.
    pub(super) fn lend(&mut self, bytes: usize) -> Result<usize> {
        let mut freed = 0;
        while freed < bytes && self.resident > 0 {
            freed += self.evict()?;
        }
        if freed < bytes {
            freed += self.clear_slots()?;
            for group in 0..self.groups.len() {
                freed += self.unmap(group)?;
            }
        }
        self.unsettled |= freed > 0;
        Ok(freed)
    }

    /// Maps all groups that have no memory to their slots.
    fn share(&mut self) -> Result<()> {
        let Self { groups, slots, order, .. } = self;
        for &group in order.iter() {
            let member = &mut groups[group];
            if matches!(member.home, Home::Nowhere) && !slots.is_empty() {
                let slot = group % slots.len();
                member.range.map(0, &slots[slot].memory)?;
                member.home = Home::Slot(slot);
            }
        }
        Ok(())
    }

    /// Gives a group memory of its own.
    fn settle_in(&mut self, group: usize, memory: Physical) -> Result<()> {
        let member = &mut self.groups[group];
        member.range.map(0, &memory)?;
        member.home = Home::Own(memory);
        Ok(())
    }

    /// Gives back the slots. The streams must be at rest.
    fn clear_slots(&mut self) -> Result<usize> {
        for group in 0..self.groups.len() {
            if matches!(self.groups[group].home, Home::Slot(_)) {
                self.unmap(group)?;
            }
        }
        Ok(self.slots.drain(..).map(|slot| slot.memory.bytes()).sum())
    }

    /// Gives back the memory of the last of the leading groups, and returns its bytes. The streams must be at rest.
    fn evict(&mut self) -> Result<usize> {
        let Some(last) = self.resident.checked_sub(1) else { return Ok(0) };
        self.resident = last;
        self.unmap(self.order[last])
    }

    /// Takes a group's memory away, and returns its bytes if it was its own. The streams must be at rest.
    pub(super) fn unmap(&mut self, group: usize) -> Result<usize> {
        let Self { groups, slots, .. } = self;
        let member = &mut groups[group];
        let mapped = match &member.home {
            Home::Nowhere => return Ok(0),
            Home::Own(memory) => memory.bytes(),
            Home::Slot(slot) => slots[*slot].memory.bytes(),
        };
        // SAFETY: the caller has waited for both streams, and nothing has been enqueued since.
        unsafe { member.range.unmap(mapped)? };
        (member.there, member.on_its_way) = (false, false);
        match std::mem::replace(&mut member.home, Home::Nowhere) {
            Home::Slot(slot) => {
                slots[slot].holder.take_if(|holder| *holder == group);
                Ok(0)
            }
            _ => Ok(mapped),
        }
    }
}
