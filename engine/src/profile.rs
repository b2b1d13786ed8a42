//! The contract's profiles, under the names that the backends know.

pub use animd_protocol::profile::*;
pub use animd_protocol::profile::{Precision as Weights, Precisions as Precision};
