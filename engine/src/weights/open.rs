//! Opening a component: its files, its layout, its sizes, and whether it has the tensors that it should have.

use std::path::Path;

use super::check::{Problems, compare};
use super::config::{self, ConfigFile, Sizes};
use super::layouts::{self, Contents, Layout};
use super::source::Weights;
use super::{Component, container, find, refusals};
use crate::{Error, Result};
use animd_protocol::dims::schema::{self, Expected};
use animd_protocol::dims::{ClipConfig, DitConfig, T5Config, VaeConfig};

/// A component whose files could be read, complete or not.
pub(super) struct Examined<C> {
    pub component: Component,
    pub layout: &'static Layout,
    pub config: C,
    pub contents: Contents,
    pub problems: Problems,
}

impl<C> Examined<C> {
    fn checked(self, path: &Path) -> Result<(Weights, C)> {
        let Self { component, layout, config, contents, problems } = self;
        if !problems.is_empty() {
            let (component, path) = (component.title(), path.display());
            return Err(Error::Model(format!(
                "the {component} in `{path}` is not as it should be: {problems}"
            )));
        }
        Ok((Weights::new(component, layout, contents)?, config))
    }
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
/// The errors are those of [`open_dit`].
pub fn open_t5(path: &Path) -> Result<(Weights, T5Config)> {
    examine_t5(path)?.checked(path)
}

/// Opens a CLIP vision tower: its file, or the model folder with `models_clip_*.pth`.
///
/// # Errors
/// The errors are those of [`open_dit`].
pub fn open_clip(path: &Path) -> Result<(Weights, ClipConfig)> {
    examine_clip(path)?.checked(path)
}

/// Opens a VAE: its file, or the model folder with `Wan2.1_VAE.pth`.
///
/// # Errors
/// The errors are those of [`open_dit`].
pub fn open_vae(path: &Path) -> Result<(Weights, VaeConfig)> {
    examine_vae(path)?.checked(path)
}

pub(super) fn examine_dit(path: &Path) -> Result<Examined<DitConfig>> {
    let files = find::dit_files(path)?;
    let folder = files.first().and_then(|f| f.parent()).unwrap_or(path);
    let file = ConfigFile::read(folder)?;
    if let Some(what) = file.as_ref().and_then(refusals::config) {
        return Err(Error::Model(format!("`{}` {what}", folder.join("config.json").display())));
    }
    let refused = |what: String| Error::Model(format!("`{}` {what}", path.display()));
    let tensors = layouts::without_prefix(container::read_files(&files)?)
        .map_err(|name| refused(format!("has `{name}` twice, with a prefix and without")))?;
    let layout = match layouts::marked(Component::Dit, &tensors)[..] {
        [] => match refusals::layout(&tensors) {
            Some(what) => return Err(refused(what)),
            None => layouts::unmarked(),
        },
        [(layout, _)] => layout,
        [one, other, ..] => return Err(refused(refusals::contradiction(one, other))),
    };
    let contents = layouts::describe(layout, tensors);
    if let Some(what) = refusals::model(&contents) {
        return Err(refused(what));
    }
    let mut sizes = Sizes::new(&contents.tensors);
    let config = config::dit(&mut sizes, file.as_ref());
    if config.in_dim != 36 && config.in_dim != 0 {
        let n = config.in_dim;
        sizes.problems.push(format!("it takes {n} channels, where image-to-video takes 36"));
    }
    let sizes = sizes.problems;
    let problems = Problems { sizes, ..compare(Component::Dit, &contents, &schema::dit(&config)) };
    Ok(Examined { component: Component::Dit, layout, config, contents, problems })
}

pub(super) fn examine_t5(path: &Path) -> Result<Examined<T5Config>> {
    examine(path, Component::T5, config::t5, schema::t5)
}

pub(super) fn examine_clip(path: &Path) -> Result<Examined<ClipConfig>> {
    examine(path, Component::Clip, config::clip, schema::clip)
}

pub(super) fn examine_vae(path: &Path) -> Result<Examined<VaeConfig>> {
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
    let refused = |what: String| Error::Model(format!("`{}` {what}", file.display()));
    if layouts::component(&tensors) != Some(component) {
        return Err(refused(refusals::component(component, &tensors)));
    }
    let layout = match layouts::marked(component, &tensors)[..] {
        [] => layouts::unmarked(),
        [(layout, _)] => layout,
        [one, other, ..] => return Err(refused(refusals::contradiction(one, other))),
    };
    let contents = layouts::describe(layout, tensors);
    let mut sizes = Sizes::new(&contents.tensors);
    let config = config(&mut sizes);
    let sizes = sizes.problems;
    let problems = Problems { sizes, ..compare(component, &contents, &schema(&config)) };
    Ok(Examined { component, layout, config, contents, problems })
}
