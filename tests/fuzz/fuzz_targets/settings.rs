//! Fuzzes text that people write: sidecars and `folder.toml`, configuration files, variables. The first byte chooses
//! which.
#![no_main]

use std::path::Path;

use animd_common::{config, keys};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Some((&kind, rest)) = data.split_first() else { return };
    let Ok(text) = std::str::from_utf8(rest) else { return };
    match kind % 3 {
        0 => match keys::settings_from_toml(Path::new("photo.toml"), text) {
            Ok(settings) => match settings.resolve(|| 7) {
                Ok(request) => request.check().expect("what was resolved is right"),
                Err(e) => one_line(&e.to_string()),
            },
            Err(e) => one_line(&e),
        },
        1 => match config::from_text(Path::new("/etc/animd/animd.toml"), text) {
            Ok(loaded) => {
                let printed = loaded.print(true);
                let again = config::from_text(Path::new("/animd.toml"), &printed).expect("it can be read again");
                assert_eq!(again.config, loaded.config, "{printed}");
            }
            // A file's mistakes are told together, each on a line.
            Err(e) => e.to_string().lines().for_each(one_line),
        },
        _ => {
            let (name, value) = text.split_once('=').unwrap_or((text, ""));
            if let Err(e) = config::from_variable(&format!("ANIMD_{name}"), value) {
                one_line(&e.to_string());
            }
        }
    }
});

/// Checks that an error is one line for the log and the terminal, whatever was in the text.
fn one_line(error: &str) {
    assert!(!error.is_empty() && !error.chars().any(char::is_control), "{error:?}");
}
