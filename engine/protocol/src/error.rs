//! What the contract's own checks refuse.

/// A setting is outside its range, or does not go with another one. The text says which one, its value, and what would do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct InvalidSetting(pub String);
