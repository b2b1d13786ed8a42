//! The weights of the networks: how many bytes they have, in which groups they move, and where they are kept.

use serde::Serialize;

use super::Setup;
use crate::dims::schema::Expected;
use crate::profile::{Backend, Place, Precision, Sensitive};
use crate::recipe::{Component, Part, Recipe, Sizes};

/// What the bytes of a tensor on a GPU are rounded up to.
const ALIGNMENT: u64 = 256;
/// The columns that int8 layers rotate together; matrices with other columns stay in bf16.
pub const ROTATED: usize = 256;

/// The weights of one network.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Network {
    /// Its name in the recipe: `DiT`, `umT5`.
    pub name: String,
    /// The kind of network.
    #[serde(skip)]
    pub component: Component,
    /// The number of parameters that are used.
    pub parameters: u64,
    /// The bytes of all parameters where they compute, with their scales.
    pub bytes: u64,
    /// Where the weights are during a job.
    #[serde(flatten)]
    pub placement: Placement,
}

/// Where the weights of one network are between their uses, and what of them stays on the device while it works.
///
/// A network is a list of groups, which the model enters one after the other, and what belongs to no group. Of a network
/// that is not kept on the device, the first `resident` groups stay there as long as it works; the others pass through
/// `slots`, each with room for the largest of them.
///
/// Experts that take turns have their leading groups in the same memory: the group `i` of one, then that of the other. `turns`
/// says how many of them have memory of their own.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Placement {
    /// Where the weights are kept between their uses.
    pub place: Place,
    /// The bytes of each group on the device, in the order in which the model enters them: the blocks of a transformer,
    /// or the encoder and the decoder of the VAE.
    pub groups: Vec<u64>,
    /// The bytes that belong to no group. They are on the device while the network works.
    pub around: u64,
    /// The number of leading groups that stay on the device while the network works.
    pub resident: usize,
    /// The number of slots that the other groups pass through; 0 if all groups stay.
    pub slots: usize,
    /// For an expert that takes turns with others in the same memory: the number of leading groups that stay on the device
    /// while the others work, too. What is around the groups stays with the first of them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub turns: Option<usize>,
}

impl Placement {
    /// Returns the placement of a network all of whose groups are on the device.
    pub fn whole(place: Place, groups: Vec<u64>, around: u64) -> Self {
        Self { place, resident: groups.len(), slots: 0, turns: None, groups, around }
    }

    /// Returns this placement with at most so many leading groups on the device, and `slots` for the others.
    #[must_use]
    pub fn streamed(&self, resident: usize, slots: usize) -> Self {
        let others = self.groups.len().saturating_sub(resident);
        // As many slots as groups would hold all of them.
        match others <= slots {
            true => Self { resident: self.groups.len(), slots: 0, ..self.clone() },
            false => Self { resident, slots, ..self.clone() },
        }
    }

    /// Returns the bytes of all groups and of what is around them.
    pub fn bytes(&self) -> u64 {
        self.around + self.groups.iter().sum::<u64>()
    }

    /// Returns the bytes of one slot: those of the largest group that passes through it.
    pub fn slot_bytes(&self) -> u64 {
        let others = self.groups.iter().skip(self.resident);
        if self.slots == 0 { 0 } else { others.max().copied().unwrap_or_default() }
    }

    /// Returns the bytes of the leading groups that stay.
    pub fn resident_bytes(&self) -> u64 {
        self.groups.iter().take(self.resident).sum()
    }

    /// Returns the bytes on the device while the network works.
    pub fn working(&self) -> u64 {
        self.around + self.resident_bytes() + self.slots as u64 * self.slot_bytes()
    }

    /// Returns the bytes of an expert that takes turns which stay on the device while the others work.
    pub fn own_bytes(&self) -> u64 {
        match self.turns {
            None | Some(0) => 0,
            Some(own) => self.around + self.groups.iter().take(own).sum::<u64>(),
        }
    }

    /// Returns the bytes of an expert that takes turns which come to the device when its turn begins.
    pub fn exchanged_bytes(&self) -> u64 {
        match self.turns {
            None => 0,
            Some(_) => self.around + self.resident_bytes() - self.own_bytes(),
        }
    }

    /// Returns the bytes that are copied to the device in one pass over all groups.
    pub fn streamed_bytes(&self) -> u64 {
        self.groups.iter().skip(self.resident).sum()
    }
}

/// What a network has on the device during a stage.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Held {
    /// The network's name in the recipe.
    pub network: String,
    /// The number of its leading groups that stay on the device during the stage.
    pub resident: usize,
    /// The number of slots that its other groups pass through; 0 if they are all there, or not needed.
    pub slots: usize,
    /// All its bytes on the device.
    pub bytes: u64,
}

impl Held {
    /// A network that is on the device with all its groups.
    pub(super) fn whole(network: &Network) -> Self {
        let resident = network.placement.groups.len();
        Self { network: network.name.clone(), resident, slots: 0, bytes: network.bytes }
    }

    /// A network at work.
    pub(super) fn working(network: &Network) -> Self {
        let placement = &network.placement;
        let (resident, slots) = (placement.resident, placement.slots);
        Self { network: network.name.clone(), resident, slots, bytes: placement.working() }
    }

    /// What an expert has on the device while another one works.
    pub(super) fn own(network: &Network) -> Self {
        let placement = &network.placement;
        let (resident, bytes) = (placement.turns.unwrap_or_default(), placement.own_bytes());
        Self { network: network.name.clone(), resident, slots: 0, bytes }
    }

    /// A network that does not work, of whose leading groups at most `most` stay, and no more than `room` bytes hold.
    pub(super) fn kept(network: &Network, most: usize, room: u64) -> Self {
        let (mut resident, mut bytes) = (0, 0);
        let placement = &network.placement;
        for group in placement.groups.iter().take(most) {
            // What is around the groups stays with them.
            let more = group + if resident == 0 { placement.around } else { 0 };
            if bytes + more > room {
                break;
            }
            (resident, bytes) = (resident + 1, bytes + more);
        }
        Self { network: network.name.clone(), resident, slots: 0, bytes }
    }
}

/// Returns the bytes of an element.
pub(super) fn size(precision: Precision) -> u64 {
    match precision {
        Precision::Fp32 => 4,
        Precision::Bf16 => 2,
        Precision::Fp8 | Precision::Int8 => 1,
    }
}

/// Returns the bytes of umT5's embedding, and the weights of all networks without it, all of them on the device.
pub(super) fn networks(recipe: &Recipe, setup: &Setup) -> (u64, Vec<Network>) {
    let (mut embedding, mut networks) = (0, Vec::new());
    for part in recipe.networks() {
        let mut tensors = part.schema();
        match part.sizes {
            Sizes::T5(_) => tensors.retain(|e| {
                let rows = e.name == "token_embedding.weight";
                // Every backend reads its rows from the file, which has them in bf16 as released.
                embedding += if rows { 2 * elements(e) } else { 0 };
                !rows
            }),
            // CLIP uses all blocks but the last.
            Sizes::Clip(c) => {
                let last = format!("visual.transformer.{}.", c.layers.saturating_sub(1));
                tensors.retain(|e| !e.name.starts_with(&last));
            }
            Sizes::Dit(_) | Sizes::Vae(_) => {}
        }
        networks.push(network(part, &tensors, setup));
    }
    (embedding, networks)
}

/// Returns the weights of a network that uses these tensors.
fn network(part: Part<'_>, tensors: &[Expected], setup: &Setup) -> Network {
    let component = part.component();
    let (mut groups, mut around) = (Vec::new(), 0);
    for tensor in tensors {
        let bytes = bytes(tensor, component, setup);
        match group(&tensor.name) {
            Some(index) => {
                let needed: usize = index + 1;
                groups.resize(needed.max(groups.len()), 0);
                groups[index] += bytes;
            }
            None => around += bytes,
        }
    }
    let placement = Placement::whole(setup.residency.of(component), groups, around);
    Network {
        name: part.name.to_owned(),
        component,
        parameters: tensors.iter().map(elements).sum(),
        bytes: placement.bytes(),
        placement,
    }
}

/// Returns the index of the group that a tensor belongs to, or `None` for what is needed from the first group on.
fn group(name: &str) -> Option<usize> {
    for (prefix, index) in [("encoder.", 0), ("conv1.", 0), ("decoder.", 1), ("conv2.", 1)] {
        if name.starts_with(prefix) {
            return Some(index);
        }
    }
    let rest = ["blocks.", "visual.transformer."].iter().find_map(|prefix| name.strip_prefix(prefix))?;
    rest.split('.').next()?.parse().ok()
}

/// Returns the bytes of a tensor where operations compute with it.
fn bytes(e: &Expected, component: Component, setup: &Setup) -> u64 {
    let cuda = setup.backend == Backend::Cuda;
    let stored = |bytes: u64| if cuda { bytes.next_multiple_of(ALIGNMENT) } else { bytes };
    // On a GPU, f32 matrices are sums of two bf16 numbers, one of which is stored twice.
    let whole = || stored(elements(e) * if cuda && e.shape.len() > 1 { 6 } else { 4 });
    let of = |bytes: u64| if bytes == 4 { whole() } else { stored(elements(e) * bytes) };
    let precision = setup.precision.of(component);
    // Large matrices have the network's type, 8-bit ones with an f32 for each row.
    let large = || match precision {
        Precision::Int8 if !e.shape.last().is_some_and(|columns| columns.is_multiple_of(ROTATED)) => of(2),
        Precision::Fp8 | Precision::Int8 => stored(elements(e)) + stored(4 * e.shape[0] as u64),
        Precision::Fp32 | Precision::Bf16 => of(size(precision)),
    };
    let sensitive = match (setup.precision.sensitive, precision) {
        (Sensitive::Same, Precision::Bf16 | Precision::Fp8 | Precision::Int8) => 2,
        _ => 4,
    };
    match component {
        Component::Dit if e.quantisable => large(),
        Component::Dit => of(sensitive),
        Component::T5 if e.name.contains(".attn.") || e.name.contains(".ffn.") => large(),
        Component::T5 => of(4),
        // For upsampling, a GPU also stores a 3x3 convolution of single frames as four of 2x2.
        Component::Vae if cuda && e.shape.len() == 4 && e.shape.ends_with(&[3, 3]) => {
            large() + stored(large() * 16 / 9)
        }
        Component::Clip | Component::Vae => large(),
    }
}

fn elements(e: &Expected) -> u64 {
    e.shape.iter().map(|n| *n as u64).product()
}
