//! Opening a component: its files, its layout, its sizes, and whether it has the tensors that it should have.

use std::path::Path;

use super::check::{Problems, compare, ignorable};
use super::config::{self, ConfigFile, Sizes};
use super::layouts::classify;
use super::stored::{Element, Stored, Tensors};
use super::{Component, DType, HostTensor, Layout, Matrix, Scale, WeightSource, container, find, refusals};
use crate::dims::schema::{self, Expected};
use crate::dims::{ClipConfig, DitConfig, T5Config, VaeConfig};
use crate::{Error, Result};

/// The checked tensors of one component, read straight from its memory-mapped files.
pub struct Weights {
    component: Component,
    layout: Layout,
    tensors: Tensors,
    scales: Tensors,
}

impl Weights {
    /// Which part of the model this is.
    pub fn component(&self) -> Component {
        self.component
    }

    /// How the files name and quantise it.
    pub fn layout(&self) -> Layout {
        self.layout
    }

    /// The official names, in order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// A tensor's extents.
    pub fn shape(&self, name: &str) -> Option<&[usize]> {
        self.tensors.get(name).map(|t| &t.shape[..])
    }

    /// A tensor's stored type.
    pub fn dtype(&self, name: &str) -> Option<DType> {
        match self.tensors.get(name)?.element {
            Element::Float(dtype) => Some(dtype),
            Element::Other(_) => None,
        }
    }

    /// Parameters, scales not counted.
    pub fn parameters(&self) -> usize {
        self.tensors.values().map(Stored::elements).sum()
    }

    /// Bytes that the tensors take in their files.
    pub fn stored_bytes(&self) -> usize {
        self.tensors.values().chain(self.scales.values()).map(Stored::size).sum()
    }

    /// Its file, or the first of several.
    pub fn file(&self) -> Option<&Path> {
        self.tensors.values().next().map(|stored| &*stored.file.path)
    }

    fn find(&self, name: &str) -> Result<&Stored> {
        self.tensors
            .get(name)
            .ok_or_else(|| Error::Internal(format!("the {} has no tensor `{name}`", self.component.title())))
    }

    fn scale(&self, name: &str, rows: usize) -> Result<Option<Scale>> {
        let Some(stored) = self.scales.get(name) else { return Ok(None) };
        let values = stored.to_f32()?;
        if let Some(bad) = values.iter().find(|v| !v.is_finite()) {
            let file = stored.file.path.display();
            return Err(Error::Model(format!(
                "`{file}` has {bad} among the scales of `{name}`; copy it again"
            )));
        }
        Ok(Some(match values[..] {
            [one] if rows != 1 || stored.shape.len() < 2 => Scale::PerTensor(one),
            _ => Scale::PerRow(values),
        }))
    }
}

impl WeightSource for Weights {
    fn tensor(&self, name: &str) -> Result<HostTensor> {
        let stored = self.find(name)?;
        let data =
            if self.scales.contains_key(name) { self.matrix(name)?.to_f32() } else { stored.to_f32()? };
        Ok(HostTensor { shape: stored.shape.clone(), data })
    }

    fn matrix(&self, name: &str) -> Result<Matrix<'_>> {
        let stored = self.find(name)?;
        let [rows, rest @ ..] = &stored.shape[..] else {
            return Err(Error::Internal(format!("`{name}` is a scalar, not a matrix")));
        };
        let (dtype, bytes) = stored.bytes()?;
        Ok(Matrix { rows: *rows, cols: rest.iter().product(), dtype, bytes, scale: self.scale(name, *rows)? })
    }
}

/// A component whose files could be read, complete or not.
pub(crate) struct Examined<C> {
    pub component: Component,
    pub layout: Layout,
    pub config: C,
    pub tensors: Tensors,
    pub scales: Tensors,
    pub problems: Problems,
}

impl<C> Examined<C> {
    /// Compares with the list of what should be there.
    fn new(component: Component, layout: Layout, parts: Parts, config: C, expected: &[Expected]) -> Self {
        let Parts { tensors, scales, sizes } = parts;
        let problems = Problems { sizes, ..compare(component, &tensors, &scales, expected) };
        Self { component, layout, config, tensors, scales, problems }
    }

    fn checked(mut self, path: &Path) -> Result<(Weights, C)> {
        if !self.problems.is_empty() {
            let (component, problems) = (self.component.title(), &self.problems);
            return Err(Error::Model(format!(
                "the {component} in `{}` is not as it should be: {problems}",
                path.display()
            )));
        }
        self.tensors.retain(|name, _| !ignorable(self.component, name));
        let Self { component, layout, config, tensors, scales, .. } = self;
        Ok((Weights { component, layout, tensors, scales }, config))
    }
}

struct Parts {
    tensors: Tensors,
    scales: Tensors,
    sizes: Vec<String>,
}

/// Opens a DiT: a folder (official, `LightX2V` fp8) or a single safetensors file (or a folder with one; `ComfyUI`).
///
/// # Errors
/// [`Error::Model`] says in one sentence everything that is missing, left over, misshapen or wrongly typed, or which other
/// model this is.
pub fn open_dit(path: &Path) -> Result<(Weights, DitConfig)> {
    examine_dit(path)?.checked(path)
}

/// Opens a `umT5` encoder: its file, or the model folder with `models_t5_umt5-xxl-enc-*.pth`.
///
/// # Errors
/// As [`open_dit`].
pub fn open_t5(path: &Path) -> Result<(Weights, T5Config)> {
    examine_t5(path)?.checked(path)
}

/// Opens a CLIP vision tower: its file, or the model folder with `models_clip_*.pth`.
///
/// # Errors
/// As [`open_dit`].
pub fn open_clip(path: &Path) -> Result<(Weights, ClipConfig)> {
    examine_clip(path)?.checked(path)
}

/// Opens a VAE: its file, or the model folder with `Wan2.1_VAE.pth`.
///
/// # Errors
/// As [`open_dit`].
pub fn open_vae(path: &Path) -> Result<(Weights, VaeConfig)> {
    examine_vae(path)?.checked(path)
}

pub(crate) fn examine_dit(path: &Path) -> Result<Examined<DitConfig>> {
    let files = find::dit_files(path)?;
    let folder = files.first().and_then(|f| f.parent()).unwrap_or(path);
    let file = ConfigFile::read(folder)?;
    if let Some(what) = file.as_ref().and_then(refusals::config) {
        return Err(Error::Model(format!("`{}` {what}", folder.join("config.json").display())));
    }
    let tensors = strip_prefix(container::read_files(&files)?, path)?;
    if let Some(what) = refusals::dit(&tensors) {
        return Err(Error::Model(format!("`{}` {what}", path.display())));
    }
    let (layout, tensors, scales) = split_scales(tensors);
    let mut sizes = Sizes::new(&tensors);
    let config = config::dit(&mut sizes, file.as_ref());
    if config.in_dim != 36 && config.in_dim != 0 {
        let n = config.in_dim;
        sizes.problems.push(format!("it takes {n} channels, where image-to-video takes 36"));
    }
    let sizes = sizes.problems;
    let expected = schema::dit(&config);
    Ok(Examined::new(Component::Dit, layout, Parts { tensors, scales, sizes }, config, &expected))
}

pub(crate) fn examine_t5(path: &Path) -> Result<Examined<T5Config>> {
    examine(path, Component::T5, config::t5, schema::t5)
}

pub(crate) fn examine_clip(path: &Path) -> Result<Examined<ClipConfig>> {
    examine(path, Component::Clip, config::clip, schema::clip)
}

pub(crate) fn examine_vae(path: &Path) -> Result<Examined<VaeConfig>> {
    examine(path, Component::Vae, config::vae, schema::vae)
}

fn examine<C>(
    path: &Path,
    component: Component,
    config: impl Fn(&mut Sizes<'_>) -> C,
    schema: impl Fn(&C) -> Vec<Expected>,
) -> Result<Examined<C>> {
    let file = find::component_file(path, component)?;
    let tensors = container::read_file(&file)?;
    if classify(&tensors.keys()) != Some(component) {
        return Err(Error::Model(format!(
            "`{}` {}",
            file.display(),
            refusals::component(component, &tensors)
        )));
    }
    let mut sizes = Sizes::new(&tensors);
    let config = config(&mut sizes);
    let sizes = sizes.problems;
    let expected = schema(&config);
    let parts = Parts { tensors, scales: Tensors::new(), sizes };
    Ok(Examined::new(component, Layout::Official, parts, config, &expected))
}

/// Removes the prefix that `ComfyUI`'s files may have.
fn strip_prefix(tensors: Tensors, path: &Path) -> Result<Tensors> {
    let mut all = Tensors::new();
    for (name, stored) in tensors {
        let short = ["model.diffusion_model.", "diffusion_model."].iter().find_map(|p| name.strip_prefix(p));
        let short = short.map_or_else(|| name.clone(), str::to_owned);
        if all.insert(short.clone(), stored).is_some() {
            return Err(Error::Model(format!(
                "`{}` has `{short}` twice, with a prefix and without",
                path.display()
            )));
        }
    }
    Ok(all)
}

/// Takes the scales out, under the names of their weights, and says whose layout this is.
fn split_scales(tensors: Tensors) -> (Layout, Tensors, Tensors) {
    let mut layout = Layout::Official;
    let (mut rest, mut scales) = (Tensors::new(), Tensors::new());
    for (name, stored) in tensors {
        if let Some(layer) = name.strip_suffix(".scale_weight") {
            layout = Layout::ComfyFp8;
            scales.insert(format!("{layer}.weight"), stored);
        } else if name == "scaled_fp8" {
            layout = Layout::ComfyFp8;
        } else if let Some(layer) = name.strip_suffix(".weight_scale") {
            layout = Layout::Lightx2vFp8;
            scales.insert(format!("{layer}.weight"), stored);
        } else if !name.ends_with(".scale_input") {
            rest.insert(name, stored);
        }
    }
    (layout, rest, scales)
}
