//! The daemon's one error type.

use std::path::PathBuf;

use crate::files::show;

/// What can go wrong in the service, in words for the person who sees it.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A configuration value, named with its file and line or its variable.
    #[error("{0}")]
    Config(String),
    /// A file cannot be read or written.
    #[error("cannot {action} `{}`: {source}", show(path))]
    File {
        /// What was tried, as a verb: `read`, `create`, `rename`.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// Why it failed.
        source: std::io::Error,
    },
    /// A picture, its sidecar or a call that cannot be served.
    #[error("{text}")]
    Refused {
        /// A stable name, as [`crate::Error::code`] has them.
        code: &'static str,
        /// The sentence.
        text: String,
    },
    /// SQLite.
    #[error("the ledger: {0}")]
    Ledger(#[from] rusqlite::Error),
    /// The ledger's file is not one that this program can use.
    #[error("{0}")]
    Schema(String),
    /// The service has to be started again, and says why.
    #[error("{0}")]
    NewStart(String),
    /// The ledger's thread has ended: the service is stopping.
    #[error("the service is stopping")]
    Stopping,
    /// The message bus.
    #[error("the message bus: {0}")]
    Bus(#[from] zbus::Error),
}

/// The daemon's result.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// Wraps an I/O error with the verb and the path it belongs to.
    pub fn file(action: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Self::File { action, path, source }
    }

    /// A refusal with its stable name.
    pub fn refused(code: &'static str, text: impl Into<String>) -> Self {
        Self::Refused { code, text: text.into() }
    }

    /// The stable name for the ledger and for programs.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Refused { code, .. } => code,
            Self::File { .. } => "file",
            Self::Config(_) => "config",
            Self::Ledger(_) | Self::Schema(_) => "ledger",
            Self::Stopping | Self::NewStart(_) => "stopping",
            Self::Bus(_) => "bus",
        }
    }
}

impl From<animd_protocol::InvalidSetting> for Error {
    fn from(e: animd_protocol::InvalidSetting) -> Self {
        Self::Refused { code: "invalid-setting", text: e.0 }
    }
}
