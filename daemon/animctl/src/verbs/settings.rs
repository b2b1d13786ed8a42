//! Settings of the command line as options of the bus.

use std::collections::HashMap;

use animd_common::bus::variant;
use animd_options::SettingsOptions;
use animd_protocol::request::Settings;
use serde_json::{Map, Value};
use zbus::Variant;

use super::exit::{Exit, Failure, Result};

/// Returns the settings that were given, by name.
pub fn given(settings: SettingsOptions) -> Result<Map<String, Value>> {
    let Ok(Value::Object(map)) = serde_json::to_value(Settings::from(settings)) else {
        return Err(Failure::new("the settings cannot be sent"));
    };
    // Settings that were not given are absent; a null is a number that is not finite, which JSON cannot express.
    let null = map.iter().find(|(_, value)| value.is_null()).map(|(key, _)| key.replace('_', "-"));
    match null {
        Some(key) => Err(Failure {
            exit: Exit::Usage,
            text: format!("`--{key}` is no finite number; give one, or leave it out"),
        }),
        None => Ok(map),
    }
}

/// Returns these settings as the options of a call.
pub fn options(given: &Map<String, Value>) -> HashMap<&str, Variant<'_>> {
    given.iter().filter_map(|(key, value)| Some((key.as_str(), variant(value)?))).collect()
}

/// Returns a number of the command line, other than NaN and the infinite ones.
pub fn finite(text: &str) -> std::result::Result<f64, String> {
    match text.parse::<f64>() {
        Ok(number) if number.is_finite() => Ok(number),
        Ok(_) => Err("it is no finite number".into()),
        Err(e) => Err(e.to_string()),
    }
}
