//! The choice of what stays on the device: weights leave it one network after the other until a job fits its budget.

use super::network::{Held, Network, Placement};
use crate::profile::Place;
use crate::recipe::Component;

/// The slots that streamed groups pass through: one computes while the next one is copied.
const SLOTS: usize = 2;

/// The networks in the order in which they leave the device, and where they then wait. The encoders work once a job, so
/// they are read from their files, which the page cache holds where the machine has the memory. The DiT works in every
/// step, so it waits in pinned memory.
const LEAVING: [(Component, Place); 4] = [
    (Component::T5, Place::Disk),
    (Component::Clip, Place::Disk),
    (Component::Vae, Place::Host),
    (Component::Dit, Place::Host),
];

/// Chooses the places of all networks and what of them stays on a device that has `room` bytes for weights, and `host`
/// bytes of pinned memory beside it; umT5 reads `prompts` prompts. Without a limit, networks keep their places, and as
/// little as possible of those that are not kept on the device is there at once.
///
/// Where nothing fits, the result is the least that a job takes.
pub(super) fn place(networks: &mut [Network], prompts: u32, room: Option<u64>, host: Option<u64>) {
    for network in networks.iter_mut().filter(|n| n.placement.place != Place::Device) {
        network.placement = network.placement.streamed(0, SLOTS);
    }
    if let Some(host) = host {
        spare(networks, host);
    }
    let Some(room) = room else { return share(networks, 0) };
    for (component, place) in LEAVING {
        if fits(networks, room) {
            break;
        }
        for network in networks.iter_mut().filter(|n| n.component == component) {
            if network.placement.place == Place::Device {
                network.placement = Placement { place, ..network.placement.streamed(0, SLOTS) };
            }
        }
    }
    let left = room.saturating_sub(fixed(networks));
    for network in networks.iter_mut().filter(|n| n.placement.place != Place::Device) {
        let passes = match network.component {
            // All experts together, below.
            Component::Dit => 0,
            Component::T5 => prompts,
            Component::Clip | Component::Vae => 1,
        };
        // A network that works once is copied once in any case; its slots leave more to the DiT.
        if passes > 1 {
            network.placement = most(&network.placement, left);
        }
    }
    share(networks, left);
}

/// Places the experts that are not kept on a device with `room` bytes for them: as many leading groups as have room stay while
/// their expert works, in the same memory for all experts; and if that is all of them, as many as have room then stay all the
/// time.
fn share(networks: &mut [Network], room: u64) {
    let visits = |n: &&mut Network| n.component == Component::Dit && n.placement.place != Place::Device;
    let mut experts: Vec<&mut Placement> =
        networks.iter_mut().filter(visits).map(|n| &mut n.placement).collect();
    let Some(together) = largest(&experts) else { return };
    let together = most(&together, room);
    let mut left = room.saturating_sub(together.working());
    let mut own = 0;
    while together.slots == 0 && own < together.groups.len() {
        let of = |placement: &Placement, own| Placement { turns: Some(own), ..placement.clone() }.own_bytes();
        let more = |own| experts.iter().map(|e| of(e, own)).sum::<u64>() - of(&together, own);
        let next = more(own + 1) - more(own);
        if next > left {
            break;
        }
        (left, own) = (left - next, own + 1);
    }
    let several = experts.len() > 1;
    for placement in &mut experts {
        let resident = together.resident.min(placement.groups.len());
        let slots = if resident < placement.groups.len() { together.slots } else { 0 };
        let turns = several.then_some(own.min(resident));
        **placement = Placement { resident, slots, turns, ..placement.clone() };
    }
}

/// Returns a placement with room for any of some: its groups are the largest that have the same number.
fn largest(placements: &[&mut Placement]) -> Option<Placement> {
    let mut all = placements.iter();
    let mut largest = Placement::clone(all.next()?);
    for placement in all {
        largest.around = largest.around.max(placement.around);
        let ranks = largest.groups.len().max(placement.groups.len());
        largest.groups.resize(ranks, 0);
        for (group, other) in largest.groups.iter_mut().zip(&placement.groups) {
            *group = (*group).max(*other);
        }
    }
    Some(largest.streamed(0, SLOTS))
}

/// Moves encoders from pinned memory to their files until at most `host` bytes are pinned.
fn spare(networks: &mut [Network], host: u64) {
    for component in [Component::T5, Component::Clip] {
        let pinned =
            networks.iter().filter(|n| n.placement.place == Place::Host).map(|n| n.bytes).sum::<u64>();
        if pinned <= host {
            return;
        }
        let those = networks.iter_mut().filter(|n| n.component == component);
        those.filter(|n| n.placement.place == Place::Host).for_each(|n| n.placement.place = Place::Disk);
    }
}

/// Returns the bytes of the networks that are always on the device.
fn fixed(networks: &[Network]) -> u64 {
    networks.iter().filter(|n| n.placement.place == Place::Device).map(|n| n.bytes).sum()
}

/// Returns whether every network finds room for the least that it takes at work.
fn fits(networks: &[Network], room: u64) -> bool {
    let visitors = networks.iter().filter(|n| n.placement.place != Place::Device);
    let largest = visitors.map(|n| n.placement.working()).max().unwrap_or_default();
    fixed(networks) + largest <= room
}

/// Returns the placement with as many leading groups on the device as have room.
fn most(least: &Placement, room: u64) -> Placement {
    let mut choices = (0..=least.groups.len()).rev().map(|resident| least.streamed(resident, SLOTS));
    choices.find(|placement| placement.working() <= room).unwrap_or_else(|| least.clone())
}

/// Returns what is on the device while the networks of a kind work. What those that take turns with them had there stays
/// as far as there is room, so that it need not be copied again.
pub(super) fn held(networks: &[Network], at_work: Component, room: Option<u64>, all_stay: bool) -> Vec<Held> {
    let stays = |n: &&Network| all_stay || n.placement.place == Place::Device;
    let mut held: Vec<Held> = networks.iter().filter(stays).map(Held::whole).collect();
    // Several experts take turns: the largest one works, and the others have what is theirs alone.
    let working = networks.iter().filter(|n| !stays(n) && n.component == at_work);
    let largest = working.clone().max_by_key(|n| n.placement.working());
    held.extend(largest.map(Held::working));
    let others = working.filter(|n| largest.is_none_or(|largest| largest.name != n.name));
    held.extend(others.map(Held::own).filter(|held| held.bytes > 0));
    let used: u64 = held.iter().map(|held| held.bytes).sum();
    let mut left = room.unwrap_or_default().saturating_sub(used);
    let mut whole = true;
    for network in
        networks.iter().filter(|n| !stays(n) && n.component != at_work && n.component == Component::Dit)
    {
        // What experts share stays with the first one; what is theirs alone goes before it.
        let (first, own) = (held.iter().all(|h| !is_expert(networks, h)), network.placement.turns);
        let most = if first { network.placement.resident } else { own.unwrap_or_default() };
        let kept = Held::kept(network, if whole { most } else { 0 }, left);
        whole &= kept.resident == most;
        left -= kept.bytes;
        held.extend((kept.bytes > 0).then_some(kept));
    }
    held
}

fn is_expert(networks: &[Network], held: &Held) -> bool {
    networks.iter().any(|n| n.name == held.network && n.component == Component::Dit)
}
