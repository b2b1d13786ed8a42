//! How `animctl` ends: one table of exit codes, for the program, its --help and its manual page.

use std::fmt::Write as _;
use std::process::ExitCode;

use zbus::fdo;

/// The outcome of a verb.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// What was asked for is done.
    Done,
    /// The job failed, or the service refused.
    Failed,
    /// The command line was wrong.
    Usage,
    /// There is no service.
    Unreachable,
    /// The job was cancelled.
    Canceled,
    /// Ctrl-C ended the wait for a job, which goes on.
    Interrupted,
    /// The exit code of a command that was run.
    Of(u8),
}

impl Exit {
    /// All outcomes that have an exit code of their own.
    pub const ALL: [Self; 6] =
        [Self::Done, Self::Failed, Self::Usage, Self::Unreachable, Self::Canceled, Self::Interrupted];

    /// Returns the exit code.
    pub fn code(self) -> u8 {
        match self {
            Self::Done => 0,
            Self::Failed => 1,
            Self::Usage => 2,
            Self::Unreachable => 3,
            Self::Canceled => 4,
            Self::Interrupted => 130,
            Self::Of(code) => code,
        }
    }

    /// Returns what the exit code means.
    pub fn meaning(self) -> &'static str {
        match self {
            Self::Done => "done",
            Self::Failed => {
                "the job failed, the service refused, or `doctor` or `config check` found something wrong"
            }
            Self::Usage => "wrong usage, or a setting that cannot be used",
            Self::Unreachable => "no animd can be reached",
            Self::Canceled => "the job was cancelled",
            Self::Interrupted => "Ctrl-C ended the wait; the job goes on",
            Self::Of(_) => "the exit code of the command that `warm` or `drain` ran",
        }
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        exit.code().into()
    }
}

/// Returns the table of exit codes, for --help.
pub fn table() -> String {
    let mut text = String::from("Exit codes:");
    for exit in Exit::ALL {
        _ = write!(text, "\n  {:<3}  {}", exit.code(), exit.meaning());
    }
    text.push_str("\n`warm -- CMD` and `drain -- CMD` end with the code of CMD.");
    text
}

/// What went wrong, and the exit code that says so.
#[derive(Debug)]
pub struct Failure {
    pub exit: Exit,
    pub text: String,
}

pub type Result<T = Exit> = std::result::Result<T, Failure>;

impl Failure {
    pub fn new(text: impl Into<String>) -> Self {
        Self { exit: Exit::Failed, text: text.into() }
    }

    /// Returns the failure of a command line that is wrong.
    pub fn usage(text: impl Into<String>) -> Self {
        Self { exit: Exit::Usage, text: text.into() }
    }

    pub fn unreachable(text: impl Into<String>) -> Self {
        Self { exit: Exit::Unreachable, text: text.into() }
    }

    fn away() -> Self {
        Self::unreachable(
            "animd is not running; start it with `systemctl start animd`, or your own with `animd --user`",
        )
    }

    /// Wraps an I/O error with the action and the path that it belongs to.
    pub fn file(action: &str, path: impl AsRef<std::ffi::OsStr>) -> impl FnOnce(std::io::Error) -> Self {
        let text = format!("cannot {action} `{}`", animd_common::files::show(path));
        move |e| Self::new(format!("{text}: {e}"))
    }
}

/// Returns whether an error means that there is no service and that the bus cannot start it: systemd does not know the
/// unit while it is disabled, and the bus times out on a unit that fails at its start.
fn no_service(error: &str) -> bool {
    const BUS: [&str; 6] =
        ["ServiceUnknown", "NameHasNoOwner", "NoReply", "Disconnected", "TimedOut", "Spawn.ServiceNotFound"];
    match error.strip_prefix("org.freedesktop.DBus.Error.") {
        Some(name) => BUS.contains(&name),
        None => error.starts_with("org.freedesktop.systemd1."),
    }
}

/// Returns whether the bus has refused a call because the service has not read earlier ones.
pub fn is_full(error: &zbus::Error) -> bool {
    match error {
        zbus::Error::MethodError(name, ..) => name.as_str() == "org.freedesktop.DBus.Error.LimitsExceeded",
        zbus::Error::FDO(e) => matches!(**e, fdo::Error::LimitsExceeded(_)),
        _ => false,
    }
}

impl From<zbus::Error> for Failure {
    fn from(e: zbus::Error) -> Self {
        match e {
            e if is_full(&e) => {
                Self::new("the message bus takes no more calls for animd at the moment; try again")
            }
            zbus::Error::MethodError(name, text, _) => {
                if no_service(name.as_str()) {
                    return Self::away();
                }
                if name.as_str() == "org.freedesktop.DBus.Error.UnknownMethod" {
                    return Self::new(
                        "the running animd does not support this; it may be older than animctl: `systemctl restart animd`",
                    );
                }
                let text = text.unwrap_or_else(|| name.to_string());
                // What the service finds wrong with an option is as wrong as what animctl finds itself.
                match name.as_str().strip_prefix(animd_client::ERRORS) {
                    Some("UnknownOption" | "InvalidOption") => Self::usage(text),
                    _ => Self::new(text),
                }
            }
            zbus::Error::FDO(e) => (*e).into(),
            zbus::Error::InputOutput(e) => Self::unreachable(format!("the message bus: {e}")),
            e => Self::new(e.to_string()),
        }
    }
}

impl From<fdo::Error> for Failure {
    fn from(e: fdo::Error) -> Self {
        match e {
            fdo::Error::ServiceUnknown(_)
            | fdo::Error::NameHasNoOwner(_)
            | fdo::Error::NoReply(_)
            | fdo::Error::TimedOut(_) => Self::away(),
            fdo::Error::ZBus(e) => e.into(),
            e => Self::new(e.to_string()),
        }
    }
}

impl From<animd_common::Error> for Failure {
    fn from(e: animd_common::Error) -> Self {
        Self::new(e.to_string())
    }
}
