//! Wan2.1 image-to-video: a picture and a line of text become frames, and frames become an H.264 file.
//!
//! The engine knows nothing of D-Bus services, watched folders or SQLite. With default features off, only what the
//! daemon needs is left: [`request`], [`profile`], [`plan`] and [`protocol`].

pub mod dims;
pub mod error;
#[cfg(all(test, feature = "inference"))]
mod goldens;
pub mod plan;
pub mod profile;
pub mod progress;
pub mod protocol;
pub mod request;
pub mod step_cache;

#[cfg(feature = "inference")]
pub mod backend;
#[cfg(feature = "inference")]
pub mod bench;
#[cfg(feature = "inference")]
pub mod image;
#[cfg(feature = "inference")]
pub mod inspect;
#[cfg(feature = "inference")]
pub mod model;
#[cfg(feature = "inference")]
pub mod noise;
#[cfg(feature = "inference")]
pub mod pipeline;
#[cfg(feature = "inference")]
pub mod sampler;
#[cfg(feature = "inference")]
pub mod synth;
#[cfg(feature = "inference")]
pub mod text;
#[cfg(feature = "inference")]
pub mod video;
#[cfg(feature = "inference")]
pub mod weights;

pub use error::{Error, Result};
