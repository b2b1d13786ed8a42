//! The 8-bit float `e4m3fn`: sign, 4 bits of exponent (bias 7), 3 of mantissa; no infinities, one NaN in either sign
//! (Micikevicius et al., "FP8 formats for deep learning", 2022).

use std::sync::LazyLock;

/// The largest finite value.
pub const MAX: f32 = 448.0;

static TABLE: LazyLock<[f32; 256]> = LazyLock::new(|| {
    std::array::from_fn(|i| {
        let bits = i as u8;
        let sign = if bits & 0x80 == 0 { 1.0 } else { -1.0 };
        let exponent = i32::from(bits >> 3 & 0xf);
        let mantissa = f32::from(bits & 7);
        match (exponent, bits & 7) {
            (15, 7) => f32::NAN,
            (0, _) => sign * mantissa * f32::exp2(-9.0),
            _ => sign * (1.0 + mantissa / 8.0) * f32::exp2((exponent - 7) as f32),
        }
    })
});

/// Returns the values of all 256 codes.
pub fn table() -> &'static [f32; 256] {
    &TABLE
}

/// Returns the value of a code; NaN for `0x7f` and `0xff`.
pub fn decode(code: u8) -> f32 {
    TABLE[code as usize]
}

/// Returns the nearest code, ties to the even one. A value beyond [`MAX`], infinities included, becomes `MAX` with its
/// sign; NaN stays NaN.
pub fn encode(value: f32) -> u8 {
    let bits = value.to_bits();
    let sign = (bits >> 24) as u8 & 0x80;
    let magnitude = f32::from_bits(bits & 0x7fff_ffff);
    let code = if magnitude.is_nan() {
        0x7f
    } else if magnitude >= MAX {
        0x7e
    } else if magnitude < f32::exp2(-6.0) {
        // Subnormals are multiples of 2^-9; eight of them make the code of the least normal number.
        (magnitude * 512.0).round_ties_even() as u8
    } else {
        // Round away the low 20 of 23 bits of the mantissa; a carry raises the exponent, which is what it should do.
        // Only values from 448 on could round to more than `MAX`.
        let bits = magnitude.to_bits();
        let rounded = bits + 0x7_ffff + (bits >> 20 & 1);
        ((rounded >> 20) - ((127 - 7) << 3)) as u8
    };
    sign | code
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_survives() {
        for code in 0..=255u8 {
            let value = decode(code);
            if value.is_nan() {
                assert_eq!(code & 0x7f, 0x7f);
                assert_eq!(encode(value) & 0x7f, 0x7f);
            } else {
                assert_eq!(encode(value), code, "{value}");
            }
        }
        assert_eq!((decode(0x7e), decode(0x08), decode(0x01)), (448.0, 1.0 / 64.0, 1.0 / 512.0));
    }

    #[test]
    fn between_two_codes_the_nearer_wins_and_ties_go_to_the_even_one() {
        for code in 0..0x7eu8 {
            let (low, high) = (decode(code), decode(code + 1));
            let middle = f32::midpoint(low, high); // exact: one more bit of mantissa
            let even = if code % 2 == 0 { code } else { code + 1 };
            for sign in [0, 0x80u8] {
                let s = if sign == 0 { 1.0 } else { -1.0 };
                assert_eq!(encode(s * middle), sign | even, "{middle}");
                assert_eq!(encode(s * middle.next_down()), sign | code, "{middle}");
                assert_eq!(encode(s * middle.next_up()), sign | (code + 1), "{middle}");
            }
        }
    }

    #[test]
    fn every_brain_float_gets_the_nearest_code() {
        for high in 0..=u16::MAX {
            let value = f32::from_bits(u32::from(high) << 16);
            let got = decode(encode(value));
            if value.is_nan() {
                assert!(got.is_nan());
                continue;
            }
            let nearest = table().iter().filter(|v| !v.is_nan()).map(|v| (v - value.clamp(-MAX, MAX)).abs());
            let least = nearest.fold(f32::INFINITY, f32::min);
            assert!((got - value.clamp(-MAX, MAX)).abs() <= least, "{value}");
        }
    }

    #[test]
    fn beyond_the_largest_saturates() {
        for value in [448.0, 463.9, 464.0, 1e9, f32::INFINITY] {
            assert_eq!((encode(value), encode(-value)), (0x7e, 0xfe));
        }
        assert_eq!((encode(0.0), encode(-0.0)), (0x00, 0x80));
    }
}
