//! Opening a component: its files, its layout, its sizes, and whether it has the tensors that it should have.

use std::path::{Path, PathBuf};

use super::check::{Problems, compare};
use super::config::{self, ConfigFile, Sizes};
use super::layouts::{self, Contents, Layout};
use super::refusals::Asked;
use super::source::Weights;
use super::{Component, container, experts, find, names, refusals};
use crate::{Error, Result};
use animd_protocol::dims::schema::{self, Expected};
use animd_protocol::dims::{ClipConfig, DitConfig, T5Config, VaeConfig};

/// A component whose files could be read, complete or not.
pub(super) struct Examined<C> {
    pub component: Component,
    pub layout: Layout,
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

/// Opens a DiT of Wan2.1 image-to-video: a file, a folder that has one, or a folder in which a program keeps a whole
/// model.
///
/// # Errors
/// [`Error::Model`] says in one sentence everything that is missing, left over, misshapen or wrongly typed, or which other
/// model this is.
pub fn open_dit(path: &Path) -> Result<(Weights, DitConfig)> {
    examine_dit(path, Asked::Wan21)?.checked(path)
}

/// Opens one of the two diffusion transformers of Wan2.2 image-to-video. No file says which of the two it is.
///
/// # Errors
/// The errors are those of [`open_dit`].
pub fn open_expert(path: &Path) -> Result<(Weights, DitConfig)> {
    examine_dit(path, Asked::Wan22Expert)?.checked(path)
}

/// Opens a `umT5` encoder: its file, or a model folder that has one.
///
/// # Errors
/// The errors are those of [`open_dit`].
pub fn open_t5(path: &Path) -> Result<(Weights, T5Config)> {
    examine_t5(path)?.checked(path)
}

/// Opens a CLIP vision tower: its file, or a model folder that has one.
///
/// # Errors
/// The errors are those of [`open_dit`].
pub fn open_clip(path: &Path) -> Result<(Weights, ClipConfig)> {
    examine_clip(path)?.checked(path)
}

/// Opens a VAE: its file, or a model folder that has one.
///
/// # Errors
/// The errors are those of [`open_dit`].
pub fn open_vae(path: &Path) -> Result<(Weights, VaeConfig)> {
    examine_vae(path)?.checked(path)
}

pub(super) fn examine_dit(path: &Path, model: Asked) -> Result<Examined<DitConfig>> {
    if model == Asked::Wan22Expert && !path.exists() {
        return Err(Error::Model(refusals::absent(path, experts::said_by(path))));
    }
    let files = find::files(path, Component::Dit)?;
    let file = config_of(path, &files)?;
    let contents = read(path, &files, Component::Dit)?;
    if let Some(what) = refusals::model(&contents.1, model) {
        return Err(Error::Model(format!("`{}` {what}", path.display())));
    }
    let config = |sizes: &mut Sizes<'_>| {
        let config = config::dit(sizes, file.as_ref());
        if config.in_dim != 36 && config.in_dim != 0 {
            let n = config.in_dim;
            sizes.problems.push(format!("it takes {n} channels, where image-to-video takes 36"));
        }
        config
    };
    Ok(examine(Component::Dit, contents, config, schema::dit))
}

/// Returns the `config.json` beside a DiT's files, or in the folder that was named, if it is official.
fn config_of(path: &Path, files: &[PathBuf]) -> Result<Option<ConfigFile>> {
    let beside = files.first().and_then(|f| f.parent()).unwrap_or(path);
    for folder in [beside, path] {
        let Some(file) = ConfigFile::read(folder)? else { continue };
        if let Some(what) = refusals::config(&file) {
            return Err(Error::Model(format!("`{}` {what}", folder.join("config.json").display())));
        }
        // Other programs write files of this name with other keys.
        return Ok(file.is_official().then_some(file));
    }
    Ok(None)
}

pub(super) fn examine_t5(path: &Path) -> Result<Examined<T5Config>> {
    let files = find::files(path, Component::T5)?;
    Ok(examine(Component::T5, read(path, &files, Component::T5)?, config::t5, schema::t5))
}

pub(super) fn examine_clip(path: &Path) -> Result<Examined<ClipConfig>> {
    let files = find::files(path, Component::Clip)?;
    Ok(examine(Component::Clip, read(path, &files, Component::Clip)?, config::clip, schema::clip))
}

pub(super) fn examine_vae(path: &Path) -> Result<Examined<VaeConfig>> {
    let files = find::files(path, Component::Vae)?;
    Ok(examine(Component::Vae, read(path, &files, Component::Vae)?, config::vae, schema::vae))
}

/// Returns what files hold of a component, under its official names.
fn read(path: &Path, files: &[PathBuf], component: Component) -> Result<(Layout, Contents)> {
    let shown = match files {
        [one] => one,
        _ => path,
    };
    let refused = |what: String| Error::Model(format!("`{}` {what}", shown.display()));
    let mut content = container::read_files(files)?;
    content.tensors = names::without_prefixes(content.tensors)
        .map_err(|name| refused(format!("has `{name}` twice, with a prefix and without")))?;
    match names::find(&content.tensors) {
        Some(naming) if naming.component == component => layouts::describe(naming, content).map_err(refused),
        _ => Err(refused(refusals::component(component, &content))),
    }
}

fn examine<C>(
    component: Component,
    (layout, contents): (Layout, Contents),
    config: impl Fn(&mut Sizes<'_>) -> C,
    schema: impl Fn(&C) -> Vec<Expected>,
) -> Examined<C> {
    let mut sizes = Sizes::new(&contents.tensors);
    let config = config(&mut sizes);
    let sizes = sizes.problems;
    let problems = Problems { sizes, ..compare(component, &contents, &schema(&config)) };
    Examined { component, layout, config, contents, problems }
}
