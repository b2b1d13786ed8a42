//! Puts each weight together with the tensors beside it that say how it is quantised.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::weights::stored::{Stored, Tensors};

/// What a tensor beside a weight is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Beside {
    /// The scale of the weight, or of its blocks: `LightX2V` and newer files of `ComfyUI`.
    WeightScale,
    /// The scale of the weight in older files of `ComfyUI`.
    ScaleWeight,
    /// What the scales of blocks are to be multiplied by: `ComfyUI`.
    WeightScale2,
    /// What the scales of blocks are to be divided by: `LightX2V`.
    WeightGlobalScale,
    /// With [`Beside::InputGlobalScale`]: the inverse of the product of the input's and the weight's global scales.
    Alpha,
    /// The global scale of the input, which [`Beside::Alpha`] contains.
    InputGlobalScale,
    /// The scales of squares of a `TurboDiffusion` weight.
    SquareScale,
    /// What the layer's input is to be multiplied by.
    PreQuantScale,
    /// `ComfyUI`'s description of the layer's quantisation.
    ComfyQuant,
}

/// The suffix of the name of a layer's description by `ComfyUI`, after the name of the layer.
pub(in crate::weights) const DESCRIPTION_SUFFIX: &str = ".comfy_quant";
/// The suffixes of names, after the name of the layer.
const SUFFIXES: [(&str, Beside); 9] = [
    (".weight_scale", Beside::WeightScale),
    (".scale_weight", Beside::ScaleWeight),
    (".weight_scale_2", Beside::WeightScale2),
    (".weight_global_scale", Beside::WeightGlobalScale),
    (".alpha", Beside::Alpha),
    (".input_global_scale", Beside::InputGlobalScale),
    (".scale", Beside::SquareScale),
    (".pre_quant_scale", Beside::PreQuantScale),
    (DESCRIPTION_SUFFIX, Beside::ComfyQuant),
];

/// Suffixes of tensors that only matter to programs that quantise activations.
const UNUSED: [&str; 2] = [".scale_input", ".input_scale"];

/// The tensor that marks an older quantised file of `ComfyUI`.
pub(super) const MARKER: &str = "scaled_fp8";

/// A weight with the tensors beside it; or any other tensor, with nothing beside it.
pub(super) struct Layer {
    /// The name of the weight in its file, without what only its quantisation adds.
    pub weight: String,
    /// The weight.
    pub stored: Stored,
    /// The tensors beside the weight, each with its name in the file.
    pub beside: BTreeMap<Beside, (String, Stored)>,
    /// What `ComfyUI` says in the file's header about the layer.
    pub described: Option<Value>,
}

impl Layer {
    /// Returns the tensor beside the weight that has a purpose.
    pub fn get(&self, purpose: Beside) -> Option<&Stored> {
        self.beside.get(&purpose).map(|(_, stored)| stored)
    }
}

/// All tensors of a file.
pub(super) struct Layers {
    /// The weights and other tensors.
    pub all: Vec<Layer>,
    /// Tensors of quantisations whose weights are missing, by the names of the weights.
    pub orphans: BTreeMap<String, Stored>,
    /// A tensor that only older quantised files of `ComfyUI` have: the marker, or a scale of activations.
    pub old_mark: Option<String>,
}

/// Puts the tensors of a file together; `described` has what its header says about layers.
pub(super) fn gather(tensors: &Tensors, mut described: BTreeMap<String, Value>) -> Layers {
    let old_mark = |name: &&String| *name == MARKER || name.ends_with(".scale_input");
    let mut layers = Layers {
        all: Vec::new(),
        orphans: BTreeMap::new(),
        old_mark: tensors.keys().find(old_mark).cloned(),
    };
    let mut beside: BTreeMap<String, BTreeMap<Beside, (String, Stored)>> = BTreeMap::new();
    let mut weights = Vec::new();
    for (name, stored) in tensors {
        if name == MARKER || UNUSED.iter().any(|suffix| name.ends_with(suffix)) {
            continue;
        }
        match purpose(name) {
            // Other tensors may be called so, too: they are beside a weight only if there is a weight.
            Some((layer, Beside::Alpha | Beside::SquareScale)) if weight_of(layer, tensors).is_none() => {
                weights.push((name.clone(), stored.clone()));
            }
            Some((layer, purpose)) => {
                beside.entry(layer.to_owned()).or_default().insert(purpose, (name.clone(), stored.clone()));
            }
            None => weights.push((name.clone(), stored.clone())),
        }
    }
    for (name, stored) in weights {
        let layer = name.strip_suffix(".weight").or_else(|| name.strip_suffix(".int8_weight"));
        let (beside, described) = match layer {
            Some(layer) => (beside.remove(layer).unwrap_or_default(), described.remove(layer)),
            None => (BTreeMap::new(), None),
        };
        let weight = layer.map_or_else(|| name.clone(), |layer| format!("{layer}.weight"));
        layers.all.push(Layer { weight, stored, beside, described });
    }
    for (layer, beside) in beside {
        if let Some((_, stored)) = beside.into_values().next() {
            layers.orphans.insert(format!("{layer}.weight"), stored);
        }
    }
    layers
}

/// Returns the layer and the purpose of a tensor beside a weight.
fn purpose(name: &str) -> Option<(&str, Beside)> {
    SUFFIXES.iter().find_map(|(suffix, purpose)| Some((name.strip_suffix(suffix)?, *purpose)))
}

fn weight_of<'a>(layer: &str, tensors: &'a Tensors) -> Option<&'a Stored> {
    ["weight", "int8_weight"].iter().find_map(|end| tensors.get(&format!("{layer}.{end}")))
}
