//! Finds the sizes of each component: from `config.json` where it has them, else from the shapes of the tensors.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::path::Path;

use serde::Deserialize;

use super::layouts::Described;
use super::stored::text_file;
use crate::{Error, Result};
use animd_protocol::dims::{ClipConfig, DitConfig, T5Config, VaeConfig};

/// The channels of one head in every Wan2.1 DiT.
pub(super) const HEAD_DIM: usize = 128;
/// The channels of one head of the CLIP tower.
pub(super) const CLIP_HEAD_DIM: usize = 80;
/// The longest `config.json` that is read.
const MAX_FILE: u64 = 1 << 20;
/// More blocks than any model has. It bounds how many tensors a file can make the engine list.
const MAX_LAYERS: usize = 1000;
/// More text tokens than any model takes.
const MAX_TEXT: usize = 1 << 14;
/// A size larger than any extent of a real tensor, for the same reason.
const MAX_EXTENT: usize = 1 << 24;

/// The keys of `config.json` that animd reads.
#[derive(Debug, Default, Deserialize)]
pub(super) struct ConfigFile {
    #[serde(rename = "_class_name")]
    pub class_name: Option<String>,
    pub model_type: Option<String>,
    pub dim: Option<usize>,
    pub ffn_dim: Option<usize>,
    pub freq_dim: Option<usize>,
    pub in_dim: Option<usize>,
    pub out_dim: Option<usize>,
    pub num_heads: Option<usize>,
    pub num_layers: Option<usize>,
    pub eps: Option<f64>,
    pub text_len: Option<usize>,
}

impl ConfigFile {
    /// Returns whether the file describes a transformer in the words of the released model.
    pub fn is_official(&self) -> bool {
        self.class_name.as_deref().is_none_or(|name| name == "WanModel")
    }

    /// Reads `config.json` in a folder, if there is one.
    pub fn read(folder: &Path) -> Result<Option<Self>> {
        let path = folder.join("config.json");
        let text = match text_file(&path, MAX_FILE) {
            Ok(text) => text,
            // The folder can also be the path of a file.
            Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => return Ok(None),
            Err(e) => return Err(Error::file("read", path)(e)),
        };
        serde_json::from_str(&text).map(Some).map_err(|e| {
            Error::Model(format!(
                "`{}` is not the configuration of a model: {e}; copy it again",
                path.display()
            ))
        })
    }
}

/// Looks up sizes in tensors, and gathers the contradictions.
pub(super) struct Sizes<'a> {
    pub tensors: &'a BTreeMap<String, Described>,
    pub problems: Vec<String>,
}

impl<'a> Sizes<'a> {
    pub fn new(tensors: &'a BTreeMap<String, Described>) -> Self {
        Self { tensors, problems: Vec::new() }
    }

    /// Returns the extent that most of the named axes have, so that one misshapen tensor does not decide alone; 0, for
    /// "not known", if none of the tensors is there.
    pub fn vote(&self, sources: &[(&str, usize)]) -> usize {
        let mut votes: Vec<(usize, usize)> = Vec::new();
        for (name, axis) in sources {
            let Some(extent) = self.tensors.get(*name).and_then(|t| t.shape.get(*axis)) else { continue };
            match votes.iter_mut().find(|(e, _)| e == extent) {
                Some((_, n)) => *n += 1,
                None => votes.push((*extent, 1)),
            }
        }
        // `max_by_key` returns the last of equals, but the first source must win a tie.
        let extent = votes.iter().rev().max_by_key(|(_, n)| *n).map_or(0, |(extent, _)| *extent);
        if extent > MAX_EXTENT { 0 } else { extent }
    }

    /// Returns the number of blocks under a prefix: one more than the largest index.
    pub fn layers(&mut self, prefix: &str) -> usize {
        let index = |name: &String| name.strip_prefix(prefix)?.split('.').next()?.parse::<usize>().ok();
        let count = self.tensors.keys().filter_map(index).max().map_or(0, |i| i.saturating_add(1));
        if count > MAX_LAYERS {
            self.problems
                .push(format!("`{prefix}{}` is beyond the {MAX_LAYERS} layers that are possible", count - 1));
            return 0;
        }
        count
    }

    /// Returns the size from `config.json`, if it is there, and notes a contradiction if the tensors have another one.
    fn agree(&mut self, key: &str, said: Option<usize>, seen: usize) -> usize {
        let Some(said) = said else { return seen };
        if said != seen && seen != 0 {
            self.problems.push(format!("`config.json` says `{key}` {said}, the tensors say {seen}"));
        }
        if said > MAX_EXTENT { seen } else { said }
    }
}

/// Returns the sizes of a DiT from its configuration and its tensors.
pub(super) fn dit(sizes: &mut Sizes<'_>, file: Option<&ConfigFile>) -> DitConfig {
    let none = ConfigFile::default();
    let file = file.unwrap_or(&none);
    let dim = sizes.vote(&[
        ("patch_embedding.weight", 0),
        ("patch_embedding.bias", 0),
        ("time_embedding.0.bias", 0),
        ("text_embedding.0.bias", 0),
        ("head.modulation", 2),
    ]);
    let dim = sizes.agree("dim", file.dim, dim);
    let ffn_dim =
        sizes.vote(&[("blocks.0.ffn.0.weight", 0), ("blocks.0.ffn.0.bias", 0), ("blocks.0.ffn.2.weight", 1)]);
    let ffn_dim = sizes.agree("ffn_dim", file.ffn_dim, ffn_dim);
    let freq_dim = sizes.vote(&[("time_embedding.0.weight", 1)]);
    let freq_dim = sizes.agree("freq_dim", file.freq_dim, freq_dim);
    let in_dim = sizes.vote(&[("patch_embedding.weight", 1)]);
    let in_dim = sizes.agree("in_dim", file.in_dim, in_dim);
    let out_dim = sizes.vote(&[("head.head.bias", 0), ("head.head.weight", 0)]) / 4;
    let out_dim = sizes.agree("out_dim", file.out_dim, out_dim);
    let num_heads = sizes.agree("num_heads", file.num_heads, dim / HEAD_DIM);
    if !dim.is_multiple_of(HEAD_DIM) {
        sizes.problems.push(format!("the width {dim} is not a multiple of {HEAD_DIM}, the width of a head"));
    }
    let text_len = file.text_len.unwrap_or(512);
    if !(1..=MAX_TEXT).contains(&text_len) {
        sizes
            .problems
            .push(format!("`config.json` says `text_len` {text_len}, which is not from 1 to {MAX_TEXT}"));
    }
    let layers = sizes.layers("blocks.");
    let num_layers = sizes.agree("num_layers", file.num_layers.filter(|n| *n <= MAX_LAYERS), layers);
    let has_image =
        sizes.tensors.keys().any(|name| name.starts_with("img_emb.") || name.contains(".cross_attn.k_img."));
    let image_dim = sizes.vote(&[
        ("img_emb.proj.0.weight", 0),
        ("img_emb.proj.1.weight", 1),
        ("img_emb.proj.3.weight", 1),
    ]);
    DitConfig {
        dim,
        ffn_dim,
        freq_dim,
        in_dim,
        out_dim,
        num_heads,
        num_layers,
        eps: file.eps.unwrap_or(1e-6),
        text_len,
        text_dim: sizes.vote(&[("text_embedding.0.weight", 1)]),
        image_dim: has_image.then_some(image_dim),
        image_positions: sizes
            .tensors
            .get("img_emb.emb_pos")
            .map(|tensor| tensor.shape.get(1).copied().unwrap_or(0)),
    }
}

/// Returns the sizes of a `umT5` encoder from its tensors.
pub(super) fn t5(sizes: &mut Sizes<'_>) -> T5Config {
    let config = T5Config {
        dim: sizes.vote(&[("norm.weight", 0), ("token_embedding.weight", 1), ("blocks.0.norm1.weight", 0)]),
        rows: sizes.vote(&[("token_embedding.weight", 0)]),
        heads: sizes.vote(&[("blocks.0.pos_embedding.embedding.weight", 1)]),
        inner: sizes.vote(&[
            ("blocks.0.attn.q.weight", 0),
            ("blocks.0.attn.k.weight", 0),
            ("blocks.0.attn.o.weight", 1),
        ]),
        ffn_dim: sizes.vote(&[
            ("blocks.0.ffn.gate.0.weight", 0),
            ("blocks.0.ffn.fc1.weight", 0),
            ("blocks.0.ffn.fc2.weight", 1),
        ]),
        layers: sizes.layers("blocks."),
        buckets: sizes.vote(&[("blocks.0.pos_embedding.embedding.weight", 0)]),
    };
    if config.heads != 0 && !config.inner.is_multiple_of(config.heads) {
        let (heads, inner) = (config.heads, config.inner);
        sizes.problems.push(format!("an attention width of {inner} does not divide into {heads} heads"));
    }
    config
}

/// Returns the sizes of a CLIP vision tower from its tensors.
pub(super) fn clip(sizes: &mut Sizes<'_>) -> ClipConfig {
    let dim = sizes.vote(&[
        ("visual.patch_embedding.weight", 0),
        ("visual.cls_embedding", 2),
        ("visual.pre_norm.weight", 0),
    ]);
    let patch = sizes.vote(&[("visual.patch_embedding.weight", 2), ("visual.patch_embedding.weight", 3)]);
    let patches = sizes.vote(&[("visual.pos_embedding", 1)]).saturating_sub(1);
    let side = patches.isqrt();
    if side * side != patches {
        sizes.problems.push(format!("`visual.pos_embedding` is for {patches} patches, which make no square"));
    }
    if !dim.is_multiple_of(CLIP_HEAD_DIM) {
        sizes
            .problems
            .push(format!("the width {dim} is not a multiple of {CLIP_HEAD_DIM}, the width of a head"));
    }
    ClipConfig {
        dim,
        patch,
        image_size: side * patch,
        heads: dim / CLIP_HEAD_DIM,
        mlp_dim: sizes.vote(&[
            ("visual.transformer.0.mlp.0.weight", 0),
            ("visual.transformer.0.mlp.0.bias", 0),
            ("visual.transformer.0.mlp.2.weight", 1),
        ]),
        layers: sizes.layers("visual.transformer."),
    }
}

/// Returns the sizes of a VAE from its tensors.
pub(super) fn vae(sizes: &mut Sizes<'_>) -> VaeConfig {
    let base = sizes.vote(&[
        ("encoder.conv1.weight", 0),
        ("encoder.conv1.bias", 0),
        ("decoder.head.0.gamma", 0),
        ("encoder.downsamples.0.residual.6.bias", 0),
    ]);
    let z_dim = sizes.vote(&[("conv2.weight", 0), ("conv2.bias", 0), ("decoder.conv1.weight", 1)]);
    let mut multipliers = Vec::new();
    // The first residual block of each resolution is the 0th, 3rd, 6th and 9th module of the encoder.
    for stage in 0..4 {
        let name = |what: &str| format!("encoder.downsamples.{}.residual.{what}", 3 * stage);
        let (a, b, c) = (name("2.weight"), name("2.bias"), name("6.bias"));
        let channels = sizes.vote(&[(&a, 0), (&b, 0), (&c, 0)]);
        if base != 0 && !channels.is_multiple_of(base) {
            sizes.problems.push(format!("`{a}` has {channels} channels, no multiple of {base}"));
        }
        multipliers.push(channels.checked_div(base).unwrap_or(0));
    }
    VaeConfig { base, z_dim, multipliers }
}
