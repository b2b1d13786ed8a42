//! Settings as a person gives them: in a sidecar, in the configuration, over the bus or on a command line.
//!
//! All four read a value with [`set`], so that the same mistake is refused with the same sentence everywhere. The
//! sentence names the setting, the value, and what would do.

use std::borrow::Cow;
use std::fmt;

use serde::de::{
    self, Deserialize, DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor,
};

use crate::InvalidSetting;
use crate::lora::{self, LoraChoice};
use crate::model_file::check_name;
use crate::nearest::nearest;
use crate::ranges::{self, Real, Whole};
use crate::request::{Noise, Resize, Sampler, Settings, Size, StepCache, Tiling};

/// The names of all settings.
pub const NAMES: [&str; 28] = [
    "model",
    "lora",
    "prompt",
    "negative_prompt",
    "seed",
    "size",
    "resize",
    "frames",
    "fps",
    "seconds",
    "last",
    "loop",
    "quality",
    "sampler",
    "sampler_low",
    "steps",
    "steps_high",
    "steps_base",
    "shift",
    "shift_low",
    "guidance",
    "guidance_low",
    "guidance_base",
    "step_cache",
    "step_cache_threshold",
    "noise",
    "noise_multiprocessors",
    "tiling",
];

/// The most texts of a list that are kept; no setting takes as many.
const MAX_ITEMS: usize = 256;
/// The most characters of a wrong value that a sentence repeats.
const SHOWN: usize = 60;

const RESIZE: [(&str, Resize); 2] = [("official", Resize::Official), ("adaptive", Resize::Adaptive)];
const SAMPLER: [(&str, Sampler); 3] =
    [("unipc", Sampler::Unipc), ("distill", Sampler::Distill), ("distill-renoise", Sampler::DistillRenoise)];
const STEP_CACHE: [(&str, StepCache); 4] = [
    ("none", StepCache::None),
    ("teacache", StepCache::Teacache),
    ("teacache-ret", StepCache::TeacacheRet),
    ("magcache", StepCache::Magcache),
];
const NOISE: [(&str, Noise); 2] = [("cuda", Noise::Cuda), ("cpu", Noise::Cpu)];
const TILING: [(&str, Tiling); 2] = [("whole", Tiling::Whole), ("tiled", Tiling::Tiled)];

/// A value before it is known whether it would do.
#[derive(Clone, Debug, PartialEq)]
pub enum Given<'a> {
    /// Text.
    Text(Cow<'a, str>),
    /// A whole number.
    Whole(i128),
    /// Another number, perhaps not a finite one.
    Real(f64),
    /// `true` or `false`.
    Truth(bool),
    /// Several texts.
    Texts(Vec<String>),
    /// Something that no setting takes, in words, such as "a list".
    Other(&'static str),
}

impl<'a> Given<'a> {
    /// Returns a word of a command line as the number that it is, if it is one.
    pub fn word(word: &'a str) -> Self {
        let real = || word.parse().map(Self::Real);
        word.parse().map(Self::Whole).or_else(|_| real()).unwrap_or(Self::Text(word.into()))
    }

    /// Returns the whole number that this is, also where it was written with a fraction of 0.
    fn whole(&self) -> Option<i128> {
        match self {
            Self::Whole(number) => Some(*number),
            #[expect(clippy::cast_possible_truncation, reason = "checked to be whole and small enough")]
            Self::Real(number) if number.fract() == 0.0 && number.abs() < 1e18 => Some(*number as i128),
            _ => None,
        }
    }
}

impl fmt::Display for Given<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Text(text) => {
                let shown: String =
                    text.chars().take(SHOWN).map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect();
                let cut = if text.chars().nth(SHOWN).is_some() { "..." } else { "" };
                write!(f, "`{shown}{cut}`")
            }
            Self::Whole(number) => number.fmt(f),
            Self::Real(number) => number.fmt(f),
            Self::Truth(truth) => truth.fmt(f),
            Self::Texts(_) => f.write_str("a list"),
            Self::Other(what) => f.write_str(what),
        }
    }
}

/// Sets one setting to the value that was given.
///
/// # Errors
/// Returns an [`InvalidSetting`] for an unknown name, and for a value of the wrong type or out of its range.
pub fn set(settings: &mut Settings, name: &str, given: &Given<'_>) -> Result<(), InvalidSetting> {
    match name {
        "model" => settings.model = Some(model(given)?),
        "lora" => settings.lora = Some(loras(given)?),
        "prompt" => settings.prompt = Some(prompt("prompt", given)?),
        "negative_prompt" => settings.negative_prompt = Some(prompt("negative_prompt", given)?),
        "seed" => settings.seed = Some(whole(&ranges::SEED, given)?),
        "size" => settings.size = Some(size(given)?),
        "resize" => settings.resize = Some(word("resize", &RESIZE, given)?),
        "frames" => {
            let number = given.whole().ok_or_else(|| ranges::refuse_frames(given))?;
            settings.frames = Some(ranges::frames(number)?);
        }
        "fps" => settings.fps = Some(small(&ranges::FPS, given)?),
        "seconds" => settings.seconds = Some(real(&ranges::SECONDS, given)?),
        "last" => settings.last = Some(last(given)?),
        "loop" => settings.looped = Some(truth("loop", given)?),
        "quality" => settings.quality = Some(small(&ranges::QUALITY, given)?),
        "sampler" => settings.sampler = Some(word("sampler", &SAMPLER, given)?),
        "sampler_low" => settings.sampler_low = Some(word("sampler_low", &SAMPLER, given)?),
        "steps" => settings.steps = Some(small(&ranges::STEPS, given)?),
        "steps_high" => settings.steps_high = Some(small(&ranges::STEPS_HIGH, given)?),
        "steps_base" => settings.steps_base = Some(small(&ranges::STEPS_BASE, given)?),
        "shift" => settings.shift = Some(real(&ranges::SHIFT, given)?),
        "shift_low" => settings.shift_low = Some(real(&ranges::SHIFT_LOW, given)?),
        "guidance" => settings.guidance = Some(real(&ranges::GUIDANCE, given)?),
        "guidance_low" => settings.guidance_low = Some(real(&ranges::GUIDANCE_LOW, given)?),
        "guidance_base" => settings.guidance_base = Some(real(&ranges::GUIDANCE_BASE, given)?),
        "step_cache" => settings.step_cache = Some(word("step_cache", &STEP_CACHE, given)?),
        "step_cache_threshold" => {
            settings.step_cache_threshold = Some(real(&ranges::STEP_CACHE_THRESHOLD, given)?);
        }
        "noise" => settings.noise = Some(word("noise", &NOISE, given)?),
        "noise_multiprocessors" => {
            settings.noise_multiprocessors = Some(small(&ranges::NOISE_MULTIPROCESSORS, given)?);
        }
        "tiling" => settings.tiling = Some(word("tiling", &TILING, given)?),
        _ => {
            let hint = match nearest(name, NAMES) {
                Some(near) => format!("; did you mean `{near}`?"),
                None => format!("; known are {}", NAMES.join(", ")),
            };
            return Err(InvalidSetting(format!("unknown key {}{hint}", Given::Text(name.into()))));
        }
    }
    Ok(())
}

fn model(given: &Given<'_>) -> Result<String, InvalidSetting> {
    let name = match given {
        Given::Text(name) => name.to_string(),
        // A command line, and a person in a hurry, write a name of digits as a number.
        Given::Whole(number) => number.to_string(),
        _ => return Err(InvalidSetting(format!("`model` must be a model's name in quotes, not {given}"))),
    };
    check_name(&name).map_err(|why| InvalidSetting(format!("`model`: {why}")))?;
    Ok(name)
}

fn loras(given: &Given<'_>) -> Result<Vec<LoraChoice>, InvalidSetting> {
    let choices = match given {
        Given::Text(text) => lora::parse(text)?,
        Given::Texts(texts) => texts.iter().map(|text| text.parse()).collect::<Result<_, _>>()?,
        // A name of digits is written as a number by a command line, and by a person in a hurry.
        Given::Whole(number) => lora::parse(&number.to_string())?,
        _ => {
            return Err(InvalidSetting(format!(
                "`lora` must be a name in quotes, perhaps with `:` and its strength, or a list of such names, not {given}"
            )));
        }
    };
    lora::check(&choices)?;
    Ok(choices)
}

fn prompt(name: &str, given: &Given<'_>) -> Result<String, InvalidSetting> {
    let Given::Text(text) = given else {
        return Err(InvalidSetting(format!("`{name}` must be text in quotes, not {given}")));
    };
    ranges::prompt(name, text)?;
    Ok(text.clone().into_owned())
}

fn last(given: &Given<'_>) -> Result<String, InvalidSetting> {
    let Given::Text(name) = given else {
        return Err(InvalidSetting(format!("`last` must be the name of a picture in quotes, not {given}")));
    };
    ranges::last(name)?;
    Ok(name.clone().into_owned())
}

fn truth(name: &str, given: &Given<'_>) -> Result<bool, InvalidSetting> {
    match given {
        Given::Truth(truth) => Ok(*truth),
        Given::Text(text) if text == "true" => Ok(true),
        Given::Text(text) if text == "false" => Ok(false),
        _ => Err(InvalidSetting(format!("`{name}` must be true or false, not {given}"))),
    }
}

fn whole(range: &Whole, given: &Given<'_>) -> Result<u64, InvalidSetting> {
    range.check(given.whole().ok_or_else(|| range.refuse(given))?)
}

fn small(range: &Whole, given: &Given<'_>) -> Result<u32, InvalidSetting> {
    u32::try_from(whole(range, given)?).map_err(|_| range.refuse(given))
}

fn real(range: &Real, given: &Given<'_>) -> Result<f64, InvalidSetting> {
    match given {
        #[expect(clippy::cast_precision_loss, reason = "what the range takes is small")]
        Given::Whole(number) => range.check(*number as f64),
        Given::Real(number) => range.check(*number),
        _ => Err(range.refuse(given)),
    }
}

fn size(given: &Given<'_>) -> Result<Size, InvalidSetting> {
    match given {
        Given::Text(text) if text.len() <= SHOWN && !text.contains(char::is_control) => text.parse(),
        _ => {
            let why = format!("`size` must be `480p`, `720p` or `WIDTHxHEIGHT`, not {given}");
            Err(InvalidSetting(why))
        }
    }
}

fn word<T: Copy>(name: &str, known: &[(&str, T)], given: &Given<'_>) -> Result<T, InvalidSetting> {
    let text = if let Given::Text(text) = given { text.as_ref() } else { "" };
    if let Some((_, value)) = known.iter().find(|(word, _)| *word == text) {
        return Ok(*value);
    }
    let words: Vec<String> = known.iter().map(|(word, _)| format!("`{word}`")).collect();
    let (last, first) = words.split_last().map_or(("", &[][..]), |(last, first)| (last.as_str(), first));
    let near = nearest(text, known.iter().map(|(word, _)| *word)).filter(|_| !text.is_empty());
    let hint = near.map(|near| format!("; did you mean `{near}`?")).unwrap_or_default();
    Err(InvalidSetting(format!("`{name}` must be {} or {last}, not {given}{hint}", first.join(", "))))
}

impl<'de> Deserialize<'de> for Given<'static> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(AnyValue)
    }
}

/// Takes a value of any type.
struct AnyValue;

impl<'de> Visitor<'de> for AnyValue {
    type Value = Given<'static>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a setting's value")
    }

    fn visit_bool<E>(self, truth: bool) -> Result<Self::Value, E> {
        Ok(Given::Truth(truth))
    }

    fn visit_i64<E>(self, number: i64) -> Result<Self::Value, E> {
        Ok(Given::Whole(number.into()))
    }

    fn visit_i128<E>(self, number: i128) -> Result<Self::Value, E> {
        Ok(Given::Whole(number))
    }

    fn visit_u64<E>(self, number: u64) -> Result<Self::Value, E> {
        Ok(Given::Whole(number.into()))
    }

    fn visit_u128<E>(self, number: u128) -> Result<Self::Value, E> {
        Ok(Given::Whole(i128::try_from(number).unwrap_or(i128::MAX)))
    }

    fn visit_f64<E>(self, number: f64) -> Result<Self::Value, E> {
        Ok(Given::Real(number))
    }

    fn visit_str<E>(self, text: &str) -> Result<Self::Value, E> {
        Ok(Given::Text(text.to_owned().into()))
    }

    fn visit_string<E>(self, text: String) -> Result<Self::Value, E> {
        Ok(Given::Text(text.into()))
    }

    fn visit_unit<E>(self) -> Result<Self::Value, E> {
        Ok(Given::Other("nothing"))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Self::Value, A::Error> {
        let (mut texts, mut others) = (Vec::new(), false);
        while let Some(item) = items.next_element::<Given<'static>>()? {
            match item {
                Given::Text(text) if texts.len() < MAX_ITEMS => texts.push(text.into_owned()),
                _ => others = true,
            }
        }
        Ok(if others { Given::Other("a list") } else { Given::Texts(texts) })
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Self::Value, A::Error> {
        while entries.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
        Ok(Given::Other("a section or a date"))
    }
}

/// Sets the setting of this name to the value that comes next, so that a wrong one is refused where it stands.
struct Next<'a>(&'a mut Settings, &'a str);

impl<'de> DeserializeSeed<'de> for Next<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        set(self.0, self.1, &Given::deserialize(deserializer)?).map_err(de::Error::custom)
    }
}

/// Takes the name of a setting, and refuses any other key where it stands.
struct Name;

impl<'de> DeserializeSeed<'de> for Name {
    type Value = &'static str;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<&'static str, D::Error> {
        deserializer.deserialize_identifier(self)
    }
}

impl Visitor<'_> for Name {
    type Value = &'static str;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the name of a setting")
    }

    fn visit_str<E: de::Error>(self, key: &str) -> Result<&'static str, E> {
        NAMES.into_iter().find(|name| *name == key).ok_or_else(|| E::unknown_field(key, &NAMES))
    }
}

impl<'de> Deserialize<'de> for Settings {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Map;

        impl<'de> Visitor<'de> for Map {
            type Value = Settings;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("struct Settings")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Settings, A::Error> {
                let mut settings = Settings::default();
                while let Some(name) = entries.next_key_seed(Name)? {
                    entries.next_value_seed(Next(&mut settings, name))?;
                }
                Ok(settings)
            }
        }

        deserializer.deserialize_map(Map)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(name: &str, word: &str) -> String {
        set(&mut Settings::default(), name, &Given::word(word)).expect_err(word).to_string()
    }

    #[test]
    fn every_wrong_value_is_told_with_what_would_do() {
        for (name, word, sentence) in [
            (
                "seed",
                "-1",
                "`seed` must be a whole number from 0 to 9223372036854775807, not -1; leave it out to have one drawn",
            ),
            ("steps", "2.5", "`steps` must be a whole number from 1 to 1000, not 2.5"),
            ("steps", "4294967297", "`steps` must be a whole number from 1 to 1000, not 4294967297"),
            ("fps", "fast", "`fps` must be a whole number from 1 to 240, not `fast`"),
            ("quality", "0", "`quality` must be a whole number from 1 to 51, not 0; 1 is the best"),
            ("shift", "nan", "`shift` must be a number from 0.01 to 100, not NaN"),
            ("guidance", "-0.5", "`guidance` must be a number from 0 to 100, not -0.5"),
            ("guidance", "strong", "`guidance` must be a number from 0 to 100, not `strong`"),
            ("frames", "80", "`frames` must be 4n+1, up to 4093; the nearest to 80 is 81"),
            ("frames", "-7", "`frames` must be 4n+1, up to 4093; the nearest to -7 is 1"),
            ("frames", "99999", "`frames` must be 4n+1, up to 4093; the nearest to 99999 is 4093"),
            ("frames", "81.5", "`frames` must be a whole number, 4n+1, up to 4093, not 81.5"),
            (
                "sampler",
                "unipcc",
                "`sampler` must be `unipc`, `distill` or `distill-renoise`, not `unipcc`; did you mean `unipc`?",
            ),
            ("noise", "1", "`noise` must be `cuda` or `cpu`, not 1"),
            ("prompt", "5", "`prompt` must be text in quotes, not 5"),
            ("sed", "5", "unknown key `sed`; did you mean `seed`?"),
        ] {
            assert_eq!(refused(name, word), sentence);
        }
        assert!(refused("size", "480").contains("`480p`"), "{}", refused("size", "480"));
    }

    #[test]
    fn a_number_that_is_whole_may_have_a_fraction_of_zero() -> Result<(), InvalidSetting> {
        let mut settings = Settings::default();
        set(&mut settings, "steps", &Given::Real(4.0))?;
        set(&mut settings, "guidance", &Given::Whole(3))?;
        assert_eq!((settings.steps, settings.guidance), (Some(4), Some(3.0)));
        Ok(())
    }

    #[test]
    fn every_setting_can_be_read_and_is_written_again() -> Result<(), Box<dyn std::error::Error>> {
        // These are written only where a job has them.
        let own = Settings {
            model: Some("wan".into()),
            lora: Some(lora::parse("detail:0.8, pair:1:0")?),
            steps_high: Some(3),
            steps_base: Some(2),
            sampler_low: Some(Sampler::Unipc),
            shift_low: Some(2.5),
            guidance_low: Some(2.0),
            guidance_base: Some(3.0),
            ..Settings::default()
        };
        let all = own.resolve(|| 7)?;
        let json = serde_json::to_value(&all)?;
        let names: Vec<&String> = json.as_object().into_iter().flat_map(|map| map.keys()).collect();
        assert_eq!(names.len(), NAMES.len());
        assert!(NAMES.iter().all(|name| json.get(name).is_some()));
        let read: Settings = serde_json::from_value(json)?;
        assert_eq!(read.resolve(|| 8)?, all);
        let wrong = serde_json::from_str::<Settings>(r#"{"seed": [1]}"#).expect_err("a list").to_string();
        assert!(
            wrong.starts_with("`seed` must be a whole number") && wrong.contains("not a list"),
            "{wrong}"
        );
        Ok(())
    }
}
