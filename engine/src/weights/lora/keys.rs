//! What the tensors of a `LoRA` are called: every trainer has its own way.
//!
//! A name is a prefix, the name of a layer, and an ending. The layer's name can be the released one or that of
//! diffusers, and its dots can be underscores. All these names are made of the model's own, so that none needs to be
//! taken apart.

use std::collections::BTreeMap;

use animd_protocol::dims::schema::Expected;

use super::super::names;

/// What a tensor of a `LoRA` is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Part {
    /// The matrix that is applied first, `[rank, cols]`.
    Down,
    /// The matrix that is applied last, `[rows, rank]`.
    Up,
    /// The number that is divided by the rank to scale the product.
    Alpha,
    /// The lengths of the rows or columns of the changed matrix.
    Magnitude,
    /// The first product of two that are multiplied element by element: `[rows, rank]` and `[rank, cols]`.
    Hadamard1A,
    Hadamard1B,
    /// The second one.
    Hadamard2A,
    Hadamard2B,
    /// The first matrix of a Kronecker product, as it is or as a product of two.
    Kronecker1,
    Kronecker1A,
    Kronecker1B,
    /// The second one.
    Kronecker2,
    Kronecker2A,
    Kronecker2B,
    /// A tensor to be added.
    Difference,
}

/// The tensor of a layer that an ending changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Target {
    Weight,
    Bias,
    Modulation,
}

const ENDINGS: [(&str, Part, Target); 26] = [
    (".lora_down.weight", Part::Down, Target::Weight),
    (".lora_up.weight", Part::Up, Target::Weight),
    (".lora_A.weight", Part::Down, Target::Weight),
    (".lora_B.weight", Part::Up, Target::Weight),
    (".lora_A.default.weight", Part::Down, Target::Weight),
    (".lora_B.default.weight", Part::Up, Target::Weight),
    (".lora.down.weight", Part::Down, Target::Weight),
    (".lora.up.weight", Part::Up, Target::Weight),
    (".alpha", Part::Alpha, Target::Weight),
    (".dora_scale", Part::Magnitude, Target::Weight),
    (".lora_magnitude_vector", Part::Magnitude, Target::Weight),
    (".lora_magnitude_vector.weight", Part::Magnitude, Target::Weight),
    (".lora_magnitude_vector.default.weight", Part::Magnitude, Target::Weight),
    (".hada_w1_a", Part::Hadamard1A, Target::Weight),
    (".hada_w1_b", Part::Hadamard1B, Target::Weight),
    (".hada_w2_a", Part::Hadamard2A, Target::Weight),
    (".hada_w2_b", Part::Hadamard2B, Target::Weight),
    (".lokr_w1", Part::Kronecker1, Target::Weight),
    (".lokr_w1_a", Part::Kronecker1A, Target::Weight),
    (".lokr_w1_b", Part::Kronecker1B, Target::Weight),
    (".lokr_w2", Part::Kronecker2, Target::Weight),
    (".lokr_w2_a", Part::Kronecker2A, Target::Weight),
    (".lokr_w2_b", Part::Kronecker2B, Target::Weight),
    (".diff", Part::Difference, Target::Weight),
    (".diff_b", Part::Difference, Target::Bias),
    (".diff_m", Part::Difference, Target::Modulation),
];

/// What programs put before the names of layers; several may follow each other.
const PREFIXES: [&str; 11] = [
    "base_model.model.",
    "pipe.dit.",
    "model.diffusion_model.",
    "diffusion_model.",
    "transformer.",
    "model.",
    "net.",
    "lora_unet__",
    "lora_unet_",
    "lycoris_",
    "lora_transformer_",
];

/// Parts of names that show a kind of adapter that is not read, and its name.
const OTHERS: [(&str, &str); 9] = [
    ("lokr_t2", "a LoKr of convolutions (`lokr_t2`)"),
    ("hada_t", "a LoHa of convolutions (`hada_t1`)"),
    ("oft_blocks", "OFT"),
    ("oft_diag", "BOFT"),
    (".a1.weight", "GLoRA"),
    ("lora_mid", "a LoRA with a third matrix (`lora_mid`)"),
    (".set_weight", "a file that replaces weights (`set_weight`)"),
    (".reshape_weight", "a file that reshapes weights (`reshape_weight`)"),
    (".w_norm", "a LyCORIS norm adapter (`w_norm`)"),
];

/// Returns the kind of adapter that a name shows, if it is one that is not read.
pub(super) fn other_kind(name: &str) -> Option<&'static str> {
    OTHERS.iter().find(|(part, _)| name.contains(part)).map(|(_, kind)| *kind)
}

/// The names that layers of a model can have in a `LoRA`.
pub(super) struct Layers {
    /// Each name, and the official one of the layer, without `.weight`.
    names: BTreeMap<String, String>,
}

/// A tensor of a `LoRA`.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Key {
    /// The official name of the tensor that it changes.
    pub tensor: String,
    pub part: Part,
    /// The layer's name in the file, without prefixes, and whether PEFT wrote it.
    pub layer: String,
}

impl Layers {
    pub fn of(model: &[Expected]) -> Self {
        let mut all = BTreeMap::new();
        for Expected { name, .. } in model {
            let official =
                name.strip_suffix(".weight").or_else(|| name.strip_suffix(".bias")).unwrap_or(name);
            // `blocks.0.modulation` belongs to `blocks.0` where the ending says that it is a modulation.
            let owner = name.strip_suffix(".modulation");
            for layer in std::iter::once(official).chain(owner) {
                for name in [layer.to_owned(), names::dit_in_diffusers(layer)] {
                    all.entry(name.replace('.', "_")).or_insert_with(|| layer.to_owned());
                    all.insert(name, layer.to_owned());
                }
            }
        }
        Self { names: all }
    }

    /// Returns what a tensor of this name is for, if it belongs to a layer of the model.
    pub fn key(&self, name: &str) -> Option<Key> {
        let (stem, part, target) = ending(name)?;
        let layer = without_prefixes(stem);
        let official = self.names.get(layer)?;
        let tensor = match target {
            // A modulation has no weight; it is the tensor itself.
            Target::Weight if official.ends_with(".modulation") => official.clone(),
            Target::Weight => format!("{official}.weight"),
            Target::Bias => format!("{official}.bias"),
            Target::Modulation => format!("{official}.modulation"),
        };
        Some(Key { tensor, part, layer: layer.to_owned() })
    }
}

/// Splits a name into the layer, with its prefixes, and what its ending says.
fn ending(name: &str) -> Option<(&str, Part, Target)> {
    ENDINGS.iter().find_map(|(end, part, target)| Some((name.strip_suffix(end)?, *part, *target)))
}

fn without_prefixes(mut name: &str) -> &str {
    while let Some(rest) = PREFIXES.iter().find_map(|prefix| name.strip_prefix(prefix)) {
        name = rest;
    }
    name
}
