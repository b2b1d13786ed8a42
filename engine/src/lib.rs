//! Wan2.1 image-to-video: a picture and a line of text become frames, and frames become an H.264 file.
//!
//! The engine knows nothing of D-Bus services, watched folders or SQLite. What it shares with the daemon, which knows
//! them, is in [`animd_protocol`].

pub mod backend;
pub mod bench;
pub mod check;
pub mod error;
pub mod find;
mod finite;
#[cfg(test)]
mod goldens;
pub mod image;
pub mod inspect;
pub mod model;
pub mod noise;
pub mod pipeline;
pub mod progress;
pub mod sampler;
pub mod synth;
pub mod text;
pub mod verify;
pub mod video;
pub mod weights;

pub use error::{Error, Result};
