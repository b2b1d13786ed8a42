//! The bus interfaces as a client sees them.

pub use animd_client::*;
