//! The engine against the reference: every item of a fixture directory, with its error and its bound.

pub mod parity;
