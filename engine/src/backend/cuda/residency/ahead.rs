//! Which groups come to the device ahead of the computations.

use super::{Network, Source, State};
use crate::Result;

/// The most groups whose copies are enqueued at a time.
const AHEAD: usize = 4;

impl Network {
    /// Enqueues the copies of the groups that follow. Where that fails, the group is copied when it is entered, which says
    /// what is wrong.
    pub(super) fn prefetch(&self, state: &mut State, group: usize) {
        if let Err(e) = self.look_ahead(state, group) {
            tracing::debug!("no copy ahead of the computations: {e}");
        }
    }

    /// Enqueues the copies of the groups that follow. One that would have to go where another is needed sooner waits; groups
    /// after it that have a place go before it, one at each call, so that it finds few copies under way when its own place is
    /// free: at most one where a copy takes less time than a group computes.
    fn look_ahead(&self, state: &mut State, group: usize) -> Result<()> {
        let following = state.following(group);
        let (mut copies, mut most) = (0, AHEAD);
        for (distance, &next) in following.iter().enumerate() {
            let member = &state.groups[next];
            if member.there {
                continue;
            }
            // Reading a file takes the host's time, which the computations of this group should get first.
            if matches!(member.source, Source::File { .. }) {
                break;
            }
            let Some(slot) = member.home.and_then(|home| state.slots.get(&home)) else { break };
            if let Some(holder) = slot.holder {
                let needed = &state.groups[holder];
                if needed.entered > 0 || (needed.there && following[..distance].contains(&holder)) {
                    // What is around a network is left last: nothing is in a hurry after it.
                    if !state.is_around(next) {
                        most = 1;
                    }
                    continue;
                }
            }
            if copies >= most {
                break;
            }
            self.bring(state, next)?;
            copies += 1;
        }
        Ok(())
    }
}

impl State {
    /// Returns the groups that are entered after this one, in order: the rest of the pass, then those of the next pass or, if
    /// this pass is the last one of its network's turn, those of the network whose turn is next.
    fn following(&self, group: usize) -> Vec<usize> {
        let Some(lane) = self.lane_of(group).map(|lane| &self.lanes[lane]) else { return Vec::new() };
        let next = self.next.map(|next| &self.lanes[next]).filter(|next| !std::ptr::eq(*next, lane));
        let after = |passed: &[usize]| match next {
            Some(next) => next.around.iter().chain(&next.order).copied().collect(),
            None => passed.to_vec(),
        };
        match lane.order.iter().position(|g| *g == group) {
            Some(at) => [lane.order[at + 1..].to_vec(), after(&lane.order[..at])].concat(),
            // What is around the groups says nothing of where a pass is, but that it is over when it is left.
            None if self.groups[group].entered == 0 => after(&[]),
            None => Vec::new(),
        }
    }

    fn is_around(&self, group: usize) -> bool {
        self.lanes.iter().any(|lane| lane.around.contains(&group))
    }
}
