//! The contract between the service and its engine: what a model is ([`recipe`]), what a user may ask for
//! ([`request`]), how a machine runs the model ([`profile`]), what that will cost ([`plan`]), how far a job has come
//! ([`progress`]) and which messages the two processes exchange ([`messages`]).
//!
//! The crate is plain data and arithmetic: it knows no tensor library, no GPU, no D-Bus and no SQLite.

mod capability;
mod defaults;
pub mod dims;
mod error;
mod limits;
pub mod messages;
pub mod plan;
pub mod profile;
pub mod progress;
pub mod recipe;
pub mod request;
pub mod schedule;
mod size;
pub mod step_cache;

pub use error::{ErrorCode, InvalidSetting};
pub use limits::{limits, missing};
