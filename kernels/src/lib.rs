//! CUDA kernels and their launchers. This crate knows nothing of models.
//!
//! The kernels are CUDA C++ under `cuda/`, architecture first: `sm90` for Hopper, `sm80` for Ampere, Ada and what is newer
//! than Hopper, `sm89` for what Ampere does not have, `any` for what needs none of these. With the feature `cuda` the
//! kernels are compiled and embedded, and [`cuda`] launches them through the driver's library, which is opened at run
//! time: a program with this feature starts on a machine without a driver, too. Without the feature the crate has only
//! [`support`] and a few names.
//!
//! With the feature `emulator` the kernels are compiled for the CPU instead, to be tested without a GPU.
//!
//! `NOTES.md` has the arithmetic of each kernel and the measurements.

mod code;
#[cfg(feature = "cuda")]
pub mod cuda;
mod target;
mod vocabulary;

pub use target::{Family, Native, Support, native, ptx, support};
pub use vocabulary::{Activation, Spatial, Time};
