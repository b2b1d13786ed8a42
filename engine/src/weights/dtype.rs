//! What a number in a model file is.

use half::{bf16, f16};
use rayon::prelude::*;

use super::e4m3;

/// The types that tensors have in model files.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DType {
    /// 32-bit float.
    F32,
    /// 16-bit float.
    F16,
    /// Brain float.
    Bf16,
    /// 8-bit float, 4 bits of exponent, 3 of mantissa, no infinities (`float8_e4m3fn`).
    F8E4m3,
}

impl DType {
    /// Bytes of one value.
    pub fn size(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::Bf16 => 2,
            Self::F8E4m3 => 1,
        }
    }

    /// The name in safetensors headers: `F32`, `F16`, `BF16`, `F8_E4M3`.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "F32",
            Self::F16 => "F16",
            Self::Bf16 => "BF16",
            Self::F8E4m3 => "F8_E4M3",
        }
    }

    /// The type of a safetensors name, if the engine reads it.
    pub fn from_name(name: &str) -> Option<Self> {
        [Self::F32, Self::F16, Self::Bf16, Self::F8E4m3].into_iter().find(|d| d.name() == name)
    }
}

/// Values that one thread converts at a time.
const CHUNK: usize = 1 << 16;

/// Little-endian values of a type as f32, exactly.
pub(crate) fn to_f32(dtype: DType, bytes: &[u8]) -> Vec<f32> {
    let mut out = vec![0.0; bytes.len() / dtype.size()];
    out.par_chunks_mut(CHUNK).zip(bytes.par_chunks(CHUNK * dtype.size())).for_each(
        |(out, bytes)| match dtype {
            DType::F32 => decode(out, bytes, f32::from_le_bytes),
            DType::F16 => decode(out, bytes, |b| f16::from_le_bytes(b).to_f32()),
            DType::Bf16 => decode(out, bytes, |b| bf16::from_le_bytes(b).to_f32()),
            DType::F8E4m3 => {
                let table = e4m3::table();
                decode(out, bytes, |[b]: [u8; 1]| table[b as usize]);
            }
        },
    );
    out
}

fn decode<const N: usize>(out: &mut [f32], bytes: &[u8], f: impl Fn([u8; N]) -> f32) {
    let (chunks, _) = bytes.as_chunks::<N>();
    for (o, b) in out.iter_mut().zip(chunks) {
        *o = f(*b);
    }
}
