//! The error type of all the daemon's programs.

use std::path::PathBuf;

use animd_protocol::{ErrorCode, InvalidSetting};

use crate::files::show;

/// What can go wrong, in words for the person who sees it.
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
        /// The stable code, for programs.
        code: ErrorCode,
        /// The sentence.
        text: String,
    },
    /// The program is ending, so that the request is not served.
    #[error("the service is stopping")]
    Stopping,
}

/// The result type of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// Wraps an I/O error with the verb and the path it belongs to.
    pub fn file(action: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Self::File { action, path, source }
    }

    /// Returns a refusal with its stable code.
    pub fn refused(code: ErrorCode, text: impl Into<String>) -> Self {
        Self::Refused { code, text: text.into() }
    }

    /// Returns the sentence without the path, for the log: where a user's files are is private.
    pub fn without_path(&self) -> String {
        match self {
            Self::File { action, source, .. } => format!("cannot {action} a file: {source}"),
            e => e.to_string(),
        }
    }

    /// Returns the stable code, for the ledger and for programs.
    pub fn code(&self) -> ErrorCode {
        match self {
            Self::Refused { code, .. } => *code,
            Self::File { .. } => ErrorCode::File,
            Self::Config(_) => ErrorCode::Config,
            Self::Stopping => ErrorCode::Stopping,
        }
    }
}

impl From<InvalidSetting> for Error {
    fn from(e: InvalidSetting) -> Self {
        Self::Refused { code: ErrorCode::InvalidSetting, text: e.0 }
    }
}
