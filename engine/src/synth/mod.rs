//! Made-up models: random weights in the official layout, for tests, demonstrations and measurements on machines that
//! cannot have the released files.
//!
//! The weights are scaled so that activations stay finite and near one, that latents look like the real VAE's, and that
//! videos stay within their range. The videos are noise, but they take as long as real ones.

mod files;
mod formats;
mod source;
mod values;

use std::fs;
use std::path::{Path, PathBuf};

use animd_protocol::dims::schema::Expected;
use animd_protocol::dims::{ClipConfig, DitConfig, T5Config};
use animd_protocol::recipe::{Component, ExpertName, Part, Recipe, Sizes};
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::model::vae::{LATENT_MEAN, LATENT_STD};
use crate::weights::{self, DType};
use crate::{Error, Result};

use files::Plan;
pub use formats::{Format, synth_dit};
pub use source::{Source, noise};
use values::{Fill, Spread};

/// How large a made-up model is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Size {
    /// Runs on a CPU: three blocks of width 256.
    Tiny,
    /// The released 14B model's shapes: 46 GB in bf16; with two transformers 69 GB.
    Full,
}

/// The family that a made-up model belongs to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Family {
    /// Wan2.1 image-to-video: one transformer, which attends to the picture.
    #[default]
    Wan21,
    /// Wan2.1 first-and-last-frame: as `wan21`, between two pictures.
    Flf2v,
    /// Wan2.2 image-to-video: two transformers that take turns, and no image encoder.
    Wan22,
}

/// The small tokenizer of made-up models.
pub(crate) const TOKENIZER: &str = include_str!("../../assets/tokenizer.json");

/// A rule that returns the filling of a tensor.
type Rule = Box<dyn Fn(&Expected) -> Fill>;

impl Family {
    /// Returns the number of transformers that a model of the family has.
    pub fn experts(self) -> usize {
        match self {
            Self::Wan21 | Self::Flf2v => 1,
            Self::Wan22 => 2,
        }
    }
}

impl Size {
    /// Returns a model of Wan2.1 image-to-video as a value.
    pub fn recipe(self) -> Recipe {
        self.recipe_of(Family::Wan21)
    }

    /// Returns a model of a family as a value.
    pub fn recipe_of(self, family: Family) -> Recipe {
        let mut recipe = match family {
            Family::Wan21 | Family::Flf2v => Recipe::wan21_i2v_14b(),
            Family::Wan22 => Recipe::wan22_i2v_a14b(),
        };
        if self == Self::Tiny {
            shrink(&mut recipe);
        }
        match family {
            Family::Flf2v => recipe.between_two_pictures(),
            Family::Wan21 | Family::Wan22 => recipe,
        }
    }
}

/// Gives a recipe the sizes of a model that runs on any CPU.
fn shrink(recipe: &mut Recipe) {
    for expert in &mut recipe.experts {
        let config = &mut expert.network.config;
        (config.dim, config.ffn_dim, config.num_heads, config.num_layers) = (256, 512, 2, 3);
        (config.text_dim, config.image_dim) = (64, config.image_dim.map(|_| 160));
    }
    // The small tokenizer has 808 tokens, filled up to a multiple of 128 as in the released embedding.
    recipe.text_encoder.config =
        T5Config { dim: 64, rows: 896, heads: 4, inner: 64, ffn_dim: 160, layers: 3, buckets: 32 };
    if let Some(network) = &mut recipe.conditioning.image_encoder {
        network.config =
            ClipConfig { dim: 160, patch: 14, image_size: 224, heads: 2, mlp_dim: 192, layers: 3 };
    }
    recipe.vae.config.base = 8;
}

/// Gives all transformers of a recipe so many blocks.
pub fn cut(recipe: &mut Recipe, layers: usize) {
    for expert in &mut recipe.experts {
        expert.network.config.num_layers = layers;
    }
}

impl From<Size> for Recipe {
    fn from(size: Size) -> Self {
        size.recipe()
    }
}

/// Returns the networks of a made-up model, each with the seed of its weights: two transformers differ.
pub(crate) fn networks(recipe: &Recipe, seed: u64) -> impl Iterator<Item = (Part<'_>, u64)> {
    let mut others = 0..;
    recipe.networks().map(move |part| match part.component() {
        Component::Dit => (part, seed.wrapping_add(others.next().unwrap_or_default())),
        _ => (part, seed),
    })
}

/// Returns the tensors of a network and what fills them; `dtype` is the type of a DiT's tensors. As in the released
/// files, `umT5` is in bf16, CLIP in fp16 and the VAE in f32.
fn plan(part: &Part<'_>, dtype: DType) -> Vec<Plan> {
    let mut expected = part.schema();
    let (dtype, rule): (_, Rule) = match part.sizes {
        Sizes::Dit(_) => (dtype, Box::new(dit_rule)),
        Sizes::T5(c) => {
            let head = (c.inner / c.heads) as f32;
            (DType::Bf16, Box::new(move |e| t5_rule(e, head)))
        }
        Sizes::Clip(c) => {
            expected.extend(clip_head(c));
            (DType::F16, Box::new(clip_rule))
        }
        Sizes::Vae(_) => (DType::F32, Box::new(vae_rule)),
    };
    let plan = |e: Expected| Plan { fill: rule(&e), name: e.name, shape: e.shape, dtype };
    expected.into_iter().map(plan).collect()
}

/// Returns the tensors of a complete CLIP checkpoint that the engine does not use.
fn clip_head(c: &ClipConfig) -> Vec<Expected> {
    let expected = |name: &str, shape: &[usize]| Expected {
        name: name.to_owned(),
        shape: shape.to_vec(),
        quantisable: false,
    };
    vec![
        expected("visual.post_norm.weight", &[c.dim]),
        expected("visual.post_norm.bias", &[c.dim]),
        expected("visual.head", &[c.dim, c.dim * 4 / 5]),
        expected("log_scale", &[]),
    ]
}

fn fan_in(e: &Expected) -> f32 {
    e.shape[1..].iter().product::<usize>() as f32
}

/// Returns a filling whose deviation keeps the size of the values that pass through the layer.
fn keep(e: &Expected, gain: f32) -> Fill {
    Fill::new(0.0, gain / fan_in(e).sqrt())
}

fn dit_rule(e: &Expected) -> Fill {
    let name = &e.name[..];
    if let Some(fill) = values::attention(name, e.shape[0]) {
        return fill;
    }
    let norm =
        name.contains("norm") || name.starts_with("img_emb.proj.0") || name.starts_with("img_emb.proj.4");
    if name.ends_with("modulation") {
        Fill::new(0.0, (e.shape[2] as f32).powf(-0.5))
    } else if name == "time_embedding.0.weight" {
        // A trained time embedding changes smoothly with time, so the fast sinusoids have little weight.
        let half = e.shape[1] / 2;
        let column = |j: usize| {
            let frequency = 10_000f32.powf(-((j % half) as f32) / half as f32);
            1.0 / (1.0 + (100.0 * frequency).powi(2)) + 0.05
        };
        let columns: Vec<f32> = (0..e.shape[1]).map(column).collect();
        let length = columns.iter().map(|c| c * c).sum::<f32>().sqrt();
        let columns = columns.into_iter().map(|c| 1.5 * c / length).collect();
        Fill { mean: Spread::All(0.0), deviation: Spread::Columns(columns) }
    } else if name == "time_embedding.2.weight" {
        keep(e, 1.5)
    } else if name == "time_projection.1.weight" {
        keep(e, 0.25)
    } else if name == "time_projection.1.bias" {
        // Gates, scales and shifts get a visible size.
        Fill::new(0.0, 0.3)
    } else if name.ends_with("bias") {
        Fill::new(0.0, 0.05)
    } else if norm {
        Fill::new(1.0, 0.1)
    } else {
        keep(e, 1.0)
    }
}

fn t5_rule(e: &Expected, head: f32) -> Fill {
    let name = &e.name[..];
    if name == "token_embedding.weight" || name.ends_with("pos_embedding.embedding.weight") {
        Fill::new(0.0, 1.0)
    } else if name.contains("norm") {
        Fill::new(1.0, 0.1)
    } else if name.ends_with("attn.q.weight") {
        // umT5 does not divide by the root of the head's width, so its weights do.
        keep(e, 1.0 / head.sqrt())
    } else {
        keep(e, 1.0)
    }
}

fn clip_rule(e: &Expected) -> Fill {
    let name = &e.name[..];
    if name == "log_scale" {
        Fill::new((1f32 / 0.07).ln(), 0.0)
    } else if name == "visual.cls_embedding" {
        Fill::new(0.0, 0.5)
    } else if name == "visual.pos_embedding" {
        Fill::new(0.0, 0.4)
    } else if name.contains("norm") {
        Fill::new(if name.ends_with("weight") { 1.0 } else { 0.0 }, 0.1)
    } else if name.ends_with("bias") {
        Fill::new(0.0, 0.05)
    } else if name.ends_with("to_qkv.weight") {
        // Queries and keys, the first two thirds, are larger than values, so that attention has preferences.
        let root = fan_in(e).sqrt();
        let rows =
            (0..e.shape[0]).map(|i| if 3 * i < 2 * e.shape[0] { 1.5 / root } else { 1.0 / root }).collect();
        Fill { mean: Spread::All(0.0), deviation: Spread::Rows(rows) }
    } else {
        keep(e, 1.0)
    }
}

/// The factors that bring a made-up VAE's latents to unit deviation, and its videos to 0.4. They are the reciprocals of
/// the deviations that a picture and normal latents gave without them, 0.43 and 0.53 on average over six tiny models
/// and a full one.
const LATENT_GAIN: f32 = 2.35;
const VIDEO_GAIN: f32 = 0.76;

fn vae_rule(e: &Expected) -> Fill {
    let name = &e.name[..];
    if name == "conv1.weight" {
        let gain = |i: usize| LATENT_STD.get(i).map_or(1.0, |d| d * LATENT_GAIN) / fan_in(e).sqrt();
        Fill { mean: Spread::All(0.0), deviation: Spread::Rows((0..e.shape[0]).map(gain).collect()) }
    } else if name == "conv1.bias" {
        let mean = (0..e.shape[0]).map(|i| LATENT_MEAN.get(i).copied().unwrap_or(0.0)).collect();
        Fill { mean: Spread::Rows(mean), deviation: Spread::All(0.05) }
    } else if name.ends_with("gamma") {
        Fill::new(1.0, 0.1)
    } else if name.ends_with("bias") {
        Fill::new(0.0, 0.05)
    } else if name == "decoder.head.2.weight" {
        keep(e, VIDEO_GAIN)
    } else if name.contains("residual") {
        keep(e, 2.0)
    } else if name.contains("to_qkv") {
        keep(e, 1.5)
    } else {
        keep(e, 1.0)
    }
}

/// Writes a made-up model into a folder: all of it, or one component. Two transformers have a folder each, as in the released
/// layout. `progress` receives the bytes written and the total, and can stop the work with an error. The folder appears
/// when everything is written, or not at all.
///
/// # Errors
/// [`Error::Output`] if the folder is not empty or the disk has no room; [`Error::File`] if writing fails; any error
/// that `progress` returns.
pub fn synth_model(
    folder: &Path,
    model: impl Into<Recipe>,
    dtype: DType,
    only: Option<Component>,
    seed: u64,
    progress: &mut dyn FnMut(u64, u64) -> Result<()>,
) -> Result<()> {
    let recipe = model.into();
    let parts = networks(&recipe, seed).filter(|(part, _)| only.is_none_or(|one| one == part.component()));
    let plans: Vec<_> = parts.map(|(part, seed)| (part, seed, plan(&part, dtype))).collect();
    let total: u64 = plans.iter().flat_map(|(_, _, plans)| plans).map(Plan::bytes).sum();
    let temporary = Temporary::beside(folder)?;
    check_room(&temporary.0, folder, total)?;
    let mut written = 0;
    let mut wrote = |bytes| {
        written += bytes;
        progress(written, total)
    };
    for (part, seed, plans) in &plans {
        let (out, seed) = (&temporary.0, *seed);
        match part.sizes {
            Sizes::Dit(config) => {
                let out = &match expert_of(&recipe, part.name) {
                    Some(name) => out.join(weights::released_folder(name)),
                    None => out.clone(),
                };
                fs::create_dir_all(out).map_err(Error::file("create", out))?;
                files::safetensors(out, "diffusion_pytorch_model", plans, seed, &mut wrote)?;
                files::write_text(&out.join("config.json"), &config_json(config))?;
            }
            Sizes::T5(_) => {
                files::torch(out, "models_t5_umt5-xxl-enc-bf16", plans, seed, &mut wrote)?;
                let folder = out.join("google").join("umt5-xxl");
                fs::create_dir_all(&folder).map_err(Error::file("create", &folder))?;
                files::write_text(&folder.join("tokenizer.json"), TOKENIZER)?;
            }
            Sizes::Clip(_) => {
                files::torch(
                    out,
                    "models_clip_open-clip-xlm-roberta-large-vit-huge-14",
                    plans,
                    seed,
                    &mut wrote,
                )?;
            }
            Sizes::Vae(_) => files::torch(out, "Wan2.1_VAE", plans, seed, &mut wrote)?,
        }
    }
    temporary.rename(folder)
}

/// Returns which of a recipe's two transformers has this network; `None` in a recipe with one.
fn expert_of(recipe: &Recipe, network: &str) -> Option<ExpertName> {
    let index = recipe.experts.iter().position(|expert| expert.network.name == network)?;
    ExpertName::ALL.into_iter().find(|name| name.index() == index).filter(|_| recipe.experts.len() > 1)
}

fn config_json(c: &DitConfig) -> String {
    let model_type = if c.image_positions.is_some() { "flf2v" } else { "i2v" };
    let config = json!({
        "_class_name": "WanModel", "_diffusers_version": "0.30.0", "dim": c.dim, "eps": c.eps, "ffn_dim": c.ffn_dim,
        "freq_dim": c.freq_dim, "in_dim": c.in_dim, "model_type": model_type, "num_heads": c.num_heads,
        "num_layers": c.num_layers, "out_dim": c.out_dim, "text_len": c.text_len,
    });
    format!("{config:#}\n")
}

/// A folder that is removed with its content, unless it is renamed.
struct Temporary(PathBuf);

impl Temporary {
    fn beside(folder: &Path) -> Result<Self> {
        match fs::read_dir(folder) {
            Ok(mut entries) => {
                if entries.next().is_some() {
                    return Err(Error::Output(format!(
                        "`{}` is not empty; name a folder that does not exist",
                        folder.display()
                    )));
                }
            }
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
            Err(e) => return Err(Error::file("read", folder)(e)),
        }
        let Some(name) = folder.file_name() else {
            return Err(Error::Output(format!("`{}` names no folder that could be made", folder.display())));
        };
        let mut hidden = std::ffi::OsString::from(".");
        hidden.push(name);
        hidden.push(format!(".{}.part", std::process::id()));
        let path = folder.with_file_name(hidden);
        if let Some(parent) = path.parent().filter(|p| !p.as_os_str().is_empty()) {
            fs::create_dir_all(parent).map_err(Error::file("create", parent))?;
        }
        fs::create_dir(&path).map_err(Error::file("create", &path))?;
        Ok(Self(path))
    }

    fn rename(self, folder: &Path) -> Result<()> {
        // Renaming onto an empty folder replaces it.
        fs::rename(&self.0, folder).map_err(Error::file("create", folder))
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        // After a rename there is nothing left to remove. Drop cannot report a failure.
        _ = fs::remove_dir_all(&self.0);
    }
}

fn check_room(temporary: &Path, folder: &Path, needed: u64) -> Result<()> {
    let stat = rustix::fs::statvfs(temporary).map_err(|e| Error::file("read", temporary)(e.into()))?;
    let free = stat.f_bavail.saturating_mul(stat.f_frsize);
    // The disk needs a little more than the tensors: headers, the tokenizer, the file system's own data.
    if free < needed + (16 << 20) {
        let gb = |bytes: u64| bytes as f64 / 1e9;
        return Err(Error::Output(format!(
            "the model needs {:.1} GB, and the disk of `{}` has {:.1} GB free",
            gb(needed),
            folder.display(),
            gb(free)
        )));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::weights::{Model, WeightSource, open_dit};

    fn tiny(folder: &Path, seed: u64) {
        synth_model(folder, Size::Tiny, DType::Bf16, None, seed, &mut |_, _| Ok(())).unwrap();
    }

    #[test]
    fn a_tiny_model_is_a_model() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("model");
        let mut last = (0, 0);
        let mut progress = |done, total| {
            assert!(done > last.0 && done <= total);
            last = (done, total);
            Ok(())
        };
        synth_model(&folder, Size::Tiny, DType::Bf16, None, 1, &mut progress).unwrap();
        assert_eq!(last.0, last.1);
        let model = Model::open(&folder, None).unwrap();
        assert_eq!(model.recipe(), Size::Tiny.recipe());
        let (vae, _) = model.vae;
        // Tensors are written by position and read back whole: the mean of the gammas is 1, their deviation 0.1.
        let gamma = vae.tensor("decoder.head.0.gamma").unwrap().data;
        assert!(gamma.iter().all(|g| (g - 1.0).abs() < 0.36) && gamma[0] != gamma[1], "{gamma:?}");
        // Nothing is left beside the folder.
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn seeds_and_nothing_else_make_the_difference() {
        let dir = tempfile::tempdir().unwrap();
        let read =
            |name: &str| fs::read(dir.path().join(name).join("diffusion_pytorch_model.safetensors")).unwrap();
        tiny(&dir.path().join("a"), 5);
        tiny(&dir.path().join("b"), 6);
        let only = Some(Component::Dit);
        synth_model(&dir.path().join("c"), Size::Tiny, DType::Bf16, only, 5, &mut |_, _| Ok(())).unwrap();
        assert!(read("a") == read("c"), "one component alone is the same");
        assert!(read("a") != read("b"));
        // The same model in another type has the same values.
        synth_model(&dir.path().join("d"), Size::Tiny, DType::F32, only, 5, &mut |_, _| Ok(())).unwrap();
        let open = |name: &str| open_dit(&dir.path().join(name)).unwrap().0;
        let (a, d) = (open("a"), open("d"));
        for name in a.names() {
            assert_eq!(a.tensor(name).unwrap(), d.tensor(name).unwrap());
        }
    }

    #[test]
    fn the_full_shapes_are_the_released_ones() {
        let counts = |family| {
            let recipe = Size::Full.recipe_of(family);
            let counts = recipe.networks().map(|part| {
                let plans = plan(&part, DType::Bf16);
                (part.component(), plans.len(), plans.iter().map(Plan::elements).sum::<usize>())
            });
            counts.collect::<Vec<_>>()
        };
        let wan22 = counts(Family::Wan22);
        assert_eq!(wan22[..2], [(Component::Dit, 1095, 14_288_901_184); 2]);
        assert_eq!(
            wan22[2..].iter().map(|(of, ..)| *of).collect::<Vec<_>>(),
            [Component::T5, Component::Vae]
        );
        assert_eq!(
            counts(Family::Wan21),
            [
                (Component::Dit, 1303, 16_394_878_784),
                (Component::T5, 242, 5_680_910_336),
                (Component::Clip, 393, 632_076_801),
                (Component::Vae, 194, 126_892_531),
            ]
        );
    }

    #[test]
    fn two_transformers_are_two_in_their_folders() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("model");
        let mut recipe = Size::Tiny.recipe_of(Family::Wan22);
        cut(&mut recipe, 1);
        synth_model(&folder, recipe.clone(), DType::Bf16, None, 1, &mut |_, _| Ok(())).unwrap();
        let model = Model::open(&folder, None).unwrap();
        assert_eq!(model.recipe(), recipe);
        let low = model.low_noise.as_ref().map(|(weights, _)| weights).expect("the second one");
        let of = |weights: &dyn WeightSource| weights.tensor("patch_embedding.weight").unwrap();
        assert!(of(&model.dit.0) != of(low), "each has weights of its own");
        for (name, (part, seed)) in [&model.dit.0, low].into_iter().zip(networks(&recipe, 1)) {
            assert!(of(name) == of(&Source::new(&part, DType::Bf16, seed)), "files have the made-up values");
        }
    }

    #[test]
    fn what_is_there_stays() {
        let dir = tempfile::tempdir().unwrap();
        let result = synth_model(dir.path(), Size::Tiny, DType::Bf16, None, 1, &mut |_, _| Ok(()));
        result.unwrap(); // empty is as good as none
        let before = fs::read(dir.path().join("Wan2.1_VAE.pth")).unwrap();
        let error =
            synth_model(dir.path(), Size::Tiny, DType::Bf16, None, 2, &mut |_, _| Ok(())).unwrap_err();
        assert!(matches!(&error, Error::Output(text) if text.contains("is not empty")), "{error}");
        assert_eq!(fs::read(dir.path().join("Wan2.1_VAE.pth")).unwrap(), before);
    }

    #[test]
    fn work_that_is_stopped_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let mut stop = |done, _| if done > 1_000_000 { Err(Error::Canceled) } else { Ok(()) };
        let result = synth_model(&dir.path().join("m"), Size::Tiny, DType::Bf16, None, 1, &mut stop);
        assert!(matches!(result, Err(Error::Canceled)));
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
        let error = check_room(dir.path(), dir.path(), u64::MAX / 2).unwrap_err();
        assert!(error.to_string().contains("GB free"), "{error}");
    }
}
