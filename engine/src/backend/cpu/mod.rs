//! The reference backend: candle tensors in f32 on the CPU.

/// The reference backend.
pub struct Cpu;
