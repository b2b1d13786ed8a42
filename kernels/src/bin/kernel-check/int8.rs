//! Checks and times of the int8 kernels: rows that are rotated and quantised, matrix products, and 8-bit attention by
//! `mma.sync`. What is computed from whole numbers, or rounded where IEEE says how, must equal the reference to the
//! bit.
//!
//! This is one file because it is one group of `kernel-check`, chosen by one name; its sections share the rounding to
//! int8 on the CPU.

use std::sync::Arc;

use animd_kernels::cuda::cudarc::driver::{CudaSlice, CudaStream};
use animd_kernels::cuda::{
    Activation, Affine, Attention, Attention8bitLayout, Card, Element, Epilogue, Gate, Gemm, Int8Rows, Norms,
    Operands, Rows, Typed, rotation_group,
};
use half::bf16;

use super::bench::{BF16_ROUNDING, Input, Output, by_rows, verdict};
use super::gemm::{Addends, Follows, activate};
use super::norms::limit;
use super::{Case, HEAD_DIM, Kind, Result, address, median, mix, normal};

const F32: Element = Element::F32;
const BF16: Element = Element::Bf16;
const INT8: Element = Element::Int8;

/// Added to a number below 2^22, it leaves that number, rounded to even, in the low bits.
const ROUNDING: f32 = 12_582_912.0;
/// Tiles after which 8-bit attention takes what is left of the bias of its parts out of the output.
const FLUSH: usize = 16;

pub fn check(card: &Card, quick: bool) -> Result<bool> {
    let (norms, gemm, attention) = (Norms::load(card)?, Gemm::load(card)?, Attention::load(card)?);
    let stream = card.default_stream();
    let mut good = rotation_is_that_of_files();
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
                good &= quantize(&norms, &stream, [rows, columns, gap], from, group)?;
            }
            good &= layer_norm(&norms, &stream, [rows, columns, gap], from)?;
            good &= rms_norm(&norms, &stream, [rows, columns, gap], from)?;
            for activation in [Activation::Silu, Activation::GeluTanh, Activation::GeluErf] {
                good &= activated(&norms, &stream, [rows, columns, gap], from, activation)?;
            }
        }
    }
    good &= products(&gemm, &stream, quick)?;
    for outliers in [1.0, 5.0, 30.0] {
        let inner = if quick { 1024 } else { 5120 };
        good &= linear(&norms, &gemm, &stream, [150, 264, inner], outliers)?;
    }
    if attention.is_int8() {
        good &= attentions(&attention, card, quick)?;
    }
    Ok(good)
}

// ---- Rows

/// Rotates a row as `rows.cuh` does, with the same roundings and without normalising it.
fn rotate(x: &mut [f32], group: usize) {
    let mut step = 1;
    while step < group {
        for base in (0..x.len()).filter(|i| i / step % 4 == 0) {
            let [a, b, c, d] = [0, 1, 2, 3].map(|digit| x[base + digit * step]);
            let (outer, inner) = (a + d, b + c);
            for (digit, y) in
                [(a - d) + inner, (b - c) + outer, (c - b) + outer, (d - a) + inner].into_iter().enumerate()
            {
                x[base + digit * step] = y;
            }
        }
        step *= 4;
    }
}

/// Returns whether [`rotate`] is the Kronecker power of h4 that files of rotated weights use: h4 is -1 where row and
/// column add up to 3.
fn rotation_is_that_of_files() -> bool {
    [4, 16, 64, 256].into_iter().all(|group| {
        (0..group).all(|column| {
            let mut x = vec![0.0; group];
            x[column] = 1.0;
            rotate(&mut x, group);
            let negative = |row: usize, digit: usize| {
                1 << (2 * digit) < group && (row >> (2 * digit) & 3) + (column >> (2 * digit) & 3) == 3
            };
            x.iter().enumerate().all(|(row, x)| {
                let signs = (0..4).filter(|digit| negative(row, *digit)).count();
                *x == if signs % 2 == 1 { -1.0 } else { 1.0 }
            })
        })
    })
}

/// Returns the bytes and the scale of a row, as `rows.cuh` computes them.
fn quantized(x: &[f32], group: usize) -> (Vec<i8>, f32) {
    let mut x = x.to_vec();
    rotate(&mut x, group);
    let top = x.iter().fold(1e-10f32, |top, x| top.max(x.abs()));
    let bytes = x.iter().map(|x| round(*x, 127.0 / top)).collect();
    (bytes, top / 127.0 * (1.0 / (group as f32).sqrt()))
}

fn round(x: f32, factor: f32) -> i8 {
    x.mul_add(factor, ROUNDING).to_bits() as i8
}

/// Returns noise in which some columns are much greater than the others, a row of zeros, and one of tiny numbers.
fn rows_of(rows: usize, columns: usize, seed: u64) -> Vec<f32> {
    let mut values = normal(rows * columns, seed);
    for (i, x) in values.iter_mut().enumerate() {
        let (row, column) = (i / columns, i % columns);
        *x *= if column % 61 == 7 { 20.0 } else { 1.0 };
        *x *= if row == 2 { 1e-13 } else { 1.0 };
        if row == 1 {
            *x = 0.0;
        }
    }
    values
}

fn quantize(
    norms: &Norms,
    stream: &Arc<CudaStream>,
    [rows, columns, gap]: [usize; 3],
    from: Element,
    group: usize,
) -> Result<bool> {
    let x = Input::new(stream, &rows_of(rows, columns, 100), columns, gap, from)?;
    let run = || -> Result<(Vec<f64>, Vec<f32>)> {
        let to = Output::new(stream, [rows, columns, gap], INT8)?;
        let y = to.typed(stream);
        let y = Int8Rows { rows: y.rows, scale: y.scale, group };
        // SAFETY: the buffers have these sizes and live until the output has been read.
        unsafe { norms.quantize_int8(stream, x.typed(stream), Activation::None, y, columns)? };
        Ok((to.read(stream)?, to.scales(stream)?))
    };
    let ((given, scales), (again, _)) = (run()?, run()?);
    let wanted: Vec<(Vec<i8>, f32)> = x
        .values
        .chunks_exact(columns)
        .map(|row| quantized(&row.iter().map(|x| *x as f32).collect::<Vec<_>>(), group))
        .collect();
    let same_scales =
        scales.iter().zip(&wanted).all(|(given, (_, wanted))| given.to_bits() == wanted.to_bits());
    let values: Vec<f64> = wanted
        .iter()
        .flat_map(|(bytes, scale)| bytes.iter().map(|x| f64::from(*x) * f64::from(*scale)))
        .collect();
    let name = format!("quantisation {rows}x{columns} {from:?}, rotated by {group}");
    if !same_scales {
        println!("{name}: other scales  WRONG");
    }
    Ok(verdict(&name, &given, &again, &values, 0.0) && same_scales)
}

/// Checks the quantisation of activated rows.
fn activated(
    norms: &Norms,
    stream: &Arc<CudaStream>,
    [rows, columns, gap]: [usize; 3],
    from: Element,
    activation: Activation,
) -> Result<bool> {
    let values: Vec<f32> = normal(rows * columns, 104).iter().map(|x| 2.0 * x).collect();
    let x = Input::new(stream, &values, columns, gap, from)?;
    let group = rotation_group(columns);
    let run = || -> Result<Vec<f64>> {
        let to = Output::new(stream, [rows, columns, gap], INT8)?;
        let y = to.typed(stream);
        let y = Int8Rows { rows: y.rows, scale: y.scale, group };
        // SAFETY: the buffers have these sizes and live until the output has been read.
        unsafe { norms.quantize_int8(stream, x.typed(stream), activation, y, columns)? };
        to.read(stream)
    };
    let (given, again) = (run()?, run()?);
    let wanted = by_rows(rows, columns, |r, out| {
        let x = &x.values[r * columns..][..columns];
        rotated(x.iter().map(|x| activate(*x, activation)), group, out);
    });
    let name = format!("quantisation {rows}x{columns} {from:?}, {activation:?}, rotated by {group}");
    Ok(verdict(&name, &given, &again, &wanted, limit(INT8)))
}

fn rms_norm(
    norms: &Norms,
    stream: &Arc<CudaStream>,
    [rows, columns, gap]: [usize; 3],
    from: Element,
) -> Result<bool> {
    let x = Input::random(stream, [rows, columns, gap], from, 105)?;
    let weight = Input::random(stream, [1, columns, 0], F32, 106)?;
    let group = rotation_group(columns);
    let run = || -> Result<Vec<f64>> {
        let to = Output::new(stream, [rows, columns, gap], INT8)?;
        let y = to.typed(stream);
        let y = Int8Rows { rows: y.rows, scale: y.scale, group };
        // SAFETY: as above.
        unsafe { norms.rms_norm_int8(stream, x.typed(stream), weight.at(stream), 1e-6, y, columns)? };
        to.read(stream)
    };
    let (given, again) = (run()?, run()?);
    let wanted = by_rows(rows, columns, |r, out| {
        let x = &x.values[r * columns..][..columns];
        let mean = x.iter().map(|x| x * x).sum::<f64>() / columns as f64;
        rotated(x.iter().zip(&weight.values).map(|(x, w)| x / (mean + 1e-6).sqrt() * w), group, out);
    });
    let name = format!("RMS norm {rows}x{columns} {from:?} to int8, rotated by {group}");
    Ok(verdict(&name, &given, &again, &wanted, limit(INT8)))
}

/// Sets `out` to a row, rotated by `group` and normalised.
fn rotated(row: impl Iterator<Item = f64>, group: usize, out: &mut [f64]) {
    let mut row: Vec<f32> = row.map(|x| x as f32).collect();
    rotate(&mut row, group);
    let norm = 1.0 / (group as f64).sqrt();
    out.iter_mut().zip(&row).for_each(|(out, x)| *out = f64::from(*x) * norm);
}

fn layer_norm(
    norms: &Norms,
    stream: &Arc<CudaStream>,
    [rows, columns, gap]: [usize; 3],
    from: Element,
) -> Result<bool> {
    let values: Vec<f32> = normal(rows * columns, 101).iter().map(|x| 3.0 + x).collect();
    let x = Input::new(stream, &values, columns, gap, from)?;
    let factor = Input::random(stream, [1, columns, 0], F32, 102)?;
    let summand = Input::random(stream, [1, columns, 0], F32, 103)?;
    let modulated = rows % 2 == 1;
    let affine = Affine { factor: factor.at(stream), summand: summand.at(stream), modulated };
    let group = rotation_group(columns);
    let run = || -> Result<Vec<f64>> {
        let to = Output::new(stream, [rows, columns, gap], INT8)?;
        let y = to.typed(stream);
        let y = Int8Rows { rows: y.rows, scale: y.scale, group };
        // SAFETY: as above.
        unsafe { norms.layer_norm_int8(stream, x.typed(stream), &affine, 1e-6, y, columns)? };
        to.read(stream)
    };
    let (given, again) = (run()?, run()?);
    let one = if modulated { 1.0 } else { 0.0 };
    let wanted = by_rows(rows, columns, |r, out| {
        let x = &x.values[r * columns..][..columns];
        let mean = x.iter().sum::<f64>() / columns as f64;
        let variance = x.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / columns as f64;
        let row = (0..columns)
            .map(|c| (x[c] - mean) / (variance + 1e-6).sqrt() * (one + factor.values[c]) + summand.values[c]);
        rotated(row, group, out);
    });
    let name =
        format!("layer norm {rows}x{columns} {from:?} to int8, rotated by {group}, modulated: {modulated}");
    Ok(verdict(&name, &given, &again, &wanted, limit(INT8)))
}

// ---- Matrix products

fn products(gemm: &Gemm, stream: &Arc<CudaStream>, quick: bool) -> Result<bool> {
    // Rows, columns, inner, elements between rows. One shape has more than one band of rows of tiles; the last two have
    // the model's lengths of sums.
    let shapes = [
        (1, 8, 16, 0),
        (1, 5120, 256, 0),
        (127, 64, 144, 16),
        (193, 264, 80, 0),
        (257, 520, 1280, 32),
        (64, 256, 64, 0),
        (3200, 264, 80, 0),
        (300, 512, 5120, 0),
        (5000, 2056, 192, 0),
        (70, 72, 13_824, 0),
    ];
    let follows = [
        Follows::Nothing,
        Follows::Bias,
        Follows::GateAndResidual,
        Follows::Residual,
        Follows::ElementGate,
        Follows::Activation(Activation::Silu),
        Follows::Activation(Activation::GeluTanh),
        Follows::Activation(Activation::GeluErf),
    ];
    let mut good = true;
    for (i, shape) in shapes.into_iter().enumerate() {
        if quick && shape.0 * shape.1 * shape.2 > 200_000_000 {
            continue;
        }
        for (j, follows) in follows.into_iter().enumerate() {
            // One shape is checked with all epilogues, the others with two or three.
            if i == 3 || j == 1 || j % shapes.len() == i {
                for output in [BF16, F32] {
                    good &= product(gemm, stream, shape, follows, output)?;
                }
            }
        }
    }
    Ok(good)
}

/// Returns whole numbers from -127 to 127, or with `seed` 0 only the greatest.
pub fn codes(count: usize, seed: u64) -> Vec<f32> {
    let code = |i: usize| (mix((seed << 40) ^ i as u64) % 255) as f32 - 127.0;
    (0..count).map(|i| if seed == 0 { 127.0 } else { code(i) }).collect()
}

fn product(
    gemm: &Gemm,
    stream: &Arc<CudaStream>,
    (rows, columns, inner, gap): (usize, usize, usize, usize),
    follows: Follows,
    output: Element,
) -> Result<bool> {
    // The longest sums are as great as they can be.
    let seed = if inner == 13_824 { 0 } else { 110 };
    let a = Input::new(stream, &codes(rows * inner, seed), inner, gap, INT8)?;
    let b = Input::new(stream, &codes(columns * inner, 2 * seed), inner, gap, INT8)?;
    // With these scales results are about 1, where activations bend.
    let scales = |count, seed, factor: f32| -> Vec<f32> {
        normal(count, seed).into_iter().map(|x| (x.abs() + 0.5) * factor).collect()
    };
    let a_scale = Input::new(stream, &scales(rows, 112, 1.0), rows, 0, F32)?;
    let factor = 1.0 / (5400.0 * (inner as f32).sqrt());
    let b_scale = Input::new(stream, &scales(columns, 113, factor), columns, 0, F32)?;
    let addends = Addends::random(stream, [rows, columns, gap], output, 114)?;
    let Addends { bias, gate, gates, residual } = &addends;
    let operands = Operands::Int8 {
        a: a.rows(stream),
        a_scale: a_scale.at(stream),
        b: b.rows(stream),
        b_scale: b_scale.at(stream),
    };
    let epilogue = follows.epilogue(stream, &addends);
    let run = || -> Result<Vec<f64>> {
        let to = Output::new(stream, [rows, columns, gap], output)?;
        // SAFETY: the buffers have these sizes and live until the copy has waited for the stream.
        unsafe { gemm.run(stream, &operands, inner, &epilogue, to.rows(stream), output)? };
        to.read(stream)
    };
    let (given, again) = (run()?, run()?);

    let whole = |x: &Input| -> Vec<i32> { x.values.iter().map(|x| *x as i32).collect() };
    let (left, right) = (whole(&a), whole(&b));
    let wanted = by_rows(rows, columns, |r, out| {
        let left = &left[r * inner..][..inner];
        for (c, out) in out.iter_mut().enumerate() {
            let right = &right[c * inner..][..inner];
            let sum: i32 = left.iter().zip(right).map(|(a, b)| a * b).sum();
            let bias = if epilogue.bias.is_some() { bias.values[c] as f32 } else { 0.0 };
            // This rounds as the epilogue does.
            let x = (sum as f32 * a_scale.values[r] as f32).mul_add(b_scale.values[c] as f32, bias);
            let x = activate(f64::from(x), epilogue.activation);
            *out = match follows {
                Follows::GateAndResidual => residual.values[r * columns + c] + gate.values[c] * x,
                Follows::Residual => residual.values[r * columns + c] + x,
                Follows::ElementGate => gates.values[r * columns + c] * x,
                _ => x,
            };
            if matches!(follows, Follows::Nothing | Follows::Bias) && output == BF16 {
                *out = bf16::from_f32(*out as f32).to_f64();
            }
        }
    });
    // What follows the sums is f32 arithmetic, whose activations are good to a few units of 2^-24.
    let limit = match (follows, output) {
        (Follows::Nothing | Follows::Bias, _) => 0.0,
        (_, F32) => 1e-6,
        _ => BF16_ROUNDING,
    };
    let name = format!("Int8 {rows}x{columns}x{inner} to {output:?}, {follows:?}");
    Ok(verdict(&name, &given, &again, &wanted, limit))
}

/// Checks a linear layer from bf16 activations and weights, both rotated and quantised here, against the product in
/// f64. `outliers` says how much greater one channel in 32 is than the others.
fn linear(
    norms: &Norms,
    gemm: &Gemm,
    stream: &Arc<CudaStream>,
    [rows, columns, inner]: [usize; 3],
    outliers: f32,
) -> Result<bool> {
    let mut values = normal(rows * inner, 120);
    for (i, x) in values.iter_mut().enumerate() {
        *x *= if i % inner % 32 == 5 { outliers } else { 1.0 };
    }
    let x = Input::new(stream, &values, inner, 0, BF16)?;
    let w = Input::random(stream, [columns, inner, 0], BF16, 121)?;
    let group = rotation_group(inner);
    let run = || -> Result<Vec<f64>> {
        let (a, b) =
            (Output::new(stream, [rows, inner, 0], INT8)?, Output::new(stream, [columns, inner, 0], INT8)?);
        let to = Output::new(stream, [rows, columns, 0], F32)?;
        let (a, b) = (a.typed(stream), b.typed(stream));
        let int8 = |y: Typed| Int8Rows { rows: y.rows, scale: y.scale, group };
        let operands = Operands::Int8 { a: a.rows, a_scale: a.scale, b: b.rows, b_scale: b.scale };
        // SAFETY: the buffers have these sizes and live until the output has been read.
        unsafe {
            norms.quantize_int8(stream, x.typed(stream), Activation::None, int8(a), inner)?;
            norms.quantize_int8(stream, w.typed(stream), Activation::None, int8(b), inner)?;
            gemm.run(stream, &operands, inner, &Epilogue::default(), to.rows(stream), F32)?;
        }
        to.read(stream)
    };
    let (given, again) = (run()?, run()?);
    let wanted = by_rows(rows, columns, |r, out| {
        let left = &x.values[r * inner..][..inner];
        for (out, right) in out.iter_mut().zip(w.values.chunks_exact(inner)) {
            *out = left.iter().zip(right).map(|(a, b)| a * b).sum();
        }
    });
    // Two roundings of rows of normal numbers, whose greatest is 4 deviations, in rms: sqrt(2) * 4 / 127 / sqrt(12).
    let name = format!("linear {rows}x{columns}x{inner}, outliers of {outliers}, against f64");
    Ok(verdict(&name, &given, &again, &wanted, 0.0145))
}

// ---- Attention

/// The downloaded operands that the preparing kernels have written, and their places.
struct Prepared {
    bytes: Vec<u8>,
    layout: Attention8bitLayout,
}

const TILE: usize = 128;

impl Prepared {
    fn floats(&self, at: usize, count: usize) -> Vec<f32> {
        self.bytes[at..][..4 * count]
            .chunks_exact(4)
            .map(|x| f32::from_ne_bytes([x[0], x[1], x[2], x[3]]))
            .collect()
    }
    fn codes(&self, at: usize, count: usize) -> Vec<i8> {
        self.bytes[at..][..count].iter().map(|x| i8::from_ne_bytes([*x])).collect()
    }
}

fn attentions(attention: &Attention, card: &Card, quick: bool) -> Result<bool> {
    println!("\nint8 attention      rows   keys heads kind      operands    same bits    error    limit");
    let mut good = true;
    for (rows, keys, heads, gap) in [
        (1, 1, 1, 0),
        (1, 1000, 2, 0),
        (127, 127, 1, 0),
        (128, 128, 2, 0),
        (129, 129, 3, 8),
        (130, 257, 2, 0),
        (64, 640, 2, 128),
        (3, 130, 40, 0),
        (300, 1000, 3, 24),
        (200, 5000, 2, 0),
        (64, 32_760, 1, 0),
    ] {
        if quick && rows * keys * heads > 300_000 {
            continue;
        }
        for kind in [Kind::Noise, Kind::Outliers, Kind::Flat] {
            good &= one_attention(attention, card, [rows, keys, heads, gap], kind)?;
        }
    }
    Ok(good)
}

/// Checks the operands to the bit, and the result against the attention over these operands with P rounded as in the
/// kernel.
fn one_attention(
    attention: &Attention,
    card: &Card,
    [rows, keys, heads, gap]: [usize; 4],
    kind: Kind,
) -> Result<bool> {
    let case = Case::new(rows, keys, heads, gap, kind, (rows * 37 + keys * 5 + heads) as u64);
    let given = case.run(card, attention, super::Kernel::EightBit { int8: true })?;
    let stream = card.default_stream();
    let inputs = [stream.clone_htod(&case.q)?, stream.clone_htod(&case.k)?, stream.clone_htod(&case.v)?];
    let of = |x: &CudaSlice<u16>, rows| Rows { address: address(x, &stream), rows, stride: case.stride };
    let [q, k, v] = [of(&inputs[0], rows), of(&inputs[1], keys), of(&inputs[2], keys)];
    let layout = Attention8bitLayout::new(rows, keys, heads);
    let memory = stream.clone_htod(&vec![0xffu8; layout.bytes()])?;
    // SAFETY: the buffers have these sizes and live until the copy has waited for the stream.
    unsafe { attention.quantize_8bit(&stream, q, k, v, &layout.at(address(&memory, &stream))?)? };
    let prepared = Prepared { bytes: stream.clone_dtoh(&memory)?, layout };

    let operands = compare_operands(&case, &prepared);
    let wanted = simulate(&case, &prepared);
    let equal =
        given.iter().zip(&wanted).filter(|(g, w)| **g == bf16::from_f32(**w as f32).to_bits()).count();
    let share = equal as f64 / given.len() as f64;
    let (error, _) = super::compare(&given, &wanted);
    // Sums in f32 are off by some 1e-6, and of numbers that far from the middle of two of bf16, 2^-8 apart, one in thousands
    // is rounded otherwise. So is one P in ten thousand, by 1/255, since a GPU's exponential is 2 units off. An output is
    // the sum of as many terms as there are keys and as large as their root, so that such a P carries it over the middle
    // of two numbers of bf16 with a probability of about 1 / sqrt(keys): a ten-thousandth of sqrt(keys) of all outputs, and
    // ten times that where few keys have most of the weight.
    let otherwise = 0.01 + 1e-3 * (keys as f64).sqrt();
    let right = operands.is_none() && share >= 1.0 - otherwise && error <= BF16_ROUNDING;
    println!(
        "{:15}{rows:9}{keys:7}{heads:6} {:9} {:10}{share:12.5} {error:8.1e} {BF16_ROUNDING:8.1e}{}",
        "",
        format!("{kind:?}"),
        operands.unwrap_or("equal"),
        if right { "" } else { "  WRONG" }
    );
    Ok(right)
}

/// Computes the Hadamard transform of `attention_rows.cuh`, in the same order.
fn transform(x: &mut [f32]) {
    for bit in [0, 1, 2, 5, 6, 3, 4] {
        let step = 1 << bit;
        for i in (0..HEAD_DIM).filter(|i| i & step == 0) {
            (x[i], x[i + step]) = (x[i] + x[i + step], x[i] - x[i + step]);
        }
    }
}

/// Returns the name of the first operand that differs from its definition.
fn compare_operands(case: &Case, prepared: &Prepared) -> Option<&'static str> {
    let (places, width) = (prepared.layout.places(), case.heads * HEAD_DIM);
    let tiles = case.keys.div_ceil(TILE);
    let (mean_k, mean_v) =
        (prepared.floats(places.key_mean, width), prepared.floats(places.value_mean, width));
    let scale_v = prepared.floats(places.value_scale, width);
    let (query, scale_q) = (
        prepared.codes(places.query, case.rows * width),
        prepared.floats(places.query_scale, case.heads * case.rows),
    );
    let (key, scale_k) = (
        prepared.codes(places.key, tiles * TILE * width),
        prepared.floats(places.key_scale, case.heads * tiles),
    );
    let value = prepared.codes(places.value, tiles * TILE * width);
    let wide = |x: &[u16], row: usize, column: usize| bf16::from_bits(x[row * case.stride + column]).to_f32();

    // The kernel sums up means in another order.
    for column in 0..width {
        let mean =
            |x: &[u16]| (0..case.keys).map(|r| f64::from(wide(x, r, column))).sum::<f64>() / case.keys as f64;
        if (mean(&case.k) - f64::from(mean_k[column])).abs() > 1e-5 {
            return Some("key mean");
        }
        if (mean(&case.v) - f64::from(mean_v[column])).abs() > 1e-5 {
            return Some("value mean");
        }
        let (mut least, mut most) = (f32::INFINITY, f32::NEG_INFINITY);
        for r in 0..case.keys {
            least = least.min(wide(&case.v, r, column));
            most = most.max(wide(&case.v, r, column));
        }
        let scale = (most - mean_v[column]).max(mean_v[column] - least).max(1e-20) / 127.0;
        if scale.to_bits() != scale_v[column].to_bits() {
            return Some("value scale");
        }
    }
    let rounded = |x: f32, factor: f32| (x * factor).round_ties_even() as i8;
    let greatest = |x: &[f32]| x.iter().fold(1e-20f32, |top, x| top.max(x.abs()));
    let logit = std::f32::consts::LOG2_E * 0.088_388_35_f32 / 128.0;
    for head in 0..case.heads {
        let columns = head * HEAD_DIM..(head + 1) * HEAD_DIM;
        for row in 0..case.rows {
            let mut x: Vec<f32> = columns.clone().map(|c| wide(&case.q, row, c)).collect();
            transform(&mut x);
            let top = greatest(&x);
            if scale_q[head * case.rows + row].to_bits() != (top * (logit / 127.0)).to_bits() {
                return Some("query scale");
            }
            if !x
                .iter()
                .zip(&query[row * width..][columns.clone()])
                .all(|(x, q)| rounded(*x, 127.0 / top) == *q)
            {
                return Some("query");
            }
        }
        for tile in 0..tiles {
            let keys = tile * TILE..case.keys.min((tile + 1) * TILE);
            let rows: Vec<Vec<f32>> = keys
                .clone()
                .map(|row| {
                    let mut x: Vec<f32> =
                        columns.clone().map(|c| wide(&case.k, row, c) - mean_k[c]).collect();
                    transform(&mut x);
                    x
                })
                .collect();
            let top = rows.iter().fold(0.0f32, |top, x| top.max(greatest(x)));
            if scale_k[head * tiles + tile].to_bits() != (top / 127.0).to_bits() {
                return Some("key scale");
            }
            let image = &key[(head * tiles + tile) * TILE * HEAD_DIM..][..TILE * HEAD_DIM];
            for (row, given) in image.chunks_exact(HEAD_DIM).enumerate() {
                let wanted = |channel: usize| rows.get(row).map_or(0, |x| rounded(x[channel], 127.0 / top));
                if !given.iter().enumerate().all(|(channel, given)| wanted(channel) == *given) {
                    return Some("key");
                }
            }
            let image = &value[(head * tiles + tile) * TILE * HEAD_DIM..][..TILE * HEAD_DIM];
            for (channel, places) in image.chunks_exact(TILE).enumerate() {
                let column = head * HEAD_DIM + channel;
                for (place, given) in places.iter().enumerate() {
                    let row = tile * TILE + key_at(place);
                    let wanted = if row < case.keys {
                        round(wide(&case.v, row, column) - mean_v[column], sign(tile) / scale_v[column])
                    } else {
                        0
                    };
                    if *given != wanted {
                        return Some("value");
                    }
                }
            }
        }
    }
    None
}

/// Returns the sign of a tile of V's image, and of its weight in the output.
fn sign(tile: usize) -> f32 {
    if tile.is_multiple_of(2) { 1.0 } else { -1.0 }
}

/// Returns the key at a place of V's image: within 16, place 4c + 2b + a holds key 8b + 2c + a.
fn key_at(place: usize) -> usize {
    let (a, b, c) = (place % 2, place / 2 % 2, place / 4 % 4);
    place / 16 * 16 + 8 * b + 2 * c + a
}

/// Returns a * b + c, rounded towards minus infinity.
fn fma_down(a: f32, b: f32, c: f32) -> f32 {
    let exact = f64::from(a).mul_add(f64::from(b), f64::from(c));
    let near = exact as f32;
    if f64::from(near) > exact { near.next_down() } else { near }
}

/// Returns the attention over the operands that were prepared, with P in whole numbers below 255 at the greatest of 128
/// keys, with the kernel's roundings.
fn simulate(case: &Case, prepared: &Prepared) -> Vec<f64> {
    let (places, width) = (prepared.layout.places(), case.heads * HEAD_DIM);
    let tiles = case.keys.div_ceil(TILE);
    let query = prepared.codes(places.query, case.rows * width);
    let key = prepared.codes(places.key, tiles * TILE * width);
    let value = prepared.codes(places.value, tiles * TILE * width);
    let scale_q = prepared.floats(places.query_scale, case.heads * case.rows);
    let scale_k = prepared.floats(places.key_scale, case.heads * tiles);
    let (mean_v, scale_v) =
        (prepared.floats(places.value_mean, width), prepared.floats(places.value_scale, width));
    by_rows(case.rows, width, |row, out| {
        for head in 0..case.heads {
            let q = &query[row * width + head * HEAD_DIM..][..HEAD_DIM];
            // The greatest exponent so far and, relative to it, the sums of P, of P V with the bias of the parts, and how often
            // that bias is in them.
            let (mut maximum, mut whole, mut surplus) = (f32::NEG_INFINITY, 0.0f32, 0.0f32);
            let mut o = [0.0f32; HEAD_DIM];
            for tile in 0..tiles {
                let scale = (scale_q[head * case.rows + row] * scale_k[head * tiles + tile]).max(1e-30);
                let count = TILE.min(case.keys - tile * TILE);
                let scores: Vec<i32> = (0..count)
                    .map(|j| {
                        let k = &key[((head * tiles + tile) * TILE + j) * HEAD_DIM..][..HEAD_DIM];
                        q.iter().zip(k).map(|(a, b)| i32::from(*a) * i32::from(*b)).sum()
                    })
                    .collect();
                let top = scores.iter().copied().max().unwrap_or(0);
                let shift = fma_down(-(top as f32 + ROUNDING), scale, 7.994_353_4);
                let p: Vec<i32> = scores
                    .iter()
                    .map(|s| (*s as f32 + ROUNDING).mul_add(scale, shift))
                    .map(|x| f64::from(x).exp2().round_ties_even() as i32)
                    .collect();
                let image = &value[(head * tiles + tile) * TILE * HEAD_DIM..][..TILE * HEAD_DIM];
                let sums: Vec<i32> = image
                    .chunks_exact(TILE)
                    .map(|places| {
                        let keys = places.iter().enumerate().map(|(place, v)| (key_at(place), i32::from(*v)));
                        keys.filter(|(key, _)| *key < count).map(|(key, v)| p[key] * v).sum()
                    })
                    .collect();
                // From here on the sums are those of the kernel, in f32 and in its order.
                let exponent = top as f32 * scale;
                let next = maximum.max(exponent);
                let rescale = (maximum - next).exp2();
                maximum = next;
                let weight = (exponent - maximum).exp2();
                whole = (p.iter().sum::<i32>() as f32).mul_add(weight, whole * rescale);
                surplus = surplus * rescale + sign(tile) * weight;
                for (o, sum) in o.iter_mut().zip(&sums) {
                    *o = (*sum as f32 + ROUNDING).mul_add(sign(tile) * weight, *o * rescale);
                }
                if tile % FLUSH == FLUSH - 1 || tile == tiles - 1 {
                    for o in &mut o {
                        *o = surplus.mul_add(-ROUNDING, *o);
                    }
                    surplus = 0.0;
                }
            }
            for (channel, o) in o.iter().enumerate() {
                let column = head * HEAD_DIM + channel;
                out[column] = f64::from(o / whole) * f64::from(scale_v[column]) + f64::from(mean_v[column]);
            }
        }
    })
}

// ---- Times

/// Prints the times of the row kernels and the products on the model's shapes.
pub fn time(card: &Card) -> Result<()> {
    let (norms, gemm) = (Norms::load(card)?, Gemm::load(card)?);
    let stream = card.default_stream();
    let rows = 32_760;
    let some: Vec<u16> = normal(1 << 22, 1).iter().map(|x| bf16::from_f32(*x).to_bits()).collect();
    let wide: Vec<u16> = some.iter().copied().cycle().take(rows * 13_824).collect();
    let x = stream.clone_htod(&wide)?;
    let f32_rows: CudaSlice<f32> =
        stream.clone_htod(&normal(1 << 22, 2).into_iter().cycle().take(rows * 5120).collect::<Vec<_>>())?;
    let y: CudaSlice<u8> = stream.alloc_zeros(rows * 13_824)?;
    let vectors = stream.clone_htod(&vec![1e-3f32; 1 << 16])?;
    let (x, f32_rows, y, vectors) =
        (address(&x, &stream), address(&f32_rows, &stream), address(&y, &stream), address(&vectors, &stream));
    let matrix = |address, stride| Rows { address, rows, stride };
    println!("\nint8 rows of 480P                          ms     TB/s");
    let report = |name: &str, bytes: usize, ms: f32| {
        println!("{name:36}{ms:9.3}{:9.2}", bytes as f64 / f64::from(ms) / 1e9);
    };
    let affine = Affine { factor: vectors, summand: vectors, modulated: true };
    let to = |columns| Int8Rows { rows: matrix(y, columns), scale: vectors, group: 256 };
    for (name, from, bytes) in [
        ("layer norm bf16 to int8", Typed::bf16(matrix(x, 5120)), 3),
        ("layer norm f32 to int8", Typed::f32(matrix(f32_rows, 5120)), 5),
    ] {
        // SAFETY: the buffers have these sizes and outlive the waits in `median`; so for all below.
        let ms = median(&stream, || unsafe {
            norms.layer_norm_int8(&stream, from, &affine, 1e-6, to(5120), 5120)
        })?;
        report(name, bytes * rows * 5120, ms);
    }
    for (columns, activation) in
        [(5120, Activation::None), (13_824, Activation::None), (13_824, Activation::GeluTanh)]
    {
        // SAFETY: as above.
        let ms = median(&stream, || unsafe {
            let from = Typed::bf16(matrix(x, columns));
            norms.quantize_int8(&stream, from, activation, to(columns), columns)
        })?;
        report(&format!("quantisation of {columns} columns, {activation:?}"), 3 * rows * columns, ms);
    }
    println!("\nint8 products                rows columns   inner       ms     TOPS");
    let output: CudaSlice<u16> = stream.alloc_zeros(rows * 15_360)?;
    let weights: Vec<u8> = some.iter().map(|x| *x as u8).cycle().take(15_360 * 5120).collect();
    let (a, b) = (
        stream.clone_htod(&some.iter().map(|x| *x as u8).cycle().take(rows * 13_824).collect::<Vec<_>>())?,
        stream.clone_htod(&weights)?,
    );
    let (a, b, output) = (address(&a, &stream), address(&b, &stream), address(&output, &stream));
    for (columns, inner) in [(5120, 5120), (15_360, 5120), (13_824, 5120), (5120, 13_824)] {
        let operands = Operands::Int8 {
            a: matrix(a, inner),
            a_scale: vectors,
            b: Rows { address: b, rows: columns, stride: inner },
            b_scale: vectors,
        };
        let plain = Epilogue { bias: Some(vectors), ..Epilogue::default() };
        let gelu = Epilogue { activation: Activation::GeluTanh, ..plain };
        let gated =
            Epilogue { gate: Some(Gate::Columns(vectors)), residual: Some(matrix(f32_rows, 5120)), ..plain };
        for (name, epilogue, element) in
            [("int8", &plain, BF16), ("int8, gelu", &gelu, BF16), ("int8, gate, f32 residual", &gated, F32)]
        {
            if element == F32 && columns != 5120 {
                continue;
            }
            let to = matrix(output, columns);
            // SAFETY: as above; the output has room for f32 rows of 5120.
            let ms =
                median(&stream, || unsafe { gemm.run(&stream, &operands, inner, epilogue, to, element) })?;
            let operations = 2.0 * rows as f64 * columns as f64 * inner as f64;
            println!("{name:25}{rows:8}{columns:8}{inner:8}{ms:9.3}{:9.0}", operations / f64::from(ms) / 1e9);
        }
    }
    Ok(())
}
