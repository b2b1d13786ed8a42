//! What a `LoRA`'s products are multiplied with, where its tensors do not say it: PEFT keeps that in a configuration,
//! in the file's header or in a file beside it.

use std::collections::BTreeMap;
use std::path::Path;

use regex::Regex;
use serde::Deserialize;
use serde_json::{Map, Value};

use super::super::stored::text_file;
use crate::{Error, Result};

/// The longest configuration that is read.
const MAX_CONFIG: u64 = 1 << 20;
/// The configuration beside a file that PEFT wrote.
const BESIDE: &str = "adapter_config.json";
/// What diffusers puts before the keys of the configuration in a header.
const PREFIX: &str = "transformer.";
/// PEFT's name for `LoKr`.
const LOKR: &str = "LOKR";

#[derive(Deserialize)]
struct Config {
    r: Option<f64>,
    lora_alpha: Option<f64>,
    use_rslora: Option<bool>,
    /// What `LoHa` and `LoKr` call `lora_alpha`.
    alpha: Option<f64>,
    use_dora: Option<bool>,
    /// `LoHa` in another parametrisation, with two scales.
    use_khatri_rao: Option<Value>,
    init_weights: Option<Value>,
    peft_type: Option<String>,
    alpha_pattern: Option<BTreeMap<String, f64>>,
}

/// The rule by which products are scaled.
#[derive(Default)]
pub(super) struct Scaling {
    config: Option<Config>,
    patterns: Vec<(Regex, f64)>,
}

impl Scaling {
    /// Reads the configuration in a file's header, or the one beside the file; a file that has none is scaled by 1.
    ///
    /// # Errors
    /// [`Error::Model`] if the configuration is broken or for another kind of adapter.
    pub fn read(path: &Path, header: Option<&str>) -> Result<Self> {
        let beside = path.with_file_name(BESIDE);
        let (value, shown) = match header {
            Some(text) => {
                let all: Map<String, Value> = serde_json::from_str(text).map_err(|e| broken(path, &e))?;
                let own = all
                    .into_iter()
                    .filter_map(|(key, value)| Some((key.strip_prefix(PREFIX)?.to_owned(), value)));
                (Value::Object(own.collect()), path)
            }
            None => match text_file(&beside, MAX_CONFIG) {
                Ok(text) => (serde_json::from_str(&text).map_err(|e| broken(&beside, &e))?, &*beside),
                Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Self::default()),
                Err(e) => return Err(Error::file("read", &beside)(e)),
            },
        };
        let config: Config = serde_json::from_value(value).map_err(|e| broken(shown, &e))?;
        match config.peft_type.as_deref() {
            None | Some("LORA" | LOKR) => {}
            Some("LOHA") => {
                let is_abba = config.init_weights.as_ref().is_some_and(|kind| kind == "abba")
                    || config.use_khatri_rao == Some(Value::Bool(true));
                if is_abba {
                    return Err(Error::Model(format!(
                        "`{}` is ABBA, a LoHa of two scales, which animd does not read; it reads LoRA, LoHa, LoKr and DoRA",
                        path.display()
                    )));
                }
            }
            // Another program's file of the same name says nothing about a LoRA.
            Some(_) => return Ok(Self::default()),
        }
        let pattern = |(pattern, alpha): (&String, &f64)| {
            Ok((Regex::new(&format!(r"^(.*\.)?({pattern})$")).map_err(|e| broken(shown, &e))?, *alpha))
        };
        let patterns = config.alpha_pattern.iter().flatten().map(pattern).collect::<Result<_>>()?;
        Ok(Self { config: Some(config), patterns })
    }

    /// Returns whether the file's products have lengths beside them.
    pub fn is_dora(&self) -> bool {
        self.config.as_ref().is_some_and(|config| config.use_dora == Some(true))
    }

    /// Returns the scale of a layer's product: its alpha, or the configuration's, over the rank.
    pub fn of(&self, layer: &str, alpha: Option<f64>, rank: usize) -> f32 {
        let rank = rank as f64;
        let scale = match (alpha, &self.config) {
            (Some(alpha), _) => alpha / rank,
            (None, None) => 1.0,
            (None, Some(config)) => match self.alpha(config, layer).or(config.r) {
                Some(alpha) if config.use_rslora == Some(true) => alpha / rank.sqrt(),
                Some(alpha) => alpha / rank,
                None => 1.0,
            },
        };
        scale as f32
    }

    /// Returns the scale of a layer's Kronecker product, one of whose matrices may be a product of this rank. `LyCORIS` keeps an
    /// alpha beside the tensors, and scales nothing that has no rank; PEFT scales all by its configuration.
    pub fn of_kronecker(&self, layer: &str, alpha: Option<f64>, rank: Option<usize>) -> f32 {
        let configured = self.config.as_ref().filter(|config| config.peft_type.as_deref() == Some(LOKR));
        let scale = match (alpha, rank, configured) {
            (Some(alpha), Some(rank), _) => alpha / rank as f64,
            (None, _, Some(config)) => {
                self.alpha(config, layer).zip(config.r).map_or(1.0, |(alpha, rank)| alpha / rank)
            }
            _ => 1.0,
        };
        scale as f32
    }

    /// Returns the alpha that a configuration has for a layer.
    fn alpha(&self, config: &Config, layer: &str) -> Option<f64> {
        let own = self.patterns.iter().find(|(pattern, _)| pattern.is_match(layer)).map(|(_, alpha)| *alpha);
        own.or(config.lora_alpha).or(config.alpha)
    }
}

fn broken(path: &Path, e: &dyn std::fmt::Display) -> Error {
    Error::Model(format!(
        "the configuration of a LoRA in `{}` cannot be read: {e}; copy it again",
        path.display()
    ))
}
