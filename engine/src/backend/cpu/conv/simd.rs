//! The inner loops of the volumes' operations, in plain Rust and in AVX2 with FMA, chosen at run time.
//!
//! The plain loops define the results; the others differ only in rounding. A value never depends on its place in a row.

/// The number of output channels that are summed up together.
pub const BLOCK: usize = 4;

/// The length of a row is a multiple of this.
pub const LANES: usize = 8;

/// The padded rows that a convolution reads for one row of its result.
pub struct Input<'a> {
    pub values: &'a [f32],
    /// The offset of the first input channel's first row.
    pub start: usize,
    /// The number of input channels, of all frames of the kernel together.
    pub channels: usize,
    /// The distance from channel to channel.
    pub stride: usize,
    /// The offset of each element of the kernel, relative to the channel.
    pub offsets: &'a [usize],
}

/// An instruction set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kernel {
    /// The instructions that the program is compiled for.
    Plain,
    /// AVX2 and FMA. Only [`Kernel::best`] creates it, where the processor has them.
    #[cfg(target_arch = "x86_64")]
    Avx2(avx2::Present),
}

impl Kernel {
    /// Returns the fastest instruction set that the processor has.
    pub fn best() -> Self {
        #[cfg(target_arch = "x86_64")]
        if let Some(present) = avx2::Present::detect() {
            return Self::Avx2(present);
        }
        Self::Plain
    }

    /// Computes `sums` `[blocks * BLOCK, width]` = bias + weight * input. `weight` is `[blocks, all channels, offsets,
    /// BLOCK]`, of which the first `skipped` values of each block have no input.
    pub fn dot(self, input: &Input<'_>, weight: &[f32], skipped: usize, bias: &[f32], sums: &mut [f32]) {
        let blocks = bias.len() / BLOCK;
        let width = sums.len() / bias.len();
        let used = input.channels * input.offsets.len() * BLOCK;
        let furthest = input.offsets.iter().max().copied().unwrap_or(0);
        assert!(
            blocks * BLOCK == bias.len() && width.is_multiple_of(LANES) && sums.len() == width * bias.len()
        );
        assert_eq!(weight.len(), blocks * (skipped + used));
        assert!(input.start + (input.channels - 1) * input.stride + furthest + width <= input.values.len());
        let block = |b: usize| &weight[b * (skipped + used) + skipped..][..used];
        let mut x = 0;
        while x < width {
            // Vectors go in threes, and in twos rather than alone at the end: a single sum waits for its own last
            // addition.
            let vectors = match (width - x) / LANES {
                1 => 1,
                2 | 4 => 2,
                _ => 3,
            };
            for b in 0..blocks {
                let (weight, bias) = (block(b), &bias[b * BLOCK..][..BLOCK]);
                let sums = &mut sums[b * BLOCK * width..][..BLOCK * width];
                match self {
                    Self::Plain => {
                        for v in 0..vectors {
                            plain_dot(input, weight, bias, sums, width, x + v * LANES);
                        }
                    }
                    #[cfg(target_arch = "x86_64")]
                    Self::Avx2(present) => present.dot(input, weight, bias, sums, width, x, vectors),
                }
            }
            x += vectors * LANES;
        }
    }

    /// Computes `sums += values * values`.
    pub fn add_squares(self, values: &[f32], sums: &mut [f32]) {
        match self {
            Self::Plain => add_squares(values, sums),
            #[cfg(target_arch = "x86_64")]
            Self::Avx2(present) => present.add_squares(values, sums),
        }
    }

    /// Computes `values *= factors * gamma`, then `SiLU` if `silu`.
    pub fn normalize(self, values: &mut [f32], factors: &[f32], gamma: f32, silu: bool) {
        match self {
            Self::Plain => normalize(values, factors, gamma, silu),
            #[cfg(target_arch = "x86_64")]
            Self::Avx2(present) => present.normalize(values, factors, gamma, silu),
        }
    }
}

/// Sums up one vector of the row from `x` on, for each channel of a block.
fn plain_dot(input: &Input<'_>, weight: &[f32], bias: &[f32], sums: &mut [f32], width: usize, x: usize) {
    let mut acc = [[0.0f32; LANES]; BLOCK];
    for (acc, bias) in acc.iter_mut().zip(bias) {
        acc.fill(*bias);
    }
    let mut weight = weight.chunks_exact(BLOCK);
    for c in 0..input.channels {
        let start = input.start + c * input.stride + x;
        for (offset, weight) in input.offsets.iter().zip(&mut weight) {
            let values = &input.values[start + offset..][..LANES];
            for (acc, w) in acc.iter_mut().zip(weight) {
                acc.iter_mut().zip(values).for_each(|(a, v)| *a += w * v);
            }
        }
    }
    for (acc, sums) in acc.iter().zip(sums.chunks_exact_mut(width)) {
        sums[x..][..LANES].copy_from_slice(acc);
    }
}

#[expect(clippy::inline_always, reason = "compiled for the instruction set of each caller")]
#[inline(always)]
fn add_squares(values: &[f32], sums: &mut [f32]) {
    values.iter().zip(sums).for_each(|(v, s)| *s += v * v);
}

#[expect(clippy::inline_always, reason = "compiled for the instruction set of each caller")]
#[inline(always)]
fn normalize(values: &mut [f32], factors: &[f32], gamma: f32, silu: bool) {
    if silu {
        values.iter_mut().zip(factors).for_each(|(v, f)| *v = self::silu(*v * f * gamma));
    } else {
        values.iter_mut().zip(factors).for_each(|(v, f)| *v *= f * gamma);
    }
}

/// Returns x / (1 + e^-x).
#[expect(clippy::inline_always, reason = "compiled for the instruction set of each caller")]
#[inline(always)]
pub fn silu(x: f32) -> f32 {
    x / (1.0 + exp(-x))
}

/// Returns e^x within 1e-7 and rounding, for -87 to 88 and constant beyond, by operations that vector units have.
///
/// With x = n ln 2 + r and |r| <= ln 2 / 2, the series of e^r ends with r^7 / 7!. The omitted rest is at most
/// 0.347^8 / 8! * 1.05 = 5.5e-9, less than a tenth of the last digit.
#[inline(always)]
fn exp(x: f32) -> f32 {
    // Adding this rounds to an integer, which is then in the lowest bits.
    const ROUND: f32 = 12_582_912.0; // 1.5 * 2^23
    // ln 2 is split in two parts; the first has few enough digits for n times it to be exact.
    const LN2_HIGH: f32 = 0.693_359_4;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    let x = x.clamp(-87.0, 88.0);
    let shifted = x * std::f32::consts::LOG2_E + ROUND;
    let n = shifted - ROUND;
    let r = x - n * LN2_HIGH - n * LN2_LOW;
    let mut sum = 1.0 / 5040.0;
    for c in [1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0] {
        sum = sum * r + c;
    }
    sum * f32::from_bits(shifted.to_bits().wrapping_add(127) << 23)
}

#[cfg(target_arch = "x86_64")]
mod avx2 {
    use std::arch::x86_64::{
        __m256, _mm256_fmadd_ps, _mm256_loadu_ps, _mm256_set1_ps, _mm256_setzero_ps, _mm256_storeu_ps,
    };

    use super::{BLOCK, Input, LANES};

    /// Proof that the processor has AVX2 and FMA.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Present(());

    #[expect(clippy::unused_self, reason = "it shows that the processor has the instructions")]
    impl Present {
        pub fn detect() -> Option<Self> {
            (is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma")).then_some(Self(()))
        }

        #[expect(clippy::too_many_arguments, reason = "the loop's variables")]
        pub fn dot(
            self,
            input: &Input<'_>,
            weight: &[f32],
            bias: &[f32],
            sums: &mut [f32],
            width: usize,
            x: usize,
            vectors: usize,
        ) {
            let furthest = input.offsets.iter().max().copied().unwrap_or(0);
            let end = x + vectors * LANES;
            let last = input.start + (input.channels - 1) * input.stride + furthest + end;
            assert!(
                last <= input.values.len() && weight.len() == input.channels * input.offsets.len() * BLOCK
            );
            assert!(bias.len() == BLOCK && end <= width && sums.len() == BLOCK * width);
            // SAFETY: `self` shows that the processor has the instructions; the lengths were asserted.
            unsafe {
                match vectors {
                    1 => dot::<1>(input, weight, bias, sums, width, x),
                    2 => dot::<2>(input, weight, bias, sums, width, x),
                    _ => dot::<3>(input, weight, bias, sums, width, x),
                }
            }
        }

        pub fn add_squares(self, values: &[f32], sums: &mut [f32]) {
            // SAFETY: `self` shows that the processor has the instructions.
            unsafe { add_squares(values, sums) }
        }

        pub fn normalize(self, values: &mut [f32], factors: &[f32], gamma: f32, silu: bool) {
            // SAFETY: `self` shows that the processor has the instructions.
            unsafe { normalize(values, factors, gamma, silu) }
        }
    }

    #[target_feature(enable = "avx2,fma")]
    fn add_squares(values: &[f32], sums: &mut [f32]) {
        super::add_squares(values, sums);
    }

    #[target_feature(enable = "avx2,fma")]
    fn normalize(values: &mut [f32], factors: &[f32], gamma: f32, silu: bool) {
        super::normalize(values, factors, gamma, silu);
    }

    /// Sums up `V` vectors of the row from `x` on, for each channel of a block: 4 * 3 sums, 3 inputs and 1 weight fill
    /// the 16 registers, and 12 additions in flight hide their latency.
    ///
    /// # Safety
    /// `vectors` must be `V`, and what [`Present::dot`] asserts must hold.
    #[expect(clippy::needless_range_loop, reason = "the same index counts in several arrays of registers")]
    #[target_feature(enable = "avx2,fma")]
    unsafe fn dot<const V: usize>(
        input: &Input<'_>,
        weight: &[f32],
        bias: &[f32],
        sums: &mut [f32],
        width: usize,
        x: usize,
    ) {
        let mut acc = [[_mm256_setzero_ps(); V]; BLOCK];
        for o in 0..BLOCK {
            acc[o] = [_mm256_set1_ps(bias[o]); V];
        }
        let mut weight = weight.as_ptr();
        // SAFETY: the greatest offset of the last channel plus V vectors is within the values; there are BLOCK weights
        // for each channel and offset; V vectors from x on are within each of the BLOCK rows of sums.
        unsafe {
            let mut channel = input.values.as_ptr().add(input.start + x);
            for c in 0..input.channels {
                for &offset in input.offsets {
                    let from = channel.add(offset);
                    let mut values: [__m256; V] = [_mm256_setzero_ps(); V];
                    for v in 0..V {
                        values[v] = _mm256_loadu_ps(from.add(v * LANES));
                    }
                    for o in 0..BLOCK {
                        let w = _mm256_set1_ps(*weight.add(o));
                        for v in 0..V {
                            acc[o][v] = _mm256_fmadd_ps(w, values[v], acc[o][v]);
                        }
                    }
                    weight = weight.add(BLOCK);
                }
                if c + 1 < input.channels {
                    channel = channel.add(input.stride);
                }
            }
            for o in 0..BLOCK {
                for v in 0..V {
                    _mm256_storeu_ps(sums.as_mut_ptr().add(o * width + x + v * LANES), acc[o][v]);
                }
            }
        }
    }
}
