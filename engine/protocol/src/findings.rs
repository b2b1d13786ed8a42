//! What a search for model files has found: the parts, the models that they make, what is missing, and what was passed over.
//!
//! `animd-engine find --json` prints it, and `animctl model add` makes a model file of it.

mod words;

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::expert::ExpertName;
use crate::model_file::PartPaths;

pub use words::in_units;

/// What a search has found.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Findings {
    /// The models that the parts make, those that lack something too.
    pub models: Vec<FoundModel>,
    /// The `LoRAs`, those first that go with a model.
    pub loras: Vec<FoundLora>,
    /// Every part of a model that can be used.
    pub parts: Vec<FoundPart>,
    /// Transformers of which no name says whether they are for the noisy steps or for the last ones.
    pub unclear: Vec<PathBuf>,
    /// The files that cannot be used.
    pub passed_over: Vec<PassedOver>,
    /// Sentences about the places that were searched.
    pub notes: Vec<String>,
}

/// A model made of the parts that fit together.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct FoundModel {
    /// A name for it, after its transformer.
    pub name: String,
    /// What it is: `Wan2.1 image-to-video`.
    pub family: String,
    /// Its parts, in the order of a model file.
    pub parts: Vec<Chosen>,
    /// What it lacks; empty for a whole model.
    pub missing: Vec<Missing>,
    /// Whether the name of a file says that the model was distilled to few steps. Nothing else says so.
    pub called_distilled: bool,
}

/// A part that belongs to a model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Chosen {
    /// Its key in a model file: `dit`, `vae` ...
    pub key: String,
    /// The part.
    #[serde(flatten)]
    pub part: FoundPart,
    /// Other parts that would fit in its place.
    pub others: Vec<FoundPart>,
    /// Why this one was taken, where there are others.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub because: Option<String>,
}

/// A part of a model, or a file that belongs to models.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct FoundPart {
    /// What stands for it in a model file: a file, a folder, or the index of several files.
    pub path: PathBuf,
    /// What it is.
    pub kind: PartKind,
    /// Every file that is read for it, its index and configuration too.
    pub files: Vec<PathBuf>,
    /// How it is named and quantised: `official`, `comfy-fp8`.
    pub layout: String,
    /// The type of most of its numbers: `BF16`, `Q4_K`.
    pub precision: String,
    /// The bytes of its files' tensors.
    pub bytes: u64,
    /// Which of two transformers it is, by its name or by the request.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub noise: Option<ExpertName>,
}

/// A `LoRA`, and the models that it goes with.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct FoundLora {
    /// The name by which jobs choose it: that of its file, without the ending.
    pub name: String,
    /// Its file.
    pub path: PathBuf,
    /// The file's bytes.
    pub bytes: u64,
    /// The names of the models that it can be added to: of those that were found, and of those that were known before.
    pub models: Vec<String>,
    /// Which of two transformers it is for, by what the file says or by its name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub noise: Option<ExpertName>,
    /// The name of the one for the other transformer, if there are both.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub partner: Option<String>,
    /// Whether its name says that it distils a model to few steps. Nothing else says so.
    pub called_distilled: bool,
    /// Why it goes with none of the models.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
}

/// What a file is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PartKind {
    /// The transformer of a model that has one.
    Dit,
    /// One of the two transformers of Wan2.2.
    Expert,
    /// A text encoder.
    Text,
    /// An image encoder.
    Clip,
    /// An autoencoder.
    Vae,
    /// A tokenizer.
    Tokenizer,
    /// A `LoRA`.
    Lora,
}

impl PartKind {
    /// Returns the word for it in sentences.
    pub fn title(self) -> &'static str {
        match self {
            Self::Dit => "transformer",
            Self::Expert => "transformer of Wan2.2",
            Self::Text => "text encoder",
            Self::Clip => "image encoder",
            Self::Vae => "VAE",
            Self::Tokenizer => "tokenizer",
            Self::Lora => "LoRA",
        }
    }
}

/// A part that a model lacks.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Missing {
    /// Its key in a model file.
    pub key: String,
    /// What is missing, and what does not do in its place.
    pub sentence: String,
    /// Where it can be fetched from, if there is such a place.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<Fetch>,
}

/// How a part can be fetched.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fetch {
    /// The command that fetches it.
    pub command: String,
    /// The bytes of its files, where they are known.
    pub bytes: Option<u64>,
    /// Its licence, in words.
    pub licence: String,
}

/// A file that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PassedOver {
    /// The file or folder.
    pub path: PathBuf,
    /// Why, as a sentence.
    pub why: String,
    /// Whether it is whole, and of another kind of model than animd runs.
    pub other_model: bool,
}

impl FoundModel {
    /// Returns whether the model lacks nothing.
    pub fn is_whole(&self) -> bool {
        self.missing.is_empty()
    }

    /// Returns the part of this key.
    pub fn part(&self, key: &str) -> Option<&Chosen> {
        self.parts.iter().find(|part| part.key == key)
    }

    /// Returns the paths for a model file. Those of parts that are missing are empty.
    pub fn paths(&self) -> PartPaths {
        let path = |key: &str| self.part(key).map(|chosen| chosen.part.path.clone());
        PartPaths {
            dit: path("dit"),
            high_noise: path("high_noise"),
            low_noise: path("low_noise"),
            vae: path("vae").unwrap_or_default(),
            text: path("text").unwrap_or_default(),
            clip: path("clip"),
            tokenizer: path("tokenizer"),
        }
    }
}
