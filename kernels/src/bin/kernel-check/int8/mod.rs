//! Checks and times of the int8 kernels: rows that are rotated and quantised, matrix products, and 8-bit attention by
//! `mma.sync`. What is computed from whole numbers, or rounded where IEEE says how, must equal the reference to the
//! bit.

mod attention;
mod products;
mod rows;
mod times;

use animd_kernels::cuda::{Activation, Attention, Card, Element, Gemm, Norms, rotation_group};

use super::Result;

pub use products::codes;
pub use times::time;

const F32: Element = Element::F32;
const BF16: Element = Element::Bf16;
const INT8: Element = Element::Int8;

/// Added to a number below 2^22, it leaves that number, rounded to even, in the low bits.
const ROUNDING: f32 = 12_582_912.0;

pub fn check(card: &Card, quick: bool) -> Result<bool> {
    let (norms, gemm, attention) = (Norms::load(card)?, Gemm::load(card)?, Attention::load(card)?);
    let stream = card.default_stream();
    let mut good = rows::rotation_is_that_of_files();
    println!("\nint8                                                              error    worst    limit");
    for (rows, columns, gap) in [
        (1, 16, 0),
        (3, 80, 16),
        (2, 48, 0),
        (5, 320, 0),
        (77, 1280, 0),
        (257, 5120, 32),
        (5, 13_824, 0),
        (2, 16_384, 0),
    ] {
        if quick && rows * columns > 200_000 {
            continue;
        }
        for from in [BF16, F32] {
            let mut groups = vec![rotation_group(columns), 1, 4];
            groups.dedup();
            for group in groups {
                good &= rows::quantize(&norms, &stream, [rows, columns, gap], from, group)?;
            }
            good &= rows::layer_norm(&norms, &stream, [rows, columns, gap], from)?;
            good &= rows::rms_norm(&norms, &stream, [rows, columns, gap], from)?;
            for activation in [Activation::Silu, Activation::GeluTanh, Activation::GeluErf] {
                good &= rows::activated(&norms, &stream, [rows, columns, gap], from, activation)?;
            }
        }
    }
    good &= products::all(&gemm, &stream, quick)?;
    for outliers in [1.0, 5.0, 30.0] {
        let inner = if quick { 1024 } else { 5120 };
        good &= products::linear(&norms, &gemm, &stream, [150, 264, inner], outliers)?;
    }
    if attention.is_int8() {
        good &= attention::all(&attention, card, quick)?;
    }
    Ok(good)
}

/// Returns a number in int8, as the kernels round it.
fn round(x: f32, factor: f32) -> i8 {
    x.mul_add(factor, ROUNDING).to_bits() as i8
}
