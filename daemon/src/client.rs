//! The bus interfaces as a client sees them.

use std::collections::HashMap;

use zbus::{Fd, OwnedFd, OwnedObjectPath, OwnedVariant, Variant, proxy};

/// The manager: see [`crate::bus::Manager`].
#[proxy(
    interface = "org.animd.Animd1.Manager",
    default_service = "org.animd.Animd1",
    default_path = "/org/animd/Animd1"
)]
pub trait Manager {
    /// Submits an open picture.
    fn submit(&self, image: Fd<'_>, options: HashMap<&str, Variant<'_>>) -> zbus::Result<OwnedObjectPath>;
    /// Submits a picture in a watched folder.
    fn submit_path(&self, path: &str, options: HashMap<&str, Variant<'_>>) -> zbus::Result<OwnedObjectPath>;
    /// The object of a job.
    fn get_job(&self, id: u64) -> zbus::Result<OwnedObjectPath>;
    /// Public facts of jobs, the newest first.
    fn list(&self, filter: HashMap<&str, Variant<'_>>) -> zbus::Result<Vec<HashMap<String, OwnedVariant>>>;
    /// A job is new.
    #[zbus(signal)]
    fn job_new(&self, id: u64, job: zbus::ObjectPath<'_>) -> zbus::Result<()>;
    /// A job has ended.
    #[zbus(signal)]
    fn job_removed(&self, id: u64, job: zbus::ObjectPath<'_>, result: &str) -> zbus::Result<()>;
    /// The service's version.
    #[zbus(property)]
    fn version(&self) -> zbus::Result<String>;
    /// The service's state.
    #[zbus(property)]
    fn state(&self) -> zbus::Result<String>;
    /// The state as a sentence.
    #[zbus(property)]
    fn state_text(&self) -> zbus::Result<String>;
    /// Jobs that wait.
    #[zbus(property)]
    fn queued(&self) -> zbus::Result<u32>;
}

/// A job: see [`crate::bus::JobObject`].
#[proxy(interface = "org.animd.Animd1.Job", default_service = "org.animd.Animd1")]
pub trait Job {
    /// Cancels it; a running job ends a little later.
    fn cancel(&self) -> zbus::Result<()>;
    /// Everything about it.
    fn describe(&self) -> zbus::Result<HashMap<String, OwnedVariant>>;
    /// The video.
    fn open_result(&self) -> zbus::Result<OwnedFd>;
    /// The number.
    #[zbus(property)]
    fn id(&self) -> zbus::Result<u64>;
    /// Where it stands.
    #[zbus(property)]
    fn state(&self) -> zbus::Result<String>;
    /// The stage under way.
    #[zbus(property)]
    fn stage(&self) -> zbus::Result<String>;
    /// Denoising steps done and in all.
    #[zbus(property)]
    fn step(&self) -> zbus::Result<(u32, u32)>;
    /// 0 to 1.
    #[zbus(property)]
    fn progress(&self) -> zbus::Result<f64>;
    /// Microseconds since the epoch; 0 while not known.
    #[zbus(property)]
    fn expected_end(&self) -> zbus::Result<u64>;
    /// Place in the queue.
    #[zbus(property)]
    fn position(&self) -> zbus::Result<u32>;
}
