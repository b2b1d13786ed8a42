//! Watched folders: a picture that is complete becomes a job, with what its sidecar and its folder say.
//!
//! A [`Folder`](animd_common::watch::Folder) looks at one folder with everything below it and hands complete pictures to
//! an [`Intake`], which queues them.

mod folders;
mod intake;

pub use folders::Folders;
pub use intake::Intake;
