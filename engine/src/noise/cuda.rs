//! `PyTorch`'s CUDA generator: Philox4x32-10 (Salmon et al. 2011), in the order in which `torch.randn`'s kernel draws.
//!
//! The kernel starts as many threads as the card holds at once; thread `i` has its own stream of the generator, and its
//! `k`th draw gives four numbers, for the elements `i + (4k + 0..4) * threads`. So a card of another size gives other
//! noise as soon as one pass of its threads is not enough.

use std::f64::consts::TAU;

use rayon::prelude::*;

/// The threads of a block.
const BLOCK: usize = 256;
/// The numbers that a thread draws at once.
const DRAW: usize = 4;

/// The properties of a card that decide how `torch.randn` starts its kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Launch {
    /// The card's multiprocessors.
    pub multiprocessors: u32,
    /// The threads that a multiprocessor holds: 2048 on server cards, 1536 on most others.
    pub max_threads_per_multiprocessor: u32,
}

impl Default for Launch {
    /// Returns the launch of an H200 (and an H100 SXM).
    fn default() -> Self {
        Self { multiprocessors: 132, max_threads_per_multiprocessor: 2048 }
    }
}

impl Launch {
    /// Returns the number of threads that draw `n` numbers.
    fn threads(self, n: usize) -> usize {
        let resident = self.multiprocessors as usize * (self.max_threads_per_multiprocessor as usize / BLOCK);
        // No card holds less than one block; assuming one block keeps the arithmetic sound.
        BLOCK * n.div_ceil(BLOCK).min(resident).max(1)
    }
}

/// A CUDA generator; each draw continues where the last one ended.
#[derive(Clone, Debug)]
pub struct CudaGenerator {
    key: [u32; 2],
    launch: Launch,
    /// The number of draws of four that every thread's stream has made.
    offset: u64,
}

impl CudaGenerator {
    /// Returns the generator as `manual_seed` leaves it.
    pub fn new(seed: u64, launch: Launch) -> Self {
        Self { key: [seed as u32, (seed >> 32) as u32], launch, offset: 0 }
    }

    /// Returns `torch.randn(n)`: standard normal.
    pub fn randn(&mut self, n: usize) -> Vec<f32> {
        let threads = self.launch.threads(n);
        let mut out = vec![0.0; n];
        for pass in out.chunks_mut(DRAW * threads) {
            let (key, offset) = (self.key, self.offset);
            let draws: Vec<[f32; DRAW]> = (0..threads.min(pass.len()))
                .into_par_iter()
                .map(|thread| normal4(philox([offset as u32, (offset >> 32) as u32, thread as u32, 0], key)))
                .collect();
            for (i, plane) in pass.chunks_mut(threads).enumerate() {
                for (value, draw) in plane.iter_mut().zip(&draws) {
                    *value = draw[i];
                }
            }
            self.offset += 1;
        }
        out
    }
}

/// Returns four random words for a counter and a key.
fn philox(mut counter: [u32; 4], mut key: [u32; 2]) -> [u32; 4] {
    const ROUNDS: usize = 10;
    for _ in 0..ROUNDS {
        let a = u64::from(counter[0]) * 0xd2511f53;
        let b = u64::from(counter[2]) * 0xcd9e8d57;
        counter = [
            (b >> 32) as u32 ^ counter[1] ^ key[0],
            b as u32,
            (a >> 32) as u32 ^ counter[3] ^ key[1],
            a as u32,
        ];
        key = [key[0].wrapping_add(0x9e3779b9), key[1].wrapping_add(0xbb67ae85)];
    }
    counter
}

/// Converts four words to four normal numbers.
fn normal4([a, b, c, d]: [u32; 4]) -> [f32; DRAW] {
    let ([a, b], [c, d]) = (box_muller(a, b), box_muller(c, d));
    [a, b, c, d]
}

/// Converts two words to two normal numbers as `cuRAND` does, the sine first.
fn box_muller(x: u32, y: u32) -> [f32; 2] {
    /// 2^-32.
    const UNIT: f32 = 1.0 / (1u64 << 32) as f32;
    const ANGLE: f32 = UNIT * std::f32::consts::TAU;
    // The fused multiply-add and the single precision decide how these values round.
    let u = (x as f32).mul_add(UNIT, UNIT / 2.0);
    let v = (y as f32).mul_add(ANGLE, ANGLE / 2.0);
    let radius = (-2.0 * f64::from(u).ln()).sqrt();
    // The card's sine unit takes turns, not radians, and the product is truncated to single precision, not rounded.
    let turns = toward_zero(f64::from(v) * f64::from(std::f32::consts::FRAC_1_PI / 2.0));
    let (sin, cos) = (TAU * f64::from(turns)).sin_cos();
    [(radius * unit_precision(sin)) as f32, (radius * unit_precision(cos)) as f32]
}

/// Returns a sine with the sine unit's 23 bits after the point; the rest is cut off.
fn unit_precision(sine: f64) -> f64 {
    const STEPS: f64 = (1 << 23) as f64;
    (sine * STEPS).trunc() / STEPS
}

/// Returns the single-precision number next to a positive one, towards zero.
fn toward_zero(x: f64) -> f32 {
    let near = x as f32;
    if f64::from(near) > x { f32::from_bits(near.to_bits() - 1) } else { near }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::goldens::{Golden, fixture};

    #[derive(serde::Deserialize)]
    struct Item {
        name: String,
        seed: u64,
        numel: usize,
        sampled: bool,
        sum: f64,
        sumsq: f64,
    }

    #[test]
    fn what_an_h200_draws() {
        let golden = Golden::read(&fixture("cuda_randn"));
        let items: Vec<Item> = serde_json::from_value(golden.json["items"].clone()).expect("a list");
        assert_eq!(items.len(), 20);
        for Item { name, seed, numel, sampled, sum, sumsq } in items {
            let indices: Vec<i64> =
                if sampled { golden.i64(&format!("{name}.index")) } else { (0..numel as i64).collect() };
            let mut generator = CudaGenerator::new(seed, Launch::default());
            for which in ["first", "second"] {
                let got = generator.randn(numel);
                let expected = golden.f32(&format!("{name}.{which}"));
                assert_eq!(expected.len(), indices.len());
                for (&i, expected) in indices.iter().zip(expected) {
                    let got = got[i as usize];
                    assert!((got - expected).abs() <= 1e-6, "{name}.{which}[{i}]: {got} for {expected}");
                }
                if which == "first" {
                    // The bound catches one wrong element among millions, but not the sine unit's last bits.
                    let bound = 1e-7 * numel as f64 + 1e-5;
                    let sums: [f64; 2] =
                        got.iter().map(|&x| f64::from(x)).fold([0.0; 2], |[s, q], x| [s + x, q + x * x]);
                    assert!((sums[0] - sum).abs() < bound, "{name}: the sum is {} for {sum}", sums[0]);
                    assert!(
                        (sums[1] - sumsq).abs() < bound,
                        "{name}: the squares' sum is {} for {sumsq}",
                        sums[1]
                    );
                }
            }
        }
    }

    #[test]
    fn philox_known_answers() {
        // The vectors published with Random123 1.09.
        assert_eq!(philox([0; 4], [0; 2]), [0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8]);
        assert_eq!(philox([u32::MAX; 4], [u32::MAX; 2]), [0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd]);
        let pi = [0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344];
        assert_eq!(philox(pi, [0xa4093822, 0x299f31d0]), [0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1]);
    }

    #[test]
    fn nothing_is_drawn_for_nothing() {
        let mut generator =
            CudaGenerator::new(1, Launch { multiprocessors: 0, max_threads_per_multiprocessor: 0 });
        assert!(generator.randn(0).is_empty());
        assert_eq!(generator.randn(1000).len(), 1000);
    }
}
