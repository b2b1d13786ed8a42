//! Watched folders: a picture that is complete becomes a job, with what its sidecar and its folder say.
//!
//! There is no list of files that were seen: what lies in a folder is what is to do. A picture is complete when it was
//! moved in, or closed after writing, and has then lain unchanged, with its sidecar, for the configured time.
//!
//! [`Folder`] looks at one folder with everything below it and hands complete pictures to a [`Take`]: the service's
//! [`Intake`] queues them, and `animd-watch` sends them over the bus.

pub mod access;
pub mod away;
mod events;
pub mod folder;
mod folders;
mod intake;
pub mod mounts;
pub mod names;
pub mod root;
pub mod sidecar;
pub mod watches;

pub use folder::{Fate, Folder, Options, Ready, Report, Take};
pub use folders::Folders;
pub use intake::{Intake, draw_seed};
pub use watches::{Origin, Watched, Watches};
