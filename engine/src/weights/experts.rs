//! Finds the two transformers of Wan2.2 in the layouts that programs keep them in.
//!
//! No model file says which of the two it is, so the names of folders and files have to.

use std::path::{Path, PathBuf};

use animd_protocol::recipe::ExpertName;

use super::{Component, find, shards};
use crate::{Error, Result};

/// The folders that hold the high-noise and the low-noise transformer: those of the official layout and of diffusers.
const FOLDERS: [[&str; 2]; 2] = [["high_noise_model", "low_noise_model"], ["transformer", "transformer_2"]];

/// Returns the folder of a transformer in the released layout.
pub fn released_folder(expert: ExpertName) -> &'static str {
    FOLDERS[0][expert.index()]
}

/// Returns the folders at and below a path in which transformers are looked for; none for a file.
fn folders(path: &Path) -> Result<Vec<PathBuf>> {
    if !path.is_dir() {
        return Ok(Vec::new());
    }
    let path = find::snapshot(path)?;
    let below = find::below(Component::Dit);
    let below = below.iter().map(|name| path.join(name)).filter(|folder| folder.is_dir());
    Ok(std::iter::once(path.clone()).chain(below).collect())
}

/// Returns the places of the high-noise and of the low-noise transformer below a folder: two folders, or two files of which one
/// has `high` in its name and the other one `low`. `None` if the folder does not hold such a pair.
///
/// # Errors
/// [`Error::Model`] if it is not clear which two files belong together.
pub(super) fn pair(path: &Path) -> Result<Option<[PathBuf; 2]>> {
    for folder in folders(path)? {
        for names in FOLDERS {
            let places = names.map(|name| folder.join(name));
            if places.iter().all(|place| place.is_dir()) {
                return Ok(Some(places));
            }
        }
        if let Some(files) = files(&folder)? {
            return Ok(Some(files));
        }
    }
    Ok(None)
}

/// One of the two transformers of Wan2.2, in a folder that lacks the other one.
pub(super) struct Half {
    /// The one that is there.
    pub there: ExpertName,
    /// The places of the high-noise and of the low-noise transformer, of which one does not exist.
    pub places: [PathBuf; 2],
    /// Whether the names leave no doubt. A `transformer` and a file with `high` in its name may be of another model.
    pub is_certain: bool,
}

/// Returns the transformer that a folder holds without its partner, by the names that [`pair`] goes by, and the place at which
/// the partner is looked for.
///
/// # Errors
/// [`Error::File`] for a folder that cannot be read.
pub(super) fn half(path: &Path) -> Result<Option<Half>> {
    for folder in folders(path)? {
        for names in FOLDERS {
            let places = names.map(|name| folder.join(name));
            let there = ExpertName::ALL.into_iter().find(|expert| places[expert.index()].is_dir());
            if let Some(there) = there {
                let is_certain = names[there.index()] != "transformer";
                return Ok(Some(Half { there, places, is_certain }));
            }
        }
        let names = shards::list(&folder)?;
        let mut told = transformers(&names);
        if let (Some((name, there)), None) = (told.next(), told.next()) {
            let other = with_other_noise(name, there);
            let (high, low) = if there == ExpertName::HighNoise { (name, &other) } else { (&other, name) };
            let places = [folder.join(high), folder.join(low)];
            return Ok(Some(Half { there, places, is_certain: false }));
        }
    }
    Ok(None)
}

/// Returns the names of files that say which of the two transformers they are, and which they say.
fn transformers(names: &[String]) -> impl Iterator<Item = (&String, ExpertName)> {
    let models = names.iter().filter(|name| find::is_model(name) && !name.to_lowercase().contains("lora"));
    models.filter_map(|name| Some((name, told(name)?)))
}

/// Returns the name that the other one of the two transformers has, if it differs in that one word.
fn with_other_noise(name: &str, noise: ExpertName) -> String {
    let words = match noise {
        ExpertName::HighNoise => [("high", "low"), ("High", "Low"), ("HIGH", "LOW")],
        ExpertName::LowNoise => [("low", "high"), ("Low", "High"), ("LOW", "HIGH")],
    };
    let split = |c: char| !c.is_alphanumeric();
    let piece = |piece: &str| {
        let word = piece.trim_end_matches(split).to_lowercase();
        let says = is(&word, "high") || is(&word, "low");
        let other = words.iter().filter(|_| says).find(|(from, _)| piece.starts_with(from));
        other.map_or_else(|| piece.to_owned(), |(from, to)| piece.replacen(from, to, 1))
    };
    name.split_inclusive(split).map(piece).collect()
}

/// Returns the two files of a folder whose names tell them apart, if there are two.
fn files(folder: &Path) -> Result<Option<[PathBuf; 2]>> {
    let names = shards::list(folder)?;
    let (mut high, mut low): (Vec<_>, Vec<_>) =
        transformers(&names).partition(|(_, noise)| *noise == ExpertName::HighNoise);
    // A folder of many models has pairs of several kinds; the names of one pair differ in that one word.
    if high.len() > 1 || low.len() > 1 {
        high.retain(|(name, _)| low.iter().any(|(other, _)| same_but_for_noise(name, other)));
        low.retain(|(name, _)| high.iter().any(|(other, _)| same_but_for_noise(other, name)));
    }
    match (&high[..], &low[..]) {
        ([(high, _)], [(low, _)]) => Ok(Some([folder.join(high), folder.join(low)])),
        ([], _) | (_, []) => Ok(None),
        _ => {
            let list = |names: &[(&String, ExpertName)]| {
                names.iter().map(|(name, _)| format!("`{name}`")).collect::<Vec<_>>().join(", ")
            };
            Err(Error::Model(format!(
                "`{}` holds several pairs of transformers ({} and {}); keep one pair in a folder, or name the files of one in a \
                 model file",
                folder.display(),
                list(&high),
                list(&low)
            )))
        }
    }
}

/// Returns which of the two transformers a file is for by its name.
pub(crate) fn told(name: &str) -> Option<ExpertName> {
    match (words(name).any(|word| is(&word, "high")), words(name).any(|word| is(&word, "low"))) {
        (true, false) => Some(ExpertName::HighNoise),
        (false, true) => Some(ExpertName::LowNoise),
        _ => None,
    }
}

/// How many folders above a file may say which of the two transformers it is.
const ABOVE: usize = 2;

/// Returns which of the two a path says that it is: its last name, or else the nearest folder around it whose name does.
pub(crate) fn said_by(path: &Path) -> Option<ExpertName> {
    path.ancestors().take(1 + ABOVE).find_map(|path| {
        let name = path.file_name()?.to_str()?;
        let second = path.with_file_name("transformer_2");
        told(name).or_else(|| match name {
            "transformer_2" => Some(ExpertName::LowNoise),
            "transformer" if second.is_dir() => Some(ExpertName::HighNoise),
            _ => None,
        })
    })
}

/// Returns a text that is the same for the paths of the two transformers of one model, if their names follow one pattern.
pub(crate) fn pattern(path: &Path) -> String {
    let names = path.iter().map(|name| match name.to_string_lossy() {
        name if name == "transformer_2" => "transformer".to_owned(),
        name => words(&name).map(as_low).collect::<Vec<_>>().join(" "),
    });
    names.collect::<Vec<_>>().join("/")
}

/// Returns a name without the words that say which of the two transformers it is.
pub(crate) fn without_noise(name: &str) -> String {
    let pieces = name.split_inclusive(|c: char| !c.is_alphanumeric() && c != '.').collect::<Vec<_>>();
    let word = |piece: &str| piece.trim_end_matches(|c: char| !c.is_alphanumeric()).to_lowercase();
    let says = |piece: &str| is(&word(piece), "high") || is(&word(piece), "low");
    let mut kept = String::new();
    for (n, piece) in pieces.iter().enumerate() {
        let is_noise = word(piece) == "noise" && n > 0 && says(pieces[n - 1]);
        if !says(piece) && !is_noise {
            kept.push_str(piece);
        }
    }
    kept.trim_end_matches(|c: char| !c.is_alphanumeric()).to_owned()
}

/// Returns whether two names are the same when `high` in one is read as `low`.
fn same_but_for_noise(high: &str, low: &str) -> bool {
    words(high).map(as_low).eq(words(low))
}

fn as_low(word: String) -> String {
    if is(&word, "high") { word.replacen("high", "low", 1) } else { word }
}

fn is(word: &str, noise: &str) -> bool {
    word == noise || word.strip_prefix(noise) == Some("noise")
}

fn words(name: &str) -> impl Iterator<Item = String> {
    name.split(|c: char| !c.is_alphanumeric()).map(str::to_lowercase)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(names: &[&str]) -> Result<Option<[String; 2]>> {
        let folder = tempfile::tempdir().expect("a temporary folder");
        for name in names {
            let path = folder.path().join(name);
            std::fs::create_dir_all(path.parent().expect("a folder")).expect("it can be made");
            std::fs::write(path, b"").expect("it can be written");
        }
        let relative = |path: PathBuf| {
            path.strip_prefix(folder.path()).expect("below the folder").to_string_lossy().into_owned()
        };
        Ok(pair(folder.path())?.map(|both| both.map(relative)))
    }

    #[test]
    fn each_layout_has_its_pair() {
        for (names, pair) in [
            (
                ["high_noise_model/a.safetensors", "low_noise_model/a.safetensors"],
                ["high_noise_model", "low_noise_model"],
            ),
            (["transformer/a.safetensors", "transformer_2/a.safetensors"], ["transformer", "transformer_2"]),
            (
                [
                    "distill_models/high_noise_model/a.safetensors",
                    "distill_models/low_noise_model/a.safetensors",
                ],
                ["distill_models/high_noise_model", "distill_models/low_noise_model"],
            ),
            (
                [
                    "diffusion_models/wan2.2_i2v_high_noise_14B_fp8_scaled.safetensors",
                    "diffusion_models/wan2.2_i2v_low_noise_14B_fp8_scaled.safetensors",
                ],
                [
                    "diffusion_models/wan2.2_i2v_high_noise_14B_fp8_scaled.safetensors",
                    "diffusion_models/wan2.2_i2v_low_noise_14B_fp8_scaled.safetensors",
                ],
            ),
            (
                ["Wan2.2-I2V-A14B-HighNoise-Q4_K_M.gguf", "Wan2.2-I2V-A14B-LowNoise-Q4_K_M.gguf"],
                ["Wan2.2-I2V-A14B-HighNoise-Q4_K_M.gguf", "Wan2.2-I2V-A14B-LowNoise-Q4_K_M.gguf"],
            ),
        ] {
            assert_eq!(found(&names).expect("it is clear"), Some(pair.map(str::to_owned)));
        }
    }

    #[test]
    fn names_of_files_and_folders_say_which_it_is() {
        for (path, expert, pattern_of, name) in [
            (
                "/m/wan2.2_i2v_high_noise_14B_fp8.safetensors",
                Some(ExpertName::HighNoise),
                "/m/wan2.2_i2v_low_noise_14B_fp8.safetensors",
                "wan2.2_i2v_14B_fp8.safetensors",
            ),
            (
                "/m/HighNoise/Wan2.2-HighNoise-Q4.gguf",
                Some(ExpertName::HighNoise),
                "/m/LowNoise/Wan2.2-LowNoise-Q4.gguf",
                "Wan2.2-Q4.gguf",
            ),
            ("/m/low/x/model.gguf", Some(ExpertName::LowNoise), "/m/HIGH/x/model.gguf", "model.gguf"),
            ("/high/a/b/model.gguf", None, "/low/a/b/model.gguf", "model.gguf"),
            ("/m/transformer_2", Some(ExpertName::LowNoise), "/m/transformer", "transformer_2"),
            ("/m/flow-slow.gguf", None, "/m/flow-slow.gguf", "flow-slow.gguf"),
        ] {
            assert_eq!(said_by(Path::new(path)), expert, "{path}");
            assert_eq!(pattern(Path::new(path)), pattern(Path::new(pattern_of)), "{path}");
            let last = path.rsplit('/').next().unwrap_or_default();
            assert_eq!(without_noise(last), name);
        }
        assert_ne!(pattern(Path::new("/m/a_high.gguf")), pattern(Path::new("/m/b_low.gguf")));
    }

    #[test]
    fn one_transformer_is_no_pair() {
        for names in [
            &["a.safetensors"][..],
            &["wan_high_noise.gguf"],
            &["high_noise_model/a.safetensors"],
            &["flow.gguf", "slow.gguf"],
        ] {
            assert_eq!(found(names).expect("it is clear"), None, "{names:?}");
        }
    }

    #[test]
    fn the_place_of_a_missing_partner_is_known() {
        for (name, other, is_certain) in [
            ("high_noise_model/a.safetensors", "low_noise_model", true),
            ("low_noise_model/a.safetensors", "high_noise_model", true),
            ("distill_fp8/low_noise_model/a.safetensors", "distill_fp8/high_noise_model", true),
            ("transformer_2/a.safetensors", "transformer", true),
            ("transformer/a.safetensors", "transformer_2", false),
            ("wan_high_noise_14B.gguf", "wan_low_noise_14B.gguf", false),
            ("unet/Wan2.2-LowNoise-Q4.gguf", "unet/Wan2.2-HighNoise-Q4.gguf", false),
        ] {
            let folder = tempfile::tempdir().expect("a temporary folder");
            let path = folder.path().join(name);
            std::fs::create_dir_all(path.parent().expect("a folder")).expect("it can be made");
            std::fs::write(path, b"").expect("it can be written");
            let half = half(folder.path()).expect("it can be read").expect(name);
            let missing = &half.places[1 - half.there.index()];
            assert_eq!((&**missing, half.is_certain), (&*folder.path().join(other), is_certain), "{name}");
        }
        let folder = tempfile::tempdir().expect("a temporary folder");
        for name in ["a.safetensors", "high_lora.safetensors", "slow.gguf"] {
            std::fs::write(folder.path().join(name), b"").expect("it can be written");
        }
        assert!(half(folder.path()).expect("it can be read").is_none());
    }

    #[test]
    fn a_pair_is_found_among_single_files_and_several_pairs_are_refused() {
        let names = [
            "x_high_noise_v2.gguf",
            "y_low_noise.gguf",
            "y_high_noise.gguf",
            "y_high_noise_lora.safetensors",
        ];
        let pair = ["y_high_noise.gguf", "y_low_noise.gguf"].map(str::to_owned);
        assert_eq!(found(&names).expect("it is clear"), Some(pair));
        let error =
            found(&["x_high.gguf", "x_low.gguf", "y_high.gguf", "y_low.gguf"]).expect_err("two pairs");
        assert!(error.to_string().contains("several pairs"), "{error}");
    }
}
