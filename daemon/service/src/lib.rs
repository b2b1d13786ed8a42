//! animd, the service: a durable queue between watched folders, the message bus and the engine.
//!
//! It never touches CUDA: [`supervisor`] keeps an engine process as its child and feeds it one job at a time.
//! [`store::ledger`] is the queue and the log; [`delivery`] says how a job ends exactly once.

pub mod bus;
pub mod cli;
pub mod config;
pub mod delivery;
mod error;
pub mod events;
pub mod holds;
pub mod logind;
pub mod loras;
pub mod metrics;
pub mod plan;
pub mod queue;
pub mod recipes;
pub mod reload;
pub mod retention;
pub mod service;
pub mod store;
pub mod supervisor;
pub mod watch;

pub use error::{Error, Result};
