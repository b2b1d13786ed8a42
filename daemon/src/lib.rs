//! animd, the service: a durable queue between watched folders, the message bus and the engine.
//!
//! It never touches CUDA: [`supervisor`] keeps an engine process as its child and feeds it one job at a time.
//! [`ledger`] is the queue and the log; [`delivery`] says how a job ends exactly once.

pub mod animctl;
pub mod board;
pub mod bus;
pub mod cli;
pub mod client;
pub mod config;
pub mod delivery;
pub mod docs;
pub mod doctor;
pub mod engine;
pub mod error;
pub mod files;
pub mod gpu;
pub mod holds;
pub mod keys;
pub mod ledger;
pub mod log;
pub mod logind;
pub mod metrics;
pub mod picture;
pub mod pictures;
pub mod places;
pub mod plan;
pub mod profile;
pub mod reload;
pub mod report;
pub mod retention;
pub mod service;
pub mod spool;
pub mod supervisor;
pub mod text;
pub mod user_watch;
pub mod verbs;
pub mod watch;
pub mod wishes;
pub mod words;

pub use error::{Error, Result};
