//! What can go wrong in `animd-watch`.

use std::path::PathBuf;

use animd_protocol::ErrorCode;

/// What can go wrong, in words for the user whose folders are watched.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A mistake in the configuration, a file, or a picture that cannot be used.
    #[error(transparent)]
    Common(#[from] animd_common::Error),
    /// An error of the message bus.
    #[error("the message bus: {0}")]
    Bus(#[from] zbus::Error),
    /// The message bus has gone away; only a restart of the program can connect to a new one.
    #[error("the message bus has gone away")]
    BusGone,
}

/// The result type of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// Wraps an I/O error with the verb and the path it belongs to.
    pub fn file(action: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Self {
        let wrap = animd_common::Error::file(action, path);
        move |source| wrap(source).into()
    }

    /// Returns a refusal with its stable code.
    pub fn refused(code: ErrorCode, text: impl Into<String>) -> Self {
        animd_common::Error::refused(code, text).into()
    }

    /// Returns an error about the configuration.
    pub fn config(text: impl Into<String>) -> Self {
        Self::Common(animd_common::Error::Config(text.into()))
    }
}
