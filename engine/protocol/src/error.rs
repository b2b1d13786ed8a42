//! Stable names for what can go wrong, and the error of the contract's own checks.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A class of error, for programs. Its name crosses from the engine to the service, is kept in the ledger and is sent
/// on the bus. A name never changes its meaning.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(into = "String", from = "String")]
pub enum ErrorCode {
    /// The picture cannot be used.
    InvalidImage,
    /// A setting is out of range, or conflicts with another one.
    InvalidSetting,
    /// The model's folder or one of its files is wrong.
    Model,
    /// The machine has less memory than the work needs.
    Memory,
    /// The video cannot be encoded or written.
    Output,
    /// The device or its driver failed.
    Device,
    /// A file cannot be read or written.
    File,
    /// Somebody has canceled the work.
    Canceled,
    /// The work has crashed the engine more than once.
    Crashed,
    /// The configuration is wrong.
    Config,
    /// The ledger cannot be read or written.
    Ledger,
    /// The service is stopping.
    Stopping,
    /// The message bus failed.
    Bus,
    /// There is no such job, or its file no longer exists.
    NotFound,
    /// The job's state does not allow this.
    NotReady,
    /// Too much work is in progress.
    Busy,
    /// The number of open jobs is at its limit.
    QueueFull,
    /// An internal error of animd, or a name that this version does not know.
    Internal,
}

impl ErrorCode {
    /// All codes.
    pub const ALL: [Self; 18] = [
        Self::InvalidImage,
        Self::InvalidSetting,
        Self::Model,
        Self::Memory,
        Self::Output,
        Self::Device,
        Self::File,
        Self::Canceled,
        Self::Crashed,
        Self::Config,
        Self::Ledger,
        Self::Stopping,
        Self::Bus,
        Self::NotFound,
        Self::NotReady,
        Self::Busy,
        Self::QueueFull,
        Self::Internal,
    ];

    /// Returns the stable name.
    pub fn name(self) -> &'static str {
        match self {
            Self::InvalidImage => "invalid-image",
            Self::InvalidSetting => "invalid-setting",
            Self::Model => "model",
            Self::Memory => "memory",
            Self::Output => "output",
            Self::Device => "device",
            Self::File => "file",
            Self::Canceled => "canceled",
            Self::Crashed => "crashed",
            Self::Config => "config",
            Self::Ledger => "ledger",
            Self::Stopping => "stopping",
            Self::Bus => "bus",
            Self::NotFound => "not-found",
            Self::NotReady => "not-ready",
            Self::Busy => "busy",
            Self::QueueFull => "queue-full",
            Self::Internal => "internal",
        }
    }

    /// Returns the code of a name; [`ErrorCode::Internal`] for a name that this version does not know.
    pub fn named(name: &str) -> Self {
        Self::ALL.into_iter().find(|code| code.name() == name).unwrap_or(Self::Internal)
    }
}

impl fmt::Display for ErrorCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl From<ErrorCode> for String {
    fn from(code: ErrorCode) -> Self {
        code.name().to_owned()
    }
}

impl From<String> for ErrorCode {
    fn from(name: String) -> Self {
        Self::named(&name)
    }
}

/// An error that a setting is out of range or conflicts with another one. The text says which one, its value, and what
/// would do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct InvalidSetting(pub String);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_written_by_their_names_and_read_again() -> serde_json::Result<()> {
        for code in ErrorCode::ALL {
            let text = serde_json::to_string(&code)?;
            assert_eq!(text, format!("\"{code}\""));
            assert_eq!(serde_json::from_str::<ErrorCode>(&text)?, code);
        }
        assert_eq!(serde_json::from_str::<ErrorCode>("\"from-a-later-version\"")?, ErrorCode::Internal);
        Ok(())
    }

    #[test]
    fn names_do_not_change() {
        // Programs, ledgers and engines of other versions rely on these names.
        let names = ErrorCode::ALL.map(ErrorCode::name).join(" ");
        assert_eq!(
            names,
            "invalid-image invalid-setting model memory output device file canceled crashed config ledger stopping bus \
             not-found not-ready busy queue-full internal"
        );
    }
}
