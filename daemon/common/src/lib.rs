//! What animd, animctl and animd-watch share: the configuration, safe file operations, picture headers, watched
//! folders, text for people, and the interfaces to the bus and systemd.

pub mod bus;
pub mod clock;
pub mod config;
mod error;
pub mod files;
pub mod home;
pub mod keys;
pub mod log;
pub mod loras;
pub mod memory;
pub mod models;
pub mod notify;
pub mod picture;
pub mod places;
pub mod profiles;
pub mod tasks;
pub mod text;
pub mod users;
pub mod watch;
pub mod words;

pub use error::{Error, Result};
