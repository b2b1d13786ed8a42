//! `animctl`, the client of animd's bus interface, as a library for its program and its manual page.

pub mod doctor;
pub mod report;
mod tar;
mod verbs;

pub use verbs::{Exit, command, main};
