//! The contract between the service and its engine: what a model is ([`recipe`]), what a user may ask for
//! ([`request`]), how a machine runs the model ([`profile`]), what that will cost ([`plan`]), how far a job has come
//! ([`progress`]) and which messages the two processes exchange ([`messages`]).
//!
//! The crate is plain data and arithmetic: it knows no tensor library, no GPU, no D-Bus and no SQLite.

mod capability;
mod defaults;
pub mod dims;
mod error;
pub mod expert;
pub mod findings;
pub mod given;
pub mod lora;
pub mod lora_files;
pub mod messages;
mod missing;
mod mistake;
pub mod model_file;
pub mod model_settings;
pub mod nearest;
pub mod parts;
pub mod plan;
pub mod profile;
pub mod progress;
mod ranges;
pub mod recipe;
pub mod request;
pub mod schedule;
mod size;
pub mod sources;
pub mod step_cache;
pub mod tiles;

pub use error::{ErrorCode, InvalidSetting};
pub use missing::missing;
pub use mistake::Mistake;
