//! Says what one file is, or the files of one folder that belong together: by what is in them, never by their names.

use std::path::{Path, PathBuf};

use serde::Serialize;

use super::open::{self, Examined};
use super::refusals::{self, Asked};
use super::{Component, Summary, carried, container, find, names, shards};

/// What a file or folder holds.
#[derive(Clone, Debug, Serialize)]
pub struct Identified {
    /// The file or folder.
    pub path: PathBuf,
    /// What it is.
    pub kind: Kind,
    /// Its description, if it is a part of a model.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub part: Option<Summary>,
    /// Whether it carries a tokenizer.
    pub tokenizer: bool,
    /// Why it cannot be used, as a sentence; `None` if it can be.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub refusal: Option<String>,
}

/// What a file or folder is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// The transformer of a model that has one.
    Dit,
    /// One of the two transformers of Wan2.2; no file says which.
    Expert,
    /// A text encoder.
    Text,
    /// An image encoder.
    Clip,
    /// An autoencoder.
    Vae,
    /// A `LoRA`.
    Lora,
    /// Something else.
    Other,
    /// A file that cannot be read: one that is not whole, or of a format that animd does not know.
    Damaged,
}

/// Describes a file with its shards if it is one of several, or the shards in a folder. Reads headers only, and never fails: what cannot be used is described by its
/// refusal.
pub fn identify(path: &Path) -> Identified {
    let refused = |kind, why: String| Identified {
        path: path.to_owned(),
        kind,
        part: None,
        tokenizer: false,
        refusal: Some(why),
    };
    let files = match path.is_dir() {
        true => match find::shards_in(path) {
            Ok(Some(files)) => files,
            Ok(None) => {
                return refused(Kind::Other, format!("`{}` holds no shards of one part", path.display()));
            }
            Err(e) => return refused(Kind::Damaged, e.to_string()),
        },
        false => match shards::of_file(path) {
            Ok(files) => files,
            Err(e) => return refused(Kind::Damaged, e.to_string()),
        },
    };
    let mut content = match container::read_files(&files) {
        Ok(content) => content,
        Err(e) => return refused(Kind::Damaged, e.to_string()),
    };
    content.tensors = match names::without_prefixes(content.tensors) {
        Ok(tensors) => tensors,
        Err(name) => return refused(Kind::Damaged, format!("`{}` has `{name}` twice", path.display())),
    };
    let Some(naming) = names::find(&content.tensors) else {
        let what = refusals::component(Component::Dit, &content);
        let kind = if what.contains("LoRA") { Kind::Lora } else { Kind::Other };
        let refusal = (kind == Kind::Other).then(|| format!("`{}` {what}", path.display()));
        return Identified { path: path.to_owned(), kind, part: None, tokenizer: false, refusal };
    };
    let (kind, part) = match naming.component {
        Component::Dit => dit(path),
        Component::T5 => (Kind::Text, Summary::of(path, Component::T5)),
        Component::Clip => (Kind::Clip, Summary::of(path, Component::Clip)),
        Component::Vae => (Kind::Vae, Summary::of(path, Component::Vae)),
    };
    let tokenizer = kind == Kind::Text && files.first().is_some_and(|file| carried::is_carried_by(file));
    let refusal = (!part.usable).then(|| part.problems.join("; "));
    Identified { path: path.to_owned(), kind, part: Some(part), tokenizer, refusal }
}

/// Describes a diffusion transformer, of whichever model it is.
fn dit(path: &Path) -> (Kind, Summary) {
    let describe = |e: Examined<_>| Summary::new(&e, animd_protocol::dims::DitConfig::sizes(&e.config));
    match open::examine_dit(path, Asked::Wan22Expert).map(describe) {
        Ok(summary) => (Kind::Expert, summary),
        Err(_) => (Kind::Dit, Summary::of(path, Component::Dit)),
    }
}
