//! The bus interface of animd for other programs: send a picture, watch its job, fetch the video.
//!
//! `org.animd.Animd1.xml`, which comes with animd, says what each method, option and error means.
//!
//! ```no_run
//! use std::collections::HashMap;
//! use std::fs::File;
//! use std::os::fd::{AsFd, OwnedFd};
//!
//! use animd_client::{JobProxy, ManagerProxy, has_ended};
//! use zbus::proxy::CacheProperties;
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let bus = zbus::Connection::system().await?;
//! let manager = ManagerProxy::new(&bus).await?;
//!
//! // `keep`: the video is ours to fetch, and is not put into animd's outbox.
//! let picture = File::open("photo.jpg")?;
//! let options = HashMap::from([("prompt", "The waves roll in".into()), ("keep", "caller".into())]);
//! let path = manager.submit(picture.as_fd().into(), options).await?;
//!
//! let job = JobProxy::builder(&bus).path(path).cache_properties(CacheProperties::No).build().await?;
//! while !has_ended(&job.state().await?) {
//!     println!("{:3.0} %", 100.0 * job.progress().await?);
//!     tokio::time::sleep(std::time::Duration::from_secs(1)).await;
//! }
//! // Of a job that failed this is the job's error, in words.
//! let mut video = File::from(OwnedFd::from(job.open_result().await?));
//! std::io::copy(&mut video, &mut File::create_new("photo.mp4")?)?;
//! job.collected().await?;
//! # Ok(())
//! # }
//! ```

use std::collections::HashMap;

use zbus::{Fd, OwnedFd, OwnedObjectPath, OwnedVariant, Variant, proxy};

/// The name on the bus.
pub const NAME: &str = "org.animd.Animd1";
/// The manager's path.
pub const PATH: &str = "/org/animd/Animd1";
/// The common prefix of the names of animd's errors.
pub const ERRORS: &str = "org.animd.Animd1.Error.";

/// Options of a call, by name.
pub type Options<'a> = HashMap<&'a str, Variant<'a>>;
/// Facts, by name.
pub type Dict = HashMap<String, OwnedVariant>;

/// Returns whether a job in this state has ended.
pub fn has_ended(state: &str) -> bool {
    ["done", "failed", "canceled"].contains(&state)
}

/// Returns the number in a job's path.
pub fn id_of(path: &zbus::ObjectPath<'_>) -> Option<u64> {
    path.as_str().strip_prefix(PATH)?.strip_prefix("/job/")?.parse().ok()
}

/// Returns the name of an error of animd's without the common prefix, such as `QueueFull`. `None` for any other error.
pub fn error_name(error: &zbus::Error) -> Option<&str> {
    match error {
        zbus::Error::MethodError(name, ..) => name.as_str().strip_prefix(ERRORS),
        _ => None,
    }
}

/// The manager: takes pictures, lists jobs, and says what animd is doing.
#[proxy(
    interface = "org.animd.Animd1.Manager",
    default_service = "org.animd.Animd1",
    default_path = "/org/animd/Animd1"
)]
pub trait Manager {
    /// Submits an open picture. The option `last` is a descriptor of the picture that the video ends at.
    #[zbus(allow_interactive_auth)]
    fn submit(&self, image: Fd<'_>, options: Options<'_>) -> zbus::Result<OwnedObjectPath>;
    /// Submits a picture in a watched folder.
    #[zbus(allow_interactive_auth)]
    fn submit_path(&self, path: &str, options: Options<'_>) -> zbus::Result<OwnedObjectPath>;
    /// Returns what a submission with these options would take.
    fn plan(&self, options: Options<'_>) -> zbus::Result<Dict>;
    /// Returns the object of a job.
    fn get_job(&self, id: u64) -> zbus::Result<OwnedObjectPath>;
    /// Returns public facts of jobs, the newest first.
    fn list(&self, filter: Options<'_>) -> zbus::Result<Vec<Dict>>;
    /// Returns everything about the jobs that the caller may see, the newest first.
    #[zbus(allow_interactive_auth)]
    fn history(&self, filter: Options<'_>) -> zbus::Result<Vec<Dict>>;
    /// Returns sums over the ended jobs that the caller may see.
    #[zbus(allow_interactive_auth)]
    fn statistics(&self, options: Options<'_>) -> zbus::Result<Vec<Dict>>;
    /// Returns how a job went: its events, stages and steps, and what the GPU did meanwhile.
    #[zbus(allow_interactive_auth)]
    fn timeline(&self, id: u64) -> zbus::Result<Dict>;
    /// Keeps the model in memory (`warm`) or the queue from starting jobs (`pause`) until the descriptor is closed.
    #[zbus(allow_interactive_auth)]
    fn inhibit(&self, what: &str, who: &str, why: &str) -> zbus::Result<OwnedFd>;
    /// Pauses the queue, also across restarts.
    #[zbus(allow_interactive_auth)]
    fn pause(&self) -> zbus::Result<()>;
    /// Continues the queue.
    #[zbus(allow_interactive_auth)]
    fn resume(&self) -> zbus::Result<()>;
    /// Frees the model's memory now.
    #[zbus(allow_interactive_auth)]
    fn unload(&self) -> zbus::Result<()>;
    /// Returns all profiles.
    fn profiles(&self) -> zbus::Result<Vec<Dict>>;
    /// Watches one more folder.
    #[zbus(allow_interactive_auth)]
    fn add_watch(&self, path: &str, options: Options<'_>) -> zbus::Result<()>;
    /// Stops watching a folder.
    #[zbus(allow_interactive_auth)]
    fn remove_watch(&self, path: &str) -> zbus::Result<()>;
    /// Returns the watched folders.
    #[zbus(allow_interactive_auth)]
    fn watches(&self) -> zbus::Result<Vec<Dict>>;
    /// Reads the configuration again.
    #[zbus(allow_interactive_auth)]
    fn reload(&self) -> zbus::Result<()>;
    /// Sent when a job is added.
    #[zbus(signal)]
    fn job_new(&self, id: u64, job: zbus::ObjectPath<'_>) -> zbus::Result<()>;
    /// Sent when a job has ended.
    #[zbus(signal)]
    fn job_removed(&self, id: u64, job: zbus::ObjectPath<'_>, result: &str) -> zbus::Result<()>;
    /// Returns the service's version.
    #[zbus(property(emits_changed_signal = "const"))]
    fn version(&self) -> zbus::Result<String>;
    /// Returns the service's state.
    #[zbus(property)]
    fn state(&self) -> zbus::Result<String>;
    /// Returns the state as a sentence.
    #[zbus(property)]
    fn state_text(&self) -> zbus::Result<String>;
    /// Returns the profile in use.
    #[zbus(property)]
    fn profile(&self) -> zbus::Result<String>;
    /// Returns the GPU in use; empty without one.
    #[zbus(property)]
    fn gpu(&self) -> zbus::Result<Dict>;
    /// Returns how many jobs wait.
    #[zbus(property)]
    fn queued(&self) -> zbus::Result<u32>;
    /// Returns whether somebody has paused the queue.
    #[zbus(property)]
    fn paused(&self) -> zbus::Result<bool>;
}

/// A job.
#[proxy(interface = "org.animd.Animd1.Job", default_service = "org.animd.Animd1")]
pub trait Job {
    /// Cancels the job; a running job ends a little later.
    #[zbus(allow_interactive_auth)]
    fn cancel(&self) -> zbus::Result<()>;
    /// Returns everything about the job.
    #[zbus(allow_interactive_auth)]
    fn describe(&self) -> zbus::Result<Dict>;
    /// Returns the video, open for reading.
    #[zbus(allow_interactive_auth)]
    fn open_result(&self) -> zbus::Result<OwnedFd>;
    /// Returns a small picture of the video, a JPEG open for reading.
    #[zbus(allow_interactive_auth)]
    fn open_thumbnail(&self) -> zbus::Result<OwnedFd>;
    /// Returns a picture as large as the video, a JPEG open for reading; it is kept for some days.
    #[zbus(allow_interactive_auth)]
    fn open_poster(&self) -> zbus::Result<OwnedFd>;
    /// Returns a preview of the video, a JPEG open for reading.
    #[zbus(allow_interactive_auth)]
    fn open_preview(&self) -> zbus::Result<OwnedFd>;
    /// Changes the job's place in the queue.
    #[zbus(allow_interactive_auth)]
    fn set_priority(&self, priority: i32) -> zbus::Result<()>;
    /// Queues the job's picture once more.
    #[zbus(allow_interactive_auth)]
    fn retry(&self, options: Options<'_>) -> zbus::Result<OwnedObjectPath>;
    /// Deletes what animd knows of the job.
    #[zbus(allow_interactive_auth)]
    fn forget(&self) -> zbus::Result<()>;
    /// Tells animd that the caller has fetched the video that was kept for it.
    #[zbus(allow_interactive_auth)]
    fn collected(&self) -> zbus::Result<()>;
    /// Returns the job's number.
    #[zbus(property(emits_changed_signal = "const"))]
    fn id(&self) -> zbus::Result<u64>;
    /// Returns the user that the job belongs to.
    #[zbus(property(emits_changed_signal = "const"))]
    fn owner(&self) -> zbus::Result<u32>;
    /// Returns the job's state.
    #[zbus(property)]
    fn state(&self) -> zbus::Result<String>;
    /// Returns the stage under way.
    #[zbus(property)]
    fn stage(&self) -> zbus::Result<String>;
    /// Returns the denoising steps that are done, and their total.
    #[zbus(property)]
    fn step(&self) -> zbus::Result<(u32, u32)>;
    /// Returns the progress, from 0 to 1.
    #[zbus(property)]
    fn progress(&self) -> zbus::Result<f64>;
    /// Returns when the job is expected to end, in microseconds since the epoch; 0 while that is not known.
    #[zbus(property)]
    fn expected_end(&self) -> zbus::Result<u64>;
    /// Returns the job's place in the queue; no signal reports its changes.
    #[zbus(property(emits_changed_signal = "false"))]
    fn position(&self) -> zbus::Result<u32>;
    /// Returns the priority; the larger runs first.
    #[zbus(property)]
    fn priority(&self) -> zbus::Result<i32>;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_come_out_of_paths() -> zbus::Result<()> {
        let id = |path: &str| Ok::<_, zbus::Error>(id_of(&zbus::ObjectPath::try_from(path)?));
        assert_eq!(id("/org/animd/Animd1/job/42")?, Some(42));
        assert_eq!(id("/org/animd/Animd1/job")?, None);
        assert_eq!(id("/org/other/job/42")?, None);
        Ok(())
    }
}
