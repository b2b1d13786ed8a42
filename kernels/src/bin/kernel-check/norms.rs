//! Checks and times of operations on rows and on volumes.

use std::sync::Arc;

use animd_kernels::cuda::cudarc::driver::CudaStream;
use animd_kernels::cuda::{Affine, Card, Element, Gemm, Norms, RopeTables, Rows, Term, Typed, Volumes};

use super::bench::{BF16_ROUNDING, Input, Output, by_rows, verdict};
use super::{Result, address, median, median_of, normal};

const F32: Element = Element::F32;
const BF16: Element = Element::Bf16;
const E4M3: Element = Element::E4m3;

/// Returns the relative L2 error that writing can cause. e4m3 rounds by 2^-4 at most and 0.026 in the root mean square,
/// more where a row's greatest element is far above the others.
pub fn limit(element: Element) -> f64 {
    match element {
        Element::F32 => 1e-5,
        Element::Bf16 => BF16_ROUNDING,
        Element::E4m3 => 0.032,
        // The rms of rounding to units of 1/127 of a row's greatest, which is up to 5 deviations once it is rotated.
        Element::Int8 => 5.0 / 127.0 / 3.46,
    }
}

pub fn check(card: &Card, quick: bool) -> Result<bool> {
    let (norms, volumes) = (Norms::load(card)?, Volumes::load(card)?);
    let has_e4m3 = Gemm::load(card)?.has_e4m3();
    let stream = card.default_stream();
    let mut good = true;
    println!("\nrows and volumes                                                  error    worst    limit");
    for (rows, columns, gap) in
        [(1, 16, 0), (3, 80, 16), (77, 1280, 0), (257, 5120, 32), (5, 13_824, 0), (2, 16_384, 0)]
    {
        if quick && rows * columns > 200_000 {
            continue;
        }
        for from in [BF16, F32] {
            for to in [BF16, F32, E4M3] {
                if to == E4M3 && !has_e4m3 {
                    continue;
                }
                good &= layer_norm(&norms, &stream, [rows, columns, gap], from, to)?;
                good &= rms_norm(&norms, &stream, [rows, columns, gap], from, to)?;
            }
            if has_e4m3 {
                good &= quantize(&norms, &stream, [rows, columns, gap], from)?;
            }
        }
        good &= split(&norms, &stream, [rows, columns, gap])?;
    }
    good &= rope(&norms, &stream)?;
    good &= combine(&volumes, &stream)?;
    good &= patches(&volumes, &stream)?;
    for channels in [8, 96, 192, 384, 768] {
        for (element, silu) in [(BF16, false), (BF16, true), (F32, true)] {
            good &= channel_norm(&volumes, &stream, element, [1001, channels], silu)?;
        }
    }
    good &= layouts(&volumes, &stream)?;
    Ok(good)
}

/// Runs a kernel twice, each time into a fresh output, and returns both results.
fn twice(
    stream: &Arc<CudaStream>,
    shape: [usize; 3],
    element: Element,
    mut run: impl FnMut(&Output) -> Result<()>,
) -> Result<[Vec<f64>; 2]> {
    let mut once = || {
        let to = Output::new(stream, shape, element)?;
        run(&to)?;
        to.read(stream)
    };
    Ok([once()?, once()?])
}

fn layer_norm(
    norms: &Norms,
    stream: &Arc<CudaStream>,
    shape @ [rows, columns, gap]: [usize; 3],
    from: Element,
    to: Element,
) -> Result<bool> {
    // The rows have a mean far from 0.
    let values: Vec<f32> = normal(rows * columns, 1).iter().map(|x| 3.0 + x).collect();
    let x = Input::new(stream, &values, columns, gap, from)?;
    let factor = Input::random(stream, [1, columns, 0], F32, 2)?;
    let summand = Input::random(stream, [1, columns, 0], F32, 3)?;
    let modulated = rows % 2 == 1;
    let affine = Affine { factor: factor.at(stream), summand: summand.at(stream), modulated };
    let [given, again] = twice(stream, shape, to, |y| {
        // SAFETY: the buffers have these sizes and live until the output has been read.
        unsafe { Ok(norms.layer_norm(stream, x.typed(stream), &affine, 1e-6, y.typed(stream), columns)?) }
    })?;
    let one = if modulated { 1.0 } else { 0.0 };
    let wanted = by_rows(rows, columns, |r, out| {
        let x = &x.values[r * columns..][..columns];
        let mean = x.iter().sum::<f64>() / columns as f64;
        let variance = x.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / columns as f64;
        for (c, out) in out.iter_mut().enumerate() {
            let normed = (x[c] - mean) / (variance + 1e-6).sqrt();
            *out = normed * (one + factor.values[c]) + summand.values[c];
        }
    });
    let name = format!("layer norm {rows}x{columns} {from:?} to {to:?}, modulated: {modulated}");
    Ok(verdict(&name, &given, &again, &wanted, limit(to)))
}

fn rms_norm(
    norms: &Norms,
    stream: &Arc<CudaStream>,
    shape @ [rows, columns, gap]: [usize; 3],
    from: Element,
    to: Element,
) -> Result<bool> {
    let x = Input::random(stream, [rows, columns, gap], from, 4)?;
    let weight = Input::random(stream, [1, columns, 0], F32, 5)?;
    let [given, again] = twice(stream, shape, to, |y| {
        let matrix = (x.typed(stream), weight.at(stream), y.typed(stream));
        // SAFETY: as above.
        unsafe { Ok(norms.rms_norm(stream, &[matrix], 1e-6, None, columns)?) }
    })?;
    let wanted = by_rows(rows, columns, |r, out| {
        rms(&x.values[r * columns..][..columns], &weight.values, out);
    });
    let name = format!("RMS norm {rows}x{columns} {from:?} to {to:?}");
    Ok(verdict(&name, &given, &again, &wanted, limit(to)))
}

fn rms(x: &[f64], weight: &[f64], out: &mut [f64]) {
    let mean = x.iter().map(|x| x * x).sum::<f64>() / x.len() as f64;
    for ((out, x), weight) in out.iter_mut().zip(x).zip(weight) {
        *out = x / (mean + 1e-6).sqrt() * weight;
    }
}

/// Checks the RMS norm with the rotary embedding, on queries and keys of one product in one launch, in place.
fn rope(norms: &Norms, stream: &Arc<CudaStream>) -> Result<bool> {
    let (rows, width, pairs) = (131, 1280, 64);
    let angles: Vec<f32> = normal(rows * pairs, 6);
    let table = |f: fn(f32) -> f32| angles.iter().map(|a| f(*a)).collect::<Vec<_>>();
    let cosines = Input::new(stream, &table(f32::cos), pairs, 0, F32)?;
    let sines = Input::new(stream, &table(f32::sin), pairs, 0, F32)?;
    let weights = Input::random(stream, [2, width, 0], F32, 7)?;
    let rope = RopeTables { cosines: cosines.at(stream), sines: sines.at(stream), pairs };
    let mut runs = Vec::new();
    let mut input = Vec::new();
    for _ in 0..2 {
        let x = Input::random(stream, [rows, 3 * width, 0], BF16, 8)?;
        let part = |i: usize| {
            let all = x.rows(stream);
            Typed::bf16(Rows { address: all.address + (2 * i * width) as u64, ..all })
        };
        let weight = |i: usize| weights.at(stream) + (4 * i * width) as u64;
        let matrices = [(part(0), weight(0), part(0)), (part(1), weight(1), part(1))];
        // SAFETY: the buffers have these sizes and live until the copy has waited.
        unsafe { norms.rms_norm(stream, &matrices, 1e-6, Some(rope), width)? };
        runs.push(x.download(stream, 3 * width)?);
        input = x.values;
    }
    let wanted = by_rows(rows, 3 * width, |r, out| {
        out.copy_from_slice(&input[r * 3 * width..][..3 * width]);
        for (i, part) in out.chunks_exact_mut(width).take(2).enumerate() {
            let x = part.to_vec();
            rms(&x, &weights.values[i * width..][..width], part);
            for (p, pair) in part.chunks_exact_mut(2).enumerate() {
                let at = r * pairs + p % pairs;
                let (c, s) = (cosines.values[at], sines.values[at]);
                (pair[0], pair[1]) = (pair[0] * c - pair[1] * s, pair[0] * s + pair[1] * c);
            }
        }
    });
    Ok(verdict("RMS norm of q and k with rope, in place", &runs[0], &runs[1], &wanted, limit(BF16)))
}

fn quantize(
    norms: &Norms,
    stream: &Arc<CudaStream>,
    [rows, columns, gap]: [usize; 3],
    from: Element,
) -> Result<bool> {
    let x = Input::random(stream, [rows, columns, gap], from, 9)?;
    let [given, again] = twice(stream, [rows, columns, gap], E4M3, |y| {
        // SAFETY: as above.
        unsafe { Ok(norms.quantize(stream, x.typed(stream), y.typed(stream), columns)?) }
    })?;
    let name = format!("quantisation {rows}x{columns} {from:?}");
    Ok(verdict(&name, &given, &again, &x.values, limit(E4M3)))
}

fn split(norms: &Norms, stream: &Arc<CudaStream>, shape: [usize; 3]) -> Result<bool> {
    let [rows, columns, gap] = shape;
    let x = Input::random(stream, shape, F32, 10)?;
    let mut good = true;
    for second in [false, true] {
        let [given, again] = twice(stream, [rows, 3 * columns, gap], BF16, |y| {
            // SAFETY: as above.
            unsafe { Ok(norms.split(stream, x.rows(stream), y.rows(stream), second, columns)?) }
        })?;
        // The sum of high and low, wherever they are, is within 2^-16.
        let sums: Vec<f64> = given
            .chunks_exact(3 * columns)
            .flat_map(|row| (0..columns).map(|c| row[c] + row[if second { 2 } else { 1 } * columns + c]))
            .collect();
        let copies = given.chunks_exact(3 * columns).all(|row| {
            let third = if second { &row[columns..2 * columns] } else { &row[2 * columns..] };
            row[..columns] == *third
        });
        let name = format!("splitting {rows}x{columns}, second: {second}");
        good &= copies && given == again && verdict(&name, &sums, &sums, &x.values, 1.0 / 65_536.0);
    }
    Ok(good)
}

fn combine(volumes: &Volumes, stream: &Arc<CudaStream>) -> Result<bool> {
    let mut good = true;
    for (elements, count) in [(1, 1), (13, 2), (100_003, 3), (4096, 8)] {
        for to in [BF16, F32] {
            let types = |i: usize| if i.is_multiple_of(2) { F32 } else { BF16 };
            let inputs = (0..count)
                .map(|i| Input::random(stream, [1, elements, 0], types(i), 12 + i as u64))
                .collect::<Result<Vec<_>>>()?;
            let factor = |i: usize| 1.5 - i as f32;
            let terms: Vec<Term> = (0..count)
                .map(|i| Term { address: inputs[i].at(stream), element: types(i), factor: factor(i) })
                .collect();
            let [given, again] = twice(stream, [1, elements, 0], to, |y| {
                // SAFETY: as above.
                unsafe { Ok(volumes.combine(stream, &terms, y.rows(stream).address, to, elements)?) }
            })?;
            let mut wanted = vec![0.0f32; elements];
            for (i, input) in inputs.iter().enumerate() {
                for (w, x) in wanted.iter_mut().zip(&input.values) {
                    let product = factor(i) * *x as f32;
                    *w = if i == 0 { product } else { *w + product };
                }
            }
            let wanted: Vec<f64> = wanted.into_iter().map(f64::from).collect();
            // Results in f32 must be equal to the bit.
            let limit = if to == F32 { 0.0 } else { limit(to) };
            let name = format!("sum of {count} terms of {elements} to {to:?}");
            good &= verdict(&name, &given, &again, &wanted, limit);
        }
    }
    Ok(good)
}

fn patches(volumes: &Volumes, stream: &Arc<CudaStream>) -> Result<bool> {
    let ([f, h, w], x_channels, y_channels) = ([3, 6, 10], 16, 20);
    let channels = x_channels + y_channels;
    let voxels = f * h * w;
    let x = Input::random(stream, [1, x_channels * voxels, 0], F32, 20)?;
    let y = Input::random(stream, [1, y_channels * voxels, 0], F32, 21)?;
    let tokens = voxels / 4;
    let [given, again] = twice(stream, [tokens, 4 * channels, 4], F32, |to| {
        let (x, y) = ((x.at(stream), x_channels), Some((y.at(stream), y_channels)));
        // SAFETY: as above.
        unsafe { Ok(volumes.patchify(stream, x, y, [f, h, w], to.rows(stream))?) }
    })?;
    let all: Vec<f64> = x.values.iter().chain(&y.values).copied().collect();
    let place = |token: usize, row: usize, column: usize| {
        let (frame, down, across) = (token / (h / 2 * w / 2), token / (w / 2) % (h / 2), token % (w / 2));
        (frame * h + 2 * down + row) * w + 2 * across + column
    };
    let wanted = by_rows(tokens, 4 * channels, |t, out| {
        for (i, out) in out.iter_mut().enumerate() {
            *out = all[i / 4 * voxels + place(t, i / 2 % 2, i % 2)];
        }
    });
    let mut good = verdict("patchify", &given, &again, &wanted, 0.0);

    let x = Input::random(stream, [tokens, 4 * x_channels, 4], F32, 22)?;
    let [given, again] = twice(stream, [x_channels, voxels, 0], F32, |to| {
        let address = to.rows(stream).address;
        // SAFETY: as above.
        unsafe { Ok(volumes.unpatchify(stream, x.rows(stream), address, x_channels, [f, h, w])?) }
    })?;
    let mut wanted = vec![0.0; x_channels * voxels];
    for (t, row) in x.values.chunks_exact(4 * x_channels).enumerate() {
        for (i, value) in row.iter().enumerate() {
            let (pixel, channel) = (i / x_channels, i % x_channels);
            wanted[channel * voxels + place(t, pixel / 2, pixel % 2)] = *value;
        }
    }
    good &= verdict("unpatchify", &given, &again, &wanted, 0.0);
    Ok(good)
}

fn channel_norm(
    volumes: &Volumes,
    stream: &Arc<CudaStream>,
    element: Element,
    [voxels, channels]: [usize; 2],
    silu: bool,
) -> Result<bool> {
    let x = Input::random(stream, [voxels, channels, 0], element, 30)?;
    let gamma = Input::random(stream, [1, channels, 0], F32, 31)?;
    let [given, again] = twice(stream, [voxels, channels, 0], element, |y| {
        let (x, y) = (x.at(stream), y.rows(stream).address);
        let shape = [voxels, channels];
        // SAFETY: as above.
        unsafe { Ok(volumes.channel_norm(stream, x, gamma.at(stream), y, element, shape, silu)?) }
    })?;
    let wanted = by_rows(voxels, channels, |v, out| {
        normed(&x.values[v * channels..][..channels], &gamma.values, silu, out);
    });
    let name = format!("channel norm {voxels}x{channels} {element:?}, SiLU: {silu}");
    Ok(verdict(&name, &given, &again, &wanted, limit(element)))
}

/// Computes the VAE's norm of one voxel.
pub fn normed(x: &[f64], gamma: &[f64], silu: bool, out: &mut [f64]) {
    let length = x.iter().map(|x| x * x).sum::<f64>().sqrt().max(1e-12);
    let factor = (x.len() as f64).sqrt() / length;
    for ((out, x), gamma) in out.iter_mut().zip(x).zip(gamma) {
        let y = x * factor * gamma;
        *out = if silu { y / (1.0 + (-y).exp()) } else { y };
    }
}

fn layouts(volumes: &Volumes, stream: &Arc<CudaStream>) -> Result<bool> {
    let (voxels, mut good) = (1003, true);
    for (channels, stride) in [(3, 16), (16, 16), (97, 104)] {
        let x = Input::random(stream, [channels, voxels, 0], F32, 40)?;
        let [given, again] = twice(stream, [voxels, stride, 0], BF16, |y| {
            // SAFETY: as above.
            unsafe { Ok(volumes.channels_last(stream, x.at(stream), channels, y.rows(stream))?) }
        })?;
        let wanted = by_rows(voxels, stride, |v, out| {
            for (c, out) in out.iter_mut().take(channels).enumerate() {
                *out = x.values[c * voxels + v];
            }
        });
        good &= verdict(&format!("channels last {channels}"), &given, &again, &wanted, limit(BF16));
        for from in [BF16, F32] {
            let x = Input::random(stream, [voxels, stride, 0], from, 41)?;
            let [given, again] = twice(stream, [channels, voxels, 5], F32, |y| {
                let (x, y) = (x.rows(stream), y.rows(stream));
                // SAFETY: as above.
                unsafe { Ok(volumes.channels_first(stream, x, from, y.address, channels, y.stride)?) }
            })?;
            let wanted = by_rows(channels, voxels, |c, out| {
                for (v, out) in out.iter_mut().enumerate() {
                    *out = x.values[v * stride + c];
                }
            });
            good &= verdict(&format!("channels first {channels} {from:?}"), &given, &again, &wanted, 0.0);
        }
    }
    Ok(good)
}

/// Prints milliseconds and TB/s of the kernels that are bound by memory.
pub fn time(card: &Card) -> Result<()> {
    let (norms, volumes) = (Norms::load(card)?, Volumes::load(card)?);
    let stream = card.default_stream();
    let rows = 32_760;
    let some: Vec<u16> = normal(1 << 22, 1).iter().map(|x| half::bf16::from_f32(*x).to_bits()).collect();
    let x: Vec<u16> = some.iter().copied().cycle().take(rows * 15_360).collect();
    let (x, y) = (stream.clone_htod(&x)?, stream.alloc_zeros::<u16>(rows * 15_360)?);
    let vectors = stream.clone_htod(&vec![1.0f32; 1 << 22])?;
    let (x, y, vectors) = (address(&x, &stream), address(&y, &stream), address(&vectors, &stream));
    let matrix = |address, stride| Rows { address, rows, stride };
    let affine = Affine { factor: vectors, summand: vectors, modulated: true };
    println!("\nrows of 480P                               ms     TB/s");
    let report = |name: &str, bytes: usize, ms: f32| {
        println!("{name:36}{ms:9.3}{:9.2}", bytes as f64 / f64::from(ms) / 1e9);
    };
    let whole = rows * 5120;
    let (from, to) = (matrix(x, 5120), matrix(y, 5120));
    // SAFETY: the buffers have these sizes and outlive the waits in `median`; so for all below.
    let ms = median_of(&stream, (y, 2 * whole), || unsafe {
        norms.layer_norm(&stream, Typed::bf16(from), &affine, 1e-6, Typed::bf16(to), 5120)
    })?;
    report("layer norm bf16 to bf16", 4 * whole, ms);
    // SAFETY: as above.
    let ms = median_of(&stream, (y, whole), || unsafe {
        norms.layer_norm(&stream, Typed::bf16(from), &affine, 1e-6, Typed::e4m3(to, vectors), 5120)
    })?;
    report("layer norm bf16 to e4m3", 3 * whole, ms);
    // The model's: two numbers of bf16 are one of f32.
    let wide = Typed::f32(matrix(x, 5120));
    // SAFETY: as above.
    let ms = median_of(&stream, (y, whole), || unsafe {
        norms.layer_norm(&stream, wide, &affine, 1e-6, Typed::e4m3(to, vectors), 5120)
    })?;
    report("layer norm f32 to e4m3", 5 * whole, ms);
    // SAFETY: as above.
    let ms = median_of(&stream, (y, 2 * whole), || unsafe {
        norms.layer_norm(&stream, wide, &affine, 1e-6, Typed::bf16(to), 5120)
    })?;
    report("layer norm f32 to bf16", 6 * whole, ms);
    let rope = RopeTables { cosines: vectors, sines: vectors, pairs: 64 };
    let aside = [(Typed::bf16(from), vectors, Typed::bf16(to))];
    // SAFETY: as above.
    let ms =
        median_of(&stream, (y, 2 * whole), || unsafe { norms.rms_norm(&stream, &aside, 1e-6, None, 5120) })?;
    report("RMS norm", 4 * whole, ms);
    let part = |i: u64| Typed::bf16(matrix(x + 10_240 * i, 15_360));
    let both = [(part(0), vectors, part(0)), (part(1), vectors, part(1))];
    // SAFETY: as above.
    let ms = median(&stream, || unsafe { norms.rms_norm(&stream, &both, 1e-6, Some(rope), 5120) })?;
    report("RMS norm and rope of q and k", 8 * whole, ms);
    let wide = |address| Typed { scale: vectors, ..Typed::bf16(matrix(address, 13_824)) };
    let narrow = Typed { element: E4M3, ..wide(y) };
    // SAFETY: as above.
    let ms = median_of(&stream, (y, rows * 13_824), || unsafe {
        norms.quantize(&stream, wide(x), narrow, 13_824)
    })?;
    report("quantisation of 13824 columns", 3 * rows * 13_824, ms);
    let voxels = 480 * 832 * 8;
    // SAFETY: as above.
    let ms = median_of(&stream, (y, 2 * voxels * 96), || unsafe {
        volumes.channel_norm(&stream, x, vectors, y, BF16, [voxels, 96], true)
    })?;
    report("channel norm, 96 channels, 8 frames", 4 * voxels * 96, ms);
    Ok(())
}
