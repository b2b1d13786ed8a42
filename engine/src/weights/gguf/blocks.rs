//! The formats of blocks in which GGUF files store quantised rows, and how each is expanded
//! (<https://github.com/ggml-org/ggml>, `ggml-common.h`).
//!
//! A product of two scales is rounded before it is multiplied by a number, as the format's own programs do.

use half::f16;

use super::super::encoding::Packing;

/// 32 values: a scale and 4-bit numbers around 8.
pub(super) static Q4_0: Packing = Packing { name: "Q4_0", values: 32, bytes: 18, expand: q4_0 };
/// 32 values: a scale, a minimum and 4-bit numbers.
pub(super) static Q4_1: Packing = Packing { name: "Q4_1", values: 32, bytes: 20, expand: q4_1 };
/// 32 values: a scale and 5-bit numbers around 16.
pub(super) static Q5_0: Packing = Packing { name: "Q5_0", values: 32, bytes: 22, expand: q5_0 };
/// 32 values: a scale, a minimum and 5-bit numbers.
pub(super) static Q5_1: Packing = Packing { name: "Q5_1", values: 32, bytes: 24, expand: q5_1 };
/// 32 values: a scale and signed 8-bit numbers.
pub(super) static Q8_0: Packing = Packing { name: "Q8_0", values: 32, bytes: 34, expand: q8_0 };
/// 256 values in groups of 16, each with a 4-bit scale and a 4-bit minimum, and 2-bit numbers.
pub(super) static Q2_K: Packing = Packing { name: "Q2_K", values: 256, bytes: 84, expand: q2_k };
/// 256 values in groups of 16, each with a 6-bit scale, and 3-bit numbers around 4.
pub(super) static Q3_K: Packing = Packing { name: "Q3_K", values: 256, bytes: 110, expand: q3_k };
/// 256 values in groups of 32, each with a 6-bit scale and a 6-bit minimum, and 4-bit numbers.
pub(super) static Q4_K: Packing = Packing { name: "Q4_K", values: 256, bytes: 144, expand: q4_k };
/// 256 values in groups of 32, each with a 6-bit scale and a 6-bit minimum, and 5-bit numbers.
pub(super) static Q5_K: Packing = Packing { name: "Q5_K", values: 256, bytes: 176, expand: q5_k };
/// 256 values in groups of 16, each with a signed 8-bit scale, and 6-bit numbers around 32.
pub(super) static Q6_K: Packing = Packing { name: "Q6_K", values: 256, bytes: 210, expand: q6_k };

/// All formats of blocks.
#[cfg(test)]
pub(crate) const PACKINGS: [&Packing; 10] =
    [&Q4_0, &Q4_1, &Q5_0, &Q5_1, &Q8_0, &Q2_K, &Q3_K, &Q4_K, &Q5_K, &Q6_K];

/// Returns the half-precision number at an offset.
fn half_at(block: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([block[at], block[at + 1]]).to_f32()
}

fn signed(byte: u8) -> f32 {
    f32::from(byte.cast_signed())
}

fn q8_0(block: &[u8], values: &mut [f32]) {
    let d = half_at(block, 0);
    for (value, q) in values.iter_mut().zip(&block[2..]) {
        *value = d * signed(*q);
    }
}

/// Calls `f` with the index and the 4-bit number of each of 32 values: the low halves of 16 bytes, then their high
/// halves.
fn each_nibble(qs: &[u8], mut f: impl FnMut(usize, u8)) {
    for (j, byte) in qs.iter().enumerate() {
        f(j, byte & 15);
        f(j + 16, byte >> 4);
    }
}

fn q4_0(block: &[u8], values: &mut [f32]) {
    let d = half_at(block, 0);
    each_nibble(&block[2..18], |i, q| values[i] = d * (f32::from(q) - 8.0));
}

fn q4_1(block: &[u8], values: &mut [f32]) {
    let (d, m) = (half_at(block, 0), half_at(block, 2));
    each_nibble(&block[4..20], |i, q| values[i] = d * f32::from(q) + m);
}

/// Returns the fifth bit of a value's number, in its place.
fn fifth(qh: &[u8], i: usize) -> u8 {
    (qh[i / 8] >> (i % 8) & 1) << 4
}

fn q5_0(block: &[u8], values: &mut [f32]) {
    let d = half_at(block, 0);
    each_nibble(&block[6..22], |i, q| values[i] = d * (f32::from(q | fifth(&block[2..6], i)) - 16.0));
}

fn q5_1(block: &[u8], values: &mut [f32]) {
    let (d, m) = (half_at(block, 0), half_at(block, 2));
    each_nibble(&block[8..24], |i, q| values[i] = d * f32::from(q | fifth(&block[4..8], i)) + m);
}

/// Returns the place of a value among the 2-bit numbers of 64 bytes: the byte, and how far its bits are shifted.
fn pair(i: usize) -> (usize, usize) {
    let (half, quarter, l) = (i / 128, i / 32 % 4, i % 32);
    (32 * half + l, 2 * quarter)
}

fn q2_k(block: &[u8], values: &mut [f32]) {
    let (scales, qs) = (&block[..16], &block[16..80]);
    let (d, dmin) = (half_at(block, 80), half_at(block, 82));
    for (g, (group, scale)) in values.chunks_mut(16).zip(scales).enumerate() {
        let (step, least) = (d * f32::from(scale & 15), dmin * f32::from(scale >> 4));
        for (l, value) in group.iter_mut().enumerate() {
            let (byte, shift) = pair(16 * g + l);
            *value = step * f32::from(qs[byte] >> shift & 3) - least;
        }
    }
}

fn q3_k(block: &[u8], values: &mut [f32]) {
    let (high, qs, scales) = (&block[..32], &block[32..96], &block[96..108]);
    let d = half_at(block, 108);
    for (g, group) in values.chunks_mut(16).enumerate() {
        let low = scales[g % 8] >> (4 * (g / 8)) & 15;
        let top = scales[8 + g % 4] >> (2 * (g / 4)) & 3;
        let step = d * (f32::from(low | top << 4) - 32.0);
        for (l, value) in group.iter_mut().enumerate() {
            let i = 16 * g + l;
            let (byte, shift) = pair(i);
            let third = high[i % 32] >> (i / 32) & 1;
            *value = step * (f32::from(qs[byte] >> shift & 3 | third << 2) - 4.0);
        }
    }
}

/// Returns the scale and the minimum of one of eight groups, 6 bits each, from the 12 bytes that hold them.
fn six_bits(packed: &[u8], group: usize) -> (f32, f32) {
    let (scale, least) = if group < 4 {
        (packed[group] & 63, packed[group + 4] & 63)
    } else {
        let low = packed[group + 4];
        (low & 15 | packed[group - 4] >> 6 << 4, low >> 4 | packed[group] >> 6 << 4)
    };
    (f32::from(scale), f32::from(least))
}

fn q4_k(block: &[u8], values: &mut [f32]) {
    let (d, dmin) = (half_at(block, 0), half_at(block, 2));
    for (g, group) in values.chunks_mut(32).enumerate() {
        let (scale, least) = six_bits(&block[4..16], g);
        let (step, least) = (d * scale, dmin * least);
        for (value, byte) in group.iter_mut().zip(&block[16 + 32 * (g / 2)..]) {
            *value = step * f32::from(byte >> (4 * (g % 2)) & 15) - least;
        }
    }
}

fn q5_k(block: &[u8], values: &mut [f32]) {
    let (d, dmin) = (half_at(block, 0), half_at(block, 2));
    for (g, group) in values.chunks_mut(32).enumerate() {
        let (scale, least) = six_bits(&block[4..16], g);
        let (step, least) = (d * scale, dmin * least);
        let numbers = block[48 + 32 * (g / 2)..].iter().zip(&block[16..48]);
        for (value, (byte, high)) in group.iter_mut().zip(numbers) {
            let q = byte >> (4 * (g % 2)) & 15 | (high >> g & 1) << 4;
            *value = step * f32::from(q) - least;
        }
    }
}

fn q6_k(block: &[u8], values: &mut [f32]) {
    let (low, high, scales) = (&block[..128], &block[128..192], &block[192..208]);
    let d = half_at(block, 208);
    for (g, group) in values.chunks_mut(16).enumerate() {
        let step = d * signed(scales[g]);
        for (l, value) in group.iter_mut().enumerate() {
            let i = 16 * g + l;
            let (half, quarter, l) = (i / 128, i / 32 % 4, i % 32);
            let four = low[64 * half + 32 * (quarter % 2) + l] >> (4 * (quarter / 2)) & 15;
            let two = high[32 * half + l] >> (2 * quarter) & 3;
            *value = step * (f32::from(four | two << 4) - 32.0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values(packing: &Packing, block: &[u8]) -> Vec<f32> {
        assert_eq!(block.len(), packing.bytes, "{}", packing.name);
        let mut values = vec![f32::NAN; packing.values];
        (packing.expand)(block, &mut values);
        values
    }

    /// The half-precision 1, 2 and 0.5.
    const ONE: [u8; 2] = [0, 0x3c];
    const TWO: [u8; 2] = [0, 0x40];
    const HALF: [u8; 2] = [0, 0x38];

    #[test]
    fn every_value_of_any_block_is_set_and_blocks_are_as_long_as_they_say() {
        for packing in PACKINGS {
            let block: Vec<u8> = (0..packing.bytes).map(|i| (i * 37 % 61) as u8).collect();
            assert!(values(packing, &block).iter().all(|v| v.is_finite()), "{}", packing.name);
        }
    }

    #[test]
    fn small_blocks_have_the_low_halves_first() {
        let qs: Vec<u8> = (0..16).map(|j| j | (15 - j) << 4).collect();
        let number = |i: usize| if i < 16 { i as f32 } else { 31.0 - i as f32 };
        let with = |front: &[&[u8]]| [&front.concat()[..], &qs].concat();
        // Every third value has its fifth bit.
        let high: u32 = (0..32u32).filter(|i| i.is_multiple_of(3)).map(|i| 1 << i).sum();
        let five = |i: usize| number(i) + if i.is_multiple_of(3) { 16.0 } else { 0.0 };
        for (packing, block, expected) in [
            (&Q4_0, with(&[&TWO]), Box::new(|i| 2.0 * (number(i) - 8.0)) as Box<dyn Fn(usize) -> f32>),
            (&Q4_1, with(&[&TWO, &HALF]), Box::new(|i| 2.0 * number(i) + 0.5)),
            (&Q5_0, with(&[&TWO, &high.to_le_bytes()]), Box::new(|i| 2.0 * (five(i) - 16.0))),
            (&Q5_1, with(&[&TWO, &HALF, &high.to_le_bytes()]), Box::new(|i| 2.0 * five(i) + 0.5)),
        ] {
            let expected: Vec<f32> = (0..32).map(expected).collect();
            assert_eq!(values(packing, &block), expected, "{}", packing.name);
        }
        let block = [&HALF[..], &(0..32).map(|i| (5 * i) as u8).collect::<Vec<_>>()].concat();
        let expected: Vec<f32> = (0..32).map(|i| 0.5 * f32::from(((5 * i) as u8).cast_signed())).collect();
        assert_eq!(values(&Q8_0, &block), expected);
    }

    /// Packs 256 two-bit numbers in the order of `Q2_K` and `Q3_K`.
    fn pairs(number: impl Fn(usize) -> u8) -> Vec<u8> {
        let mut qs = vec![0; 64];
        for i in 0..256 {
            qs[32 * (i / 128) + i % 32] |= (number(i) & 3) << (2 * (i / 32 % 4));
        }
        qs
    }

    #[test]
    fn groups_of_sixteen_have_scales_of_their_own() {
        let number = |i: usize| (i * 7 % 4) as u8;
        let scale = |g: usize| (g as u8 & 15) | (15 - g as u8) << 4;
        let block = [&(0..16).map(scale).collect::<Vec<_>>()[..], &pairs(number), &TWO, &HALF].concat();
        let expected: Vec<f32> = (0..256)
            .map(|i| 2.0 * (i / 16) as f32 * f32::from(number(i)) - 0.5 * (15 - i / 16) as f32)
            .collect();
        assert_eq!(values(&Q2_K, &block), expected);

        let number = |i: usize| (i * 5 % 8) as u8;
        let scale = |g: usize| (g * 11 % 64) as u8;
        let (mut high, mut scales) = (vec![0; 32], vec![0; 12]);
        for i in 0..256 {
            high[i % 32] |= (number(i) >> 2) << (i / 32);
        }
        for g in 0..16 {
            scales[g % 8] |= (scale(g) & 15) << (4 * (g / 8));
            scales[8 + g % 4] |= (scale(g) >> 4) << (2 * (g / 4));
        }
        let block = [&high[..], &pairs(number), &scales, &TWO].concat();
        let expected: Vec<f32> = (0..256)
            .map(|i| 2.0 * (f32::from(scale(i / 16)) - 32.0) * (f32::from(number(i)) - 4.0))
            .collect();
        assert_eq!(values(&Q3_K, &block), expected);

        let number = |i: usize| (i * 13 % 64) as u8;
        let scale = |g: usize| (g as i8 * 15 - 100).cast_unsigned();
        let (mut low, mut high) = (vec![0; 128], vec![0; 64]);
        for i in 0..256 {
            let (half, quarter, l) = (i / 128, i / 32 % 4, i % 32);
            low[64 * half + 32 * (quarter % 2) + l] |= (number(i) & 15) << (4 * (quarter / 2));
            high[32 * half + l] |= (number(i) >> 4) << (2 * quarter);
        }
        let block = [&low[..], &high, &(0..16).map(scale).collect::<Vec<_>>(), &HALF].concat();
        let expected: Vec<f32> = (0..256)
            .map(|i| 0.5 * f32::from(scale(i / 16).cast_signed()) * (f32::from(number(i)) - 32.0))
            .collect();
        assert_eq!(values(&Q6_K, &block), expected);
    }

    #[test]
    fn groups_of_thirty_two_have_scales_and_minima_of_six_bits() {
        let (scale, least) = (|g: usize| (g * 9 + 1) as u8 & 63, |g: usize| (63 - g * 7) as u8);
        let mut packed = vec![0; 12];
        for g in 0..4 {
            packed[g] = scale(g) | (scale(g + 4) >> 4) << 6;
            packed[g + 4] = least(g) | (least(g + 4) >> 4) << 6;
            packed[g + 8] = (scale(g + 4) & 15) | (least(g + 4) & 15) << 4;
        }
        let expected = |number: &dyn Fn(usize) -> u8| -> Vec<f32> {
            (0..256usize)
                .map(|i| {
                    let g = i / 32;
                    f32::from(scale(g)) * f32::from(number(i)) - 2.0 * f32::from(least(g))
                })
                .collect()
        };
        let nibbles = |number: &dyn Fn(usize) -> u8| -> Vec<u8> {
            let byte = |b: usize| {
                let at = b / 32 * 64 + b % 32;
                (number(at) & 15) | (number(at + 32) & 15) << 4
            };
            (0..128).map(byte).collect()
        };
        let number = |i: usize| (i * 7 % 16) as u8;
        let block = [&ONE[..], &TWO, &packed, &nibbles(&number)].concat();
        assert_eq!(values(&Q4_K, &block), expected(&number));

        let number = |i: usize| (i * 11 % 32) as u8;
        let mut high = vec![0u8; 32];
        for i in 0..256 {
            high[i % 32] |= (number(i) >> 4) << (i / 32);
        }
        let block = [&ONE[..], &TWO, &packed, &high, &nibbles(&number)].concat();
        assert_eq!(values(&Q5_K, &block), expected(&number));
    }
}
