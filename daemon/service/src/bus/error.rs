//! The errors of the bus's methods: `org.animd.Animd1.Error.NAME`, with the remedy in the text.

use std::fmt;
use std::io::ErrorKind;

use animd_common::Error as Common;
use animd_common::text::Text;
use animd_protocol::ErrorCode;
use zbus::message::{Header, Message};
use zbus::names::ErrorName;

use crate::error::Error;
use crate::store::ledger::Job;

/// The error that answers a call which cannot be served.
#[derive(Debug)]
pub enum BusError {
    /// The picture cannot be used.
    InvalidImage(String),
    /// An option that does not exist; the text names the nearest one.
    UnknownOption(String),
    /// An option's value is of the wrong type or out of its range.
    InvalidOption(String),
    /// No GPU can do this.
    NoGpu(String),
    /// The model's files are missing.
    NoWeights(String),
    /// The work needs more memory than there is.
    NotEnoughMemory(String),
    /// The caller, or all users together, already have as many open jobs as they may have.
    QueueFull(String),
    /// The job's state does not allow this: it is too early, or too late.
    NotReady(String),
    /// The job does not exist, or its file no longer does.
    NotFound(String),
    /// The caller may not do this.
    NotAuthorized(String),
    /// Too much is being served; the same call may succeed a little later.
    Busy(String),
    /// The job was cancelled.
    Canceled(String),
    /// The service itself has failed.
    Internal(String),
}

/// This is written out, and not derived, so that every error's text is cleaned on its way to the bus.
impl zbus::DBusError for BusError {
    fn create_reply(&self, call: &Header<'_>) -> zbus::Result<Message> {
        Message::error(call, self.name()).build(&Text::from(self.text()).as_str())
    }

    fn name(&self) -> ErrorName<'_> {
        ErrorName::from_static_str_unchecked(match self {
            Self::InvalidImage(_) => "org.animd.Animd1.Error.InvalidImage",
            Self::UnknownOption(_) => "org.animd.Animd1.Error.UnknownOption",
            Self::InvalidOption(_) => "org.animd.Animd1.Error.InvalidOption",
            Self::NoGpu(_) => "org.animd.Animd1.Error.NoGpu",
            Self::NoWeights(_) => "org.animd.Animd1.Error.NoWeights",
            Self::NotEnoughMemory(_) => "org.animd.Animd1.Error.NotEnoughMemory",
            Self::QueueFull(_) => "org.animd.Animd1.Error.QueueFull",
            Self::NotReady(_) => "org.animd.Animd1.Error.NotReady",
            Self::NotFound(_) => "org.animd.Animd1.Error.NotFound",
            Self::NotAuthorized(_) => "org.animd.Animd1.Error.NotAuthorized",
            Self::Busy(_) => "org.animd.Animd1.Error.Busy",
            Self::Canceled(_) => "org.animd.Animd1.Error.Canceled",
            Self::Internal(_) => "org.animd.Animd1.Error.Internal",
        })
    }

    fn description(&self) -> Option<&str> {
        Some(self.text())
    }
}

impl fmt::Display for BusError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", zbus::DBusError::name(self), self.text())
    }
}

impl std::error::Error for BusError {}

impl BusError {
    /// Returns the error's sentence.
    fn text(&self) -> &str {
        match self {
            Self::InvalidImage(text)
            | Self::UnknownOption(text)
            | Self::InvalidOption(text)
            | Self::NoGpu(text)
            | Self::NoWeights(text)
            | Self::NotEnoughMemory(text)
            | Self::QueueFull(text)
            | Self::NotReady(text)
            | Self::NotFound(text)
            | Self::NotAuthorized(text)
            | Self::Busy(text)
            | Self::Canceled(text)
            | Self::Internal(text) => text,
        }
    }

    /// Returns the error for a code.
    pub fn of(code: ErrorCode, text: String) -> Self {
        match code {
            ErrorCode::InvalidImage => Self::InvalidImage(text),
            ErrorCode::InvalidSetting => Self::InvalidOption(text),
            ErrorCode::Device => Self::NoGpu(text),
            ErrorCode::Model => Self::NoWeights(text),
            ErrorCode::Memory => Self::NotEnoughMemory(text),
            ErrorCode::Canceled => Self::Canceled(text),
            ErrorCode::Stopping => Self::Busy("the service is stopping; call again when it is back".into()),
            ErrorCode::NotFound => Self::NotFound(text),
            ErrorCode::NotReady => Self::NotReady(text),
            ErrorCode::Busy => Self::Busy(text),
            ErrorCode::QueueFull => Self::QueueFull(text),
            ErrorCode::Output
            | ErrorCode::File
            | ErrorCode::Crashed
            | ErrorCode::Config
            | ErrorCode::Ledger
            | ErrorCode::Bus
            | ErrorCode::Internal => Self::Internal(text),
        }
    }

    /// Returns the error for a caller's file that cannot be read: the descriptor or the file is at fault, not the
    /// service.
    pub fn of_picture(e: Error) -> Self {
        match e {
            Error::Common(Common::File { action: "read" | "look at", source, .. }) => Self::InvalidImage(
                format!("the picture cannot be read: {source}; pass a regular file that is open for reading"),
            ),
            e => e.into(),
        }
    }

    /// Returns the error for a failed reload. A mistake in the configuration is its author's, not the service's.
    pub fn of_reload(e: Error) -> Self {
        match e {
            Error::Common(Common::Config(text)) => Self::InvalidOption(text),
            e => e.into(),
        }
    }

    /// Returns the error that says why an ended job has no video.
    pub fn of_job(job: &Job) -> Self {
        let code = job.error_code.as_deref().map_or(ErrorCode::Internal, ErrorCode::named);
        let text = job.error_text.as_deref().unwrap_or("no reason is known");
        Self::of(code, format!("job {} {}: {text}", job.id, job.state.name()))
    }

    /// Returns the error for a service that is stopping.
    pub fn stopping() -> Self {
        Error::STOPPING.into()
    }
}

/// The bus failed when it was asked on a caller's behalf.
impl From<zbus::Error> for BusError {
    fn from(e: zbus::Error) -> Self {
        Error::from(e).into()
    }
}

impl From<Error> for BusError {
    fn from(e: Error) -> Self {
        match &e {
            // A full disk is nobody's fault, and the same call can succeed when somebody has made room.
            Error::Common(Common::File { source, .. })
                if matches!(source.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded) =>
            {
                Self::Busy(e.to_string())
            }
            _ => Self::of(e.code(), e.to_string()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_disk_is_not_the_services_fault() {
        let write = |kind: ErrorKind| BusError::from(Error::file("write", "/spool/x")(kind.into()));
        assert!(matches!(write(ErrorKind::StorageFull), BusError::Busy(text) if text.contains("/spool/x")));
        assert!(matches!(write(ErrorKind::QuotaExceeded), BusError::Busy(_)));
        assert!(matches!(write(ErrorKind::PermissionDenied), BusError::Internal(_)));
    }

    #[test]
    fn only_a_wrong_configuration_is_a_wrong_option() {
        assert!(matches!(BusError::of_reload(Error::config("x")), BusError::InvalidOption(_)));
        assert!(matches!(BusError::of_reload(Error::STOPPING), BusError::Busy(_)));
        let unreadable = Error::file("read", "/etc/animd/animd.toml")(ErrorKind::InvalidData.into());
        assert!(matches!(BusError::of_reload(unreadable), BusError::Internal(_)));
    }
}
