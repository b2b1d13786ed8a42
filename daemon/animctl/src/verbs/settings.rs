//! Settings of the command line as options of the bus.

use std::collections::HashMap;

use animd_common::bus::variant;
use animd_options::SettingsOptions;
use animd_protocol::request::Settings;
use serde_json::{Map, Value};
use zbus::Variant;

use super::exit::{Failure, Result};

/// A job's settings, as typed.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct JobOptions {
    /// The name of the model: that of its file in `/etc/animd/models` or `~/.config/animd/models`, or `small` [default: the configured one]
    #[arg(long, value_name = "NAME")]
    model: Option<String>,
    #[command(flatten)]
    settings: SettingsOptions,
}

/// Returns the settings that were given, by name.
pub fn given(JobOptions { model, settings }: JobOptions) -> Result<Map<String, Value>> {
    let Ok(Value::Object(map)) = serde_json::to_value(Settings { model, ..settings.into() }) else {
        return Err(Failure::new("the settings cannot be sent"));
    };
    Ok(map)
}

/// Returns these settings as the options of a call.
pub fn options(given: &Map<String, Value>) -> HashMap<&str, Variant<'_>> {
    given.iter().filter_map(|(key, value)| Some((key.as_str(), variant(value)?))).collect()
}

/// Returns a number of the command line, other than NaN and the infinite ones.
pub fn finite(text: &str) -> std::result::Result<f64, String> {
    match text.parse::<f64>() {
        Ok(number) if number.is_finite() => Ok(number),
        _ => Err("it must be a number, such as 2.5".into()),
    }
}
