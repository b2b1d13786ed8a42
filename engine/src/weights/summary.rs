//! Describes a component, whether or not it can be used.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::check;
use super::layouts::Described;
use super::open::{self, Examined};
use super::refusals::Asked;
use super::{Component, Layout};
use animd_protocol::dims::DitConfig;
use animd_protocol::recipe::ExpertName;

/// One component of a model folder.
#[derive(Clone, Debug, Serialize)]
pub struct Summary {
    /// Which component this is.
    pub component: Component,
    /// Which of a model's two transformers it is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expert: Option<ExpertName>,
    /// Whether the component is complete and correct.
    pub usable: bool,
    /// The component's files, as far as they are known.
    pub files: Vec<PathBuf>,
    /// How the component's tensors are named and quantised; unknown if it cannot be read.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub layout: Option<Layout>,
    /// The component's sizes by name, in the order of the configuration.
    pub sizes: Vec<(&'static str, usize)>,
    /// The number of tensors, scales not counted.
    pub tensors: usize,
    /// The number of parameters, scales not counted.
    pub parameters: u64,
    /// The bytes of all the component's tensors in the files.
    pub bytes: u64,
    /// The number of parameters of each stored type, by its safetensors name.
    pub dtypes: BTreeMap<String, u64>,
    /// What is wrong, in words; empty if the component can be used.
    pub problems: Vec<String>,
}

impl Summary {
    /// Describes a component of a model folder. Reads headers only.
    pub fn of(path: &Path, component: Component) -> Self {
        let described = match component {
            Component::Dit => open::examine_dit(path, Asked::Wan21).map(|e| Self::new(&e, e.config.sizes())),
            Component::T5 => open::examine_t5(path).map(|e| Self::new(&e, e.config.sizes())),
            Component::Clip => open::examine_clip(path).map(|e| Self::new(&e, e.config.sizes())),
            Component::Vae => open::examine_vae(path).map(|e| Self::new(&e, e.config.sizes())),
        };
        // A component that cannot be read, or is of another model, is described by its problem alone.
        described.unwrap_or_else(|e| Self { problems: vec![e.to_string()], ..Self::empty(component) })
    }

    /// Describes one of the two transformers of Wan2.2. Reads headers only.
    pub fn of_expert(path: &Path, expert: ExpertName) -> Self {
        let described =
            open::examine_dit(path, Asked::Wan22Expert).map(|e| Self::new(&e, DitConfig::sizes(&e.config)));
        let summary = described
            .unwrap_or_else(|e| Self { problems: vec![e.to_string()], ..Self::empty(Component::Dit) });
        Self { expert: Some(expert), ..summary }
    }

    /// Returns the name of the component in sentences.
    pub fn title(&self) -> &'static str {
        self.expert.map_or_else(|| self.component.title(), ExpertName::network)
    }

    fn empty(component: Component) -> Self {
        Self {
            component,
            expert: None,
            usable: false,
            files: Vec::new(),
            layout: None,
            sizes: Vec::new(),
            tensors: 0,
            parameters: 0,
            bytes: 0,
            dtypes: BTreeMap::new(),
            problems: Vec::new(),
        }
    }

    pub(super) fn new<C>(examined: &Examined<C>, sizes: Vec<(&'static str, usize)>) -> Self {
        let mut summary = Self { sizes, layout: Some(examined.layout), ..Self::empty(examined.component) };
        for (name, Described { parts, .. }) in &examined.contents.tensors {
            if check::ignorable(examined.component, name) {
                continue;
            }
            summary.tensors += 1;
            for part in parts {
                let parameters = part.elements() as u64;
                summary.parameters += parameters;
                *summary.dtypes.entry(part.encoding.to_string()).or_default() += parameters;
            }
        }
        summary.bytes = examined.contents.stored().map(|s| s.size as u64).sum();
        let files: BTreeSet<_> = examined.contents.stored().map(|s| s.file.path.clone()).collect();
        summary.files = files.into_iter().collect();
        summary.usable = examined.problems.is_empty();
        if !summary.usable {
            summary.problems.push(examined.problems.to_string());
        }
        summary
    }
}
