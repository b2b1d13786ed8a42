//! Watched folders, whoever watches them: a picture that is complete is handed over once.
//!
//! There is no list of files that were seen: what lies in a folder is what is to do. A picture is complete when it was
//! moved in, or closed after writing, and has then lain unchanged, with its sidecar, for the configured time. A taker for
//! which later words still count gets it earlier, if its head and its end are there.
//!
//! [`Folder`] looks at one folder with everything below it and hands complete pictures to a [`Take`]: the service
//! queues them, and `animd-watch` sends them over the bus.

pub mod access;
pub mod away;
mod events;
pub mod folder;
pub mod mounts;
pub mod names;
pub mod root;
pub mod sidecar;
pub mod watched;

pub use folder::{Fate, Folder, Options, Ready, Report, Take};
pub use watched::{Origin, Watched};
