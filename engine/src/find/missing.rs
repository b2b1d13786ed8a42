//! Where a part that a model lacks can be fetched from.

use std::path::Path;

use animd_protocol::findings::Fetch;
use animd_protocol::recipe::Recipe;
use animd_protocol::sources::{self, Family, ModelPart};

use super::candidates::Candidate;

/// Returns how a part of this key can be fetched into a folder, for a model with this transformer. A model of other sizes than
/// the released ones has no published parts.
pub(super) fn source(key: &str, transformer: &Candidate, is_pair: bool, folder: &Path) -> Option<Fetch> {
    let recipe = if is_pair { Recipe::wan22_i2v_a14b() } else { Recipe::wan21_i2v_14b() };
    let released = &recipe.experts.first()?.network.config;
    let sizes = [("dim", released.dim), ("text_dim", released.text_dim), ("out_dim", released.out_dim)];
    if sizes.iter().any(|(name, size)| transformer.size(name) != *size) {
        return None;
    }
    let name = transformer.part.path.to_string_lossy().to_lowercase();
    let family = match is_pair {
        true => Family::Wan22I2vA14b,
        false if name.contains("720p") => Family::Wan21I2v720p,
        false => Family::Wan21I2v480p,
    };
    let part = family.parts().iter().find(|part| part.key() == key)?;
    fetch(family, *part, folder)
}

/// Returns how the recommended transformer can be fetched, for a search that found none.
pub(super) fn transformer(folder: &Path) -> Option<Fetch> {
    fetch(Family::Wan21I2v480p, ModelPart::Dit, folder)
}

fn fetch(family: Family, part: ModelPart, folder: &Path) -> Option<Fetch> {
    let source = sources::source(family, part)?;
    let (command, licence) = (source.command(folder), source.licence_title());
    Some(Fetch { command, bytes: source.bytes, licence })
}
