//! Opening a component: its files, its layout, its sizes, and whether it has the tensors that it should have.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use rayon::prelude::*;

use super::config::{self, ConfigFile, Sizes, Tensors};
use super::stored::{Element, Stored};
use super::{Component, DType, HostTensor, Layout, Matrix, Scale, WeightSource, find};
use crate::dims::schema::{self, Expected};
use crate::dims::{ClipConfig, DitConfig, T5Config, VaeConfig};
use crate::recipe::Recipe;
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

/// How a component's files differ from what they should be.
#[derive(Clone, Debug, Default)]
pub(crate) struct Problems {
    /// Contradictions about sizes.
    pub sizes: Vec<String>,
    pub missing: Vec<String>,
    pub extra: Vec<String>,
    pub misshapen: Vec<String>,
    pub mistyped: Vec<String>,
}

/// How many of a kind an error names before it only counts them.
const NAMED: usize = 20;

impl Problems {
    pub fn is_empty(&self) -> bool {
        let lists = [&self.sizes, &self.missing, &self.extra, &self.misshapen, &self.mistyped];
        lists.iter().all(|list| list.is_empty())
    }
}

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kinds = [
            (&self.sizes, ""),
            (&self.missing, "missing"),
            (&self.extra, "not of this model"),
            (&self.misshapen, "of the wrong shape"),
            (&self.mistyped, "of the wrong type"),
        ];
        let mut separator = "";
        for (list, kind) in kinds.into_iter().filter(|(list, _)| !list.is_empty()) {
            f.write_str(separator)?;
            separator = "; ";
            if !kind.is_empty() {
                write!(f, "{} {kind}: ", list.len())?;
            }
            f.write_str(&list[..list.len().min(NAMED)].join(", "))?;
            if list.len() > NAMED {
                write!(f, " and {} more", list.len() - NAMED)?;
            }
        }
        Ok(())
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

fn compare(component: Component, tensors: &Tensors, scales: &Tensors, expected: &[Expected]) -> Problems {
    let mut problems = Problems::default();
    let by_name: BTreeMap<&str, &Expected> = expected.iter().map(|e| (e.name.as_str(), e)).collect();
    for want in expected {
        let Expected { name, shape, quantisable } = want;
        let Some(have) = tensors.get(name) else {
            problems.missing.push(format!("`{name}`"));
            continue;
        };
        let fits =
            have.shape.len() == shape.len() && have.shape.iter().zip(shape).all(|(h, w)| h == w || *w == 0);
        if !fits {
            problems.misshapen.push(format!("`{name}` is {:?}, not {}", have.shape, show_shape(shape)));
        }
        match (&have.element, scales.get(name)) {
            (Element::Float(DType::F8E4m3), Some(scale)) if *quantisable => {
                let rows = have.shape.first().copied().unwrap_or(0);
                if ![&[][..], &[1], &[rows], &[rows, 1]].contains(&&scale.shape[..]) {
                    problems
                        .misshapen
                        .push(format!("the scale of `{name}` is {:?}, not [{rows}, 1]", scale.shape));
                }
                if !matches!(scale.element, Element::Float(DType::F32 | DType::F16 | DType::Bf16)) {
                    problems.mistyped.push(format!("the scale of `{name}` is {}, not F32", scale.element));
                }
            }
            (Element::Float(DType::F8E4m3), None) if *quantisable => {
                problems.missing.push(format!("the scale of `{name}`"));
            }
            (Element::Float(DType::F32 | DType::F16 | DType::Bf16), None) => {}
            (Element::Float(DType::F32 | DType::F16 | DType::Bf16), Some(_)) => {
                problems
                    .mistyped
                    .push(format!("`{name}` is {}, not F8_E4M3 as its scale says", have.element));
            }
            (element, _) => problems.mistyped.push(format!("`{name}` is {element}, not F32, F16 or BF16")),
        }
    }
    let unknown = |name: &&String| !by_name.contains_key(name.as_str()) && !ignorable(component, name);
    problems.extra.extend(tensors.keys().filter(unknown).map(|name| format!("`{name}`")));
    let orphan = |name: &&String| !tensors.contains_key(name.as_str());
    problems.extra.extend(scales.keys().filter(orphan).map(|name| format!("the scale of `{name}`")));
    problems
}

/// Whether a component's file may hold a tensor that the engine has no use for.
pub(super) fn ignorable(component: Component, name: &str) -> bool {
    match component {
        // The text tower, the last norm and the projection of a whole CLIP checkpoint.
        Component::Clip => {
            name.starts_with("textual.")
                || name.starts_with("visual.post_norm.")
                || ["log_scale", "visual.head"].contains(&name)
        }
        Component::Dit | Component::T5 | Component::Vae => false,
    }
}

fn show_shape(shape: &[usize]) -> String {
    let extents: Vec<String> =
        shape.iter().map(|e| if *e == 0 { "?".to_owned() } else { e.to_string() }).collect();
    format!("[{}]", extents.join(", "))
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
    if let Some(what) = file.as_ref().and_then(foreign_config) {
        return Err(Error::Model(format!("`{}` {what}", folder.join("config.json").display())));
    }
    let tensors = strip_prefix(find::read_files(&files)?, path)?;
    if let Some(what) = foreign_dit(&tensors) {
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
    let tensors = find::read_file(&file)?;
    if find::classify(&tensors.keys()) != Some(component) {
        return Err(Error::Model(format!("`{}` {}", file.display(), not_component(component, &tensors))));
    }
    let mut sizes = Sizes::new(&tensors);
    let config = config(&mut sizes);
    let sizes = sizes.problems;
    let expected = schema(&config);
    let parts = Parts { tensors, scales: Tensors::new(), sizes };
    Ok(Examined::new(component, Layout::Official, parts, config, &expected))
}

fn not_component(component: Component, tensors: &Tensors) -> String {
    let has = |part: &str| tensors.keys().any(|n| n.contains(part));
    let title = component.title();
    if has("down_blocks.") || has("encoder.block.") || has("vision_model.") {
        format!("has the tensor names of diffusers and transformers; animd reads the official {title}")
    } else if component == Component::Vae && has(".downsamples.0.downsamples.") {
        "is the VAE of Wan2.2; animd runs Wan2.1".to_owned()
    } else if let Some(other) = find::classify(&tensors.keys()) {
        format!("is a {}, not a {title}", other.title())
    } else {
        let some: Vec<String> = tensors.keys().take(3).map(|n| format!("`{n}`")).collect();
        format!("is not a {title}: it has {} tensors ({})", tensors.len(), some.join(", "))
    }
}

/// Another model, by its `config.json`.
fn foreign_config(file: &ConfigFile) -> Option<String> {
    if file.class_name.as_deref() == Some("WanTransformer3DModel") {
        return Some("belongs to the diffusers layout; animd reads the official one".to_owned());
    }
    match file.model_type.as_deref() {
        None | Some("i2v") => None,
        Some("t2v") => {
            Some("says `t2v`: this is the text-to-video model; animd needs Wan2.1 image-to-video".to_owned())
        }
        Some("flf2v") => Some(
            "says `flf2v`: this is the first-and-last-frame model; animd needs image-to-video".to_owned(),
        ),
        Some("ti2v") => Some("says `ti2v`: this is Wan2.2 5B; animd needs Wan2.1 image-to-video".to_owned()),
        Some(other) => Some(format!("says model type `{other}`; animd needs Wan2.1 image-to-video (`i2v`)")),
    }
}

/// Another model or a layout that is not read, by the names and types of its tensors.
fn foreign_dit(tensors: &Tensors) -> Option<String> {
    let has = |part: &str| tensors.keys().any(|n| n.contains(part));
    let only = "animd runs Wan2.1 image-to-video";
    let what = if has("condition_embedder.") {
        "has diffusers' tensor names; animd reads the official layout, and LightX2V's and ComfyUI's fp8 files"
            .to_owned()
    } else if has(".lora_") || has("lora_A.") || has("_lora.") {
        "is a LoRA, not a whole model".to_owned()
    } else if has("vace_blocks.") {
        format!("is Wan2.1 VACE; {only}")
    } else if has("img_emb.emb_pos") {
        format!("is the first-and-last-frame model (FLF2V); {only}")
    } else if find::classify(&tensors.keys()) != Some(Component::Dit) {
        match find::classify(&tensors.keys()) {
            Some(other) => format!("is a {}, not a transformer", other.title()),
            None => format!("is not a Wan transformer; {only}"),
        }
    } else if has("weight_global_scale")
        || has(".comfy_quant")
        || tensors.values().any(|t| is_int8(&t.element))
    {
        "is quantised in a way that animd does not read; it reads LightX2V's fp8 and ComfyUI's fp8_scaled"
            .to_owned()
    } else if !has("img_emb.") && !has("cross_attn.k_img") {
        match tensors.get("patch_embedding.weight").and_then(|t| t.shape.get(1)) {
            Some(16) => format!("is the text-to-video model (16 channels in, no image embedding); {only}"),
            _ => format!("has no image embedding, as Wan2.2; {only}"),
        }
    } else {
        return None;
    };
    Some(what)
}

fn is_int8(element: &Element) -> bool {
    matches!(element, Element::Other(name) if name == "I8")
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

impl Matrix<'_> {
    /// The real values, row-major: `stored * scale`.
    pub fn to_f32(&self) -> Vec<f32> {
        let mut values = super::stored::to_f32(self.dtype, &self.bytes);
        match &self.scale {
            None => {}
            Some(Scale::PerTensor(scale)) => values.par_iter_mut().for_each(|v| *v *= scale),
            Some(Scale::PerRow(scales)) => {
                let rows = values.par_chunks_mut(self.cols.max(1)).zip(scales);
                rows.for_each(|(row, scale)| row.iter_mut().for_each(|v| *v *= scale));
            }
        }
        values
    }

    /// Some of its rows.
    #[must_use]
    pub fn part(&self, first: usize, rows: usize) -> Matrix<'_> {
        let row = self.cols * self.dtype.size();
        let scale = match &self.scale {
            Some(Scale::PerRow(factors)) => Some(Scale::PerRow(factors[first..first + rows].to_vec())),
            other => other.clone(),
        };
        let bytes = Cow::Borrowed(&self.bytes[first * row..][..rows * row]);
        Matrix { rows, cols: self.cols, dtype: self.dtype, bytes, scale }
    }

    /// The same matrix with its bytes in memory of its own.
    pub fn into_owned(self) -> Matrix<'static> {
        Matrix { bytes: Cow::Owned(self.bytes.into_owned()), ..self }
    }
}

/// A whole model, all of it checked.
pub struct Model {
    /// The diffusion transformer.
    pub dit: (Weights, DitConfig),
    /// The `umT5` encoder.
    pub t5: (Weights, T5Config),
    /// The CLIP tower.
    pub clip: (Weights, ClipConfig),
    /// The VAE.
    pub vae: (Weights, VaeConfig),
    /// `google/umt5-xxl/tokenizer.json`.
    pub tokenizer: PathBuf,
}

impl Model {
    /// Opens a model folder as it is downloaded, with the DiT in a folder or file of its own if `dit` says so. Nothing but
    /// headers is read.
    ///
    /// # Errors
    /// One [`Error::Model`] for everything that is wrong: missing, half-copied or of another model.
    pub fn open(folder: &Path, dit: Option<&Path>) -> Result<Self> {
        if !folder.exists() {
            return Err(Error::Model(format!("the model folder `{}` does not exist", folder.display())));
        }
        if !folder.is_dir() {
            return Err(Error::Model(format!(
                "`{}` is a file; name the folder of the model",
                folder.display()
            )));
        }
        // An empty folder, or one for another program, is one fact and not five.
        let files = find::list(folder)?;
        if dit.is_none() && !files.iter().any(|n| n.starts_with("models_") || n.starts_with("Wan2.1_VAE")) {
            open_dit(folder)?;
        }
        let mut errors = Vec::new();
        let mut note = |e| errors.push(e);
        let dit = open_dit(dit.unwrap_or(folder)).map_err(&mut note).ok();
        let t5 = open_t5(folder).map_err(&mut note).ok();
        let clip = open_clip(folder).map_err(&mut note).ok();
        let vae = open_vae(folder).map_err(&mut note).ok();
        let tokenizer = folder.join("google").join("umt5-xxl").join("tokenizer.json");
        if !tokenizer.is_file() {
            note(Error::Model(format!("`{}` holds no `google/umt5-xxl/tokenizer.json`", folder.display())));
        }
        if let Some((_, dit)) = &dit {
            let widths = [
                ("text", Some(dit.text_dim), t5.as_ref().map(|(w, c)| (w, c.dim))),
                ("images", dit.image_dim, clip.as_ref().map(|(w, c)| (w, c.dim))),
            ];
            for (what, want, found) in widths {
                let Some(want) = want else { continue };
                if let Some((weights, have)) = found.filter(|(_, have)| *have != want) {
                    let path = weights.file().map_or(folder, |p| p).display();
                    note(Error::Model(format!(
                        "the DiT takes {what} of width {want}, and `{path}` gives {have}"
                    )));
                }
            }
        }
        find::merge(errors)?;
        let (Some(dit), Some(t5), Some(clip), Some(vae)) = (dit, t5, clip, vae) else {
            return Err(Error::Internal("a part of the model is neither found nor missing".to_owned()));
        };
        Ok(Self { dit, t5, clip, vae, tokenizer })
    }

    /// The model as a value.
    pub fn recipe(&self) -> Recipe {
        Recipe::wan21_i2v(self.dit.1.clone(), self.t5.1.clone(), self.clip.1.clone(), self.vae.1.clone())
    }

    /// Parameters of all four networks.
    pub fn parameters(&self) -> usize {
        [&self.dit.0, &self.t5.0, &self.clip.0, &self.vae.0].into_iter().map(Weights::parameters).sum()
    }
}
