//! The models: what the DiT, its encoders and the VAE compute, written in the operations of [`crate::backend`].

pub mod vae;
