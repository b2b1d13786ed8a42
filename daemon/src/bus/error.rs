//! Errors that cross the bus: `org.animd.Animd1.Error.NAME`, with the remedy in the text.

/// What a call is answered with when it cannot be served.
#[derive(Debug, zbus::DBusError)]
#[zbus(prefix = "org.animd.Animd1.Error")]
pub enum BusError {
    /// Of the bus itself.
    #[zbus(error)]
    ZBus(zbus::Error),
    /// The picture cannot be used.
    InvalidImage(String),
    /// An option that does not exist; the text names the nearest one.
    UnknownOption(String),
    /// An option's value is of the wrong type or out of its range.
    InvalidOption(String),
    /// There is no such job, or no such file any more.
    NotFound(String),
    /// The caller may not do this.
    NotAuthorized(String),
    /// The job is not that far.
    NotReady(String),
    /// The caller has as many open jobs as one user may have.
    QueueFull(String),
    /// A fault of the service's own.
    Internal(String),
}

impl From<crate::Error> for BusError {
    fn from(e: crate::Error) -> Self {
        let text = e.to_string();
        match e.code() {
            "invalid-image" => Self::InvalidImage(text),
            "invalid-setting" => Self::InvalidOption(text),
            "not-found" => Self::NotFound(text),
            "not-ready" | "busy" => Self::NotReady(text),
            "queue-full" => Self::QueueFull(text),
            _ => Self::Internal(text),
        }
    }
}
