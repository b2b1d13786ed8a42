//! How long-running work reports its progress, and learns that it should stop.

pub use animd_protocol::progress::{Costs, Progress, Stage};

/// The observer of long-running work: it takes reports, and says whether to continue.
pub trait Observer: Sync {
    /// Called at every change that a person could see.
    fn progress(&self, progress: &Progress);

    /// Called after the `n`th write of the preview.
    fn preview(&self, _n: u32) {}

    /// Returns true once the work should stop. The work calls this at least once in every block of the DiT.
    fn canceled(&self) -> bool {
        false
    }

    /// Returns [`crate::Error::Canceled`] once the work should stop.
    fn check(&self) -> crate::Result<()> {
        if self.canceled() { Err(crate::Error::Canceled) } else { Ok(()) }
    }
}

/// An observer that reports nothing and never stops the work.
pub struct Quiet;

impl Observer for Quiet {
    fn progress(&self, _: &Progress) {}
}
