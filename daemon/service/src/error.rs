//! The service's one error type.

use std::path::PathBuf;

use animd_protocol::{ErrorCode, InvalidSetting};

/// What can go wrong in the service, in words for the person who sees it.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// An error that the other programs have as well: the configuration, a file, a refusal, the end of the service.
    #[error(transparent)]
    Common(#[from] animd_common::Error),
    /// An error of SQLite.
    #[error("the ledger: {0}")]
    Ledger(#[from] rusqlite::Error),
    /// The ledger's file is not one that this program can use.
    #[error("{0}")]
    Schema(String),
    /// The ledger's file is damaged; the sentence has its path and the remedy.
    #[error("{0}")]
    Damaged(String),
    /// The service has to be started again, and says why.
    #[error("{0}")]
    NewStart(String),
    /// An error of the message bus.
    #[error("the message bus: {0}")]
    Bus(#[from] zbus::Error),
}

/// A result with the service's error.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// The service is stopping: whoever was asked has ended.
    pub const STOPPING: Self = Self::Common(animd_common::Error::Stopping);

    /// Wraps an I/O error with the verb and the path it belongs to.
    pub fn file(action: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Self {
        let wrap = animd_common::Error::file(action, path);
        move |source| wrap(source).into()
    }

    /// Makes a refusal with its stable code.
    pub fn refused(code: ErrorCode, text: impl Into<String>) -> Self {
        animd_common::Error::refused(code, text).into()
    }

    /// Makes an error for a mistake in the configuration.
    pub fn config(text: impl Into<String>) -> Self {
        Self::Common(animd_common::Error::Config(text.into()))
    }

    /// Returns the sentence without any path, for the log.
    pub fn without_path(&self) -> String {
        match self {
            Self::Common(e) => e.without_path(),
            e => e.to_string(),
        }
    }

    /// Returns what went wrong, for the ledger and for programs.
    pub fn code(&self) -> ErrorCode {
        match self {
            Self::Common(e) => e.code(),
            Self::Ledger(_) | Self::Schema(_) | Self::Damaged(_) => ErrorCode::Ledger,
            Self::NewStart(_) => ErrorCode::Stopping,
            Self::Bus(_) => ErrorCode::Bus,
        }
    }
}

impl From<InvalidSetting> for Error {
    fn from(e: InvalidSetting) -> Self {
        Self::Common(e.into())
    }
}
