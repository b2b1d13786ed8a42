//! Fuzzes the options of calls, `a{sv}`: as bytes of the bus's own encoding, or put together from known keys and values
//! of any type, which gets deeper into the code.
#![no_main]

use std::collections::HashMap;
use std::os::unix::ffi::OsStrExt;

use animd::bus::options::{self, Options};
use animd_common::keys;
use libfuzzer_sys::fuzz_target;
use zbus::wire::Endian;
use zbus::wire::serialized::{Context, Data};
use zbus::{OwnedVariant, Variant};

fuzz_target!(|data: &[u8]| {
    let Some((&kind, rest)) = data.split_first() else { return };
    let options = match kind % 2 {
        0 => decoded(rest),
        _ => Some(built(rest)),
    };
    let Some(options) = options else { return };
    match kind / 2 % 5 {
        0 => match options::submission(&options) {
            Ok(submission) => {
                if let Err(e) = submission.settings.resolve(|| 7) {
                    one_line(&e.to_string());
                }
                if let Some(name) = submission.name {
                    let name = name.as_bytes();
                    assert!(!name.is_empty() && name.len() <= 200 && name[0] != b'.', "{name:?}");
                    assert!(!name.iter().any(|b| *b == b'/' || b.is_ascii_control()), "{name:?}");
                }
            }
            Err(e) => one_line(&e.to_string()),
        },
        1 => told(options::plan(&options)),
        2 => told(options::retry(&options)),
        3 => told(options::how(&options)),
        _ => match options::filter(&options, 1000) {
            Ok(filter) => assert!(filter.limit <= 1000),
            Err(e) => one_line(&e.to_string()),
        },
    }
});

fn told<T, E: ToString>(result: Result<T, E>) {
    if let Err(e) = result {
        one_line(&e.to_string());
    }
}

/// Checks that an error is one line of limited length, whatever was in the options.
fn one_line(error: &str) {
    assert!(!error.is_empty() && error.len() < 4000 && !error.chars().any(char::is_control), "{error:?}");
}

fn decoded(bytes: &[u8]) -> Option<Options> {
    let data = Data::new(bytes, Context::new_dbus(Endian::Little, 0));
    data.deserialize::<HashMap<String, OwnedVariant>>().ok().map(|(options, _)| options)
}

/// Returns options from entries of a key, a type, a length and a value each.
fn built(mut bytes: &[u8]) -> Options {
    const OTHERS: [&str; 15] = [
        "name", "idempotency_key", "priority", "keep", "width", "height", "new_seed", "state", "owner", "before",
        "limit", "outbox", "last_name", "stable_seconds", "poll_seconds",
    ];
    let mut options = Options::new();
    while let [key, kind, length, rest @ ..] = bytes {
        let (value, rest) = rest.split_at(rest.len().min((*length).into()));
        bytes = rest;
        let known: Vec<&str> = keys::SETTINGS.into_iter().chain(OTHERS).collect();
        let text = String::from_utf8_lossy(value).into_owned();
        let key = known.get(usize::from(*key)).map_or_else(|| text.clone(), |key| (*key).to_owned());
        let mut number = [0; 8];
        number[..value.len().min(8)].copy_from_slice(&value[..value.len().min(8)]);
        let value = match kind % 12 {
            0 => Variant::from(number[0]),
            1 => Variant::from(number[0] & 1 == 1),
            2 => Variant::from(i16::from_le_bytes([number[0], number[1]])),
            3 => Variant::from(i32::from_le_bytes([number[0], number[1], number[2], number[3]])),
            4 => Variant::from(u32::from_le_bytes([number[0], number[1], number[2], number[3]])),
            5 => Variant::from(i64::from_le_bytes(number)),
            6 => Variant::from(u64::from_le_bytes(number)),
            7 => Variant::from(f64::from_le_bytes(number)),
            8 => Variant::new(Variant::from(text)),
            9 => Variant::from(vec![text]),
            _ => Variant::from(text),
        };
        if let Ok(value) = value.try_into_owned() {
            options.insert(key, value);
        }
    }
    options
}
