//! The options of a call, `a{sv}`, checked: an unknown key is refused, never ignored.

use std::collections::HashMap;
use std::ffi::OsString;

use animd_engine::request::Settings;
use serde_json::Value;
use zbus::{OwnedVariant, Variant};

use super::error::BusError;
use crate::keys;
use crate::ledger::{Filter, State};

/// Options as a caller sends them.
pub type Options = HashMap<String, OwnedVariant>;

/// What a submission says besides the picture.
#[derive(Debug, Default, PartialEq)]
pub struct Submission {
    /// What to make.
    pub settings: Settings,
    /// What the video's name begins with.
    pub name: Option<OsString>,
    /// The same key from the same user gives the same job.
    pub idempotency_key: Option<String>,
}

const NAME: &str = "name";
const IDEMPOTENCY_KEY: &str = "idempotency_key";
/// The longest name and key, in bytes.
const MAX_NAME: usize = 200;
/// The most jobs that one call lists.
const MAX_LIST: u32 = 1000;

/// Reads a submission's options: every key of [`Settings`], `name` and `idempotency_key`.
pub fn submission(options: &Options) -> Result<Submission, BusError> {
    let known = || keys::SETTINGS.into_iter().chain([NAME, IDEMPOTENCY_KEY]);
    let mut settings = serde_json::Map::new();
    let mut read = Submission::default();
    for (key, value) in options {
        match key.as_str() {
            NAME => read.name = Some(file_name(&text(key, value)?)),
            IDEMPOTENCY_KEY => {
                let given = text(key, value)?;
                if given.is_empty() || given.len() > MAX_NAME {
                    return Err(BusError::InvalidOption(format!(
                        "`{key}` has {} bytes; give 1 to {MAX_NAME}",
                        given.len()
                    )));
                }
                read.idempotency_key = Some(given);
            }
            _ if keys::SETTINGS.contains(&key.as_str()) => {
                let value = json(value).filter(|v| !v.is_array() && !v.is_object()).ok_or_else(|| {
                    BusError::InvalidOption(format!("`{key}` is neither text nor a number"))
                })?;
                // One at a time, so that the error can name the key.
                let one = Value::Object([(key.clone(), value.clone())].into_iter().collect());
                serde_json::from_value::<Settings>(one).map_err(|e| {
                    BusError::InvalidOption(format!("`{key}`: {}", keys::with_hint(&e.to_string())))
                })?;
                settings.insert(key.clone(), value);
            }
            _ => return Err(unknown(key, known())),
        }
    }
    read.settings = serde_json::from_value(Value::Object(settings))
        .map_err(|e| BusError::InvalidOption(e.to_string()))?;
    Ok(read)
}

/// Reads a list's filter: `state` s, `owner` u, `before` t, `limit` u.
pub fn filter(options: &Options) -> Result<Filter, BusError> {
    let mut filter = Filter { state: None, owner: None, before: None, limit: 100 };
    for (key, value) in options {
        match key.as_str() {
            "state" => {
                let name = text(key, value)?;
                let states = State::ALL.map(State::name);
                filter.state = Some(State::from_name(&name).ok_or_else(|| {
                    BusError::InvalidOption(format!("`state`: `{name}` is none of {}", states.join(", ")))
                })?);
            }
            "owner" => filter.owner = Some(whole(key, value)? as u32),
            "before" => filter.before = Some(whole(key, value)?),
            "limit" => filter.limit = whole(key, value)?.min(MAX_LIST.into()) as u32,
            _ => return Err(unknown(key, ["state", "owner", "before", "limit"])),
        }
    }
    Ok(filter)
}

fn unknown<'a>(key: &str, known: impl IntoIterator<Item = &'a str> + Clone) -> BusError {
    let hint = match keys::nearest(key, known.clone()) {
        Some(near) => format!("; did you mean `{near}`?"),
        None => format!("; known are {}", known.into_iter().collect::<Vec<_>>().join(", ")),
    };
    BusError::UnknownOption(format!("unknown option `{}`{hint}", crate::files::show(key)))
}

fn text(key: &str, value: &OwnedVariant) -> Result<String, BusError> {
    match json(value) {
        Some(Value::String(text)) => Ok(text),
        _ => Err(BusError::InvalidOption(format!("`{key}` is not text"))),
    }
}

fn whole(key: &str, value: &OwnedVariant) -> Result<u64, BusError> {
    json(value)
        .and_then(|v| v.as_u64())
        .ok_or_else(|| BusError::InvalidOption(format!("`{key}` is not a whole number from 0 on")))
}

/// The stem of a file from a name that somebody else chose: no folders, no control characters, not hidden.
fn file_name(given: &str) -> OsString {
    let last = given.rsplit('/').find(|part| !part.is_empty()).unwrap_or_default();
    let clean: String = last.chars().map(|c| if c.is_control() { '_' } else { c }).collect();
    let mut name = clean.trim_start_matches('.').trim().to_owned();
    while name.len() > MAX_NAME {
        name.pop();
    }
    if name.is_empty() { super::DEFAULT_NAME.into() } else { name.into() }
}

/// A value of the bus as JSON; `None` for what JSON cannot say, such as a descriptor.
pub fn json(value: &Variant<'_>) -> Option<Value> {
    Some(match value {
        Variant::U8(n) => (*n).into(),
        Variant::Bool(b) => (*b).into(),
        Variant::I16(n) => (*n).into(),
        Variant::U16(n) => (*n).into(),
        Variant::I32(n) => (*n).into(),
        Variant::U32(n) => (*n).into(),
        Variant::I64(n) => (*n).into(),
        Variant::U64(n) => (*n).into(),
        Variant::F64(x) => serde_json::Number::from_f64(*x)?.into(),
        Variant::Str(s) => s.as_str().into(),
        Variant::ObjectPath(path) => path.as_str().into(),
        Variant::Signature(signature) => signature.to_string().into(),
        Variant::Variant(inner) => json(inner)?,
        Variant::Array(items) => Value::Array(items.iter().map(json).collect::<Option<_>>()?),
        Variant::Structure(fields) => Value::Array(fields.fields().iter().map(json).collect::<Option<_>>()?),
        Variant::Dict(entries) => {
            let mut map = serde_json::Map::new();
            for (key, value) in entries.iter() {
                let key = match json(key)? {
                    Value::String(key) => key,
                    other => other.to_string(),
                };
                map.insert(key, json(value)?);
            }
            Value::Object(map)
        }
        Variant::Fd(_) => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options<const N: usize>(pairs: [(&str, Variant<'_>); N]) -> Options {
        pairs.into_iter().map(|(k, v)| (k.to_owned(), v.try_into_owned().expect("no descriptor"))).collect()
    }

    #[test]
    fn options_of_any_number_type_are_read() -> Result<(), BusError> {
        let read = submission(&options([
            ("prompt", "a wave".into()),
            ("seed", 5_i32.into()),
            ("steps", 4_u64.into()),
            ("guidance", 3_u8.into()),
            ("size", "720p".into()),
            ("name", "../../.etc/x\ny".into()),
        ]))?;
        assert_eq!(
            (read.settings.seed, read.settings.steps, read.settings.guidance),
            (Some(5), Some(4), Some(3.0))
        );
        assert_eq!(read.name.as_deref(), Some("x_y".as_ref()));
        Ok(())
    }

    #[test]
    fn wrong_options_are_refused_by_name() {
        let error = |o: Options| submission(&o).expect_err("refused").to_string();
        assert!(
            error(options([("promt", "a".into())]))
                .ends_with("unknown option `promt`; did you mean `prompt`?")
        );
        assert!(error(options([("seed", (-1_i32).into())])).contains("`seed`: invalid value"));
        assert!(error(options([("size", "800x601".into())])).contains("608 is the nearest"));
        let error = |o: Options| filter(&o).expect_err("refused").to_string();
        assert!(error(options([("state", "quued".into())])).contains("none of queued"));
        assert!(error(options([("stat", "x".into())])).contains("did you mean `state`?"));
    }
}
