//! The command line and the environment that the running service was started with. They say more than the configuration
//! files alone: `animd --model DIR` needs no file.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use animd_common::bus::NAME;
use animd_common::config::{Given, Sources};
use zbus::fdo::DBusProxy;

use super::On;

/// The options that give a value of the configuration, with its section and key.
const OPTIONS: [(&str, &str, &str); 6] = [
    ("--model", "model", "path"),
    ("--dit", "model", "dit"),
    ("--engine", "engine", "program"),
    ("--inbox", "folders", "inbox"),
    ("--outbox", "folders", "outbox"),
    ("--state", "folders", "state"),
];

/// Returns where the running service's configuration comes from; `None` if no service runs, or if this user may not see
/// how it was started.
pub async fn sources(on: On) -> Option<Sources> {
    let connection = on.connect().await.ok()?.connection;
    let bus = DBusProxy::new(&connection).await.ok()?;
    let pid = bus.get_connection_unix_process_id(NAME.try_into().ok()?).await.ok()?;
    let process = Path::new("/proc").join(pid.to_string());
    let words = split(&fs::read(process.join("cmdline")).ok()?);
    // Without the right to see its folder, a relative path cannot be known.
    let dir = fs::read_link(process.join("cwd")).unwrap_or_else(|_| "/".into());
    let vars = match fs::read(process.join("environ")) {
        Ok(environ) => variables(&environ),
        Err(_) => std::env::vars_os().collect(),
    };
    Some(of_words(&words, &dir, vars))
}

fn split(words: &[u8]) -> Vec<OsString> {
    let words = words.strip_suffix(b"\0").unwrap_or(words);
    words.split(|byte| *byte == 0).map(|word| OsString::from_vec(word.to_vec())).collect()
}

fn variables(environ: &[u8]) -> Vec<(OsString, OsString)> {
    let pair = |word: OsString| {
        let bytes = word.as_bytes();
        let at = bytes.iter().position(|byte| *byte == b'=')?;
        Some((OsStr::from_bytes(&bytes[..at]).to_owned(), OsStr::from_bytes(&bytes[at + 1..]).to_owned()))
    };
    split(environ).into_iter().filter_map(pair).collect()
}

fn of_words(words: &[OsString], dir: &Path, vars: Vec<(OsString, OsString)>) -> Sources {
    let mut sources = Sources { vars, ..Sources::default() };
    let mut words = words.iter().skip(1);
    while let Some(word) = words.next() {
        let word = word.to_string_lossy();
        let (name, joined) = match word.split_once('=') {
            Some((name, value)) => (name, Some(value.to_owned())),
            None => (word.as_ref(), None),
        };
        if name == "--user" {
            sources.user = true;
            continue;
        }
        let option = OPTIONS.into_iter().find(|(option, ..)| *option == name);
        if option.is_none() && name != "--config" {
            continue;
        }
        let value = joined.or_else(|| words.next().map(|value| value.to_string_lossy().into_owned()));
        let Some(path) = value.map(|value| dir.join(PathBuf::from(value))) else { break };
        match option {
            Some((option, section, key)) => {
                let value = path.to_string_lossy().into_owned().into();
                sources.options.push(Given { option, section, key, value });
            }
            None => sources.file = Some(path),
        }
    }
    sources
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_line_is_read_as_the_service_reads_it() {
        let words = split(b"animd\0--user\0--model\0models/wan\0--inbox=/srv/in\0--config\0/etc/a.toml\0");
        let vars = variables(b"HOME=/home/ann\0ANIMD_LOG_LEVEL=debug\0");
        let sources = of_words(&words, Path::new("/home/ann"), vars);
        assert!(sources.user && sources.file.as_deref() == Some(Path::new("/etc/a.toml")));
        let given: Vec<String> = sources
            .options
            .iter()
            .map(|given| format!("{}.{}={}", given.section, given.key, given.value))
            .collect();
        assert_eq!(given, ["model.path=\"/home/ann/models/wan\"", "folders.inbox=\"/srv/in\""]);
        assert_eq!(sources.vars[1], ("ANIMD_LOG_LEVEL".into(), "debug".into()));
    }
}
