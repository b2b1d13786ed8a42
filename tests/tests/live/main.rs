//! The service, its client and its watcher, each as a process of its own, on buses of their own. All tests are one
//! program, because each program would have to be linked, and because tests that wait leave time to others.

#![allow(
    clippy::unwrap_used,
    clippy::case_sensitive_file_extension_comparisons,
    clippy::needless_pass_by_value,
    clippy::used_underscore_binding,
    clippy::type_complexity,
    reason = "a test may panic and knows the names it gave, and the bus decides the shape of a mock"
)]

mod animctl;
mod bus;
mod bus_contract;
mod bus_hostile;
mod bus_neighbours;
mod bus_rights;
mod client;
#[path = "../common/mod.rs"]
mod common;
mod config;
mod crashes;
mod damage;
mod demo;
mod gpu;
mod harness;
mod inbox;
mod late;
mod loras;
mod models;
mod queue;
mod roots;
mod setup;
mod sleep;
mod text;
mod told;
mod torn;
mod troubles;
mod user_watch;
mod watch;
mod words;
