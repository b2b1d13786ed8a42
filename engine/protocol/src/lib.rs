//! What the service and its engine agree on: what a model is ([`recipe`]), what may be asked for ([`request`]), how a
//! machine runs the model ([`profile`]), what that will cost ([`plan`]), how far it is ([`progress`]) and how the two processes say so
//! ([`messages`]).
//!
//! Plain data and arithmetic: nothing here knows a tensor library, a GPU, D-Bus or SQLite.

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
pub use limits::limits;
