//! Which `LoRAs` a job wants, and how strongly: `NAME`, `NAME:STRENGTH` or, in a model of two transformers,
//! `NAME:HIGH:LOW` or `NAME:BASE:HIGH:LOW`, each perhaps with `#` and the SHA-256 of its file.
//!
//! A name stands for a file in a folder that the administrator has allowed ([`crate::lora_files`]); it is never a path.

use std::fmt;
use std::ops::RangeInclusive;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use crate::InvalidSetting;

/// The most `LoRAs` of one job.
pub const MAX_LORAS: usize = 16;
/// The longest name of a `LoRA`, in bytes: the longest name of a file.
const MAX_NAME: usize = 255;
/// The strengths that are taken; the usual ones lie between 0 and 1.
pub const STRENGTHS: RangeInclusive<f64> = -16.0..=16.0;
/// Characters that a name cannot have: they separate it from what follows, or make it a path.
const SEPARATORS: [char; 6] = [':', ',', '#', '/', '\\', '\0'];

/// A `LoRA` that a job wants.
#[derive(Clone, Debug, PartialEq)]
pub struct LoraChoice {
    /// The name of its file, with or without the ending.
    pub name: String,
    /// How strongly it is added; 1 is as it was trained. In a model of two transformers, how strongly it is added to the one
    /// of the noisy steps, if `strength_low` is given, and otherwise to the one that it is for.
    pub strength: f64,
    /// How strongly it is added to the transformer of the last steps, in a model of two.
    pub strength_low: Option<f64>,
    /// How strongly it is added in the steps of `steps_base`, which otherwise leave it out. Where this is given, so is
    /// `strength_low`.
    pub strength_base: Option<f64>,
    /// The hash of its file in hexadecimal, once it is known. With another file the job is refused.
    pub sha256: Option<String>,
}

/// A `LoRA` that a model's own file names, as a job's record and a video's metadata have it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ModelLora {
    /// The name of its file, without the ending.
    pub name: String,
    /// How strongly it is added; in a model of two transformers to the one of the noisy steps.
    pub strength: f64,
    /// How strongly it is added to the transformer of the last steps, in a model of two.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub strength_low: Option<f64>,
    /// The hash of its file, in hexadecimal.
    pub sha256: String,
}

impl LoraChoice {
    /// Returns why a word cannot be the name of a `LoRA`.
    ///
    /// # Errors
    /// A sentence with the name.
    pub fn check_name(name: &str) -> Result<(), InvalidSetting> {
        let right = !name.is_empty()
            && name.len() <= MAX_NAME
            && name.trim() == name
            && !name.starts_with('.')
            && !name.contains(SEPARATORS)
            && !name.contains(char::is_control);
        if right {
            return Ok(());
        }
        let shown: String = name.chars().take(60).collect();
        Err(InvalidSetting(format!(
            "`lora` has names of files in the folders of LoRAs, without a path and without `:`, `,` and `#`; `{}` is none",
            shown.escape_debug()
        )))
    }

    /// Returns the strengths in the order in which they are written: one, `HIGH` and `LOW`, or `BASE` before these.
    pub fn strengths(&self) -> impl Iterator<Item = f64> {
        self.strength_base.into_iter().chain([self.strength]).chain(self.strength_low)
    }

    /// Checks the name and the strengths.
    ///
    /// # Errors
    /// A sentence with the value.
    pub fn check(&self) -> Result<(), InvalidSetting> {
        Self::check_name(&self.name)?;
        for strength in self.strengths() {
            if !STRENGTHS.contains(&strength) {
                return Err(strength_refused(&self.name, &strength));
            }
        }
        match &self.sha256 {
            Some(hash) if !is_hash(hash) => Err(InvalidSetting(format!(
                "`lora`: what follows `#` in `{}` must be the SHA-256 of its file, 64 hexadecimal digits",
                self.name
            ))),
            _ => Ok(()),
        }
    }
}

/// Checks all `LoRAs` of a job.
///
/// # Errors
/// A sentence with the first wrong one, with one that is named twice, or with their number.
pub fn check(choices: &[LoraChoice]) -> Result<(), InvalidSetting> {
    if choices.len() > MAX_LORAS {
        return Err(InvalidSetting(format!("`lora` has {} names, and at most {MAX_LORAS}", choices.len())));
    }
    for (i, choice) in choices.iter().enumerate() {
        choice.check()?;
        if choices[..i].iter().any(|other| other.name == choice.name) {
            let why = format!("`lora` names `{}` twice; name it once, with one strength", choice.name);
            return Err(InvalidSetting(why));
        }
    }
    Ok(())
}

/// Reads the `LoRAs` of a text, with commas between them; an empty text has none.
///
/// # Errors
/// A sentence with the first wrong one.
pub fn parse(text: &str) -> Result<Vec<LoraChoice>, InvalidSetting> {
    let parts = text.split(',').map(str::trim).filter(|part| !part.is_empty());
    parts.map(str::parse).collect()
}

fn is_hash(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
}

fn strength_refused(name: &str, given: &dyn fmt::Display) -> InvalidSetting {
    let (least, most) = (STRENGTHS.start(), STRENGTHS.end());
    InvalidSetting(format!(
        "`lora`: the strength of `{name}` must be a number from {least} to {most}, not {given}"
    ))
}

impl FromStr for LoraChoice {
    type Err = InvalidSetting;

    fn from_str(text: &str) -> Result<Self, InvalidSetting> {
        let (text, sha256) = match text.split_once('#') {
            Some((text, hash)) => (text, Some(hash.trim().to_lowercase())),
            None => (text, None),
        };
        let mut parts = text.split(':').map(str::trim);
        let name = parts.next().unwrap_or_default();
        Self::check_name(name)?;
        let mut strength = || {
            let read = |word: &str| match word.parse::<f64>() {
                Ok(number) => Ok(number),
                Err(_) => Err(strength_refused(name, &format_args!("`{}`", word.escape_debug()))),
            };
            parts.next().map(read).transpose()
        };
        let given = [strength()?, strength()?, strength()?];
        if parts.next().is_some() {
            return Err(InvalidSetting(format!(
                "`lora`: `{name}` has more than three strengths; write `NAME`, `NAME:STRENGTH`, `NAME:HIGH:LOW` or \
                 `NAME:BASE:HIGH:LOW`"
            )));
        }
        let (strength_base, strength, strength_low) = match given {
            [base, Some(high), Some(low)] => (base, high, Some(low)),
            [first, low, _] => (None, first.unwrap_or(1.0), low),
        };
        let choice = Self { name: name.to_owned(), strength, strength_low, strength_base, sha256 };
        choice.check()?;
        Ok(choice)
    }
}

impl fmt::Display for LoraChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)?;
        self.strengths().try_for_each(|strength| write!(f, ":{strength}"))?;
        self.sha256.as_ref().map_or(Ok(()), |hash| write!(f, "#{hash}"))
    }
}

impl Serialize for LoraChoice {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for LoraChoice {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn choice(name: &str, strength: f64, strength_low: Option<f64>) -> LoraChoice {
        LoraChoice { name: name.into(), strength, strength_low, strength_base: None, sha256: None }
    }

    #[test]
    fn what_is_written_is_read() -> Result<(), InvalidSetting> {
        for (text, wanted, canonical) in [
            ("detail", choice("detail", 1.0, None), "detail:1"),
            ("a b.safetensors : 0.75", choice("a b.safetensors", 0.75, None), "a b.safetensors:0.75"),
            ("pair:1:0", choice("pair", 1.0, Some(0.0)), "pair:1:0"),
            ("minus:-0.5", choice("minus", -0.5, None), "minus:-0.5"),
            (
                "three:0:0.5:1",
                LoraChoice { strength_base: Some(0.0), ..choice("three", 0.5, Some(1.0)) },
                "three:0:0.5:1",
            ),
        ] {
            assert_eq!(text.parse::<LoraChoice>()?, wanted);
            assert_eq!(wanted.to_string(), canonical);
            assert_eq!(canonical.parse::<LoraChoice>()?, wanted);
        }
        let hash = "0f".repeat(32);
        let pinned: LoraChoice = format!("detail:0.5#{}", hash.to_uppercase()).parse()?;
        assert_eq!(pinned.sha256.as_deref(), Some(&*hash));
        assert_eq!(pinned.to_string().parse::<LoraChoice>()?, pinned);
        assert_eq!(parse(" a:0.5, b ,")?, [choice("a", 0.5, None), choice("b", 1.0, None)]);
        assert_eq!(parse("")?, []);
        Ok(())
    }

    #[test]
    fn what_is_wrong_is_said_with_its_value() {
        for (text, said) in [
            ("/etc/passwd", "without a path"),
            ("../x", "without a path"),
            (".hidden", "`.hidden` is none"),
            (":1", "`` is none"),
            ("a:strong", "the strength of `a` must be a number from -16 to 16, not `strong`"),
            ("a:nan", "from -16 to 16, not NaN"),
            ("a:inf", "from -16 to 16, not inf"),
            ("a:17", "from -16 to 16, not 17"),
            ("a:1:17", "from -16 to 16, not 17"),
            ("a:17:1:1", "from -16 to 16, not 17"),
            ("a:1:1:1:1", "more than three strengths"),
            ("a#12", "64 hexadecimal digits"),
            ("a\u{7}", "is none"),
        ] {
            let error = text.parse::<LoraChoice>().expect_err(text).to_string();
            assert!(error.contains(said), "no {said:?} in {error}");
        }
        let twice = check(&[choice("a", 1.0, None), choice("a", 0.5, None)]).expect_err("twice").to_string();
        assert!(twice.contains("`a` twice"), "{twice}");
        let many: Vec<_> = (0..=MAX_LORAS).map(|i| choice(&i.to_string(), 1.0, None)).collect();
        assert!(check(&many).is_err() && check(&many[1..]).is_ok());
    }
}
