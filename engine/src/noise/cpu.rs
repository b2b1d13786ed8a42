//! `PyTorch`'s CPU generator: MT19937 (Matsumoto and Nishimura 1998), and Box-Muller in the order of `torch.randn`.

use std::f64::consts::TAU;

/// The number of words of MT19937's state.
const STATE: usize = 624;
/// The distance of the words that make a new one.
const SHIFT: usize = 397;
/// `torch.randn` draws fewer numbers than this one by one, in double precision.
const BLOCK: usize = 16;

/// A CPU generator; each draw continues where the last one ended.
#[derive(Clone)]
pub struct CpuGenerator {
    state: [u32; STATE],
    next: usize,
    /// The second number of a Box-Muller pair, which only the next small draw uses.
    spare: Option<f64>,
}

impl CpuGenerator {
    /// Returns the generator as `manual_seed` leaves it; only the seed's lower 32 bits count, as in `PyTorch`.
    pub fn new(seed: u64) -> Self {
        let mut state = [0; STATE];
        state[0] = seed as u32;
        for i in 1..STATE {
            let last = state[i - 1];
            state[i] = 1812433253u32.wrapping_mul(last ^ (last >> 30)).wrapping_add(i as u32);
        }
        Self { state, next: STATE, spare: None }
    }

    /// Returns `torch.rand(n)`: uniform in [0, 1), multiples of 2^-24.
    pub fn rand(&mut self, n: usize) -> Vec<f32> {
        (0..n).map(|_| self.uniform()).collect()
    }

    /// Returns `torch.randn(n)`: standard normal.
    pub fn randn(&mut self, n: usize) -> Vec<f32> {
        if n < BLOCK {
            return (0..n).map(|_| self.normal() as f32).collect();
        }
        let mut out = self.rand(n);
        for block in out.chunks_exact_mut(BLOCK) {
            box_muller(block);
        }
        if !n.is_multiple_of(BLOCK) {
            // The last block is drawn anew and replaces what it overlaps.
            let last = &mut out[n - BLOCK..];
            last.fill_with(|| self.uniform());
            box_muller(last);
        }
        out
    }

    fn uniform(&mut self) -> f32 {
        (self.word() & 0xff_ffff) as f32 / (1 << 24) as f32
    }

    /// Returns a uniform number in [0, 1) with 53 bits.
    fn uniform_double(&mut self) -> f64 {
        let high = u64::from(self.word());
        let bits = (high << 32) | u64::from(self.word());
        (bits & ((1 << 53) - 1)) as f64 / (1u64 << 53) as f64
    }

    fn normal(&mut self) -> f64 {
        if let Some(spare) = self.spare.take() {
            return spare;
        }
        let angle = TAU * self.uniform_double();
        let radius = (-2.0 * (-self.uniform_double()).ln_1p()).sqrt();
        self.spare = Some(radius * angle.sin());
        radius * angle.cos()
    }

    fn word(&mut self) -> u32 {
        if self.next == STATE {
            self.renew();
        }
        let mut word = self.state[self.next];
        self.next += 1;
        word ^= word >> 11;
        word ^= (word << 7) & 0x9d2c5680;
        word ^= (word << 15) & 0xefc60000;
        word ^ (word >> 18)
    }

    fn renew(&mut self) {
        for i in 0..STATE {
            let joined = (self.state[i] & 0x8000_0000) | (self.state[(i + 1) % STATE] & 0x7fff_ffff);
            let twist = if joined & 1 == 1 { 0x9908b0df } else { 0 };
            self.state[i] = self.state[(i + SHIFT) % STATE] ^ (joined >> 1) ^ twist;
        }
        self.next = 0;
    }
}

/// Turns 16 uniform numbers into normal ones: the first eight give the radii, the others the angles.
fn box_muller(block: &mut [f32]) {
    let (first, second) = block.split_at_mut(BLOCK / 2);
    for (a, b) in first.iter_mut().zip(second) {
        // The angle is rounded as in PyTorch; PyTorch's own single-precision functions depend on the machine.
        let angle = std::f32::consts::TAU * *b;
        let radius = (-2.0 * (1.0 - f64::from(*a)).ln()).sqrt();
        let (sin, cos) = f64::from(angle).sin_cos();
        *a = (radius * cos) as f32;
        *b = (radius * sin) as f32;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::goldens::{Golden, fixture, json};

    /// Half of the 1e-6 that single-precision logarithms and sines err by, with values up to 5.
    const TOLERANCE: f32 = 5e-7;

    fn close(got: &[f32], expected: &[f32]) {
        assert_eq!(got.len(), expected.len());
        for (i, (a, b)) in got.iter().zip(expected).enumerate() {
            assert!((a - b).abs() <= TOLERANCE, "element {i}: {a} for {b}");
        }
    }

    #[test]
    fn the_reference_draws() {
        let golden = Golden::read(&fixture("tiny-a/golden"));
        let mut checked = 0;
        for name in golden.names() {
            let Some((seed, kind)) = name.strip_prefix("randn.").and_then(|name| name.split_once('.')) else {
                continue;
            };
            let expected = golden.f32(&name);
            let mut generator = CpuGenerator::new(seed.parse().expect("a seed"));
            match kind {
                "rand64" => assert_eq!(generator.rand(64), expected),
                "second16" => {
                    generator.randn(16);
                    close(&generator.randn(16), &expected);
                }
                _ => close(&generator.randn(expected.len()), &expected),
            }
            checked += 1;
        }
        assert_eq!(checked, 12);
    }

    // One generator made draws of many lengths with PyTorch 2.11. A short draw keeps half of a pair for the next short
    // one, also over long ones in between.
    #[test]
    fn draws_follow_each_other() {
        #[derive(serde::Deserialize)]
        struct Series {
            seed: u64,
            draws: Vec<Vec<f32>>,
        }
        let series: Vec<Series> =
            serde_json::from_value(json(&fixture("cpu_randn.json"))).expect("two series");
        assert_eq!(series.len(), 2);
        for Series { seed, draws } in series {
            let mut generator = CpuGenerator::new(seed);
            for expected in draws {
                close(&generator.randn(expected.len()), &expected);
            }
        }
    }
}
