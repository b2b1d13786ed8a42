//! Looks into what a walk has gathered: each candidate is recognised by its contents.

use std::fs;
use std::path::{Path, PathBuf};

use animd_protocol::findings::{FoundPart, PartKind, PassedOver};
use rayon::prelude::*;

use super::walk::{PATIENCE, Unit, Walk};
use crate::text::Tokenizer;
use crate::weights::{self, Component, Identified, IdentifiedKind, Summary, identify};

/// The most files that are tried as tokenizers: each takes a part of a second.
const MAX_TOKENIZERS: usize = 32;
/// The longest file that is tried as a tokenizer, in bytes.
const MAX_TOKENIZER: u64 = 128 << 20;

/// A part that can be used, with what decides where it fits.
#[derive(Clone, Debug)]
pub(super) struct Candidate {
    pub part: FoundPart,
    /// The part's sizes by their names.
    sizes: Vec<(&'static str, usize)>,
    /// Of a text encoder: whether it carries a tokenizer.
    pub carries_tokenizer: bool,
    /// The key of the part that it was named for, if it was.
    pub key: Option<&'static str>,
    /// The number of numbers that the part's tensors have.
    parameters: u64,
}

impl Candidate {
    /// Returns a size; 0 if the part has none of this name.
    pub fn size(&self, name: &str) -> usize {
        self.sizes.iter().find(|(known, _)| *known == name).map_or(0, |(_, size)| *size)
    }

    /// Returns all sizes by their names.
    pub fn sizes(&self) -> &[(&'static str, usize)] {
        &self.sizes
    }

    /// Returns the bits that a number takes on average, scales and all.
    pub fn bits(&self) -> u64 {
        (self.part.bytes * 8 + self.parameters / 2).checked_div(self.parameters).unwrap_or(0)
    }
}

/// What looking into one file or group has shown.
enum Seen {
    Part(Box<Candidate>),
    Passed(PassedOver),
    /// It was not looked into, because the time was over.
    Late,
    /// It is nothing.
    Nothing,
}

/// Looks into everything that a walk has gathered. Only headers are read. What cannot be used is added to the walk.
pub(super) fn look(walk: &mut Walk) -> Vec<Candidate> {
    let end = walk.end();
    let late = || std::time::Instant::now() >= end;
    let look = |unit: &Unit| if late() { Seen::Late } else { network(unit) };
    let mut seen: Vec<Seen> = walk.units.par_iter().map(look).collect();
    let tokenizers = &walk.tokenizers[..walk.tokenizers.len().min(MAX_TOKENIZERS)];
    let look = |unit: &Unit| if late() { Seen::Late } else { tokenizer(unit) };
    seen.par_extend(tokenizers.par_iter().map(look));
    let (mut candidates, mut left) = (Vec::new(), 0);
    for one in seen {
        match one {
            Seen::Part(candidate) => candidates.push(*candidate),
            Seen::Passed(passed) => walk.passed_over.push(passed),
            Seen::Late => left += 1,
            Seen::Nothing => {}
        }
    }
    if left > 0 {
        walk.notes.push(format!(
            "{left} files were not looked into within {} seconds; name a smaller folder, or the files themselves",
            PATIENCE.as_secs()
        ));
    }
    candidates
}

fn network(unit: &Unit) -> Seen {
    let Identified { kind, part, tokenizer, refusal, .. } = identify(&unit.path);
    let kind = match kind {
        IdentifiedKind::Dit => PartKind::Dit,
        IdentifiedKind::Expert => PartKind::Expert,
        IdentifiedKind::Text => PartKind::Text,
        IdentifiedKind::Clip => PartKind::Clip,
        IdentifiedKind::Vae => PartKind::Vae,
        IdentifiedKind::Lora => {
            let files = unit.files.clone();
            return Seen::Part(Box::new(alone(unit, PartKind::Lora, files, bytes_of(&unit.files))));
        }
        IdentifiedKind::Other | IdentifiedKind::Damaged => {
            let why = refusal.unwrap_or_else(|| format!("`{}` is no part of a model", unit.path.display()));
            let other_model = kind == IdentifiedKind::Other;
            return Seen::Passed(PassedOver { path: unit.path.clone(), why, other_model });
        }
    };
    let Some(part) = part else { return Seen::Nothing };
    if let Some(why) = refusal {
        // The sentence of a transformer that animd does not run names its model.
        let other_model = part.layout.is_none();
        let path = unit.path.display().to_string();
        let why = if why.contains(&path) { why } else { format!("`{path}`: {why}") };
        return Seen::Passed(PassedOver { path: unit.path.clone(), why, other_model });
    }
    let files = with_companions(unit, kind);
    let path = stand_in(unit, part.component, &files);
    let noise = (kind == PartKind::Expert).then(|| weights::said_by(&path)).flatten();
    let Summary { layout, sizes, dtypes, bytes, parameters, .. } = part;
    let found = FoundPart {
        path,
        kind,
        files,
        layout: layout.map(|layout| layout.name().to_owned()).unwrap_or_default(),
        precision: dtypes
            .into_iter()
            .max_by_key(|(_, count)| *count)
            .map(|(name, _)| name)
            .unwrap_or_default(),
        bytes,
        noise,
    };
    let carries_tokenizer = tokenizer;
    Seen::Part(Box::new(Candidate { part: found, sizes, carries_tokenizer, key: unit.key, parameters }))
}

/// Tries a file as umT5's tokenizer. Files of the same name that are something else are nothing to speak of, unless they were
/// named for it.
fn tokenizer(unit: &Unit) -> Seen {
    let passed = |why: String| Seen::Passed(PassedOver { path: unit.path.clone(), why, other_model: false });
    let bytes = bytes_of(&unit.files);
    if bytes > MAX_TOKENIZER {
        return Seen::Nothing;
    }
    match Tokenizer::open(&unit.path) {
        Ok(tokenizer) if tokenizer.is_numbered_as_umt5() => {
            let candidate = alone(unit, PartKind::Tokenizer, unit.files.clone(), bytes);
            let sizes = vec![("tokens", tokenizer.size())];
            Seen::Part(Box::new(Candidate { sizes, ..candidate }))
        }
        Ok(_) if unit.key.is_some() => {
            passed(format!("`{}` is the tokenizer of another model than umT5", unit.path.display()))
        }
        Err(e) if unit.key.is_some() => passed(e.to_string()),
        _ => Seen::Nothing,
    }
}

/// Returns a candidate without sizes.
fn alone(unit: &Unit, kind: PartKind, files: Vec<PathBuf>, bytes: u64) -> Candidate {
    let path = unit.path.clone();
    let (layout, precision) = (String::new(), String::new());
    let part = FoundPart { path, kind, files, layout, precision, bytes, noise: None };
    Candidate { part, sizes: Vec::new(), carries_tokenizer: false, key: unit.key, parameters: 0 }
}

fn bytes_of(files: &[PathBuf]) -> u64 {
    files.iter().filter_map(|file| fs::metadata(file).ok()).map(|meta| meta.len()).sum()
}

/// Returns what stands for a part in a model file: its folder only if nothing else in the folder could be meant.
fn stand_in(unit: &Unit, component: Component, files: &[PathBuf]) -> PathBuf {
    if !unit.path.is_dir() {
        return unit.path.clone();
    }
    let (mut own, mut of_folder) = (unit.files.clone(), weights::files(&unit.path, component));
    own.sort();
    of_folder.sort();
    let is_index = |file: &&PathBuf| !unit.files.contains(file) && !file.ends_with("config.json");
    match files.iter().find(is_index).or(own.first()) {
        Some(one) if own != of_folder => one.clone(),
        _ => unit.path.clone(),
    }
}

/// Returns the files of a part, with those beside them that are read with them.
fn with_companions(unit: &Unit, kind: PartKind) -> Vec<PathBuf> {
    let mut files = unit.files.clone();
    let folder = files.first().and_then(|file| file.parent()).unwrap_or(Path::new("")).to_owned();
    let is_transformer = matches!(kind, PartKind::Dit | PartKind::Expert);
    files.extend(is_transformer.then(|| folder.join("config.json")).filter(|file| file.is_file()));
    files.extend(weights::index_of(&folder, &unit.files));
    files
}
