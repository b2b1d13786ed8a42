//! How long work reports how far it is, and is told to stop.

pub use animd_protocol::progress::{Costs, Progress, Stage};

/// What long work calls: it reports, and asks whether to go on.
pub trait Observer: Sync {
    /// Called at every change that a person could see.
    fn progress(&self, progress: &Progress);

    /// The preview was written anew, for the `n`th time.
    fn preview(&self, _n: u32) {}

    /// True once the work shall stop; asked at least once in every block of the DiT.
    fn canceled(&self) -> bool {
        false
    }

    /// [`crate::Error::Canceled`] once the work shall stop.
    fn check(&self) -> crate::Result<()> {
        if self.canceled() { Err(crate::Error::Canceled) } else { Ok(()) }
    }
}

/// Reports nothing and never stops.
pub struct Quiet;

impl Observer for Quiet {
    fn progress(&self, _: &Progress) {}
}
