//! Tries a model as the service will: reads back from systemd what it was told to show, and has the engine open the model in
//! the same sandbox.
//!
//! The sandbox is the service's own: the trial's unit is the service's, with every drop-in, in which another program is started.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use animd_common::files::{read_small, show, write_atomic};
use zbus::{Connection, Proxy, proxy::CacheProperties};

use super::super::dropin::reread;
use super::super::exit::{Failure, Result};
use super::search::refused;

const SERVICE: &str = "animd.service";
/// Where units are that go with the machine's next start.
const UNITS: &str = "/run/systemd/system";
/// The longest unit file and the longest answer that are read, in bytes.
const MAX_TEXT: u64 = 1 << 20;
/// Seconds that the engine may take to open the model; it reads headers only.
const PATIENCE: u32 = 120;

/// Directives that make a unit the service, and not only its sandbox.
const OF_SERVICE: [&str; 12] = [
    "Type",
    "BusName",
    "Exec",
    "Restart",
    "Watchdog",
    "RuntimeDirectory",
    "Alias",
    "WantedBy",
    "StartLimit",
    "NotifyAccess",
    "TimeoutStart",
    "Also",
];

/// Returns whether systemd runs this machine.
pub fn has_systemd() -> bool {
    Path::new(UNITS).is_dir()
}

/// Checks that systemd has understood which files the service should see.
///
/// # Errors
/// A sentence with the file that it would not show, and what it shows instead.
pub async fn read_back(binds: &[(PathBuf, PathBuf)]) -> Result<()> {
    let shown: Vec<(String, String, bool, u64)> =
        unit(&Connection::system().await?).await?.get_property("BindReadOnlyPaths").await?;
    for (source, target) in binds {
        let is_it = |(from, to, ..): &(String, String, bool, u64)| {
            Path::new(from) == source && Path::new(to) == target
        };
        if !shown.iter().any(is_it) {
            let instead: Vec<&str> = shown
                .iter()
                .filter(|(_, to, ..)| Path::new(to) == target)
                .map(|(from, ..)| from.as_str())
                .collect();
            let instead =
                if instead.is_empty() { "nothing".to_owned() } else { format!("`{}`", instead.join("`, `")) };
            return Err(Failure::new(format!(
                "systemd does not take the path `{}` as it was written, and would show {instead} to the service; rename it",
                show(source)
            )));
        }
    }
    Ok(())
}

/// Returns the service's unit on systemd's bus interface.
async fn unit(system: &Connection) -> Result<Proxy<'static>> {
    const SYSTEMD: &str = "org.freedesktop.systemd1";
    let manager =
        Proxy::new(system, SYSTEMD, "/org/freedesktop/systemd1", "org.freedesktop.systemd1.Manager").await?;
    let path: zbus::OwnedObjectPath = manager.call("LoadUnit", &(SERVICE,)).await?;
    let unit = zbus::proxy::Builder::<Proxy<'static>>::new(system)
        .destination(SYSTEMD)
        .path(path)
        .interface("org.freedesktop.systemd1.Service")
        .cache_properties(CacheProperties::No);
    Ok(unit.build().await?)
}

/// Has the engine open a model in the service's sandbox, with these words for `animd-engine inspect` besides.
///
/// # Errors
/// What the engine says against the model, or why it could not be asked.
pub fn open(program: &Path, model: &Path, more: &[String]) -> Result<()> {
    let trial = Trial::write(program, model, more)?;
    reread()?;
    let started = Command::new("systemctl")
        .args(["start", &trial.name])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .map_err(Failure::file("run", "systemctl"))?;
    let said = read_small(&trial.answer, MAX_TEXT).unwrap_or_default();
    drop(trial);
    if started.success() {
        return Ok(());
    }
    match said.is_empty() {
        true => Err(Failure::new(
            "the model could not be tried in the service's sandbox: `journalctl -u 'animctl-trial*'` says why",
        )),
        false => Err(refused(&said)),
    }
}

/// A unit for one trial, whose files go with this value.
struct Trial {
    name: String,
    unit: PathBuf,
    drop_ins: PathBuf,
    /// Where the engine's words are written.
    answer: PathBuf,
}

impl Trial {
    fn write(program: &Path, model: &Path, more: &[String]) -> Result<Self> {
        let name = format!("animctl-trial-{}.service", std::process::id());
        let units = Path::new(UNITS);
        let trial = Self {
            unit: units.join(&name),
            drop_ins: units.join(format!("{name}.d")),
            answer: Path::new("/run").join(format!("{name}.out")),
            name,
        };
        fs::create_dir_all(&trial.drop_ins).map_err(Failure::file("make", &trial.drop_ins))?;
        for (n, file) in files_of_service()?.iter().enumerate() {
            let bytes = read_small(file, MAX_TEXT).map_err(Failure::file("read", file))?;
            let text = without_service(&String::from_utf8_lossy(&bytes));
            // The first file is the unit itself, and the drop-ins follow in their order.
            let path = match n {
                0 => trial.unit.clone(),
                n => trial.drop_ins.join(format!("{n:04}.conf")),
            };
            write_atomic(&path, text.as_bytes(), 0o644).map_err(Failure::file("write", &path))?;
        }
        let own = trial.drop_ins.join("9999-trial.conf");
        let text = trial.text(program, model, more);
        write_atomic(&own, text.as_bytes(), 0o644).map_err(Failure::file("write", &own))?;
        Ok(trial)
    }

    /// Returns what the trial's unit does instead of the service.
    fn text(&self, program: &Path, model: &Path, more: &[String]) -> String {
        let word = |path: &Path| exec_word(&path.to_string_lossy());
        let more = more.iter().flat_map(|more| [" ".to_owned(), exec_word(more)]).collect::<String>();
        format!(
            "[Unit]\nDescription=Trial of a model for the image-to-video service\nStartLimitIntervalSec=0\n[Service]\nType=oneshot\n\
             ExecStart={} inspect {}{more}\nTimeoutStartSec={PATIENCE}s\nStandardOutput=truncate:{}\nStandardError=inherit\n",
            word(program),
            word(model),
            self.answer.display()
        )
    }
}

impl Drop for Trial {
    fn drop(&mut self) {
        let quiet = |args: &[&str]| {
            _ = Command::new("systemctl").args(args).stdout(Stdio::null()).stderr(Stdio::null()).status();
        };
        // A unit that failed is remembered until it is told to be forgotten.
        quiet(&["reset-failed", &self.name]);
        _ = fs::remove_file(&self.unit);
        _ = fs::remove_dir_all(&self.drop_ins);
        _ = fs::remove_file(&self.answer);
        quiet(&["daemon-reload"]);
    }
}

/// Returns the files of the service's unit: its own, and its drop-ins in the order in which systemd reads them.
fn files_of_service() -> Result<Vec<PathBuf>> {
    let show = |property: &str| -> Result<String> {
        let output = Command::new("systemctl")
            .args(["show", "--value", "--property", property, SERVICE])
            .stdin(Stdio::null())
            .output()
            .map_err(Failure::file("run", "systemctl"))?;
        Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
    };
    let unit = show("FragmentPath")?;
    if unit.is_empty() {
        return Err(Failure::new(format!("systemd does not know `{SERVICE}`; install animd, or use --user")));
    }
    let drop_ins = show("DropInPaths")?;
    Ok(std::iter::once(unit.as_str()).chain(drop_ins.split_whitespace()).map(PathBuf::from).collect())
}

/// Returns the text of a unit file without what makes the unit the service.
fn without_service(text: &str) -> String {
    let mut kept = String::new();
    let (mut dropping, mut goes_on) = (false, false);
    for line in text.lines() {
        if !goes_on {
            dropping = line
                .split_once('=')
                .is_some_and(|(key, _)| OF_SERVICE.iter().any(|of| key.trim().starts_with(of)));
        }
        goes_on = line.ends_with('\\');
        if !dropping {
            kept.push_str(line);
            kept.push('\n');
        }
    }
    kept
}

/// Returns a word of a command line in a unit file.
fn exec_word(word: &str) -> String {
    let mut text = String::from("\"");
    for c in word.chars() {
        match c {
            '"' | '\\' => text.extend(['\\', c]),
            '%' => text.push_str("%%"),
            '$' => text.push_str("$$"),
            c => text.push(c),
        }
    }
    text.push('"');
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_the_services_unit_the_sandbox_is_left() {
        let unit = include_str!("../../../../../systemd/animd.service");
        let kept = without_service(unit);
        for gone in [
            "ExecStart",
            "ExecReload",
            "BusName",
            "Type=",
            "WatchdogSec",
            "RuntimeDirectory",
            "Restart",
            "Alias",
        ] {
            assert!(unit.contains(gone) && !kept.lines().any(|line| line.starts_with(gone)), "{gone}");
        }
        let is_sandbox = |line: &&str| {
            [
                "Protect",
                "Private",
                "SystemCall",
                "Device",
                "User=",
                "ReadOnlyPaths",
                "StateDirectory",
                "Restrict",
            ]
            .iter()
            .any(|of| line.starts_with(of))
        };
        let count = unit.lines().filter(is_sandbox).filter(|line| !line.starts_with("RestartP")).count();
        assert!(count > 20);
        assert_eq!(kept.lines().filter(is_sandbox).count(), count);
        let text = "[Service]\nExecStart=/bin/a \\\n  b\nBindReadOnlyPaths=-/a:/b\n";
        assert_eq!(without_service(text), "[Service]\nBindReadOnlyPaths=-/a:/b\n");
    }

    #[test]
    fn words_of_a_command_line_stay_what_they_are() {
        assert_eq!(exec_word("/etc/a b/100%\"$x\\"), r#""/etc/a b/100%%\"$$x\\""#);
    }
}
