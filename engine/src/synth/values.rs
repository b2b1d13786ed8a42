//! Random values by position: any thread can make any part of a tensor at any time, and always gets the same values.

#![expect(clippy::inline_always, reason = "what is not inlined is not compiled for wide vectors")]

use rayon::prelude::*;

use crate::weights::{DType, FNV_BASIS, e4m3, fnv1a};

/// One number for the whole tensor, or one for each row (first axis) or column (all other axes together).
#[derive(Clone, Debug)]
pub(super) enum Spread {
    /// One number for the whole tensor.
    All(f32),
    /// A number for each index of the first axis.
    Rows(Vec<f32>),
    /// A number for each position in a row.
    Columns(Vec<f32>),
}

impl Spread {
    fn at(&self, index: usize, columns: usize) -> f32 {
        match self {
            Self::All(v) => *v,
            Self::Rows(v) => v[index / columns],
            Self::Columns(v) => v[index % columns],
        }
    }
}

/// The filling of a tensor: `mean + deviation * n`, with `n` of unit variance and bell-shaped.
#[derive(Clone, Debug)]
pub(super) struct Fill {
    pub mean: Spread,
    pub deviation: Spread,
}

impl Fill {
    /// Returns a filling with the same mean and deviation everywhere.
    pub fn new(mean: f32, deviation: f32) -> Self {
        Self { mean: Spread::All(mean), deviation: Spread::All(deviation) }
    }
}

/// The channels of a head of the `DiT`.
const HEAD: usize = 128;
/// The sizes of the norms of queries and keys, which the heads use in turn. The scores of a head have a deviation of
/// 1.17 times the size squared: 1.3, 4.5, 2.0 and 3.0. Over 32,760 keys the first head looks at all of them, the second
/// at a few.
const SHARPNESS: [f32; 4] = [1.05, 1.95, 1.3, 1.6];
/// The channels of a head in which keys are larger, and the factor by which they are.
const OUTLIERS: [usize; 2] = [17, 94];
const OUTLYING: f32 = 5.0;

/// Returns the filling of a tensor of the `DiT`'s attention, or `None` for any other tensor.
///
/// With white queries, keys and values of one size, attention averages everything away, and no later result would show
/// whether it is right. Trained attention also has what makes it hard to compute in 8 bits: heads from broad to sharp,
/// a mean that all keys have in common (and another that all values have), and keys with a few channels that are much
/// larger than the others (Zhang et al., "`SageAttention`", 2024, show all three).
pub(super) fn attention(name: &str, features: usize) -> Option<Fill> {
    let outliers = !name.ends_with("norm_q.weight");
    if name.ends_with("norm_q.weight")
        || name.ends_with("norm_k.weight")
        || name.ends_with("norm_k_img.weight")
    {
        let size = |i: usize| {
            let outlying = outliers && OUTLIERS.contains(&(i % HEAD));
            SHARPNESS[i / HEAD % SHARPNESS.len()] * if outlying { OUTLYING } else { 1.0 }
        };
        let mean = Spread::Rows((0..features).map(size).collect());
        return Some(Fill { mean, deviation: Spread::All(0.1) });
    }
    match name {
        _ if name.ends_with("self_attn.k.bias") => Some(Fill::new(0.0, 0.7)),
        _ if name.ends_with("self_attn.v.bias") => Some(Fill::new(0.0, 0.3)),
        _ => None,
    }
}

/// Returns the seed of a tensor, which depends on the model's seed and the tensor's name.
pub(super) fn tensor_seed(seed: u64, name: &str) -> u64 {
    mix(fnv1a(FNV_BASIS, name.as_bytes()) ^ mix(seed))
}

/// Returns the output of `SplitMix64`'s finaliser (Steele, Lea, Flood, 2014).
#[inline(always)]
fn mix(mut z: u64) -> u64 {
    z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ z >> 31
}

/// Returns the value at a position: the sum of four uniform numbers of 16 bits, centred, with unit variance and never
/// beyond 3.5.
#[inline(always)]
fn bell(seed: u64, index: usize) -> f32 {
    let bits = mix(seed.wrapping_add((index as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15)));
    let sum = ((bits & 0xffff) + (bits >> 16 & 0xffff) + (bits >> 32 & 0xffff) + (bits >> 48)) as i32;
    // Each number has the variance (2^32 - 1) / 12, so the sum has a deviation of 2^16 / sqrt(3).
    (sum as f32 - 131_070.0) * (1.732_050_8 / 65_536.0)
}

/// Fills `out` with random bytes, those from `start` on, a multiple of eight.
pub(super) fn noise_bytes(out: &mut [u8], seed: u64, start: usize) {
    for (i, bytes) in out.chunks_mut(8).enumerate() {
        let word = mix(seed.wrapping_add(((start / 8 + i) as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15)));
        bytes.copy_from_slice(&word.to_le_bytes()[..bytes.len()]);
    }
}

/// The number of values that one thread makes at a time.
const CHUNK: usize = 1 << 15;

/// Fills `out` with the values from `start` on, in the given type. Every value is first rounded to a brain float, so
/// that files of all types hold the same model.
pub(super) fn fill(out: &mut [u8], dtype: DType, seed: u64, start: usize, columns: usize, rule: &Fill) {
    let size = dtype.bytes(1);
    out.par_chunks_mut(CHUNK * size).enumerate().for_each(|(chunk, out)| {
        part(out, dtype, seed, start + chunk * CHUNK, columns, rule);
    });
}

/// Does the work of [`fill`] on one thread, in the widest vectors that the processor has. The work is 64-bit products,
/// which baseline x86-64 has none of in vectors: a value takes 2.1 ns without vectors, 1.0 with AVX2 and 0.5 with
/// AVX-512, on one core of an EPYC.
fn part(out: &mut [u8], dtype: DType, seed: u64, start: usize, columns: usize, rule: &Fill) {
    #[cfg(target_arch = "x86_64")]
    {
        #[target_feature(enable = "avx512f,avx512dq,avx512bw,avx512vl")]
        fn avx512(out: &mut [u8], dtype: DType, seed: u64, start: usize, columns: usize, rule: &Fill) {
            plain(out, dtype, seed, start, columns, rule);
        }
        #[target_feature(enable = "avx2")]
        fn avx2(out: &mut [u8], dtype: DType, seed: u64, start: usize, columns: usize, rule: &Fill) {
            plain(out, dtype, seed, start, columns, rule);
        }
        if is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512dq")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512vl")
        {
            // SAFETY: the processor has what the function was compiled for.
            return unsafe { avx512(out, dtype, seed, start, columns, rule) };
        }
        if is_x86_feature_detected!("avx2") {
            // SAFETY: as above.
            return unsafe { avx2(out, dtype, seed, start, columns, rule) };
        }
    }
    plain(out, dtype, seed, start, columns, rule);
}

/// Does the work of [`part`] with the vectors that its caller is compiled for.
#[inline(always)]
fn plain(out: &mut [u8], dtype: DType, seed: u64, start: usize, columns: usize, rule: &Fill) {
    match (&rule.mean, &rule.deviation) {
        (Spread::All(mean), Spread::All(deviation)) => {
            put(out, dtype, |i| mean + deviation * bell(seed, start + i));
        }
        (mean, deviation) => put(out, dtype, |i| {
            let index = start + i;
            mean.at(index, columns) + deviation.at(index, columns) * bell(seed, index)
        }),
    }
}

/// Writes values, rounded to brain floats, as little-endian numbers of a type.
#[inline(always)]
fn put(out: &mut [u8], dtype: DType, value: impl Fn(usize) -> f32) {
    let rounded = |i| {
        let bits = value(i).to_bits();
        (bits + 0x7fff + (bits >> 16 & 1)) >> 16
    };
    match dtype {
        DType::F32 => each(out, |i| (rounded(i) << 16).to_le_bytes()),
        DType::Bf16 => each(out, |i| (rounded(i) as u16).to_le_bytes()),
        DType::F16 => each(out, |i| half::f16::from_f32(f32::from_bits(rounded(i) << 16)).to_le_bytes()),
        DType::F8E4m3 => each(out, |i| [e4m3::encode(f32::from_bits(rounded(i) << 16))]),
        _ => unreachable!("no tensor is made up as {}", dtype.name()),
    }
}

#[inline(always)]
fn each<const N: usize>(out: &mut [u8], value: impl Fn(usize) -> [u8; N]) {
    for (i, o) in out.as_chunks_mut::<N>().0.iter_mut().enumerate() {
        *o = value(i);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn floats(seed: u64, start: usize, count: usize, rule: &Fill) -> Vec<f32> {
        let mut bytes = vec![0; 4 * count];
        fill(&mut bytes, DType::F32, seed, start, 10, rule);
        bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect()
    }

    #[test]
    fn values_have_the_mean_and_the_deviation() {
        let n = 200_000;
        let values = floats(tensor_seed(1, "x"), 0, n, &Fill::new(0.5, 2.0));
        let mean = values.iter().map(|v| f64::from(*v)).sum::<f64>() / n as f64;
        let variance = values.iter().map(|v| (f64::from(*v) - mean).powi(2)).sum::<f64>() / n as f64;
        // The bounds are five deviations of the estimates: 2 / sqrt(n), and about 2 / sqrt(2 n).
        assert!((mean - 0.5).abs() < 0.023 && (variance.sqrt() - 2.0).abs() < 0.016, "{mean} {variance}");
    }

    #[test]
    fn a_value_depends_on_its_place_alone() {
        let seed = tensor_seed(7, "a.weight");
        let rule = Fill::new(0.0, 1.0);
        let all = floats(seed, 0, 100_000, &rule);
        assert_eq!(floats(seed, 70_001, 500, &rule), all[70_001..70_501]);
        let others = [tensor_seed(8, "a.weight"), tensor_seed(7, "b.weight")];
        for other in others {
            let other = floats(other, 0, 100_000, &rule);
            let product: f64 = all.iter().zip(&other).map(|(a, b)| f64::from(a * b)).sum();
            // The values are independent; the bound is five deviations of the sum of n products of unit variance.
            assert!(product.abs() < 5.0 * 100_000f64.sqrt(), "{product}");
        }
    }

    #[test]
    fn wide_vectors_change_nothing() {
        let rows = Spread::Rows((0..40u8).map(f32::from).collect());
        for rule in [Fill::new(0.25, 1.5), Fill { mean: rows, deviation: Spread::All(0.1) }] {
            for dtype in [DType::F32, DType::F16, DType::Bf16, DType::F8E4m3] {
                let mut bytes = [vec![0; dtype.bytes(391)], vec![0; dtype.bytes(391)]];
                part(&mut bytes[0], dtype, 9, 5, 10, &rule);
                plain(&mut bytes[1], dtype, 9, 5, 10, &rule);
                assert!(bytes[0] == bytes[1], "{dtype:?}");
            }
        }
    }

    #[test]
    fn heads_are_broad_and_sharp_and_keys_have_outliers() {
        let fill = |name: &str| attention(name, 640).expect("it is attention's");
        let [q, k] = ["blocks.3.self_attn.norm_q.weight", "blocks.3.self_attn.norm_k.weight"].map(|name| {
            let mut bytes = vec![0; 4 * 640];
            super::fill(&mut bytes, DType::F32, tensor_seed(1, name), 0, 1, &fill(name));
            bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect::<Vec<_>>()
        });
        // White queries and keys of unit size, through these norms, have scores of this deviation.
        let deviation = |head: usize| {
            let channels = head * 128..(head + 1) * 128;
            let squares = channels.map(|c| f64::from(q[c] * k[c]).powi(2));
            (squares.sum::<f64>() / 128.0).sqrt()
        };
        // Sums over 128 channels that deviate by a tenth: five deviations of their roots are some 6 %.
        for (head, want) in [1.3, 4.5, 2.0, 3.0, 1.3].into_iter().enumerate() {
            assert!((deviation(head) / want - 1.0).abs() < 0.06, "head {head}: {}", deviation(head));
        }
        assert!(k[17] > 4.5 * k[16] && q[17] < 1.5 * q[16], "{:?} {:?}", &q[16..18], &k[16..18]);
        assert!(attention("blocks.3.cross_attn.norm_k_img.weight", 256).is_some());
        assert!(attention("blocks.3.self_attn.q.bias", 256).is_none());
        assert!(attention("blocks.3.norm3.weight", 256).is_none());
    }

    #[test]
    fn rows_and_columns_have_their_own() {
        let rows = Fill { mean: Spread::Rows(vec![1.0, -1.0]), deviation: Spread::All(0.0) };
        assert_eq!(floats(1, 8, 4, &rows), [1.0, 1.0, -1.0, -1.0]);
        let columns = (0..10u8).map(f32::from).collect();
        let columns = Fill { mean: Spread::Columns(columns), deviation: Spread::All(0.0) };
        assert_eq!(floats(1, 8, 4, &columns), [8.0, 9.0, 0.0, 1.0]);
    }
}
