//! The one error type of the engine.

use std::path::PathBuf;

use animd_protocol::{ErrorCode, InvalidSetting};

/// The reason that something failed, in words for the user: what is wrong, with which value, and what to do.
///
/// [`Error::code`] is the stable code that crosses to the daemon, the ledger and scripts.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The picture cannot be used.
    #[error("{0}")]
    Image(String),
    /// A setting is outside its range, or does not go with another one.
    #[error("{0}")]
    Setting(String),
    /// The model folder or one of its files cannot be used.
    #[error("{0}")]
    Model(String),
    /// The machine has less memory than the work needs.
    #[error("{0}")]
    Memory(String),
    /// The video cannot be encoded or written.
    #[error("{0}")]
    Output(String),
    /// The device or its driver failed.
    #[error("{0}")]
    Device(String),
    /// A file cannot be read or written.
    #[error("cannot {action} `{}`: {source}", path.display())]
    File {
        /// The operation that failed, as a verb: `read`, `create`, `rename`.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// The reason.
        source: std::io::Error,
    },
    /// The user cancelled the work.
    #[error("cancelled")]
    Canceled,
    /// An error in animd itself.
    #[error("internal error: {0}")]
    Internal(String),
}

/// The engine's result.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// Returns the error's code, for programs.
    pub fn code(&self) -> ErrorCode {
        match self {
            Self::Image(_) => ErrorCode::InvalidImage,
            Self::Setting(_) => ErrorCode::InvalidSetting,
            Self::Model(_) => ErrorCode::Model,
            Self::Memory(_) => ErrorCode::Memory,
            Self::Output(_) => ErrorCode::Output,
            Self::Device(_) => ErrorCode::Device,
            Self::File { .. } => ErrorCode::File,
            Self::Canceled => ErrorCode::Canceled,
            Self::Internal(_) => ErrorCode::Internal,
        }
    }

    /// Wraps an I/O error with the verb and the path it belongs to: `.map_err(Error::file("read", path))`.
    pub fn file(action: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Self::File { action, path, source }
    }
}

impl From<InvalidSetting> for Error {
    fn from(e: InvalidSetting) -> Self {
        Self::Setting(e.0)
    }
}

impl From<candle_core::Error> for Error {
    fn from(e: candle_core::Error) -> Self {
        Self::Internal(e.to_string())
    }
}
