//! The daemon's one error type.

use std::path::PathBuf;

use animd_protocol::{ErrorCode, InvalidSetting};

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
        /// What went wrong, for programs.
        code: ErrorCode,
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

    /// A refusal with its stable code.
    pub fn refused(code: ErrorCode, text: impl Into<String>) -> Self {
        Self::Refused { code, text: text.into() }
    }

    /// What went wrong, for the ledger and for programs.
    pub fn code(&self) -> ErrorCode {
        match self {
            Self::Refused { code, .. } => *code,
            Self::File { .. } => ErrorCode::File,
            Self::Config(_) => ErrorCode::Config,
            Self::Ledger(_) | Self::Schema(_) => ErrorCode::Ledger,
            Self::Stopping | Self::NewStart(_) => ErrorCode::Stopping,
            Self::Bus(_) => ErrorCode::Bus,
        }
    }
}

impl From<InvalidSetting> for Error {
    fn from(e: InvalidSetting) -> Self {
        Self::Refused { code: ErrorCode::InvalidSetting, text: e.0 }
    }
}
