//! Where the files of a model are published: for each part of a family the repository, the files, their size, the
//! licence, and the command that fetches them. Nothing here fetches anything.
//!
//! The facts are in [`table`], and this file asks them.

mod table;

use std::fmt::Write as _;
use std::path::Path;

use serde::Serialize;

/// A family of models whose files are known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Family {
    /// Wan2.1 image-to-video, the model of 480p.
    #[serde(rename = "wan2.1-i2v-480p")]
    Wan21I2v480p,
    /// Wan2.1 image-to-video, the model of 720p.
    #[serde(rename = "wan2.1-i2v-720p")]
    Wan21I2v720p,
    /// Wan2.2 image-to-video, with two transformers.
    #[serde(rename = "wan2.2-i2v-a14b")]
    Wan22I2vA14b,
}

impl Family {
    /// All families.
    pub const ALL: [Self; 3] = [Self::Wan21I2v480p, Self::Wan21I2v720p, Self::Wan22I2vA14b];

    /// Returns the name on command lines and in JSON.
    pub fn name(self) -> &'static str {
        match self {
            Self::Wan21I2v480p => "wan2.1-i2v-480p",
            Self::Wan21I2v720p => "wan2.1-i2v-720p",
            Self::Wan22I2vA14b => "wan2.2-i2v-a14b",
        }
    }

    /// Returns the name in sentences, which is the one that it is published under.
    pub fn title(self) -> &'static str {
        match self {
            Self::Wan21I2v480p => "Wan2.1-I2V-14B-480P",
            Self::Wan21I2v720p => "Wan2.1-I2V-14B-720P",
            Self::Wan22I2vA14b => "Wan2.2-I2V-A14B",
        }
    }

    /// Returns the parts that a model of this family has, the transformers first.
    pub fn parts(self) -> &'static [ModelPart] {
        use ModelPart::{Clip, Dit, HighNoise, LowNoise, Text, Tokenizer, Vae};
        match self {
            Self::Wan21I2v480p | Self::Wan21I2v720p => &[Dit, Text, Clip, Vae, Tokenizer],
            Self::Wan22I2vA14b => &[HighNoise, LowNoise, Text, Vae, Tokenizer],
        }
    }
}

/// A part of a model, as a model file names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ModelPart {
    /// The transformer of a model that has one.
    Dit,
    /// The transformer of the noisy steps.
    HighNoise,
    /// The transformer of the last steps.
    LowNoise,
    /// The text encoder.
    Text,
    /// The image encoder.
    Clip,
    /// The autoencoder.
    Vae,
    /// The tokenizer.
    Tokenizer,
}

impl ModelPart {
    /// Returns the key in a model file, and the name in JSON.
    pub fn key(self) -> &'static str {
        match self {
            Self::Dit => "dit",
            Self::HighNoise => "high_noise",
            Self::LowNoise => "low_noise",
            Self::Text => "text",
            Self::Clip => "clip",
            Self::Vae => "vae",
            Self::Tokenizer => "tokenizer",
        }
    }

    /// Returns the name in sentences.
    pub fn title(self) -> &'static str {
        match self {
            Self::Dit => "DiT",
            Self::HighNoise => "high-noise DiT",
            Self::LowNoise => "low-noise DiT",
            Self::Text => "umT5 encoder",
            Self::Clip => "CLIP vision tower",
            Self::Vae => "VAE",
            Self::Tokenizer => "tokenizer",
        }
    }
}

/// Who made the files, and of which kind they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// ComfyUI's repackaged files: one for each part, the large ones in fp8.
    Comfy,
    /// The released files.
    Official,
    /// `LightX2V`'s transformers that were distilled to four steps, in fp8.
    Distilled,
    /// GGUF with 8 bits for each weight.
    GgufQ8,
    /// GGUF with 4 to 6 bits for each weight.
    GgufQ4,
}

impl Kind {
    /// All kinds, the recommended one first.
    pub const ALL: [Self; 5] = [Self::Comfy, Self::Official, Self::Distilled, Self::GgufQ8, Self::GgufQ4];

    /// Returns the name on command lines and in JSON.
    pub fn name(self) -> &'static str {
        match self {
            Self::Comfy => "comfy",
            Self::Official => "official",
            Self::Distilled => "distilled",
            Self::GgufQ8 => "gguf-q8",
            Self::GgufQ4 => "gguf-q4",
        }
    }

    /// Returns what the files are, for sentences.
    pub fn title(self) -> &'static str {
        match self {
            Self::Comfy => "ComfyUI's files, fp8",
            Self::Official => "the released files",
            Self::Distilled => "LightX2V's, distilled to 4 steps, fp8",
            Self::GgufQ8 => "GGUF Q8_0",
            Self::GgufQ4 => "GGUF Q4_K_M",
        }
    }
}

/// Where one part of a model is published.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Source {
    /// Of which kind the files are.
    pub kind: Kind,
    /// The repository on the Hugging Face hub: `ORGANISATION/NAME`.
    pub repository: &'static str,
    /// The paths of the files in the repository.
    pub files: &'static [&'static str],
    /// The bytes of all the files, to three digits or better; `None` where the size is not known, as of small files.
    pub bytes: Option<u64>,
    /// The licence that the repository's page names; `None` if it names none.
    pub licence: Option<&'static str>,
    /// Whether the text encoder carries the tokenizer.
    pub carries_tokenizer: bool,
}

/// The licence of the released weights, which all the others are made from.
pub const RELEASED_LICENCE: &str = "Apache-2.0";

impl Source {
    /// Returns the source with the licence in words: the page's own, or what is known where it names none.
    pub fn licence_title(&self) -> String {
        match self.licence {
            Some(licence) => licence.to_owned(),
            None => format!("not named there; the released weights are {RELEASED_LICENCE}"),
        }
    }

    /// Returns the command that fetches the files into a folder.
    pub fn command(&self, folder: &Path) -> String {
        command(self.repository, self.files, folder)
    }
}

/// Returns where a part of a family is published, the recommended place first. A family without such a part has none.
pub fn sources(family: Family, part: ModelPart) -> impl Iterator<Item = &'static Source> {
    let known = if family.parts().contains(&part) { table::sources(family, part) } else { &[] };
    known.iter()
}

/// Returns the recommended place of a part; `None` if the family has no such part.
pub fn source(family: Family, part: ModelPart) -> Option<&'static Source> {
    sources(family, part).next()
}

/// Returns where the parts of a model are published if its transformers are of one kind. Of the other parts those come
/// from the same kind that have it, the rest from the recommended place. A text encoder that carries the tokenizer makes
/// one of its own needless.
pub fn set(family: Family, kind: Kind) -> Vec<(ModelPart, &'static Source)> {
    let of = |part| sources(family, part).find(|source| source.kind == kind).or_else(|| source(family, part));
    let carried = of(ModelPart::Text).is_some_and(|text| text.carries_tokenizer);
    let needed = family.parts().iter().filter(|part| !(carried && **part == ModelPart::Tokenizer));
    needed.filter_map(|part| Some((*part, of(*part)?))).collect()
}

/// Returns the commands that fetch several parts into a folder, one for each repository, in the order of the parts.
pub fn commands<'a>(sources: impl IntoIterator<Item = &'a Source>, folder: &Path) -> Vec<String> {
    let mut repositories: Vec<(&str, Vec<&str>)> = Vec::new();
    for source in sources {
        let at = repositories.iter().position(|(name, _)| *name == source.repository).unwrap_or_else(|| {
            repositories.push((source.repository, Vec::new()));
            repositories.len() - 1
        });
        let files = &mut repositories[at].1;
        files.extend(source.files.iter().filter(|file| !files.contains(file)).collect::<Vec<_>>());
    }
    repositories.iter().map(|(repository, files)| command(repository, files, folder)).collect()
}

/// Returns the command that fetches files of a repository into a folder.
fn command(repository: &str, files: &[&str], folder: &Path) -> String {
    let mut line = format!("hf download {repository}");
    for file in files {
        _ = write!(line, " {file}");
    }
    _ = write!(line, " --local-dir {}", quoted(&folder.to_string_lossy()));
    line
}

/// Returns a word as a shell takes it: in single quotes, where it needs them.
pub fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-+=:,@%".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        return word.to_owned();
    }
    format!("'{}'", word.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests;
