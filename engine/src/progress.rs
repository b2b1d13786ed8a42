//! The interface through which long work reports its progress and is told to stop.

pub use animd_protocol::progress::{Costs, Progress, Stage};

/// The observer of long work: the work reports to it, and asks it whether to continue.
pub trait Observer: Sync {
    /// Receives the progress at every change that a user could see.
    fn progress(&self, progress: &Progress);

    /// Is called when the preview has been written for the `n`th time.
    fn preview(&self, _n: u32) {}

    /// Returns true once the work must stop; the work asks at least once in every block of the DiT.
    fn canceled(&self) -> bool {
        false
    }

    /// Returns [`crate::Error::Canceled`] once the work must stop.
    fn check(&self) -> crate::Result<()> {
        if self.canceled() { Err(crate::Error::Canceled) } else { Ok(()) }
    }
}

/// An observer that reports nothing and never stops the work.
pub struct Quiet;

impl Observer for Quiet {
    fn progress(&self, _: &Progress) {}
}
