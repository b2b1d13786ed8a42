//! The types of numbers that safetensors and torch know, by the names that safetensors gives them.

use half::{bf16, f16};
use rayon::prelude::*;

use super::e4m3;

/// The type of a number in a model file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DType {
    /// 64-bit float.
    F64,
    /// 32-bit float.
    F32,
    /// 16-bit float.
    F16,
    /// Brain float (bf16).
    Bf16,
    /// 8-bit float, 4 bits of exponent, 3 of mantissa, no infinities (`float8_e4m3fn`).
    F8E4m3,
    /// 8-bit float, 5 bits of exponent, 2 of mantissa: the upper half of a 16-bit float.
    F8E5m2,
    /// An exponent alone, a power of two: the scales of microscaling formats.
    F8E8m0,
    /// 4-bit float, 2 bits of exponent, 1 of mantissa; the first of two in a byte has the lower half.
    F4E2m1,
    /// 64-bit signed integer.
    I64,
    /// 32-bit signed integer.
    I32,
    /// 16-bit signed integer.
    I16,
    /// 8-bit signed integer.
    I8,
    /// 64-bit unsigned integer.
    U64,
    /// 32-bit unsigned integer.
    U32,
    /// 16-bit unsigned integer.
    U16,
    /// 8-bit unsigned integer.
    U8,
    /// A truth value, one byte.
    Bool,
}

impl DType {
    /// All types.
    pub const ALL: [Self; 17] = [
        Self::F64,
        Self::F32,
        Self::F16,
        Self::Bf16,
        Self::F8E4m3,
        Self::F8E5m2,
        Self::F8E8m0,
        Self::F4E2m1,
        Self::I64,
        Self::I32,
        Self::I16,
        Self::I8,
        Self::U64,
        Self::U32,
        Self::U16,
        Self::U8,
        Self::Bool,
    ];

    /// Returns the name in safetensors headers: `F32`, `BF16`, `F8_E4M3`.
    pub fn name(self) -> &'static str {
        match self {
            Self::F64 => "F64",
            Self::F32 => "F32",
            Self::F16 => "F16",
            Self::Bf16 => "BF16",
            Self::F8E4m3 => "F8_E4M3",
            Self::F8E5m2 => "F8_E5M2",
            Self::F8E8m0 => "F8_E8M0",
            Self::F4E2m1 => "F4",
            Self::I64 => "I64",
            Self::I32 => "I32",
            Self::I16 => "I16",
            Self::I8 => "I8",
            Self::U64 => "U64",
            Self::U32 => "U32",
            Self::U16 => "U16",
            Self::U8 => "U8",
            Self::Bool => "BOOL",
        }
    }

    /// Returns the type with this safetensors name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|dtype| dtype.name() == name)
    }

    /// Returns the number of bits of one number.
    pub fn bits(self) -> usize {
        match self {
            Self::F64 | Self::I64 | Self::U64 => 64,
            Self::F32 | Self::I32 | Self::U32 => 32,
            Self::F16 | Self::Bf16 | Self::I16 | Self::U16 => 16,
            Self::F8E4m3 | Self::F8E5m2 | Self::F8E8m0 | Self::I8 | Self::U8 | Self::Bool => 8,
            Self::F4E2m1 => 4,
        }
    }

    /// Returns the bytes that `count` numbers take; the last byte may be half filled.
    pub fn bytes(self, count: usize) -> usize {
        (count * self.bits()).div_ceil(8)
    }

    /// Returns whether a tensor of this type needs no scale in any model: the type is F32, F16 or BF16.
    pub fn is_plain_float(self) -> bool {
        matches!(self, Self::F32 | Self::F16 | Self::Bf16)
    }
}

/// The number of bytes that one thread decodes at a time: a whole number of values of every type.
const CHUNK: usize = 1 << 17;

/// Converts little-endian numbers of a type to f32. This is exact except for numbers of more than 24 bits, which are
/// rounded.
pub(super) fn to_f32(dtype: DType, bytes: &[u8]) -> Vec<f32> {
    let mut out = vec![0.0; bytes.len() * 8 / dtype.bits()];
    out.par_chunks_mut(CHUNK * 8 / dtype.bits())
        .zip(bytes.par_chunks(CHUNK))
        .for_each(|(out, bytes)| decode_as(dtype, out, bytes));
    out
}

fn decode_as(dtype: DType, out: &mut [f32], bytes: &[u8]) {
    match dtype {
        DType::F64 => decode(out, bytes, |b| f64::from_le_bytes(b) as f32),
        DType::F32 => decode(out, bytes, f32::from_le_bytes),
        DType::F16 => decode(out, bytes, |b| f16::from_le_bytes(b).to_f32()),
        DType::Bf16 => decode(out, bytes, |b| bf16::from_le_bytes(b).to_f32()),
        DType::F8E4m3 => {
            let table = e4m3::table();
            decode(out, bytes, |[b]: [u8; 1]| table[b as usize]);
        }
        DType::F8E5m2 => decode(out, bytes, |[b]: [u8; 1]| f16::from_bits(u16::from(b) << 8).to_f32()),
        DType::F8E8m0 => decode(out, bytes, |[b]: [u8; 1]| match b {
            0xff => f32::NAN,
            exponent => f32::exp2(f32::from(exponent) - 127.0),
        }),
        DType::F4E2m1 => {
            for (pair, byte) in out.chunks_mut(2).zip(bytes) {
                for (value, code) in pair.iter_mut().zip([byte & 0xf, byte >> 4]) {
                    *value = e2m1(code);
                }
            }
        }
        DType::I64 => decode(out, bytes, |b| i64::from_le_bytes(b) as f32),
        DType::I32 => decode(out, bytes, |b| i32::from_le_bytes(b) as f32),
        DType::I16 => decode(out, bytes, |b| i16::from_le_bytes(b).into()),
        DType::I8 => decode(out, bytes, |b| i8::from_le_bytes(b).into()),
        DType::U64 => decode(out, bytes, |b| u64::from_le_bytes(b) as f32),
        DType::U32 => decode(out, bytes, |b| u32::from_le_bytes(b) as f32),
        DType::U16 => decode(out, bytes, |b| u16::from_le_bytes(b).into()),
        DType::U8 => decode(out, bytes, |b| u8::from_le_bytes(b).into()),
        DType::Bool => decode(out, bytes, |[b]: [u8; 1]| f32::from(b != 0)),
    }
}

fn decode<const N: usize>(out: &mut [f32], bytes: &[u8], f: impl Fn([u8; N]) -> f32) {
    let (chunks, _) = bytes.as_chunks::<N>();
    for (o, b) in out.iter_mut().zip(chunks) {
        *o = f(*b);
    }
}

/// Returns the value of a 4-bit float.
fn e2m1(code: u8) -> f32 {
    const MAGNITUDES: [f32; 8] = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0];
    let magnitude = MAGNITUDES[usize::from(code & 7)];
    if code & 8 == 0 { magnitude } else { -magnitude }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_sizes_are_those_of_safetensors() {
        for dtype in DType::ALL {
            assert_eq!(DType::from_name(dtype.name()), Some(dtype));
            let theirs: safetensors::Dtype =
                serde_json::from_value(dtype.name().into()).expect("a type of the format");
            assert_eq!(theirs.bitsize(), dtype.bits(), "{}", dtype.name());
        }
        assert_eq!(DType::from_name("F3"), None);
        assert_eq!((DType::Bf16.bytes(3), DType::F4E2m1.bytes(3)), (6, 2));
    }

    #[test]
    fn numbers_of_every_type_are_read() {
        let cases: [(DType, &[u8], &[f32]); 17] = [
            (DType::F64, &(-2.5f64).to_le_bytes(), &[-2.5]),
            (DType::F32, &[0, 0, 0x80, 0x3f, 0, 0, 0, 0xc0], &[1.0, -2.0]),
            (DType::F16, &[0, 0x3c, 0, 0xc0], &[1.0, -2.0]),
            (DType::Bf16, &[0x80, 0x3f, 0, 0xc0], &[1.0, -2.0]),
            (DType::F8E4m3, &[0x38, 0xc0, 0x7e], &[1.0, -2.0, 448.0]),
            (DType::F8E5m2, &[0x3c, 0xc0, 0x7b, 0x7c], &[1.0, -2.0, 57_344.0, f32::INFINITY]),
            (DType::F8E8m0, &[127, 128, 120], &[1.0, 2.0, 1.0 / 128.0]),
            (DType::F4E2m1, &[0x21, 0xf7, 0x8b], &[0.5, 1.0, 6.0, -6.0, -1.5, 0.0]),
            (DType::I64, &(-5i64).to_le_bytes(), &[-5.0]),
            (DType::I32, &70_000i32.to_le_bytes(), &[70_000.0]),
            (DType::I16, &(-300i16).to_le_bytes(), &[-300.0]),
            (DType::I8, &[0x80, 127, 0], &[-128.0, 127.0, 0.0]),
            (DType::U64, &5u64.to_le_bytes(), &[5.0]),
            (DType::U32, &70_000u32.to_le_bytes(), &[70_000.0]),
            (DType::U16, &60_000u16.to_le_bytes(), &[60_000.0]),
            (DType::U8, &[0x80, 255], &[128.0, 255.0]),
            (DType::Bool, &[0, 1], &[0.0, 1.0]),
        ];
        for (dtype, bytes, values) in cases {
            assert_eq!(to_f32(dtype, bytes), values, "{}", dtype.name());
        }
        assert!(to_f32(DType::F8E8m0, &[255])[0].is_nan());
    }

    #[test]
    fn long_tensors_are_read_in_order() {
        let numbers: Vec<u16> = (0..3 * CHUNK as u32).map(|i| (i * 31) as u16).collect();
        let bytes: Vec<u8> = numbers.iter().flat_map(|n| n.to_le_bytes()).collect();
        let expected: Vec<f32> = numbers.iter().map(|n| f32::from(*n)).collect();
        assert_eq!(to_f32(DType::U16, &bytes), expected);
        let halves: Vec<u8> = (0..2 * CHUNK + 3).map(|i| (i * 7) as u8).collect();
        let expected: Vec<f32> = halves.iter().flat_map(|b| [e2m1(b & 0xf), e2m1(b >> 4)]).collect();
        assert_eq!(to_f32(DType::F4E2m1, &halves), expected);
    }
}
