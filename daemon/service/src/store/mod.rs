//! What is kept on disk: the ledger, the spooled pictures, the pictures of videos, and which folders are watched.

pub mod ledger;
pub mod pictures;
pub mod spool;
pub mod watches;

pub use watches::Watches;
