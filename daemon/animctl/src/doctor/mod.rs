//! Checks for everything that could keep animd from working on this machine, each with its remedy.
//!
//! Every check is a function of what it is given (a configuration, the text of a file in `/proc`), so that its answers
//! can be tested without the machine that would give them.

mod driver;
mod models;
pub mod outside;
mod rights;
pub mod sandbox;

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use animd_common::config::Config;
use animd_common::files::{free_space, show};
use animd_common::memory::meminfo;
use animd_protocol::sources::quoted;
use serde::Serialize;

use sandbox::Sandbox;

pub use driver::{devices, driver, suspend};
pub use models::{model, named_models};
pub use rights::{READ, SEARCH, User, WRITE, refusal, refusal_from};

/// The result of a check.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// Everything is as it should be.
    Ok,
    /// animd works, but not as well as it could.
    Warn,
    /// animd cannot make videos.
    Fail,
}

impl Status {
    /// Returns `ok`, `warn` or `fail`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warn => "warn",
            Self::Fail => "fail",
        }
    }
}

/// What one check found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Check {
    /// What was checked, in one word.
    pub name: &'static str,
    /// The result.
    pub status: Status,
    /// What was found.
    pub message: String,
    /// What to do about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub remedy: Option<String>,
}

impl Check {
    /// Returns a finding without trouble.
    pub fn ok(name: &'static str, message: impl Into<String>) -> Self {
        Self { name, status: Status::Ok, message: message.into(), remedy: None }
    }

    /// Returns a finding that keeps animd from working as well as it could.
    pub fn warn(name: &'static str, message: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { name, status: Status::Warn, message: message.into(), remedy: Some(remedy.into()) }
    }

    /// Returns a finding that keeps animd from working.
    pub fn fail(name: &'static str, message: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { name, status: Status::Fail, message: message.into(), remedy: Some(remedy.into()) }
    }
}

/// Checks that the engine's program exists, starts, and has this version.
pub fn engine(program: &Path) -> Check {
    const NAME: &str = "engine";
    let reinstall = "install animd again, so that both programs are of one version";
    match first_line(Command::new(program).arg("--version")) {
        Ok(line) if line.split_whitespace().last() == Some(env!("CARGO_PKG_VERSION")) => {
            Check::ok(NAME, format!("`{}`, {line}", show(program)))
        }
        Ok(line) if line.is_empty() => {
            Check::fail(NAME, format!("`{}` does not say its version", show(program)), reinstall)
        }
        Ok(line) => Check::fail(
            NAME,
            format!("`{}` is {line}, and this is {}", show(program), env!("CARGO_PKG_VERSION")),
            reinstall,
        ),
        Err(e) => Check::fail(NAME, format!("`{}` does not start: {e}", show(program)), reinstall),
    }
}

/// Checks that ffmpeg is installed and can encode H.264.
pub fn ffmpeg() -> Check {
    const NAME: &str = "ffmpeg";
    let remedy = "install ffmpeg with x264; Debian's and Ubuntu's have it: `apt install ffmpeg`";
    let encoders = Command::new("ffmpeg").args(["-hide_banner", "-encoders"]).stdin(Stdio::null()).output();
    match encoders {
        Ok(output) if String::from_utf8_lossy(&output.stdout).contains(" libx264 ") => {
            let version = first_line(Command::new("ffmpeg").arg("-version")).unwrap_or_default();
            let version = version.split(" Copyright").next().unwrap_or_default().to_owned();
            Check::ok(NAME, format!("{version}, with x264"))
        }
        Ok(_) => Check::fail(NAME, "it has no libx264, so no video can be written", remedy),
        Err(e) => Check::fail(NAME, format!("it does not start: {e}"), remedy),
    }
}

/// Checks that the service's three folders and the watched folders exist or can be made, and that the service's user
/// may use them.
pub fn folders(config: &Config, user: &User, sandbox: &Sandbox) -> Vec<Check> {
    let folders = &config.folders;
    let own = [("inbox", &folders.inbox), ("outbox", &folders.outbox), ("state", &folders.state)];
    let mut checks: Vec<Check> = own.map(|(name, dir)| folder(name, dir, true, user, sandbox)).into();
    for watch in &config.watch {
        checks.push(folder("watched folder", &watch.path, false, user, sandbox));
        if let Some(outbox) = &watch.outbox {
            checks.push(folder("outbox", outbox, true, user, sandbox));
        }
    }
    checks
}

/// Checks one folder; `made` says that the service makes it where it is missing.
fn folder(name: &'static str, dir: &Path, made: bool, user: &User, sandbox: &Sandbox) -> Check {
    if let Some(why) = sandbox.refusal(dir, true) {
        let remedy = format!(
            "let the service into it with `sudo animctl folder add {}`, or choose one below /var/lib/animd",
            quoted(&show(dir))
        );
        return Check::fail(name, format!("`{}` {why}", show(dir)), remedy);
    }
    let (outside, start) = sandbox.outside(dir);
    if outside.exists() && !outside.is_dir() {
        return Check::fail(
            name,
            format!("`{}` is not a folder", show(&outside)),
            "move it away, or choose another folder",
        );
    }
    let all = READ | WRITE | SEARCH;
    let above = outside.ancestors().find(|dir| dir.exists()).filter(|_| made && !outside.exists());
    if above.is_some_and(|above| refusal_from(&start, above, user, all).is_none()) {
        return Check::ok(name, format!("`{}` is made when animd starts", show(&outside)));
    }
    match refusal_from(&start, &outside, user, all) {
        None => Check::ok(name, format!("`{}`", show(&outside))),
        Some(why) => Check::fail(
            name,
            why,
            format!(
                "let user `{0}` write to it: `setfacl -m u:{0}:rwx {1}`, or make it: `install -d -o {0} {1}`",
                user.name,
                quoted(&show(&outside))
            ),
        ),
    }
}

/// Checks that there is room for videos.
pub fn disk(config: &Config) -> Check {
    const NAME: &str = "disk";
    // The service may not have made the outbox yet; its parent is on the same disk.
    let outbox = config.folders.outbox.ancestors().find(|dir| dir.exists()).unwrap_or(Path::new("/"));
    let asked = config.queue.free_mib;
    match free_space(outbox) {
        Ok(free) => {
            let free = free >> 20;
            let message = format!("{free} MiB are free for `{}`", show(outbox));
            if free < asked {
                let why = format!("{message}, and queue.free_mib asks for {asked}");
                Check::fail(NAME, why, "make room, or move the outbox")
            } else {
                Check::ok(NAME, message)
            }
        }
        Err(e) => Check::warn(NAME, format!("`{}` cannot be asked: {e}", show(outbox)), "see `outbox` above"),
    }
}

/// Checks the machine's memory, given the text of `/proc/meminfo`.
pub fn memory(text: &str) -> Check {
    const NAME: &str = "memory";
    let gib = |key: &str| Some(meminfo(text, key)? as f64 / f64::from(1 << 30));
    match (gib("MemTotal"), gib("MemAvailable")) {
        (Some(total), Some(available)) => {
            Check::ok(NAME, format!("{available:.1} GiB of {total:.1} GiB are available"))
        }
        _ => Check::warn(NAME, "/proc/meminfo cannot be read", "look at `free -h`"),
    }
}

fn first_line(command: &mut Command) -> std::io::Result<String> {
    let output = command.stdin(Stdio::null()).stderr(Stdio::null()).output()?;
    Ok(String::from_utf8_lossy(&output.stdout).lines().next().unwrap_or_default().to_owned())
}

/// Returns the text of a file in `/proc`; empty where there is none.
pub fn proc_text(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_that_are_not_there_are_named() {
        let check = engine(Path::new("/nowhere/engine"));
        assert_eq!(check.status, Status::Fail);
        assert!(check.message.starts_with("`/nowhere/engine` does not start"), "{}", check.message);
        assert_eq!(engine(Path::new("/bin/true")).status, Status::Fail);
    }

    #[test]
    fn memory_is_read_from_its_file() {
        let check = memory("MemTotal:       25165824 kB\nMemFree: 1 kB\nMemAvailable:   12582912 kB\n");
        assert_eq!((check.status, &*check.message), (Status::Ok, "12.0 GiB of 24.0 GiB are available"));
        assert_eq!(memory("").status, Status::Warn);
    }

    #[test]
    fn a_service_without_a_model_or_folders_is_told_what_to_do() {
        let mut config = Config::default();
        let user = User { name: "animd".into(), uid: 900, groups: vec![900] };
        assert_eq!(model(&config, &user, &Sandbox::default()).status, Status::Fail);
        config.folders.inbox = "/nowhere/inbox".into();
        let checks = folders(&config, &user, &Sandbox::default());
        assert_eq!((checks[0].name, checks[0].status), ("inbox", Status::Fail));
        assert!(checks[0].message.contains("`/nowhere`"), "{}", checks[0].message);
        config.model.path = Some("/home/ann/wan".into());
        let check = model(&config, &user, &Sandbox { on: true, ..Sandbox::default() });
        assert!(check.message.contains("hidden from the service"), "{}", check.message);
    }
}
