//! The engine against the reference ([`parity`]: every item of a fixture directory, with its error and its bound), and its
//! approximations against exact videos ([`quality`]).

pub mod parity;
pub mod quality;
