//! Settings of the command line as options of the bus.

use std::collections::HashMap;

use animd_engine::request::Settings;
use serde_json::{Map, Value};
use zbus::Variant;

use super::exit::{Failure, Result};

/// The settings that were given, by name.
pub fn given(settings: &Settings) -> Result<Map<String, Value>> {
    match serde_json::to_value(settings) {
        Ok(Value::Object(map)) => Ok(map),
        _ => Err(Failure::new("the settings cannot be sent")),
    }
}

/// The same for a call.
pub fn options(given: &Map<String, Value>) -> HashMap<&str, Variant<'_>> {
    let option = |value| {
        Some(match value {
            &Value::Bool(b) => b.into(),
            Value::String(text) => text.as_str().into(),
            Value::Number(n) => n.as_u64().map_or_else(|| n.as_f64().unwrap_or_default().into(), Into::into),
            _ => return None,
        })
    };
    given.iter().filter_map(|(key, value)| Some((key.as_str(), option(value)?))).collect()
}
